"""Steps beside a busy process: a tiny run, and what is computed from the times."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from benchmarks import busy as command
from benchmarks.busy import busy, compared, main

TINY_RUN = ["--workloads", "T", "--rounds", "1", "--turn", "0.02", "--threads", "1", "--rows", "numpy"]


@pytest.mark.slow
def test_rows_are_timed_alone_and_beside_a_busy_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    assert main([*TINY_RUN, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    for title in ("gradflow", "NumPy by hand"):
        assert re.search(rf"^\| {title}( \| [\d.,]+){{5}} \|$", printed, re.MULTILINE)
    (cell,) = json.loads(path.read_text())["cells"]
    found = cell["beside_a_busy_process"]["numpy"]
    assert found["busy_90"] >= found["busy"] > 0
    assert cell["rows"]["numpy"]["median"] == found["quiet"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell the time of a process")
def test_the_busy_process_computes_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(command.subprocess, "Popen", _recorded(command.subprocess.Popen, started))
    with busy(command.cores()[-1]):
        stat = Path(f"/proc/{started[0].pid}/stat")
        for _ in range(500):
            if int(stat.read_text().split()[13]) > 2:  # hundredths of a second, in user mode
                break
            time.sleep(0.02)
        else:
            pytest.fail("it does not compute")
    assert started[0].poll() is not None


def _recorded(function, calls):  # type: ignore[no-untyped-def]
    def call(*arguments, **options):  # type: ignore[no-untyped-def]
        calls.append(function(*arguments, **options))
        return calls[-1]

    return call


def test_the_median_and_the_90th_percentile_are_divided_by_the_quiet_median() -> None:
    found = compared([1.0, 2.0, 9.0], [float(i) for i in range(11)])
    assert found == {"quiet": 2.0, "busy": 5.0, "busy_90": 9.0, "ratio": 2.5, "ratio_90": 4.5}
    assert compared([1.0], [3.0])["ratio_90"] == 3.0
