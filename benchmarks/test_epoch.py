"""One epoch: shuffle, gather each batch on the device and train on it; the mean loss is read once, at the end."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.conftest import Timed
from benchmarks.workloads import WORKLOADS, Training


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_epoch(training: Training, timed_training: Timed) -> None:
    def start() -> tuple[Any, ...]:
        training.restore()
        return ()

    loss = timed_training(training.epoch, workload="epoch", setup=start, steps=training.workload.batches)
    assert math.isfinite(loss)
