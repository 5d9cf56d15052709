"""Training steps (zeroing gradients, forward, backward, optimizer), ten a round, always from the same weights.

The work changes as a model is trained (its gradients vanish and its numbers become subnormal), so `device_benchmark`
restores the weights before each round.
"""

from __future__ import annotations

import math

import pytest

from benchmarks.conftest import Measure
from benchmarks.workloads import STEPS, SWEEP, WORKLOADS, Training, Workload


@pytest.mark.parametrize("workload", [*WORKLOADS, *SWEEP], ids=str)
def test_train_step(workload: Workload, training: Training, measure: Measure) -> None:
    inputs = training.x, training.y
    loss = measure("train step", training.step, *inputs, size=workload.size, batch=workload.batch, steps=STEPS)
    assert math.isfinite(float(loss.detach()))
