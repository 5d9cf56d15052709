"""Labels of DOT in Graphviz's HTML: lines of text around a line, and the legend of a picture."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from gradflow.drawing.colors import LIGHT
from gradflow.drawing.graph import Graph
from gradflow.text import printable

SANS = "Helvetica, Arial, Liberation Sans, Apple SD Gothic Neo, Malgun Gothic, Noto Sans CJK KR, sans-serif"
MONO = "DejaVu Sans Mono, Menlo, Consolas, Liberation Mono, D2Coding, Noto Sans Mono CJK KR, monospace"
"""Families of fonts whose characters are equally wide, so that a picture fits its text where it was not made."""
_LONGEST, _LONGEST_TITLE = 36, 100
"""The characters of a name or formula in a picture, and of its title; a longer one loses its middle."""


@dataclass(frozen=True)
class Span:
    """A piece of text of one look. color, background: names of colours in `gradflow.drawing.colors`."""

    text: str
    color: str = "ink"
    size: int = 12
    mono: bool = False
    bold: bool = False
    background: str | None = None

    def html(self) -> str:
        if not self.text:  # Graphviz takes no empty element
            return ""
        escaped = html.escape(self.text).replace("\\", "\\\\").replace(" ", "&#160;")
        face = f' FACE="{MONO}"' * self.mono
        font = f'<FONT COLOR="{LIGHT[self.color]}" POINT-SIZE="{self.size}"{face}>{escaped}</FONT>'
        return f"<B>{font}</B>" if self.bold else font


Line = Sequence[Span]


def cut(text: str, longest: int = _LONGEST) -> str:
    """A text on one line, without its middle if it is longer than so many characters."""
    text = printable(text)
    half = longest // 2
    return text if len(text) <= longest else f"{text[: half - 1]}…{text[-half:]}"


def width(line: Line) -> float:
    """The points that a line needs at most, or about; Graphviz knows better only where it finds the fonts."""
    return sum(text.size * sum(_em(c, text.mono) for c in text.text) for text in line)


def _em(character: str, mono: bool) -> float:
    if ord(character) > 0xFFFF:
        return 1.3  # emoji
    return 1.0 if unicodedata.east_asian_width(character) in "WF" else 0.61 if mono else 0.5


def table(above: Sequence[Line], below: Sequence[Line] = (), *, line: bool = True, align: str = "LEFT") -> str:
    """Lines of text; with `line`, a drawn line with the port "line" between those above and those below it."""
    rule = f'<TR><TD PORT="line" HEIGHT="1" CELLPADDING="0" BGCOLOR="{LIGHT["line"]}"></TD></TR>' if line else ""
    rows = ["".join(_row(texts, align) for texts in part) for part in (above, below)]
    head = '<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="1">'
    return f"{head}{rows[0]}{rule}{rows[1]}</TABLE>"


def _row(line: Line, align: str) -> str:
    background = f' BGCOLOR="{LIGHT[line[0].background]}"' if line[0].background else ""
    return (
        f'<TR><TD ALIGN="{align}" WIDTH="{max(math.ceil(width(line)) + 2, 16)}"{background}>'
        f"{''.join(text.html() for text in line)}</TD></TR>"
    )


def legend(graph: Graph) -> str:
    """What the shapes and colours mean, under the title of the graph."""
    kinds = dict.fromkeys(value.kind for value in graph.values if value.step is None)
    pills = "".join(f'<TD CELLPADDING="4">{_pill(kind)}</TD>' for kind in kinds)
    step = _framed(Span("operation", "ink", 10), "ROUNDED", LIGHT["step"])
    value = table([[Span("forward value", "forward", 10)]], [[Span("gradient", "gradient", 10)]], align="CENTER")
    span = Span(cut(graph.title, _LONGEST_TITLE), bold=True)
    title = f'<TR><TD ALIGN="LEFT" COLSPAN="9">{span.html()}</TD></TR>' * bool(graph.title)
    head = '<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="6" CELLPADDING="0">'
    return f'<{head}{title}<TR><TD CELLPADDING="4">{step}</TD>{pills}<TD>{value}</TD></TR></TABLE>>'


def _pill(kind: str) -> str:
    style = {"input": "ROUNDED", "parameter": "SOLID", "constant": "ROUNDED,DASHED"}[kind]
    return _framed(Span(kind, "ink", 10), style, LIGHT["parameter" if kind == "parameter" else "page"])


def _framed(text: Span, style: str, fill: str) -> str:
    return (
        f'<TABLE BORDER="1" CELLBORDER="0" CELLPADDING="3" CELLSPACING="0" STYLE="{style}" COLOR="{LIGHT["line"]}" '
        f'BGCOLOR="{fill}"><TR><TD WIDTH="{math.ceil(width([text])) + 8}">{text.html()}</TD></TR></TABLE>'
    )
