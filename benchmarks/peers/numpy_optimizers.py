"""Straightforward SGD and Adam in NumPy, for peers without optimizers."""

from __future__ import annotations

from typing import Any

import numpy as np


class SGD:
    """SGD with momentum, on a list of arrays."""

    def __init__(self, parameters: list[Any], lr: float, momentum: float) -> None:
        self.parameters, self.lr, self.momentum = parameters, lr, momentum
        self.reset()

    def reset(self) -> None:
        """Forget all steps."""
        self.buffers = [np.zeros_like(p) for p in self.parameters]

    def step(self, gradients: list[Any]) -> None:
        """Update the parameters in place."""
        for p, g, buffer in zip(self.parameters, gradients, self.buffers, strict=True):
            buffer *= self.momentum
            buffer += g
            p -= self.lr * buffer


class Adam:
    """Adam, on a list of arrays."""

    def __init__(
        self, parameters: list[Any], lr: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        self.parameters, self.lr, self.beta1, self.beta2, self.eps = parameters, lr, beta1, beta2, eps
        self.reset()

    def reset(self) -> None:
        """Forget all steps."""
        self.count = 0
        self.means = [np.zeros_like(p) for p in self.parameters]
        self.squares = [np.zeros_like(p) for p in self.parameters]

    def step(self, gradients: list[Any]) -> None:
        """Update the parameters in place."""
        self.count += 1
        correction1, correction2 = 1 - self.beta1**self.count, 1 - self.beta2**self.count
        for p, g, m, v in zip(self.parameters, gradients, self.means, self.squares, strict=True):
            m *= self.beta1
            m += (1 - self.beta1) * g
            v *= self.beta2
            v += (1 - self.beta2) * g * g
            p -= self.lr * (m / correction1) / (np.sqrt(v / correction2) + self.eps)
