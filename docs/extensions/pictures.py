"""The directive `{picture} NAME`: the graph that the page's code has drawn so far under that name, as inline SVG.

The code of a page with pictures runs when the page is built, so each picture is that of the code above it.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from snippets import run_page
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def as_svg(picture: Any, options: dict[str, bool]) -> str:
    """The SVG of a trace or a picture, without the XML declaration."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.svg"
        picture.save(path, **options)
        text = path.read_text("utf-8")
    return text[text.index("<svg") :]


def draw_pictures(app: Sphinx, page: str, source: list[str]) -> None:
    """Run the code of a page with pictures, and keep them for the directives."""
    svgs: list[str] = []

    def draw(picture: Any, body: str) -> None:
        options = dict.fromkeys(re.findall(r"^:(\w+):", body, re.MULTILINE), True)
        svgs.append(as_svg(picture, options))

    if "```{picture}" in source[0]:
        run_page(source[0], page, draw)
    app.env.temp_data["pictures"] = iter(svgs)


class Picture(SphinxDirective):
    """The next picture of the page, with the content of the directive as its caption."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec = {"local": directives.flag, "roles": directives.flag}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        svg = next(self.env.temp_data["pictures"])
        figure = nodes.container(classes=["graph"])
        figure += nodes.raw("", f'<div class="graph-picture">{svg}</div>', format="html")
        caption = nodes.container(classes=["graph-caption"])
        self.state.nested_parse(self.content, self.content_offset, caption)
        return [figure, caption]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("picture", Picture)
    app.connect("source-read", draw_pictures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
