"""Arrays of a device as `Numbers` of the host: summarized on the device at once, and read together, later.

An array may be changed in place, or its memory freed, after an operation. So a small one is copied, and of a larger one
the mean, deviation and range are computed, on its device. `Summaries.read` joins all of this and copies it to the host:
one transfer for each device.
"""

from __future__ import annotations

import math
from typing import Any

from gradflow.autograd.mapping import device_array, device_backend
from gradflow.backend import Array, Backend
from gradflow.drawing.graph import Numbers
from gradflow.dtypes import DTYPES

IN_FULL = 64
"""Arrays of at most so many elements are kept in full."""


class Summary:
    """A summary that may still be on the device. `numbers` is set once `Summaries.read` has copied it."""

    __slots__ = ("device", "dtype", "numbers", "shape")

    def __init__(self, array: Array, backend: Backend) -> None:
        self.shape = tuple(array.shape)
        self.dtype = backend.dtype_name(array.dtype)
        self.device = str(backend.device)
        self.numbers: Numbers | None = None


class Summaries:
    """Summaries of arrays on any devices."""

    def __init__(self) -> None:
        self._waiting: dict[Backend, list[tuple[Summary, Array]]] = {}

    def add(self, array: Array, backend: Backend) -> Summary:
        """Summarize an array on its device: inside `vmap`, that of all examples. Does not wait for the device."""
        array, backend = device_array(array), device_backend(backend)
        summary = Summary(array, backend)
        small = math.prod(summary.shape) <= IN_FULL
        kept = backend.copy(array) if small else _statistics(array, backend)
        self._waiting.setdefault(backend, []).append((summary, kept))
        return summary

    def read(self) -> None:
        """Copy all summaries to the host, and set their `numbers`. Waits for each device once."""
        waiting, self._waiting = self._waiting, {}
        for F, pairs in waiting.items():
            by_dtype: dict[Any, list[tuple[Summary, Array]]] = {}
            for pair in pairs:
                by_dtype.setdefault(pair[1].dtype, []).append(pair)
            flat = [
                F.astype(F.concat([F.reshape(kept, (-1,)) for _, kept in group], axis=0), _wide(F))
                for group in by_dtype.values()
            ]
            values = F.to_host(F.concat(flat, axis=0))
            start = 0
            for summary, kept in (pair for group in by_dtype.values() for pair in group):
                size = math.prod(kept.shape)
                summary.numbers = _numbers(summary, values[start : start + size])
                start += size


def _wide(F: Backend) -> Any:
    """The dtype in which statistics are computed and numbers are read."""
    return F.dtypes["float64" if F.supports("float64") else "float32"]


def _statistics(array: Array, F: Backend) -> Array:
    """The number of finite elements, and their mean, standard deviation, minimum and maximum, as one array."""
    x = F.astype(array, _wide(F))
    finite = F.isfinite(x)
    count = F.sum(F.astype(finite, x.dtype))
    divisor = F.maximum(count, 1.0)
    mean = F.divide(F.sum(F.where(finite, x, 0.0)), divisor)
    variance = F.divide(F.sum(F.square(F.where(finite, F.subtract(x, mean), 0.0))), divisor)
    least, greatest = F.min(F.where(finite, x, math.inf)), F.max(F.where(finite, x, -math.inf))
    return F.stack([count, mean, F.sqrt(variance), least, greatest], axis=0)


def _numbers(summary: Summary, read: Any) -> Numbers:
    """The numbers of a summary, from what was read for it, a NumPy array."""
    size = math.prod(summary.shape)
    values, known = None, read.tolist()
    if size <= IN_FULL:
        if not DTYPES[summary.dtype].is_floating:
            read = read.astype("bool" if summary.dtype == "bool" else "int64")
        values = read.reshape(summary.shape).tolist()
        known = _statistics_on_host(known)
    count, mean, deviation, least, greatest = known
    return Numbers(
        shape=summary.shape,
        dtype=summary.dtype,
        device=summary.device,
        values=values,
        mean=mean if count else None,
        deviation=deviation if count else None,
        least=least if count else None,
        greatest=greatest if count else None,
        nonfinite=size - int(count),
    )


def _statistics_on_host(values: list[float]) -> tuple[float, float, float, float, float]:
    """What `_statistics` computes, of a few numbers."""
    finite = [x for x in values if math.isfinite(x)]
    if not finite:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    mean = sum(x / len(finite) for x in finite)
    deviation = math.sqrt(sum((x - mean) * (x - mean) / len(finite) for x in finite))
    return len(finite), mean, deviation, min(finite), max(finite)
