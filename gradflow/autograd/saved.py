"""What a node saved for its rules: checked before it is read, and freed when the node is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradflow.autograd.memory import Changed, clock
from gradflow.autograd.wrapping import wrap

if TYPE_CHECKING:
    from gradflow.autograd.graph import Node

FREED: tuple[Any, ...] = ("freed",)
"""Replaces the inputs of a node whose saved arrays were freed."""
_NUMBERS = (float, int)


def saved_values(node: Node, as_tensors: bool) -> tuple[Sequence[Any], Any]:
    """Return the inputs and the result that the rules of a node read, as tensors or as arrays.

    An input whose values no rule reads is replaced by its parent, the result by None if no rule reads it.
    Raises RuntimeError if they were freed, or changed in place since they were saved.
    """
    out, inputs = node.out, node.inputs  # in this order, see `free`
    if inputs is FREED:
        raise RuntimeError(
            f"the arrays that {node.op.name} saved for the backward pass were freed by an earlier backward pass; to "
            "backpropagate through the same graph twice, call the first backward with retain_graph=True"
        )
    values: Any = node.parents
    if inputs is not None:
        if node.id < clock.last_change[0]:
            _check_unchanged(node)
        values = list(values)
        for i, x in enumerate(inputs):  # faster than a comprehension over pairs
            if x is not None:
                values[i] = x if as_tensors or x.__class__ in _NUMBERS else x.array
    if out is not None:
        if out.__class__ is Changed:
            kind = f"the result of {node.op.name}, a tensor of shape {tuple(node.shape)}, {node.dtype}"
            raise _changed_error(kind, node, out.version)
        if as_tensors:
            out = wrap(out, node.backend, node)
    return values, out


def free(node: Node) -> None:
    """Drop the references to what a node saved.

    Another thread may be about to apply the rules of this node. It reads `inputs` last, and then either finds them
    FREED and raises, or has read everything before it was freed.
    """
    if node.inputs is not None or node.out is not None or node.op.saves_parameters:
        node.inputs = FREED  # first
        node.out = node.parameters = None


def _check_unchanged(node: Node) -> None:
    """Raise RuntimeError if a saved input was changed in place since."""
    assert node.inputs is not None
    for i, x in enumerate(node.inputs):
        memory = getattr(x, "_memory", None)
        if memory is not None and memory.changed > node.id:
            what = f"input {i} of {node.op.name}, a tensor of shape {x.shape}, {x.dtype}"
            raise _changed_error(what, node, memory.changed)


def _changed_error(tensor: str, node: Node, changed: int) -> RuntimeError:
    return RuntimeError(
        f"{tensor} on {node.backend.device}, was changed in place after it was saved for the backward pass (saved at "
        f"version {node.id}, changed at version {changed}): change a copy of it, or change it after backward()"
    )
