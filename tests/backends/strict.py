"""The device `strict`: array-api-strict on its `device1`, which refuses implicit conversions and mixed devices."""

from __future__ import annotations

import functools
from typing import Any

import array_api_strict as xp
import numpy as np

from gradflow.backend import AccurateSums, Diagnosis, MemoryStats

DEVICE = xp.Device("device1")


def _raw(key: Any) -> Any:
    return tuple(getattr(k, "_array", k) for k in key) if isinstance(key, tuple) else getattr(key, "_array", key)


class StrictBackend(AccurateSums):
    name = "strict"
    unsupported = {"float16": "the Array API has no float16"}  # noqa: RUF012

    def __init__(self, index: int = 0) -> None:
        for creation in ("asarray", "empty", "zeros", "ones", "full", "arange"):
            setattr(self, creation, functools.partial(getattr(xp, creation), device=DEVICE))
        super().__init__(xp, index)

    @classmethod
    def device_count(cls) -> int:
        return 1

    @classmethod
    def diagnose(cls) -> Diagnosis:
        return Diagnosis(True, f"array-api-strict {xp.__version__}")

    def to_host(self, array: Any) -> Any:
        return np.array(array._array, order="C")

    def from_host(self, values: Any) -> Any:
        return xp.asarray(np.array(values, order="C"), device=DEVICE)

    def synchronize(self) -> None: ...

    def memory_stats(self) -> MemoryStats:
        return MemoryStats(0, None, 0)

    # unlike NumPy, the Array API has neither integer arrays combined with slices nor slices beyond the end

    def getitem(self, x: Any, key: Any) -> Any:
        try:
            return x[key]
        except IndexError:
            return type(x)._new(np.asarray(x._array[_raw(key)]), device=DEVICE)

    def setitem(self, x: Any, key: Any, values: Any) -> None:
        try:
            x[key] = values
        except IndexError:
            x._array[_raw(key)] = getattr(values, "_array", values)
