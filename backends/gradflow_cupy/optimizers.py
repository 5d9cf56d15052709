"""The optimizers' CUDA kernels: a step over flat arrays is one launch, and clipping never waits for the norm.

Arrays that are not contiguous, and arrays of several dtypes, go to the composed default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
from gradflow_cupy.kernels import ELEMENT_TYPES, PARTIAL_BLOCKS, REAL_TYPES, kernel_dtype, launch, per_pack


def flat_dtype(*arrays: Array | None) -> str | None:
    """The dtype character of the arrays; None unless kernels are compiled for it and all arrays are C-contiguous."""
    if all(x is None or x.flags.c_contiguous for x in arrays):
        return kernel_dtype(*arrays, types=ELEMENT_TYPES)
    return None


_ONES = (1.0,) * 6
"""The numbers that a kernel gets when it reads the scalars from a row on the device."""


def _row_and_numbers(scalars: Any, kind: Any) -> tuple[Array | None, Sequence[float]]:
    """The row on the device, or None, and the numbers of a step's scalars."""
    return (None, scalars) if isinstance(scalars, tuple) else (scalars, _ONES[: len(kind._fields)])


class OptimizerKernels(Backend):
    """The optimizers' kernels of a CUDA device."""

    cupy: Any

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
        dtype = flat_dtype(parameter, gradient, velocity)
        if dtype is None:
            return Backend.sgd_step(self, parameter, gradient, velocity, options, scalars, half=half, skip=skip)
        n = parameter.size
        momentum, dampening, weight_decay, nesterov = options
        row, (lr, first) = _row_and_numbers(scalars, SGDScalars)
        launch(
            "sgd_step", dtype, *per_pack(parameter),
            parameter, gradient, velocity, n, momentum, 1.0 - dampening, weight_decay, int(nesterov), lr, first, row,
            *self._results(half, skip),
        )  # fmt: skip
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
        dtype = flat_dtype(parameter, gradient, mean, square)
        if dtype is None:
            return Backend.adam_step(self, parameter, gradient, mean, square, options, scalars, half=half, skip=skip)
        n = parameter.size
        beta1, beta2, epsilon, weight_decay = options
        row, (lr, bias_correction1, bias_correction2_root, decay_factor) = _row_and_numbers(scalars, AdamScalars)
        launch(
            "adam_step", dtype, *per_pack(parameter),
            parameter, gradient, mean, square, n, beta1, 1.0 - beta1, beta2, 1.0 - beta2, epsilon, weight_decay,
            lr / bias_correction1, 1.0 / bias_correction2_root, decay_factor, row, *self._results(half, skip),
        )  # fmt: skip
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
        dtype = flat_dtype(parameter, gradient, square, mean, velocity)
        if dtype is None:
            arrays = parameter, gradient, square, mean, velocity
            return Backend.rmsprop_step(self, *arrays, options, scalars, half=half, skip=skip)
        n = parameter.size
        alpha, epsilon, weight_decay, momentum = options
        row, (lr,) = _row_and_numbers(scalars, RMSpropScalars)
        launch(
            "rmsprop_step", dtype, *per_pack(parameter),
            parameter, gradient, square, mean, velocity, n, alpha, 1.0 - alpha, epsilon, weight_decay, momentum, lr,
            row, *self._results(half, skip),
        )  # fmt: skip
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
        dtype = flat_dtype(*arrays)
        if dtype is None:
            return Backend.moment_step(self, *arrays, options, scalars, half=half, skip=skip)
        mean_decay, square_decay, square_gain, weight_decay = options
        row, numbers = _row_and_numbers(scalars, MomentScalars)
        launch(
            "moment_step", dtype, *per_pack(parameter),
            *arrays, parameter.size, mean_decay, 1.0 - mean_decay, square_decay, square_gain, weight_decay, *numbers,
            row, *self._results(half, skip),
        )  # fmt: skip
        return None

    def unscale(self, gradient: Array, scale: Array, found: Array) -> None:
        dtype = flat_dtype(gradient)
        if dtype is None:
            return Backend.unscale(self, gradient, scale, found)
        launch("unscale", dtype, *per_pack(gradient), gradient, scale, found, gradient.size)
        return None

    def update_scale(
        self, scale: Array, growth: Array, found: Array, growth_factor: float, backoff_factor: float, interval: int
    ) -> None:
        launch("update_scale", None, (1,), (1,), scale, growth, found, growth_factor, backoff_factor, interval)

    def count_step(self, count: Array, skip: Array) -> None:
        launch("count_step", None, (1,), (1,), count, skip)

    def _results(self, half: Array | None, skip: Array | None) -> tuple[Any, ...]:
        """The last arguments of a step: the half copy, whether it is bfloat16, the skip flag, the finiteness flag."""
        is_bfloat16 = half is not None and half.dtype.char != "e"
        return half, int(is_bfloat16), skip, self.nonfinite

    def clip_global_norm(
        self, gradients: Sequence[Array], max_norm: float, padding: Sequence[Array | None] = ()
    ) -> Array:
        dtype = flat_dtype(*gradients) if gradients else None
        if dtype is None or not any(g.size for g in gradients):
            return Backend.clip_global_norm(self, gradients, max_norm, padding)
        padding = [p for p, g in zip(padding or [None] * len(gradients), gradients, strict=True) if g.size]
        gradients = [g for g in gradients if g.size]
        grids = [per_pack(g, PARTIAL_BLOCKS) for g in gradients]
        blocks = sum(grid[0] for grid, _ in grids)
        native = gradients[0].dtype
        wide = native if dtype in REAL_TYPES else self.single
        norm, numbers = self.cupy.empty((), dtype=native), self.cupy.empty((1 + blocks,), dtype=wide)
        factor, sums, scratch, earlier = numbers[:1], numbers[1:], self._scratch(), 0
        for gradient, (grid, block) in zip(gradients, grids, strict=True):
            last = earlier + grid[0] == blocks
            launch(
                "square_sums", dtype, grid, block, gradient, sums, norm if last else None, factor, scratch,
                gradient.size, earlier, max_norm,
            )  # fmt: skip
            earlier += grid[0]
        for gradient, zeros in zip(gradients, padding, strict=True):
            padded = 0 if zeros is None else zeros.size
            launch("scale_by", dtype, *per_pack(gradient), gradient, factor, zeros, scratch, gradient.size, padded)
        return norm
