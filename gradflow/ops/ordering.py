"""The order of elements: sorting, the largest, quantiles, unique values, rolling. All compose other operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradflow.dtypes import is_number
from gradflow.ops.checks import check_tensors, keepdims_flag, kind_of
from gradflow.ops.creation import arange, ones, zeros
from gradflow.ops.elementwise import add, copy, isnan, multiply, not_equal, where
from gradflow.ops.in_place import set_item
from gradflow.ops.indexing import index, parts, take_along_axis
from gradflow.ops.reductions import argsort, cumulative_sum
from gradflow.ops.shape import concat, permute_dims, reshape, stack
from gradflow.ops.table import bools_to_int64, floating
from gradflow.pytorch_names import refuse, refuses_keywords
from gradflow.shapes import Axis, integer, integers, is_sequence, normalize_axes, one_axis
from gradflow.tensor import Tensor

__all__ = ["median", "quantile", "roll", "sort", "topk", "unique_counts", "unique_inverse", "unique_values"]


@refuses_keywords
def sort(x: Tensor, /, axis: int = -1, descending: bool = False, dim: None = None) -> Tensor:
    """The elements of x sorted along `axis`, in ascending order unless `descending`; `argsort` gives their indices.

    NaN counts as larger than any number. The sort is stable: of equal elements, the first gets the gradient of the
    first of them in the result.

    >>> import gradflow as gf
    >>> gf.sort(gf.tensor([[3.0, 1.0, 2.0]]), descending=True).tolist()
    [[3.0, 2.0, 1.0]]
    """
    if dim is not None:
        refuse("sort", dim=dim)
    check_tensors("sort", x)
    axis = one_axis("sort", axis, x.ndim)
    return take_along_axis(x, argsort(bools_to_int64(x), axis, descending), axis)


@refuses_keywords
def topk(x: Tensor, k: int, /, axis: int = -1, largest: bool = True, dim: None = None) -> tuple[Tensor, Tensor]:
    """The k largest elements along `axis`, in descending order, and their indices (int64).

    largest: False for the k smallest elements, in ascending order. Of equal elements, those with the smallest indices
    come first. NaN counts as larger than any number. Raises ValueError unless k is in [0, n], for n elements.

    >>> import gradflow as gf
    >>> values, indices = gf.topk(gf.tensor([1.0, 9.0, 5.0, 9.0]), 3)
    >>> values.tolist(), indices.tolist()
    ([9.0, 9.0, 5.0], [1, 3, 2])
    """
    if dim is not None:
        refuse("topk", dim=dim)
    check_tensors("topk", x)
    axis = one_axis("topk", axis, x.ndim)
    k = integer("k of topk", k)
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"topk: k is in [0, {x.shape[axis]}], the number of elements along axis {axis}; got {k}")
    indices = copy(parts(argsort(bools_to_int64(x), axis, largest), axis, [(0, k)])[0])
    return take_along_axis(x, indices, axis), indices


@refuses_keywords
def median(x: Tensor, /, axis: Axis = None, keepdims: bool = False, dim: None = None, keepdim: None = None) -> Tensor:
    """The median over `axis`: of an even number of elements, the mean of the two in the middle, as in NumPy.

    keepdims: whether the axes stay, with length 1 (default False).

    NaN if any element is NaN. Integers are converted to float32. Raises ValueError where there are no elements.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0, 10.0, 2.0, 4.0], requires_grad=True)
    >>> y = gf.median(x)
    >>> y.backward()
    >>> y.item(), x.grad.tolist()
    (3.0, [0.0, 0.0, 0.5, 0.5])
    """
    if dim is not None or keepdim is not None:
        refuse("median", dim=dim, keepdim=keepdim)
    return _quantiles("median", x, [0.5], axis, keepdims)[0]


@refuses_keywords
def quantile(
    x: Tensor, q: Any, /, axis: Axis = None, keepdims: bool = False, dim: None = None, keepdim: None = None
) -> Tensor:
    """The q-th quantile over `axis`, interpolated linearly between the two nearest elements, as in NumPy.

    q: a number in [0, 1], or a sequence of numbers, along which the first axis of the result runs.
    keepdims: whether the axes stay, with length 1 (default False).

    NaN if any element is NaN. Integers are converted to float32. Raises ValueError where there are no elements or for a
    q outside of [0, 1], TypeError for a q that is not a number.

    >>> import gradflow as gf
    >>> x = gf.tensor([4.0, 1.0, 3.0, 2.0, 5.0])
    >>> gf.quantile(x, 0.25).item(), gf.quantile(x, [0.0, 0.625, 1.0]).tolist()
    (2.0, [1.0, 3.5, 5.0])
    """
    if dim is not None or keepdim is not None:
        refuse("quantile", dim=dim, keepdim=keepdim)
    if is_number(q):
        return _quantiles("quantile", x, [q], axis, keepdims)[0]
    if isinstance(q, Tensor) or not is_sequence(q):
        raise TypeError(f"q of quantile is a number or a sequence of numbers; got {kind_of(q)}")
    found = _quantiles("quantile", x, list(q), axis, keepdims)
    if not found:
        raise ValueError("quantile needs at least one q; got none")
    return stack(found)


def _quantiles(name: str, x: Tensor, qs: Sequence[Any], axis: Axis, keepdims: bool) -> list[Tensor]:
    check_tensors(name, x)
    keepdims = keepdims_flag(name, keepdims)
    for q in qs:
        if not is_number(q):
            raise TypeError(f"q of {name} is a number or a sequence of numbers; got {kind_of(q)}")
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"q of {name} is in [0, 1]; got {q}")
    axes = normalize_axes(axis, x.ndim)
    n = math.prod(x.shape[a] for a in axes)
    if not n:
        raise ValueError(f"{name} of no elements is undefined: the shape is {x.shape}, the axis {axis}")
    kept = tuple(a for a in range(x.ndim) if a not in axes)
    rows = reshape(permute_dims(floating(x), kept + axes), (*(x.shape[a] for a in kept), n))
    ordered = sort(rows)
    last = index(ordered, (..., -1))  # where it is NaN, so is the quantile
    shape = tuple(1 if a in axes else m for a, m in enumerate(x.shape) if keepdims or a not in axes)
    found = []
    for q in qs:
        place = float(q) * (n - 1)
        low = min(math.floor(place), n - 1)
        share, value = place - low, index(ordered, (..., low))
        if share:
            value = add(multiply(value, 1.0 - share), multiply(index(ordered, (..., low + 1)), share))
        found.append(reshape(where(isnan(last), last, value), shape))
    return found


def _runs(name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x flattened and sorted, the indices that sort it, and whether each element differs from the one before."""
    check_tensors(name, x)
    flat = reshape(x.detach(), -1)
    order = argsort(bools_to_int64(flat))
    ordered = index(flat, order)
    first = ones(min(flat.size, 1), dtype="bool", device=x.device)
    return ordered, order, concat([first, not_equal(index(ordered, slice(1, None)), index(ordered, slice(0, -1)))])


def unique_values(x: Tensor, /) -> Tensor:
    """The different elements of x, sorted, of shape (n,). Their number depends on values, so this waits for the device.

    Each NaN is a value of its own. The result has no gradient.

    >>> import gradflow as gf
    >>> gf.unique_values(gf.tensor([[3.0, 1.0], [1.0, 2.0]])).tolist()
    [1.0, 2.0, 3.0]
    """
    ordered, _, starts = _runs("unique_values", x)
    return index(ordered, starts)


def unique_counts(x: Tensor, /) -> tuple[Tensor, Tensor]:
    """The different elements of x as `unique_values` gives them, and how often each occurs (int64).

    >>> import gradflow as gf
    >>> values, counts = gf.unique_counts(gf.tensor([3.0, 1.0, 3.0]))
    >>> values.tolist(), counts.tolist()
    ([1.0, 3.0], [1, 2])
    """
    ordered, _, starts = _runs("unique_counts", x)
    n = ordered.size
    places = index(arange(n, device=x.device), starts)
    ends = concat([index(places, slice(1, None)), arange(n, n + min(n, 1), device=x.device)])
    return index(ordered, starts), ends - places


def unique_inverse(x: Tensor, /) -> tuple[Tensor, Tensor]:
    """The different elements of x as `unique_values` gives them, and for each element of x its index there (int64).

    >>> import gradflow as gf
    >>> values, inverse = gf.unique_inverse(gf.tensor([3.0, 1.0, 3.0]))
    >>> values.tolist(), inverse.tolist(), values[inverse].tolist()
    ([1.0, 3.0], [1, 0, 1], [3.0, 1.0, 3.0])
    """
    ordered, order, starts = _runs("unique_inverse", x)
    inverse = zeros(ordered.size, dtype="int64", device=x.device)
    set_item(inverse, order, cumulative_sum(starts, 0) - 1)
    return index(ordered, starts), reshape(inverse, x.shape)


@refuses_keywords
def roll(x: Tensor, shift: int | Sequence[int], /, axis: Axis = None, dims: None = None) -> Tensor:
    """x with its elements moved by `shift` along `axis`; those that leave the end come in at the start.

    shift: an integer, negative to move to the start, or one for each axis. axis: by default x is rolled as if it were
    flattened. Raises ValueError unless there are as many shifts as axes.

    >>> import gradflow as gf
    >>> x = gf.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    >>> gf.roll(x, 1).tolist(), gf.roll(x, -1, axis=1).tolist()
    ([[6.0, 1.0, 2.0], [3.0, 4.0, 5.0]], [[2.0, 3.0, 1.0], [5.0, 6.0, 4.0]])
    """
    if dims is not None:
        refuse("roll", dims=dims)
    check_tensors("roll", x)
    shifts = integers("shift of roll", shift)
    if axis is None:
        if len(shifts) != 1:
            raise ValueError(f"roll without an axis takes one shift; got {len(shifts)}")
        return reshape(_rolled(reshape(x, -1), shifts[0], 0), x.shape)
    axes = [one_axis("roll", a, x.ndim) for a in (axis if is_sequence(axis) else (axis,))]  # type: ignore[union-attr]
    if len(shifts) == 1:
        shifts *= len(axes)
    if len(shifts) != len(axes):
        raise ValueError(f"roll needs a shift for each axis; got {len(shifts)} for {len(axes)} axes")
    for each, a in zip(shifts, axes, strict=True):
        x = _rolled(x, each, a)
    return x if axes else copy(x)


def _rolled(x: Tensor, shift: int, axis: int) -> Tensor:
    n = x.shape[axis]
    cut = -shift % n if n else 0
    return concat(parts(x, axis, [(cut, n), (0, cut)]), axis)
