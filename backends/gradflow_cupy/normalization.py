"""Kernels of normalization: over rows, layer norm and RMS norm, and over columns, batch norm.

As in `gradflow_cupy.network`, they compute half floats in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradflow.backend import Array, Backend
from gradflow_cupy.kernels import ELEMENT_TYPES, kernel_dtype, launch, per_cell, per_columns, per_row, per_sum
from gradflow_cupy.network import NetworkKernels


class NormalizationKernels(NetworkKernels):
    """Kernels of normalization in CUDA."""

    def layer_norm(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        axes: tuple[int, ...],
        epsilon: float,
        centred: bool = True,
    ) -> tuple[Array, Any]:
        dtype = kernel_dtype(x, weight, bias, types=ELEMENT_TYPES)
        if dtype is None or not x.size:
            return Backend.layer_norm(self, x, weight, bias, axes, epsilon, centred)
        x = self._contiguous(x)
        rows, columns = _rows_and_columns(x, axes)
        out = self._empty(x.shape, x)
        stats = self.cupy.empty((rows, 2), dtype=self.double if dtype == "d" else self.single)
        weight = None if weight is None else self._contiguous(weight)
        bias = None if bias is None else self._contiguous(bias)
        launch(
            "layer_norm", dtype, *per_row(rows, columns),
            x, weight, bias, out, stats, rows, columns, epsilon, int(centred),
        )  # fmt: skip
        return out, stats

    def layer_norm_backward(
        self,
        g: Array,
        x: Array,
        weight: Array | None,
        axes: tuple[int, ...],
        epsilon: float,
        residual: Any,
        needs: Sequence[bool],
        into: Sequence[Array | None] = (None, None, None),
        centred: bool = True,
    ) -> tuple[Array | None, Array | None, Array | None]:
        dtype = kernel_dtype(g, x, weight, types=ELEMENT_TYPES)
        if isinstance(residual, tuple) or residual is None or dtype is None or not x.size:
            kept = residual if isinstance(residual, tuple) else None
            return Backend.layer_norm_backward(self, g, x, weight, axes, epsilon, kept, needs, centred=centred)
        g, x = self._contiguous(g), self._contiguous(x)
        rows, columns = _rows_and_columns(x, axes)
        gx = gw = gb = None
        if needs[0]:
            gx = self._empty(x.shape, x)
            scale = None if weight is None else self._contiguous(weight)
            launch(
                "layer_norm_backward", dtype, *per_row(rows, columns),
                g, x, scale, residual, gx, rows, columns, int(centred),
            )  # fmt: skip
        if needs[1] or needs[2]:
            shape = tuple(x.shape[a] for a in axes)
            gw = self._target(into[1], shape, x) if needs[1] else None
            gb = self._target(into[2], shape, x) if needs[2] else None
            grid, block, chunk = per_sum(1, rows, columns, x.dtype.itemsize)
            launch(
                "layer_norm_columns", dtype, grid, block,
                g, x, residual, gw, gb, self._scratch(), rows, columns, chunk,
            )  # fmt: skip
        return gx, gw, gb

    def batch_norm(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        epsilon: float,
        running: Any = None,
        momentum: float | None = None,
    ) -> tuple[Array, Any]:
        dtype = kernel_dtype(x, types=ELEMENT_TYPES)
        wide = self.double if dtype == "d" else self.single
        means, variances, count = (None,) * 3 if running is None else running
        given = [a for a in (weight, bias, means, variances) if a is not None]
        fits = all(a.dtype == wide for a in given) and all(
            a is None or a.flags.c_contiguous for a in (means, variances, count)
        )
        if dtype is None or not x.size or not fits:
            return Backend.batch_norm(self, x, weight, bias, epsilon, running, momentum)
        x = self._contiguous(x)
        rows, columns = x.shape
        out, stats = self._empty(x.shape, x), self.cupy.empty((columns, 2), dtype=wide)
        weight = None if weight is None else self._contiguous(weight)
        bias = None if bias is None else self._contiguous(bias)
        launch(
            "batch_norm", dtype, *per_columns(rows, columns, x.dtype.itemsize),
            x, weight, bias, out, stats, means, variances, count, self._scratch(),
            rows, columns, epsilon, -1.0 if momentum is None else momentum,
        )  # fmt: skip
        return out, stats

    def batch_norm_backward(
        self,
        g: Array,
        x: Array,
        weight: Array | None,
        epsilon: float,
        residual: Any,
        needs: Sequence[bool],
        into: Sequence[Array | None] = (None, None, None),
    ) -> tuple[Array | None, Array | None, Array | None]:
        dtype = kernel_dtype(g, x, types=ELEMENT_TYPES)
        if isinstance(residual, tuple) or residual is None or dtype is None:
            kept = residual if isinstance(residual, tuple) else None
            return Backend.batch_norm_backward(self, g, x, weight, epsilon, kept, needs, into)
        g, x = self._contiguous(g), self._contiguous(x)
        rows, columns = x.shape
        gx = self._empty(x.shape, x) if needs[0] else None
        gw, gb = (
            self._target(buffer, (columns,), residual) if need else None
            for need, buffer in zip(needs[1:], into[1:], strict=True)
        )
        weight = None if weight is None else self._contiguous(weight)
        launch(
            "batch_norm_backward", dtype, *per_columns(rows, columns, x.dtype.itemsize),
            g, x, weight, residual, gx, gw, gb, rows, columns,
        )  # fmt: skip
        return gx, gw, gb

    def normalize_columns(
        self, x: Array, mean: Array, variance: Array, weight: Array | None, bias: Array | None, epsilon: float
    ) -> Array:
        dtype = kernel_dtype(x, types=ELEMENT_TYPES)
        wide = self.double if dtype == "d" else self.single
        given = [a if a is None else self._contiguous(a) for a in (mean, variance, weight, bias)]
        if dtype is None or not x.size or any(a is not None and a.dtype != wide for a in given):
            return Backend.normalize_columns(self, x, mean, variance, weight, bias, epsilon)
        x = self._contiguous(x)
        out = self._empty(x.shape, x)
        launch("normalize_columns", dtype, *per_cell(*x.shape), x, *given, out, *x.shape, epsilon)
        return out


def _rows_and_columns(x: Array, axes: tuple[int, ...]) -> tuple[int, int]:
    """The numbers of rows and columns of x as a matrix whose columns are the trailing `axes`."""
    columns = math.prod(x.shape[a] for a in axes)
    return x.size // columns, columns
