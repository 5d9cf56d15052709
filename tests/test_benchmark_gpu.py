"""The measurement on a GPU, as its dry run on the CPU, and what it computes from the times."""

from __future__ import annotations

import json
import math
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as gpu_main
from benchmarks.gpu import checks
from benchmarks.gpu import rows as gpu_rows
from benchmarks.gpu import run as gpu_run
from benchmarks.gpu.ceilings import PRODUCTS
from benchmarks.gpu.checks import outcome, passed
from benchmarks.gpu.ours import Captured
from benchmarks.gpu.paper import precision_of, work
from benchmarks.gpu.run import GpuRun, tolerance, without_paths
from benchmarks.gpu.tables import PRECISION, new_path, ratios
from benchmarks.peers.ours import check_replayed
from benchmarks.peers.peer import UnavailableError
from benchmarks.peers.rows import Row
from benchmarks.peers.run import Cell
from benchmarks.workloads import TINY, Workload

BROKEN = """
from benchmarks.gpu.pytorch import Eager


class Broken(Eager):
    def step(self, x, y):
        raise RuntimeError("out of order")
"""


@pytest.mark.slow
def test_a_dry_run_measures_its_rows_and_goes_on_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed; it is in the extra 'peers'")
    (tmp_path / "planted.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    known = gpu_rows.rows

    def planted(device: str) -> dict[str, Row]:
        found = known(device)
        environment = found["torch"].environment
        return {**found, "torch-compile": Row("a broken row", "planted:Broken", environment=environment)}

    monkeypatch.setattr(gpu_rows, "rows", planted)
    options = [
        "--workloads",
        "t,b",
        "--rows",
        "steps,torch,torch-compile",
        "--rounds",
        "1",
        "--checks",
        "tests,kit,agree",
    ]
    assert gpu_main.main([*options, "--turn", "0.01", "--dry-run", "--commit", "c0ffee", "--out", str(tmp_path)]) == 1
    (path,) = tmp_path.glob("dry-run-*.json")
    content = json.loads(path.read_text())
    assert content["dry_run"] in ("emulated", "cpu")
    assert content["commit_info"] == {"id": "c0ffee"}
    assert content["checks"]["tests"]["tests"] == 1
    assert [content["checks"][name]["status"] for name in ("tests", "kit", "agree")] == [0, 0, 0]
    ceilings = content["ceilings"]
    assert ceilings["operations_per_second"]["float32"] > 0
    assert ceilings["operations_per_second"]["tf32"] > 0
    assert ceilings["copy_bytes_per_second"] > 0
    assert content["failed"] == [f"a broken row in Adam, {w}: RuntimeError: out of order" for w in "tb"]
    assert all("in step" in trace for trace in content["traces"].values())
    for cell, dtype in zip(content["cells"], ("float32", "bfloat16"), strict=True):
        assert cell["workload"]["dtype"] == dtype
        assert set(cell["rows"]) == {"gradflow", "steps", "torch"}
        assert all(row["median"] > 0 for row in cell["rows"].values())
        assert all(seconds > 0 for seconds in cell["events"]["gradflow"])
        assert cell["facts"]["gradflow"]["launches"] > 0
        assert {*cell["share_of_the_ceilings"]["torch"]} >= ({"products", "bytes"} if dtype == "float32" else {"bytes"})
        if content["dry_run"] == "emulated":
            facts = cell["facts"]["steps"]
            assert facts["launches_an_epoch"] <= 4  # the order, the graph, and copies of its inputs and results
            assert facts["graph_nodes"][-1] > facts["steps_an_epoch"] * cell["facts"]["gradflow"]["launches"]
    assert not re.search(r"(?<!\w)/\w", path.read_text()), "a path"
    assert f'"{platform.node()}"' not in path.read_text()
    printed = capfd.readouterr().out
    assert "| time of the peer / time of gradflow, K steps a graph (aim) | t | b |" in printed
    assert re.search(r"\| PyTorch eager \| \d+\.\d\d \(15\) \| \d+\.\d\d \(1\.08\) \|", printed)
    assert "kit: passed: 1 passed" in printed
    assert "failed: a broken row in Adam, t: RuntimeError: out of order" in printed


PLANTED = """
import time


class Good:
    trains, loss, batches = True, 1.0, [()]

    def __init__(self, workload):
        self.letter = workload.letter

    def step(self):
        return self

    def item(self):
        return self.loss

    def turn(self, seconds):
        return 0.001, None

    def facts(self):
        return {"letter": self.letter}


class Wrong(Good):
    loss = 2.0


class Diverges(Good):
    loss = float("nan")


class Hangs(Good):
    def __init__(self, workload):
        super().__init__(workload)
        time.sleep(1000 if self.letter == "t" else 0)


class Stalls(Good):
    def turn(self, seconds):
        time.sleep(1000 if self.letter == "t" else 0)
        return 0.002, None
"""


@pytest.mark.slow
def test_rows_that_hang_fail_or_disagree_stop_no_other_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu_run, "SPARE", 1.0)
    names = ("Wrong", "Hangs", "Good", "Diverges", "Stalls", "Missing", "Good")
    rows = {f"{name}{i}": Row(f"{name}{i}", f"planted:{name}") for i, name in enumerate(names)}
    rows["import"] = Row("import", "no_such_module:Row")
    run = GpuRun(rows, [0], 2, 0.001, limit=3, budget=time.perf_counter() - gpu_run._START + 120)
    written: list[int] = []
    tiny = gpu_rows.WORKLOADS["t"]
    try:
        run.measure_each([tiny, replace(tiny, letter="u")], lambda: written.append(len(run.cells)))
    finally:
        assert not run._workers
    first, second = run.cells
    assert {name: len(turns) for name, turns in first.turns.items()} == {"Good2": 2, "Good6": 2}
    assert {name: len(turns) for name, turns in second.turns.items()} == {
        "Hangs1": 2, "Good2": 2, "Stalls4": 2, "Good6": 2
    }  # fmt: skip
    assert second.facts["Good6"] == {"letter": "u"}
    assert len(written) == 2 * 4  # when rows are ready, after each round, with facts
    failed = "\n".join(run.failed)
    assert "Hangs1 in Adam, t: it took too long" in failed
    assert "Stalls4 in Adam, t: it took too long" in failed
    assert "Wrong0 is not timed in Adam, t: its losses are [2.0" in failed
    assert "Diverges3 is not timed in Adam, u: its losses are [nan" in failed
    assert failed.count("AttributeError") == failed.count("ModuleNotFoundError: No module named 'no_such_module'") == 2
    assert len(run.failed) == 2 * 4 + 2


def test_each_workload_has_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    run = GpuRun({}, [0], 1, 0.1, limit=100, budget=time.perf_counter() - gpu_run._START + 100)
    shares: list[float] = []
    monkeypatch.setattr(run, "_measure", lambda _: shares.append(run._left(run._until)))
    run.measure_each([gpu_rows.WORKLOADS["t"]] * 4, lambda: None)
    assert shares == pytest.approx([100 * 2 / 5, 100 / 3, 100 / 2, 100], abs=10)
    run._end = time.perf_counter()
    run.measure_each([gpu_rows.WORKLOADS["t"]], lambda: None)
    assert run.left_out == {"workload t": "no time was left"}
    assert len(shares) == 4


def test_a_workload_whose_share_is_used_up_has_three_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GpuRun, "_prepare", lambda *_: ["torch"])
    monkeypatch.setattr(GpuRun, "_ask", lambda *command: (1.0, None) if "turn" in command else {})
    run = GpuRun({"torch": gpu_rows.rows("cuda")["torch"]}, [0], 5, 0.1, limit=100, budget=0)
    run._after = lambda: None
    for left, rounds in ((0.0, 3), (100.0, 5)):
        now = time.perf_counter()
        run._end, run._until = now + 100, now + left
        run._measure(run._cell(gpu_rows.WORKLOADS["t"], "Adam"))
        assert len(run.cells[-1].turns["torch"]) == rounds
    assert run.left_out == {"rounds of Adam, t": "no time was left"}


def test_rows_are_compared_with_most_of_them() -> None:
    assert gpu_run.agreeing({"gradflow": [1.0], "torch": [1.0]}, 1e-4) == ["gradflow", "torch"]
    assert gpu_run.agreeing({"gradflow": [2.0], "torch": [1.0], "jax": [1.0]}, 1e-4) == ["torch", "jax"]
    assert gpu_run.agreeing({"gradflow": [2.0], "torch": [1.0]}, 1e-4) == ["gradflow"]
    assert gpu_run.agreeing({"gradflow": [math.nan], "torch": [1.0]}, 1e-4) == ["torch"]
    assert gpu_run.agreeing({"gradflow": [math.nan]}, 1e-4) == []
    assert gpu_run.agreeing({}, 1e-4) == []


def test_an_interrupted_run_prints_and_writes_what_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(run: GpuRun, workloads: list[Workload], _: Callable[[], None]) -> None:
        run._cell(workloads[0], "Adam").turns["torch"] = [1e-6, 2e-6, 3e-6]
        raise KeyboardInterrupt

    monkeypatch.setattr(GpuRun, "measure_each", interrupted)
    monkeypatch.setattr(gpu_main, "run_ceilings", lambda *_: {"copy_bytes_per_second": 1e12})
    assert gpu_main.main(["--dry-run", "--no-checks", "--out", str(tmp_path)]) == 130
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    assert content["ceilings"] == {"copy_bytes_per_second": 1e12}
    assert content["cells"][0]["rows"]["torch"]["median"] == 2e-6
    printed = capfd.readouterr().out
    assert "| PyTorch eager, fused Adam | 2.00 |" in printed
    assert "2-4-4-1, batch 8, mse_loss, Adam; float32 products in float32 in every row (JAX at" in printed


def test_figures_of_an_earlier_run_stay(tmp_path: Path) -> None:
    facts = {"gpu": "NVIDIA H100 80GB HBM3, 79 GiB", "date": "2026-11-26"}
    names = []
    for _ in range(3):
        path = new_path(tmp_path, facts, dry=False)
        path.touch()
        names.append(path.name)
    stem = "nvidia-h100-80gb-hbm3-2026-11-26"
    assert names == [f"{stem}.json", f"{stem}-2.json", f"{stem}-3.json"]


@pytest.mark.slow
def test_a_check_that_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """And pytest, interrupted, still reports what it knows."""
    (tmp_path / "test_slow.py").write_text(
        "import subprocess, sys, time\n"
        "def test_fails(): assert False\n"
        "def test_hangs():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "    time.sleep(1000)\n"
    )
    report = tmp_path / "report.xml"
    words = f"-m pytest -q -p no:cacheprovider --noconftest --rootdir={tmp_path} {tmp_path}"
    command = [sys.executable, *words.split()]
    found = checks._run([*command, f"--junitxml={report}"], 4, "a check", {})
    assert found["status"] == "it took too long"
    assert checks._counts(report)["failed"] == ["test_slow::test_fails"]
    child = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    for _ in range(100):
        if not child.exists() or child.read_text().split()[2] == "Z":
            break
        time.sleep(0.02)
    else:
        pytest.fail("what the check started runs on")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import gradflow as gf

    if gf.diagnose("cuda").usable:
        pytest.skip("there is a GPU")
    assert gpu_main.main([]) == 2
    assert capsys.readouterr().err.startswith("no CUDA device: ")


def test_ratios_are_times_of_the_fastest_peer_divided_by_gradflows() -> None:
    turns = {"captured": [1.0, 2.0, 4.0], "torch-compile": [9.0, 9.0, 9.0], "torch-tuned": [4.0, 8.0, 8.0]}
    found = ratios(Cell(TINY, "Adam", turns), "captured")
    assert set(found) == {"torch.compile"}
    assert found["torch.compile"]["row"] == "torch-tuned"
    assert found["torch.compile"]["median"] == 4.0


def test_a_captured_row_is_timed_only_while_it_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Captured, "device", "cpu")
    row = Captured(gpu_rows.tiny(gpu_rows.WORKLOADS["t"]))
    by_host, by_events = row.turn(0.001)
    assert by_host > 0
    assert by_events is not None
    assert by_events > 0
    facts = row.facts()
    assert facts["graph_nodes"] == []
    assert {*facts} == {"status", "graph_nodes", "launches"}
    assert facts["status"] == "replaying"
    assert facts["launches"] > 0
    row._captured.status = "it reads a value"
    with pytest.raises(UnavailableError, match="isn't replayed: it reads a value"):
        check_replayed(row._captured)


def test_a_step_on_paper() -> None:
    step = Workload("x", "tiny", (3, 2, 1), 5, loss="mse_loss", optimizer="Adam")
    found = work(step)
    assert found.operations == 2 * 5 * (2 * 3 * 2 + 3 * 2 * 1)  # no gradient of the inputs
    forward = 5 * 3 + 3 * 2 + 5 * 2 + 5 * 2 + 2 * 1 + 5 * 1
    weights = 5 * 2 + 5 * 3 + 3 * 2 + 5 * 1 + 5 * 2 + 2 * 1
    inputs = 5 * 1 + 2 * 1 + 2 * 5 * 2
    assert found.bytes == 4 * (forward + weights + inputs + 3 * 5 + 7 * 11)
    half = work(replace(step, precision="autocast"))
    assert half.operations == found.operations
    assert half.bytes < found.bytes
    assert found.least_seconds(
        {"copy_bytes_per_second": 4.0, "operations_per_second": {"float32": "failed"}}, "float32"
    ) == {"bytes": found.bytes / 4}


def test_every_workload_states_its_precision_and_its_bound() -> None:
    for workload in gpu_rows.WORKLOADS.values():
        assert PRECISION[workload.precision or workload.dtype]
        assert tolerance(workload) > 0
        assert precision_of(workload) in PRODUCTS
        assert gpu_rows.tiny(workload).precision == workload.precision
    assert {*gpu_rows.AIMS} == {"t", "a", "b", "c"}
    assert all({*aims} <= {*gpu_rows.RATIOS} for aims in gpu_rows.AIMS.values())


def test_a_check_that_fails_shows_its_lines() -> None:
    assert outcome({"status": 0, "last_lines": ["...", "3 passed"]}) == "passed: 3 passed"
    assert outcome({"status": 1, "last_lines": ["x", "1 failed"]}) == "FAILED\n  x\n  1 failed"
    assert outcome({"left_out": "it is not installed"}) == "left out: it is not installed"


def test_a_skip_is_a_failure() -> None:
    assert passed({"status": 0, "skipped": []})
    assert not passed({"status": 0, "skipped": ["test_x: no GPU"]})
    assert not passed({"status": "it took too long"})
    assert passed({"left_out": "compute-sanitizer is not installed"})


def test_paths_are_left_out_of_traces() -> None:
    assert without_paths('File "/home/me/x.py", line 3') == 'File "x.py", line 3'
    assert without_paths("a/b 1/2") == "a/b 1/2"
