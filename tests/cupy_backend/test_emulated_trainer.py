"""Runs that stop and go on, on the CuPy backend with an emulated CuPy. It says nothing about a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from emulated_device import needs_compiler
from test_resume import Case, check_resume

import gradflow as gf
from gradflow.testing.workloads.workload import EPS

pytestmark = needs_compiler


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case(capture=True, keep="host", optimizer="momentum", loss="values"),
        Case(accumulate=2, average=0.9, clip_norm=0.5, weights=True, dropout=0.2),
    ],
)
def test_a_run_goes_on_with_the_same_bits(cupy: Any, case: Case, tmp_path: Path) -> None:
    with gf.use_device("emulated"):
        check_resume(case, [3], 7, tmp_path / "state.safetensors")


def test_a_run_goes_on_on_the_cpu_within_the_bound_of_agree(cupy: Any, tmp_path: Path) -> None:
    with gf.use_device("emulated"):
        trainer = Case().trainer()
        list(trainer.steps(6))
        trainer.save(tmp_path / "state.safetensors")
        expected = [step.loss.item() for step in trainer.steps(26)]
    trainer = Case().trainer()
    trainer.load(tmp_path / "state.safetensors")
    assert [step.loss.item() for step in trainer.steps(26)] == pytest.approx(expected, rel=6 * 17 * EPS * 20)
