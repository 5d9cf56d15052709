"""One epoch: shuffle, gather each batch on the device and train on it; the mean loss is read once, at the end."""

from __future__ import annotations

import math

import pytest

from benchmarks.conftest import Measure
from benchmarks.workloads import WORKLOADS, Training, Workload


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_epoch(workload: Workload, training: Training, measure: Measure) -> None:
    name, batches = f"epoch of {workload.batches} batches", workload.batches
    loss = measure(name, training.epoch, size=workload.size, batch=workload.batch, batches=batches)
    assert math.isfinite(loss)
