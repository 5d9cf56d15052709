"""The page of a computational graph: what is in it, and what it does in a browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, MISSING, Browser, browser

import gradflow as gf
from gradflow import nn
from gradflow.drawing.graph import Graph
from gradflow.drawing.page import to_html
from gradflow.drawing.page.folding import MOST_OPEN, fold
from gradflow.drawing.page.playing import Play
from gradflow.drawing.tracing import trace

HOSTILE = {
    "</script><script>document.title='taken'</script>": 1.0, '"><img src=x onerror=document.title="taken">': 2.0,
    "<!-- <b>&amp; 'x'": 3.0, "한글_변수": 4.0, "👩‍👩‍👧‍👦": 5.0, "\u202etfel ot thgir": 6.0,
    "\u2028 \ud800": 7.0, "long" * 50: 8.0,
}  # fmt: skip


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


def neuron() -> Graph:
    """Example 3: a sigmoid neuron of gates."""
    w0, x0, w1, x1, w2 = (scalar(v) for v in (2.0, -1.0, -3.0, -2.0, -3.0))
    with trace() as traced:
        dot = w0 * x0 + w1 * x1 + w2
        f = 1 / (1 + gf.exp(-dot))
        f.backward()
    return traced.graph


def shared() -> Graph:
    """A value that is used three times: x, x and y in x * x + x * y."""
    x, y = scalar(3.0), scalar(2.0)
    with trace() as traced:
        f = x * x + x * y
        f.backward()
    return traced.graph


def vectors() -> Graph:
    """Example 6: f = ||W x||^2."""
    W, x = gf.tensor([[0.1, 0.5], [-0.3, 0.8]], requires_grad=True), gf.tensor([0.2, 0.4], requires_grad=True)
    with trace() as traced:
        q = W @ x
        f = (q * q).sum()
        f.backward()
    return traced.graph


def second_order() -> Graph:
    x = scalar(2.0)
    with trace() as traced:
        f = x * x * x
        f.backward(create_graph=True)
        slope = x.grad
        assert slope is not None
        x.grad = None
        slope.backward()
    return traced.graph


def network(layers: int, width: int = 3) -> Graph:
    gf.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(layers) for layer in (nn.Linear(width, width), nn.Tanh())))
    x = gf.ones((4, width))
    with trace() as traced:
        loss = (model(x) ** 2).mean()
        loss.backward()
    return traced.graph


def steps(count: int) -> Graph:
    x = value = scalar(0.5)
    with trace(x=x) as traced:
        for i in range(count):
            value = gf.tanh(value) if i % 2 else value * x
        value.backward()
    return traced.graph


def not_finite() -> Graph:
    x = gf.tensor([float("nan"), 1.0], requires_grad=True)
    with trace() as traced:
        y = x * x
        f = y.sum()
        f.backward()
    return traced.graph


def hostile() -> Graph:
    values = {name: scalar(v) for name, v in HOSTILE.items()}
    with trace(**values) as traced:
        product = scalar(1.0)
        for value in values.values():
            product = product * value
        product.backward()
    return traced.graph


GRAPHS: dict[str, Callable[[], Graph]] = {
    "product": product, "neuron": neuron, "shared": shared, "vectors": vectors, "second order": second_order,
    "network": lambda: network(2), "deep network": lambda: network(60), "steps": lambda: steps(400),
    "not finite": not_finite, "hostile": hostile,
}  # fmt: skip


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: to_html(graph()) for name, graph in GRAPHS.items()}


def data_of(page: str) -> Any:
    (data,) = re.findall('<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(data)


class Document(HTMLParser):
    """The tags of a page and the cells of its table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_values_and_gradients(pages: dict[str, str]) -> None:
    values = data_of(pages["product"])["values"]
    assert {v["name"]: (v["forward"], [lines for _, _, lines in v["gradient"]]) for v in values} == {
        "x": (["-2"], [["-4"]]), "y": (["5"], [["-4"]]), "z": (["-4"], [["3"]]),
        "q": (["3"], [["-4"]]), "f": (["-12"], [["1"]]),
    }  # fmt: skip


def test_the_table_has_each_step_of_both_passes(pages: dict[str, str]) -> None:
    head, *rows = Document(pages["product"]).rows
    assert head == ["step", "pass", "operation", "computes", "where"]
    assert [row[:4] for row in rows] == [
        ["1", "forward", "add", "q = x + y = 3"],
        ["2", "forward", "multiply", "f = q * z = -12"],
        ["3", "backward", "start", "df/df = 1"],
        ["4", "backward", "multiply", "df/dq = df/df * z = -4; df/dz = df/df * q = 3"],
        ["5", "backward", "add", "df/dx = df/dq * 1 = -4; df/dy = df/dq * 1 = -4"],
    ]
    assert all(re.fullmatch(r"test_graph_page\.py:\d+", row[4]) for row in rows if row[2] != "start")


def test_a_value_used_more_than_once_sums_what_comes_back(pages: dict[str, str]) -> None:
    parts = "; ".join(row[3] for row in Document(pages["shared"]).rows)
    assert len(re.findall(r"df/dx gets [^;]* = [23]\b", parts)) == 3
    assert re.search(r"df/dx = (3 \+ 3 \+ 2|2 \+ 3 \+ 3) = 8", parts)
    data = data_of(pages["shared"])
    received = [part for step in data["steps"] for parts in step["received"] for part in parts]
    assert sorted(text for _, _, text in received) == ["2", "3", "3"]
    ((arrives, _, _),) = next(value for value in data["values"] if value["name"] == "x")["gradient"]
    assert arrives == max(at for at, _, _ in received) > min(at for at, _, _ in received)


def test_each_backward_pass_is_played(pages: dict[str, str]) -> None:
    data, (_, *rows) = data_of(pages["second order"]), Document(pages["second order"]).rows
    turns = [turn for turn, _ in data["moments"]]
    assert turns == [0, 0, *[1] * turns.count(1), *[0] * (turns.count(0) - 2), *[2] * turns.count(2)]
    assert [row[1] for row in rows] == [("forward", "backward 1", "backward 2")[turn] for turn in turns]
    x = data["values"][0]
    assert [(end is None, lines) for _, end, lines in x["gradient"]] == [
        (False, ["12"]),
        (True, ["12"]),
    ]  # 3 x x and 6 x


@pytest.mark.parametrize("name", GRAPHS)
def test_pages_load_nothing_and_are_equal_for_equal_graphs(pages: dict[str, str], name: str) -> None:
    page = pages[name]
    assert page == to_html(GRAPHS[name]())
    assert len(page) < 500_000
    tags = Document(page).tags
    assert tags.count("script") == 2
    assert not {"link", "img", "iframe", "object"} & set(tags)
    assert "default-src 'none'" in page
    page.encode()


@pytest.mark.parametrize(("made", "size"), [(network, 60), (steps, 400), (steps, 2000)])
def test_a_large_graph_folds_into_groups_of_consecutive_steps(made: Callable[[int], Graph], size: int) -> None:
    folding = fold(made(size))
    for i, group in enumerate(folding.groups):
        held = [s for s, inside in enumerate(folding.of_steps) if inside == i]
        inner = [g for g in folding.groups if g.parent == i]
        assert len(held) + len(inner) <= 24
        spans = sorted([(g.first, g.last) for g in inner] + [(s, s) for s in held])
        assert [first for first, _ in spans] == [group.first, *(last + 1 for _, last in spans[:-1])]
        assert spans[-1][1] == group.last
    shown = [i for i, g in enumerate(folding.groups) if g.open]
    assert 8 < sum(g.parent in shown for g in folding.groups) <= 41


def test_modules_are_groups() -> None:
    folding = fold(network(60))
    assert {"model (Sequential)", "0 (Linear)", "119 (Tanh)"} <= {group.name for group in folding.groups}
    small = fold(network(2))
    assert all(group.open for group in small.groups)
    graph = network(2)
    for value in graph.values:
        if value.kind == "parameter":
            name = small.groups[small.of_values[value.index]].name
            assert value.name is not None
            assert name == f"{value.name.split('.')[-2]} (Linear)"
        if value.name == "x":
            assert small.of_values[value.index] == 0


def test_recorded_steps_are_a_group_of_their_own() -> None:
    graph = second_order()
    folding = fold(graph)
    kinds = [folding.groups[i].kind for i in folding.of_steps]
    assert kinds == ["graph" if step.recorded_by is None else "order" for step in graph.steps]


def test_unfolded_up_to_the_limit() -> None:
    assert all(group.open for group in fold(steps(MOST_OPEN - 1)).groups)
    assert not all(group.open for group in fold(steps(MOST_OPEN)).groups)


@pytest.fixture(scope="module")
def chromium(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Browser]]:
    """Opens the page of a graph, in a browser that all tests share."""
    if CHROMIUM is None:
        pytest.skip(MISSING)
    folder = tmp_path_factory.mktemp("browser")
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page, "utf-8")
    with browser(folder / "profile") as driven:

        def opened(name: str, width: int = 1280) -> Browser:
            driven.errors.clear()
            driven.open(folder / f"{name}.html", width)
            return driven

        yield opened


SHOWN = """[...document.querySelectorAll("#view text")].filter((e) => getComputedStyle(e).visibility === "visible")"""


OVERLAPS = f"""(() => {{
    const boxes = {SHOWN}.map((e) => [e.textContent, e.getBoundingClientRect()]);
    const whole = document.querySelector("#view svg").getBoundingClientRect();
    const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4;
    const outside = boxes.filter(([, r]) => r.left < whole.left || r.right > whole.right).map(([text]) => text);
    return [...outside, ...boxes.flatMap(([a, r], i) =>
        boxes.slice(i + 1, i + 300).filter(([, s]) => over(r, s)).map(([b]) => [a, b]))];
}})()"""
"""Texts of the picture that are outside of it, and pairs of texts one over the other."""


def texts(page: Browser, selector: str) -> list[str]:
    """The text of the visible elements of the picture that a CSS selector finds."""
    return page.value(
        f"{SHOWN}.flatMap((e) => [e, ...e.children]).filter((e) => e.matches('{selector}')).map((e) => e.textContent)"
    )


def sentence(page: Browser) -> str:
    return page.value("document.getElementById('sentence').textContent")


@pytest.mark.slow
def test_the_passes_are_played_with_the_keyboard(chromium: Callable[..., Browser]) -> None:
    page = chromium("product")
    assert sorted(texts(page, ".forward")) == ["-12", "-2", "-4", "3", "5"]
    assert sorted(texts(page, ".gradient")) == ["-4", "-4", "-4", "1", "3"]
    page.press("Home")
    assert (sorted(texts(page, ".forward")), texts(page, ".gradient")) == (["-2", "-4", "5"], [])
    page.press("ArrowRight")
    assert sentence(page) == "step 1 of 5, forward: add; q = x + y = 3"
    assert sorted(texts(page, ".forward")) == ["-2", "-4", "3", "5"]
    assert page.value("document.querySelector('.node.now').dataset.key") == "s0"
    page.press("ArrowRight", "ArrowRight", "ArrowRight")
    assert sentence(page) == "step 4 of 5, backward: multiply; df/dq = df/df * z = -4; df/dz = df/df * q = 3"
    assert sorted(texts(page, ".gradient")) == ["-4", "1", "3"]
    page.press("ArrowLeft")
    assert sentence(page) == "step 3 of 5, backward: start; df/df = 1"
    assert texts(page, ".gradient") == ["1"]
    page.press("End")
    assert sentence(page).startswith("step 5 of 5, backward: add; ")
    page.press(" ")
    assert page.value("document.getElementById('play').getAttribute('aria-label')") == "pause"
    page.value("new Promise((done) => setTimeout(done, 1100))")
    page.press(" ")
    assert sentence(page).startswith("step 1 of 5")
    page.mouse("#next", click=True)
    assert sentence(page).startswith("step 2 of 5")
    assert page.errors == []


@pytest.mark.slow
def test_modules_open_and_fold_by_a_click_and_by_enter(chromium: Callable[..., Browser]) -> None:
    page = chromium("deep network")
    folded = "document.querySelectorAll('.node.folded').length"
    count = page.value(folded)
    assert 8 < count < 40
    assert page.value("document.querySelectorAll('.node.step').length") < 5
    first = page.value("document.querySelector('.node.folded').dataset.key")
    page.mouse(f"[data-key={first}]", click=True)
    assert page.value(f"document.querySelector('[data-key={first}]').getAttribute('aria-expanded')") == "true"
    assert page.value(folded) > count
    page.value(f"document.querySelector('[data-key={first}]').focus()")
    page.press("Enter")
    assert page.value(folded) == count
    assert page.value("document.activeElement.dataset.key") == first
    page.mouse("#open", click=True)
    assert page.value("document.querySelectorAll('.node.step').length") == 122
    assert page.value(folded) == 0
    page.mouse("#fold", click=True)
    assert page.value("document.querySelectorAll('.node').length") < 8
    assert page.errors == []


@pytest.mark.slow
def test_search_opens_the_module_of_a_hit_and_shows_it(chromium: Callable[..., Browser]) -> None:
    page = chromium("deep network")
    found = "[...document.querySelectorAll('.current')].map((e) => e.getAttribute('aria-label').split(';')[0])"
    hits = "document.getElementById('hits').textContent"
    visible = """(() => {
        const [a, b] = ["#view .current", "#view"].map((s) => document.querySelector(s).getBoundingClientRect());
        return a.left >= b.left && a.right <= b.right && a.top >= b.top && a.bottom <= b.bottom })()"""
    page.value("document.getElementById('search').focus()")
    page.call("Input.insertText", text="98.WEIGHT")
    assert page.value(hits) == "1 of 1"
    assert page.value(found) == ["98.weight: parameter"]
    page.value("new Promise((done) => setTimeout(done, 800))")  # it scrolls smoothly
    assert page.value(visible)
    page.value("document.getElementById('search').select()")
    page.call("Input.insertText", text="tanh")
    assert page.value(hits) == "1 of 120"  # a module and a step each
    page.press("Enter", "Enter")
    assert page.value(hits) == "3 of 120"
    assert page.value("document.getElementById('moment').value") == page.value("document.getElementById('moment').max")
    page.call("Input.insertText", text="-")
    assert page.value(hits) == "not found"
    assert page.errors == []


@pytest.mark.slow
def test_the_picture_is_zoomed_and_moved(chromium: Callable[..., Browser]) -> None:
    page = chromium("deep network", 800)
    width = "document.querySelector('#view svg').getBoundingClientRect().width"
    before = page.value(width)
    page.press("+")
    assert page.value(width) > 1.2 * before
    page.press("0")
    assert page.value(width) <= 800
    page.press("+", "+", "+", "+", "+", "+")
    frame = page.value(
        "(({ x, y, width, height }) => [x, y, width, height])(document.querySelector('#view').getBoundingClientRect())"
    )
    x, y = frame[0] + frame[2] / 2, frame[1] + frame[3] - 12
    left = page.value("document.querySelector('#view').scrollLeft")
    for kind, at in (("mousePressed", x), ("mouseMoved", x - 40), ("mouseReleased", x - 40)):
        page.call("Input.dispatchMouseEvent", type=kind, x=at, y=y, button="left", buttons=1, clickCount=1)
    assert page.value("document.querySelector('#view').scrollLeft") == left + 40
    before = page.value(width)
    page.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-120, modifiers=2)
    assert page.value(f"new Promise((done) => setTimeout(() => done({width}), 200))") > before
    assert page.errors == []


@pytest.mark.slow
def test_a_card_shows_what_the_mouse_or_the_focus_is_on(chromium: Callable[..., Browser]) -> None:
    page = chromium("vectors")
    card = "document.getElementById('card').innerText"
    hidden = "document.getElementById('card').hidden"
    assert page.value(hidden)
    page.mouse('.node[aria-label^="W:"] .shape')
    assert not page.value(hidden)
    assert "(2, 2) float32 cpu" in page.value(card)
    assert "[[0.088 0.176]\n [0.104 0.208]]" in page.value(card)
    page.press("Escape")
    assert page.value(hidden)
    page.value("document.getElementById('view').focus()")
    page.press("Tab")
    assert not page.value(hidden)
    assert page.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_text_overlaps_nothing_and_pages_fit_their_width(chromium: Callable[..., Browser], name: str) -> None:
    for width in (390, 800, 1280):
        page = chromium(name, width)
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value(OVERLAPS) == []
    for control in ("local", "roles", "open"):
        page.value(f"document.getElementById('{control}').click()")
        assert page.value(OVERLAPS) == []
    assert page.value("document.title") != "taken"
    assert page.errors == []


@pytest.mark.slow
def test_values_that_are_not_finite_are_marked_and_found(chromium: Callable[..., Browser]) -> None:
    page = chromium("not finite")
    assert any("⚠" in text for text in texts(page, ".alarmed"))
    assert page.value("document.querySelectorAll('#view rect.alarm').length") == len(texts(page, ".alarmed"))
    page.mouse("#alarm", click=True)
    assert page.value("document.querySelectorAll('.node.found').length") == 3
    assert page.errors == []


@pytest.mark.slow
def test_a_page_works_in_a_sandboxed_frame(
    chromium: Callable[..., Browser], pages: dict[str, str], tmp_path: Path
) -> None:
    page = chromium("product")
    (tmp_path / "notebook.html").write_text(
        f'<!doctype html><iframe sandbox="allow-scripts" width="900" height="500" srcdoc="{escape(pages["product"])}">'
        "</iframe>",
        "utf-8",
    )
    page.open(tmp_path / "notebook.html")
    (frame,) = page.call("Page.getFrameTree")["frameTree"]["childFrames"]
    world = page.call("Page.createIsolatedWorld", frameId=frame["frame"]["id"])["executionContextId"]
    picture = "document.querySelectorAll('#view text.symbol').length"
    assert page.call("Runtime.evaluate", expression=picture, contextId=world)["result"]["value"] == 2
    assert page.errors == []


@pytest.mark.slow
def test_pages_are_dark_where_the_reader_is(chromium: Callable[..., Browser]) -> None:
    page = chromium("product")
    background = "getComputedStyle(document.body).backgroundColor"
    page.dark(True)
    dark = page.value(background)
    page.dark(False)
    assert (dark, page.value(background)) == ("rgb(21, 24, 30)", "rgb(255, 255, 255)")


def test_the_numbers_of_a_pass_give_way_to_the_pass_that_differentiates_it() -> None:
    x = gf.tensor(3.0, requires_grad=True)
    with gf.trace(x=x) as trace:
        f = x * x * x
        f.backward(create_graph=True)
        slope, x.grad = x.grad, None
        slope.backward()
    play = Play(trace.graph)
    values = {value.name: value.index for value in trace.graph.values}
    second = play.at[2, None]
    (first,) = play.gradients(values["f"])
    assert first[1] == second
    (_, before, slopes), (_, last, curvature) = play.gradients(values["x"])
    assert (before, slopes.values) == (second, 27.0)
    assert (last, curvature.values) == (None, 18.0)
