"""The forward pass: a batch through the model to its loss, recorded for a backward pass."""

from __future__ import annotations

import math

import pytest

from benchmarks.conftest import Timed
from benchmarks.workloads import WORKLOADS, Training


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_forward(training: Training, timed_training: Timed) -> None:
    loss = timed_training(training.forward, workload="forward")
    assert math.isfinite(float(loss.detach()))
