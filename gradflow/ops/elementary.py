"""Further elementwise functions: logarithms, trigonometric and hyperbolic functions, erf, division with a remainder."""

from __future__ import annotations

import itertools
import math
from typing import Any

from gradflow.backend.half_floats import widened
from gradflow.ops.checks import check_tensors
from gradflow.ops.elementwise import copy, power
from gradflow.ops.table import apply, binary, defop, promoted, unary
from gradflow.shapes import check_broadcast
from gradflow.tensor import Tensor

__all__ = [
    "acos",
    "asin",
    "atan",
    "atan2",
    "cosh",
    "erf",
    "exp2",
    "floor_divide",
    "log2",
    "log10",
    "logaddexp",
    "remainder",
    "sinh",
    "tan",
    "trunc",
]  # fmt: skip


def _by_root(F: Any, g: Any, x: Any) -> Any:
    """g / sqrt(1 - x^2), where 1 - x^2 is a product whose factors lose no digits near 1 and -1."""
    return F.divide(g, F.sqrt(F.multiply(F.subtract(1.0, x), F.add(x, 1.0))))


log2 = unary(
    "log2", lambda F, g, _out, x: F.divide(g, F.multiply(x, math.log(2))), "The logarithm of x to the base 2.",
    autocast="float32",
)  # fmt: skip
log10 = unary(
    "log10", lambda F, g, _out, x: F.divide(g, F.multiply(x, math.log(10))), "The logarithm of x to the base 10.",
    autocast="float32",
)  # fmt: skip
tan = unary(
    "tan", lambda F, g, out, _x: F.multiply(g, F.add(F.square(out), 1.0)), "The tangent of x, in radians.",
    autocast="float32",
)  # fmt: skip
asin = unary(
    "asin", lambda F, g, _out, x: _by_root(F, g, x), "The inverse sine of x, in radians; NaN where |x| > 1.",
    autocast="float32",
)  # fmt: skip
acos = unary(
    "acos", lambda F, g, _out, x: F.negative(_by_root(F, g, x)),
    "The inverse cosine of x, in radians; NaN where |x| > 1.", autocast="float32",
)  # fmt: skip
atan = unary(
    "atan", lambda F, g, _out, x: F.divide(g, F.add(F.square(x), 1.0)), "The inverse tangent of x, in radians."
)
sinh = unary("sinh", lambda F, g, _out, x: F.multiply(g, F.cosh(x)), "The hyperbolic sine of x.", autocast="float32")
cosh = unary("cosh", lambda F, g, _out, x: F.multiply(g, F.sinh(x)), "The hyperbolic cosine of x.", autocast="float32")
erf = unary(
    "erf", lambda F, g, _out, x: F.multiply(g, F.multiply(F.exp(F.negative(F.square(x))), 2 / math.sqrt(math.pi))),
    "The error function: 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x.",
)  # fmt: skip


def _over_square(F: Any, g: Any, a: Any, b: Any) -> Any:
    """g / (a^2 + b^2), and 0 where both are 0."""
    size = F.add(F.square(a), F.square(b))
    zero = F.equal(size, 0)
    return F.where(zero, 0.0, F.divide(g, F.where(zero, 1.0, size)))


atan2 = binary(
    "atan2",
    lambda F, g, _out, a, b: F.multiply(_over_square(F, g, a, b), b),
    lambda F, g, _out, a, b: F.negative(F.multiply(_over_square(F, g, a, b), a)),
    "The angle of the point (x2, x1) in radians, from -pi to pi. The gradients at (0, 0) are 0.",
    needs_float=True,
)
floor_divide = binary(
    "floor_divide",
    lambda F, g, _out, _a, _b: F.zeros_like(g),
    lambda F, g, _out, _a, _b: F.zeros_like(g),
    "x1 / x2, rounded down to an integer, in the dtype of x1 and x2; `x1 // x2`. Its gradients are 0. Integers divided "
    "by 0 give a value that depends on the device.",
    takes_bools=True,
)
remainder = binary(
    "remainder",
    lambda F, g, _out, _a, _b: g,
    lambda F, g, _out, a, b: F.negative(F.multiply(g, F.floor_divide(a, b))),
    "x1 - floor(x1 / x2) * x2, which has the sign of x2; `x1 % x2`. Integers divided by 0 give a value that depends on "
    "the device.",
    takes_bools=True,
)
_trunc = unary("trunc", lambda F, g, _out, _x: F.zeros_like(g), "")


def trunc(x: Tensor, /) -> Tensor:
    """x without its fraction: rounded to an integer towards 0, in the dtype of x. Its gradient is 0.

    >>> import gradflow as gf
    >>> gf.trunc(gf.tensor([-1.5, 1.5])).tolist()
    [-1.0, 1.0]
    """
    return copy(x) if isinstance(x, Tensor) and not x.dtype.is_floating else _trunc(x)


def exp2(x: Tensor, /) -> Tensor:
    """2 to the power x.

    >>> import gradflow as gf
    >>> gf.exp2(gf.tensor([0.0, 3.0, -1.0])).tolist()
    [1.0, 8.0, 0.5]
    """
    check_tensors("exp2", x)
    return power(2.0, x)


def _logaddexp_forward(F: Any, a: Any, b: Any) -> Any:
    native = a.dtype
    a, b = widened((a, b), F)
    fall = F.negative(F.abs(_difference(F, a, b)))
    return F.astype(F.add(F.maximum(a, b), F.log1p(F.exp(fall))), native, copy=False)


def _difference(F: Any, a: Any, b: Any) -> Any:
    """a - b, and 0 where both are the same infinity."""
    same = F.logical_and(F.equal(a, b), F.isinf(a))
    return F.subtract(F.where(same, 0.0, a), F.where(same, 0.0, b))


_LOGADDEXP = defop(
    "logaddexp",
    lambda F, g, _out, a, b: F.multiply(g, F.sigmoid(_difference(F, a, b))),
    lambda F, g, _out, a, b: F.multiply(g, F.sigmoid(_difference(F, b, a))),
    forward=_logaddexp_forward,
)


def logaddexp(x1: Any, x2: Any, /) -> Tensor:
    """log(exp(x1) + exp(x2)), without overflow. Where both are the same infinity, each gets half the gradient.

    >>> import gradflow as gf
    >>> x = gf.tensor([0.0, 1000.0, float("-inf")], requires_grad=True)
    >>> y = gf.logaddexp(x, 1000.0)
    >>> y.sum().backward()
    >>> [round(v, 3) for v in y.tolist()], x.grad.tolist()
    ([1000.0, 1000.693, 1000.0], [0.0, 0.5, 0.0])
    """
    x1, x2 = (
        Tensor(like.backend.full((), x, dtype=like.array.dtype), like.backend) if isinstance(x, float) else x
        for x, like in itertools.permutations(promoted("logaddexp", x1, x2, needs_float=True))
    )
    check_broadcast("logaddexp", [x1.shape, x2.shape])
    return apply(_LOGADDEXP, (x1, x2))
