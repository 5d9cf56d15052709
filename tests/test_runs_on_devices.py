"""Runs on a GPU: the same bits after a stop, and other devices that go on. Without a GPU, on `fake` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import GPU

import gradflow as gf
from gradflow.cli import main
from gradflow.testing.workloads.workload import EPS
from gradflow.training import load_run
from tests.test_resume import Case, check_resume, outcome

pytestmark = pytest.mark.parametrize("device", ["fake", GPU], indirect=True)

BOUND = 6 * 17 * EPS * 20
"""Of the losses of 20 steps: that of `gradflow agree`, for sums of 17 terms."""


@pytest.mark.parametrize(
    "case",
    [
        Case(model="table", capture=True, optimizer="momentum"),
        Case(model="table", dropout=0.3, accumulate=2, average=0.9, clip_norm=0.5, weights=True),
        Case(capture=True, keep="host", average=0.9, class_weight="balanced"),
        Case(autocast="float16", capture=True, average=0.9, clip_norm=0.5),
    ],
)
def test_a_run_goes_on_with_the_same_bits(device: str, case: Case, tmp_path: Path) -> None:
    """With gradients of repeated indices and with dropout, plain and captured."""
    check_resume(case, [3, 5], 10, tmp_path / "state.safetensors")


def check_going_on(case: Case, first: str, second: str, path: Path) -> None:
    """Assert that a run saved on the first device goes on, for 20 steps on the second, within the bound."""
    with gf.use_device(first):
        trainer = case.trainer()
        list(trainer.steps(6))
        trainer.save(path)
        expected = [step.loss.item() for step in trainer.steps(26)]
    with gf.use_device(second):
        trainer = case.trainer()
        trainer.load(path)
        found = [step.loss.item() for step in trainer.steps(26)]
    assert {p.device for p in trainer.model.parameters()} == {gf.get_backend(second).device}
    assert found == pytest.approx(expected, rel=BOUND)


@pytest.mark.parametrize("case", [Case(capture=True), Case(model="table", average=0.9, clip_norm=0.5)])
def test_a_run_goes_on_on_the_cpu_and_back(device: str, case: Case, tmp_path: Path) -> None:
    for first, second in ((device, "cpu"), ("cpu", device)):
        check_going_on(case, first, second, tmp_path / "state.safetensors")


def check_kept(case: Case, n: int) -> None:
    """Assert that n steps have the same bits wherever the data is kept."""
    found = []
    for keep in ("device", "host"):
        trainer = Case(**{**vars(case), "keep": keep}).trainer()
        assert trainer.train.kept == keep
        losses = [step.loss for step in trainer.steps(n)]
        found.append((outcome(trainer), [loss.item() for loss in losses]))
    assert found[0] == found[1]


@pytest.mark.parametrize("capture", [True, False])
def test_a_run_is_the_same_wherever_the_data_is_kept(
    device: str, capture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradflow.data.loader._GATHERED", 1)  # each batch is copied on its own
    check_kept(Case(capture=capture, weights=True, batch=7), 20)


def a_table() -> str:
    """Write a file with numbers, of which some are missing, and categories of 3 and of 40 levels; return its name."""
    rng, lines = np.random.default_rng(0), ["size,gap,color,city,y"]
    for i in range(240):
        size, color = rng.normal(), rng.integers(3)
        lines.append(f"{size:.4f},{'' if i % 7 == 0 else i * i % 53},c{color},t{i % 40},{'ny'[int(size + color > 1)]}")
    Path("table.csv").write_text("\n".join(lines), encoding="utf-8")
    return "table.csv"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["iris", "table"])
def test_the_command_trains_on_a_device_and_predicts_on_the_cpu(
    device: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("sklearn", "matplotlib", "tomli_w", "tqdm"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    name, options = (kind, []) if kind == "iris" else (a_table(), ["--encoding", "piecewise"])
    train = ["train", name, "--epochs", "2", "--hidden", "8", "--device", device, "--out", "run"]
    assert main([*train, *options]) == 0
    assert main(("predict", "run", name, "--device", "cpu", "--out", "p.csv")) == 0
    x: Any = gf.data.load("iris").inputs if kind == "iris" else name
    there, here = load_run("run", device).predict_proba(x), load_run("run", "cpu").predict_proba(x)
    assert len(Path("p.csv").read_text(encoding="utf-8").splitlines()) == len(here) + 1 == (151, 241)[kind == "table"]
    np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-7)
