"""What the tests of captured steps share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradflow as gf
from gradflow import nn, optim

Step = Callable[..., Any]


def as_it_is(step: Step) -> Step:
    return step


def held(w: gf.Tensor) -> gf.Tensor:
    assert w.grad is not None
    return w.grad


def make_training_of_a_layer() -> tuple[nn.Linear, optim.Optimizer, Step]:
    gf.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.01)

    def step(x: gf.Tensor) -> gf.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return model, optimizer, step
