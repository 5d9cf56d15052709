"""Native losses and softmax, and their backward passes, by rows.

A row's loss and probabilities do not depend on other rows. The total is a kernel of its own, of one item. A backward
pass needs no total: it counts the labels itself, so that rows can go through the loss and back without waiting for each
other.

Labels are not checked here: the loss of a label out of range is NaN, and nothing is read or written out of bounds. What
checks them, `gradflow.ops.losses._check_label_values`, is an opaque call of a recorded step. A program runs the kernel
`check_labels` in its place, before all else: unless it counts 0, the program stops, and the opaque call is made, which
raises the error of the plain step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradflow.backend import Array
from gradflow_numpy.native.base import NativeKernels, as_array, fits
from gradflow_numpy.native.kernels import kernel, launch
from gradflow_numpy.native.squares import REDUCED

if TYPE_CHECKING:
    from gradflow_numpy.native.emit import Function, Value
    from gradflow_numpy.native.rows import Columns, Rows

NO_LABEL = -(1 << 63)
"""What kernels take for `ignored` where no label is ignored."""
_TOGETHER = 32  # the rows of a backward pass that are scaled at once, before each label's part
_COUNTED = 4096  # the largest batch whose labels each range of a backward pass counts


# ---------------------------------------------------------------------- labels


def _count(fn: Function, labels: Value, n: Value, counts: Callable[[Value], Value]) -> Value:
    """How many of n labels `counts`, a condition, is true for."""
    from llvmlite import ir

    from gradflow_numpy.native.emit import I64
    from gradflow_numpy.native.sums import across

    total = fn.variable(fn.integer(0).splat(8))
    with fn.loop(0, n, 8) as i:
        mask = fn.first_lanes(n - i, 8)
        found = counts(fn.load(labels + i * 8, ir.VectorType(I64, 8), mask)) & mask
        total.set(total.get() + found.as_integer(I64))
    return across(total.get(), lambda x, y: x + y)


@kernel("losses", "RUiii")
def check_labels(
    fn: Function, labels: Value, wrong: Value, n: Value, classes: Value, ignored: Value, start: Value, stop: Value,
    scratch: Value,
) -> None:  # fmt: skip
    """Add how many of n labels are neither in [0, classes) nor `ignored` to `wrong`, int64. One item."""
    from gradflow_numpy.native.emit import I64

    count = _count(fn, labels, n, lambda x: ((x < 0) | (x >= classes)) & (x != ignored))
    fn.store(fn.load(wrong, I64) + count, wrong)


@kernel("losses", "RWii")
def count_labels(
    fn: Function, labels: Value, count: Value, n: Value, ignored: Value, start: Value, stop: Value, scratch: Value
) -> None:
    """count = how many of n labels are not `ignored`, int64. One item."""
    fn.store(_count(fn, labels, n, lambda x: x != ignored), count)


# ---------------------------------------------------------------------- cross-entropy


@kernel("losses", "rrwwiif")
def label_losses(
    fn: Function, x: Value, labels: Value, p: Value, losses: Value, classes: Value, ignored: Value, smoothing: Value,
    start: Value, stop: Value, scratch: Value,
) -> None:  # fmt: skip
    """p = softmax(x), and the loss of each label: 0 for the label `ignored`, NaN for one that is out of range."""
    from gradflow_numpy.native.emit import I64
    from gradflow_numpy.native.rows import each_row

    def work(rows: Rows) -> None:
        label = rows.read(labels, I64)
        known = (label >= 0) & (label < classes)
        place = fn.select(known, label, -1).as_integer(rows.integer)
        own, spread = rows.variable(0.0), rows.variable(0.0)

        def also(shifted: Value, c: Columns) -> None:
            rows.add(fn.select(c.numbers == place, shifted, 0.0), own, c)
            rows.add(shifted, spread, c)

        log_total = rows.softmax(x, p, also)[1]
        share = smoothing / classes.as_float(fn.real)
        smooth = rows.total(own) * (1.0 - smoothing) + rows.total(spread) * share
        loss = log_total - fn.select(smoothing == 0.0, rows.total(own), smooth)
        loss = fn.select(known, loss, float("nan"))
        rows.write(fn.select(label == ignored, 0.0, loss), losses)

    each_row(fn, classes, start, stop, scratch, work)


@kernel("losses", "rrwwi")
def weight_losses(
    fn: Function, x: Value, weights: Value, p: Value, losses: Value, classes: Value, start: Value, stop: Value,
    scratch: Value,
) -> None:  # fmt: skip
    """p = softmax(x), and the loss of each row of weights."""
    from gradflow_numpy.native.rows import each_row

    def work(rows: Rows) -> None:
        top, log_total = rows.softmax(x, p)
        loss = rows.variable(0.0)
        rows.each(lambda c: rows.add(rows.load(weights, c) * (log_total - (rows.load(x, c) - top)), loss, c))
        rows.write(rows.total(loss), losses)

    each_row(fn, classes, start, stop, scratch, work)


@kernel("losses", "rRRRwiiiif")
def label_losses_backward(
    fn: Function, p: Value, labels: Value, counted: Value, g: Value, out: Value, classes: Value, n: Value,
    ignored: Value, reduced: Value, smoothing: Value, start: Value, stop: Value, scratch: Value,
) -> None:  # fmt: skip
    """out = (p - the smoothed one-hot rows of n labels) * g, and 0 in the rows of the label `ignored`.

    reduced: 0 if g has an element for each row; 1 if it is 0-d; 2 if it is divided by the number of other labels:
    `counted`, int64, if that is given.
    """
    from gradflow_numpy.native.emit import I64

    share, own = smoothing / classes.as_float(fn.real), 1.0 - smoothing
    factor = fn.variable(fn.constant(1.0))
    with fn.when(reduced != 0):
        factor.set(fn.load(g, fn.real))
    with fn.when(reduced == 2):
        count = fn.variable(fn.integer(0))
        with fn.when_else(counted == 0) as (here, before):
            with here:
                count.set(_count(fn, labels, n, lambda x: x != ignored))
            with before:
                count.set(fn.load(counted, I64))
        divisor = fn.select(count.get() > 1, count.get(), 1)
        factor.set(factor.get() / divisor.as_float(fn.real))

    def scale(i: Value, mask: Value | None) -> None:
        at = i * fn.size
        fn.store((fn.load(p + at, mask=mask) - share) * factor.get(), out + at, mask)

    step = fn.select(reduced == 0, fn.integer(1), _TOGETHER)
    with fn.loop(start, stop, step) as first:
        last = fn.select(first + step < stop, first + step, stop)
        with fn.when(reduced == 0):
            factor.set(fn.load(g + first * fn.size, fn.real))
        fn.each(first * classes, last * classes, scale)
        with fn.loop(first, last) as i:
            label, row = fn.load(labels + i * 8, I64), i * classes
            with fn.when_else(label == ignored) as (unused, used):
                with unused:
                    zero = fn.vector(0.0)
                    fn.each(row, row + classes, lambda k, mask: fn.store(zero, out + k * fn.size, mask))
                with used, fn.when((label >= 0) & (label < classes)):
                    place = out + (row + label) * fn.size
                    fn.store(fn.load(place, fn.real) - factor.get() * own, place)


@kernel("losses", "rrRwiii")
def weight_losses_backward(
    fn: Function, p: Value, weights: Value, g: Value, out: Value, classes: Value, n: Value, reduced: Value,
    start: Value, stop: Value, scratch: Value,
) -> None:  # fmt: skip
    """out = (p * the sum of a row's weights - weights) * g, with n rows in all; `reduced` as above."""
    from gradflow_numpy.native.emit import I64
    from gradflow_numpy.native.rows import each_row

    divisor, each = fn.select(reduced == 2, n.as_float(fn.real), 1.0), (reduced == 0).as_integer(I64)

    def work(rows: Rows) -> None:
        weight = rows.variable(0.0)
        rows.each(lambda c: rows.add(rows.load(weights, c), weight, c))
        total = rows.total(weight)
        factor = rows.read(g, step=each) / divisor
        rows.each(lambda c: rows.store((rows.load(p, c) * total - rows.load(weights, c)) * factor, out, c))

    each_row(fn, classes, start, stop, scratch, work)


# ---------------------------------------------------------------------- softmax


@kernel("losses", "rwi")
def softmax(fn: Function, x: Value, out: Value, columns: Value, start: Value, stop: Value, scratch: Value) -> None:
    """out = softmax(x) of each row."""
    from gradflow_numpy.native.rows import each_row

    each_row(fn, columns, start, stop, scratch, lambda rows: rows.softmax(x, out) and None)


@kernel("losses", "rwi")
def log_softmax(fn: Function, x: Value, out: Value, columns: Value, start: Value, stop: Value, scratch: Value) -> None:
    """out = log(softmax(x)) of each row."""
    from gradflow_numpy.native.rows import each_row

    def work(rows: Rows) -> None:
        top, log_total = rows.softmax(x, out)
        rows.each(lambda c: rows.store(rows.load(x, c) - top - log_total, out, c))

    each_row(fn, columns, start, stop, scratch, work)


@kernel("losses", "RRWiii")
def total_loss(
    fn: Function, losses: Value, labels: Value, out: Value, n: Value, ignored: Value, reduced: Value, start: Value,
    stop: Value, scratch: Value,
) -> None:  # fmt: skip
    """out = the sum of n losses; divided by their number without that of the label `ignored`, if `reduced` is 2."""
    from gradflow_numpy.native.emit import F64
    from gradflow_numpy.native.sums import total

    whole = fn.variable(total(fn, losses, n, scratch, lambda x: x))
    with fn.when(reduced == 2):
        count = fn.variable(n)
        with fn.when(labels != 0):
            count.set(_count(fn, labels, n, lambda x: x != ignored))
        whole.set(whole.get() / count.get().as_float(F64))  # NaN of no losses
    fn.store(whole.get().as_float(fn.real), out)


# ---------------------------------------------------------------------- the backend's part


def _are_labels(target: Array) -> bool:
    """Whether these are labels that kernels can take."""
    return target.ndim == 1 and target.dtype == np.int64 and bool(target.flags.carray)


class LossKernels(NativeKernels):
    """Losses and softmax by native kernels."""

    def softmax_cross_entropy(
        self,
        logits: Array,
        target: Array,
        reduction: str,
        gradient: bool = True,
        ignore_index: int | None = None,
        smoothing: float = 0.0,
    ) -> tuple[Array, Any]:
        labels = target if _are_labels(target) else None
        if not logits.size or not fits(logits) or not (labels is not None or fits(target, logits.dtype)):
            return self.numpy.softmax_cross_entropy(logits, target, reduction, gradient, ignore_index, smoothing)
        n, classes = logits.shape
        ignored = NO_LABEL if ignore_index is None else ignore_index
        dtype = logits.dtype
        p, losses = np.empty(logits.shape, dtype), np.empty(n, dtype)
        cost = 8.0 + 1.2 * classes
        if labels is None:
            launch(weight_losses, dtype, n, cost, logits, target, p, losses, classes)
        else:
            launch(label_losses, dtype, n, cost, logits, labels, p, losses, classes, ignored, smoothing)
        if reduction == "none":
            return losses, p
        loss = np.empty((), dtype)
        launch(total_loss, dtype, 1, 0.3 * n, losses, labels, loss, n, ignored, REDUCED[reduction])
        return loss, p

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
        g = as_array(g)
        labels = target if _are_labels(target) else None
        if (
            not needs[0] or needs[1] or not logits.size or not fits(residual) or not fits(g, residual.dtype)
            or not (labels is not None or fits(target, residual.dtype))
        ):  # fmt: skip
            arguments = g, logits, target, reduction, residual, needs, ignore_index, smoothing
            return self.numpy.softmax_cross_entropy_backward(*arguments)
        n, classes = residual.shape
        ignored = NO_LABEL if ignore_index is None else ignore_index
        dtype, reduced = residual.dtype, REDUCED[reduction]
        out = np.empty(residual.shape, dtype)
        if labels is None:
            launch(weight_losses_backward, dtype, n, 2.0 * classes, residual, target, g, out, classes, n, reduced)
            return out, None
        counted = None
        if reduced == 2 and n > _COUNTED:
            counted = np.empty((), np.int64)
            launch(count_labels, dtype, 1, 0.3 * n, labels, counted, n, ignored)
        launch(
            label_losses_backward, dtype, n, 3.0 + 0.2 * classes,
            residual, labels, counted, g, out, classes, n, ignored, reduced, smoothing,
        )  # fmt: skip
        return out, None

    def softmax(self, x: Array, axis: int) -> Array:
        return self._of_rows(softmax, x) if self._is_last(x, axis) else self.numpy.softmax(x, axis)

    def log_softmax(self, x: Array, axis: int) -> Array:
        return self._of_rows(log_softmax, x) if self._is_last(x, axis) else self.numpy.log_softmax(x, axis)

    @staticmethod
    def _is_last(x: Array, axis: int) -> bool:
        return x.ndim > 0 and axis in (-1, x.ndim - 1) and x.size > 0 and fits(x)

    @staticmethod
    def _of_rows(which: Any, x: Array) -> Array:
        out, columns = np.empty(x.shape, x.dtype), x.shape[-1]
        launch(which, x.dtype, x.size // columns, 8.0 + 1.2 * columns, x, out, columns)
        return out
