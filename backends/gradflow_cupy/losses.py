"""Loss kernels: one launch computes the terms of a loss and one their sum, without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradflow.backend import Array, Backend
from gradflow_cupy.kernels import (
    PARTIAL_BLOCKS,
    REAL_TYPES,
    THREADS,
    kernel_dtype,
    launch,
    per_cell,
    per_element,
    per_row,
)
from gradflow_cupy.network import NetworkKernels


class LossKernels(NetworkKernels):
    """Loss kernels in CUDA."""

    def one_hot(self, labels: Array, classes: int, dtype: Any) -> Array:
        dtype = self.cupy.dtype(dtype)
        if dtype.char not in REAL_TYPES:
            return Backend.one_hot(self, labels, classes, dtype)
        labels, rows = self._labels(labels), labels.size
        out = self.cupy.empty((*labels.shape, classes), dtype=dtype)
        launch("one_hot", dtype.char, *per_cell(rows, classes), labels, out, rows, classes)
        return out

    def softmax_cross_entropy(self, logits: Array, target: Array, reduction: str) -> tuple[Array, Any]:
        dense = target.ndim == 2
        dtype = kernel_dtype(logits, target if dense else None)
        if dtype is None or not logits.size:
            return Backend.softmax_cross_entropy(self, logits, target, reduction)
        rows, columns = logits.shape
        logits = self._contiguous(logits)
        target = self._contiguous(target) if dense else self._labels(target)
        losses, stats = self._empty((rows,), logits), self._empty((rows, 2), logits)
        labels, weights = (None, target) if dense else (target, None)
        launch("cross_entropy", dtype, *per_row(rows, columns), logits, labels, weights, losses, stats, rows, columns)
        return self._reduced(dtype, losses, reduction), (stats, target)

    def softmax_cross_entropy_backward(
        self, g: Array, logits: Array, target: Array, reduction: str, residual: Any, needs: Sequence[bool]
    ) -> tuple[Array | None, Array | None]:
        dense = target.ndim == 2
        dtype = kernel_dtype(logits, g, target if dense else None)
        if residual is None or dtype is None or needs[1] or not needs[0]:
            return Backend.softmax_cross_entropy_backward(self, g, logits, target, reduction, None, needs)
        rows, columns = logits.shape
        logits, g = self._contiguous(logits), self._contiguous(g)
        stats, target = residual
        out = self._empty(logits.shape, logits)
        labels, weights = (None, target) if dense else (target, None)
        divisor = float(rows) if reduction == "mean" else 1.0
        launch(
            "cross_entropy_backward", dtype, *per_row(rows, columns),
            g, int(g.size > 1), divisor, logits, labels, weights, stats, out, rows, columns,
        )  # fmt: skip
        return out, None

    def _reduced(self, dtype: str, losses: Array, reduction: str) -> Array:
        if reduction == "none":
            return losses
        divisor = float(losses.size) if reduction == "mean" else 1.0
        if losses.size > 16 * THREADS:  # too many for one block
            grid, block = per_element(losses.size, PARTIAL_BLOCKS)
            partial = self._empty(grid, losses)
            launch("sum_all", dtype, grid, block, losses, partial, losses.size, 1.0)
            losses = partial
        out = self._empty((), losses)
        launch("sum_all", dtype, (1,), (THREADS,), losses, out, losses.size, divisor)
        return out

    def squared_error(self, x: Array, target: Array, reduction: str) -> tuple[Array, Any]:
        dtype = kernel_dtype(x, target)
        if dtype is None or reduction == "none" or not x.size:
            return Backend.squared_error(self, x, target, reduction)
        x, target = self._contiguous(x), self._contiguous(target)
        n, out, difference = x.size, self._empty((), x), self._empty(x.shape, x)
        grid, block = per_element(n, PARTIAL_BLOCKS)
        partial = self._empty(grid, x)
        launch("squared_error", dtype, grid, block, x, target, difference, partial, n)
        divisor = float(n) if reduction == "mean" else 1.0
        launch("sum_all", dtype, (1,), (THREADS,), partial, out, grid[0], divisor)
        return out, difference

    def squared_error_backward(
        self, g: Array, x: Array, target: Array, reduction: str, residual: Any, needs: Sequence[bool]
    ) -> tuple[Array | None, Array | None]:
        dtype = kernel_dtype(x, g, target, residual)
        if dtype is None or residual is None:
            return Backend.squared_error_backward(self, g, x, target, reduction, residual, needs)
        g, residual, n = self._contiguous(g), self._contiguous(residual), x.size
        factor = 2.0 / max(n, 1) if reduction == "mean" else 2.0
        gx = self._empty(x.shape, x) if needs[0] else None
        gt = self._empty(x.shape, x) if needs[1] else None
        launch("squared_error_backward", dtype, *per_element(n), g, int(g.size > 1), factor, residual, gx, gt, n)
        return gx, gt
