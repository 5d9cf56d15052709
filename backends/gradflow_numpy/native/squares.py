"""Native squared errors and their backward pass.

The total is a kernel of its own, of one item, so that rows can go through the loss and back without waiting for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gradflow.backend import Array
from gradflow_numpy.native.base import NativeKernels, as_array, fit, items_of
from gradflow_numpy.native.kernels import kernel, launch

if TYPE_CHECKING:
    from gradflow_numpy.native.emit import Function, Value

REDUCED = {"none": 0, "sum": 1, "mean": 2}
"""What kernels take for a reduction."""


@kernel("squares", "rrwwi")
def differences(
    fn: Function, x: Value, target: Value, out: Value, squares: Value, inner: Value, start: Value, stop: Value,
    scratch: Value,
) -> None:  # fmt: skip
    """out = x - target, and its squares if they are wanted; an item has `inner` elements."""

    def some(i: Value, mask: Value | None, squared: bool) -> None:
        at = i * fn.size
        difference = fn.load(x + at, mask=mask) - fn.load(target + at, mask=mask)
        fn.store(difference, out + at, mask)
        if squared:
            fn.store(difference * difference, squares + at, mask)

    with fn.when_else(squares == 0) as (alone, both):
        with alone:
            fn.each(start * inner, stop * inner, partial(some, squared=False))
        with both:
            fn.each(start * inner, stop * inner, partial(some, squared=True))


@kernel("squares", "rRwwiii")
def differences_backward(
    fn: Function, difference: Value, g: Value, gx: Value, gt: Value, inner: Value, n: Value, reduced: Value,
    start: Value, stop: Value, scratch: Value,
) -> None:  # fmt: skip
    """gx = difference * 2 g, with n elements in all, and gt = -gx; each if it is wanted; `reduced` as above."""
    from gradflow_numpy.native.emit import F64

    divisor = fn.select(reduced == 2, n.as_float(F64), fn.constant(1.0, F64))
    whole = (fn.load(g, fn.real).as_float(F64) * 2.0 / divisor).as_float(fn.real)

    def some(i: Value, mask: Value | None, out: Value, sign: float, together: bool) -> None:
        at = i * fn.size
        factor = fn.vector(whole * sign) if together else fn.load(g + at, mask=mask) * (2.0 * sign)
        fn.store(fn.load(difference + at, mask=mask) * factor, out + at, mask)

    for out, sign in ((gx, 1.0), (gt, -1.0)):
        with fn.when(out != 0), fn.when_else(reduced == 0) as (each, together):
            with each:
                fn.each(start * inner, stop * inner, partial(some, out=out, sign=sign, together=False))
            with together:
                fn.each(start * inner, stop * inner, partial(some, out=out, sign=sign, together=True))


@kernel("squares", "RWii")
def total_square(
    fn: Function, x: Value, out: Value, n: Value, reduced: Value, start: Value, stop: Value, scratch: Value
) -> None:
    """out = the sum of n squares; their mean if `reduced` is 2."""
    from gradflow_numpy.native.emit import F64
    from gradflow_numpy.native.sums import total

    whole = total(fn, x, n, scratch, lambda x: x * x)
    divisor = fn.select(reduced == 2, n.as_float(F64), fn.constant(1.0, F64))
    fn.store((whole / divisor).as_float(fn.real), out)


class SquaredErrorKernels(NativeKernels):
    """Squared errors by native kernels."""

    def squared_error(self, x: Array, target: Array, reduction: str, gradient: bool = True) -> tuple[Array, Any]:
        x, target = as_array(x), as_array(target)
        if x.shape != target.shape or not fit((x, target)):
            return self.numpy.squared_error(x, target, reduction, gradient)
        dtype, n, (items, inner) = x.dtype, x.size, items_of(x)
        difference = np.empty(x.shape, dtype)
        squares = np.empty(x.shape, dtype) if reduction == "none" else None
        launch(differences, dtype, items, 0.2 * inner, x, target, difference, squares, inner)
        if squares is not None:
            return squares, difference
        loss = np.empty((), dtype)
        launch(total_square, dtype, 1, 0.2 * n, difference, loss, n, REDUCED[reduction])
        return loss, difference

    def squared_error_backward(
        self, g: Array, x: Array, target: Array, reduction: str, residual: Any, needs: Sequence[bool]
    ) -> tuple[Array | None, Array | None]:
        g, residual = as_array(g), as_array(residual)
        if residual is None or not fit((residual, g)):
            return self.numpy.squared_error_backward(g, x, target, reduction, residual, needs)
        dtype, n, (items, inner) = residual.dtype, residual.size, items_of(residual)
        gx = np.empty(residual.shape, dtype) if needs[0] else None
        gt = np.empty(residual.shape, dtype) if needs[1] else None
        arguments = residual, g, gx, gt, inner, n, REDUCED[reduction]
        launch(differences_backward, dtype, items, 0.2 * inner, *arguments)
        return gx, gt
