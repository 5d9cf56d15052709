"""Norms, and running products."""

from __future__ import annotations

import math
from typing import Any

from gradflow.ops.checks import check_tensors, keepdims_flag, number
from gradflow.ops.elementwise import abs, copy, equal, multiply, not_equal, power, where
from gradflow.ops.indexing import parts
from gradflow.ops.reductions import max, min, sum
from gradflow.ops.shape import concat
from gradflow.ops.table import apply, cast, defop, floating, in_float32
from gradflow.pytorch_names import refuse, refuses_keywords
from gradflow.shapes import Axis, normalize_axes, one_axis
from gradflow.tensor import Tensor

__all__ = ["cumulative_prod", "norm"]


def _norm_forward(F: Any, x: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    return F.sqrt(F.sum(F.square(x), axis=axis, keepdims=keepdims))


def _norm_rule(F: Any, g: Any, out: Any, x: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    zero = F.equal(out, 0)
    share = F.where(zero, 0.0, F.divide(g, F.where(zero, 1.0, out)))
    return F.multiply(x, F.reshape(share, tuple(1 if i in axis else n for i, n in enumerate(x.shape))))


_NORM = defop("norm", _norm_rule, forward=_norm_forward)


@in_float32
@refuses_keywords
def norm(
    x: Tensor, /, ord: float = 2, axis: Axis = None, keepdims: bool = False, dim: None = None, keepdim: None = None
) -> Tensor:
    """The vector norm over `axis`, by default over all axes: sum(|x|^ord)^(1 / ord).

    ord: a number, also infinite. 2 (default): the Euclidean norm, of a matrix the Frobenius norm; 1: the sum of
        the magnitudes; inf and -inf: the largest and the smallest; 0: how many elements are not 0.
    keepdims: whether the axes stay, with length 1 (default False).

    Where the norm is 0, its derivatives of every order are 0, a subgradient. For inf and -inf, ties share
    the gradient equally. Raises TypeError for an order of another type, ValueError for NaN, and for an infinite order
    where there are no elements.

    >>> import gradflow as gf
    >>> x = gf.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    >>> y = gf.norm(x, axis=1)
    >>> y.sum().backward()
    >>> y.tolist(), [[round(v, 1) for v in row] for row in x.grad.tolist()]
    ([5.0, 0.0], [[0.6, 0.8], [0.0, 0.0]])
    """
    if dim is not None or keepdim is not None:
        refuse("norm", dim=dim, keepdim=keepdim)
    check_tensors("norm", x)
    keepdims = keepdims_flag("norm", keepdims)
    ord = number("ord of norm", ord)
    if math.isnan(ord):
        raise ValueError("ord of norm is a number; got NaN")
    x, axes = floating(x), normalize_axes(axis, x.ndim)
    if ord == 2:
        return apply(_NORM, (x,), {"axis": axes, "keepdims": keepdims})
    if math.isinf(ord):
        return (max if ord > 0 else min)(abs(x), axes, keepdims)
    if ord == 0:
        return sum(cast(not_equal(x, 0), x.dtype), axes, keepdims)
    if ord == 1:
        return sum(abs(x), axes, keepdims)
    total = sum(_power_of_size(abs(x), ord), axes, keepdims)
    return _power_of_size(total, 1.0 / ord)


def _power_of_size(x: Tensor, exponent: float) -> Tensor:
    """x to a power for x >= 0, with derivatives of 0 at 0."""
    zero = equal(x, 0)
    return where(zero, 0.0 if exponent > 0 else math.inf, power(where(zero, 1.0, x), exponent))


@in_float32
@refuses_keywords
def cumulative_prod(x: Tensor, /, axis: int | None = None, dim: None = None) -> Tensor:
    """The running product along `axis`. Its gradient is also correct where elements are 0.

    Integers are multiplied in int64 (uint64). It takes about log2(n) passes, each of which multiplies elements by those
    2^i places before. Raises ValueError without an axis, unless the tensor has only one.

    >>> import gradflow as gf
    >>> x = gf.tensor([2.0, 0.0, 4.0], requires_grad=True)
    >>> y = gf.cumulative_prod(x)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([2.0, 0.0, 0.0], [1.0, 10.0, 0.0])
    """
    if dim is not None:
        refuse("cumulative_prod", dim=dim)
    check_tensors("cumulative_prod", x)
    if axis is None:
        if x.ndim != 1:
            raise ValueError(f"cumulative_prod needs an axis for a tensor of {x.ndim} axes")
        axis = 0
    axis, kind = one_axis("cumulative_prod", axis, x.ndim), x.dtype.kind
    if kind != "float":
        x = cast(x, "uint64" if kind == "uint" else "int64")
    n, step = x.shape[axis], 1
    while step < n:
        first, later = parts(x, axis, [(0, step), (step, n)])
        (before,) = parts(x, axis, [(0, n - step)])
        x = concat([first, multiply(later, before)], axis)
        step *= 2
    return copy(x) if n <= 1 and kind == "float" else x
