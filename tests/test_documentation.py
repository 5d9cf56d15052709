"""The documentation builds without warnings, its links lead somewhere, and its code prints what the pages show."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import gradflow as gf
from gradflow import nn, optim
from tests.test_cli import child_environment

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path.append(str(DOCS / "extensions"))
from snippets import run_page  # noqa: E402

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

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
        pytest.importorskip(package, exc_type=ImportError)
    out = tmp_path_factory.mktemp("docs")
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, env=child_environment())
    assert done.returncode == 0, done.stderr
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
def test_the_code_of_a_page_prints_what_it_shows(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = page.read_text("utf-8")
    for package in re.findall(r"^(?:import|from) (torch|safetensors)\b", text, re.MULTILINE):
        pytest.importorskip(package, exc_type=ImportError)
    monkeypatch.setenv("GRADFLOW_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    run_page(text, page.name)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_prints_what_its_page_shows(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pygraphviz", exc_type=ImportError)
    monkeypatch.setenv("GRADFLOW_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    include = f"```{{literalinclude}} ../../examples/{example.name}\n```\n\n```text\n"
    (page,) = [text for p in DOCS.rglob("*.md") if include in (text := p.read_text("utf-8"))]
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out == page.partition(include)[2].partition("```")[0]


def test_the_names_that_are_said_to_be_the_same_are() -> None:
    page = (DOCS / "coming-from-pytorch.md").read_text("utf-8")
    table = page.partition("## The same")[2].partition("Values, derivatives")[0]
    cells = [row.split("|") for row in table.splitlines() if "`" in row]
    rows = {name.strip(): re.findall(r"`(\w+)`", text) for _, name, text, _ in cells}
    homes = {
        "tensors": gf.Tensor, "modes": gf, "modules": nn, "functions": gf, "losses": nn, "optimizers": optim,
        "vectors": nn, "initial values": nn,
    }  # fmt: skip
    assert list(rows) == list(homes)
    members = {"optimizers": optim.SGD, "modules": nn.Module, "initial values": nn.init}
    for row, names in rows.items():
        for name in names:
            assert hasattr(homes[row], name) or hasattr(members[row], name), f"{row}: {name}"


def outputs_of(path: Path) -> list[tuple[str, set[str], str]]:
    """What each cell of a notebook prints, which kinds of pictures it shows, and its value if it shows none."""
    shown = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        outputs = [output for output in cell.get("outputs", ()) if output.get("name") != "stderr"]
        kinds = {kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")}
        values = [] if kinds else [text for o in outputs for text in o.get("data", {}).get("text/plain", ())]
        shown.append(("".join(text for o in outputs for text in o.get("text", ())), kinds, "".join(values)))
    return shown


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """After a change: `jupyter execute --inplace examples/backpropagation.ipynb`."""
    for package in ("ipykernel", "matplotlib", "nbclient", "pygraphviz"):
        pytest.importorskip(package, exc_type=ImportError)
    notebook, copy = ROOT / "examples" / "backpropagation.ipynb", tmp_path / "executed"
    words = [sys.executable, "-c", "from nbclient.cli import main; main()", str(notebook), f"--output={copy}"]
    done = subprocess.run(words, capture_output=True, text=True, env=child_environment(GRADFLOW_DEVICE="cpu"))
    assert done.returncode == 0, done.stderr
    assert outputs_of(copy.with_suffix(".ipynb")) == outputs_of(notebook)


def test_the_reference_shows_each_public_name_once() -> None:
    pages = [p.read_text("utf-8") for p in sorted((DOCS / "api").glob("*.md"))]
    blocks = [found for text in pages for found in re.findall(r"^```\{objects\} (\S+)\n(.*?)^```$", text, re.S | re.M)]
    shown = [getattr(importlib.import_module(module), name) for module, names in blocks for name in names.split()]
    assert [value for value, times in Counter(shown).items() if times > 1] == []
    missing = []
    for suffix in ("", ".backend", ".data", ".nn", ".optim", ".plot", ".random", ".testing", ".training"):
        module = importlib.import_module(f"gradflow{suffix}")
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value) and value is not Any and value not in shown:
                missing.append(f"{module.__name__}.{name}")
    assert missing == []
