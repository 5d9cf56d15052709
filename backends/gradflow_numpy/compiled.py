"""Kernels compiled by numba: one pass over the arrays, where NumPy needs one pass for each operation.

A kernel is compiled for a dtype when first called with it, and cached on disk for later processes. All kernels release
the interpreter lock, so that threads can share the work. Arrays are C-contiguous and of one dtype, float32 or float64.
Numbers come as Python floats and are rounded to that dtype, so that nothing is computed in float64 by accident.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

_ROWS = 1024
"""The number of rows, or elements, in a partial sum. Adding partial sums keeps the rounding error small."""
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    # allow FMA and sums in any order, as in BLAS; NaN and infinity keep their meaning
    fastmath = {"contract", "reassoc"}
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    compiled: Any
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no writable folder for the cache
        compiled = numba.njit(**options)(function)
    return compiled  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- linear layers


@_compiled
def add_bias(z: Any, bias: Any) -> None:
    """z += bias, for z (n, m)."""
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            z[i, j] += bias[j]


@_compiled
def add_bias_relu(z: Any, bias: Any) -> None:
    """z = relu(z + bias), where NaN stays NaN, for z (n, m)."""
    zero = z.dtype.type(0)
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            x = z[i, j] + bias[j]
            z[i, j] = zero if x <= zero else x


@_compiled
def relu_backward_bias(g: Any, out: Any, result: Any, total: Any) -> None:
    """result = g where out is not 0, else 0; total = the sum of result over its rows; arrays (n, m)."""
    zero = g.dtype.type(0)
    total[:] = zero
    block = np.empty_like(total)
    for start in range(0, g.shape[0], _ROWS):
        block[:] = zero
        for i in range(start, min(start + _ROWS, g.shape[0])):
            for j in range(g.shape[1]):
                x = g[i, j] if out[i, j] != zero else zero
                result[i, j] = x
                block[j] += x
        total += block


@_compiled
def sum_rows(g: Any, total: Any) -> None:
    """total = the sum of g over its rows; g: (n, m), total: (m,)."""
    total[:] = g.dtype.type(0)
    block = np.empty_like(total)
    for start in range(0, g.shape[0], _ROWS):
        block[:] = g.dtype.type(0)
        for i in range(start, min(start + _ROWS, g.shape[0])):
            for j in range(g.shape[1]):
                block[j] += g[i, j]
        total += block
