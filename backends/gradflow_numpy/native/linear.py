"""Linear layers by the kernels of `products`, which are used for all shapes: see `rule`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.backend import ACTIVATIONS, Array
from gradflow_numpy.native import products
from gradflow_numpy.native.base import NativeKernels, fit, fits
from gradflow_numpy.native.kernels import launch
from gradflow_numpy.native.products import COPIED, DIRECT, PACKED
from gradflow_numpy.threads import count

_FEW = 8
"""For fewer rows, x W^T and the gradient of x are computed without a copy of W."""
_OWN = 32
"""With so many rows for each thread, each one copies the second factor for itself; else it is packed once for all."""
_TRANSPOSED = 1 << 13
"""The bytes of a weight that each thread transposes for itself anyway."""
_STRIDED = 1 << 16
"""The bytes of a weight or of x that tiles read where it lies."""
_OUTPUTS = 32
"""The outputs for which x is packed."""
_LARGE, _WIDE = 1 << 23, 256
"""The bytes of a weight or of x that is not packed: parts of it are copied into scratch, if it has so many columns."""
_RATE = 160.0
"""About how many bytes of numbers are multiplied and added in a nanosecond on one thread."""


def rule() -> str:
    """Which products are computed how, in words: all that rounds them otherwise than on another machine."""
    return f"tiles; dot products for x W^T with fewer than {_FEW} rows"


def _pack(b: Array, columns: int, inner: int, turned: bool) -> Array:
    panels = np.empty(products.packed_shape(columns, inner, b.itemsize), b.dtype)
    cost = 2 * inner * b.itemsize  # of about 16 columns
    launch(products.pack, b.dtype, panels.shape[0], cost, b, panels, columns, inner, turned)
    return panels


def _by_columns(
    a: Array, a_turned: bool, b: Array, b_turned: bool, bias: Any, c: Any, rows: int, columns: int, inner: int,
    relu: bool,
) -> None:  # fmt: skip
    """c = a b + bias, or its relu; where one is `turned`, it is given as its transpose."""
    size = b.itemsize
    strides = (size, rows * size) if a_turned else (inner * size, size)
    row = (inner if b_turned else columns) * size
    cost = rows * inner * size / _RATE
    launch(
        products.by_columns, b.dtype, columns, cost, a, *strides, b, row, b_turned, bias, c, rows, columns, inner, relu
    )


def _is_packed(rows: int) -> bool:
    """Whether products of so many rows use a packed second factor, unless it is small."""
    return rows < _OWN * count()


def _form(b: Array, rows: int) -> int:
    """How products of so many rows use b, whose rows are contiguous."""
    if b.nbytes <= _STRIDED:
        return DIRECT
    return PACKED if _is_packed(rows) else COPIED


class LinearKernels(NativeKernels):
    """`gemm`, `linear`, and its VJP."""

    def gemm(self, a: Array, b: Array, out: Array, accumulate: bool = False) -> Array:
        dtype = out.dtype
        inner, columns = b.shape
        if (
            not fits(out) or a.dtype != dtype or b.dtype != dtype or not (a.flags.aligned and b.flags.aligned)
            or a.shape != (out.shape[0], inner) or columns != out.shape[1]
        ):  # fmt: skip
            return self.numpy.gemm(a, b, out, accumulate)
        size = b.itemsize
        if b.flags.c_contiguous or (b.strides[1] == size and b.strides[0] >= columns * size):
            turned, row = False, columns * size if inner == 1 else b.strides[0]
        elif inner == 1 or b.strides[0] == size:
            turned, row = True, b.strides[1]
        else:
            return self.numpy.gemm(a, b, out, accumulate)
        kernel = products.added_product if accumulate else products.product
        cost = inner * columns * size / _RATE
        launch(kernel, dtype, out.shape[0], cost, a, *a.strides, b, row, turned, out, columns, inner)
        return out

    def linear(
        self, x: Array, weight: Array, bias: Array | None, activation: str | None, parameter: float
    ) -> tuple[Array, Any]:
        dtype = x.dtype
        if not (x.ndim and fit((x, weight, bias))):
            return self.numpy.linear(x, weight, bias, activation, parameter)
        outputs, inputs = weight.shape
        if x.shape[-1] != inputs or not (bias is None or bias.shape == (outputs,)):
            return self.numpy.linear(x, weight, bias, activation, parameter)
        shape = x.shape[:-1]
        n = shape[0] if len(shape) == 1 else math.prod(shape)
        z = np.empty((*shape, outputs), dtype)
        relu = activation == "relu"
        cost = weight.nbytes / _RATE
        if n < _FEW:
            launch(
                products.forward_few, dtype, outputs, 2 * n * inputs * x.itemsize / _RATE, x, weight, bias, z, inputs,
                outputs, n, relu,
            )  # fmt: skip
        elif weight.nbytes > _LARGE and outputs >= _WIDE:
            _by_columns(x, False, weight, True, bias, z, n, outputs, inputs, relu)
        else:
            packed = weight.nbytes > _TRANSPOSED and _is_packed(n)
            b = _pack(weight, outputs, inputs, True) if packed else weight
            launch(products.forward, dtype, n, cost, x, b, bias, z, inputs, outputs, packed, relu)
        if relu or activation is None:
            return z, None
        return self.activate(z, activation, parameter), z if ACTIVATIONS[activation].saves == "x" else None

    def linear_backward(
        self,
        g: Array,
        out: Array,
        x: Array,
        weight: Array,
        bias: Array | None,
        activation: str | None,
        parameter: float,
        residual: Any,
        needs: Sequence[bool],
        into: Sequence[Array | None],
    ) -> tuple[Array | None, Array | None, Array | None]:
        dtype = g.dtype
        saved: Any = None
        if activation is not None:
            saved = out if ACTIVATIONS[activation].saves == "out" else residual
        recomputed = bias if activation is not None and saved is None else None
        if not fit((g, weight, x, saved, recomputed, *into)):
            return self.numpy.linear_backward(g, out, x, weight, bias, activation, parameter, residual, needs, into)
        if activation is not None and saved is None:  # recompute the pre-activation
            saved = self.linear(x, weight, bias, None, 0.0)[0]
        outputs, inputs = weight.shape
        shape = g.shape
        n = shape[0] if len(shape) == 2 else math.prod(shape[:-1])
        need_x, need_weight, need_bias = needs
        gx, gw, gb = into
        if activation == "relu":
            masked: Any = np.empty(g.shape, dtype)
        else:
            if activation is not None:
                g = self.activate_backward(g, saved, activation, parameter)
            masked = saved = None
        if need_x and gx is None:
            gx = np.empty(x.shape, dtype)
        by_few = need_x and 0 < n < _FEW and weight.nbytes > _STRIDED
        by_columns = need_x and n >= _FEW and weight.nbytes > _LARGE and inputs >= _WIDE
        by_rows = need_x and not (by_few or by_columns)
        if by_rows or masked is not None:
            form = _form(weight, n) if by_rows else DIRECT
            b = _pack(weight, inputs, outputs, False) if form == PACKED else weight
            cost = weight.nbytes / _RATE if by_rows else outputs / 8
            launch(
                products.backward_rows, dtype, n, cost, g, saved, masked, b, gx if by_rows else None, outputs, inputs,
                form,
            )  # fmt: skip
            if masked is not None:
                g = masked
        if by_few:
            cost = 2 * n * outputs * g.itemsize / _RATE
            row, size = outputs * g.itemsize, g.itemsize
            launch(products.by_few, dtype, inputs, cost, g, row, size, weight, gx, n, inputs, outputs)
        elif by_columns:
            _by_columns(g, False, weight, False, None, gx, n, inputs, outputs, False)
        if need_weight and gw is None:
            gw = np.empty(weight.shape, dtype)
        if need_bias and gb is None:
            gb = np.empty(outputs, dtype)
        by_columns = need_weight and x.nbytes > _LARGE and outputs >= _OUTPUTS and inputs >= _WIDE
        if by_columns:
            _by_columns(g, True, x, False, None, gw, outputs, inputs, n, False)
        by_outputs = need_weight and not by_columns
        if by_outputs or need_bias:
            form = _form(x, outputs) if by_outputs and outputs >= _OUTPUTS else DIRECT
            b = _pack(x, inputs, n, False) if form == PACKED else x
            cost = n * (inputs * by_outputs + 4) * x.itemsize / _RATE
            launch(
                products.backward_outputs, dtype, outputs, cost, g, b, gw if by_outputs else None,
                gb if need_bias else None, n, outputs, inputs, form,
            )  # fmt: skip
        return gx if need_x else None, gw if need_weight else None, gb if need_bias else None
