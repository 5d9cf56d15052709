"""The metrics of training: kinds, figures against scikit-learn, devices, weights, captured steps, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.data import Batches
from gradflow.training.metrics import Metrics, figures_of

pytest.importorskip("sklearn")


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def figures(
    names: Any, loss: Any, outputs: Any, targets: Any, weights: Any = None, size: int = 16, device: Any = None
) -> dict[str, float]:
    """The figures of these outputs, in batches."""
    batches = Batches(outputs, targets, size, shuffle=False, weights=weights, device=device)
    metrics = Metrics(names, loss, batches)
    return metrics.figures([metrics.partial(*batch) for batch in batches])


def test_accuracy_of_classes(device: str) -> None:
    outputs, labels = random().normal(size=(50, 3)).astype("float32"), random(1).integers(3, size=50)
    expected = (outputs.argmax(1) == labels).mean()
    assert figures(["accuracy"], gf.cross_entropy, outputs, labels) == {"accuracy": expected}


def test_figures_of_host_arrays() -> None:
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    assert figures_of(["accuracy", "auroc"], "classes", p, np.array([0, 1, 1])) == {"accuracy": 2 / 3, "auroc": 1.0}
