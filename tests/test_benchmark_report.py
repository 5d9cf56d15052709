"""The benchmarks' report, and runs of `benchmarks/`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.machine import public_commit_info, public_machine_info


def benchmark_of(library: str, device: str, batch: int, median: float) -> dict[str, Any]:
    info = {"workload": "train step", "size": "784-128-10", "batch": batch, "steps": 10, "library": library}
    info |= {"device": device, "dtype": "float32", "threads": 2, "versions": {"numpy": "2.4.6"}}
    info["samples_per_s"] = batch / median
    return {"extra_info": info, "stats": {"median": median, "iqr": 1e-6}}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [benchmark_of("PyTorch", "cpu", batch, 2e-3) for batch in (8, 64)]
    rows += [benchmark_of("gradflow", "cpu", batch, 1e-3) for batch in (8, 64)]
    machine = {"cpu": {"brand_raw": "A processor", "count": 2}}
    content = {"benchmarks": rows, "machine_info": machine, "commit_info": {"id": "c0ffee", "dirty": False}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**content, "datetime": "2026-11-20T20:00:00+00:00"}))
    return path


def test_table_states_the_speed_up_over_gradflow_on_the_cpu(results: Path) -> None:
    lines = report.table(report.rows_of(report.load(results))).splitlines()
    assert lines[2:4] == [
        "| train step | 784-128-10 | 8 | gradflow cpu | 1 ms | 1 µs | 8,000 | 1.00 |",
        "| train step | 784-128-10 | 8 | PyTorch cpu | 2 ms | 1 µs | 4,000 | 0.50 |",
    ]
    assert len(lines) == 6


def test_rows_are_in_the_order_of_batches_whatever_the_order_of_the_runs(results: Path) -> None:
    content = json.loads(results.read_text())
    content["benchmarks"] = [
        {**row, "extra_info": {**row["extra_info"], "size": size}}
        for size, row in [
            (size, benchmark_of("gradflow", "cpu", batch, 1e-3)) for batch in (512, 8, 64) for size in ("9-9", "2-2")
        ]
    ]
    found = [(row.size, row.batch) for row in report.rows_of(content)]
    assert found == [(size, batch) for size in ("9-9", "2-2") for batch in (8, 64, 512)]


def test_rows_of_a_busy_machine_are_marked(results: Path) -> None:
    content = json.loads(results.read_text())
    assert "*" not in report.table(report.rows_of(content))
    content["benchmarks"][0]["stats"]["iqr"] = content["benchmarks"][0]["stats"]["median"]
    table = report.table(report.rows_of(content))
    assert "| 2 ms | 2 ms* |" in table
    assert "idle machine" in table.splitlines()[-1]


def test_command_prints_head_and_table_and_draws(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert report.main([str(results), "--out", str(tmp_path / "plots")]) == 0
    printed = capsys.readouterr().out
    for fact in ("A processor, 2 cores", "2026-11-20", "numpy 2.4.6", "float32", "threads: 2", "c0ffee"):
        assert fact in printed
    assert (tmp_path / "plots" / "results.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "{}", '{"benchmarks": []}', '{"benchmarks": [{"stats": {}}]}', '{"benchmarks": [1]}']
)
def test_bad_input_is_one_line_and_status_2(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    assert report.main([str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_without_matplotlib_the_extra_is_named(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert report.main([str(results)]) == 2
    captured = capsys.readouterr()
    assert "| train step |" in captured.out
    assert "'train'" in captured.err


def test_one_batch_size_makes_no_plot(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(results.read_text())
    results.write_text(json.dumps({**content, "benchmarks": content["benchmarks"][:1]}))
    assert report.main([str(results)]) == 0
    assert "no plot" in capsys.readouterr().err


def test_nothing_that_names_the_machine_is_kept() -> None:
    info = {"node": "a-host", "release": "kernel", "python_build": "x", "cpu": {"brand_raw": "A processor"}}
    assert "a-host" not in json.dumps(public_machine_info(info))
    assert set(public_commit_info({"id": "c0ffee", "project": "a-folder", "branch": "b"})) == {"id", "time", "dirty"}


ROOT = Path(__file__).resolve().parent.parent


def run(*words: str) -> str:
    """Return what Python prints, in the folder of the project."""
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}  # xdist's too
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def seconds(words: str) -> float:
    """Return the seconds of a text like "1.07 ms"."""
    number, unit = words.split()
    return float(number) * {"ms": 1e-3, "µs": 1e-6, "us": 1e-6}[unit]


@pytest.mark.slow
def test_the_screen_the_file_and_the_report_give_the_time_of_one_step(tmp_path: Path) -> None:
    """pytest-benchmark's own comparison accepts the file too, grouped by parameter."""
    path = tmp_path / "x.json"
    words = ["benchmarks/test_train_step.py", "-k", "tiny-32", "--gradflow-devices=cpu", "--benchmark-max-time=0.1"]
    out = run("-m", "pytest", "-p", "no:cacheprovider", *words, f"--benchmark-json={path}")
    unit = re.search(r"Name \(time in (\w+)\)", out)
    row = re.search(r"^test_train_step\S+ +([\d.,]+)", out, re.M)
    assert unit is not None, out
    assert row is not None, out
    shown = seconds(f"{row[1].replace(',', '')} {unit[1]}")
    (reported,) = report.rows_of(report.load(path))
    assert reported.median == pytest.approx(shown, rel=1e-3)
    (kept,) = json.loads(path.read_text())["benchmarks"]
    assert kept["stats"]["total"] == pytest.approx(kept["stats"]["mean"] * kept["stats"]["rounds"])
    assert re.search(r"^train step, 2-16-16-1, batch 32: cpu [\d,]+$", out, re.M)
    compared = run("-m", "pytest_benchmark", "compare", str(path), "--group-by=param:device", "--columns=median")
    assert "benchmark 'device=cpu': 1 tests" in compared


HIDDEN = """
import importlib.machinery, sys
import pytest

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in ("torch", "jax", "autograd", "llvmlite", "cupy", "expecttest")
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[:] = [Finder if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
sys.exit(pytest.main(["benchmarks", "-q", "-p", "no:cacheprovider", "--benchmark-disable", "-k", "exp or nothing"]))
"""


@pytest.mark.slow
def test_the_benchmarks_run_without_any_peer() -> None:
    out = run("-c", HIDDEN)
    assert re.search(r"^2 passed, 6 skipped", out, re.M), out
    assert "SKIPPED [4] PyTorch is not installed" in out


def test_pytest_alone_does_not_run_benchmarks(pytestconfig: pytest.Config) -> None:
    assert "benchmarks" not in pytestconfig.getini("testpaths")
