"""A graph as text: the table of its steps, and its backward pass explained."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from gradflow.drawing.building import derivative
from gradflow.drawing.graph import Backward, Graph, Local, Numbers, Role, Step
from gradflow.drawing.numbers import describe, short, signature, warning

_IN_FULL = 16
"""Arrays of at most so many elements are printed in full."""
_WIDEST = 60
"""The longest formula that the others are aligned with."""
ROLES: Final[dict[Role, str]] = {
    "distributes": "each input receives the gradient",
    "switches": "each input receives the gradient times the other input",
    "routes": "the gradient goes to where the value came from",
    "scales": "the gradient times the local derivative",
    "sums": "the gradients of the copies are added up",
    "moves": "the gradient moves back to where the elements came from",
    "mixes": "each element receives a part of every gradient",
}
"""What each role means."""


def table(graph: Graph) -> str:
    """The steps of a graph, one line each: forward, then for each backward pass what each input receives."""
    sections = [_aligned(_forward_rows(graph, [step for step in graph.steps if step.recorded_by is None]))]
    if graph.title:
        sections.insert(0, [graph.title])
    recorded = [step for step in graph.steps if step.recorded_by is not None]
    if recorded:
        recording = any(each.recorded for each in graph.passes)
        title = "computed by a recorded backward pass (create_graph=True):" if recording else "computed in hooks:"
        sections.append([title, *_aligned(_forward_rows(graph, recorded))])
    for number, backward in enumerate(graph.passes):
        which = "" if len(graph.passes) == 1 else f" pass {number + 1}"
        failed = ", which failed" if backward.failed else ""
        title = f"backward{which}, from {graph.values[backward.root].label}{failed}:"
        sections.append([title, *_aligned(_backward_rows(graph, backward))])
    kept = [(f"{v.label}.grad", line_of(v.kept)) for v in graph.values if v.kept is not None]
    sections.append(["gradients that are kept, perhaps of other functions too:", *_aligned(kept)] if kept else [])
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def explained(graph: Graph) -> str:
    """The backward passes of a graph, step by step: what each input receives, with the local derivatives."""
    title = [graph.title] if graph.title else []
    return "\n\n".join([*title, *(_explained(graph, backward) for backward in graph.passes)])


def _explained(graph: Graph, backward: Backward) -> str:
    root = graph.values[backward.root].label
    sums = _Sums(graph, backward)
    sections = [
        [f"The backward pass of {root}: upstream gradient * local derivative = what each input receives."],
        [" = ".join(seed(graph, backward))],
    ]
    for s in backward.steps:
        step = graph.steps[s]
        role = "" if step.role is None else f"   ({step.role}: {ROLES[step.role]})"
        lines = [f"{step.formula} = {line_of(graph.values[step.output].forward)}{role}"]
        for place in _reached(step, backward):
            lines.append(f"  {' = '.join(_received(graph, backward, step, place, sums.of[step.inputs[place]]))}")
            lines += [f"    {line}" for line in _local_lines(graph, step, place)]
            lines += [f"  {' = '.join(row)}" for row in sums.after(step, place)]
        sections.append(lines)
    return "\n\n".join("\n".join(lines) for lines in sections)


def line_of(numbers: Numbers | None) -> str:
    """Numbers in one line."""
    if numbers is None:
        return "(not kept)"
    if math.prod(numbers.shape) > _IN_FULL:
        numbers = replace(numbers, values=None)
    words = [] if numbers.values is not None else [signature(numbers)]
    words += " ".join(describe(numbers)).split()
    bad = warning(numbers)
    return " ".join([*words, *([f"({bad})"] if bad and numbers.shape else [])]).replace("[ ", "[")


def _aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    rows = list(rows)
    width = max((len(row[0]) for row in rows if len(row[0]) <= _WIDEST), default=0)
    return [_fitted(" = ".join([f"{row[0]:<{width}}", *row[1:-1]]), row[-1]) for row in rows]


def _fitted(head: str, numbers: str) -> str:
    """A formula and its numbers in the width of the terminal: numbers go to the next line, or lose their middle."""
    width = shutil.get_terminal_size().columns
    line = f"{head} = {numbers}"
    if len(line) <= width:
        return line
    return f"{head.rstrip()} =\n    {_shortened(numbers, width - 4)}"


def _shortened(numbers: str, width: int) -> str:
    """The numbers of an array that is too long for a line: its first and last ones, as NumPy summarizes."""
    if len(numbers) <= width or not numbers.startswith("["):
        return numbers
    words = numbers.split(" ")
    kept = (len(words) - 1) // 2
    while kept > 1 and len(" ".join([*words[:kept], "...", *words[-kept:]])) > width:
        kept -= 1
    return " ".join([*words[:kept], "...", *words[-kept:]])


def _forward_rows(graph: Graph, steps: Iterable[Step]) -> Iterator[tuple[str, ...]]:
    return ((step.formula, line_of(graph.values[step.output].forward)) for step in steps)


def seed(graph: Graph, backward: Backward) -> tuple[str, str]:
    """The gradient that a backward pass starts with: formula and numbers."""
    root = graph.values[backward.root].label
    return derivative(root, root), line_of(backward.gradients[backward.root])


def _backward_rows(graph: Graph, backward: Backward) -> Iterator[tuple[str, ...]]:
    yield seed(graph, backward)
    for _, rows in backward_steps(graph, backward):
        yield from rows


def backward_steps(graph: Graph, backward: Backward) -> Iterator[tuple[int, list[tuple[str, ...]]]]:
    """For each step of a backward pass its index and what it computes: rows of formulas and numbers that are equal."""
    sums = _Sums(graph, backward)
    for s in backward.steps:
        step = graph.steps[s]
        rows: list[tuple[str, ...]] = []
        for place in _reached(step, backward):
            rule = backward.rules[s, place]
            got = line_of(backward.received[s, place])
            rows.append(((rule.replace(" = ", " gets ", 1) if sums.of[step.inputs[place]] > 1 else rule), got))
            rows += sums.after(step, place)
        yield s, rows


def _reached(step: Step, backward: Backward) -> list[int]:
    return [place for place in range(len(step.inputs)) if (step.index, place) in backward.received]


class _Sums:
    """How often each value receives a gradient in a backward pass (`of`), and lines with the sums."""

    def __init__(self, graph: Graph, backward: Backward) -> None:
        self.graph = graph
        self.backward = backward
        self.parts = {index: list(parts) for index, parts in backward.elsewhere.items()}
        self.of = Counter(graph.steps[s].inputs[place] for s, place in backward.received)
        self.of.update({index: len(parts) for index, parts in backward.elsewhere.items()})

    def after(self, step: Step, place: int) -> Iterator[tuple[str, ...]]:
        """The line of the sum, once an input that is used more than once has received its last part."""
        index = step.inputs[place]
        parts = self.parts.setdefault(index, [])
        parts.append(self.backward.received[step.index, place])
        total = self.backward.gradients.get(index)
        if len(parts) < self.of[index] or total is None:
            return
        name = derivative(self.graph.values[self.backward.root].label, self.graph.values[index].label)
        before = self.backward.before_hooks.get(index)
        if len(parts) > 1:
            outside = len(self.backward.elsewhere.get(index, ()))
            terms = [_term(part.values) for part in parts] if not total.shape else [f"the sum of {len(parts)}"]
            note = f" ({outside} of them from steps that were not recorded)" if outside else ""
            yield name, " + ".join(terms) + note, line_of(before or total)
        if before is not None:
            yield f"{name} after hooks", line_of(total)


def _term(number: float) -> str:
    return short(number) if number >= 0 or math.isnan(number) else f"({short(number)})"


def _received(graph: Graph, backward: Backward, step: Step, place: int, uses: int) -> tuple[str, ...]:
    """The formula of what an input receives; of scalars also with the numbers in it; and the result."""
    rule = backward.rules[step.index, place]
    if uses > 1:
        rule = rule.replace(" = ", " gets ", 1)
    got = line_of(backward.received[step.index, place])
    local = step.local[place] if step.local else None
    upstream = backward.gradients.get(step.output)
    if local is None or local.form != "number" or local.numbers is None or upstream is None:
        return rule, got
    one, other = _scalar(upstream), _scalar(local.numbers)
    return rule, f"{_term(one)} * {_term(other)}", got


def _scalar(numbers: Numbers) -> float:
    """The only element of an array."""
    value = numbers.values
    while isinstance(value, list):
        value = value[0]
    return float(value)


def _local_lines(graph: Graph, step: Step, place: int) -> list[str]:
    """What is said of a local derivative that is not a number."""
    local: Local | None = step.local[place] if step.local else None
    if local is None or local.form == "number" or step.role == "moves":
        return []
    x, out = graph.values[step.inputs[place]], graph.values[step.output]
    name = derivative(out.label, x.label)
    formula = "" if local.formula is None else f" {local.formula}"
    kind = {"diagonal": "a diagonal Jacobian", "full": "a full Jacobian", "implicit": "a Jacobian"}[local.form]
    if local.numbers is None:
        return [f"{name}:{formula}, {kind} that is never formed".replace(":,", ":")]
    head = f"{name}:{formula}, {kind}".replace(":,", ":")
    if local.form == "full":
        head += f" of shape {local.numbers.shape}"
    return [f"{head}: {line_of(local.numbers)}"]
