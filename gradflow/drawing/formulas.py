"""Each operation as text: its symbol, its formula, its local derivatives, and what it does to a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from gradflow.drawing.graph import Role


class Text(NamedTuple):
    """How an operation is written.

    symbol: what to draw.
    formula: its value in terms of its arguments {0}, {1}, ... and options.
    local: for each argument the local derivative, in terms of the arguments and the result {out}.
    role: what it does to a gradient.
    """

    symbol: str
    formula: str
    local: Sequence[str | None] = ()
    role: Role | None = None


TEXTS: dict[str, Text] = {
    "add": Text("+", "{0} + {1}", ("1", "1"), "distributes"),
    "subtract": Text("-", "{0} - {1}", ("1", "-1"), "distributes"),
    "multiply": Text("*", "{0} * {1}", ("{1}", "{0}"), "switches"),
}


def text_of(op: str, arity: int) -> Text:
    """The text of an operation, a generic one if the table has none."""
    found = TEXTS.get(op)
    if found is None:
        arguments = ", ".join(f"{{{i}}}" for i in range(arity))
        found = Text(op, f"{op}({arguments})")
    return found


def filled(template: str, labels: Sequence[str], out: str, options: dict[str, Any]) -> str:
    """A template with the names of values in it."""
    return template.format(*labels, out=out, **options)
