"""What is known of a graph that exists: values that something keeps, values computed again, layers of perceptrons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gradflow.autograd.graph import Node
from gradflow.autograd.leaf import Leaf
from gradflow.autograd.memory import Changed
from gradflow.autograd.saved import FREED
from gradflow.autograd.wrapping import wrap
from gradflow.nn.layers import Linear
from gradflow.nn.module import Module
from gradflow.nn.parameter import Parameter
from gradflow.ops.network import linear
from gradflow.ops.table import OPERATIONS
from gradflow.tensor import Tensor


def version(x: Tensor) -> int:
    """The number of the last in-place change of the memory of a tensor."""
    return 0 if x._memory is None else x._memory.changed


def kept(order: Iterable[Node | Leaf], tensors: Iterable[Tensor]) -> dict[Node | Leaf, Any]:
    """The arrays of the values of nodes and leaves, as far as something keeps them unchanged."""
    arrays: dict[Node | Leaf, Any] = {}
    used: dict[Node | Leaf, int] = {}  # the first node that uses a value
    for node in order:
        if not isinstance(node, Node):
            continue
        for parent, x in zip(node.parents, node.inputs or (), strict=False):
            if isinstance(x, Tensor) and parent is not None and version(x) <= node.id:
                arrays[parent] = x.array
        for parent in node.parents:
            used.setdefault(parent, node.id)
        if node.out is not None and node.out.__class__ is not Changed:
            arrays[node] = node.out
    for x in tensors:
        if x._node is not None and version(x) <= used.get(x._node, x._node.id):
            arrays.setdefault(x._node, x.array)
    return arrays


def parameters_in(order: Iterable[Node | Leaf], tensors: Iterable[Tensor]) -> set[Any]:
    """The leaves of parameters, as far as their tensors are known."""
    saved = (x for node in order if isinstance(node, Node) for x in node.inputs or ())
    return {x._node for known in (saved, tensors) for x in known if isinstance(x, Parameter)}


def recomputed(node: Node, arrays: dict[Node | Leaf, Any]) -> Any:
    """The value of a node, computed again from those of its inputs, `arrays`; None if one of them is unknown.

    Operations of users are not run again, nor are transfers.
    """
    if OPERATIONS.get(node.op.name) is not node.op or node.inputs is FREED:
        return None
    inputs: list[Any] = []
    for i, parent in enumerate(node.parents):
        x = None if node.inputs is None else node.inputs[i]
        if parent is not None:
            if parent not in arrays or parent.backend is not node.backend:
                return None
            inputs.append(arrays[parent])
        elif isinstance(x, Tensor):
            if version(x) > node.id:
                return None
            inputs.append(x.array)
        elif x is None and (node.inputs is None or node.op.joint is None):
            return None
        else:
            inputs.append(x)
    options = {name: x for name, x in (node.parameters or {}).items() if name != "residual"}
    result = node.op.forward(node.backend, *inputs, **options)
    return result[0] if node.op.residual else result


def is_perceptron(node: Node | Leaf) -> bool:
    """Whether a node is a perceptron whose layers are known: its inputs are neither freed nor changed."""
    if node.op is not OPERATIONS["perceptron"] or node.inputs is FREED:
        return False
    return all(version(x) <= node.id for x in node.inputs or ())


def unhooked_inputs(node: Node) -> list[Tensor]:
    """The inputs of a perceptron, with a leaf of its own for each that required grad, so that no hook runs twice."""
    found = []
    for x, parent in zip(node.inputs or (), node.parents, strict=True):
        if parent is not None or x._node is not None:
            leaf: Any = None if parent is None else Leaf(node.backend, parent.shape, parent.dtype)
            memory, x = x._memory, wrap(x.array, node.backend, leaf)
            x._memory = memory
        found.append(x)
    return found


def layer_by_layer(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """The result of a perceptron, computed again from its inputs and recorded as one operation for each layer."""
    assert node.parameters is not None
    h, *rest = inputs
    for weight, bias in zip(rest[:-2:2], rest[1:-2:2], strict=True):
        h = linear(h, weight, bias, node.parameters["activation"])
    return linear(h, rest[-2], rest[-1])


def linear_layers(module: Module) -> Iterator[tuple[Module, Linear]]:
    """The linear layers in a module, each with the module that it belongs to."""
    for outer in module.modules():
        for layer in outer._modules.values():
            if isinstance(layer, Linear):
                yield outer, layer
