"""The markup of a report: text made safe for HTML, numbers as text, tables."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

NONE = "\N{EN DASH}"
"""What a cell shows where there is no number."""

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"

_NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"
LEVEL = f"95{_NARROW_SPACE}%"
"""The confidence level of intervals."""

_LONGEST_NAME = 120


class Number(str):
    """The markup of a table's cell that holds a number, so it is aligned to the right."""


def text(value: Any) -> str:
    """Return the markup of any text from outside: escaped, on one line, without control characters.

    >>> text("<b>\\n\\x00 x")
    '&lt;b&gt; x'
    """
    words = " ".join("".join(c if unicodedata.category(c) not in ("Cc", "Cs") else " " for c in str(value)).split())
    return escape(words)


def name(value: Any) -> str:
    """Return the markup of a name in any script, whose direction does not affect the text around it; cut if long."""
    value = str(value)
    return f"<bdi>{text(value if len(value) <= _LONGEST_NAME else value[: _LONGEST_NAME - 1] + '…')}</bdi>"


def number(value: float, like: Sequence[float] = ()) -> str:
    """Return a number with three significant digits, or with as many decimals as the largest of `like` gets.

    >>> number(1234.5), number(0.06789), number(-0.5, like=[12.0])
    ('1,234', '0.0679', '−0.5')
    """
    if not math.isfinite(value):
        return NONE if math.isnan(value) else f"{value:.0f}"
    largest = max((abs(v) for v in like or (value,) if math.isfinite(v)), default=0.0)
    decimals = 2 - math.floor(math.log10(largest)) if largest else 0
    shown = f"{value:,.{max(0, decimals)}f}" if largest < 1e7 and decimals <= 6 else f"{value:.3g}"
    return shown.replace("-", MINUS)


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal; a dash if there is none.

    >>> percent(0.5)
    '50.0\\u202f%'
    """
    return NONE if math.isnan(share) else f"{100 * share:.1f}{_NARROW_SPACE}%"


def count(n: int, noun: str = "") -> str:
    """Return a number of things in words, with the plural in -s, or -es.

    >>> count(1797, "sample"), count(1, "class"), count(2, "class")
    ('1,797 samples', '1 class', '2 classes')
    """
    plural = "" if n == 1 or not noun else ("es" if noun.endswith("s") else "s")
    return f"{n:,} {noun}{plural}".rstrip()


def duration(seconds: float) -> str:
    """Return a time in words.

    >>> duration(4.21), duration(754), duration(7500)
    ('4.2 s', '12 min 34 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 0.1 else "less than 0.1 s"
    minutes, rest = divmod(round(seconds), 60)
    hours, over = divmod(minutes, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{hours} h {over} min"


def listed(items: Sequence[str]) -> str:
    """Return the items as a list in a sentence."""
    comma = "," if len(items) > 2 else ""
    return f"{', '.join(items[:-1])}{comma} and {items[-1]}" if len(items) > 1 else items[0]


def table(label: str, head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Return a table whose first column holds the headers of the rows, in a box that scrolls if it is too wide.

    label: what it shows, for screen readers. head: the markup of the columns' headers. rows: the markup of the cells.
    kind: the CSS class of the table; "tall" limits its height.
    """
    rows = list(rows)
    numbers = [isinstance(cell, Number) for cell in rows[0]] if rows else [False] * len(head)
    parts = ["<thead><tr>"]
    parts += [f'<th scope="col"{_right(is_n)}>{cell}</th>' for cell, is_n in zip(head, numbers, strict=True)]
    parts.append("</tr></thead><tbody>")
    for first, *cells in rows:
        parts.append(f'<tr><th scope="row"{_right(isinstance(first, Number))}>{first}</th>')
        parts += [f"<td{_right(isinstance(cell, Number))}>{cell}</td>" for cell in cells]
        parts.append("</tr>")
    return scrolling(label, f'<table class="{kind}">{"".join(parts)}</tbody></table>', "tall" if kind == "tall" else "")


def scrolling(label: str, content: str, kind: str = "") -> str:
    """Return the content in a box that scrolls, with the keyboard too."""
    return f'<div class="{f"scroll {kind}".strip()}" tabindex="0" role="region" aria-label="{label}">{content}</div>'


def facts(label: str, pairs: Iterable[tuple[str, Any]]) -> str:
    """Return a table of names and their values."""
    return table(label, ["name", "value"], [[text(k.replace("_", " ")), _value(v)] for k, v in pairs], "facts")


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return text(", ".join(map(str, value))) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else text(value) or "none"


def _right(is_number: bool) -> str:
    return ' class="n"' if is_number else ""
