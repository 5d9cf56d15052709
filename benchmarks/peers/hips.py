"""HIPS autograd's row."""

from __future__ import annotations

from typing import Any

import autograd.numpy as anp
from autograd import value_and_grad

from benchmarks.peers.numpy_plain import NumpyPeer
from benchmarks.workloads import Workload


def mse_loss(outputs: Any, targets: Any) -> Any:
    """Return the mean squared error."""
    return anp.mean((outputs - targets) ** 2)


def cross_entropy(logits: Any, labels: Any) -> Any:
    """Return the mean cross-entropy of softmax(logits) and integer labels."""
    shifted = logits - anp.max(logits, axis=1, keepdims=True)
    chosen = shifted[anp.arange(len(labels)), labels]
    return anp.mean(anp.log(anp.sum(anp.exp(shifted), axis=1)) - chosen)


class HipsAutograd(NumpyPeer):
    """Gradients by HIPS autograd, the optimizer in NumPy."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        loss = {"mse_loss": mse_loss, "cross_entropy": cross_entropy}[workload.loss]

        def compute_loss(parameters: list[Any], x: Any, y: Any) -> Any:
            for i in range(0, len(parameters), 2):
                x = anp.dot(x, parameters[i].T) + parameters[i + 1]
                if i < len(parameters) - 2:
                    x = anp.maximum(x, 0)
            return loss(x, y)

        self._differentiate = value_and_grad(compute_loss)

    def step(self, x: Any, y: Any) -> Any:
        loss, gradients = self._differentiate(self.parameters, x, y)
        self.optimizer.step(gradients)
        return loss
