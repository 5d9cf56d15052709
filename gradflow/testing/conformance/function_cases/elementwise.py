"""Calls of elementwise functions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradflow.testing.conformance.function_cases.calls import SHAPES, WIDE_INTEGERS, Table
from gradflow.testing.conformance.kernel_cases.inputs import name_of, normal

PAIRS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((), (2, 3)), ((), ()), ((0, 3), (1, 3)), ((2, 3, 4), (3, 1)),
]  # fmt: skip
EDGES = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -1.5, np.inf, -np.inf, np.nan, 3.0, -3.0])
_COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")


def add_elementwise(t: Table) -> None:
    for subject in ("abs", "negative", "square", "sign", "floor", "ceil", "round", "isfinite", "isinf", "isnan"):
        for shape in SHAPES:
            t.add(subject, normal(shape, 54, 3.0))
        t.add(subject, EDGES, name="edges")
    t.add("trunc", normal((3, 4), 54, 3.0))
    t.add("trunc", EDGES, name="edges")
    for subject in ("abs", "negative", "square", "sign"):
        t.add(subject, np.array([[3, -4], [0, 7]]), dtypes=WIDE_INTEGERS)
    further = ("tan", "atan", "sinh", "cosh")
    for subject in ("exp", "expm1", "sin", "cos", "tanh", *further):
        for shape in SHAPES[:2] if subject in further else SHAPES:
            t.add(subject, normal(shape, 55, 2.0), ulp=4)
        t.add(subject, np.array([0.0, -0.0, 1e-4, -1e-4, 1.0, -1.0, 5.0, -5.0]), name="small", ulp=4)
    for subject in ("asin", "acos"):
        for shape in SHAPES[:2]:
            t.add(subject, np.tanh(normal(shape, 55, 2.0)), ulp=4)
        t.add(subject, np.array([0.0, 1e-4, -1e-4, 0.5, -0.5]), name="small", ulp=4)
    for subject in ("log2", "log10"):
        t.add(subject, np.array([1.0, 2.0, 8.0, 0.25, 0.5, 1024.0, 100.0]), name="powers", ulp=4)
    for subject in ("log", "sqrt", "log1p", "log2", "log10"):
        for shape in SHAPES[:2] if subject in ("log2", "log10") else SHAPES:
            t.add(subject, np.abs(normal(shape, 56, 2.0)) + 0.1, ulp=None if subject == "sqrt" else 4)
    t.add("log1p", np.array([0.0, 1e-4, -1e-4, 1e-3, -0.5]), name="small", ulp=4)
    for a, b in PAIRS:
        x, y = normal(a, 57, 2.0), normal(b, 58, 2.0)
        for subject in ("add", "subtract", "multiply", "divide", "maximum", "minimum"):
            t.add(subject, x, y)
        t.add("pow", np.abs(x) + 0.1, y, ulp=4)
        if (a, b) in PAIRS[1:4]:
            t.add("atan2", x, y, ulp=4)
            _add_divisions(t, np.floor(x) + 0.3, y + np.copysign(0.5, y))
        for subject in _COMPARISONS:
            t.add(subject, np.floor(x), np.floor(y))
            t.add(subject, np.floor(x).astype(np.int64), np.floor(y).astype(np.int64), dtypes=WIDE_INTEGERS)
        for subject in ("add", "subtract", "multiply", "maximum", "minimum"):
            t.add(subject, (x * 9).astype(np.int64), (y * 9).astype(np.int64), dtypes=WIDE_INTEGERS)
        for subject in ("logical_and", "logical_or"):
            t.add(subject, x > 0, y > 0, dtypes=("bool",))
        t.add("where", x > y, x, y)
        t.add("where", x > 0, (x * 9).astype(np.int64), (y * 9).astype(np.int64), dtypes=WIDE_INTEGERS)
    t.add("logical_not", normal((3, 4), 59) > 0, dtypes=("bool",))
    t.add("logical_not", np.asarray(True), dtypes=("bool",))
    for subject in ("maximum", "minimum"):  # NaN wins on either side
        t.add(subject, np.array([np.nan, 1.0, np.inf, -np.inf]), np.array([1.0, np.nan, 0.0, 0.0]), name="edges")
    words = np.array([0, 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15], np.uint64)
    small = np.array([0, 1, 12, 32, 63], np.uint64)
    for subject in ("add", "subtract", "multiply", "bitwise_and", "bitwise_xor", "less", "less_equal", "greater_equal"):
        t.add(subject, words[:, None], words, name="words", dtypes=("uint64",))
    t.add("bitwise_right_shift", words[:, None], small, name="words", dtypes=("uint64",))
    # a Python number for one operand does not change the dtype
    x = normal((3, 4), 60, 2.0)
    for y in (x, np.asarray(1.25)):
        for subject in ("add", "subtract", "multiply", "divide", "maximum", "minimum", *_COMPARISONS):
            t.add(subject, y, 0.5, name=f"{name_of(y.shape)}-number")
            t.add(subject, 2, y, name=f"number-{name_of(y.shape)}")
        t.add("pow", np.abs(y) + 0.1, 2.5, name=f"{name_of(y.shape)}-number", ulp=4)
        t.add("pow", 2.0, y, name=f"number-{name_of(y.shape)}", ulp=4)
        t.add("floor_divide", np.floor(y) + 0.3, 0.5, name=f"{name_of(y.shape)}-number")
        t.add("remainder", np.floor(y) + 0.3, 0.5, name=f"{name_of(y.shape)}-number", bound=_remainder_bound)
        t.add("where", y > 0, y, 0.0, name=f"{name_of(y.shape)}-number")
        t.add("where", y > 0, -math.inf, y, name=f"number-{name_of(y.shape)}")
    integers = np.array([[3, -4], [0, 7]])
    for subject in ("add", "subtract", "multiply", "maximum", "minimum", *_COMPARISONS):
        t.add(subject, integers, 3, name="number", dtypes=WIDE_INTEGERS)
    for low, high in ((-1.0, 1.0), (None, 0.5), (-0.5, None), (0, 1)):
        t.add("clip", x, low, high, reference=np.clip)
    for subject in ("floor_divide", "remainder"):
        divisors = np.array([[3, -4], [2, 7]])
        t.add(subject, integers * 5, divisors, dtypes=WIDE_INTEGERS)
        t.add(subject, integers, 3, name="number", dtypes=WIDE_INTEGERS)
    t.add("clip", x, min=-0.5, reference=np.clip)
    t.add("clip", x, max=0.5, reference=np.clip)
    t.add("clip", x, x - 0.1, np.abs(x), name="arrays", reference=np.clip)
    t.add("clip", integers, -1, 3, dtypes=WIDE_INTEGERS, reference=np.clip)


def _add_divisions(t: Table, quotient: np.ndarray, divisor: np.ndarray) -> None:
    """Add divisions with a remainder, of numbers whose quotient is not near an integer, where rounding would decide."""
    dividend = quotient * divisor
    t.add("floor_divide", dividend, divisor, name=f"{name_of(quotient.shape)}-{name_of(divisor.shape)}")
    t.add("remainder", dividend, divisor, name=f"{name_of(quotient.shape)}-{name_of(divisor.shape)}",
          bound=_remainder_bound)  # fmt: skip


def _remainder_bound(e: float, dividend: Any, divisor: Any) -> Any:
    return 4 * e * (np.abs(dividend) + np.abs(divisor))
