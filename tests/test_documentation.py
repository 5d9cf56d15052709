"""The documentation builds without warnings, its links lead somewhere, and its code prints what the pages show."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.test_cli import child_environment

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path.append(str(DOCS / "extensions"))
from snippets import run_page  # noqa: E402

PAGES = [p for p in sorted(DOCS.rglob("*.md")) if "_build" not in p.parts and "\n```pycon\n" in p.read_text("utf-8")]
LOADS = {
    ("img", "src"),
    ("script", "src"),
    ("link", "href"),
    ("iframe", "src"),
    ("source", "srcset"),
    ("object", "data"),
}
"""Attributes whose address a browser loads without a click."""


class Links(HTMLParser):
    """What an HTML page refers to, and the places in it that others can refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            if name in ("href", "src") and value:
                self.links.add(value)
            if (tag, name) in LOADS and value:
                self.loaded.add(value)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Links]:
    """The pages of the documentation, built from nothing with warnings as errors."""
    for package in ("furo", "myst_parser", "pygraphviz", "sphinx"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("docs")
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, env=child_environment())
    assert (done.returncode, done.stderr) == (0, "")
    return {path: Links(path.read_text("utf-8")) for path in sorted(out.rglob("*.html"))}


@pytest.mark.slow
def test_every_internal_link_leads_somewhere(built: dict[Path, Links]) -> None:
    missing = []
    for path, page in built.items():
        for link in page.links:
            parts = urlsplit(link)
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = built[file].ids if file in built else {parts.fragment, unquote(parts.fragment)}
            if not parts.scheme and (not file.exists() or (parts.fragment and unquote(parts.fragment) not in known)):
                missing.append(f"{path.name}: {link}")
    assert missing == []


@pytest.mark.slow
def test_no_page_loads_anything_from_the_network(built: dict[Path, Links]) -> None:
    loaded = {link for page in built.values() for link in page.loaded}
    assert {urlsplit(link).scheme for link in loaded} <= {"", "data"}
    (root,) = {path.parent for path in built if path.name == "genindex.html"}
    sheets = [p for p in root.rglob("*") if p.suffix in (".css", ".js")]
    assert len(sheets) > 3
    remote = re.compile(r"(@import|url\()\s*[\"']?(https?:)?//|fetch\(\s*[\"']https?:")
    assert [p.name for p in sheets if remote.search(p.read_text("utf-8"))] == []


@pytest.mark.slow
def test_the_pages_that_visitors_start_from_are_there(built: dict[Path, Links]) -> None:
    (root,) = {path.parent for path in built if path.name == "genindex.html"}
    (start,) = [page for path, page in built.items() if path == root / "index.html"]
    assert {"backpropagation/index.html", "train.html", "write-a-backend.html"} <= start.links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_prints_what_it_shows(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADFLOW_DEVICE", "cpu")
    run_page(page.read_text("utf-8"), page.name)
