"""The kernels of activations, linear layers, losses and indexing, composed of array functions.

Each default is the specification of its kernel: shapes, dtypes, and which arrays are new.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradflow.backend.activations import ACTIVATIONS
from gradflow.backend.array_functions import Array
from gradflow.backend.erf import erf
from gradflow.backend.half_floats import in_float32, widened
from gradflow.backend.kernels import KernelBase, kernel


class ComposedKernels(KernelBase):
    """The composed kernels of activations, linear layers, losses and indexing."""

    # ------------------------------------------------------------------ kernels: activations

    @kernel
    @in_float32
    def activate(self, x: Array, name: str, parameter: float) -> Array:
        """The activation `name` of every element, as a new array. `parameter`: its slope or alpha, if it has one."""
        return ACTIVATIONS[name].forward(self, x, parameter)

    @kernel
    @in_float32
    def activate_backward(self, g: Array, saved: Array, name: str, parameter: float) -> Array:
        """The VJP of `activate`, as a new array. `saved`: its input or output, according to `ACTIVATIONS[name].saves`.

        Where `saved` is NaN, relu, elu and hardtanh return g, so that NaN does not look like a dead unit.
        """
        return ACTIVATIONS[name].backward(self, g, saved, parameter)

    def sigmoid(self, x: Array) -> Array:
        """1 / (1 + exp(-x)) without overflow."""
        return self.activate(x, "sigmoid", 0.0)

    @kernel
    @in_float32
    def erf(self, x: Array) -> Array:
        """2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x, of every element, as a new array."""
        return erf(self, x)

    @kernel
    @in_float32
    def softmax(self, x: Array, axis: int) -> Array:
        """exp(x) / sum(exp(x)) along `axis`. The maximum is subtracted first, so that nothing overflows."""
        e = self.exp(self.subtract(x, self.max(x, axis=axis, keepdims=True)))
        return self.divide(e, self.sum(e, axis=axis, keepdims=True))

    @kernel
    @in_float32
    def log_softmax(self, x: Array, axis: int) -> Array:
        """log(softmax(x)) along `axis`, finite for every finite x."""
        shifted = self.subtract(x, self.max(x, axis=axis, keepdims=True))
        return self.subtract(shifted, self.log(self.sum(self.exp(shifted), axis=axis, keepdims=True)))

    @kernel
    @in_float32
    def logsumexp(self, x: Array, axis: int | tuple[int, ...] | None, keepdims: bool) -> Array:
        """log(sum(exp(x))) over `axis`, without overflow; -inf if all elements are -inf, +inf if any is +inf."""
        top = self.max(x, axis=axis, keepdims=True)
        top = self.where(self.isfinite(top), top, 0.0)
        total = self.sum(self.exp(self.subtract(x, top)), axis=axis, keepdims=True)
        tiny = self.equal(total, 0)  # log(0) would warn
        out = self.add(self.where(tiny, -math.inf, self.log(self.where(tiny, 1.0, total))), top)
        if keepdims:
            return out
        return self.squeeze(out, axis=tuple(range(x.ndim)) if axis is None else axis)

    # ------------------------------------------------------------------ kernels: linear layers

    @kernel
    def gemm(self, a: Array, b: Array, out: Array, accumulate: bool = False) -> Array:
        """Write a @ b to `out`, or add it to `out` with `accumulate`; returns `out`.

        The arrays are 2-D; `out` overlaps neither a nor b. Where a and b are half floats, `out` may be float32.
        """
        product = self.matmul(*(widened((a, b), self) if out.dtype == self.single else (a, b)))
        out[...] = self.add(out, product) if accumulate else product
        return out

    @kernel
    def linear(
        self, x: Array, weight: Array, bias: Array | None, activation: str | None, parameter: float
    ) -> tuple[Array, Any]:
        """activation(x @ weight.T + bias), a new array (..., out), and a residual for `linear_backward`.

        x: (..., in). weight: (out, in). bias: (out,) or None. All have one dtype.
        """
        z = _affine(self, x, weight, bias)
        if activation is None:
            return z, None
        return self.activate(z, activation, parameter), z if ACTIVATIONS[activation].saves == "x" else None

    @kernel
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
        """The VJP of `linear` for x, weight and bias; None where `needs` is false.

        residual: that of `linear`, or None to recompute it. A gradient with a buffer in `into` is written to it, and
        the buffer is returned; where g is of half floats, the buffers of weight and bias may be float32, and get
        gradients that were not rounded to half floats. g is not overwritten.
        """
        if activation is not None:
            if ACTIVATIONS[activation].saves == "out":
                saved = out
            else:
                saved = residual if residual is not None else _affine(self, x, weight, bias)
            g = self.activate_backward(g, saved, activation, parameter)
        n = math.prod(g.shape[:-1])
        rows = self.reshape(g, (n, weight.shape[0])) if g.ndim != 2 else g
        need_x, need_weight, need_bias = needs
        gx = gw = gb = None
        if need_x:
            gx = self.matmul(g, weight)
            if into[0] is not None:
                into[0][...] = gx
                gx = into[0]
        if need_weight:
            columns = self.reshape(x, (n, weight.shape[1])) if x.ndim != 2 else x
            if into[1] is not None:
                gw = self.gemm(self.matrix_transpose(rows), columns, into[1])
            else:
                gw = self.matmul(self.matrix_transpose(rows), columns)
        if need_bias:
            wide = into[2] is not None and into[2].dtype == self.single
            gb = self.sum(widened(rows, self) if wide else rows, axis=0)
            if into[2] is not None:
                into[2][...] = gb
                gb = into[2]
        return gx, gw, gb

    # ------------------------------------------------------------------ kernels: losses

    @kernel
    def one_hot(self, labels: Array, classes: int, dtype: Any) -> Array:
        """1 at each label and 0 elsewhere: an array (..., classes) of `dtype`. labels: integers in [0, classes)."""
        i64 = self.dtypes["int64"]  # the labels' own dtype may not hold the number of classes
        labels = self.astype(labels, i64, copy=False)
        hot = self.equal(self.expand_dims(labels, axis=-1), self.arange(classes, dtype=i64))
        return self.astype(hot, dtype)

    @kernel
    @in_float32
    def softmax_cross_entropy(
        self,
        logits: Array,
        target: Array,
        reduction: str,
        gradient: bool = True,
        ignore_index: int | None = None,
        smoothing: float = 0.0,
    ) -> tuple[Array, Any]:
        """-sum(target * log_softmax(logits)) along the last axis, reduced over rows; and a residual.

        logits: (N, C). target: N integers in [0, C), or weights (N, C) with the dtype of the logits. reduction: "mean"
        (over N) or "sum", with a 0-d result, or "none", with a result of shape (N,). gradient: whether there may be a
        backward pass (default True); if not, a residual is of no use. ignore_index: a label that the dtype of the
        labels holds, or None. The loss and the gradients of its rows are 0, and the mean is that of the other rows, or
        NaN if there are none. smoothing: the share in [0, 1] of each label that is spread evenly over all classes.
        """
        kept = None if ignore_index is None else self.not_equal(target, ignore_index)
        if kept is not None:
            target = self.where(kept, target, 0)
        logp = self.log_softmax(logits, axis=-1)
        if target.ndim == 2:
            terms = self.multiply(target, logp)
        else:  # not a product: the log-probability of another class may be -inf, and 0 * -inf is NaN
            terms = self.where(self.one_hot(target, logits.shape[1], self.dtypes["bool"]), logp, 0.0)
            if smoothing:
                spread = self.multiply(logp, smoothing / logits.shape[1])
                terms = self.add(self.multiply(terms, 1.0 - smoothing), spread)
        losses = self.negative(self.sum(terms, axis=-1))
        if kept is None:
            return _reduce(self, losses, reduction), None
        losses = self.where(kept, losses, 0.0)
        if reduction != "mean":
            return _reduce(self, losses, reduction), None
        count = self.sum(self.astype(kept, losses.dtype))
        total = self.where(self.equal(count, 0.0), math.nan, self.sum(losses))
        return self.divide(total, self.maximum(count, 1.0)), None

    @kernel
    @in_float32
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
        """The VJP of `softmax_cross_entropy` for logits and target; None where `needs` is false.

        residual: that of `softmax_cross_entropy`, or None to recompute it.
        """
        kept = None if ignore_index is None else self.not_equal(target, ignore_index)
        if reduction == "mean":
            rows: Any = float(logits.shape[0])
            g = self.divide(g, rows if kept is None else self.maximum(self.sum(self.astype(kept, g.dtype)), 1.0))
        if kept is not None:
            g, target = self.where(kept, g, 0.0), self.where(kept, target, 0)
        g = self.reshape(g, (-1, 1))
        need_logits, need_target = needs
        gl = gt = None
        if need_logits:
            p = self.softmax(logits, axis=-1)
            if target.ndim == 2:
                p = self.subtract(self.multiply(p, self.sum(target, axis=-1, keepdims=True)), target)
            else:
                hot = self.one_hot(target, logits.shape[1], logits.dtype)
                if smoothing:
                    hot = self.add(self.multiply(hot, 1.0 - smoothing), smoothing / logits.shape[1])
                p = self.subtract(p, hot)
            gl = self.multiply(p, g)
        if need_target:
            gt = self.multiply(self.negative(self.log_softmax(logits, axis=-1)), g)
        return gl, gt

    @kernel
    @in_float32
    def squared_error(self, x: Array, target: Array, reduction: str, gradient: bool = True) -> tuple[Array, Any]:
        """(x - target)^2, reduced over all elements ("mean", "sum") or not ("none"), and a residual.

        x and target have one shape. gradient: as for `softmax_cross_entropy`.
        """
        difference = self.subtract(x, target)
        return _reduce(self, self.square(difference), reduction), difference

    @kernel
    @in_float32
    def squared_error_backward(
        self, g: Array, x: Array, target: Array, reduction: str, residual: Any, needs: Sequence[bool]
    ) -> tuple[Array | None, Array | None]:
        """The VJP of `squared_error` for x and target; None where `needs` is false.

        residual: that of `squared_error`, or None to recompute it.
        """
        difference = residual if residual is not None else self.subtract(x, target)
        factor = 2.0 / max(math.prod(x.shape), 1) if reduction == "mean" else 2.0
        gx = self.multiply(difference, self.multiply(g, factor))
        return gx if needs[0] else None, self.negative(gx) if needs[1] else None

    # ------------------------------------------------------------------ kernels: gather and scatter

    @kernel
    def take_rows(self, arrays: Sequence[Array], rows: Array) -> list[Array]:
        """For each array x of shape (n, ...), the batches x[rows] as a new array (batches, size, ...).

        rows: (batches, size), indices in [0, n), int64. Along the first axis, each batch is contiguous.
        """
        return [self.getitem(x, (rows, ...)) for x in arrays]

    @kernel
    def put(self, x: Array, key: Any, values: Array | float) -> Array:
        """A new array: x with `values` at `key`, broadcast: an array with the dtype of x, or a Python number.

        key: as for `setitem`. Where indices repeat, any of their values may stay.
        """
        out = self.copy(x)
        self.setitem(out, key, values)
        return out

    @kernel
    def scatter_add(self, values: Array, key: Any, shape: tuple[int, ...], into: Array | None = None) -> Array:
        """Zeros of `shape` with `values` added at `key`, where repeated indices add up: the VJP of `getitem`.

        key: as for `getitem`. into: an array of that shape to add to instead of zeros; it is returned. For keys with
        integer arrays, the default makes a matrix (indices, size of the result), so it suits small arrays only.
        """
        basic = not any(hasattr(k, "shape") for k in (key if isinstance(key, tuple) else (key,)))
        if into is not None:
            old = self.getitem(into, key) if basic else into
            more = values if basic else self.scatter_add(values, key, shape)
            self.setitem(into, key if basic else ..., self.add(old, more))
            return into
        if basic:
            out = self.zeros(shape, dtype=values.dtype)
            self.setitem(out, key, values)
            return out
        if values.dtype in self.half_dtypes:
            return self.astype(self.scatter_add(self.astype(values, self.single), key, shape), values.dtype)
        size = math.prod(shape)
        positions = self.getitem(self.reshape(self.arange(size, dtype=self.dtypes["int64"]), shape), key)
        values = self.broadcast_to(values, positions.shape)
        hits = self.one_hot(self.reshape(positions, (-1,)), size, values.dtype)
        return self.reshape(self.matmul(self.reshape(values, (-1,)), hits), shape)

    @kernel
    def scatter_add_along_axis(self, values: Array, indices: Array, shape: tuple[int, ...], axis: int) -> Array:
        """Zeros of `shape` with `values` added at `indices` along `axis`: the VJP of `take_along_axis`."""
        key: list[Array] = []
        for i, n in enumerate(values.shape):
            steps = self.arange(n, dtype=self.dtypes["int64"])  # the dtype of the indices may not hold n
            key.append(self.reshape(steps, tuple(n if j == i else 1 for j in range(values.ndim))))
        key[axis] = indices
        return self.scatter_add(values, tuple(key), shape)


def _affine(F: Any, x: Array, weight: Array, bias: Array | None) -> Array:
    z = F.matmul(x, F.matrix_transpose(weight))
    return z if bias is None else F.add(z, bias)


def _reduce(F: Any, losses: Array, reduction: str) -> Array:
    if reduction == "none":
        return losses
    return F.mean(losses) if reduction == "mean" else F.sum(losses)
