"""A computational graph as a page of HTML: one file, without a network, that folds, searches and plays the passes."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import Any

from gradflow.drawing.building import derivative
from gradflow.drawing.colors import DARK, LIGHT
from gradflow.drawing.graph import Graph, Local, Numbers, Step, Value
from gradflow.drawing.numbers import describe, short, signature, warning
from gradflow.drawing.page.folding import Folding, fold
from gradflow.drawing.page.playing import Play
from gradflow.drawing.text import ROLES

_WIDEST_ON_EDGE = 30
_MOST_LINES_ON_EDGE = 3
_MOST_ON_EDGE = 16
"""The characters, the lines and the elements of an array that an edge shows in full."""
_MARK = "\N{WARNING SIGN}\N{VARIATION SELECTOR-15} "
"""What stands before numbers that are not finite."""

_FORMS = {"number": "", "diagonal": "diagonal Jacobian", "full": "full Jacobian", "implicit": "Jacobian, never formed"}

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
"""Control characters, line ends, marks that turn the direction of the text around them, lone surrogates."""


def to_html(graph: Graph, *, local: bool = False, roles: bool = False) -> str:
    """The page of a graph, a whole HTML document that loads nothing; equal graphs give equal text.

    It draws the graph with forward values in green and gradients in red. A graph of more than 150 nodes opens folded
    into its modules, or into groups of consecutive steps; a click opens a group. The arrow keys play the forward and
    the backward pass step by step. Below the picture is a table of all steps.

    local, roles: whether the page shows the local derivatives and the parts of the steps ("switches") when it opens; it
    has a switch for each.
    """
    play = Play(graph)
    title = _clean(graph.title) or "Computational graph"
    script = "".join(_asset(name) for name in ("layout.js", "picture.js", "page.js"))
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    )
    rows = "".join(
        f'<tr class="{"backward" if moment.turn else "forward"}"><th scope="row">{i}</th>'
        + "".join(f"<td>{escape(_clean(cell))}</td>" for cell in play.row(moment))
        + "</tr>\n"
        for i, moment in enumerate(play.moments, 1)
    )
    replacements = {
        "title": escape(title),
        "policy": policy,
        "style": _colors() + _asset("page.css"),
        "counts": escape(_counts(graph)),
        "local": " checked" if local else "",
        "roles": " checked" if roles else "",
        "rows": rows,
        "data": _json(_data(graph, fold(graph), play)),
        "script": script,
    }
    return re.sub("{{([a-z]+)}}", lambda found: replacements[found[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return (files("gradflow.drawing.page") / name).read_text("utf-8")


def _colors() -> str:
    """The two palettes as CSS variables. Paper gets the light one."""
    light, dark = ("".join(f"--{name}: {color}; " for name, color in palette.items()) for palette in (LIGHT, DARK))
    return f":root {{ {light}}}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"


def _json(data: Any) -> str:
    """The data as JSON that can stand in a script element: in ASCII, and without "<"."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub(" ", text)


def _counts(graph: Graph) -> str:
    """What the graph holds, in words."""
    nouns = {"input": "input", "parameter": "parameter", "constant": "constant"}
    counts = [(sum(v.step is None and v.kind == kind for v in graph.values), noun) for kind, noun in nouns.items()]
    counts.append((len(graph.steps), "step"))
    return ", ".join(f"{n:,} {noun}{'' if n == 1 else 's'}" for n, noun in counts if n)


def _on_edge(numbers: Numbers | None, with_shape: bool) -> list[str]:
    """The lines that an edge shows: all numbers if they fit, else shape, mean and standard deviation."""
    if numbers is None:
        return []
    alarm = warning(numbers)
    lines = describe(numbers) if numbers.values is not None and math.prod(numbers.shape) <= _MOST_ON_EDGE else []
    if not 0 < len(lines) <= _MOST_LINES_ON_EDGE or max(map(len, lines)) > _WIDEST_ON_EDGE:
        lines = [f"{numbers.shape} {numbers.dtype}"] if with_shape else []
        lines += [f"mean {short(numbers.mean)} std {short(numbers.deviation)}"] if numbers.mean is not None else []
    if alarm is None:
        return lines
    return [f"{_MARK}{alarm}", *lines] if numbers.shape else [f"{_MARK}{line}" for line in lines]


def _in_card(numbers: Numbers) -> list[str]:
    alarm = warning(numbers)
    marked = [f"{_MARK}{alarm}"] if alarm else []
    what = signature(numbers) if numbers.shape else f"{numbers.dtype} {numbers.device}".rstrip()
    return [*describe(numbers), *marked, what]


def _data(graph: Graph, folding: Folding, play: Play) -> dict[str, Any]:
    """What the script reads: groups, values, steps and moments, with all text that it shows."""
    return {
        "groups": [
            {"name": _clean(g.name), "kind": g.kind, "parent": g.parent, "open": g.open, "steps": (g.first, g.last)}
            for g in folding.groups
        ],
        "values": [_value_data(v, folding, play) for v in graph.values],
        "steps": [
            {
                "operation": _clean(s.operation),
                "symbol": _clean(s.symbol),
                "inputs": s.inputs,
                "output": s.output,
                "group": folding.of_steps[s.index],
                "role": s.role or "",
                "local": [_local(each) for each in (*s.local, *(None,) * len(s.inputs))][: len(s.inputs)],
                "received": [
                    _timed(
                        (at, end, " ".join(_on_edge(numbers, False)[:1]))
                        for at, end, numbers in play.received(s.index, k)
                    )
                    for k in range(len(s.inputs))
                ],
                "card": _step_card(graph, s),
            }
            for s in graph.steps
        ],
        "outputs": graph.outputs,
        "moments": [(m.turn, m.step) for m in play.moments],
    }


def _value_data(value: Value, folding: Folding, play: Play) -> dict[str, Any]:
    gradients = list(play.gradients(value.index))
    if not gradients and value.gradient is not None:  # of a pass that was not seen
        gradients = [(0, None, value.gradient)]
    entry = {
        "name": _clean(value.name or ""),
        "label": _clean(value.label),
        "kind": value.kind,
        "step": value.step,
        "forward": _on_edge(value.forward, True),
        "gradient": _timed((at, end, _on_edge(numbers, value.forward is None)) for at, end, numbers in gradients),
        "at": 0 if value.step is None else play.at[0, value.step],
        "bad": any(n is not None and n.nonfinite for n in (value.forward, value.gradient)),
    }
    if value.step is None:
        heading = value.kind if value.name is None else f"{value.name}: {value.kind}"
        entry["bare"] = value.forward is not None and value.forward.dtype == "number" and value.name is None
        entry |= {"group": folding.of_values[value.index], "card": [_clean(heading), *_numbers_rows(value)]}
    return entry


def _timed(parts: Iterable[tuple[int, int | None, Any]]) -> list[tuple[int, int | None, Any]]:
    """From when to when each of these shows, in the order of the moments: until its end, or the next one."""
    parts = list(parts)
    following: list[int | None] = [at for at, _, _ in parts[1:]]
    return [
        (at, end if later is None else later if end is None else min(later, end), part)
        for (at, end, part), later in zip(parts, [*following, None], strict=False)
    ]


def _local(local: Local | None) -> str:
    """A local derivative, for the edge of its input."""
    if local is None:
        return ""
    number = short(local.numbers.values) if local.numbers is not None and local.form == "number" else None
    parts = [part for part in (local.formula, number) if part is not None]
    return _clean(" = ".join(dict.fromkeys(parts)) or _FORMS[local.form])


def _numbers_rows(value: Value) -> list[Any]:
    shown = (("value", value.forward), ("gradient", value.gradient))
    return [[term, _in_card(numbers)] for term, numbers in shown if numbers is not None]


def _step_card(graph: Graph, step: Step) -> list[Any]:
    """A heading, and rows of a term and its lines; the script adds what the passes compute, from the table."""
    out = graph.values[step.output].label
    local = []
    for i, each in zip(step.inputs, step.local, strict=False):
        if each is not None:
            local.append(f"{derivative(out, graph.values[i].label)} = {_local(each)}")
            if each.form != "number":
                local += [_FORMS[each.form], *(describe(each.numbers) if each.numbers is not None else ())]
    rule_of = None if step.recorded_by is None else graph.steps[step.recorded_by]
    rows: dict[str, list[str]] = {
        "local derivative": local,
        "role": [f"{step.role}: {ROLES[step.role]}"] if step.role else [],
        "options": [f"{name}={value!r}" for name, value in step.options.items()],
        "module": [" / ".join(step.module)] if step.module else [],
        "rule of": [] if rule_of is None else [f"step {rule_of.index + 1}, {rule_of.operation}"],
        "code": [step.line] if step.line else [],
    }
    others = [[term, [_clean(line) for line in lines]] for term, lines in rows.items() if lines]
    heading = f"step {step.index + 1}: {step.operation}"
    return [_clean(heading), *_numbers_rows(graph.values[step.output]), *others]
