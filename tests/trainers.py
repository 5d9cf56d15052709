"""What the tests of the Trainer share: data of three classes, and trainers of it."""

from __future__ import annotations

from typing import Any

import numpy as np

import gradflow as gf
from gradflow import nn, optim
from gradflow.data import Batches
from gradflow.training import Trainer

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(70, 4)).astype("float32")
LABELS = (INPUTS[:, 0] * 2 + INPUTS[:, 1] > 0).astype("int64") + (INPUTS[:, 2] > 1)
VALUES = (INPUTS @ RNG.normal(size=(4, 2)) + 0.1 * RNG.normal(size=(70, 2))).astype("float32")
WEIGHTS = RNG.uniform(0.5, 2.0, size=70)


def make(
    batch: int = 16, lr: Any = 0.05, weights: Any = None, validate: bool = False, dropout: float = 0.0, **options: Any
) -> Trainer:
    """Return a trainer of three classes on the current device."""
    model = nn.MLP([4, 8, 3], dropout=dropout, generator=gf.Generator(1))
    train = Batches(INPUTS, LABELS, batch, gf.Generator(2), weights=weights)
    validation = Batches(INPUTS[:30], LABELS[:30], 20, shuffle=False) if validate else None
    return Trainer(
        model, gf.cross_entropy, optim.SGD(model.parameters(), lr, momentum=0.9), train, validation, **options
    )


def weights_of(trainer: Trainer) -> list[Any]:
    return [p.detach().numpy() for p in trainer.model.parameters()]


def equal(a: list[Any], b: list[Any]) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def user_loss(outputs: gf.Tensor, targets: gf.Tensor) -> gf.Tensor:
    return gf.cross_entropy(outputs, targets)
