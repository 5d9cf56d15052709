"""Matrix products and linear layers: by cuBLASLt, and by CuPy where cuBLASLt has no algorithm.

A layer is one launch if it has no activation or ReLU, and in half floats also with GELU; any other activation is one
more. Its backward pass is a launch for the derivative and the gradient of the bias, and one for each other gradient.
cuBLASLt's epilogues for the backward pass are not used: measured on an H100, each adds kernels of its own.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from typing import Any

from gradflow.backend import ACTIVATIONS, Array, Backend
from gradflow.backend.graphs import current_rows
from gradflow.environment import switch
from gradflow_cupy.cublaslt import CublasLt
from gradflow_cupy.cublaslt_library import CublasLtError
from gradflow_cupy.kernels import ELEMENT_TYPES, kernel_dtype, launch, per_cell, per_pack
from gradflow_cupy.network import CODES, IDENTITY, NetworkKernels, as_rows

logger = logging.getLogger("gradflow")

PRODUCTS = ("gemm", "linear", "linear_backward")
"""The kernels that are matrix products."""
AUX_WIDTH = 8
"""The number of columns of which cuBLASLt stores the input of GELU is a multiple of this."""


class LinearKernels(NetworkKernels):
    """Matrix products and linear layers."""

    _cuda_device: Any
    no_cublaslt = ""
    """Why products do not go to cuBLASLt, if they do not."""

    @functools.cached_property
    def _cublaslt(self) -> CublasLt | None:
        """cuBLASLt on this device; None if it is not there, or `GRADFLOW_FUSED=0` turns it off."""
        if switch("GRADFLOW_FUSED") is False:
            self.no_cublaslt = "GRADFLOW_FUSED=0"
            return None
        try:
            with self._cuda_device:
                return CublasLt(self.cupy, self.dtypes)
        except CublasLtError as error:
            self.no_cublaslt = str(error)
            logger.warning("products are computed by CuPy, which takes more launches: %s", error)
            return None

    def _product(self, a: Array, b: Array, out: Array, **how: Any) -> bool:
        """`CublasLt.product`; False where there is no cuBLASLt."""
        lt = self._cublaslt
        return lt is not None and lt.product(a, b, out, **how)

    def matmul(self, a: Array, b: Array, /, *, out: Array | None = None) -> Array:
        if a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0] and a.dtype == b.dtype:
            shape = a.shape[0], b.shape[1]
            if out is None or out.shape == shape:
                target = self._empty(shape, a) if out is None else out
                if self._product(a, b, target):
                    return target
        elif out is None and a.ndim == b.ndim == 3 and (len(a), a.shape[2]) == b.shape[:2] and a.dtype == b.dtype:
            target = self._empty((*a.shape[:2], b.shape[2]), a)
            if self._product(a, b, target):
                return target
        found = self._product_of_cupy(a, b)
        if out is None:
            return found
        out[...] = found
        return out

    def _product_of_cupy(self, a: Array, b: Array) -> Array:
        if a.dtype not in self.half_dtypes:
            return self.cupy.matmul(a, b)
        # CuPy does not multiply stacks of bfloat16 matrices, and rounds each term of a dot product to the half float
        gemm = a.ndim == b.ndim == 2 and (a.shape[0] > 1 or b.shape[1] > 1)
        if gemm and (a.dtype.char == "e" or self._multiplies_bfloat16):
            return self.cupy.matmul(a, b)
        wide = self.dtypes["float32"]
        return self.cupy.matmul(a.astype(wide), b.astype(wide)).astype(a.dtype)

    @functools.cached_property
    def _multiplies_bfloat16(self) -> bool:
        """Whether cuBLAS multiplies bfloat16 on this GPU: compute capability 8.0 or higher."""
        return int(self._cuda_device.compute_capability) >= 80

    def gemm(self, a: Array, b: Array, out: Array, accumulate: bool = False) -> Array:
        if self._product(a, b, out, accumulate=accumulate):
            return out
        return Backend.gemm(self, a, b, out, accumulate)

    def linear(
        self, x: Array, weight: Array, bias: Array | None, activation: str | None, parameter: float
    ) -> tuple[Array, Any]:
        dtype = kernel_dtype(x, weight, bias, types=ELEMENT_TYPES)
        if dtype is None:
            return Backend.linear(self, x, weight, bias, activation, parameter)
        rows, features = as_rows(x), weight.shape[0]
        shape = (*x.shape[:-1], features)
        out = z = self._empty((rows.shape[0], features), x)
        bias = None if bias is None else self._contiguous(bias)
        fused, aux = activation if activation == "relu" else None, None
        if activation == "gelu" and x.dtype in self.half_dtypes and features % AUX_WIDTH == 0:
            fused, aux = activation, self._empty(z.shape, z)
        keeps = activation is not None and ACTIVATIONS[activation].saves == "x"
        code = IDENTITY if activation is None else CODES[activation]
        if self._product(rows, weight, z, transpose_b=True, bias=bias, activation=fused, aux=aux):
            if fused != activation:
                out = self._empty(z.shape, z) if keeps else z
                launch("activate", dtype, *per_pack(z), z, out, z.size, code, parameter)
            z = z if aux is None else aux
        else:
            self.matmul(rows, weight.T, out=z)
            if activation is not None or bias is not None:
                out = self._empty(z.shape, z) if keeps else z
                grid, block = per_cell(*z.shape)
                launch("bias_activation", dtype, grid, block, z, bias, out, *z.shape, code, parameter)
        return out.reshape(shape), z.reshape(shape) if keeps else None

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
        dtype = kernel_dtype(g, x, weight, bias, types=ELEMENT_TYPES)
        if dtype is None:
            return Backend.linear_backward(self, g, out, x, weight, bias, activation, parameter, residual, needs, into)
        saved = None
        if activation is not None:
            saved = out if ACTIVATIONS[activation].saves == "out" else residual
            if saved is None:  # recompute the pre-activation
                saved = self.linear(x, weight, bias, None, 0.0)[0]
        need_x, need_weight, need_bias = needs
        gx = gw = gb = None
        rows = self._contiguous(as_rows(g))
        if need_bias:
            gb = self._sums_target(into[2], weight.shape[:1], rows)
            dz = None if saved is None else self._empty(rows.shape, rows)
            code = IDENTITY if activation is None else CODES[activation]
            self._sum_rows(dtype, rows, None if saved is None else self._contiguous(saved), dz, gb, code, parameter)
            rows, gb = rows if dz is None else dz, _stored(gb, into[2])
        elif activation is not None:
            rows = self.activate_backward(rows, as_rows(saved), activation, parameter)
        if need_weight:  # first, since a graph does it beside what follows
            gw, graph = self._empty(weight.shape, rows) if into[1] is None else into[1], current_rows()
            with contextlib.nullcontext() if graph is None or gw is not into[1] else graph.beside(rows, x):
                self._multiply(rows, as_rows(x), gw, transpose_a=True)
        if need_x:
            gx = into[0] if into[0] is not None and x.ndim == 2 else self._target(into[0], x.shape, rows)
            self._multiply(rows, weight, as_rows(gx))
            gx = _stored(gx, into[0])
        return gx, gw, gb

    def _multiply(self, a: Array, b: Array, out: Array, transpose_a: bool = False) -> None:
        """Write a @ b, or a.T @ b, to `out`."""
        if not self._product(a, b, out, transpose_a=transpose_a):
            Backend.gemm(self, a.T if transpose_a else a, b, out)


def _stored(x: Array, buffer: Array | None) -> Array:
    """The buffer, if there is one, with the values of x."""
    if buffer is None or buffer is x:
        return x
    buffer[...] = x
    return buffer
