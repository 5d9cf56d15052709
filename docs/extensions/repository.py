"""Links from pages to files of the repository outside `docs`: each leads to a page that shows the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers import get_lexer_for_filename
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform

PAGES = {"CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog"}
"""Files that have a page of their own in the documentation, which includes them."""


def mark_links(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Tell the parser that a Markdown file outside `docs` is a file, not a page."""
    source[0] = re.sub(r"\]\((?=(?:\.\./)+[A-Z]+\.md\))", "](path:", source[0])


class RepositoryLinks(SphinxTransform):
    """Links to files outside `docs` are resolved when all pages are known, not copied for downloading."""

    default_priority = 10

    def apply(self, **_: Any) -> None:
        root = Path(self.env.srcdir).parent
        for link in self.document.findall(addnodes.download_reference):
            path = (Path(self.env.doc2path(self.env.docname)).parent / link["reftarget"]).resolve()
            if not path.is_file() or not path.is_relative_to(root) or path.is_relative_to(self.env.srcdir):
                continue
            if path.suffix == ".ipynb":  # to be downloaded
                continue
            name = path.relative_to(root).as_posix()
            link.replace_self(
                addnodes.pending_xref(
                    "", *link.children, reftype="repository", reftarget=name, refdoc=self.env.docname, refdomain=""
                )
            )
            if name not in PAGES:
                self.env.metadata[self.env.docname].setdefault("repository_files", []).append(name)


def resolve(app: Sphinx, _env: BuildEnvironment, link: addnodes.pending_xref, text: Any) -> nodes.Node | None:
    """A link to the page that shows a file."""
    if link["reftype"] != "repository":
        return None
    page = PAGES.get(link["reftarget"], f"files/{link['reftarget']}")
    uri = app.builder.get_relative_uri(link["refdoc"], page)
    return nodes.reference("", "", text, internal=True, refuri=uri)


def file_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The pages that show files."""
    linked = {name for page in app.env.metadata.values() for name in page.get("repository_files", ())}
    for name in sorted(linked):
        code = (Path(app.srcdir).parent / name).read_text("utf-8")
        body = app.builder.highlighter.highlight_block(code, get_lexer_for_filename(name).aliases[0])
        yield f"files/{name}", {"title": name, "body": f"<h1><code>{escape(name)}</code></h1>{body}"}, "page.html"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(RepositoryLinks)
    app.connect("source-read", mark_links)
    app.connect("missing-reference", resolve)
    app.connect("html-collect-pages", file_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
