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


def colours(theme: str, palette: dict[str, str]) -> str:
    """The rules for pictures on pages whose theme the reader has chosen, whatever the browser prefers."""
    return " ".join(
        f'body[data-theme="{theme}"] .gradflow [{attribute}="{LIGHT[name]}"] {{ {attribute}: {colour} }}'
        for name, colour in palette.items()
        for attribute in ("fill", "stroke")
    )


CHOSEN = f" {colours('light', LIGHT)} {colours('dark', DARK)}</style>"


class Picture(SphinxDirective):
    """The picture of a name, with the content of the directive as its caption."""

    required_arguments = 1
    has_content = True
    option_spec = {"local": directives.flag, "roles": directives.flag}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        picture = self.env.temp_data["names"][name]
        svg = to_svg(picture.graph, **dict.fromkeys(self.options, True))
        svg = svg.replace(' id="', f' id="{name}-')  # ids are those of the page, not of the picture
        svg = svg.replace("</style>", CHOSEN)
        width = float(svg.partition(' width="')[2].partition('"')[0])
        size = f"width: {1.25 * width:.0f}px; min-width: {0.7 * width:.0f}px"
        figure = nodes.container(classes=["graph"])
        figure += nodes.raw("", svg.replace("<svg", f'<svg style="{size}"', 1), format="html")
        self.state.nested_parse(self.content, self.content_offset, figure)
        return [figure]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("picture", Picture)
    app.connect("source-read", run_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
