"""Changed copies of a tensor: `x.at[key].set(values)` and `x.at[key].add(values)`. Both are recorded."""

from __future__ import annotations

import math
from typing import Any

from gradflow.autograd.grad_mode import is_grad_enabled
from gradflow.dtypes import is_number, weak_number
from gradflow.ops.checks import on_one_backend
from gradflow.ops.creation import tensor
from gradflow.ops.elementwise import add
from gradflow.ops.indexing import beside, explain_assignment, explain_index, raw_key, scatter_add
from gradflow.ops.shape import broadcast_to
from gradflow.ops.table import apply, cast, defop
from gradflow.tensor import Tensor


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


def values_for(what: str, x: Tensor, values: Any) -> Any:
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
        return put(self._x, self._key, values_for("at[...].set", self._x, values))

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
        x, values = self._x, values_for("at[...].add", self._x, values)
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
