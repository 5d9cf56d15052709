"""Bounds of the errors of whole models."""

from __future__ import annotations

from typing import Any

import numpy as np

import gradflow as gf
from gradflow import nn
from gradflow.testing import eps, product_bound

STEEPEST = 1.76
"""The largest slope of an activation, which is that of SELU."""


def perceptron_bound(model: nn.MLP, x: Any, dtype: str = "float32") -> tuple[Any, Any]:
    """The logits of an MLP for x, (samples, features), in float64, and a bound on their errors in `dtype`.

    The bound is that of the products, and of 8 units in the last place of each activation, passed on through the later
    layers.
    """
    h, error = x.astype("float64"), np.zeros(x.shape)
    for layer in model.children():
        if isinstance(layer, nn.Dropout):
            continue
        w, b = (p.detach().numpy().astype("float64") for p in (layer.weight, layer.bias))
        error = error @ np.abs(w.T) + product_bound(h, w.T, dtype) + eps(dtype) * (np.abs(h) @ np.abs(w.T) + np.abs(b))
        h = h @ w.T + b
        if layer.activation is not None:
            h = activation(layer.activation, h)
            error = STEEPEST * error + 8 * eps(dtype) * (1 + np.abs(h))
    return h, error


def activation(name: str, x: Any) -> Any:
    """The activation of a linear layer, float64."""
    one = nn.Linear(1, 1, bias=False, activation=name, dtype="float64")
    nn.init.ones_(one.weight)
    with gf.no_grad():
        return one(gf.tensor(x[..., None])).numpy()[..., 0]
