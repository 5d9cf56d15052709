"""Pictures of computational graphs as SVG, PNG and PDF, by Graphviz through the package pygraphviz."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from gradflow.drawing.colors import DARK, LIGHT
from gradflow.drawing.dot import to_dot
from gradflow.drawing.graph import Graph, Step, Value
from gradflow.drawing.labels import MONO, SANS
from gradflow.drawing.numbers import describe, signature
from gradflow.environment import imported_extra
from gradflow.text import printable

_SVG = "http://www.w3.org/2000/svg"
_NAMES = {color: name for name, color in LIGHT.items()}
_MOST_STEPS = 2000
"""More take Graphviz minutes, and make a picture that no one finds anything in."""
_DPI = "192"
"""Of PNG: two pixels a point, sharp on dense screens and in print."""


def to_svg(graph: Graph, *, local: bool = False, roles: bool = False) -> str:
    """The picture of a graph as an SVG document, for light and dark pages alike.

    Its text is text. The elements of steps and values have ids and classes as in DOT (see `to_dot`), `data-name`, and a
    title that says in words what is drawn; texts have their colour as a class ("forward", "gradient").

    Raises ImportError without the extra "viz"; ValueError for a graph of more than 2000 steps.
    """
    root = ET.fromstring(_drawn(graph, "svg", local=local, roles=roles))
    for size in ("width", "height"):
        root.set(size, root.get(size, "").removesuffix("pt"))
    root.set("class", "gradflow")
    root.set("role", "img")
    root.set("font-family", SANS)
    for group in root.iter(f"{{{_SVG}}}g"):
        _name(group, graph)
    for text in root.iter(f"{{{_SVG}}}text"):
        mono = text.attrib.pop("font-family") == MONO
        text.set("class", _NAMES[text.get("fill", "")] + " mono" * mono)
    for position, (tag, content) in enumerate(
        (("title", _title(graph)), ("desc", _description(graph)), ("style", _style()))
    ):
        element = ET.Element(f"{{{_SVG}}}{tag}")
        element.text = content
        root.insert(position, element)
    ET.register_namespace("", _SVG)
    return ET.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def to_bytes(graph: Graph, format: str, *, local: bool = False, roles: bool = False) -> bytes:
    """The picture of a graph as the content of a file: "svg", or, on a white page, "png" or "pdf".

    Raises ImportError without the extra "viz"; ValueError for a graph of more than 2000 steps.
    """
    if format == "svg":
        return to_svg(graph, local=local, roles=roles).encode()
    return _drawn(graph, format, local=local, roles=roles)


def graphviz() -> Any:
    """The module pygraphviz. Raises ImportError, which says what to do, where it cannot be imported."""
    try:
        return imported_extra("pygraphviz", "pygraphviz", "viz", "a picture of a graph")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; or save it as .html, which needs nothing", name=error.name) from None
    except ImportError as error:  # its wheels hold Graphviz, but not GLib, which small containers lack
        raise ImportError(
            f"pygraphviz cannot be imported: {error}; install the library (GLib is libglib2.0-0 in Debian and Ubuntu), "
            "or save the graph as .html or .dot, which need nothing"
        ) from error


def has_graphviz() -> bool:
    """Whether pictures can be drawn."""
    try:
        graphviz()
    except ImportError:
        return False
    return True


def _drawn(graph: Graph, format: str, *, local: bool, roles: bool) -> bytes:
    if len(graph.steps) > _MOST_STEPS:
        raise ValueError(
            f"a picture has at most {_MOST_STEPS} steps, and this graph has {len(graph.steps)}; "
            "save it as .html, which folds steps, or as .dot"
        )
    dot = to_dot(graph, local=local, roles=roles)
    picture = graphviz().AGraph(string=dot)
    if format == "png":
        picture.graph_attr["dpi"] = _DPI
    picture.has_layout = True  # not so, but with a layout as `prog`, it warns of more than 1000 nodes
    content: bytes = picture.draw(format=format, args="-Kdot")
    return content


def _name(group: ET.Element, graph: Graph) -> None:
    """Give the element of a step, a value or a source its name, and a title in words in place of Graphviz's."""
    title = group.find(f"{{{_SVG}}}title")
    if title is not None:
        group.remove(title)
    kind, _, index = group.get("id", "").partition("-")
    if kind not in ("step", "value", "source"):
        return
    item = graph.steps[int(index)] if kind == "step" else graph.values[int(index)]
    words = _step_in_words(item) if isinstance(item, Step) else _value_in_words(item)
    group.set("data-name", printable(item.operation if isinstance(item, Step) else item.label))
    title = ET.Element(f"{{{_SVG}}}title")
    title.text = words
    group.insert(0, title)
    for polygon in group.iter(f"{{{_SVG}}}polygon") if kind == "value" else ():
        if polygon.get("fill") == LIGHT["line"]:
            polygon.set("points", _longer(polygon.get("points", "")))


def _longer(points: str) -> str:
    """The line of a value, a point longer at both ends: so far from it, the lines to and from it may end."""
    corners = [[float(x) for x in corner.split(",")] for corner in points.split()]
    middle = sum(x for x, _ in corners[:4]) / 4
    return " ".join(f"{x + (1 if x > middle else -1):g},{y:g}" for x, y in corners)


def _step_in_words(step: Step) -> str:
    lines = [
        f"{step.operation}: {step.formula}",
        *(rule for rule in step.rule if rule),
        *([step.line] if step.line else []),
    ]
    return "\n".join(printable(line) for line in lines)


def _value_in_words(value: Value) -> str:
    lines = [f"{value.label} ({value.kind})"]
    for what, numbers in (("forward", value.forward), ("gradient", value.gradient)):
        if numbers is not None:
            lines.append(f"{what}: {' '.join(describe(numbers))} {signature(numbers)}")
    return "\n".join(printable(line) for line in lines)


def _title(graph: Graph) -> str:
    return printable(graph.title) or "Computational graph"


def _description(graph: Graph) -> str:
    """The first steps as formulas."""
    steps = [printable(step.formula) for step in graph.steps[:20]] + ["..."] * (len(graph.steps) > 20)
    return f"{len(graph.steps)} steps with forward values above the lines and gradients below them: {'; '.join(steps)}"


def _style() -> str:
    dark = " ".join(
        f'.gradflow [{attribute}="{color}"] {{ {attribute}: {DARK[name]} }}'
        for name, color in LIGHT.items()
        for attribute in ("fill", "stroke")
    )
    return (
        f".gradflow {{ color-scheme: light dark }} .gradflow .mono {{ font-family: {MONO} }} "
        f"@media (prefers-color-scheme: dark) {{ {dark} }}"
    )
