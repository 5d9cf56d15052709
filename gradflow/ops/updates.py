"""Changed copies: `x.at[key].set(values)`, scatter and gather along an axis, masked_fill. All are recorded."""

from __future__ import annotations

import math
from typing import Any

from gradflow.autograd.grad_mode import is_grad_enabled
from gradflow.dtypes import is_number, weak_number
from gradflow.ops.checks import check_tensors, on_one_backend
from gradflow.ops.creation import arange, tensor
from gradflow.ops.elementwise import add, where
from gradflow.ops.indexing import (
    beside,
    explain_assignment,
    explain_index,
    parts,
    raw_key,
    scatter_add,
    take_along_axis,
)
from gradflow.ops.shape import broadcast_to, reshape
from gradflow.ops.table import apply, cast, defop
from gradflow.pytorch_names import refuse, refuses_keywords
from gradflow.shapes import one_axis
from gradflow.tensor import Tensor

__all__ = ["gather", "masked_fill", "scatter"]


def _put_forward(F: Any, x: Any, values: Any, winners: Any, _stays: Any, key: Any) -> Any:
    if winners is not None:
        shape = tuple(winners.shape)
        flat = F.reshape(F.broadcast_to(values, shape), (-1,))
        values = F.reshape(F.getitem(flat, (F.reshape(winners, (-1,)), ...)), shape)
    return F.put(x, key, values)


def _put_values_rule(F: Any, g: Any, _out: Any, _x: Any, _values: Any, _winners: Any, stays: Any, key: Any) -> Any:
    chosen = F.getitem(g, key)
    return chosen if stays is None else F.where(stays, chosen, 0.0)


_PUT = defop(
    "put",
    lambda F, g, _out, _x, _values, _winners, _stays, key: F.put(g, key, 0.0),
    _put_values_rule,
    None,
    None,
    forward=_put_forward,
    exact=True,
)


def put(x: Tensor, key: Any, values: Any) -> Tensor:
    """A copy of x with `values`, a tensor or a number of its dtype, at a key from `raw_key`."""
    F, winners, stays = x.backend, None, None
    try:
        if isinstance(values, Tensor) and values._node is not None and is_grad_enabled() and _may_repeat(key):
            winners, stays = _winners(F, x, key)
        return apply(_PUT, (x, values, winners, stays), {"key": key})
    except IndexError:
        explain_index(F, x.shape, key)
        raise
    except ValueError:
        explain_assignment(F, x.array, key, getattr(values, "array", values))
        raise


def _may_repeat(key: Any) -> bool:
    """Whether a key from `raw_key` may select an element more than once: one with integer arrays."""
    return isinstance(key, tuple) and any(hasattr(part, "shape") for part in key)


def _winners(F: Any, x: Tensor, key: Any) -> tuple[Tensor, Tensor]:
    """For each selected element the number of the value that stays there, and for each value whether it stays.

    The values are numbered, and the numbers are written to the elements. Where an element has several values, one of
    the numbers remains; then that value is written for all of them, so that their order no longer matters.
    """
    shape = tuple(F.getitem(x.array, key).shape)
    numbers = F.reshape(F.arange(math.prod(shape), dtype=F.dtypes["int64"]), shape)
    winners = F.getitem(F.put(F.zeros(x.shape, dtype=F.dtypes["int64"]), key, numbers), key)
    return Tensor(winners, F), Tensor(F.equal(winners, numbers), F)


def _values_for(what: str, x: Tensor, values: Any) -> Any:
    """Values of any kind as a tensor of the dtype and device of x, or a number that its dtype can hold."""
    if isinstance(values, Tensor):
        if values.backend is not x.backend:
            x, values = on_one_backend(what, (x, values))
        return cast(values, x.dtype)
    return weak_number(what, values, x.dtype) if is_number(values) else tensor(values, x.dtype, x.device)


class Place:
    """The elements of a tensor x that an index selects, `x.at[index]`: from it, changed copies of x are made.

    >>> import gradflow as gf
    >>> x = gf.zeros(3)
    >>> x.at[1].set(5.0).tolist(), x.tolist()
    ([0.0, 5.0, 0.0], [0.0, 0.0, 0.0])
    """

    __slots__ = ("_key", "_x")

    def __init__(self, x: Tensor, key: Any) -> None:
        self._x = beside(x, key)
        self._key = raw_key(self._x, key)

    def set(self, values: Any) -> Tensor:
        """A copy of x with `values` at the index. Recorded: both x and the values get gradients.

        values: a tensor, a number or what `gradflow.tensor` takes, broadcast to the selected elements, and converted to
        the dtype of x. Where an element is selected more than once, one of its values stays: the last on the CPU, any
        on other devices. Only that value gets its gradient.

        Raises ValueError for values that do not broadcast.

        >>> import gradflow as gf
        >>> x, v = gf.ones((2, 2), requires_grad=True), gf.tensor([3.0, 4.0], requires_grad=True)
        >>> y = x.at[0].set(v)
        >>> (y * y).sum().backward()
        >>> y.tolist(), x.grad.tolist(), v.grad.tolist()
        ([[3.0, 4.0], [1.0, 1.0]], [[0.0, 0.0], [2.0, 2.0]], [6.0, 8.0])
        """
        return put(self._x, self._key, _values_for("at[...].set", self._x, values))

    def add(self, values: Any) -> Tensor:
        """A copy of x with `values` added at the index. Recorded: both x and the values get gradients.

        values: as for `set`. Where an element is selected more than once, all its values are added, in a fixed order:
        the same input gives the same bits.

        Raises ValueError for values that do not broadcast.

        >>> import gradflow as gf
        >>> x = gf.zeros(3)
        >>> x.at[[0, 2, 2]].add(1.0).tolist()
        [1.0, 0.0, 2.0]
        """
        x, values = self._x, _values_for("at[...].add", self._x, values)
        try:
            chosen = x.backend.getitem(x.array, self._key)
        except IndexError:
            explain_index(x.backend, x.shape, self._key)
            raise
        if not isinstance(values, Tensor):
            values = tensor(values, x.dtype, x.device)
        explain_assignment(x.backend, x.array, self._key, values.array)
        return add(x, scatter_add(broadcast_to(values, tuple(chosen.shape)), self._key, x.shape))


class At:
    """What `x.at` returns: `x.at[index]` is the `Place` that the index selects.

    >>> import gradflow as gf
    >>> gf.arange(4).at[1:3].set(0).tolist()
    [0, 0, 0, 3]
    """

    __slots__ = ("_x",)

    def __init__(self, x: Tensor) -> None:
        self._x = x

    def __getitem__(self, key: Any) -> Place:
        return Place(self._x, key)


@refuses_keywords
def gather(x: Tensor, indices: Tensor, /, axis: int = -1, dim: None = None) -> Tensor:
    """The element of x at each of `indices` along `axis`, as `take_along_axis`; along others, indices may be shorter.

    indices: integers, with as many axes as x, and at most its lengths except along `axis`: the result has their shape.

    Raises IndexError for indices that are not integers, ValueError for a shape that does not fit.

    >>> import gradflow as gf
    >>> x = gf.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    >>> gf.gather(x, gf.tensor([[2, 0]], dtype="int64")).tolist()
    [[3.0, 1.0]]
    """
    if dim is not None:
        refuse("gather", dim=dim)
    check_tensors("gather", x, indices)
    axis = one_axis("gather", axis, x.ndim)
    _check_lengths("gather", x, indices, axis)
    for a, n in enumerate(indices.shape):
        if a != axis and n != x.shape[a]:
            x = parts(x, a, [(0, n)])[0]
    return take_along_axis(x, indices, axis)


@refuses_keywords
def scatter(x: Tensor, indices: Tensor, values: Any, /, axis: int = -1, add: bool = False, dim: None = None) -> Tensor:
    """A copy of x with each of `values` at its index along `axis`, or added there: the inverse of `gather`.

    out[i, indices[i, j]] = values[i, j] for the last axis of two. Recorded: both x and the values get gradients.

    indices: integers, with as many axes as x, and at most its lengths except along `axis`.
    values: a tensor or a number, broadcast to the shape of the indices.
    add: whether values are added to those of x (default False). Values for one element are added in a fixed order; if
        they are not added, one of them stays, as with `x.at[...].set`.

    Raises IndexError for indices that are not integers, ValueError for shapes that do not fit.

    >>> import gradflow as gf
    >>> x, indices = gf.zeros((2, 3)), gf.tensor([[2], [0]], dtype="int64")
    >>> gf.scatter(x, indices, 1.0).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if dim is not None:
        refuse("scatter", dim=dim)
    check_tensors("scatter", x, indices)
    axis = one_axis("scatter", axis, x.ndim)
    _check_lengths("scatter", x, indices, axis)
    key = tuple(
        indices if a == axis else reshape(arange(n, device=x.device), tuple(n if b == a else 1 for b in range(x.ndim)))
        for a, n in enumerate(indices.shape)
    )
    place = Place(x, key)
    return place.add(values) if add else place.set(values)


def _check_lengths(name: str, x: Tensor, indices: Tensor, axis: int) -> None:
    if indices.dtype.kind not in ("int", "uint"):
        raise IndexError(f"{name} needs integer indices; got {indices.dtype}")
    fits = indices.ndim == x.ndim
    if not fits or any(n > m for a, (n, m) in enumerate(zip(indices.shape, x.shape, strict=True)) if a != axis):
        raise ValueError(
            f"{name}: indices of shape {indices.shape} do not fit a tensor of shape {x.shape} along axis {axis}"
        )


def masked_fill(x: Tensor, mask: Tensor, value: Any, /) -> Tensor:
    """x with `value` where `mask`, a bool tensor that broadcasts with x, is true; there, its gradient is 0.

    value: a number, or a tensor without axes, which gets the sum of the gradients there. The result has the dtype of x.

    Raises TypeError for a mask that is not bool, ValueError for a value with axes or one that the dtype cannot hold.

    >>> import gradflow as gf
    >>> scores = gf.tensor([1.0, 2.0, 3.0])
    >>> gf.softmax(gf.masked_fill(scores, scores > 2, float("-inf"))).tolist()[2]
    0.0
    """
    check_tensors("masked_fill", x, mask)
    if mask.dtype.kind != "bool":
        raise TypeError(f"masked_fill takes a bool mask; got {mask.dtype}: make one with a comparison")
    value = _values_for("masked_fill", x, value)
    if isinstance(value, Tensor) and value.ndim:
        raise ValueError(f"masked_fill takes a number, or a tensor without axes; got the shape {value.shape}")
    return where(mask, value, x)
