"""What the walk does for every gradient rule: half floats in float32, sums over broadcast axes, casts to the dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradflow.autograd.graph import Node
from gradflow.autograd.leaf import Leaf
from gradflow.backend.half_floats import widened
from gradflow.shapes import broadcasts


def in_float32(F: Any, g: Any, out: Any, values: Sequence[Any], node: Node) -> tuple[Any, Any, Sequence[Any]]:
    """Return what the rules of a node read (gradient, result, inputs), with half floats converted to float32.

    So no count or factor in a rule leaves the range of half floats; `fitted` rounds the gradients that a rule returns.
    """
    backend = node.backend
    values = [x if x.__class__ in (Node, Leaf) else widened(x, backend, F) for x in values]
    return widened(g, backend, F), widened(out, backend, F), values


def fitted(result: Any, F: Any, node: Node, argument: int) -> Any:
    """Return the result of a rule in the shape and dtype of the argument: summed over broadcast axes, and cast.

    result, F: an array, a tensor or a batch, and the namespace of functions on it.
    node, argument: the node, and the index of the argument that the rule is for.

    Raises ValueError if the argument does not broadcast to the shape of the result: an error in the rule.
    """
    parent = node.parents[argument]
    native = _native_dtype(result)
    if result.shape != parent.shape:
        _check_broadcast(node, argument, result.shape, parent.shape)
        if native in node.backend.half_dtypes:
            result = F.astype(result, node.backend.single)
        result = _sum_to_shape(F, result, parent.shape)
        native = _native_dtype(result)
    if native is not parent.dtype and native != parent.dtype:
        result = F.astype(result, parent.dtype)
    return result


def _native_dtype(x: Any) -> Any:
    """Return the backend's dtype of an array, a tensor or a batch."""
    return getattr(x, "array", x).dtype


def _sum_to_shape(F: Any, g: Any, shape: tuple[int, ...]) -> Any:
    """Return the VJP of broadcasting from `shape`: g summed over the axes that were added or repeated."""
    extra = g.ndim - len(shape)
    axes = tuple(i for i, n in enumerate(g.shape) if i < extra or (shape[i - extra] == 1 and n != 1))
    return F.reshape(F.sum(g, axis=axes, keepdims=True), shape)


def _check_broadcast(node: Node, argument: int, shape: Any, expected: Any) -> None:
    if len(shape) > max(len(expected), len(node.shape)) or not broadcasts(expected, shape):
        raise ValueError(
            f"the rule of {node.op.name} for argument {argument} gave a gradient of shape {tuple(shape)}; "
            f"the argument has shape {tuple(expected)}"
        )
