"""Kernels compiled by numba: one pass over the arrays, where NumPy needs one pass for each operation.

A kernel is compiled for a dtype when first called with it, and cached on disk for later processes. All kernels release
the interpreter lock, so that threads can share the work. Arrays are C-contiguous and of one dtype, float32 or float64.
Numbers come as Python floats and are rounded to that dtype, so that nothing is computed in float64 by accident. Labels
are not checked here.
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


# ---------------------------------------------------------------------- losses


@_compiled
def _in_pairs(sums: Any) -> Any:
    """The sum of a flat array by adding its halves, which keeps the rounding error small; overwrites the array."""
    n = sums.size
    while n > 1:
        half = n // 2
        for i in range(half):
            sums[i] += sums[n - half + i]
        n -= half
    return sums[0]


@_compiled
def less_row_maximum(x: Any, result: Any) -> None:
    """result = x - the maximum of each row, NaN for rows that contain NaN; arrays (n, m)."""
    for i in range(x.shape[0]):
        top = x[i, 0]
        for j in range(1, x.shape[1]):
            if not x[i, j] <= top:
                top = x[i, j]
                if top != top:
                    break
        for j in range(x.shape[1]):
            result[i, j] = x[i, j] - top


@_compiled
def label_losses(shifted: Any, e: Any, labels: Any, ignored: int, losses: Any) -> Any:
    """losses = log(sum(e)) - shifted[label] for each row, or 0 for the label `ignored`, and e /= its sum.

    Returns the sum of the losses in float64, and the number of rows with other labels.

    shifted, e = exp(shifted): (n, m); labels, losses: (n,).
    """
    count = 0
    for i in range(e.shape[0]):
        total = e.dtype.type(0)
        for j in range(e.shape[1]):
            total += e[i, j]
        losses[i] = 0
        if labels[i] != ignored:
            losses[i] = np.log(total) - shifted[i, labels[i]]
            count += 1
        scale = e.dtype.type(1) / total
        for j in range(e.shape[1]):
            e[i, j] *= scale
    sums = np.empty(max((losses.size + _ROWS - 1) // _ROWS, 1))
    for k in range(sums.size):
        whole = 0.0
        for i in range(k * _ROWS, min((k + 1) * _ROWS, losses.size)):
            whole += losses[i]
        sums[k] = whole
    return _in_pairs(sums), count


@_compiled
def label_losses_backward(p: Any, labels: Any, ignored: int, g: float, mean: bool, result: Any) -> None:
    """result = (p - one_hot(labels)) * g, and 0 in the rows of the label `ignored`.

    p, result: (n, m), labels: (n,). mean: whether g is divided by the number of rows with other labels.
    """
    count = 0
    if mean:
        for i in range(labels.size):
            if labels[i] != ignored:
                count += 1
    c = p.dtype.type(g / max(count, 1))
    for i in range(p.shape[0]):
        if labels[i] == ignored:
            result[i] = 0
            continue
        for j in range(p.shape[1]):
            result[i, j] = p[i, j] * c
        result[i, labels[i]] -= c


@_compiled
def squared_difference(x: Any, target: Any, difference: Any) -> Any:
    """difference = x - target; returns the sum of its squares; flat arrays."""
    sums = np.empty(max((x.size + _ROWS - 1) // _ROWS, 1))
    for k in range(sums.size):
        start, stop = k * _ROWS, min((k + 1) * _ROWS, x.size)
        for i in range(start, stop):
            difference[i] = x[i] - target[i]
        total = x.dtype.type(0)
        for i in range(start, stop):  # a separate loop: next to a store, the order of the sum would depend on addresses
            total += difference[i] * difference[i]
        sums[k] = total
    return _in_pairs(sums)
