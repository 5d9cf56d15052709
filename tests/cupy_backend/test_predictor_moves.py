"""A model file of an emulated CuPy predicts on the CPU, and one of the CPU on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow.data import Standardizer
from gradflow.training import Predictor, load_run

pytest.importorskip("safetensors", reason="safetensors, of the extra train, is not installed")


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("there", "here"), [("emulated", "cpu"), ("cpu", "emulated")])
def test_a_model_file_predicts_on_the_other_device(there: str, here: str, tmp_path: Path) -> None:
    with gf.use_device(there):
        models = [nn.MLP([4, 8, 3], "gelu") for _ in range(2)]
        predictor = Predictor(models, Standardizer(np.full(4, 5.0), np.full(4, 2.0), 3.0), classes=["a", "b", "c"])
        assert predictor.device == gf.current_device()
        gf.save(tmp_path / "model.safetensors", predictor.tree())
    x = np.random.default_rng(0).normal(5, 2, (50, 4))
    found = load_run(tmp_path, here)
    assert found.device == gf.get_backend(here).device
    np.testing.assert_allclose(found.predict_proba(x), predictor.predict_proba(x), rtol=1e-5)
    assert (found.predict(x) == predictor.predict(x)).all()
