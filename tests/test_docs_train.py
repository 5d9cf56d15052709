"""The pages on training and tables are true: their snippets run in order and print what is shown, up to numbers."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradflow.cli import main
from gradflow.training.metrics import METRICS
from gradflow.training.runs.predictor import CLASS_FIGURES, VALUE_FIGURES
from tests.test_cli import child_environment

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
TABLES = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
ONNX = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
BLOCKS, TABLES_BLOCKS, ONNX_BLOCKS, README_BLOCKS = (
    re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL) for page in (PAGE, TABLES, ONNX, README)
)
EXAMPLE = re.compile(r'^\$ (python -c "[^"]*"|.*)\n((?:(?!\$ ).*\n)*)', re.MULTILINE)
"""A command in a block, and what it prints."""

for package in ("matplotlib", "onnx", "pygraphviz", "safetensors", "sklearn", "tensorboardX", "tomli_w", "tqdm"):
    pytest.importorskip(package, exc_type=ImportError)


def without_numbers(text: str) -> list[str]:
    """The lines of an output, with N for each number, and without what differs between machines."""
    text = re.sub(r"(?m)^(device: \w+).*", r"\1", text)
    text = re.sub(r"; (best|stale \d+)$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\d[\d,.]*(e-?\d+)?|\bnan\b", "N", text).replace("*", "")
    return [" ".join(line.split()) for line in text.splitlines()]


def assert_shows(shown: str, printed: str) -> None:
    """The output is that on the page, where a line of three dots stands for any lines."""
    expected, found = without_numbers(shown), without_numbers(printed)
    if "..." in expected:
        gap = expected.index("...")
        tail = len(expected) - gap - 1
        assert len(found) >= gap + tail
        expected, found = expected[:gap] + expected[gap + 1 :], found[:gap] + found[len(found) - tail :]
    assert found == expected


def interrupted(words: list[str]) -> str:
    """What a run prints that gets Ctrl-C after three seconds."""
    began = set(Path("runs").iterdir())
    with subprocess.Popen(
        [sys.executable, "-m", "gradflow", *words], env=child_environment(GRADFLOW_FAST="0"), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 120
        while "--resume" not in words and set(Path("runs").iterdir()) == began and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        out = process.communicate(timeout=120)[0]
    assert process.returncode == 130, out
    return out


def run_command(command: str, notes: bool = True) -> str:
    """The output of a command of a page, stdout first, without progress bars."""
    words = shlex.split(command, comments=True)
    words[0] = {"python": sys.executable}.get(words[0], words[0])
    if words[0] != "gradflow":
        return subprocess.run(words, capture_output=True, check=True, encoding="utf-8").stdout
    if "Ctrl-C" in command or "--resume" in words:
        return interrupted(words[1:])
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(words[1:]) == 0, err.getvalue()
    told = [line for line in re.split(r"[\r\n]+", err.getvalue()) if line.startswith("gradflow: ")] if notes else []
    return out.getvalue() + "".join(f"{note}\n" for note in told)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("blocks", [BLOCKS, TABLES_BLOCKS, ONNX_BLOCKS], ids=["train", "tables", "onnx"])
def test_the_examples_print_what_the_page_shows(
    blocks: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setenv("GRADFLOW_DEVICE", "cpu")
    scope: dict[str, object] = {}
    printed = io.StringIO()
    for language, text in blocks:
        if language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(text, "a page", "exec"), scope)
            promised = re.findall(r"^print\(.*?\) +# (.*)$", text, re.MULTILINE)
            if promised:
                assert printed.getvalue().splitlines() == promised
        elif language == "text":
            assert_shows(text, printed.getvalue())
        elif language == "console":
            for command, shown in EXAMPLE.findall(text):
                found = run_command(command)
                if shown:
                    assert_shows(shown, found)


@pytest.mark.slow
def test_the_readme_and_the_page_on_commands_show_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setenv("GRADFLOW_DEVICE", "cpu")
    _, setup, shown = README_BLOCKS[0][1].split("\n", 2)
    assert setup.endswith(".venv/bin/gradflow train digits")
    assert_shows(shown, run_command("gradflow train digits"))
    activate, *examples = EXAMPLE.findall(README_BLOCKS[1][1])
    assert activate == (". .venv/bin/activate", "")
    for command, shown in examples:
        assert_shows(shown, run_command(command, notes=False))
    (words,) = re.findall(r"The labels may be words:\n\n```console\n(.*?)```", COMMANDS, re.DOTALL)
    activate, *examples = EXAMPLE.findall(words)
    assert activate == (". .venv/bin/activate", "")
    for command, shown in examples:
        assert_shows(shown, run_command(command))


def test_the_page_has_each_kind_of_example() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "console", "text"}
    assert PAGE.count("```") == 2 * len(BLOCKS)


def test_every_metric_is_explained() -> None:
    (table,) = re.findall(r"\| metric \| meaning \|\n(.*?)\n\n", PAGE, re.DOTALL)
    named = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == {*METRICS, "loss"}
    assert set(CLASS_FIGURES + VALUE_FIGURES) <= named


def test_the_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", PAGE):
        assert target.startswith("https://") or (ROOT / "docs" / target).exists(), target
    assert "(docs/train.md)" in README
