"""Clipping by the global norm: the squares in blocks, the norm and the factor of their sums, and a pass that scales."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.backend import Array
from gradflow_numpy.native.base import NativeKernels, fit
from gradflow_numpy.native.kernels import kernel, launch
from gradflow_numpy.native.optimizers import float64s

_GROUP = "clipping"
_BLOCK = 2048  # elements whose squares are an item's sum
_PART = 256  # elements of a block whose squares are added one after another, in each lane
_LANES = 16  # on every processor: the order of the sum is part of the result


@kernel(_GROUP, "Riw")
def square_sums(fn: Any, x: Any, size: Any, sums: Any, start: Any, stop: Any, scratch: Any) -> None:
    """sums[k] = the sum of the squares of block k of x, in float64; the last block may be shorter.

    What is added one after another are 16 squares in each of 16 lanes, 8 such parts, and the lanes: 28 additions.
    """
    from llvmlite import ir

    from gradflow_numpy.native.emit import F64

    kind = ir.VectorType(fn.real, _LANES)
    zeros = fn.constant(0, F64).splat(_LANES)
    with fn.loop(start, stop) as k:
        total = fn.variable(zeros)
        end = _smaller(fn, (k + 1) * _BLOCK, size)
        with fn.loop(k * _BLOCK, end, _PART) as first:
            part = fn.variable(zeros)

            def add(i: Any, mask: Any, part: Any = part) -> None:
                value = fn.load(x + i * fn.size, kind, mask).as_float(F64)
                part.set(fn.fma(value, value, part.get()))

            fn.each(first, _smaller(fn, first + _PART, end), add, _LANES)
            total.set(total.get() + part.get())
        lanes = total.get()
        for half in (8, 4, 2, 1):
            lanes = fn.shuffle(lanes, lanes, list(range(half))) + fn.shuffle(lanes, lanes, list(range(half, 2 * half)))
        fn.store(lanes.lane(0), sums + 8 * k)


@kernel(_GROUP, "UiRWW")
def clip_factor(
    fn: Any, sums: Any, count: Any, max_norm: Any, norm: Any, factor: Any, start: Any, stop: Any, scratch: Any
) -> None:
    """The norm of its sums of squares, and the factor in float64 of the numbers: one item. The sums change.

    The norm is infinite where the sum of squares is, in the dtype of the norm.
    """
    from gradflow_numpy.native.emit import F64

    with fn.loop(start, stop):
        left = fn.variable(count)
        with fn.repeat_while(lambda: left.get() > 1):  # in pairs
            n = left.get()
            half = n >> 1
            with fn.loop(0, half) as i:
                fn.store(fn.load(sums + 8 * i, F64) + fn.load(sums + 8 * (n - half + i), F64), sums + 8 * i)
            left.set(n - half)
        total = fn.variable(fn.constant(0, F64))
        with fn.when(count > 0):
            total.set(fn.load(sums, F64))
        infinity = fn.constant(math.inf, F64)
        overflows = total.get().as_float(fn.real).as_float(F64) == infinity
        root = fn.sqrt(fn.select(overflows, infinity, total.get()))
        ratio = fn.load(max_norm, F64) / (root + 1e-6)
        fn.store(root.as_float(fn.real), norm)
        fn.store(fn.select(ratio > 1, 1.0, ratio), factor)


@kernel(_GROUP, "uR")
def scale(fn: Any, x: Any, factor: Any, start: Any, stop: Any, scratch: Any) -> None:
    """x *= factor, a float64 number that is rounded to the dtype of x; 1 leaves x alone."""
    from gradflow_numpy.native.emit import F64

    number = fn.load(factor, F64)
    vector = fn.vector(number.as_float(fn.real))

    def work(i: Any, mask: Any) -> None:
        place = x + i * fn.size
        fn.store(fn.load(place, mask=mask) * vector, place, mask)

    with fn.when(number != 1):
        fn.each(start, stop, work)


@kernel(_GROUP, "UrR")
def clear_padding(fn: Any, x: Any, indices: Any, factor: Any, start: Any, stop: Any, scratch: Any) -> None:
    """x = 0 at some int64 indices, if the factor is NaN."""
    from gradflow_numpy.native.emit import F64, I64

    number = fn.load(factor, F64)
    with fn.when(number != number), fn.loop(start, stop) as i:
        fn.store(fn.constant(0), x + fn.load(indices + 8 * i, I64) * fn.size)


def _smaller(fn: Any, x: Any, y: Any) -> Any:
    return fn.select(x < y, x, y)


class ClippingKernels(NativeKernels):
    """The kernel of clipping of `FastNumpyBackend`."""

    def clip_global_norm(
        self, gradients: Sequence[Array], max_norm: float, padding: Sequence[Array | None] = ()
    ) -> Array:
        if not fit(gradients):
            return self.numpy.clip_global_norm(gradients, max_norm, padding)
        dtype = gradients[0].dtype
        stops = list(itertools.accumulate([-(-g.size // _BLOCK) for g in gradients], initial=0))
        sums, norm, factor = np.empty(stops[-1]), np.empty((), dtype), np.empty(1)
        for g, start, stop in zip(gradients, stops, stops[1:], strict=False):
            launch(square_sums, dtype, stop - start, 0.15 * _BLOCK, g, g.size, sums[start:stop])
        launch(clip_factor, dtype, 1, 10.0 + sums.size, sums, sums.size, float64s((max_norm,)), norm, factor)
        for g, zeros in itertools.zip_longest(gradients, padding):
            launch(scale, dtype, g.size, 0.2, g, factor)
            if zeros is not None:
                launch(clear_padding, dtype, zeros.size, 1.0, g, zeros, factor)
        return norm
