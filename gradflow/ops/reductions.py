"""Reductions over axes, running sums, and sorting."""

from __future__ import annotations

import functools
import math
from operator import attrgetter
from typing import Any, Protocol

from gradflow.autograd.grad_mode import FAST, current_observer, grad_enabled
from gradflow.autograd.graph import Node, Operation
from gradflow.ops.checks import check_tensors, keepdims_flag, number
from gradflow.ops.table import apply, bools_to_int64, defop, floating, named
from gradflow.pytorch_names import refuse, refuses_keywords
from gradflow.shapes import Axis, normalize_axes, one_axis
from gradflow.tensor import Tensor

__all__ = [
    "all", "any", "argmax", "argmin", "argsort", "cumulative_sum", "max", "mean", "min", "prod", "std", "sum",
    "var",
]  # fmt: skip


KEEPDIMS = "\n\n    keepdims: whether the axes stay, with length 1 (default False)."


class _Reduction(Protocol):
    def __call__(self, x: Tensor, /, axis: Axis = None, keepdims: bool = False) -> Tensor: ...


class _AlongAxis(Protocol):
    def __call__(self, x: Tensor, /, axis: int | None = None, keepdims: bool = False) -> Tensor: ...


def _keep(F: Any, g: Any, x: Any, axis: Axis) -> Any:
    """g, a reduction of x over `axis`, with the reduced axes as axes of length 1."""
    axes = normalize_axes(axis, x.ndim)
    return F.reshape(g, tuple(1 if i in axes else n for i, n in enumerate(x.shape)))


def _spread(F: Any, g: Any, x: Any, axis: Axis) -> Any:
    """The VJP of a sum: g broadcast to the shape of x."""
    return F.broadcast_to(_keep(F, g, x, axis) if g.shape else g, x.shape)


def _count(x: Any, axis: Axis) -> int:
    return math.prod(x.shape[a] for a in normalize_axes(axis, x.ndim))


def _at_extremes(F: Any, g: Any, out: Any, x: Any, axis: Axis, keepdims: bool) -> Any:
    hit = F.astype(F.equal(x, _keep(F, out, x, axis)), x.dtype)
    hits = F.sum(hit, axis=axis, keepdims=True)
    hits = F.where(F.equal(hits, 0), math.nan, hits)  # without a hit, the extreme is NaN
    share = F.divide(_keep(F, g, x, axis), hits)
    return F.multiply(hit, share)


def _spread_deviations(F: Any, g: Any, x: Any, axis: Axis, n: float) -> Any:
    centred = F.subtract(x, F.mean(x, axis=axis, keepdims=True))
    return F.multiply(F.multiply(centred, 1.0 / n if n else math.nan), _keep(F, g, x, axis))


def _product_of_others(F: Any, x: Any) -> Any:
    """For each element, the product of all others along the last axis, without a division: by a tree of pairs."""
    n = x.shape[-1]
    if n <= 1:
        return F.ones_like(x)
    half = n // 2
    a, b, rest = (F.getitem(x, (..., slice(*ends))) for ends in ((half,), (half, 2 * half), (2 * half, None)))
    others = _product_of_others(F, F.concat([F.multiply(a, b), rest], axis=-1))
    pairs, others = F.getitem(others, (..., slice(half))), F.getitem(others, (..., slice(half, None)))
    return F.concat([F.multiply(pairs, b), F.multiply(pairs, a), others], axis=-1)


def _prod_rule(F: Any, g: Any, _out: Any, x: Any, axis: Axis, keepdims: bool) -> Any:
    axes = normalize_axes(axis, x.ndim)
    kept = tuple(i for i in range(x.ndim) if i not in axes)
    order = kept + axes
    moved = F.permute_dims(x, order)
    others = _product_of_others(F, F.reshape(moved, (*(x.shape[i] for i in kept), _count(x, axis))))
    back = tuple(sorted(range(x.ndim), key=order.__getitem__))
    others = F.permute_dims(F.reshape(others, moved.shape), back)
    return F.multiply(others, _keep(F, g, x, axis))


@functools.cache
def _over_all(ndim: int) -> dict[str, Any]:
    """The parameters of a reduction over all axes. Nodes share them, since parameters are never changed."""
    return {"axis": tuple(range(ndim)), "keepdims": False}


def _reduction(name: str, rule: Any, doc: str, needs_float: bool = False, needs_elements: bool = True) -> _Reduction:
    """Add the reduction `name` to the table, and return its function.

    needs_float: whether integers are converted to the default dtype (default False).
    needs_elements: whether a reduction of no elements raises ValueError (default True). If False, bools are converted
        to int64.
    """
    op = defop(name, rule, autocast="float32" if name in ("sum", "mean", "prod") else None)
    get = attrgetter(name)
    reads_out, which = op.saves[1]
    reads_x = which is not None

    def function(
        x: Tensor, /, axis: Axis = None, keepdims: bool = False, dim: None = None, keepdim: None = None
    ) -> Tensor:
        if dim is not None or keepdim is not None:
            refuse(name, dim=dim, keepdim=keepdim)
        if not isinstance(x, Tensor):
            check_tensors(name, x)
        if keepdims.__class__ is not bool:
            keepdims = keepdims_flag(name, keepdims)
        if needs_float:
            x = floating(x)
        elif not needs_elements and x._node is None:
            x = bools_to_int64(x)
        whole = axis is None and not keepdims
        parameters: dict[str, Any] = (
            _over_all(x.array.ndim) if whole else {"axis": normalize_axes(axis, x.ndim), "keepdims": keepdims}
        )
        if needs_elements and not _count(x, parameters["axis"]):
            raise ValueError(f"{name} of no elements is undefined: the shape is {x.shape}, the axis {axis}")
        parent = x._node
        if parent is not None and grad_enabled.get() is FAST:  # the fast path: recorded, without observers
            backend = x.backend
            array = get(backend)(x.array) if whole else get(backend)(x.array, **parameters)
            saved, out = (x,) if reads_x else None, array if reads_out else None
            return Tensor(array, backend, Node(op, backend, (parent,), saved, out, array, parameters))
        return apply(op, (x,), parameters)

    return refuses_keywords(named(function, name, doc + KEEPDIMS))


sum = _reduction(
    "sum",
    lambda F, g, _out, _x, axis, keepdims: F.broadcast_to(_keep(F, g, _x, axis) if g.shape else g, _x.shape),
    "The sum over `axis` (an integer, a tuple, or None for all axes). Integers are summed in int64.",
    needs_elements=False,
)
mean = _reduction(
    "mean",
    lambda F, g, _out, _x, axis, keepdims: _spread(F, F.divide(g, float(_count(_x, axis))), _x, axis),
    "The mean over `axis`. Integers are converted to float32. Raises ValueError where there are no elements.",
    needs_float=True,
)
max = _reduction(
    "max",
    _at_extremes,
    "The largest element over `axis`. Ties share the gradient equally. NaN if any element is NaN, and so are the "
    "gradients. Raises ValueError where there are no elements.",
)
min = _reduction(
    "min",
    _at_extremes,
    "The smallest element over `axis`. Ties share the gradient equally. NaN if any element is NaN, and so are the "
    "gradients. Raises ValueError where there are no elements.",
)
prod = _reduction(
    "prod",
    _prod_rule,
    "The product over `axis`. Its gradient is also correct where elements are 0.",
    needs_elements=False,
)

_VAR = defop(
    "var",
    lambda F, g, _out, x, axis, correction, keepdims: _spread_deviations(
        F, F.multiply(g, 2.0), x, axis, _count(x, axis) - correction
    ),
    autocast="float32",
)


def _std_rule(F: Any, g: Any, out: Any, x: Any, axis: Axis, correction: float, keepdims: bool) -> Any:
    constant = F.equal(out, 0)
    share = F.where(constant, 0.0, F.divide(g, F.where(constant, 1.0, out)))
    return _spread_deviations(F, share, x, axis, _count(x, axis) - correction)


_STD = defop("std", _std_rule, autocast="float32")


def _spread_of(op: Any, x: Tensor, axis: Axis, correction: float, keepdims: bool) -> Tensor:
    check_tensors(op.name, x)
    keepdims = keepdims_flag(op.name, keepdims)
    axes = normalize_axes(axis, x.ndim)
    if _count(x, axes) - number(f"correction of {op.name}", correction) <= 0:
        raise ValueError(
            f"{op.name} needs more elements than its correction, {correction}: the shape is {x.shape}, the axis {axis}"
        )
    return apply(op, (floating(x),), {"axis": axes, "correction": correction, "keepdims": keepdims})


@refuses_keywords
def var(
    x: Tensor,
    /,
    axis: Axis = None,
    correction: float = 0.0,
    keepdims: bool = False,
    dim: None = None,
    keepdim: None = None,
    unbiased: None = None,
) -> Tensor:
    """The variance over `axis`: the sum of squared deviations from the mean, divided by n - correction.

    keepdims: whether the axes stay, with length 1 (default False).

    As in the Array API and NumPy, `correction` is 0 by default (in PyTorch, 1). Raises ValueError for n <= correction.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0, 2.0, 3.0, 4.0])
    >>> gf.var(x).item(), round(gf.var(x, correction=1).item(), 4)
    (1.25, 1.6667)
    """
    if dim is not None or keepdim is not None or unbiased is not None:
        refuse("var", dim=dim, keepdim=keepdim, unbiased=unbiased)
    return _spread_of(_VAR, x, axis, correction, keepdims)


@refuses_keywords
def std(
    x: Tensor,
    /,
    axis: Axis = None,
    correction: float = 0.0,
    keepdims: bool = False,
    dim: None = None,
    keepdim: None = None,
    unbiased: None = None,
) -> Tensor:
    """The standard deviation over `axis`: the square root of `var`. Raises ValueError for n <= correction.

    keepdims: whether the axes stay, with length 1 (default False).

    Where all elements are equal, its derivatives of every order are 0.

    >>> import gradflow as gf
    >>> gf.std(gf.tensor([[1.0, 3.0], [2.0, 10.0]]), axis=1).tolist()
    [1.0, 4.0]
    """
    if dim is not None or keepdim is not None or unbiased is not None:
        refuse("std", dim=dim, keepdim=keepdim, unbiased=unbiased)
    return _spread_of(_STD, x, axis, correction, keepdims)


def _cumulative_sum_rule(F: Any, g: Any, _out: Any, _x: Any, axis: int) -> Any:
    return F.flip(F.cumulative_sum(F.flip(g, axis=axis), axis=axis), axis=axis)


_CUMULATIVE_SUM = defop("cumulative_sum", _cumulative_sum_rule, autocast="float32")


@refuses_keywords
def cumulative_sum(x: Tensor, /, axis: int | None = None, dim: None = None) -> Tensor:
    """The running sum along `axis`. Raises ValueError without an axis, unless the tensor has only one.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> y = gf.cumulative_sum(x)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([1.0, 3.0, 6.0], [3.0, 2.0, 1.0])
    """
    if dim is not None:
        refuse("cumulative_sum", dim=dim)
    check_tensors("cumulative_sum", x)
    if axis is None:
        if x.ndim != 1:
            raise ValueError(f"cumulative_sum needs an axis for a tensor of {x.ndim} axes")
        axis = 0
    return apply(_CUMULATIVE_SUM, (bools_to_int64(x),), {"axis": one_axis("cumulative_sum", axis, x.ndim)})


def _nondifferentiable(name: str, doc: str) -> _Reduction:
    op = Operation(name, lambda F, x, axis, keepdims: getattr(F, name)(x, axis=axis, keepdims=keepdims))

    def function(
        x: Tensor, /, axis: Axis = None, keepdims: bool = False, dim: None = None, keepdim: None = None
    ) -> Tensor:
        if dim is not None or keepdim is not None:
            refuse(name, dim=dim, keepdim=keepdim)
        check_tensors(name, x)
        keepdims = keepdims_flag(name, keepdims)
        if axis is not None:
            axis = normalize_axes(axis, x.ndim)
        out = Tensor(getattr(x.backend, name)(x.array, axis=axis, keepdims=keepdims), x.backend)
        observer = current_observer.get()
        if observer is not None:
            observer.forward(op, (x,), out, {"axis": axis, "keepdims": keepdims})
        return out

    return refuses_keywords(named(function, name, doc + KEEPDIMS))


def _index_of(name: str, doc: str) -> _AlongAxis:
    op = Operation(name, lambda F, x, axis, keepdims: getattr(F, name)(x, axis=axis, keepdims=keepdims))

    def function(
        x: Tensor, /, axis: int | None = None, keepdims: bool = False, dim: None = None, keepdim: None = None
    ) -> Tensor:
        if dim is not None or keepdim is not None:
            refuse(name, dim=dim, keepdim=keepdim)
        check_tensors(name, x)
        keepdims = keepdims_flag(name, keepdims)
        if axis is not None:
            axis = one_axis(name, axis, x.ndim)
        if not (x.size if axis is None else x.shape[axis]):
            raise ValueError(f"{name} of no elements is undefined: the shape is {x.shape}, the axis {axis}")
        out = Tensor(getattr(x.backend, name)(x.array, axis=axis, keepdims=keepdims), x.backend)
        observer = current_observer.get()
        if observer is not None:
            observer.forward(op, (x,), out, {"axis": axis, "keepdims": keepdims})
        return out

    return refuses_keywords(named(function, name, doc + KEEPDIMS))


any = _nondifferentiable("any", "Whether any element over `axis` is true (not 0).")
all = _nondifferentiable("all", "Whether all elements over `axis` are true (not 0).")
argmax = _index_of(
    "argmax",
    "The index of the largest element along `axis`, or of the flattened tensor (default); of ties, the first. "
    "Raises ValueError where there are no elements.",
)
argmin = _index_of(
    "argmin",
    "The index of the smallest element along `axis`, or of the flattened tensor (default); of ties, the first. "
    "Raises ValueError where there are no elements.",
)


_ARGSORT = Operation("argsort", lambda F, x, **how: F.argsort(x, stable=True, **how))


@refuses_keywords
def argsort(x: Tensor, /, axis: int = -1, descending: bool = False, dim: None = None) -> Tensor:
    """The indices that sort x along `axis`, in ascending order unless `descending`. The sort is stable.

    >>> import gradflow as gf
    >>> x = gf.tensor([3.0, 1.0, 2.0])
    >>> order = gf.argsort(x)
    >>> order.tolist(), x[order].tolist()
    ([1, 2, 0], [1.0, 2.0, 3.0])
    """
    if dim is not None:
        refuse("argsort", dim=dim)
    check_tensors("argsort", x)
    axis = one_axis("argsort", axis, x.ndim)
    how = {"axis": axis, "descending": descending}
    out = Tensor(_ARGSORT.forward(x.backend, x.array, **how), x.backend)
    observer = current_observer.get()
    if observer is not None:
        observer.forward(_ARGSORT, (x,), out, how)
    return out
