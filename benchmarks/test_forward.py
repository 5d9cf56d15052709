"""The forward pass: a batch through the model to its loss, recorded for a backward pass."""

from __future__ import annotations

import math

import pytest

from benchmarks.conftest import Measure
from benchmarks.workloads import WORKLOADS, Training, Workload


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_forward(workload: Workload, training: Training, measure: Measure) -> None:
    loss = measure("forward", training.forward, size=workload.size, batch=workload.batch)
    assert math.isfinite(float(loss.detach()))
