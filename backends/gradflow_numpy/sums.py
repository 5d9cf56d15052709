"""Sums whose error does not grow with the number of terms, over any axes and for any memory layout.

NumPy uses pairwise summation along a contiguous axis only. Over other axes it adds row after row: a column of 20
million float32 ones sums to 16,777,216. Here at most a few dozen terms are added one after another, and those partial
sums in pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from gradflow_numpy.half import FLOAT16, is_half

Array = Any
_reduce: Any = np.add.reduce  # has less Python overhead than numpy.sum
_accumulate: Any = np.add.accumulate
_FEW = 32  # terms that may be added one after another
_LONG = 1024  # elements of a row that amortise a call of NumPy's inner loop, and fit the first-level cache
BLOCK = 2048  # the largest number of elements of a dot product, whose order of summation BLAS chooses


def total(x: Array, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Array:
    """The sum of x over `axis`; for half floats, computed and returned in float32.

    The sum of n floating-point numbers is within (20 + log2 n) * eps * sum(|x|) of the exact sum.
    """
    wide = None
    if x.itemsize == 2 and is_half(x):
        wide = np.float32
        x = x if x.dtype == FLOAT16 else x.astype(wide)
    shape = x.shape
    ndim = len(shape)
    axes: Any = range(ndim) if axis is None else (axis,) if axis.__class__ is int else axis
    few = (len(axes) == 1 and shape[axes[0]] <= _FEW) or x.size <= _FEW
    if few or ndim == 1 or x.dtype.kind != "f":
        return _reduce(x, axis, wide, None, keepdims)
    contiguous = x.flags.c_contiguous
    if contiguous and axes and len(axes) == ndim - min(axes):  # the last axes: NumPy's summation is pairwise
        return _reduce(x, axis, wide, None, keepdims)
    if contiguous and len(axes) == 1 and 0 <= (a := axes[0]) < ndim:
        result = _sum_rows(x.reshape(-1, shape[a], x.strides[a] // x.itemsize), wide)
        return result.reshape(shape[:a] + ((1,) if keepdims else ()) + shape[a + 1 :])
    axes = normalize_axis_tuple(axes, ndim)
    if math.prod([shape[a] for a in axes]) <= _FEW:
        return _reduce(x, axis, wide, None, keepdims)
    result = _sum(x, axes, wide, contiguous)
    return result.reshape([1 if a in axes else n for a, n in enumerate(shape)]) if keepdims else result


def _sum(x: Array, axes: Sequence[int], wide: Any, contiguous: bool) -> Array:
    """`total` for axes over which NumPy's own sum may miss the bound."""
    shape = x.shape
    repeated = [a for a in axes if not x.strides[a] and shape[a] > 1]
    if repeated:  # broadcast axes, as in the gradient of a sum
        once = total(x[tuple([slice(1 if a in repeated else None) for a in range(x.ndim)])], axes)
        return np.multiply(once, math.prod([shape[a] for a in repeated]), dtype=once.dtype)
    order = range(x.ndim) if contiguous else sorted(range(x.ndim), key=lambda a: -abs(x.strides[a]))
    x = np.ascontiguousarray(x.transpose(order))
    columns = 1
    for summed, group in itertools.groupby(reversed(order), axes.__contains__):  # adjacent axes are one long axis
        length = math.prod([shape[a] for a in group])
        if summed:
            x = _sum_rows(x.reshape(-1, length, columns), wide)
        else:
            columns *= length
    kept = [a for a in order if a not in axes]
    return x.reshape([shape[a] for a in kept]).transpose(sorted(range(len(kept)), key=kept.__getitem__))


def _sum_rows(x: Array, wide: Any) -> Array:
    """The sum over the second of three axes of a contiguous array."""
    many, rows, columns = x.shape
    if rows <= _FEW or columns == 1:
        return _reduce(x, 1, wide)
    side = min(max(_LONG // columns, 1), rows // _FEW)  # rows treated as one long row
    whole = rows - rows % (side * _FEW)
    head = x if whole == rows else x[:, :whole]
    parts = _reduce(head.reshape(many, -1, _FEW, side * columns), 2, wide).reshape(many, -1, columns)
    n = parts.shape[1]
    while n > _FEW // 2:
        half = n // 2
        np.add(parts[:, :half], parts[:, n - half : n], parts[:, :half])
        n -= half
    result = _reduce(parts[:, :n], 1)
    return result if whole == rows else np.add(result, _sum_rows(x[:, whole:], wide), result)


def square_total(x: Array) -> Any:
    """The sum of the squares of a flat array, within the bound of `total`; for half floats, in float32."""
    if x.itemsize == 2 and is_half(x):
        x = x.astype(np.float32)
    if x.size <= BLOCK:
        return np.dot(x, x)
    whole = x.size - x.size % BLOCK
    blocks = x[:whole].reshape(-1, BLOCK)
    return _reduce(np.vecdot(blocks, blocks)) + np.dot(x[whole:], x[whole:])


def mean(x: Array, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Array:
    """`total` divided by the number of terms, in the dtype of `total`."""
    result = total(x, axis, keepdims)
    return np.divide(result, x.size // max(result.size, 1))


def variance(x: Array, axis: int | Sequence[int] | None, correction: float, keepdims: bool) -> Array:
    """The sum of (x - mean)^2 divided by the number of terms less `correction`, in the dtype of `total`."""
    deviations = np.asarray(np.subtract(x, mean(x, axis, True)))
    np.square(deviations, deviations)
    result = total(deviations, axis, keepdims)
    return np.divide(result, max(x.size // max(result.size, 1) - correction, 0))


def running_total(x: Array, axis: int | None = None) -> Array:
    """The cumulative sum along `axis`, each number within the bound of `total`; for half floats, in float32."""
    if x.itemsize == 2 and is_half(x):
        x = x.astype(np.float32)
    n = x.size if axis is None else x.shape[axis]
    if n <= _FEW or not x.size or x.dtype.kind != "f":
        return np.cumulative_sum(x, axis=axis)
    if x.size <= _LONG and x.dtype == np.float32:
        return np.cumulative_sum(x, axis=axis, dtype=np.float64).astype(np.float32)
    out = np.empty_like(x)
    terms, sums = np.moveaxis(x, axis or 0, 0), np.moveaxis(out, axis or 0, 0)
    whole = n - n % _FEW
    blocks = sums[:whole].reshape(-1, _FEW, *sums.shape[1:])  # a view: the axis is split into two
    _accumulate(terms[:whole].reshape(blocks.shape), 1, None, blocks)
    _accumulate(terms[whole:], 0, None, sums[whole:])
    ends = blocks[:, -1]
    before = _compensated(ends) if x.dtype == np.float64 else _accumulate(ends, 0, np.float64).astype(x.dtype)
    blocks[1:] += before[:-1, None]
    sums[whole:] += before[-1]
    return out


def _compensated(x: Array) -> Array:
    """The cumulative sum along the first axis plus the cumulative sum of its rounding errors.

    Knuth 1997, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B: the error of an addition.
    """
    sums = _accumulate(x, 0)
    with np.errstate(invalid="ignore"):  # the errors of infinite sums are NaN
        before = np.zeros_like(sums)
        before[1:] = sums[:-1]
        step = sums - before
        back = step - sums
        lost = (sums - (step - back)) - (before + back)
        missing = (x - step) - lost
    missing[~np.isfinite(missing)] = 0
    return np.add(sums, _accumulate(missing, 0), sums)
