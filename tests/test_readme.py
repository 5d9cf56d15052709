"""The README, and the pages that it leads to, are right: snippets print what their comments say, commands exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gradflow.cli import build_parser, main

ROOT = Path(__file__).resolve().parent.parent
README, *PAGES = (
    (ROOT / page).read_text(encoding="utf-8")
    for page in ("README.md", "docs/concepts.md", "docs/command-line.md", "docs/install.md")
)
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", "\n".join([README, *PAGES]), re.DOTALL)
SNIPPETS = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    line[2:].partition("  #")[0].strip()
    for language, text in BLOCKS
    if language == "console"
    for line in re.sub(r" *\\\n *", " ", text).splitlines()  # a command may continue on the next line
    if line.startswith("$ ")
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_prints_what_its_comments_say(snippet: str) -> None:
    expected = re.findall(r"^print\(.*?\)\s+# (.*)$", snippet, re.MULTILINE)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet, "README.md", "exec"), {})
    assert expected
    assert printed.getvalue().splitlines() == expected


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("gradflow ")])
def test_a_gradflow_command_is_accepted_by_the_command_line(command: str) -> None:
    arguments = shlex.split(command)[1:]
    if "--help" in arguments:
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as stopped:
            build_parser().parse_args(arguments)
        assert stopped.value.code == 0
    else:
        assert build_parser().parse_args(arguments).command == arguments[0]


def test_the_two_commands_that_set_everything_up_are_on_the_page() -> None:
    assert 'python3 -m venv .venv && .venv/bin/pip install -e ".[train]" && .venv/bin/gradflow train digits' in COMMANDS
    tests = '.venv/bin/pytest -n auto -m "not slow"'
    assert f'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && {tests}' in COMMANDS


def test_the_readme_is_short() -> None:
    assert len(README.split()) < 900
    for _, text in re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL):
        assert max(map(len, text.splitlines())) <= 86, "cut at the right edge of a page of 800 pixels"


def test_the_picture_is_the_one_that_the_command_draws(tmp_path: Path) -> None:
    """In its texts: their places depend on the fonts of a machine."""
    pytest.importorskip("pygraphviz", exc_type=ImportError)
    (command,) = [c for c in COMMANDS if c.startswith("gradflow graph") and c.endswith("-o graph.svg")]
    assert main([*shlex.split(command)[1:-1], str(tmp_path / "graph.svg")]) == 0
    drawn, shown = (
        list(ElementTree.parse(folder / "graph.svg").getroot().itertext()) for folder in (tmp_path, ROOT / "docs")
    )
    assert drawn == shown


def test_every_extra_that_the_readme_names_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {extra for group in re.findall(r'"\.\[([\w,-]+)\]"', README + "".join(PAGES)) for extra in group.split(",")}
    assert named <= set(project["optional-dependencies"])
