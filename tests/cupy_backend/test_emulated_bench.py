"""`gradflow bench` on the CuPy backend with an emulated CuPy. It says nothing about a GPU."""

from __future__ import annotations

import json
from typing import Any

import pytest
from emulated_device import needs_compiler

from gradflow.benchmarking import measuring
from gradflow.cli import main


@pytest.mark.slow
@needs_compiler
def test_both_ways_are_timed_and_memory_is_counted(
    backend: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measuring, "_MOST_ROUNDS", 1)
    words = ("bench", "6-4-3", "--batch", "2,8", "--devices", "cpu,emulated", "--seconds", "60", "--json")
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    rows = [row for row in document["rows"] if row["device"] == "emulated:0"]
    assert [row["batch"] for row in rows] == [2, 8]
    assert all(row[mode]["median"] > 0 for row in rows for mode in ("plain", "captured"))
    assert all(row["memory"] >= 0 for row in rows)
    assert not document["remarks"]
