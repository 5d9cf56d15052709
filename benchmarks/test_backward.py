"""The backward pass alone: each call gets a new graph, created before the clock starts."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.conftest import Timed
from benchmarks.workloads import WORKLOADS, Training


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_backward(training: Training, timed_training: Timed) -> None:
    def fresh_graph() -> tuple[Any]:
        training.optimizer.zero_grad()
        return (training.forward(),)

    timed_training(lambda loss: loss.backward(), workload="backward", setup=fresh_graph)
    assert any(gradient.any() for gradient in training.gradients())
