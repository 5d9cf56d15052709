"""The benchmarks that are commands, such as `python -m benchmarks.step_breakdown`, on a tiny workload."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import gradflow as gf
from benchmarks import epoch_share, import_time, reading, step_breakdown, threads, trainer
from benchmarks.peers.options import cores
from benchmarks.workloads import TINY
from tests.devices import replays


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    one = replace(TINY, batches=2)
    monkeypatch.setattr(step_breakdown, "WORKLOADS", [one])
    monkeypatch.setattr(step_breakdown, "LARGE", replace(one, letter="L"))
    for name in ("SMALL", "MEDIUM", "LARGE"):
        monkeypatch.setattr(threads, name, one)


@pytest.mark.slow
def test_the_parts_of_a_step_are_shown_beside_its_products(capsys: pytest.CaptureFixture[str]) -> None:
    assert step_breakdown.main(["0.01"]) == 0
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [line[0].strip("| ") for line in table] == [*step_breakdown.PARTS, "step", "products alone", "captured step"]
    assert all(float(value.strip("| ").replace(",", "")) > 0 for line in table for value in line[1:])


@pytest.fixture
def same_threads_after() -> Iterator[None]:
    before = gf.get_num_threads()
    yield
    gf.set_num_threads(before)


@pytest.mark.skipif(importlib.util.find_spec("threadpoolctl") is None, reason="threadpoolctl is not installed")
@pytest.mark.usefixtures("same_threads_after")
def test_each_number_of_threads_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert threads.main(["0.02"]) in (0, 1)  # 1 on a machine with other load
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {TINY.size} |")]
    assert [int(row.split("|")[2]) for row in rows] == 3 * list(range(1, len(cores()) + 1))


@pytest.mark.slow
def test_the_share_of_the_step_in_an_epoch_is_measured() -> None:
    pytest.importorskip("sklearn")
    command = [sys.executable, "-m", "benchmarks.epoch_share", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode in (0, 1), done.stderr
    assert re.search(r"^the training step is 0\.\d\d of the time", done.stdout, re.MULTILINE)


def test_the_time_and_memory_of_reading_a_csv_file_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert reading.main(["20"]) == 0
    assert re.fullmatch(r"20 rows of 32 columns, 0 MB:\n0\.\d\d s \(of 5: .*\), \d+ MB\n", capsys.readouterr().out)


def test_the_trainer_and_the_bare_loop_that_are_timed_have_equal_losses() -> None:
    both = trainer.Both(replace(TINY, batches=4))
    both.check_equal()
    assert replays(both.step.status)
    assert replays(both.trainer._step.whole.status)
    assert trainer.saved(both.trainer)[0] > 4 * TINY.parameters


@pytest.mark.parametrize("command", [step_breakdown, threads, epoch_share, import_time, reading, trainer])
def test_a_wrong_argument_is_one_line_and_status_2(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.main(["many"])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "'many' is no" in captured.err
