"""Elementwise operations, with NumPy's broadcasting.

Each rule is one line: `lambda F, g, out, x` computes the gradient of `x` from the gradient `g` of the result `out`.
Arguments with a leading underscore are not read, so they are not saved (see `gradflow.autograd.graph.Operation`).
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from gradflow.dtypes import as_dtype, is_number, weak_number
from gradflow.ops.checks import check_tensors, kind_and_fix, kind_of
from gradflow.ops.table import (
    BINARY_OPERATORS,
    UnaryFunction,
    apply,
    as_operator,
    binary,
    bools_to_int64,
    cast,
    defop,
    elementwise,
    floating,
    named,
    nondifferentiable_binary,
    nondifferentiable_unary,
    promoted,
    unary,
)
from gradflow.tensor import Tensor

__all__ = [
    "abs", "add", "astype", "ceil", "clip", "cos", "divide", "equal", "exp", "expm1", "floor", "greater",
    "greater_equal", "isfinite", "isinf", "isnan", "less", "less_equal", "log", "log1p", "logical_and",
    "logical_not", "logical_or", "logical_xor", "maximum", "minimum", "multiply", "negative", "not_equal", "outer",
    "power", "round", "sign", "sin", "sqrt", "square", "subtract", "where",
]  # fmt: skip

add = binary("add", lambda F, g, _out, _a, _b: g, lambda F, g, _out, _a, _b: g, "x1 + x2.", exact=True)
subtract = binary(
    "subtract", lambda F, g, _out, _a, _b: g, lambda F, g, _out, _a, _b: F.negative(g), "x1 - x2.", exact=True
)  # fmt: skip
multiply = binary(
    "multiply",
    lambda F, g, _out, _a, b: F.multiply(g, b),
    lambda F, g, _out, a, _b: F.multiply(g, a),
    "x1 * x2.",
)
divide = binary(
    "divide",
    lambda F, g, _out, _a, b: F.divide(g, b),
    lambda F, g, out, _a, b: F.negative(F.divide(F.multiply(g, out), b)),
    "x1 / x2. Integers are converted to float32.",
    needs_float=True,
)


def _half_at_ties(F: Any, g: Any, lost: Any, a: Any, b: Any) -> Any:
    return F.where(F.equal(a, b), F.multiply(g, 0.5), F.where(lost, 0.0, g))


maximum = binary(
    "maximum",
    lambda F, g, _out, a, b: _half_at_ties(F, g, F.less(a, b), a, b),
    lambda F, g, _out, a, b: _half_at_ties(F, g, F.greater(a, b), a, b),
    "The larger of x1 and x2. Where they are equal, each gets half the gradient. NaN if either is NaN.",
)
minimum = binary(
    "minimum",
    lambda F, g, _out, a, b: _half_at_ties(F, g, F.greater(a, b), a, b),
    lambda F, g, _out, a, b: _half_at_ties(F, g, F.less(a, b), a, b),
    "The smaller of x1 and x2. Where they are equal, each gets half the gradient. NaN if either is NaN.",
)


def _power_base(F: Any, g: Any, _out: Any, a: Any, b: Any) -> Any:
    if isinstance(b, float):
        return F.multiply(F.multiply(g, b), F.pow(a, b - 1.0)) if b else F.zeros_like(g)
    least = 2.0**-1022 if as_dtype(a.dtype).itemsize == 8 else 2.0**-126  # below it, 1 / a overflows
    invertible = F.greater_equal(F.abs(a), least)
    flat = F.logical_and(F.equal(b, 0), F.logical_not(invertible))  # there 0 * a^0, since 0 * a^-1 is NaN
    exponent = F.subtract(F.where(flat, 1.0, b), 1.0)
    return F.multiply(F.multiply(g, b), F.pow(a, exponent))


def _power_exponent(F: Any, g: Any, out: Any, a: Any, b: Any) -> Any:
    """g * a^b * log(a). At a = 0 it is the limit: 0 for b >= 0, minus infinity for b < 0."""
    if isinstance(a, float):
        log = math.log(a) if a > 0 else math.nan if a else F.where(F.less(b, 0), -math.inf, F.zeros_like(b))
    else:
        zero = F.equal(a, 0)
        log = F.where(F.logical_and(zero, F.less(b, 0)), -math.inf, F.log(F.where(zero, 1.0, a)))
    return F.multiply(F.multiply(g, out), log)


_power = binary("power", _power_base, _power_exponent, "", array_name="pow", takes_bools=True, autocast="float32")


def power(x1: Any, x2: Any, /) -> Tensor:
    """x1 to the power x2. The gradient of x1^0 with respect to x1 is 0, also where x1 is 0, infinite or NaN.

    >>> import gradflow as gf
    >>> x = gf.tensor([0.0, 2.0, 3.0], requires_grad=True)
    >>> gf.power(x, 3).sum().backward()
    >>> x.grad.tolist()
    [0.0, 12.0, 27.0]
    """
    if isinstance(x1, Tensor) and isinstance(x2, (int, float)) and x2 == 2:  # many times faster than the general power
        return square(x1 if x1._node is not None or x2.__class__ is int else promoted("power", x1, x2)[0])
    return _power(x1, x2)


BINARY_OPERATORS["power"] = as_operator(power)


negative = unary("negative", lambda F, g, _out, _x: F.negative(g), "-x.", prepare=None, exact=True)
exp = unary("exp", lambda F, g, out, _x: F.multiply(g, out), "e to the power x.", autocast="float32")
log = unary("log", lambda F, g, _out, x: F.divide(g, x), "The natural logarithm of x.", autocast="float32")
log1p = unary(
    "log1p", lambda F, g, _out, x: F.divide(g, F.add(x, 1.0)), "log(1 + x), accurate for small x.", autocast="float32"
)
expm1 = unary(
    "expm1",
    lambda F, g, out, _x: F.multiply(g, F.add(out, 1.0)),
    "exp(x) - 1, accurate for small x.",
    autocast="float32",
)
sqrt = unary("sqrt", lambda F, g, out, _x: F.divide(g, F.multiply(out, 2.0)), "The square root of x.")
square = unary(
    "square", lambda F, g, _out, x: F.multiply(g, F.multiply(x, 2.0)), "x * x. Bools are converted to int64.",
    prepare=bools_to_int64, autocast="float32",
)  # fmt: skip
abs = unary(
    "abs", lambda F, g, _out, x: F.multiply(g, F.sign(x)), "The absolute value of x. Its gradient at 0 is 0.",
    prepare=None,
)  # fmt: skip
sign = unary(
    "sign", lambda F, g, _out, _x: F.zeros_like(g), "The sign of x: -1, 0 or 1. Its gradient is 0.",
    prepare=None,
)  # fmt: skip


def _rounding(name: str, doc: str) -> UnaryFunction:
    of_floats = unary(name, lambda F, g, _out, _x: F.zeros_like(g), doc)

    def function(x: Tensor, /) -> Tensor:
        return copy(x) if isinstance(x, Tensor) and not x.dtype.is_floating else of_floats(x)

    return named(function, name, doc)


floor = _rounding("floor", "The largest integer <= x, in the dtype of x. Its gradient is 0.")
ceil = _rounding("ceil", "The smallest integer >= x, in the dtype of x. Its gradient is 0.")
round = _rounding("round", "x rounded to the nearest integer, ties to even, in the dtype of x. Its gradient is 0.")
sin = unary("sin", lambda F, g, _out, x: F.multiply(g, F.cos(x)), "The sine of x, in radians.")
cos = unary("cos", lambda F, g, _out, x: F.negative(F.multiply(g, F.sin(x))), "The cosine of x, in radians.")

_CLIP = defop(
    "clip",
    lambda F, g, _out, x, min, max: F.where(_inside(F, x, min, max), g, 0.0),
    forward=lambda F, x, min, max: F.clip(x, min, max),
)


def _inside(F: Any, x: Any, low: float | None, high: float | None) -> Any:
    if low is None:
        return F.less_equal(x, high)
    above = F.greater_equal(x, low)
    return above if high is None else F.logical_and(above, F.less_equal(x, high))


def clip(x: Tensor, /, min: float | None = None, max: float | None = None) -> Tensor:
    """x limited to [min, max]; None means no limit. Where x equals a limit, the gradient is passed on.

    Raises TypeError for limits that are not numbers, ValueError if min > max, OverflowError for a limit that an integer
    dtype cannot hold.

    >>> import gradflow as gf
    >>> x = gf.tensor([-2.0, 0.5, 1.0, 3.0], requires_grad=True)
    >>> y = gf.clip(x, 0.0, 1.0)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([0.0, 0.5, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0])
    """
    check_tensors("clip", x)
    for limit in (min, max):
        if limit is not None and not isinstance(limit, Real):
            raise TypeError(f"clip takes numbers as limits; got {kind_of(limit)}")
    if min is not None and max is not None and min > max:
        raise ValueError(f"clip needs min <= max; got min={min}, max={max}")
    if not all(limit is None or isinstance(limit, Integral) for limit in (min, max)):
        x = floating(x)
    min, max = (None if limit is None else weak_number("clip", limit, x.dtype) for limit in (min, max))
    if min is None and max is None:
        return copy(x)
    return apply(_CLIP, (x,), {"min": min, "max": max})


_choose = elementwise("where")


def _where(F: Any, condition: Any, a: Any, b: Any) -> Any:
    out = _choose(F, condition, a, b)
    if (a.__class__ is float) != (b.__class__ is float):
        native = (b if a.__class__ is float else a).dtype
        if native in F.half_dtypes:  # NumPy gives float64 for bfloat16 and a Python number
            return F.astype(out, native, copy=False)
    return out


_WHERE = defop(
    "where",
    None,
    lambda F, g, _out, condition, _a, _b: F.where(condition, g, 0.0),
    lambda F, g, _out, condition, _a, _b: F.where(condition, 0.0, g),
    forward=_where,
    exact=True,
)


def where(condition: Tensor, x1: Any, x2: Any, /) -> Tensor:
    """x1 where `condition`, a bool tensor, is true, else x2. All three broadcast.

    x1, x2: tensors or numbers.

    Raises TypeError for a condition that is not bool, or an x1 or x2 of another kind; OverflowError for an integer that
    the dtype of the other cannot hold.

    >>> import gradflow as gf
    >>> x = gf.tensor([-1.0, 2.0], requires_grad=True)
    >>> y = gf.where(x > 0, x, x / 4)
    >>> y.sum().backward()
    >>> x.grad.tolist()
    [0.25, 1.0]
    """
    check_tensors("where", condition)
    if condition.dtype.kind != "bool":
        raise TypeError(f"where takes a bool condition; got {condition.dtype}: make one with a comparison")
    if isinstance(x1, Tensor) or isinstance(x2, Tensor):
        x1, x2 = promoted("where", x1, x2)
    else:
        for x in (x1, x2):
            if not is_number(x):
                raise TypeError(f"where takes tensors and Python numbers; got {kind_and_fix(x)}")
        x1, x2 = float(x1), float(x2)
        x1 = Tensor(condition.backend.full((), x1, dtype=condition.backend.dtypes["float32"]), condition.backend)
    return apply(_WHERE, (condition, x1, x2))


_COPY = defop("copy", lambda F, g, _out, _x: g, forward=lambda F, x: F.copy(x), exact=True)


def copy(x: Tensor, /) -> Tensor:
    """A copy of x. Differentiable.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0, 2.0], requires_grad=True)
    >>> x.clone().sum().backward()
    >>> x.grad.tolist()
    [1.0, 1.0]
    """
    check_tensors("copy", x)
    return apply(_COPY, (x,))


def astype(x: Tensor, dtype: Any, /) -> Tensor:
    """x in another dtype, or x itself if it has that dtype. The gradient is converted back to the dtype of x.

    Fractions are truncated for an integer dtype. Values are not checked, since that would wait for the device: the
    result for a value that the dtype cannot hold (NaN or 300 in uint8) depends on the backend. Raises TypeError for an
    unknown dtype, or one that the device does not support.

    >>> import gradflow as gf
    >>> gf.astype(gf.tensor([1.9, -1.9]), "int32").tolist()
    [1, -1]
    """
    check_tensors("astype", x)
    return cast(x, dtype)


equal = nondifferentiable_binary("equal", "Whether x1 == x2, as bools.")
not_equal = nondifferentiable_binary("not_equal", "Whether x1 != x2, as bools.")
less = nondifferentiable_binary("less", "Whether x1 < x2, as bools.")
less_equal = nondifferentiable_binary("less_equal", "Whether x1 <= x2, as bools.")
greater = nondifferentiable_binary("greater", "Whether x1 > x2, as bools.")
greater_equal = nondifferentiable_binary("greater_equal", "Whether x1 >= x2, as bools.")
logical_and = nondifferentiable_binary("logical_and", "Whether both x1 and x2 are true, for bools.", of_bools=True)
logical_or = nondifferentiable_binary("logical_or", "Whether x1, x2 or both are true, for bools.", of_bools=True)
logical_xor = nondifferentiable_binary(
    "logical_xor", "Whether exactly one of x1 and x2 is true, for bools.", of_bools=True, array_name="not_equal"
)
logical_not = nondifferentiable_unary("logical_not", "Whether x is false, for bools.", of_bools=True)
isfinite = nondifferentiable_unary("isfinite", "Whether x is neither infinite nor NaN, as bools.")
isinf = nondifferentiable_unary("isinf", "Whether x is infinite, as bools.")
isnan = nondifferentiable_unary("isnan", "Whether x is NaN, as bools.")


def outer(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The outer product of two vectors: (n,) and (m,) give (n, m). Raises ValueError for other shapes.

    >>> import gradflow as gf
    >>> gf.outer(gf.tensor([1.0, 2.0]), gf.tensor([1.0, 10.0, 100.0])).tolist()
    [[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]]
    """
    check_tensors("outer", x1, x2)
    if x1.ndim != 1 or x2.ndim != 1:
        raise ValueError(f"outer takes two tensors of one axis; got shapes {x1.shape} and {x2.shape}")
    return multiply(x1[:, None], x2)
