"""NumPy's second row: the same formulas with every array made beforehand, as fast as NumPy alone gets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.peers.peer import Peer
from benchmarks.workloads import OPTIMIZERS, Workload

CHUNK = 65_536
"""The elements that the optimizer takes at a time: what it reads and writes of them stays in the cache."""


def views(flat: Any, like: list[Any]) -> list[Any]:
    """Parts of a flat array, one after another, in the shapes of the arrays `like`."""
    ends = np.cumsum([a.size for a in like])
    return [flat[end - a.size : end].reshape(a.shape) for a, end in zip(like, ends, strict=True)]


def chunks(*arrays: Any) -> Iterator[tuple[Any, ...]]:
    """The flat arrays side by side, in chunks."""
    for i in range(0, arrays[0].size, CHUNK):
        yield tuple(a[i : i + CHUNK] for a in arrays)


class SGD:
    """SGD with momentum, on a flat array and its gradient."""

    def __init__(self, values: Any, gradient: Any, lr: float, momentum: float) -> None:
        self.lr, self.momentum = lr, momentum
        self.buffer = np.zeros_like(values)
        scratch = np.empty(min(CHUNK, values.size), values.dtype)
        self._parts = [(*part, scratch[: part[0].size]) for part in chunks(values, gradient, self.buffer)]

    def reset(self) -> None:
        """Forget all steps."""
        self.buffer[...] = 0

    def step(self) -> None:
        """Update the values in place."""
        for p, g, buffer, t in self._parts:
            np.multiply(buffer, self.momentum, out=buffer)
            np.add(buffer, g, out=buffer)
            np.multiply(buffer, self.lr, out=t)
            np.subtract(p, t, out=p)


class Adam:
    """Adam, on a flat array and its gradient."""

    def __init__(
        self, values: Any, gradient: Any, lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.mean, self.square = np.zeros_like(values), np.zeros_like(values)
        scratch = np.empty(min(CHUNK, values.size), values.dtype)
        parts = chunks(values, gradient, self.mean, self.square)
        self._parts = [(*part, scratch[: part[0].size]) for part in parts]
        self.count = 0

    def reset(self) -> None:
        """Forget all steps."""
        self.mean[...] = self.square[...] = self.count = 0

    def step(self) -> None:
        """Update the values in place."""
        self.count += 1
        rate = self.lr / (1 - self.beta1**self.count)
        root = (1 - self.beta2**self.count) ** -0.5
        for p, g, m, v, t in self._parts:
            np.multiply(m, self.beta1, out=m)
            np.multiply(g, 1 - self.beta1, out=t)
            np.add(m, t, out=m)
            np.multiply(v, self.beta2, out=v)
            np.multiply(g, g, out=t)
            np.multiply(t, 1 - self.beta2, out=t)
            np.add(v, t, out=v)
            np.sqrt(v, out=t)
            np.multiply(t, root, out=t)
            np.add(t, self.eps, out=t)
            np.divide(m, t, out=t)
            np.multiply(t, rate, out=t)
            np.subtract(p, t, out=p)


class BufferedNumpy(Peer):
    """Parameters, gradients and moments in flat arrays, every product and every formula written into a buffer."""

    def __init__(self, workload: Workload) -> None:
        weights, batch = workload.weights(), workload.batch
        self._start = np.concatenate([w.ravel() for w in weights])
        self._values, gradient = self._start.copy(), np.empty_like(self._start)
        parameters, gradients = views(self._values, weights), views(gradient, weights)
        self.weights, self.biases = parameters[::2], parameters[1::2]
        self.weight_gradients, self.bias_gradients = gradients[::2], gradients[1::2]
        rule = {"SGD": SGD, "Adam": Adam}[workload.optimizer]
        self.optimizer: Any = rule(self._values, gradient, **OPTIMIZERS[workload.optimizer])

        def buffers(dtype: Any) -> list[Any]:
            return [np.empty((batch, width), dtype) for width in workload.layers[1:]]

        self.outputs, self.differences, self.masks = buffers(np.float32), buffers(np.float32), buffers(bool)
        self._ones = np.ones(batch, np.float32)
        self._column, self._chosen = np.empty((batch, 1), np.float32), np.empty(batch, np.float32)
        self.batches = workload.slices()
        self.loss = self.mse_loss
        if workload.loss == "cross_entropy":  # labels as positions in the flat logits
            self.loss = self.cross_entropy
            first = workload.layers[-1] * np.arange(batch)
            self.batches = [(x, first + y) for x, y in self.batches]

    def mse_loss(self, targets: Any) -> Any:
        """The mean squared error; its gradient goes to the last of `differences`."""
        outputs, difference = self.outputs[-1], self.differences[-1]
        np.subtract(outputs, targets, out=difference)
        loss = np.vdot(difference, difference) / difference.size
        np.multiply(difference, 2 / difference.size, out=difference)
        return loss

    def cross_entropy(self, positions: Any) -> Any:
        """The mean cross-entropy of softmax; its gradient goes to the last of `differences`."""
        logits, difference, column, chosen = self.outputs[-1], self.differences[-1], self._column, self._chosen
        np.max(logits, axis=1, keepdims=True, out=column)
        np.subtract(logits, column, out=logits)
        np.take(logits.reshape(-1), positions, out=chosen, mode="clip")  # the mode that needs no copy
        np.exp(logits, out=difference)
        np.sum(difference, axis=1, keepdims=True, out=column)
        np.divide(difference, column, out=difference)
        difference.reshape(-1)[positions] -= 1
        np.divide(difference, len(positions), out=difference)
        np.log(column, out=column)
        return column.mean() - chosen.mean()

    def step(self, x: Any, y: Any) -> Any:
        last = len(self.weights) - 1
        h = x
        for i, out in enumerate(self.outputs):
            np.matmul(h, self.weights[i].T, out=out)
            np.add(out, self.biases[i], out=out)
            if i < last:
                np.greater(out, 0, out=self.masks[i])
                np.maximum(out, 0, out=out)
            h = out
        loss = self.loss(y)
        for i in range(last, -1, -1):
            difference = self.differences[i]
            np.matmul(difference.T, self.outputs[i - 1] if i else x, out=self.weight_gradients[i])
            np.matmul(self._ones, difference, out=self.bias_gradients[i])
            if i:
                below = self.differences[i - 1]
                np.matmul(difference, self.weights[i], out=below)
                np.multiply(below, self.masks[i - 1], out=below)
        self.optimizer.step()
        return loss

    def restore(self) -> None:
        self._values[...] = self._start
        self.optimizer.reset()
