"""Optimizer steps in NumPy: passes over chunks of flat arrays that stay in the second-level cache."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.backend import (
    AdamOptions,
    AdamScalars,
    Array,
    Backend,
    MomentOptions,
    MomentScalars,
    RMSpropOptions,
    RMSpropScalars,
    SGDOptions,
    SGDScalars,
)
from gradflow_numpy import sums
from gradflow_numpy.half import is_half
from gradflow_numpy.threads import share_out

_CHUNK = 1 << 16  # elements


class OptimizerKernels(Backend):
    """The optimizers' kernels; all change arrays in place."""

    def sgd_step(
        self,
        parameter: Array,
        gradient: Array,
        velocity: Array | None,
        options: SGDOptions,
        scalars: SGDScalars | Array,
        *,
        half: Array | None = None,
        skip: Array | None = None,
    ) -> None:
        if parameter.itemsize == 2 and is_half(parameter):
            return Backend.sgd_step(self, parameter, gradient, velocity, options, scalars, half=half, skip=skip)
        if skip is not None and skip:
            return None
        lr, first = map(float, scalars)
        share_out(sgd, (parameter, gradient, velocity), (*options, lr, bool(first)))
        if half is not None or self.nonfinite is not None:
            self._finish(gradient, parameter, half)
        return None

    def adam_step(
        self,
        parameter: Array,
        gradient: Array,
        mean: Array,
        square: Array,
        options: AdamOptions,
        scalars: AdamScalars | Array,
        *,
        half: Array | None = None,
        skip: Array | None = None,
    ) -> None:
        if parameter.itemsize == 2 and is_half(parameter):
            return Backend.adam_step(self, parameter, gradient, mean, square, options, scalars, half=half, skip=skip)
        if skip is not None and skip:
            return None
        beta1, beta2, epsilon, weight_decay = options
        lr, bias_correction1, bias_correction2_root, decay_factor = map(float, scalars)
        scaled_epsilon, scaled_lr = epsilon * bias_correction2_root, lr * bias_correction2_root
        numbers = (beta1, beta2, scaled_epsilon, weight_decay, scaled_lr / bias_correction1, decay_factor)
        share_out(adam, (parameter, gradient, mean, square), numbers)
        if half is not None or self.nonfinite is not None:
            self._finish(gradient, parameter, half)
        return None

    def rmsprop_step(
        self,
        parameter: Array,
        gradient: Array,
        square: Array,
        mean: Array | None,
        velocity: Array | None,
        options: RMSpropOptions,
        scalars: RMSpropScalars | Array,
        *,
        half: Array | None = None,
        skip: Array | None = None,
    ) -> None:
        if parameter.itemsize == 2 and is_half(parameter):
            arrays = parameter, gradient, square, mean, velocity
            return Backend.rmsprop_step(self, *arrays, options, scalars, half=half, skip=skip)
        if skip is not None and skip:
            return None
        share_out(rmsprop, (parameter, gradient, square, mean, velocity), (*options, *map(float, scalars)))
        if half is not None or self.nonfinite is not None:
            self._finish(gradient, parameter, half)
        return None

    def moment_step(
        self,
        parameter: Array,
        gradient: Array,
        mean: Array | None,
        square: Array | None,
        largest: Array | None,
        options: MomentOptions,
        scalars: MomentScalars | Array,
        *,
        half: Array | None = None,
        skip: Array | None = None,
    ) -> None:
        arrays = parameter, gradient, mean, square, largest
        if parameter.itemsize == 2 and is_half(parameter):
            return Backend.moment_step(self, *arrays, options, scalars, half=half, skip=skip)
        if skip is not None and skip:
            return None
        share_out(moments, arrays, (*options, *map(float, scalars)))
        if half is not None or self.nonfinite is not None:
            self._finish(gradient, parameter, half)
        return None

    def _finish(self, gradient: Array, parameter: Array, half: Array | None) -> None:
        """Round the new parameters to the half copy, if any, and raise the flag `nonfinite`: see `Backend.sgd_step`."""
        if half is not None:
            with np.errstate(over="ignore"):  # beyond the largest number, they are infinite
                half[...] = parameter
        if self.nonfinite is not None and not (np.isfinite(gradient).all() and np.isfinite(parameter).all()):
            self.nonfinite[...] = 1

    def clip_global_norm(
        self, gradients: Sequence[Array], max_norm: float, padding: Sequence[Array | None] = ()
    ) -> Array:
        if gradients[0].itemsize == 2 and is_half(gradients[0]):
            return Backend.clip_global_norm(self, gradients, max_norm, padding)
        norm = math.sqrt(sum(float(sums.square_total(g.reshape(-1))) for g in gradients))
        factor = min(max_norm / (norm + 1e-6), 1.0)
        if factor < 1.0 or math.isnan(factor):  # NaN scales too, as it does in the composed default
            for g in gradients:
                g *= factor
        if math.isnan(factor):
            for g, zeros in zip(gradients, padding, strict=False):
                if zeros is not None:
                    g[zeros] = 0
        with np.errstate(over="ignore"):  # beyond the largest number, the norm is inf
            return np.asarray(norm).astype(gradients[0].dtype)


@functools.lru_cache(maxsize=64)
def _constants(dtype: Any, *numbers: float) -> tuple[Array, ...]:
    """Options of a step as 0-d arrays, which a NumPy function takes twice as fast as Python numbers."""
    return tuple([np.array(x, dtype) for x in numbers])


def sgd(
    parameter: Array, gradient: Array, velocity: Array | None, momentum: float, dampening: float, weight_decay: float,
    nesterov: bool, lr: Any, first: bool,
) -> None:  # fmt: skip
    """`Backend.sgd_step`, chunk by chunk."""
    momentum, one_minus_dampening = _constants(parameter.dtype, momentum, 1 - dampening)
    lr = np.array(lr, parameter.dtype)
    scratch = np.empty(min(_CHUNK, parameter.size), parameter.dtype)
    decayed = np.empty_like(scratch) if weight_decay else scratch
    for p, g, v in _chunks(parameter, gradient, velocity):
        t = scratch if scratch.size == p.size else scratch[: p.size]
        if weight_decay:
            u = decayed[: p.size]
            np.multiply(p, weight_decay, u)
            g = np.add(g, u, u)
        if v is not None:
            if first:
                v[...] = g
            else:
                np.multiply(v, momentum, v)
                np.add(v, np.multiply(g, one_minus_dampening, t) if dampening else g, v)
            if nesterov:
                g = np.add(g, np.multiply(v, momentum, t), t)
            else:
                g = v
        np.multiply(g, lr, t)
        np.subtract(p, t, p)


def adam(
    parameter: Array, gradient: Array, mean: Array, square: Array, beta1: float, beta2: float, scaled_epsilon: Any,
    weight_decay: float, scaled_step_size: Any, decay_factor: float,
) -> None:  # fmt: skip
    """`Backend.adam_step`, chunk by chunk.

    scaled_epsilon, scaled_step_size: epsilon and the step size, both multiplied by bias_correction2_root, which saves
    dividing sqrt(v) by it.
    """
    dtype = parameter.dtype
    beta1, one_minus_beta1, beta2, one_minus_beta2 = _constants(dtype, beta1, 1 - beta1, beta2, 1 - beta2)
    scaled_epsilon, scaled_step_size = np.array(scaled_epsilon, dtype), np.array(scaled_step_size, dtype)
    size = min(_CHUNK, parameter.size)
    scratch = np.empty(size, parameter.dtype), np.empty(size if weight_decay else 0, parameter.dtype)
    for p, g, m, v in _chunks(parameter, gradient, mean, square):
        t = scratch[0] if scratch[0].size == p.size else scratch[0][: p.size]
        if decay_factor != 1:
            np.multiply(p, decay_factor, p)
        if weight_decay:
            u = scratch[1][: p.size]
            np.multiply(p, weight_decay, u)
            g = np.add(g, u, u)
        np.multiply(m, beta1, m)
        np.multiply(g, one_minus_beta1, t)
        np.add(m, t, m)
        np.multiply(v, beta2, v)
        np.multiply(g, g, t)
        np.multiply(t, one_minus_beta2, t)
        np.add(v, t, v)
        np.sqrt(v, t)
        np.add(t, scaled_epsilon, t)
        np.divide(m, t, t)
        np.multiply(t, scaled_step_size, t)
        np.subtract(p, t, p)


def rmsprop(
    parameter: Array, gradient: Array, square: Array, mean: Array | None, velocity: Array | None, alpha: float,
    epsilon: float, weight_decay: float, momentum: float, lr: Any,
) -> None:  # fmt: skip
    """`Backend.rmsprop_step`, chunk by chunk."""
    alpha, one_minus_alpha, epsilon, momentum = _constants(parameter.dtype, alpha, 1 - alpha, epsilon, momentum)
    lr = np.array(lr, parameter.dtype)
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
        np.multiply(t, one_minus_alpha, t)
        np.add(s, t, s)
        average = s
        if m is not None:
            np.multiply(m, alpha, m)
            np.multiply(g, one_minus_alpha, t)
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


def moments(
    parameter: Array, gradient: Array, mean: Array | None, square: Array | None, largest: Array | None,
    mean_decay: float, square_decay: float, square_gain: float, weight_decay: float, lr: float, from_mean: float,
    from_gradient: float, root_factor: float, epsilon: float, decay_factor: float,
) -> None:  # fmt: skip
    """`Backend.moment_step`, chunk by chunk."""
    for p, g, m, s, w in _chunks(parameter, gradient, mean, square, largest):
        if decay_factor != 1:
            np.multiply(p, decay_factor, p)
        if weight_decay:
            g = g + weight_decay * p
        d = g * from_gradient
        if m is not None:
            d += from_mean * m
            np.multiply(m, mean_decay, m)
            np.add(m, (1 - mean_decay) * g, m)
        if s is None:
            np.sign(d, d)
        else:
            np.multiply(s, square_decay, s)
            np.add(s, square_gain * (g * g), s)
            d /= root_factor * np.sqrt(s if w is None else np.maximum(w, s, out=w)) + epsilon
        np.subtract(p, lr * d, p)


def _chunks(*arrays: Array | None) -> Sequence[Sequence[Any]]:
    """Flat arrays of one length, or None, split into chunks."""
    size = arrays[0].size  # type: ignore[union-attr]
    if size <= _CHUNK:
        return (arrays,)
    return [[None if a is None else a[i : i + _CHUNK] for a in arrays] for i in range(0, size, _CHUNK)]
