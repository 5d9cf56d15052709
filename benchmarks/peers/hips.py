"""The row of HIPS autograd."""

from __future__ import annotations

from typing import Any

import autograd.numpy as anp
from autograd import value_and_grad

from benchmarks.peers import numpy_optimizers
from benchmarks.peers.peer import Peer
from benchmarks.workloads import Workload, make_optimizer


def mse_loss(outputs: Any, targets: Any) -> Any:
    """The mean squared error."""
    return anp.mean((outputs - targets) ** 2)


def cross_entropy(logits: Any, labels: Any) -> Any:
    """The mean cross-entropy of softmax(logits) from integer labels."""
    shifted = logits - anp.max(logits, axis=1, keepdims=True)
    chosen = shifted[anp.arange(len(labels)), labels]
    return anp.mean(anp.log(anp.sum(anp.exp(shifted), axis=1)) - chosen)


class HipsAutograd(Peer):
    """The derivatives by HIPS autograd, the optimizer in NumPy."""

    def __init__(self, workload: Workload) -> None:
        loss = {"mse_loss": mse_loss, "cross_entropy": cross_entropy}[workload.loss]

        def compute_loss(parameters: list[Any], x: Any, y: Any) -> Any:
            for i in range(0, len(parameters), 2):
                x = anp.dot(x, parameters[i].T) + parameters[i + 1]
                if i < len(parameters) - 2:
                    x = anp.maximum(x, 0)
            return loss(x, y)

        self._differentiate = value_and_grad(compute_loss)
        self._start = workload.weights()
        self.parameters = [w.copy() for w in self._start]
        self.optimizer = make_optimizer(numpy_optimizers, workload, self.parameters)
        self.batches = workload.slices()

    def step(self, x: Any, y: Any) -> Any:
        loss, gradients = self._differentiate(self.parameters, x, y)
        self.optimizer.step(gradients)
        return loss

    def restore(self) -> None:
        for parameter, start in zip(self.parameters, self._start, strict=True):
            parameter[...] = start
        self.optimizer.reset()
