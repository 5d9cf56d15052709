"""A scalar of NumPy, which it makes of 0-d arrays, has the bits of a 0-d array, which captured steps have instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from gradflow_numpy import FastNumpyBackend

ROWS = np.random.default_rng(0).normal(size=(5, 7)).astype("float32")
WEIGHTS = np.abs(ROWS)
LABELS = np.arange(5)

CALLS: dict[str, Callable[[FastNumpyBackend, Any], Any]] = {
    "activate": lambda b, g: b.activate(g, "tanh", 0.0),
    "activate_backward": lambda b, g: b.activate_backward(g, g, "gelu", 0.0),
    "erf": lambda b, g: b.erf(g),
    "dropout": lambda b, g: b.dropout(g, 0.1, 1, 2),
    "dropout_backward": lambda b, g: b.dropout_backward(g, g != 0, 0.1),
    "squared_error": lambda b, g: b.squared_error(g, g * g, "mean"),
    "squared_error_backward": lambda b, g: b.squared_error_backward(g, ROWS, WEIGHTS, "mean", ROWS, [True, True]),
    "labels": lambda b, g: b.softmax_cross_entropy_backward(g, ROWS, LABELS, "mean", WEIGHTS, [True, False]),
    "probabilities": lambda b, g: b.softmax_cross_entropy_backward(g, ROWS, WEIGHTS, "mean", WEIGHTS, [True, False]),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_scalar_has_the_bits_of_an_array(name: str) -> None:
    backend = FastNumpyBackend()
    for number in np.linspace(-3.0, 3.0, 50).astype("float32"):
        found, expected = CALLS[name](backend, number), CALLS[name](backend, np.array(number))
        for x, y in zip(*[z if isinstance(z, tuple) else (z,) for z in (found, expected)], strict=True):
            assert (x is None) == (y is None)
            assert x is None or np.asarray(x).tobytes() == np.asarray(y).tobytes()
