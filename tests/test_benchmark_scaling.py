"""The scaling benchmark: a tiny run of gradflow's row, and the options."""

from __future__ import annotations

import json
import platform
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.peers.rows import ROWS
from benchmarks.peers.run import Cell, Run
from benchmarks.scaling import __main__ as command
from benchmarks.scaling import sweeps
from benchmarks.scaling.__main__ import main
from benchmarks.scaling.tables import slower
from benchmarks.workloads import TINY

TINY_RUN = ["--rounds", "1", "--turn", "0.01", "--threads", "1"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the benchmark to one row and one sweep of two points."""
    sweep = sweeps.sweep("depth", "layers", {n: ((4,) * n + (2,), 8) for n in (1, 2)})
    monkeypatch.setattr(sweeps, "ROWS", ("gradflow",))
    monkeypatch.setattr(sweeps, "USUAL", (TINY,))
    monkeypatch.setattr(sweeps, "SWEEPS", {"depth": sweep})


@pytest.mark.slow
def test_a_run_gives_tables_figures_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    assert main([*TINY_RUN, "--json", str(figures), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    for line in (r"\| layers \| gradflow \|", r"\| [12] \| [\d.,]+ \|", r"\| T: 2-16-16-1 \| [\d.]+ \|"):
        assert re.search(f"^{line}$", printed, re.MULTILINE), line
    content = figures.read_text()
    cells = json.loads(content)["cells"]
    assert [cell["workload"]["letter"] for cell in cells] == ["depth 1", "depth 2", "T", "depth 2"]
    assert all(cell["rows"]["gradflow"]["median"] > 0 for cell in cells[:2])
    assert all(cell["memory"]["gradflow"]["page_faults_a_step"] >= 0 for cell in cells[2:])
    assert not re.search(r"/\w", content), "a path"
    assert f'"{platform.node()}"' not in content
    assert ElementTree.parse(plot).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert "<dc:date>" not in plot.read_text()


def test_numbers_outside_of_the_given_ones_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY_RUN, "--sweeps", "depth", "--from", "2", "--to", "2"]) == 0
    assert re.findall(r"^\| ([12]) \|", capsys.readouterr().out, re.MULTILINE) == ["2"]


def test_where_gradflow_is_slower_than_before_is_said() -> None:
    run = Run(ROWS, [0], 3, 0.1)
    for letter, times in (("a", [1.2, 1.1, 1.3]), ("b", [1.2, 0.8, 1.0])):
        turns = {"gradflow-fast": times, "gradflow-fast-before": [1.0] * 3, "torch": [0.1] * 3}
        run.cells.append(Cell(replace(TINY, letter=letter), "Adam", turns))
    assert slower(run) == "slower than before: a: gradflow fast / before 1.20"


@pytest.mark.slow
def test_rows_that_would_not_fit_together_are_measured_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweeps, "TOGETHER", 0)
    assert main([*TINY_RUN, "--sweeps", "depth"]) == 0
    assert re.search(r"^\| 2 \| [\d.,]+ \|$", capsys.readouterr().out, re.MULTILINE)


def test_what_would_not_fit_at_all_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "available_memory", lambda: sweeps.needed(sweeps.SWEEPS["depth"].workloads[1]))
    assert main([*TINY_RUN, "--sweeps", "depth"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^\| 1 \| [\d.,]+ \|$", printed, re.MULTILINE)
    assert "left out: depth 2: it needs about 0.0 GiB of memory, 0.0 are free" in printed


def test_memory_that_was_free_before_is_drawn_on_the_logarithmic_axis(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(Run, "_ask", lambda *arguments: {"peak_bytes": 0.0, "page_faults_a_step": 0.0})
    assert main([*TINY_RUN, "--sweeps", "memory", "--plot", str(tmp_path / "plot.svg")]) == 0


def test_without_figures_there_is_no_plot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(command, "available_memory", lambda: 0)
    assert main([*TINY_RUN, "--plot", str(tmp_path / "plot.svg")]) == 0
    assert "no plot" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--sweeps", "depth,height"),
        ("--rounds", "0"),
        ("--turn", "nan"),
        ("--threads", "100000"),
        ("--from", "0"),
        ("--json", "no/such/folder/figures.json"),
        ("--plot", "no/such/folder/plot.svg"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([option, value])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert option in captured.err
