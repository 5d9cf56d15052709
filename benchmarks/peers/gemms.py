"""The lower bound for all rows: the matrix products of a training step and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.peer import Peer
from benchmarks.workloads import Workload


def products(workload: Workload) -> list[list[tuple[Any, Any, Any]]]:
    """Return, for each batch, the products of a step as (left, right, array for the result)."""
    weights = workload.weights()[::2]
    rng = np.random.default_rng(0)

    def buffer(width: int) -> Any:
        return rng.standard_normal((workload.batch, width), dtype=np.float32)

    outputs, differences = ([buffer(len(w)) for w in weights] for _ in range(2))
    gradients = [np.empty_like(w) for w in weights]
    found = []
    for x, _ in workload.slices():
        inputs = [x, *outputs]
        forward = [(h, w.T, out) for h, w, out in zip(inputs, weights, outputs, strict=False)]
        backward = []
        for i in reversed(range(len(weights))):
            backward.append((differences[i].T, inputs[i], gradients[i]))
            if i:
                backward.append((differences[i], weights[i], differences[i - 1]))
        found.append(forward + backward)
    return found


class NumpyGemms(Peer):
    """The products, computed by NumPy's BLAS."""

    trains = False

    def __init__(self, workload: Workload) -> None:
        self.batches = [(each,) for each in products(workload)]

    def step(self, calls: list[tuple[Any, Any, Any]]) -> None:
        for left, right, out in calls:
            np.matmul(left, right, out=out)

    def restore(self) -> None:
        """Nothing to restore: steps change only values, which do not affect the time."""
