"""Loss kernels: one launch makes a loss and its gradient for the kept seed, without waiting for the device.

The backward pass from the seed, as of `loss.backward()`, then launches nothing; from another gradient it is one launch,
which computes everything again, so that nothing is rounded twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradflow.backend import Array, Backend
from gradflow_cupy.kernels import (
    ELEMENT_TYPES,
    PARTIAL_BLOCKS,
    kernel_dtype,
    launch,
    per_cell,
    per_element,
    per_row,
)
from gradflow_cupy.network import NetworkKernels

NO_LABEL = -(1 << 63)
"""What the kernel takes for `ignored` where no label is ignored."""


class LossKernels(NetworkKernels):
    """Loss kernels in CUDA."""

    def _is_seed(self, g: Array) -> bool:
        return g is self._seeds.get(g.dtype)

    def one_hot(self, labels: Array, classes: int, dtype: Any) -> Array:
        dtype = self.cupy.dtype(dtype)
        if dtype.char not in ELEMENT_TYPES:
            return Backend.one_hot(self, labels, classes, dtype)
        labels, rows = self._labels(labels), labels.size
        out = self.cupy.empty((*labels.shape, classes), dtype=dtype)
        launch("one_hot", dtype.char, *per_cell(rows, classes), labels, out, rows, classes)
        return out

    def softmax_cross_entropy(
        self,
        logits: Array,
        target: Array,
        reduction: str,
        gradient: bool = True,
        ignore_index: int | None = None,
        smoothing: float = 0.0,
    ) -> tuple[Array, Any]:
        each = reduction == "none"
        losses = self._empty(logits.shape[:1] if each else (), logits)
        out = self._empty(logits.shape, logits) if gradient and not each else None
        if self._cross_entropy(logits, target, None, reduction, ignore_index, smoothing, losses, out):
            return losses, out
        return Backend.softmax_cross_entropy(self, logits, target, reduction, True, ignore_index, smoothing)

    def softmax_cross_entropy_backward(
        self,
        g: Array,
        logits: Array,
        target: Array,
        reduction: str,
        residual: Any,
        needs: Sequence[bool],
        ignore_index: int | None = None,
        smoothing: float = 0.0,
    ) -> tuple[Array | None, Array | None]:
        if needs[0] and not needs[1]:
            if residual is not None and self._is_seed(g):
                return residual, None
            gradient = self._empty(logits.shape, logits)
            if self._cross_entropy(logits, target, g, reduction, ignore_index, smoothing, None, gradient):
                return gradient, None
        arguments = g, logits, target, reduction, None, needs, ignore_index, smoothing
        return Backend.softmax_cross_entropy_backward(self, *arguments)

    def _cross_entropy(
        self, logits: Array, target: Array, g: Array | None, reduction: str, ignore_index: int | None,
        smoothing: float, losses: Array | None, out: Array | None,
    ) -> bool:  # fmt: skip
        """Write the losses and the gradient `out` for `g`; False, with nothing written, for other dtypes."""
        dense = target.ndim == 2
        dtype = kernel_dtype(logits, g, target if dense else None, types=ELEMENT_TYPES)
        if dtype is None or not logits.size:
            return False
        rows, columns = logits.shape
        labels, weights = (None, self._contiguous(target)) if dense else (self._labels(target), None)
        divisor = 1.0 if reduction != "mean" else float(rows) if ignore_index is None else 0.0
        launch(
            "cross_entropy", dtype, *per_row(rows, columns, PARTIAL_BLOCKS),
            self._contiguous(logits), labels, weights, None if g is None else self._contiguous(g),
            int(reduction == "none"), divisor, NO_LABEL if ignore_index is None else ignore_index,
            float(smoothing), losses, out, self._scratch(), None if losses is None else self.nonfinite, rows, columns,
        )  # fmt: skip
        return True

    def squared_error(self, x: Array, target: Array, reduction: str, gradient: bool = True) -> tuple[Array, Any]:
        each = reduction == "none"
        losses = self._empty(x.shape if each else (), x)
        gx = self._empty(x.shape, x) if gradient and not each else None
        if self._squared_error(x, target, None, reduction, losses, gx, None):
            return losses, gx
        return Backend.squared_error(self, x, target, reduction)[0], None

    def squared_error_backward(
        self, g: Array, x: Array, target: Array, reduction: str, residual: Any, needs: Sequence[bool]
    ) -> tuple[Array | None, Array | None]:
        if residual is not None and not needs[1] and self._is_seed(g):
            return residual, None
        gx = self._empty(x.shape, x) if needs[0] else None
        gt = self._empty(x.shape, x) if needs[1] else None
        if self._squared_error(x, target, g, reduction, None, gx, gt):
            return gx, gt
        return Backend.squared_error_backward(self, g, x, target, reduction, None, needs)

    def _squared_error(
        self, x: Array, target: Array, g: Array | None, reduction: str, losses: Array | None, gx: Array | None,
        gt: Array | None,
    ) -> bool:  # fmt: skip
        """Write the losses and the gradients `gx` and `gt` for `g`; False, with nothing written, for other dtypes."""
        dtype = kernel_dtype(x, g, target, types=ELEMENT_TYPES)
        if dtype is None or not x.size:
            return False
        n = x.size
        divisor = float(n) if reduction == "mean" else 1.0
        launch(
            "squared_error", dtype, *per_element(n, PARTIAL_BLOCKS),
            self._contiguous(x), self._contiguous(target), None if g is None else self._contiguous(g),
            int(reduction == "none"), 2.0 / divisor, divisor, losses, gx, gt, self._scratch(),
            None if losses is None else self.nonfinite, n,
        )  # fmt: skip
        return True
