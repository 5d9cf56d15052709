"""Runs in mixed precision: `gradflow train --autocast`, what its folder says, repeating it and going on with it."""

from __future__ import annotations

import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradflow_numpy import NumpyBackend

from gradflow import optim
from gradflow.cli import main
from gradflow.training import Run, Settings, load_run, precision, resume
from gradflow.training.runs.compare import read_record

pytest.importorskip("safetensors")
pytest.importorskip("sklearn")
OPTIONS = ["--hidden", "8", "--epochs", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def nothing_was_said() -> None:
    precision._say_slow.cache_clear()


@pytest.fixture
def overflowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first steps of each run overflow."""
    monkeypatch.setattr(precision, "GradScaler", partial(optim.GradScaler, init_scale=2.0**27))


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_a_run_says_what_it_computes_in(half: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Equal runs have equal bytes. Predictions are those of the weights, in float32."""
    folders = [tmp_path / "first", tmp_path / "again"]
    assert main(["train", "iris", *OPTIONS, "--autocast", half, "--ensemble", "2", "--out", str(folders[0])]) == 0
    out, err = capfd.readouterr()
    assert f"models: 2, each 4-8-3, relu, 67 parameters, products in {half}\n" in out
    assert err.count("gradflow: note: ") == err.count("half precision is slow on the cpu") == 1
    assert main(["train", "--config", str(folders[0]), "--out", str(folders[1]), "--quiet"]) == 0
    for name in ("metrics.csv", "model.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert tomllib.loads((folders[0] / "config.toml").read_text())["settings"]["autocast"] == half
    report = (folders[0] / "report.html").read_text()
    assert f"Training was in mixed precision: layers ran in {half}; losses, sums" in report
    header = (folders[0] / "metrics.csv").read_text().split("\n")[0]
    assert header.endswith(",skipped_steps") == (half == "float16")
    predictor, x = load_run(folders[0]), np.ones((1, 4), np.float32)
    for member in predictor.members:
        assert {p.dtype.name for p in member.parameters()} == {"float32"}
    assert predictor.predict_proba(x).dtype == np.float32


def test_none_turns_a_setting_of_a_repeated_run_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"autocast": "float16", "average": 0.9, "class_weight": "balanced", "clip_norm": 1.0, "patience": 2}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["train", "iris", *OPTIONS, *words, "--out", str(tmp_path / "first")]) == 0
    off = [word if word.startswith("--") else "none" for word in words]
    assert main(["train", "--config", str(tmp_path / "first"), *off, "--out", str(tmp_path / "off")]) == 0
    first, second = (
        tomllib.loads((tmp_path / name / "config.toml").read_text())["settings"] for name in ("first", "off")
    )
    assert given.items() <= first.items()
    assert not any(second.get(name) for name in given)  # an average of 0 is none
    assert main(["train", "iris", "--clip-norm", "nothing"]) == 2
    assert "--clip-norm: invalid float value: 'nothing'" in capsys.readouterr().err


def test_skipped_steps_are_told(overflowing: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(["train", "iris", *OPTIONS, "--autocast", "float16", "--out", str(folder)]) == 0
    skipped = [int(row.split(",")[-1]) for row in (folder / "metrics.csv").read_text().split("\n")[1:-1]]
    assert skipped[0] > 1
    told = f"{sum(skipped)} steps changed nothing, because gradients overflowed"
    assert f"gradflow: note: {told} float16\n" in capfd.readouterr().err
    assert told in (folder / "report.html").read_text()
    assert [epoch.skipped for epoch in read_record(folder).histories[0]] == skipped


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(overflowing: None, tmp_path: Path) -> None:
    settings = Settings("iris", hidden=(8,), epochs=12, device="cpu", autocast="float16", batch_size=16)
    with Run.new(settings, tmp_path / "whole") as run:
        list(run.steps())
        run.finish()
    for stop in (1, 9):
        folder = tmp_path / f"stopped {stop}"
        with Run.new(settings, folder) as run:
            for step in run.steps():
                if step.step == stop:
                    break
            run.finish("stopped")
        resume(folder)
        for name in ("metrics.csv", "model.safetensors"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_run_that_overflows_forward_fails_with_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    X = np.tile(np.float32([[1e4], [-1e4]]), (50, 1))
    np.savez(tmp_path / "data.npz", X=X, y=np.tile(np.float32([1e30, -1e30]), 50))
    command = ["train", str(tmp_path / "data.npz"), "--lr", "1e6", "--optimizer", "sgd", "--schedule", "constant"]
    assert main([*command, *OPTIONS, "--autocast", "float16", "--out", str(tmp_path / "run"), "--quiet"]) == 1
    *_, last = capfd.readouterr().err.splitlines()
    assert "gradflow: error: the " in last
    assert "in epoch 1; try bfloat16 or float32, since float16 ends at 65504; else try a lower learning rate" in last


def test_bfloat16_needs_an_extra(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def supports(self: Any, dtype: str) -> bool:
        return dtype in self.dtypes and dtype != "bfloat16"

    monkeypatch.setattr(NumpyBackend, "supports", supports)
    folder = tmp_path / "run"
    assert main(["train", "iris", *OPTIONS, "--autocast", "bfloat16", "--quiet", "--out", str(folder)]) == 2
    _, err = capfd.readouterr()
    assert err.startswith(
        'gradflow: error: autocast: device cpu does not support bfloat16 without ml_dtypes from the extra "half"'
    )
    assert err.count("\n") == 1
    assert not folder.exists()
