"""NumPy's second row: the same formulas with all arrays allocated beforehand, as fast as NumPy alone gets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.peers.peer import Peer
from benchmarks.workloads import OPTIMIZERS, Workload

CHUNK = 65_536
"""The number of elements that an optimizer updates at a time, so that the arrays stay in the cache."""


def views(flat: Any, like: list[Any]) -> list[Any]:
    """Consecutive parts of a flat array, in the shapes of the arrays `like`."""
    ends = np.cumsum([a.size for a in like])
    return [flat[end - a.size : end].reshape(a.shape) for a, end in zip(like, ends, strict=True)]


def chunks(*arrays: Any) -> Iterator[tuple[Any, ...]]:
    """The flat arrays, split into chunks side by side."""
    for i in range(0, arrays[0].size, CHUNK):
        yield tuple(a[i : i + CHUNK] for a in arrays)


class SGD:
    """SGD with momentum, on a flat array and its gradient."""

    def __init__(self, values: Any, gradient: Any, lr: float, momentum: float) -> None:
        # 0-d arrays, which NumPy's functions take faster than Python numbers
        self.lr, self.momentum = np.array(lr, values.dtype), np.array(momentum, values.dtype)
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
        self.lr, self.beta1, self.beta2 = lr, beta1, beta2
        self.constants = [np.array(x, values.dtype) for x in (beta1, 1 - beta1, beta2, 1 - beta2, eps)]
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
        beta1, one_minus_beta1, beta2, one_minus_beta2, eps = self.constants
        step_size = np.array(self.lr / (1 - self.beta1**self.count), eps.dtype)
        root_factor = np.array((1 - self.beta2**self.count) ** -0.5, eps.dtype)
        for p, g, m, v, t in self._parts:
            np.multiply(m, beta1, out=m)
            np.multiply(g, one_minus_beta1, out=t)
            np.add(m, t, out=m)
            np.multiply(v, beta2, out=v)
            np.multiply(g, g, out=t)
            np.multiply(t, one_minus_beta2, out=t)
            np.add(v, t, out=v)
            np.sqrt(v, out=t)
            np.multiply(t, root_factor, out=t)
            np.add(t, eps, out=t)
            np.divide(m, t, out=t)
            np.multiply(t, step_size, out=t)
            np.subtract(p, t, out=p)


class BufferedNumpy(Peer):
    """Parameters, gradients and moments in flat arrays; every result is written into a buffer."""

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
        """The mean squared error; writes its gradient to the last of `differences`."""
        outputs, difference = self.outputs[-1], self.differences[-1]
        np.subtract(outputs, targets, out=difference)
        loss = np.vdot(difference, difference) / difference.size
        np.multiply(difference, 2 / difference.size, out=difference)
        return loss

    def cross_entropy(self, positions: Any) -> Any:
        """The mean softmax cross-entropy; writes its gradient to the last of `differences`."""
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
