"""A training run of a small model: fused layers, dropout, layer norm, a loss, clipping and an optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import gradflow as gf
from gradflow import nn, optim
from gradflow.testing.tolerances import assert_agree


def train(
    device: str, dtype: str, make_optimizer: Callable[[Any], optim.Optimizer], steps: int = 20
) -> tuple[list[float], list[Any]]:
    """Return the loss of each step and the final parameters. Raises AssertionError if a step changes a gradient."""
    gf.manual_seed(3)
    with gf.use_device(device):
        model = nn.Sequential(
            nn.MLP([7, 16, 12], activation="gelu", dropout=0.2, dtype=dtype), nn.LayerNorm((12,), dtype=dtype),
            nn.Tanh(), nn.Dropout(0.3), nn.Linear(12, 5, dtype=dtype),
        )  # fmt: skip
        parameters = list(model.parameters())
        x = gf.random.normal((33, 7), dtype=dtype)
        labels = gf.tensor(np.arange(33) % 5)
        optimizer = make_optimizer(parameters)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = gf.cross_entropy(model(x), labels, label_smoothing=0.1)
            loss.backward()
            optim.clip_grad_norm_(parameters, 1.0)
            before = [gradient_of(p) for p in parameters]
            optimizer.step()
            for gradient, p in zip(before, parameters, strict=True):
                assert_agree("a gradient after the step", gradient_of(p), gradient)
            losses.append(loss.item())
        assert all(p.device == gf.Device(device) for p in parameters)
        return losses, [p.detach().numpy() for p in parameters]


def gradient_of(x: gf.Tensor) -> Any:
    """Return the gradient of a leaf as a NumPy array."""
    assert x.grad is not None
    return x.grad.detach().numpy()
