"""The tensors that nodes save, and whether they were changed in place or freed since.

Nodes and in-place changes draw their numbers from one clock, so that a node is newer than what it was made from, and
a tensor with a change newer than a node is not what that node saw.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gradflow.backend import Array, Backend

if TYPE_CHECKING:
    from gradflow.autograd.graph import Node
    from gradflow.tensor import Tensor

tick: Callable[[], int] = itertools.count(1).__next__
"""The clock of nodes and of in-place changes."""
_last_change = 0


def time_of_change() -> int:
    """The time of a change in place that happens now."""
    global _last_change
    _last_change = tick()
    return _last_change


class Memory:
    """What tensors that share memory have in common: when it last changed in place, and the node whose result it is.

    A tensor gets one when it is first changed or shared. That of an optimizer's buffer also knows its `tensors`.
    """

    __slots__ = ("changed", "most", "node", "tensors")

    def __init__(self, changed: int = 0, node: Node | None = None) -> None:
        self.changed = changed
        self.node = None if node is None else weakref.ref(node)
        self.tensors: list[weakref.ref[Tensor]] | None = None
        self.most = 64  # at this length, references to dead tensors are removed

    def add(self, tensor: Tensor) -> None:
        """Note that a tensor is in this memory."""
        tensor._memory = self
        if self.tensors is not None:
            if len(self.tensors) >= self.most:
                self.tensors[:] = [reference for reference in self.tensors if reference() is not None]
                self.most = 2 * len(self.tensors) + 64
            self.tensors.append(weakref.ref(tensor))

    def change(self) -> None:
        """Note a change in place."""
        self.changed = time_of_change()
        node = None if self.node is None else self.node()
        if node is not None and node.out is not None:
            node.out = Changed(self.changed)


class Changed:
    """What stands for a saved result that has been changed in place: the version that it has now."""

    __slots__ = ("version",)

    def __init__(self, version: int) -> None:
        self.version = version


FREED: tuple[Any, ...] = ("freed",)
"""What stands for the inputs of a node whose saved arrays are gone."""
tensor_functions: Any = None
"""`gradflow.ops`, which sets this when it is imported: the `F` of a walk on tensors."""


def _saved(node: Node, as_tensors: bool) -> tuple[Sequence[Any], Any]:
    """What the rules of a node read: its inputs, and its result. RuntimeError where they have been freed or changed."""
    parents, inputs, out = node.parents, node.inputs, node.out
    if inputs is FREED:
        raise RuntimeError(
            f"the arrays that {node.op.name} saved for the backward pass were freed by an earlier one; "
            "call the first backward with retain_graph=True to go through the same graph twice"
        )
    values: Sequence[Any] = parents  # a parent stands in for what its rule does not read
    if inputs is not None:
        if node.id < _last_change:
            _check_unchanged(node)
        values = [
            parent if x is None else x if as_tensors or x.__class__ in _NUMBERS else x.array
            for x, parent in zip(inputs, parents, strict=True)
        ]
    if out is not None:
        if out.__class__ is Changed:
            kind = f"the result of {node.op.name}, a tensor of shape {tuple(node.shape)}, {node.dtype}"
            raise _changed_error(kind, node, out.version)
        if as_tensors:
            out = _wrap(out, node.backend, node)
    return values, out


def _free(node: Node) -> None:
    """Let go of what a node saved."""
    if node.inputs is not None or node.out is not None or node.op.saves_parameters:
        node.inputs = FREED
        node.out = node.parameters = None


_NUMBERS = (float, int)


def _check_unchanged(node: Node) -> None:
    """Raise RuntimeError where a saved input has been changed in place since."""
    assert node.inputs is not None
    for i, x in enumerate(node.inputs):
        memory = getattr(x, "_memory", None)
        if memory is not None and memory.changed > node.id:
            what = f"input {i} of {node.op.name}, a tensor of shape {x.shape}, {x.dtype}"
            raise _changed_error(what, node, memory.changed)


def _wrap(array: Array, backend: Backend, node: Any) -> Tensor:
    tensor: Tensor = tensor_functions.Tensor(array, backend, node)
    return tensor


def _changed_error(tensor: str, node: Node, changed: int) -> RuntimeError:
    return RuntimeError(
        f"{tensor} on {node.backend.device}, was changed in place after it was saved for the backward pass (saved at "
        f"version {node.id}, changed at version {changed}): change a copy of it, or change it after backward()"
    )
