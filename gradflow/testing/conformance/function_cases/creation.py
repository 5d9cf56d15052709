"""Calls of functions that create arrays or change their dtype."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradflow.testing.conformance import REALS
from gradflow.testing.conformance.function_cases.calls import (
    ALL,
    INTEGERS,
    SHAPES,
    WIDE_INTEGERS,
    Native,
    Table,
    values_for,
)
from gradflow.testing.conformance.kernel_cases.inputs import normal


def add_creation(t: Table) -> None:
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    for dtypes in (REALS, ("bool",), INTEGERS):
        for shape in ((3, 4), (), (0, 3), (5,)):
            for subject in ("zeros", "ones"):
                t.add(subject, shape, dtype=Native(), dtypes=dtypes)
            t.add("empty", shape, dtype=Native(), dtypes=dtypes, reference=_only_shape)
            x = values_for(dtypes, normal(shape, 50))
            t.add("zeros_like", x, dtypes=dtypes)
            t.add("ones_like", x, dtypes=dtypes)
        t.add("full", (2, 3), 1 if dtypes != REALS else 0.3, dtype=Native(), dtypes=dtypes)
        t.add("full", (), 1, dtype=Native(), dtypes=dtypes)
    t.add("full", (), 2**64 - 1, dtype=Native(), dtypes=("uint64",))
    t.add("full", (2,), -math.inf, dtype=Native())
    for dtypes in (REALS, WIDE_INTEGERS, ("uint64",)):
        t.add("arange", 5, dtype=Native(), dtypes=dtypes)
        t.add("arange", 0, dtype=Native(), dtypes=dtypes)
        t.add("arange", 2, 11, 3, dtype=Native(), dtypes=dtypes)
    t.add("arange", 5, 0, -2, dtype=Native(), dtypes=("int64", "int32"))
    for shape in SHAPES:
        x = normal(shape, 51, 3.0)
        t.add("asarray", x)
        for target in ("float32", "float64", "int64", "bool"):
            t.add("astype", x, Native(target), reference=lambda x, dtype: x.astype(dtype))
        t.add("astype", x, Native(), copy=False, reference=lambda x, dtype, copy: x.astype(dtype))
    for target in ALL:
        x = (normal((3, 5), 52) * 30).astype(np.int64)
        x = np.abs(x) if target.startswith("u") else x
        t.add("astype", x, Native(target), dtypes=("int64",), reference=lambda x, dtype: x.astype(dtype))
        t.add("astype", x > 0, Native(target), dtypes=("bool",), reference=lambda x, dtype: x.astype(dtype))
    t.add("asarray", 1.5, dtype=Native())
    t.add("asarray", normal((3,), 53), dtype=Native("float64"))


def _only_shape(shape: Any, dtype: Any) -> Any:
    """The reference for `empty`, whose values are not compared: see `test_array_function`."""
    return np.zeros(shape, dtype)
