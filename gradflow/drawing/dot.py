"""A computational graph as text in DOT, the language of Graphviz. Nothing but the standard library is needed.

Steps are nodes. A value is a node too, without a shape: its numbers around a piece of the line from the step that
computed it to those that use it. So the forward value is above the line and the gradient below it in every layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from operator import itemgetter

from gradflow.drawing.colors import LIGHT
from gradflow.drawing.graph import Graph, Numbers, Step, Value
from gradflow.drawing.labels import SANS, Span, cut, legend, table, width
from gradflow.drawing.numbers import describe, short, signature, warning

_SOURCES = {"input": "rounded,filled", "parameter": "filled", "constant": "rounded,dashed"}
"""The styles of the boxes that values which no step computed come from."""
_LARGE = 100
"""The steps from which on Graphviz spends less time on crossings and curves of lines."""
_FAR = 60
"""A step so many steps after a value gets the name of the value in place of a line that crosses all between them."""
_MOST_LINES = 4
"""An array that takes more lines in full is drawn as its mean, standard deviation and range."""

_Path = tuple[str, ...]
"""The labels of nested boxes, the outermost first."""


def to_dot(graph: Graph, *, local: bool = False, roles: bool = False) -> str:
    """The picture of a graph in DOT, for light pages.

    local: with the local derivatives of each step. roles: with what each step does to a gradient ("switches").

    The node of a step has the id "step-3" and the class "step multiply"; the node of a value, the id "value-5" and the
    class "value result"; the source of an input, a parameter or a constant, the id "source-5" and the class "source
    parameter", each with its index in the graph.
    """
    uses: dict[int, list[Step]] = {value.index: [] for value in graph.values}
    for step in graph.steps:
        for index in step.inputs:
            uses[index].append(step)
    parts = _parts(graph)
    root = _Box()
    edges: list[tuple[_Place, str]] = []
    for value in graph.values:
        used = uses[value.index]
        if not used and value.index not in graph.outputs and value.step is None:
            continue
        start = value.step if value.step is not None else used[0].index if used else 0
        near = [step for step in used if step.index - start <= _FAR]
        root.at(_box_of_value(graph, value, near)).nodes += _nodes(graph, value, parts.get(value.index, ()))
        edges += _edges(graph, value, near)
        for step in used[len(near) :]:
            reference = f"reference-{value.index}-{step.index}"
            root.at(_box_of_step(graph, step)).nodes.append(_reference(reference, value))
            edges.append((_place(step, value), f'"{reference}" -> "step-{step.index}"'))
    for step in graph.steps:
        root.at(_box_of_step(graph, step)).nodes.append(_step(graph, step, local, roles))
    for index in dict.fromkeys(graph.outputs):
        root.nodes.append(_node(f"out-{index}", "out", shape="point", style="invis", width="0.01", label=""))
    hurry = {"splines": "polyline", "nslimit": "0.1", "nslimit1": "0.1", "mclimit": "0.2"}
    general = {"rankdir": "LR", "ranksep": "0.22", "nodesep": "0.16", "pad": "0.15", "bgcolor": LIGHT["page"]}
    general |= {"fontname": SANS, "fontcolor": LIGHT["ink"], "labelloc": "b", "labeljust": "l"}
    general |= {"label": legend(graph)} | (hurry if len(graph.steps) >= _LARGE else {})
    return "\n".join(
        [
            "digraph {",
            f"graph [{_attributes(general)}]",
            f"node [{_attributes({'fontname': SANS, 'fontcolor': LIGHT['ink'], 'color': LIGHT['line']})}]",
            f"edge [{_attributes({'color': LIGHT['line'], 'arrowsize': '0.6'})}]",
            *root.lines("box"),
            *(edge for _, edge in sorted(edges, key=itemgetter(0))),  # with `ordering`, operands stand in their order
            "}\n",
        ]
    )


@dataclass
class _Box:
    """A part of the picture, with a frame unless it is the whole: its nodes and the boxes in it."""

    nodes: list[str] = field(default_factory=list)
    boxes: dict[str, _Box] = field(default_factory=dict)

    def at(self, path: _Path) -> _Box:
        """The box in this one at a path, made if it is new."""
        box = self
        for label in path:
            box = box.boxes.setdefault(label, _Box())
        return box

    def lines(self, identifier: str) -> Iterator[str]:
        yield from self.nodes
        for i, (label, box) in enumerate(self.boxes.items()):
            inner = f"{identifier}-{i}"
            recorded = label.startswith(_RECORDED)
            look = {"style": "rounded,dashed" if recorded else "rounded,filled", "fillcolor": LIGHT["module"]}
            look |= {"class": "recorded" if recorded else "module", "color": LIGHT["line"], "id": inner, "margin": "10"}
            look |= {"label": f"<{Span(cut(label), 'muted', 11).html()}>", "fontcolor": LIGHT["muted"]}
            look |= {"labelloc": "b", "labeljust": "r"} if recorded else {"labelloc": "t", "labeljust": "l"}
            yield f'subgraph "cluster-{inner}" {{ graph [{_attributes(look)}]'
            yield from box.lines(inner)
            yield "}"


_RECORDED = "recorded backward pass"


def _box_of_step(graph: Graph, step: Step) -> _Path:
    order = 0
    inner = step
    while inner.recorded_by is not None:
        order, inner = order + 1, graph.steps[inner.recorded_by]
    if not order:
        return step.module
    return (_RECORDED if order == 1 else f"{_RECORDED}, order {order}",)


def _box_of_value(graph: Graph, value: Value, used: list[Step]) -> _Path:
    """Where a value is drawn: data and outputs outside the modules; others in the smallest box with all its steps."""
    data = value.kind == "input" or (value.kind == "constant" and not _is_bare(graph, value))
    if (data and value.step is None) or value.index in graph.outputs:
        return ()
    forward = [step for step in used if step.recorded_by is None] if value.kind != "result" else used
    steps = ([] if value.step is None else [graph.steps[value.step]]) + (forward or used)
    levels = zip(*(_box_of_step(graph, step) for step in steps), strict=False)
    return tuple(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


_Place = tuple[int, int]


def _place(step: Step, value: Value) -> _Place:
    """Where a step takes a value: the index of the step, and the place among its inputs."""
    return step.index, step.inputs.index(value.index)


def _edges(graph: Graph, value: Value, used: list[Step]) -> Iterator[tuple[_Place, str]]:
    """The line from where a value comes from, through its numbers, to each of its uses, with the places of the uses."""
    i = value.index
    bare = _is_bare(graph, value)
    tail = f'"source-{i}"' if bare else f'"value-{i}":line:e'
    if not bare:
        source = f"source-{i}" if value.step is None else f"step-{value.step}"
        yield (-1, i), f'"{source}" -> "value-{i}":line:w [arrowhead=none]'
        if i in graph.outputs:
            yield (len(graph.steps), i), f'{tail} -> "out-{i}"'
    yield from ((_place(step, value), f'{tail} -> "step-{step.index}"') for step in used)


def _is_bare(graph: Graph, value: Value) -> bool:
    """Whether a value is drawn as its number alone: a constant number without a name."""
    number = value.kind == "constant" and value.step is None and value.shape == () and value.forward is not None
    return number and value.name is None and value.index not in graph.outputs


def _nodes(graph: Graph, value: Value, parts: Sequence[Numbers]) -> Iterator[str]:
    """The source of a value, unless a step computed it, and its numbers."""
    bare = _is_bare(graph, value)
    if value.step is None:
        name = Span(cut(value.label), "ink" if value.name else "muted")
        if bare and value.forward is not None:
            name = Span(short(value.forward.values), "forward", mono=True)
        look = {"shape": "box", "style": _SOURCES[value.kind], "margin": "0.08,0.03", "height": "0.28"}
        look |= {"fillcolor": LIGHT["parameter" if value.kind == "parameter" else "page"]}
        look |= {"width": f"{(width([name]) + 14) / 72:.2f}", "label": f"<{name.html()}>"}
        yield _node(f"source-{value.index}", f"source {value.kind}", **look)
    if not bare:
        kind = f"value {value.kind}"
        yield _node(f"value-{value.index}", kind, shape="plain", label=f"<{_numbers(value, parts)}>")


def _numbers(value: Value, parts: Sequence[Numbers]) -> str:
    """The table of a value: its name and forward value above the line, its gradient below."""
    forward, gradient = value.forward, value.gradient
    name = [] if value.step is None else [Span(cut(value.label), "ink" if value.name else "muted")]
    above = _lines(forward, "forward", name) if forward else [[*name, Span(f" {value.shape} not kept", "muted", 10)]]
    below: list[list[Span]] = []
    if gradient is not None:
        same = forward is not None and signature(forward) == signature(gradient)
        below = _lines(gradient, "gradient", [], with_signature=not same)
        below[-1 if warning(gradient) is None else -2].append(Span(_sum(parts), "gradient", 10))
    return table(above, below)


def _lines(numbers: Numbers, color: str, name: list[Span], with_signature: bool = True) -> list[list[Span]]:
    lines = [[Span(line, color, mono=True)] for line in describe(numbers, _MOST_LINES)]
    if not lines:  # there are no elements, or none is finite
        lines = [[Span("none is finite" if numbers.nonfinite else "empty", "muted", 10)]]
    if numbers.shape == ():
        lines[0] = [*name, *([Span(" = ", "muted")] if name else []), *lines[0]]
    elif with_signature or name:
        lines.insert(0, [*name, Span(" " * bool(name) + signature(numbers), "muted", 10)])
    marked = warning(numbers)
    return lines + ([[Span(f" ! {marked} ", "page", 11, bold=True, background="ink")]] if marked else [])


def _parts(graph: Graph) -> dict[int, list[Numbers]]:
    """By the index of a value, what it received in the last backward pass that reached it."""
    parts: dict[int, list[Numbers]] = {}
    for each in graph.passes:
        parts |= {index: [*each.elsewhere.get(index, ())] for index in each.gradients}
        for (step, i), part in each.received.items():
            parts.setdefault(graph.steps[step].inputs[i], []).append(part)
    return parts


def _sum(parts: Sequence[Numbers]) -> str:
    """What to write behind the gradient of a value that is used more than once: of what it is the sum."""
    if len(parts) < 2:
        return ""
    if len(parts) > 3 or parts[0].shape:
        return f" sum of {len(parts)}"
    return " = " + " + ".join(short(part.values) for part in parts)


def _reference(identifier: str, value: Value) -> str:
    """The name of a value, where a step uses it that is far from where it is drawn."""
    label = f"<{Span(cut(value.label), 'muted', 11).html()}>"
    return _node(identifier, "reference", shape="cds", margin="0.08,0.02", height="0.2", label=label)


def _step(graph: Graph, step: Step, local: bool, roles: bool) -> str:
    symbol = Span(cut(step.symbol), "ink", 14)
    lines = [[symbol]]
    if roles and step.role:
        lines.append([Span(step.role, "muted", 10)])
    if local:
        lines += _local(graph, step)
    small = len(symbol.text) <= 2 and len(lines) == 1
    look = (
        {"shape": "circle", "fixedsize": "true", "width": "0.36"} if small else {"shape": "box", "margin": "0.06,0.03"}
    )
    look |= {"style": "filled" if small else "rounded,filled", "fillcolor": LIGHT["step"], "height": "0.36"}
    look |= {"ordering": "in"}
    label = symbol.html() if small else table(lines, line=False, align="CENTER")
    return _node(
        f"step-{step.index}", f"step {re.sub(r'[^0-9A-Za-z_]+', '-', step.operation)}", **look, label=f"<{label}>"
    )


def _local(graph: Graph, step: Step) -> Iterator[list[Span]]:
    """The local derivatives of a step: with respect to what, the formula, and the number or the Jacobian if small."""
    for index, local in zip(step.inputs, step.local, strict=False):
        if local is None:
            continue
        numbers = describe(local.numbers, _MOST_LINES) if local.numbers is not None else []
        head = f"d/d{cut(graph.values[index].label)}"
        formula = f" = {cut(local.formula)}" if local.formula and [local.formula] != numbers else ""
        if local.form == "number":
            yield [Span(head + formula, "muted", 11)] + [Span(f" = {line}", "ink", 11, mono=True) for line in numbers]
            continue
        what = {"diagonal": "diagonal", "full": "Jacobian"}.get(local.form, "never formed")
        yield [Span(f"{head}{formula} ({what})", "muted", 11)]
        yield from ([Span(line, "ink", 11, mono=True)] for line in numbers)


def _node(identifier: str, kind: str, **look: str) -> str:
    return f'"{identifier}" [{_attributes({"id": identifier, "class": kind} | look)}]'


def _attributes(values: dict[str, str]) -> str:
    """Attributes in DOT. A value in angle brackets is HTML, escaped by its maker; others are ours, without quotes."""
    return " ".join(f"{key}={value}" if value.startswith("<") else f'{key}="{value}"' for key, value in values.items())
