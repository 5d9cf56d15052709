"""The backward pass alone: each call gets a new graph, created before the clock starts."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.conftest import Measure
from benchmarks.workloads import WORKLOADS, Training, Workload


@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_backward(workload: Workload, training: Training, measure: Measure) -> None:
    def fresh_graph() -> tuple[Any]:
        training.optimizer.zero_grad()
        return (training.forward(),)

    measure("backward", lambda loss: loss.backward(), size=workload.size, batch=workload.batch, setup=fresh_graph)
    assert any(gradient.any() for gradient in training.gradients())
