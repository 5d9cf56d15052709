"""Steps of optimizers in NumPy: passes over chunks of flat arrays that stay in the second-level cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradflow.backend import Array, Backend
from gradflow_numpy import sums
from gradflow_numpy.threads import share_out

_FLOAT16 = np.dtype(np.float16)
_CHUNK = 1 << 16  # elements of an optimizer pass: the arrays of one chunk stay in the second-level cache


class OptimizerKernels(Backend):
    """The kernels of optimizers; all change arrays in place."""

    def sgd_step(
        self,
        parameter: Array,
        gradient: Array,
        velocity: Array | None,
        lr: float,
        momentum: float,
        dampening: float,
        nesterov: bool,
        weight_decay: float,
        first: bool,
    ) -> None:
        if parameter.dtype == _FLOAT16:
            return Backend.sgd_step(
                self, parameter, gradient, velocity, lr, momentum, dampening, nesterov, weight_decay, first
            )
        options = (lr, momentum, float(dampening), nesterov, weight_decay, first)
        self._pass("sgd", (parameter, gradient, velocity), options)
        return None

    def adam_step(
        self,
        parameter: Array,
        gradient: Array,
        mean: Array,
        square: Array,
        step: int,
        lr: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        if parameter.dtype == _FLOAT16:
            return Backend.adam_step(
                self, parameter, gradient, mean, square, step, lr, beta1, beta2, epsilon, weight_decay, decoupled
            )
        root = math.sqrt(1 - beta2**step)  # m / (sqrt(v) / root + epsilon) with one pass less
        keep, decay = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
        options = (lr * root / (1 - beta1**step), beta1, beta2, epsilon * root, keep, decay)
        self._pass("adam", (parameter, gradient, mean, square), options)
        return None

    def rmsprop_step(
        self,
        parameter: Array,
        gradient: Array,
        square: Array,
        mean: Array | None,
        velocity: Array | None,
        lr: float,
        alpha: float,
        epsilon: float,
        weight_decay: float,
        momentum: float,
    ) -> None:
        if parameter.dtype == _FLOAT16:
            return Backend.rmsprop_step(
                self, parameter, gradient, square, mean, velocity, lr, alpha, epsilon, weight_decay, momentum
            )
        options = (lr, alpha, epsilon, weight_decay, momentum)
        self._pass("rmsprop", (parameter, gradient, square, mean, velocity), options)
        return None

    def _pass(self, name: str, arrays: Sequence[Array | None], options: Sequence[Any]) -> None:
        """An optimizer's pass over flat arrays of one length, or None."""
        share_out(_PASSES[name], arrays, options)

    def clip_global_norm(self, gradients: Sequence[Array], max_norm: float) -> Array:
        if gradients[0].dtype == _FLOAT16:
            return Backend.clip_global_norm(self, gradients, max_norm)
        norm = math.sqrt(sum(float(sums.square_total(g.reshape(-1))) for g in gradients))
        factor = min(max_norm / (norm + 1e-6), 1.0)
        if not factor >= 1.0:  # a NaN scales too, as it does in the composed default
            for g in gradients:
                g *= factor
        with np.errstate(over="ignore"):  # beyond the largest number, the norm is inf
            return np.asarray(norm).astype(gradients[0].dtype)


def _sgd(
    parameter: Array, gradient: Array, velocity: Array | None, lr: float, momentum: float, dampening: float,
    nesterov: bool, weight_decay: float, first: bool,
) -> None:  # fmt: skip
    """`Backend.sgd_step`, chunk by chunk."""
    scratch = np.empty(min(_CHUNK, parameter.size), parameter.dtype)
    for p, g, v in _chunks(parameter, gradient, velocity):
        t = scratch if scratch.size == p.size else scratch[: p.size]
        if weight_decay:
            np.multiply(p, weight_decay, t)
            g = np.add(g, t)
        if v is not None:
            if first:
                v[...] = g
            else:
                np.multiply(v, momentum, v)
                np.add(v, np.multiply(g, 1 - dampening, t) if dampening else g, v)
            if nesterov:
                g = np.add(g, np.multiply(v, momentum, t), t)
            else:
                g = v
        np.multiply(g, lr, t)
        np.subtract(p, t, p)


def _adam(
    parameter: Array, gradient: Array, mean: Array, square: Array, rate: float, beta1: float, beta2: float,
    epsilon: float, keep: float, weight_decay: float,
) -> None:  # fmt: skip
    """`Backend.adam_step`, chunk by chunk; keep: what a decoupled decay leaves of a parameter."""
    size = min(_CHUNK, parameter.size)
    scratch = np.empty(size, parameter.dtype), np.empty(size if weight_decay else 0, parameter.dtype)
    for p, g, m, v in _chunks(parameter, gradient, mean, square):
        t = scratch[0] if scratch[0].size == p.size else scratch[0][: p.size]
        if keep != 1:
            np.multiply(p, keep, p)
        elif weight_decay:
            u = scratch[1][: p.size]
            np.multiply(p, weight_decay, u)
            g = np.add(g, u, u)
        np.multiply(m, beta1, m)
        np.multiply(g, 1 - beta1, t)
        np.add(m, t, m)
        np.multiply(v, beta2, v)
        np.multiply(g, g, t)
        np.multiply(t, 1 - beta2, t)
        np.add(v, t, v)
        np.sqrt(v, t)
        np.add(t, epsilon, t)
        np.divide(m, t, t)
        np.multiply(t, rate, t)
        np.subtract(p, t, p)


def _rmsprop(
    parameter: Array, gradient: Array, square: Array, mean: Array | None, velocity: Array | None, lr: float,
    alpha: float, epsilon: float, weight_decay: float, momentum: float,
) -> None:  # fmt: skip
    """`Backend.rmsprop_step`, chunk by chunk."""
    size = min(_CHUNK, parameter.size)
    scratch = np.empty(size, parameter.dtype), np.empty(size if weight_decay else 0, parameter.dtype)
    for p, g, s, m, v in _chunks(parameter, gradient, square, mean, velocity):
        t = scratch[0] if scratch[0].size == p.size else scratch[0][: p.size]
        if weight_decay:
            u = scratch[1][: p.size]
            np.multiply(p, weight_decay, u)
            g = np.add(g, u, u)
        np.multiply(s, alpha, s)
        np.multiply(g, g, t)
        np.multiply(t, 1 - alpha, t)
        np.add(s, t, s)
        average = s
        if m is not None:
            np.multiply(m, alpha, m)
            np.multiply(g, 1 - alpha, t)
            np.add(m, t, m)
            np.multiply(m, m, t)
            average = np.maximum(np.subtract(s, t, t), 0, out=t)
        np.sqrt(average, t)
        np.add(t, epsilon, t)
        np.divide(g, t, t)
        if v is not None:
            np.multiply(v, momentum, v)
            np.add(v, t, v)
            t = np.multiply(v, lr, t)
        else:
            np.multiply(t, lr, t)
        np.subtract(p, t, p)


_PASSES: dict[str, Callable[..., None]] = {"sgd": _sgd, "adam": _adam, "rmsprop": _rmsprop}


def _chunks(*arrays: Array | None) -> Sequence[Sequence[Any]]:
    """Flat arrays of one length, or None, in parts that are worked on one after another."""
    size = arrays[0].size  # type: ignore[union-attr]
    if size <= _CHUNK:
        return (arrays,)
    return [[None if a is None else a[i : i + _CHUNK] for a in arrays] for i in range(0, size, _CHUNK)]
