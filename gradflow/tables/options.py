"""How messages name the options that change how a table is read and understood: as their reader would type them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Style = Literal["arguments", "flags", "none"]
_STYLE: ContextVar[Style] = ContextVar("style", default="arguments")


@contextmanager
def options_as(style: Style) -> Iterator[None]:
    """In a `with`, or as a decorator, let messages name options in another style.

    style: "arguments" of Python, as is the default; "flags" of the command line; or "none", where there are no options.
    """
    token = _STYLE.set(style)
    try:
        yield
    finally:
        _STYLE.reset(token)


def option(name: str, value: str, effect: str = "") -> str:
    """Return " (OPTION EFFECT)", to be added to a message; "" where there are no options.

    name: of the option. value: what it is set to; for `ignore`, `categorical` and `numeric`, the name of a column.
    effect: what it does, if the message does not say so.

    >>> from gradflow.tables.options import option, options_as
    >>> "leave it out" + option("ignore", "first name")
    "leave it out (ignore=['first name'])"
    >>> with options_as("flags"):
    ...     option("ignore", "first name"), option("task", "values", "predicts a number")
    (" (--ignore 'first name')", ' (--task values predicts a number)')
    """
    style, lists = _STYLE.get(), name in ("ignore", "categorical", "numeric")
    if style == "none":
        return ""
    if style == "flags":
        special = lists and (set(value) & {",", '"'} or value != value.strip())
        quoted = '"' + value.replace('"', '""') + '"' if special else value
        typed = f"--{name} {shlex.quote(quoted)}"
    else:
        typed = f"{name}={[value] if lists else value!r}"
    return f" ({typed} {effect})" if effect else f" ({typed})"
