"""NumPy's row: backpropagation as in a textbook."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers import numpy_optimizers
from benchmarks.peers.peer import Peer
from benchmarks.workloads import Workload, make_optimizer


def mse_loss(outputs: Any, targets: Any) -> tuple[Any, Any]:
    """Return the mean squared error and its gradient."""
    difference = outputs - targets
    return (difference**2).mean(), 2 / difference.size * difference


def cross_entropy(logits: Any, labels: Any) -> tuple[Any, Any]:
    """Return the mean cross-entropy of softmax(logits) and integer labels, and its gradient."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True)
    gradient = exponentials / sums
    gradient[rows, labels] -= 1
    return (np.log(sums[:, 0]) - shifted[rows, labels]).mean(), gradient / len(labels)


class NumpyPeer(Peer):
    """A row with its parameters, optimizer and batches in NumPy."""

    def __init__(self, workload: Workload) -> None:
        self._start = workload.weights()
        self.parameters = [w.copy() for w in self._start]
        self.optimizer = make_optimizer(numpy_optimizers, workload, self.parameters)
        self.batches = workload.slices()

    def restore(self) -> None:
        for parameter, start in zip(self.parameters, self._start, strict=True):
            parameter[...] = start
        self.optimizer.reset()


class PlainNumpy(NumpyPeer):
    """One line per formula, a new array for every result."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.loss = {"mse_loss": mse_loss, "cross_entropy": cross_entropy}[workload.loss]

    def step(self, x: Any, y: Any) -> Any:
        weights, biases = self.parameters[::2], self.parameters[1::2]
        inputs = [x]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            inputs.append(np.maximum(inputs[-1] @ weight.T + bias, 0))
        loss, gradient = self.loss(inputs[-1] @ weights[-1].T + biases[-1], y)
        gradients: list[Any] = []
        for i in reversed(range(len(weights))):
            gradients = [gradient.T @ inputs[i], gradient.sum(axis=0), *gradients]
            if i:
                gradient = gradient @ weights[i] * (inputs[i] > 0)
        self.optimizer.step(gradients)
        return loss
