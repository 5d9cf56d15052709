"""Comparisons within tolerances, and numbers in place of NaN and infinities."""

from __future__ import annotations

import math
import sys
from typing import Any

from gradflow.dtypes import float32, float64
from gradflow.ops.checks import check_tensors, number
from gradflow.ops.creation import tensor
from gradflow.ops.elementwise import (
    abs,
    add,
    copy,
    equal,
    isfinite,
    isnan,
    less_equal,
    logical_and,
    logical_or,
    multiply,
    subtract,
    where,
)
from gradflow.ops.reductions import all
from gradflow.ops.table import cast, promoted
from gradflow.tensor import Tensor

__all__ = ["allclose", "isclose", "nan_to_num"]

_LARGEST = {
    "float16": 65504.0, "bfloat16": (2 - 2**-7) * 2.0**127, "float32": (2 - 2**-23) * 2.0**127,
    "float64": sys.float_info.max,
}  # fmt: skip
"""The largest finite number of each floating dtype."""


def isclose(x1: Any, x2: Any, /, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """Whether |x1 - x2| <= atol + rtol * |x2|, as bools; whether they are equal where one is infinite.

    x1, x2: tensors that broadcast, or one tensor and a number; integers and half floats are compared as wider floats.
    equal_nan: whether NaN is close to NaN (default False). Raises ValueError for a negative tolerance.

    >>> import gradflow as gf
    >>> gf.isclose(gf.tensor([1.0, 1.0, float("inf")]), gf.tensor([1.000001, 1.1, float("inf")])).tolist()
    [True, False, True]
    """
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if not number(f"{name} of isclose", tolerance) >= 0:
            raise ValueError(f"{name} of isclose is a number >= 0; got {tolerance}")
    x1, x2 = promoted("isclose", x1, x2)
    like = x1 if isinstance(x1, Tensor) else x2
    same, a, b = equal(x1, x2), _wide(x1, like), _wide(x2, like)
    left, right = where(same, 0.0, a), where(same, 0.0, b)  # the difference of two infinities would be NaN
    limit = add(multiply(abs(where(isfinite(right), right, 0.0)), float(rtol)), float(atol))
    close = logical_or(same, less_equal(abs(subtract(left, right)), limit))
    return logical_or(close, logical_and(isnan(a), isnan(b))) if equal_nan else close


def _wide(x: Any, like: Tensor) -> Tensor:
    """A tensor, or a number on its device, without a graph: integers in float64, half floats in float32."""
    wide = like.dtype
    if not wide.is_floating:
        wide = float64 if like.backend.supports("float64") else float32
    elif wide.itemsize < 4:
        wide = float32
    return cast(x.detach(), wide) if isinstance(x, Tensor) else tensor(x, wide, like.device)


def allclose(x1: Any, x2: Any, /, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether all elements of x1 and x2 are close, as a Python bool. Waits for the device. Arguments as for `isclose`.

    >>> import gradflow as gf
    >>> gf.allclose(gf.tensor([1.0, 2.0]), gf.tensor([1.0, 2.0 + 1e-6]))
    True
    """
    return bool(all(isclose(x1, x2, rtol, atol, equal_nan)).item())


def nan_to_num(x: Tensor, /, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    """x with `nan` in place of NaN, `posinf` of infinity and `neginf` of minus infinity. Their gradients are 0.

    posinf, neginf: by default the largest and the smallest finite number of the dtype of x.

    >>> import gradflow as gf
    >>> gf.nan_to_num(gf.tensor([1.0, float("nan"), float("inf")]), posinf=9.0).tolist()
    [1.0, 0.0, 9.0]
    """
    check_tensors("nan_to_num", x)
    if not x.dtype.is_floating:
        return copy(x)
    most = _LARGEST[x.dtype.name]
    given = {"nan": nan, "posinf": most if posinf is None else posinf, "neginf": -most if neginf is None else neginf}
    limits = {key: number(f"{key} of nan_to_num", value) for key, value in given.items()}
    out = where(isnan(x), limits["nan"], x)
    out = where(equal(x, math.inf), limits["posinf"], out)
    return where(equal(x, -math.inf), limits["neginf"], out)
