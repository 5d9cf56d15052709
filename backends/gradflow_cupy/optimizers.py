"""Kernels of the optimizers: a step over flat arrays is one launch, and clipping never waits for the norm.

Other dtypes than float32 and float64, and arrays that are not contiguous, take the composed default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradflow.backend import Array, Backend
from gradflow_cupy.kernels import PARTIAL_BLOCKS, REAL_TYPES, THREADS, launch, per_element


def flat_real(*arrays: Array | None) -> str:
    """The dtype character of the arrays if the kernels can take them all as flat memory of that one type, else ""."""
    first = arrays[0]
    assert first is not None
    dtype = first.dtype
    if dtype.char not in REAL_TYPES:
        return ""
    for x in arrays:
        if x is not None and (x.dtype != dtype or not x.flags.c_contiguous):
            return ""
    return str(dtype.char)


class OptimizerKernels(Backend):
    """The optimizers' kernels of a CUDA device."""

    cupy: Any

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
        real = flat_real(parameter, gradient, velocity)
        if not real:
            return Backend.sgd_step(
                self, parameter, gradient, velocity, lr, momentum, dampening, nesterov, weight_decay, first
            )
        n = parameter.size
        launch(
            "sgd_step", real, *per_element(n),
            parameter, gradient, velocity, n, lr, momentum, 1.0 - dampening, nesterov,
            weight_decay, first,
        )  # fmt: skip
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
        real = flat_real(parameter, gradient, mean, square)
        if not real:
            return Backend.adam_step(
                self, parameter, gradient, mean, square, step, lr, beta1, beta2, epsilon, weight_decay, decoupled
            )
        n = parameter.size
        launch(
            "adam_step", real, *per_element(n),
            parameter, gradient, mean, square, n, lr / (1.0 - beta1**step), beta1, 1.0 - beta1, beta2,
            1.0 - beta2, 1.0 / math.sqrt(1.0 - beta2**step), epsilon,
            1.0 - lr * weight_decay if decoupled else 1.0, 0.0 if decoupled else weight_decay,
        )  # fmt: skip
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
        real = flat_real(parameter, gradient, square, mean, velocity)
        if not real:
            return Backend.rmsprop_step(
                self, parameter, gradient, square, mean, velocity, lr, alpha, epsilon, weight_decay, momentum
            )
        n = parameter.size
        launch(
            "rmsprop_step", real, *per_element(n),
            parameter, gradient, square, mean, velocity, n, lr, alpha, 1.0 - alpha, epsilon,
            weight_decay, momentum,
        )  # fmt: skip
        return None

    def clip_global_norm(self, gradients: Sequence[Array], max_norm: float) -> Array:
        real = flat_real(*gradients) if gradients else ""
        if not real:
            return Backend.clip_global_norm(self, gradients, max_norm)
        grids = [per_element(g.size, PARTIAL_BLOCKS) for g in gradients]
        blocks = sum(grid[0] for grid, _ in grids)
        dtype = gradients[0].dtype
        partial, result = self.cupy.empty((blocks,), dtype=dtype), self.cupy.empty((2,), dtype=dtype)
        start = 0
        for gradient, (grid, block) in zip(gradients, grids, strict=True):
            launch("square_sums", real, grid, block, gradient, partial[start:], gradient.size)
            start += grid[0]
        launch("clip_factor", real, (1,), (THREADS,), partial, result, blocks, max_norm)
        for gradient in gradients:
            launch("scale_by", real, *per_element(gradient.size), gradient, result[1:], gradient.size)
        return result[0]
