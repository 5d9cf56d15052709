"""A graph as a table of its steps: forward, and then backward in the order of the backward pass."""

from __future__ import annotations

from gradflow.drawing.graph import Graph, Numbers
from gradflow.drawing.numbers import describe


def table(graph: Graph) -> str:
    """The steps of a graph, one line each: forward, then for each backward pass what each input receives."""
    lines = [f"{step.formula} = {_text(graph.values[step.output].forward)}" for step in graph.steps]
    for step in sorted((s for s in graph.steps if s.backward is not None), key=lambda s: s.backward or 0):
        for rule, got in zip(step.rule, step.received, strict=True):
            if rule is not None:
                lines.append(f"{rule} = {_text(got)}")
    return "\n".join(lines)


def _text(numbers: Numbers | None) -> str:
    return "not kept" if numbers is None else " ".join(describe(numbers))
