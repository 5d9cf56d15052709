"""The operations at the border of a `vmap`: from all examples to one inside, and back."""

from __future__ import annotations

from typing import Any

from gradflow.autograd.batching import Batch
from gradflow.autograd.graph import Operation
from gradflow.autograd.mapping import Level
from gradflow.ops.checks import lifted
from gradflow.ops.table import apply
from gradflow.tensor import Tensor


def _swapped(F: Any, x: Any) -> Any:
    return F.permute_dims(x, (1, 0, *range(2, len(x.shape))))


def _enter(F: Any, g: Any, _out: Any, _x: Any, level: Level) -> Any:
    """The gradient of `all_examples`."""
    if isinstance(g, Batch):  # (rows, examples, ...)
        return Batch(_enter(F, _swapped(F.F, g.values), None, None, level))
    return one_example(g, level) if isinstance(g, Tensor) else level.batch(g)


def _leave(F: Any, g: Any, _out: Any, _x: Any, level: Level) -> Any:
    """The gradient of `one_example`."""
    if isinstance(g, Batch):  # each example has (rows, ...)
        whole = _leave(F, g.values, None, None, level)
        return Batch(_swapped(level.F if not isinstance(whole, Tensor) else F.F, whole))
    return all_examples(g, level) if isinstance(g, Tensor) else level.stacked(g)


_ONE = Operation("vmap", lambda F, x, level: level.batch(x), [_leave], view=True)
_ALL = Operation("vmap", lambda F, x, level: level.stacked(x), [_enter], exact=True)
_SUM = Operation(
    "vmap",
    lambda F, x, level: level.total(x),
    [lambda F, g, _out, _x, level: _share(g, level)],
)


def _share(g: Any, level: Level) -> Any:
    if isinstance(g, Batch):
        return Batch(_share(g.values, level))
    return lifted("vmap", g, level) if isinstance(g, Tensor) else g


def one_example(x: Tensor, level: Level) -> Tensor:
    """A tensor inside a `vmap`: that of one example, from all of them along the first axis of x."""
    return apply(_ONE, (x,), {"level": level}, level)  # type: ignore[arg-type]


def all_examples(x: Tensor, level: Level) -> Tensor:
    """The tensors of all examples along a first axis, outside of the `vmap`; x is inside, or from outside."""
    return apply(_ALL, (lifted("vmap", x, level),), {"level": level}, level.F)


def sum_of_examples(x: Tensor, level: Level) -> Tensor:
    """The sum of the tensors of all examples, outside of the `vmap`; x is inside, or from outside."""
    return apply(_SUM, (lifted("vmap", x, level),), {"level": level}, level.F)
