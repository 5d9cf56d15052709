"""Builds the `Graph` of a recorder: numbers on the host, labels, formulas."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gradflow.drawing.formulas import Text, formula_of, local_of, rule_of, text_of
from gradflow.drawing.graph import Backward, Graph, Local, Numbers, Step, Value
from gradflow.drawing.numbers import short
from gradflow.drawing.places import Call
from gradflow.drawing.recorder import Applied, Pass, Recorder, Seen
from gradflow.drawing.summaries import Summary
from gradflow.nn.module import Module


def graph_of(recorder: Recorder, modules: Mapping[int, str], output: Seen | None = None) -> Graph:
    """The graph that a recorder has seen, which is complete. Waits for the devices.

    modules: their names, by id. output: the only output of the graph (default: all values that no
    step uses).
    """
    recorder.summaries.read()
    labels = _labels(recorder)
    values = [
        Value(i, label, seen.name, seen.kind, seen.shape, _read(seen.forward), None, seen.step, _read(seen.kept))
        for i, (seen, label) in enumerate(zip(recorder.values, labels, strict=True))
    ]
    boxes = _Boxes(modules)
    texts = [_text(step, recorder) for step in recorder.steps]
    steps = [
        _step(i, applied, text, labels, boxes)
        for i, (applied, text) in enumerate(zip(recorder.steps, texts, strict=True))
    ]
    passes = [_backward(each, recorder, texts, labels, values) for each in recorder.passes if each.gradients]
    for backward in passes:
        _show(backward, values, steps)
    used = {i for step in steps for i in step.inputs}
    outputs = tuple(
        i for i, seen in enumerate(recorder.values)
        if (seen is output if output is not None else seen.step is not None and i not in used)
    )  # fmt: skip
    return Graph(values, steps, outputs, recorder.note or "", passes)


def _read(forward: Summary | float | None) -> Numbers | None:
    if forward is None or isinstance(forward, Summary):
        return None if forward is None else forward.numbers
    number = float(forward)
    return Numbers((), "number", "", forward, number, 0.0, number, number)


def _labels(recorder: Recorder) -> list[str]:
    """What formulas call each value. After a change in place `x` is "x (2)"."""
    versions: Counter[str] = Counter()
    taken = {seen.name for seen in recorder.values}
    fresh = (name for n in itertools.count(1) if (name := f"v{n}") not in taken)
    labels: list[str] = []
    for seen in recorder.values:
        if seen.name is not None:
            versions[seen.name] += 1
            number = versions[seen.name]
            labels.append(seen.name if number == 1 else f"{seen.name} ({number})")
        elif isinstance(seen.forward, (int, float)):
            labels.append(short(seen.forward) if seen.forward >= 0 else f"({short(seen.forward)})")
        elif seen.gradient_of is not None:
            backward, index = seen.gradient_of
            labels.append(derivative(labels[next(iter(backward.gradients))], labels[index]))
        else:
            labels.append(next(fresh))
    return labels


def derivative(of: str, by: str) -> str:
    """The derivative of one value by another as text: "df/dx".

    >>> derivative("loss", "0.weight")
    'dloss/d(0.weight)'
    """
    return "/".join(f"d{label}" if label.isidentifier() else f"d({label})" for label in (of, by))


def _backward(
    each: Pass, recorder: Recorder, texts: list[Text], labels: list[str], values: list[Value]
) -> Backward:  # fmt: skip
    gradients = {i: _known(x) for i, x in each.gradients.items()}
    root = next(iter(gradients))
    received, rules = {}, {}
    for (s, argument), summary in each.received.items():
        applied = recorder.steps[s]
        place = _places(applied).index(argument)
        received[s, place] = _known(summary)
        rules[s, place] = _rule(applied, argument, texts[s], labels, values, labels[root])
    elsewhere = {i: tuple(map(_known, parts)) for i, parts in each.elsewhere.items()}
    before_hooks = {i: _known(x) for i, x in each.before_hooks.items()}
    return Backward(
        root, tuple(each.steps), gradients, received, rules, each.recorded, each.failed, elsewhere, before_hooks
    )


def _known(summary: Summary) -> Numbers:
    assert summary.numbers is not None
    return summary.numbers


def _text(applied: Applied, recorder: Recorder) -> Text:
    """The text of an operation. An axis is not told where it is all axes."""
    shapes = [None if i is None else recorder.values[i].shape for i in applied.inputs]
    first = next((shape for shape in shapes if shape is not None), None)
    options = applied.parameters
    if first is not None and options.get("axis") == tuple(range(len(first))):
        options = {**options, "axis": None}
    return text_of(applied.op, shapes, options)


def _places(applied: Applied) -> list[int]:
    """The arguments that are inputs of a step: all but those that are None."""
    return [i for i, index in enumerate(applied.inputs) if index is not None]


def _step(index: int, applied: Applied, text: Text, labels: list[str], boxes: _Boxes) -> Step:
    names = [None if i is None else labels[i] for i in applied.inputs]
    out, options = labels[applied.output], applied.parameters
    return Step(
        index,
        applied.op.name,
        text.symbol,
        tuple([i for i in applied.inputs if i is not None]),
        applied.output,
        f"{out} = {formula_of(text, names, out, options)}",
        local=tuple([_local(applied, i, text, names, out) for i in _places(applied)]),
        role=text.role,
        module=boxes.path(applied.place.calls),
        recorded_by=applied.recorded_by,
        line=applied.place.line,
        options=_options(options),
    )


def _local(applied: Applied, argument: int, text: Text, names: list[str | None], out: str) -> Local | None:
    found = applied.local[argument] if applied.local else None
    if found is None:
        return None
    form, summary = found
    formula = local_of(text, argument, names, out, applied.parameters)
    return Local(formula, form, None if summary is None else summary.numbers)


def _options(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters that a reader understands: numbers, strings, and tuples of them."""
    plain = (bool, int, float, str, tuple, list, type(None))
    return {name: value for name, value in parameters.items() if isinstance(value, plain)}


def _show(backward: Backward, values: list[Value], steps: list[Step]) -> None:
    """Set the gradients, rules and order of the steps from a backward pass."""
    for index, numbers in backward.gradients.items():
        values[index].gradient = numbers
    for order, s in enumerate(backward.steps):
        step = steps[s]
        step.backward = order
        step.received = tuple([backward.received.get((s, i)) for i in range(len(step.inputs))])
        step.rule = tuple([backward.rules.get((s, i)) for i in range(len(step.inputs))])


def _rule(applied: Applied, argument: int, text: Text, labels: list[str], values: list[Value], root: str) -> str:
    """What the backward pass computes for an argument of a step, as a formula."""
    names = [None if i is None else labels[i] for i in applied.inputs]
    out, index = labels[applied.output], applied.inputs[argument]
    assert index is not None
    upstream = derivative(root, out)
    rule = rule_of(text, argument, names, out, upstream, applied.parameters)
    if rule is None:
        rule = f"{upstream} * {derivative(out, labels[index])}"
    elif _is_broadcast(applied, argument, text, values):
        rule = f"sum({rule})"
    return f"{derivative(root, labels[index])} = {rule}"


def _is_broadcast(applied: Applied, argument: int, text: Text, values: list[Value]) -> bool:
    """Whether an elementwise operation, or a product of batches, broadcast an input: what it gets is then summed."""
    shapes = [() if i is None else values[i].shape for i in applied.inputs]
    x, out = shapes[argument], values[applied.output].shape
    if applied.op.name == "matmul":
        matrix = sum(min(len(shape), 2) - 1 for shape in shapes)  # the axes of the result that are no batch
        x, out = x[:-2], out[: len(out) - matrix]
    elif text.rules != (None,):
        return False
    padded = (1,) * (len(out) - len(x)) + x
    return padded != out and len(padded) == len(out) and all(n in (1, m) for n, m in zip(padded, out, strict=True))


class _Boxes:
    """The names of the boxes that modules are: "0 (Linear)"; for a second call of a module "0 (Linear), call 2"."""

    def __init__(self, modules: Mapping[int, str]) -> None:
        self.modules = modules
        self.calls: dict[tuple[int, ...], list[int]] = {}
        self.names: dict[tuple[int, int], str] = {}  # by a module and the one that called it

    def path(self, calls: tuple[Call, ...]) -> tuple[str, ...]:
        """The names of the boxes around a step, the outermost first."""
        names = []
        outer: Module | None = None
        within: tuple[int, ...] = ()
        for call in calls:
            key = (*within, id(call.module))
            numbers = self.calls.setdefault(key, [])
            if call.number not in numbers:
                numbers.append(call.number)
            again = numbers.index(call.number)
            within = (*key, call.number)
            name = "checkpoint" if call.module is None else self._name_of(call.module, outer)
            outer = call.module or outer
            names.append(f"{name}, call {again + 1}" if again else name)
        return tuple(names)

    def _name_of(self, module: Module, outer: Module | None) -> str:
        key = id(module), id(outer)
        if key not in self.names:
            self.names[key] = self._name(module, outer)
        return self.names[key]

    def _name(self, module: Module, outer: Module | None) -> str:
        inside = () if outer is None else outer.named_modules()
        path = next((path for path, inner in inside if inner is module), None) or self.modules.get(id(module))
        kind = type(module).__name__
        return f"{path} ({kind})" if path else kind
