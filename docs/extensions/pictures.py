"""The directive `{picture} NAME`: the graph that the page's code has drawn under that name, as inline SVG.

The code of a page with pictures runs when the page is built, so a picture is always that of the page's code.
"""

from __future__ import annotations

from docutils import nodes
from docutils.parsers.rst import directives
from snippets import run_page
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from gradflow.drawing.colors import DARK, LIGHT
from gradflow.drawing.svg import to_svg


def run_code(app: Sphinx, page: str, source: list[str]) -> None:
    """Run the code of a page with pictures, and keep the names that it defines for the directives."""
    app.env.temp_data["names"] = run_page(source[0], page) if "```{picture}" in source[0] else {}


def colors(theme: str, palette: dict[str, str]) -> str:
    """The rules for pictures on pages whose theme the reader has chosen, whatever the browser prefers."""
    return " ".join(
        f'body[data-theme="{theme}"] .gradflow [{attribute}="{LIGHT[name]}"] {{ {attribute}: {color} }}'
        for name, color in palette.items()
        for attribute in ("fill", "stroke")
    )


CHOSEN = f" {colors('light', LIGHT)} {colors('dark', DARK)}</style>"


def on_page(svg: str, name: str) -> str:
    """The SVG of a picture as a part of a page, with ids that begin with the name."""
    svg = svg[svg.index("<svg") :].replace(' id="', f' id="{name}-').replace("</style>", CHOSEN)
    width = float(svg.partition(' width="')[2].partition('"')[0])
    size = f"width: {1.2 * width:.0f}px; min-width: {0.75 * width:.0f}px"
    return f'<div class="graph"><svg style="{size}"{svg.removeprefix("<svg")}</div>'


class Picture(SphinxDirective):
    """The picture of a name that the page's code has defined."""

    required_arguments = 1
    option_spec = {"local": directives.flag, "roles": directives.flag}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        svg = to_svg(self.env.temp_data["names"][name].graph, **dict.fromkeys(self.options, True))
        return [nodes.raw("", on_page(svg, name), format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("picture", Picture)
    app.connect("source-read", run_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
