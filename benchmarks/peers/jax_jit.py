"""JAX's row."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.peers.peer import Peer
from benchmarks.workloads import OPTIMIZERS, Workload


def mse_loss(outputs: Any, targets: Any) -> Any:
    """Return the mean squared error."""
    return jnp.mean(jnp.square(outputs - targets))


def cross_entropy(logits: Any, labels: Any) -> Any:
    """Return the mean cross-entropy of softmax(logits) and integer labels."""
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)


def compute_loss(loss: Any, parameters: Any, x: Any, y: Any) -> Any:
    """Return the loss of the perceptron."""
    for weight, bias in parameters[:-1]:
        x = jax.nn.relu(x @ weight.T + bias)
    weight, bias = parameters[-1]
    return loss(x @ weight.T + bias, y)


def sgd(parameters: Any, state: Any, gradients: Any, lr: float, momentum: float) -> tuple[Any, Any]:
    """Return the parameters and the momentum after a step of SGD."""
    state = jax.tree.map(lambda m, g: momentum * m + g, state, gradients)
    return jax.tree.map(lambda p, m: p - lr * m, parameters, state), state


def adam(parameters: Any, state: Any, gradients: Any, lr: float) -> tuple[Any, Any]:
    """Return the parameters, and the step count with both moments, after a step of Adam."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    count, mean, square = state
    count = count + 1
    mean = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, mean, gradients)
    square = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, square, gradients)

    def update(p: Any, m: Any, v: Any) -> Any:
        step = lr * (m / (1 - beta1**count)) / (jnp.sqrt(v / (1 - beta2**count)) + eps)
        return (p - step).astype(p.dtype)

    return jax.tree.map(update, parameters, mean, square), (count, mean, square)


class Jit(Peer):
    """The whole step (loss, gradient, update) in one compiled function that reuses the memory of its arguments."""

    def __init__(self, workload: Workload) -> None:
        loss = partial(self.compute_loss, {"mse_loss": mse_loss, "cross_entropy": cross_entropy}[workload.loss])
        rule = partial({"SGD": sgd, "Adam": adam}[workload.optimizer], **OPTIMIZERS[workload.optimizer])

        @partial(jax.jit, donate_argnums=(0, 1))
        def step(parameters: Any, state: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
            value, gradients = jax.value_and_grad(loss)(parameters, x, y)
            return *rule(parameters, state, gradients), value

        self._step, self._adaptive = step, workload.optimizer == "Adam"
        weights = workload.weights()
        self._start = list(zip(weights[::2], weights[1::2], strict=True))
        self._dtype = workload.dtype
        self.batches = [(self._moved(x), self._moved(y)) for x, y in workload.slices()]
        self.restore()

    def compute_loss(self, loss: Any, parameters: Any, x: Any, y: Any) -> Any:
        """Return the loss of the perceptron."""
        return compute_loss(loss, parameters, x, y)

    def _moved(self, values: Any) -> Any:
        """Values on JAX's device; labels stay integers."""
        return jnp.array(values, self._dtype if values.dtype.kind == "f" else None)

    def step(self, x: Any, y: Any) -> Any:
        self.parameters, self.state, loss = jax.block_until_ready(self._step(self.parameters, self.state, x, y))
        return loss

    def restore(self) -> None:
        def zeros() -> Any:
            return jax.tree.map(jnp.zeros_like, self.parameters)

        self.parameters = jax.tree.map(self._moved, self._start)
        self.state = (jnp.zeros((), jnp.int32), zeros(), zeros()) if self._adaptive else zeros()
        jax.block_until_ready((self.parameters, self.state))
