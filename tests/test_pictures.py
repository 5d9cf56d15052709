"""Pictures of computational graphs: what they show, that all of it is legible, and names and numbers of any kind."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

import gradflow as gf
from gradflow.drawing.dot import to_dot
from gradflow.drawing.graph import Graph
from gradflow.drawing.svg import to_svg
from gradflow.drawing.tracing import trace

SVG = "{http://www.w3.org/2000/svg}"
needs_graphviz = pytest.mark.skipif(
    importlib.util.find_spec("pygraphviz") is None, reason='pygraphviz, of the extra "viz", is not installed'
)


def leaf(values: object) -> gf.Tensor:
    return gf.tensor(values, requires_grad=True)


def linear() -> Graph:
    w, x, b = leaf(-2.0), leaf(5.0), leaf(3.0)
    with trace() as traced:
        g = w * x
        f = g + b
        f.backward()
    return traced.graph


def sum_times() -> Graph:
    x, y, z = leaf(-2.0), leaf(5.0), leaf(-4.0)
    with trace() as traced:
        q = x + y
        f = q * z
        f.backward()
    return traced.graph


def shown(root: ET.Element) -> dict[str, tuple[str, str]]:
    """By the label of each value, its forward value and its gradient as drawn, lines joined by spaces."""
    found = {}
    for group in root.iter(f"{SVG}g"):
        if "value" in group.get("class", "").split():
            words = [
                " ".join(
                    " ".join((text.text or "").split())
                    for text in group.iter(f"{SVG}text")
                    if color in text.get("class", "").split()
                )
                for color in ("forward", "gradient")
            ]
            found[group.get("data-name", "")] = (words[0], words[1])
    return found


@needs_graphviz
@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (linear, {"w": ("-2", "5"), "x": ("5", "-2"), "b": ("3", "1"), "g": ("-10", "1"), "f": ("-7", "1")}),
        (sum_times, {"x": ("-2", "-4"), "y": ("5", "-4"), "z": ("-4", "3"), "q": ("3", "-4"), "f": ("-12", "1")}),
    ],
)
def test_the_picture_shows_the_values_and_gradients(
    graph: Callable[[], Graph], expected: dict[str, tuple[str, str]]
) -> None:
    assert shown(ET.fromstring(to_svg(graph()))) == expected


def test_dot_needs_nothing_installed() -> None:
    assert to_dot(linear()).startswith("digraph {")
