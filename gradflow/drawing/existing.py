"""`draw`: the graph of a tensor that was computed before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradflow.autograd.graph import Node, nodes_from
from gradflow.autograd.hooks import retained
from gradflow.autograd.leaf import Leaf
from gradflow.autograd.saved import FREED
from gradflow.drawing.graph import Graph
from gradflow.drawing.names import checked_names, name_values, variables
from gradflow.drawing.picture import Picture
from gradflow.drawing.places import user_frame
from gradflow.drawing.recorder import Recorder
from gradflow.nn.module import Module
from gradflow.printing import describe
from gradflow.tensor import Tensor

NO_GRAPH = (
    "set requires_grad=True on the tensors to differentiate by, before it is computed, "
    "and compute it outside of no_grad() and without detach()"
)
LARGEST = 20_000
"""The largest number of steps of a graph that is drawn or explained."""


class Drawing(Picture):
    """A graph, and its picture."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    @property
    def graph(self) -> Graph:
        return self._graph


def draw(output: Tensor, /, **names: Any) -> Drawing:
    """The computational graph of a tensor that was computed before, with the values that it keeps.

    output: a tensor that requires grad and was computed from others.
    names: tensors, or modules with parameters, by the name to draw (default: the names of the caller's variables).

    The graph keeps what its gradient rules need. The caller's variables and the parameters of modules are known too,
    and values are computed again whose inputs are all known. Other values have a shape and no numbers. The picture has
    no gradients: what `.grad` holds may be of other functions too, and is only printed. `gradflow.explain` computes
    those of this graph, and `gradflow.trace` records all values with their gradients.

    Raises TypeError for something else than a tensor, RuntimeError for a tensor without a graph, ValueError for a graph
    of more than 20,000 steps.

    >>> import gradflow as gf
    >>> x, y = gf.tensor(3.0, requires_grad=True), gf.tensor(4.0, requires_grad=True)
    >>> f = x * y
    >>> print(gf.draw(f))
    f = x * y = 12
    """
    checked_names("draw", names)
    node = root_of("draw", output)
    found = variables(user_frame())
    recorder = Recorder()
    recorder.add_graph([node], *known(output, names, found))
    for each in nodes_from([node]):
        holder = each if isinstance(each, Leaf) else retained(each)
        if holder is not None and holder.grad is not None:
            recorder.seen(each).kept = recorder.summaries.add(holder.grad.array, each.backend)
    modules = name_values(recorder, names, found)

    from gradflow.drawing.building import graph_of

    graph = graph_of(recorder, modules, recorder.seen(node))
    if is_freed(node):
        graph.title = "backward() has freed values of this graph: a gradflow.trace() around both shows all"
    elif unknown(graph):
        graph.title = unknown(graph)
    elif any(value.kept is not None for value in graph.values):
        graph.title = "no gradients: gradflow.explain computes those of this graph"
    return Drawing(graph)


def root_of(function: str, output: Any) -> Node:
    """The node of a tensor to draw or explain. Raises as `draw` does."""
    if isinstance(output, (tuple, list, dict)):
        raise TypeError(f"{function} takes one tensor, not a {type(output).__name__}: pass one of them, or their sum")
    if not isinstance(output, Tensor):
        raise TypeError(f"{function} takes a tensor, such as the loss; got {type(output).__name__}")
    node = output._node
    if not isinstance(node, Node):
        kind = "does not require grad" if node is None else "is a leaf: no operation computed it"
        fix = NO_GRAPH if node is None else (
            f"pass what was computed from it, as in {function}(loss)"
        )  # fmt: skip
        raise RuntimeError(f"{function}() on a {describe(output)} that {kind}, so it has no graph: {fix}")
    count = sum(1 for each in nodes_from([node]) if each.op is not None)
    if count > LARGEST:
        raise ValueError(
            f"{function}() on a graph of {count} steps; the largest is {LARGEST}: pass a result in the middle of it, "
            "or put the part to see inside `with gradflow.trace()`"
        )
    return node


def is_freed(node: Node) -> bool:
    """Whether a backward pass has freed what a graph saved."""
    return any(each.op is not None and each.inputs is FREED for each in nodes_from([node]))


def known(output: Tensor, *names: Mapping[str, Any]) -> tuple[list[Tensor], list[Module]]:
    """The output with the tensors that have a name or belong to modules that do; and these modules."""
    values = [value for each in names for value in each.values()]
    modules = [value for value in values if isinstance(value, Module)]
    tensors = [value for value in values if isinstance(value, Tensor)]
    return [output, *tensors, *(p for module in modules for p in module.parameters())], modules


def unknown(graph: Graph) -> str:
    """A line that says which values of a graph are not known, or ""."""
    labels = [value.label for value in graph.values if value.forward is None]
    if not labels:
        return ""
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return f"not kept: {', '.join(labels[:3])}{more}; gradflow.trace() around the computation shows all values"
