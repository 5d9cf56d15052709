"""Training steps (gradients to nothing, forward, backward, optimizer): always the same ones, from the initial weights.

A model that is trained on does other work in the end (its gradients vanish, its numbers become subnormal), so each
timed call begins anew.
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
