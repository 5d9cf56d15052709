"""The comparison with peers: a tiny run of the rows that need only NumPy, and the handling of broken rows."""

from __future__ import annotations

import importlib.util
import json
import platform
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.peers.__main__ import main
from benchmarks.peers.ours import Captured, Gradflow
from benchmarks.peers.peer import UnavailableError
from benchmarks.peers.rows import ROWS, Row, chosen
from benchmarks.peers.run import Cell, equal
from benchmarks.peers.tables import ratios
from benchmarks.peers.worker import first_losses, make
from benchmarks.workloads import TINY
from gradflow import Tensor
from gradflow.benchmarking.results import summary

ROOT = Path(__file__).parents[1]
TINY_RUN = ["--workloads", "T", "--rounds", "1", "--turn", "0.01", "--threads", "1"]
PLANTED = """
from pathlib import Path

import gradflow
import gradflow_numpy
from benchmarks.peers.numpy_plain import PlainNumpy
from benchmarks.peers.peer import UnavailableError


class Wrong(PlainNumpy):
    def __init__(self, workload):
        super().__init__(workload)
        self.optimizer.lr *= 1.1


class Broken(PlainNumpy):
    def step(self, x, y):
        print("hello from a library")
        raise RuntimeError("out of order")


class Where(PlainNumpy):
    def __init__(self, workload):
        raise UnavailableError(f"{Path(gradflow.__file__).parent}, {Path(gradflow_numpy.__file__).parents[1]}")
"""


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two more rows: one that computes something else, one that crashes."""
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(ROWS, "wrong", Row("a wrong row", "planted:Wrong"))
    monkeypatch.setitem(ROWS, "broken", Row("a broken row", "planted:Broken"))


@pytest.mark.slow
def test_rows_that_need_numpy_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    assert main([*TINY_RUN, "--rows", "numpy,numpy-out,gemms", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    for optimizer in ("Adam", "SGD"):
        assert f"| {optimizer}, µs per step | T |" in printed
    for name in ("gradflow", "numpy", "numpy-out", "gemms"):
        assert len(re.findall(rf"^\| {re.escape(ROWS[name].title)} \| [\d.,]+ \|$", printed, re.MULTILINE)) == 2
    content = path.read_text()
    assert [cell["optimizer"] for cell in json.loads(content)["cells"]] == ["Adam", "SGD"]
    for cell in json.loads(content)["cells"]:
        assert all(row["median"] > 0 for row in cell["rows"].values())
    assert not re.search(r"/\w", content), "a path"
    assert f'"{platform.node()}"' not in content


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("threadpoolctl") is None, reason="threadpoolctl is not installed")
def test_the_environment_of_a_row_does_not_choose_its_kernels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """NumPy's BLAS also reports the kernels that it chose for the processor."""
    heads = []
    for kernels in ("", "Nehalem"):
        monkeypatch.setenv("OPENBLAS_CORETYPE", kernels)
        assert main([*TINY_RUN, "--optimizers", "SGD", "--rows", "gradflow"]) == 0
        heads.append(capsys.readouterr().out.splitlines()[0])
    assert heads[0] == heads[1]
    assert re.search(r", openblas [\d.]+ \(\w+\) - threads", heads[0]) or "openblas" not in heads[0]


@pytest.mark.slow
@pytest.mark.usefixtures("plant")
def test_a_row_that_computes_something_else_is_refused_and_a_crash_spares_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*TINY_RUN, "--optimizers", "SGD", "--rows", "numpy,wrong,broken"]) == 1
    captured = capsys.readouterr()
    assert "| NumPy by hand | " in captured.out
    assert "row |" not in captured.out
    assert re.search(
        r"^a wrong row is not timed in SGD, T: its losses are \[.*\], gradflow's \[.*\]", captured.err, re.M
    )
    assert "a broken row crashed in SGD, T: RuntimeError: out of order\n" in captured.err


def test_a_row_whose_library_is_missing_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ROWS, "missing", Row("a missing row", "nowhere:Peer", package="not_a_package"))
    assert main([*TINY_RUN, "--optimizers", "SGD", "--rows", "missing"]) == 0
    reason = "left out: a missing row: not_a_package is not installed; it is in the extra 'peers'"
    assert reason in capsys.readouterr().out


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Another checkout, whose gradflow is this one's."""
    for name in ("gradflow", "backends"):
        (tmp_path / name).symlink_to(ROOT / name, target_is_directory=True)
    return tmp_path


@pytest.mark.slow
def test_the_rows_before_measure_the_gradflow_of_the_other_checkout(
    checkout: Path, plant: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ROWS, "gradflow-fast", Row("a row", "planted:Where"))
    names = "gradflow-fast,gradflow-fast-before"
    assert main([*TINY_RUN, "--optimizers", "SGD", "--rows", names, "--before", str(checkout)]) == 0
    printed = capsys.readouterr().out
    assert f"left out: a row: {ROOT / 'gradflow'}, {ROOT / 'backends'}" in printed
    assert f"left out: a row, before: {checkout / 'gradflow'}, {checkout / 'backends'}" in printed


@pytest.mark.slow
def test_a_row_is_divided_by_the_same_row_before(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("gradflow-fast", "captured-fast"):
        monkeypatch.setitem(ROWS, name, replace(ROWS[name], package=None, environment={}))
    path = tmp_path / "figures.json"
    options = ["--optimizers", "SGD", "--rows", "captured-fast,captured-fast-before", "--json", str(path)]
    assert main([*TINY_RUN, *options, "--before", str(checkout)]) == 0
    assert re.search(r"^\| gradflow fast, captured / before \| \d+\.\d\d \|$", capsys.readouterr().out, re.MULTILINE)
    content = json.loads(path.read_text())
    assert content["before"] is None  # git does not know it
    assert content["cells"][0]["ratios"]["gradflow fast, captured / before"]["row"] == "captured-fast-before"


def test_without_another_checkout_there_are_no_rows_before() -> None:
    assert {*chosen(["captured-fast", "captured-fast-before"])} == {"gradflow", "captured-fast"}
    assert {*chosen(["captured-fast-before"], Path())} == {"gradflow", "captured-fast-before"}


def test_a_captured_row_that_is_not_replayed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads(self: Gradflow, x: Tensor, y: Tensor) -> Tensor:
        loss = self.loss(self.model(x), y)
        return loss if loss.item() else y

    monkeypatch.setattr(Gradflow, "step", reads)
    with pytest.raises(UnavailableError, match="the captured step isn't replayed: "):
        Captured(TINY)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--workloads", "T,X"),
        ("--optimizers", "adagrad"),
        ("--rows", "numpy,"),
        ("--before", "no/such/folder"),
        ("--rounds", "0"),
        ("--turn", "nan"),
        ("--threads", "100000"),
        ("--json", "no/such/folder/figures.json"),
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


@pytest.mark.parametrize("name", ["gradflow", "numpy", "numpy-out"])
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_a_restored_row_starts_anew(name: str, optimizer: str) -> None:
    peer = make(ROWS[name].where, replace(TINY, optimizer=optimizer, batches=8))
    losses = first_losses(peer)
    assert losses is not None
    assert first_losses(peer) != losses
    peer.restore()
    assert first_losses(peer) == losses


def test_ratios_are_taken_round_by_round_to_the_best_of_several_peers() -> None:
    turns = {"gradflow": [2.0, 6.0, 9.0], "torch": [1.0, 2.0, 9.0], "torch-fused": [9.0, 9.0, 1.0]}
    found = ratios(Cell(TINY, "Adam", turns))
    assert found == {"gradflow / best PyTorch": {**summary([2.0, 3.0, 1.0]), "row": "torch"}}
    assert found["gradflow / best PyTorch"]["median"] == 2.0


def test_losses_are_equal_up_to_a_bound() -> None:
    assert equal([1.0, 2.0], [1.00009, 2.0])
    assert not equal([1.0, 2.0], [1.0002, 2.0])
    assert not equal([float("nan")], [float("nan")])
    assert not equal(None, [1.0])
