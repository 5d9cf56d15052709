"""Training steps (zeroing gradients, forward, backward, optimizer), always from the initial weights.

The work changes as a model is trained (its gradients vanish and its numbers become subnormal), so each timed call
restores the initial weights first.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.conftest import Timed
from benchmarks.workloads import STEPS, SWEEP, WORKLOADS, Training


@pytest.mark.parametrize("workload", [*WORKLOADS, *SWEEP], ids=str)
def test_train_step(training: Training, timed_training: Timed) -> None:
    def start() -> tuple[Any, ...]:
        training.restore()
        return ()

    loss = timed_training(training.steps, workload="train step", setup=start, steps=STEPS)
    assert math.isfinite(float(loss.detach()))
