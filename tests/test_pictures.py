"""Pictures of computational graphs: what they show, that all of it is legible, and names and numbers of any kind."""

from __future__ import annotations

import itertools
import math
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from reports import HOSTILE

import gradflow as gf
from gradflow import nn
from gradflow.drawing.colors import DARK, LIGHT
from gradflow.drawing.dot import to_dot
from gradflow.drawing.graph import Graph, Numbers, Step, Value
from gradflow.drawing.rendering import save
from gradflow.drawing.svg import has_graphviz, to_svg

SVG = "{http://www.w3.org/2000/svg}"
needs_graphviz = pytest.mark.skipif(
    not has_graphviz(), reason='pygraphviz, of the extra "viz", is not installed, or cannot be imported'
)


def leaf(values: object) -> gf.Tensor:
    return gf.tensor(values, requires_grad=True)


def linear() -> Graph:
    w, x, b = leaf(-2.0), leaf(5.0), leaf(3.0)
    with gf.trace() as traced:
        g = w * x
        f = g + b
        f.backward()
    return traced.graph


def sum_times() -> Graph:
    x, y, z = leaf(-2.0), leaf(5.0), leaf(-4.0)
    with gf.trace() as traced:
        q = x + y
        f = q * z
        f.backward()
    return traced.graph


def neuron() -> Graph:
    w0, x0, w1, x1, w2 = (leaf(value) for value in (2.0, -1.0, -3.0, -2.0, -3.0))
    with gf.trace() as traced:
        dot = w0 * x0 + w1 * x1 + w2
        f = 1 / (1 + gf.exp(-dot))
        f.backward()
    return traced.graph


def gates() -> Graph:
    x, y, z = leaf(3.0), leaf(5.0), leaf(2.0)
    with gf.trace() as traced:
        m = gf.maximum(x, y)
        f = m * z + x * x
        f.backward()
    return traced.graph


def slope() -> Graph:
    w = leaf(2.0)
    with gf.trace() as traced:
        f = 5 * w
        f.backward()
    return traced.graph


def vectors() -> Graph:
    W, x = leaf([[0.1, 0.5], [-0.3, 0.8]]), leaf([0.2, 0.4])
    with gf.trace() as traced:
        q = W @ x
        f = gf.sum(q**2)
        f.backward()
    return traced.graph


def perceptron() -> Graph:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    x, target = gf.ones((8, 2)), gf.ones((8, 1))
    with gf.trace() as traced:
        y = model(x)
        loss = gf.mean((y - target) ** 2)
        loss.backward()
    return traced.graph


def second_order() -> Graph:
    x = leaf(2.0)
    with gf.trace() as traced:
        y = x**3
        y.backward(create_graph=True)
        g = x.grad
        assert g is not None
        g.backward()
    return traced.graph


def broken() -> Graph:
    x, y = leaf([1.0, math.nan, 2.0]), leaf(math.inf)
    with gf.trace() as traced:
        f = gf.sum(x + y)
        f.backward()
    return traced.graph


GRAPHS = (linear, sum_times, neuron, gates, slope, vectors, perceptron, second_order, broken)
"""Of the worked examples, 1 to 6, and what has modules, a recorded backward pass, or numbers that are not finite."""


def chain(steps: int, names: Callable[[int], str] = "a{}".format, module: tuple[str, ...] = ()) -> Graph:
    """A graph in which each step multiplies the last value by a parameter, and every tenth by the first."""
    one = Numbers((), "float32", "cpu", 1.5, 1.5, 0.0, 1.5, 1.5)
    values = [Value(0, names(0), names(0), "input", (), one, one)]
    made = []
    last = 0
    for i in range(steps):
        factor = 0
        if i % 10:
            factor = len(values)
            values.append(Value(factor, names(factor), names(factor), "parameter", (), one, one))
        out = len(values)
        values.append(Value(out, names(out), names(out), "result", (), one, one, i))
        made.append(Step(i, "multiply", "*", (last, factor), out, f"{names(out)} = ...", module=module))
        last = out
    return Graph(values, made, (last,))


def drawn(graph: Graph, **options: bool) -> ET.Element:
    return ET.fromstring(to_svg(graph, **options))


def words(element: ET.Element) -> str:
    return " ".join(" ".join((text.text or "").split()) for text in element.iter(f"{SVG}text"))


def groups(root: ET.Element, kind: str) -> Iterator[ET.Element]:
    return (group for group in root.iter(f"{SVG}g") if kind in group.get("class", "").split())


def shown(root: ET.Element) -> dict[str, tuple[str, str]]:
    """By the label of each value, its forward value and its gradient as drawn, lines joined by spaces."""
    found = {}
    for group in groups(root, "value"):
        by_color = [
            " ".join(
                " ".join((text.text or "").split())
                for text in group.iter(f"{SVG}text")
                if color in text.get("class", "").split()
            )
            for color in ("forward", "gradient")
        ]
        found[group.get("data-name", "")] = (by_color[0], by_color[1])
    return found


EXPECTED: dict[Callable[[], Graph], dict[str, tuple[str, str]]] = {
    linear: {"w": ("-2", "5"), "x": ("5", "-2"), "b": ("3", "1"), "g": ("-10", "1"), "f": ("-7", "1")},
    sum_times: {"x": ("-2", "-4"), "y": ("5", "-4"), "z": ("-4", "3"), "q": ("3", "-4"), "f": ("-12", "1")},
    neuron: {
        "w0": ("2", "-0.1966"), "x0": ("-1", "0.3932"), "w1": ("-3", "-0.3932"), "x1": ("-2", "-0.5898"),
        "w2": ("-3", "0.1966"), "v1": ("-2", "0.1966"), "v2": ("6", "0.1966"), "v3": ("4", "0.1966"),
        "dot": ("1", "0.1966"), "v4": ("-1", "-0.1966"), "v5": ("0.3679", "-0.5344"), "v6": ("1.368", "-0.5344"),
        "f": ("0.7311", "1"),
    },
    gates: {
        "x": ("3", "6 = 3 + 3 + 0"), "y": ("5", "2"), "z": ("2", "5"), "m": ("5", "2"), "v1": ("10", "1"),
        "v2": ("9", "1"), "f": ("19", "1"),
    },
    slope: {"w": ("2", "5"), "f": ("10", "1")},
    vectors: {
        "W": ("[[ 0.1 0.5] [-0.3 0.8]]", "[[0.088 0.176] [0.104 0.208]]"), "x": ("[0.2 0.4]", "[-0.112 0.636]"),
        "q": ("[0.22 0.26]", "[0.44 0.52]"), "v1": ("[0.0484 0.0676]", "[1 1]"), "f": ("0.116", "1"),
    },
}  # fmt: skip


@needs_graphviz
@pytest.mark.parametrize("graph", EXPECTED)
def test_the_picture_shows_the_values_and_gradients_of_the_worked_examples(graph: Callable[[], Graph]) -> None:
    assert shown(drawn(graph())) == EXPECTED[graph]


@needs_graphviz
@pytest.mark.parametrize("graph", GRAPHS)
def test_forward_values_are_above_the_line_and_gradients_below(graph: Callable[[], Graph]) -> None:
    for group in groups(drawn(graph(), local=True, roles=True), "value"):
        rules = [p for p in group.iter(f"{SVG}polygon") if p.get("fill") == LIGHT["line"]]
        (line,) = {y for p in rules for y in [float(c.split(",")[1]) for c in p.get("points", "").split()][:1]}
        for text in group.iter(f"{SVG}text"):
            y, color = float(text.get("y", "")), text.get("class", "").split()[0]
            assert y < line if color == "forward" else True
            assert y > line + 5 if color == "gradient" else True


def boxes(root: ET.Element) -> Iterator[tuple[str, float, float, float, float]]:
    """Each line of text of a node, with its left, right, top and bottom, as wide as in the widest of the fonts."""
    for group in root.iter(f"{SVG}g"):
        lines: dict[str, list[ET.Element]] = {}
        for text in group.findall(f"{SVG}text"):
            between = text.get("x", "") if group.get("class") == "graph" else ""  # the legend has several in a line
            lines.setdefault(text.get("y", "") + between, []).append(text)
        for line in lines.values():
            last = line[-1]
            size = float(last.get("font-size", ""))
            width = size * (0.605 if "mono" in last.get("class", "") else 0.5) * len(last.text or "")
            half = width / 2 if last.get("text-anchor") == "middle" else 0
            left, right = float(line[0].get("x", "")) - half, float(last.get("x", "")) + width - half
            y = float(last.get("y", ""))
            yield "".join(text.text or "" for text in line), left, right, y - 0.72 * size, y


@needs_graphviz
@pytest.mark.parametrize("options", [{}, {"local": True, "roles": True}])
@pytest.mark.parametrize("graph", GRAPHS)
def test_no_text_is_over_another_or_outside_the_picture(graph: Callable[[], Graph], options: dict[str, bool]) -> None:
    root = drawn(graph(), **options)
    texts = [box for box in boxes(root) if box[0].strip()]
    for (a, left, right, top, bottom), (b, left2, right2, top2, bottom2) in itertools.combinations(texts, 2):
        over = min(right, right2) - max(left, left2) > 2 and min(bottom, bottom2) - max(top, top2) > 1
        assert not over, f"{a!r} and {b!r} overlap"
    page = next(iter(root.iter(f"{SVG}polygon")))
    corners = [tuple(map(float, corner.split(","))) for corner in page.get("points", "").split()]
    assert min(t[1] for t in texts) >= min(x for x, _ in corners)
    assert max(t[2] for t in texts) <= max(x for x, _ in corners)


@needs_graphviz
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_color_has_its_dark_one(graph: Callable[[], Graph]) -> None:
    text = to_svg(graph(), local=True, roles=True)
    used = set(re.findall(r'(?:fill|stroke)="([^"]*)"', text)) - {"none", "transparent"}
    assert used <= set(LIGHT.values())
    for color in used:
        dark = DARK[next(name for name, value in LIGHT.items() if value == color)]
        assert f'[fill="{color}"] {{ fill: {dark} }}' in text


def test_the_colors_differ_for_all_eyes() -> None:
    """Of every pair of what is read together, the contrast (WCAG 2.1) as seen with each kind of colour blindness."""
    kinds = {  # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
        "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
        "deuteranopia": (
            (0.367322, 0.860646, -0.227968),
            (0.280085, 0.672501, 0.047413),
            (-0.011820, 0.042940, 0.968881),
        ),
        "protanopia": (
            (0.152286, 1.052583, -0.204868),
            (0.114503, 0.786281, 0.099216),
            (-0.003882, -0.048116, 1.051998),
        ),
        "tritanopia": (
            (1.255528, -0.076749, -0.178779),
            (-0.078411, 0.930809, 0.147602),
            (0.004733, 0.691367, 0.303900),
        ),
    }

    def contrast(a: str, b: str, kind: str) -> float:
        luminances = []
        for color in (a, b):
            parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            rgb = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
            seen = [min(1.0, max(0.0, sum(m * c for m, c in zip(row, rgb, strict=True)))) for row in kinds[kind]]
            luminances.append(0.2126 * seen[0] + 0.7152 * seen[1] + 0.0722 * seen[2] + 0.05)
        return max(luminances) / min(luminances)

    for colors in (LIGHT, DARK):
        assert len(set(colors.values())) == len(colors)  # the dark colours are found by the light ones
        for kind in kinds:
            assert contrast(colors["forward"], colors["gradient"], kind) >= 1.6
            for paper in ("page", "module"):
                for ink in ("forward", "gradient", "ink"):
                    assert contrast(colors[ink], colors[paper], kind) >= 4.2, (ink, paper, kind)
        assert contrast(colors["muted"], colors["step"], "none") >= 4.5
        assert contrast(colors["ink"], colors["parameter"], "none") >= 7


@needs_graphviz
@pytest.mark.parametrize("name", [*HOSTILE, "\\N \\G \\\\ \\n", "{a|<b>}", "한글 이름", "]]>--><!--", "&lt;&#65;", " "])
def test_names_are_drawn_as_they_are(name: str) -> None:
    import pygraphviz

    from gradflow.text import printable

    graph = chain(2, lambda i: f"{name}{i}", module=(name,))
    graph.title = name
    graph.steps[0].operation = graph.steps[0].symbol = graph.steps[0].formula = name
    parsed = pygraphviz.AGraph(string=to_dot(graph, local=True, roles=True))
    assert {str(node) for node in parsed.nodes()} >= {"value-0", "step-0", "step-1"}
    root = drawn(graph)
    seen = [g.get("data-name") for g in groups(root, "value")]
    assert sorted(map(str, seen)) == sorted(printable(v.label) for v in graph.values)
    if len(name) < 30:
        sources = {words(group) for group in groups(root, "source")}
        assert " ".join(printable(f"{name}0").split()) in sources


@needs_graphviz
def test_random_names(random_examples: Callable[[int], object]) -> None:
    hypothesis = pytest.importorskip("hypothesis")

    @random_examples(25)  # type: ignore[operator,untyped-decorator]
    @hypothesis.given(hypothesis.strategies.text(max_size=40))
    def check(name: str) -> None:
        assert len(list(groups(drawn(chain(1, lambda i: f"{name}{i}", (name,))), "value"))) == 2

    check()


@needs_graphviz
def test_numbers_that_are_not_finite_are_marked_in_words() -> None:
    seen = {group.get("data-name"): words(group) for group in groups(drawn(broken()), "value")}
    assert "nan" in seen["x"]
    assert "! 1 of 3 not finite" in seen["x"]
    assert "inf ! not finite" in seen["y"]
    assert "not finite" not in words(drawn(linear()))


@needs_graphviz
def test_modules_and_the_recorded_backward_pass_are_boxes() -> None:
    labels = [words(group) for group in groups(drawn(perceptron()), "module")]
    assert sorted(labels) == ["0 (Linear)", "1 (Tanh)", "2 (Linear)", "model (Sequential)"]
    assert [words(group) for group in groups(drawn(second_order()), "recorded")] == ["recorded backward pass"]


@needs_graphviz
def test_roles_and_local_derivatives_are_drawn_on_request() -> None:
    steps = [words(group) for group in groups(drawn(sum_times(), local=True, roles=True), "step")]
    assert steps == ["+ distributes d/dx = 1 d/dy = 1", "* switches d/dq = z = -4 d/dz = q = 3"]
    assert [words(group) for group in groups(drawn(sum_times()), "step")] == ["+", "*"]


def test_the_same_graph_gives_the_same_bytes() -> None:
    assert to_dot(neuron()) == to_dot(neuron())


@needs_graphviz
def test_the_picture_is_read_aloud_and_found_by_name() -> None:
    root = drawn(sum_times())
    assert root.get("role") == "img"
    assert [element.tag for element in root[:3]] == [f"{SVG}title", f"{SVG}desc", f"{SVG}style"]
    assert "q = x + y; f = q * z" in (root[1].text or "")
    (step,) = (g for g in groups(root, "step") if "multiply" in g.get("class", "").split())
    assert step.get("id") == "step-1"
    assert (step[0].text or "").startswith("multiply: f = q * z")
    (q,) = (g for g in groups(root, "value") if g.get("data-name") == "q")
    assert "gradient: -4" in (q[0].text or "")


@needs_graphviz
def test_files(tmp_path: Path) -> None:
    heads = {".svg": b"<svg", ".png": b"\x89PNG", ".pdf": b"%PDF", ".dot": b"digraph", ".html": b"<!doctype html>"}
    for suffix, head in heads.items():
        path = tmp_path / f"graph{suffix}"
        save(linear(), path, local=True, roles=True)
        assert path.read_bytes()[: len(head)].lower() == head.lower()


def test_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("graph.gif", "graph"):
        with pytest.raises(ValueError, match=r"saved as \.svg, \.png, \.pdf, \.html or \.dot"):
            save(linear(), tmp_path / name)
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(ModuleNotFoundError, match='pygraphviz from the extra "viz"'):
        save(linear(), tmp_path / "graph.png")
    assert not list(tmp_path.iterdir())
    save(linear(), tmp_path / "graph.dot")


def test_a_library_that_pygraphviz_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pygraphviz.py").write_text("raise ImportError('libgobject-2.0.so.0: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pygraphviz", raising=False)
    with pytest.raises(ImportError, match=r"libgobject.*libglib2\.0-0 in Debian.*\.html or \.dot"):
        save(linear(), tmp_path / "graph.png")
    assert not has_graphviz()


@needs_graphviz
@pytest.mark.slow
def test_a_thousand_steps(capfd: pytest.CaptureFixture[str]) -> None:
    root = drawn(chain(1000))
    assert len(list(groups(root, "step"))) == 1000
    references = list(groups(root, "reference"))
    assert {words(group) for group in references} == {"a0"}
    assert len(references) == 93  # of 100 uses of the first value, 7 are near
    assert "may take a long time" not in capfd.readouterr().err


def test_a_graph_that_is_too_large_for_graphviz_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 2000 steps.*2001.*\.html"):
        to_svg(chain(2001))


def test_an_array_without_a_finite_element_is_not_called_empty() -> None:
    with gf.trace() as trace:
        gf.tensor([float("nan")] * 100, requires_grad=True) * 2
    text = to_dot(trace.graph)
    assert "none&#160;is&#160;finite" in text
    assert ">empty<" not in text


@needs_graphviz
def test_operands_stand_in_their_order() -> None:
    """The first operand comes from above the second."""
    x, y = leaf(2.0), leaf([[1.0, 2.0], [3.0, 4.0]])
    with gf.trace(x=x, y=y) as trace:
        q = 1 / (1 + gf.exp(-x))
        _ = (y - q) @ y.T / (x - 3)
    root = drawn(trace.graph)

    def top(index: int) -> float:
        (group,) = [g for g in root.iter(f"{SVG}g") if g.get("id") in (f"value-{index}", f"source-{index}")][-1:]
        return float(next(group.iter(f"{SVG}text")).get("y", ""))

    steps = [step for step in trace.graph.steps if step.symbol in ("/", "-", "@") and len(step.inputs) == 2]
    assert len(steps) == 5
    for step in steps:
        first, second = map(top, step.inputs)
        assert first < second, step.formula
