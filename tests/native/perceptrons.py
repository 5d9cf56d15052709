"""A training of a perceptron, as threads, processes and memory checkers run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import gradflow as gf
from gradflow import nn, optim

SIZES = (40, 256, 256, 10)
"""Wide enough that a step of 64 rows is done by several threads."""


class Training:
    """A perceptron with dropout, trained by Adam with clipping; `through` makes the step that `run` calls."""

    def __init__(
        self,
        through: Callable[[Any], Any] = gf.capture,
        seed: int = 0,
        sizes: tuple[int, ...] = SIZES,
        rows: int = 64,
        lr: Any = 1e-3,
    ) -> None:
        self.numbers = np.random.default_rng(seed)
        self.generator = gf.Generator(seed)
        self.sizes, self.rows = sizes, rows
        self.model = nn.MLP(sizes, "relu", dropout=0.1, generator=self.generator)
        self.optimizer = optim.Adam(self.model.parameters(), lr)
        self.step = through(self.train)

    def train(self, x: gf.Tensor, labels: gf.Tensor) -> gf.Tensor:
        self.optimizer.zero_grad()
        loss = gf.cross_entropy(self.model(x), labels)
        loss.backward()
        optim.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss

    def run(self, steps: int) -> bytes:
        """Do so many steps of new batches; returns the bits of the losses and of the parameters."""
        losses = []
        for _ in range(steps):
            x = self.numbers.normal(size=(self.rows, self.sizes[0])).astype("float32")
            labels = self.numbers.integers(0, self.sizes[-1], self.rows)
            losses.append(self.step(gf.tensor(x), gf.tensor(labels)).detach().numpy())
        parameters = [p.detach().numpy() for p in self.model.parameters()]
        return b"".join(x.tobytes() for x in [*losses, *parameters])
