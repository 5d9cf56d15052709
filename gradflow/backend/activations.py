"""The elementwise activations, composed of array functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from gradflow.backend.array_functions import Array


class Activation(NamedTuple):
    """An elementwise activation and its VJP, written in the array functions of a namespace `F`.

    forward: `forward(F, x, parameter)` returns the value.
    backward: `backward(F, g, saved, parameter)` returns the VJP; `saved` is the input or the output, see `saves`.
    saves: what `backward` reads: "x" (the input) or "out" (the output).
    parameter: the default slope or alpha (default 0, for activations without one).
    """

    forward: Callable[[Any, Array, float], Array]
    backward: Callable[[Any, Array, Array, float], Array]
    saves: str
    parameter: float = 0.0


def _sigmoid(F: Any, x: Array, _p: float) -> Array:
    decay = F.exp(F.negative(F.abs(x)))  # at most 1: no overflow
    return F.divide(F.where(F.greater_equal(x, 0), 1.0, decay), F.add(decay, 1.0))


def _softplus(F: Any, x: Array, _p: float) -> Array:
    return F.add(F.maximum(x, 0.0), F.log1p(F.exp(F.negative(F.abs(x)))))


_GELU_A, _GELU_B = math.sqrt(2 / math.pi), 0.044715


def _gelu_tanh(F: Any, x: Array) -> Array:
    return F.tanh(F.multiply(F.add(F.multiply(F.multiply(F.square(x), x), _GELU_B), x), _GELU_A))


def _gelu_backward(F: Any, g: Array, x: Array, _p: float) -> Array:
    t = _gelu_tanh(F, x)
    inner = F.multiply(F.add(F.multiply(F.square(x), 3 * _GELU_B), 1.0), _GELU_A)
    sech2 = F.subtract(1.0, F.square(t))
    slope = F.multiply(F.add(F.add(t, 1.0), F.multiply(F.multiply(x, sech2), inner)), 0.5)
    return F.multiply(g, slope)


def _normal_cdf(F: Any, x: Array) -> Array:
    return F.multiply(F.add(F.erf(F.multiply(x, math.sqrt(0.5))), 1.0), 0.5)


def _gelu_exact_backward(F: Any, g: Array, x: Array, _p: float) -> Array:
    density = F.multiply(F.exp(F.multiply(F.square(x), -0.5)), math.sqrt(0.5 / math.pi))
    near = F.clip(x, -64.0, 64.0)  # beyond, the density is 0, and 0 times infinity would be NaN
    return F.multiply(g, F.add(_normal_cdf(F, x), F.multiply(near, density)))


def _silu_backward(F: Any, g: Array, x: Array, p: float) -> Array:
    s = F.sigmoid(x)
    return F.multiply(g, F.multiply(s, F.add(F.multiply(x, F.subtract(1.0, s)), 1.0)))


SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def _selu_backward(F: Any, g: Array, x: Array, _p: float) -> Array:
    below = F.multiply(F.exp(F.minimum(x, 0.0)), SELU_SCALE * SELU_ALPHA)
    return F.multiply(g, F.where(F.less_equal(x, 0), below, SELU_SCALE))


def _mish_parts(F: Any, x: Array) -> tuple[Array, Array, Array, Array]:
    """s = sigmoid(x), q = 1 - s, 1 + q^2, and tanh(softplus(x)) = (1 - q^2) / (1 + q^2), without cancellation."""
    s = F.sigmoid(x)
    q = F.subtract(1.0, s)
    bottom = F.add(F.square(q), 1.0)
    return s, q, bottom, F.divide(F.multiply(s, F.add(q, 1.0)), bottom)


def _mish_backward(F: Any, g: Array, x: Array, _p: float) -> Array:
    s, q, bottom, t = _mish_parts(F, x)
    sech2 = F.square(F.divide(F.multiply(q, 2.0), bottom))
    return F.multiply(g, F.add(F.multiply(F.multiply(x, s), sech2), t))


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(
        lambda F, x, p: F.maximum(x, 0.0), lambda F, g, out, p: F.where(F.equal(out, 0), 0.0, g), "out"
    ),
    "leaky_relu": Activation(
        lambda F, x, p: F.where(F.greater(x, 0), x, F.multiply(x, p)),
        lambda F, g, x, p: F.where(F.greater(x, 0), g, F.multiply(g, p)),
        "x",
        0.01,
    ),
    "elu": Activation(  # Clevert et al. 2015, "Fast and Accurate Deep Network Learning by ELUs", eq. 15
        lambda F, x, p: F.where(F.greater(x, 0), x, F.multiply(F.expm1(F.minimum(x, 0.0)), p)),
        lambda F, g, x, p: F.where(F.less_equal(x, 0), F.multiply(g, F.multiply(F.exp(F.minimum(x, 0.0)), p)), g),
        "x",
        1.0,
    ),
    "selu": Activation(  # Klambauer et al. 2017, "Self-Normalizing Neural Networks", eq. 2
        lambda F, x, p: F.where(
            F.greater(x, 0),
            F.multiply(x, SELU_SCALE),
            F.multiply(F.expm1(F.minimum(x, 0.0)), SELU_SCALE * SELU_ALPHA),
        ),
        _selu_backward,
        "x",
    ),
    "gelu": Activation(  # Hendrycks & Gimpel 2016, "Gaussian Error Linear Units", section 2: the tanh form
        lambda F, x, p: F.multiply(F.multiply(x, 0.5), F.add(_gelu_tanh(F, x), 1.0)), _gelu_backward, "x"
    ),
    "gelu_exact": Activation(  # the same paper: x Phi(x)
        lambda F, x, p: F.multiply(x, _normal_cdf(F, x)), _gelu_exact_backward, "x"
    ),
    "silu": Activation(lambda F, x, p: F.multiply(x, F.sigmoid(x)), _silu_backward, "x"),
    "mish": Activation(lambda F, x, p: F.multiply(x, _mish_parts(F, x)[3]), _mish_backward, "x"),
    "sigmoid": Activation(
        _sigmoid, lambda F, g, out, p: F.multiply(F.multiply(g, out), F.subtract(1.0, out)), "out"
    ),
    "softplus": Activation(_softplus, lambda F, g, x, p: F.multiply(g, F.sigmoid(x)), "x"),
    "tanh": Activation(
        lambda F, x, p: F.tanh(x), lambda F, g, out, p: F.multiply(g, F.subtract(1.0, F.square(out))), "out"
    ),
    "hardtanh": Activation(
        lambda F, x, p: F.clip(x, -1.0, 1.0),
        lambda F, g, out, p: F.where(F.greater_equal(F.abs(out), 1.0), 0.0, g),
        "out",
    ),
    "softsign": Activation(
        lambda F, x, p: F.divide(x, F.add(F.abs(x), 1.0)),
        lambda F, g, x, p: F.divide(g, F.square(F.add(F.abs(x), 1.0))),
        "x",
    ),
}  # fmt: skip
"""The activations of the kernels `activate` and `linear`, by name."""
