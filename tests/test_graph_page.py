"""The page of a computational graph: what is in it, and what it does in a browser."""

from __future__ import annotations

import json
import re
from typing import Any

import gradflow as gf
from gradflow.drawing.graph import Graph
from gradflow.drawing.page import to_html
from gradflow.drawing.tracing import trace


def scalar(value: float) -> gf.Tensor:
    return gf.tensor(value, requires_grad=True)


def product() -> Graph:
    """Example 2: f = (x + y) * z."""
    x, y, z = scalar(-2.0), scalar(5.0), scalar(-4.0)
    with trace() as traced:
        q = x + y
        f = q * z
        f.backward()
    return traced.graph


def data_of(page: str) -> Any:
    (data,) = re.findall('<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(data)


def test_values_and_gradients_of_the_page() -> None:
    values = data_of(to_html(product()))["values"]
    assert {v["name"]: (v["forward"], [lines for _, _, lines in v["gradient"]]) for v in values} == {
        "x": (["-2"], [["-4"]]), "y": (["5"], [["-4"]]), "z": (["-4"], [["3"]]),
        "q": (["3"], [["-4"]]), "f": (["-12"], [["1"]]),
    }  # fmt: skip


def test_pages_load_nothing_and_are_equal_for_equal_graphs() -> None:
    page = to_html(product())
    assert page == to_html(product())
    assert len(page) < 100_000
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<link|<img|src=|@import|url\(", page)
