"""Kernels of activations, layers, losses, random numbers and indexing in NumPy.

A NumPy call costs about a microsecond plus memory traffic. So these kernels make fewer calls, for small arrays, and
compute in place on arrays that they created themselves, for large ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradflow.backend import ACTIVATIONS, Array, Backend, dropout_threshold, in_float32
from gradflow.backend.erf import erf
from gradflow.backend.half_floats import widened
from gradflow.backend.philox import numbers_of_draw
from gradflow_numpy import sums
from gradflow_numpy.half import is_half

_LONGEST_ZEROS = 1 << 16  # the longest row of zeros that is cached
_reduce: Any = np.add.reduce  # has less Python overhead than numpy.sum
SMALL = 9216  # largest matrix, in elements, that OpenBLAS multiplies by a vector on one thread
_BLOCK = 32768  # elements at once in functions of many steps, so that these stay in the cache
_ROWS = 1024  # most rows that are summed one after another
_INTEGERS = {2: np.int16, 4: np.int32, 8: np.int64}  # by their size in bytes


class NetworkKernels(Backend):
    """The kernels of activations, layers, losses, random numbers and indexing."""

    _constants: dict[tuple[Any, ...], Array]

    def product(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """a @ b for 2-D arrays, by `np.dot`: for small arrays it takes half the time of `np.matmul`."""
        try:
            return np.dot(a, b, out)
        except ValueError:  # np.dot needs a contiguous `out`
            return np.matmul(a, b, out=out)

    def activate(self, x: Array, name: str, parameter: float) -> Array:
        if name == "relu":
            return np.maximum(x, self._zeros_for(x))
        return self._activate(x, name, parameter)

    @in_float32
    def _activate(self, x: Array, name: str, parameter: float) -> Array:
        if name == "tanh":
            return np.tanh(x)
        if name == "sigmoid":
            return _sigmoid(x)
        if name == "silu":
            out = _sigmoid(x)
            return np.multiply(out, x, out=out)
        return ACTIVATIONS[name].forward(self, x, parameter)

    @in_float32
    def erf(self, x: Array) -> Array:
        out = np.empty(x.shape, x.dtype)
        flat, source = out.reshape(-1), np.ascontiguousarray(x).reshape(-1)
        for i in range(0, flat.size, _BLOCK):
            flat[i : i + _BLOCK] = erf(self, source[i : i + _BLOCK])
        return out

    def activate_backward(self, g: Array, saved: Array, name: str, parameter: float) -> Array:
        if name == "relu":
            return _masked(g, _is_not_zero(saved))
        return self._activate_backward(g, saved, name, parameter)

    @in_float32
    def _activate_backward(self, g: Array, saved: Array, name: str, parameter: float) -> Array:
        if name == "sigmoid":
            slope = np.asarray(np.subtract(1, saved))
            slope *= saved
            slope *= g
            return slope
        if name == "tanh":
            slope = np.asarray(np.square(saved))
            np.subtract(1, slope, out=slope)
            slope *= g
            return slope
        return ACTIVATIONS[name].backward(self, g, saved, parameter)

    def softmax(self, x: Array, axis: int) -> Array:
        if x.itemsize == 2 and is_half(x):
            return Backend.softmax(self, x, axis)
        e = np.asarray(np.subtract(x, x.max(axis=axis, keepdims=True)))
        np.exp(e, out=e)
        e /= sums.total(e, axis, True)
        return e

    def gemm(self, a: Array, b: Array, out: Array, accumulate: bool = False) -> Array:
        if a.itemsize == 2 and is_half(a):
            return Backend.gemm(self, a, b, out, accumulate)
        if accumulate:
            out += self.product(a, b)
            return out
        return self.product(a, b, out)

    def linear(
        self, x: Array, weight: Array, bias: Array | None, activation: str | None, parameter: float
    ) -> tuple[Array, Any]:
        if x.itemsize == 2 and is_half(x):
            return self._linear_of_halves(x, weight, bias, activation, parameter)
        z = self.product(x, weight.T) if x.ndim == 2 else np.asarray(np.matmul(x, weight.T))
        if bias is not None:
            np.add(z, bias, z)
        if activation is None:
            return z, None
        if activation == "relu":
            return np.maximum(z, self._zeros_for(z), out=z), None
        return self._activated(z, activation, parameter)

    def _linear_of_halves(
        self, x: Array, weight: Array, bias: Array | None, activation: str | None, parameter: float
    ) -> tuple[Array, Any]:
        """`linear` in float32, with the pre-activation rounded."""
        wide_x, wide_weight, wide_bias = widened((x, weight, bias), self)
        z = self.astype(self.linear(wide_x, wide_weight, wide_bias, None, 0.0)[0], x.dtype)
        if activation is None:
            return z, None
        return self.activate(z, activation, parameter), z if ACTIVATIONS[activation].saves == "x" else None

    def _activated(self, z: Array, activation: str, parameter: float) -> tuple[Array, Any]:
        """The activation of z, which may be overwritten, and the residual of `linear`."""
        if activation == "tanh":
            return np.tanh(z, out=z), None
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
        if activation is not None:
            saved = out if ACTIVATIONS[activation].saves == "out" else residual
            if saved is None:  # recompute the pre-activation
                saved = self.linear(x, weight, bias, None, 0.0)[0]
            g = self.activate_backward(g, saved, activation, parameter)
        if g.itemsize == 2 and is_half(g):
            wide_g, wide_x, wide_weight, wide_bias = widened((g, x, weight, bias), self)
            arguments = wide_g, out, wide_x, wide_weight, wide_bias
            found = self.linear_backward(*arguments, None, 0.0, None, needs, (None,) * 3)
            gx, gw, gb = [self._stored(value, g.dtype, buffer) for value, buffer in zip(found, into, strict=True)]
            return gx, gw, gb
        need_x, need_weight, need_bias = needs
        gx = gw = gb = None
        if need_x:
            gx = self.product(g, weight, into[0]) if g.ndim == 2 else np.matmul(g, weight, out=into[0])
        if g.ndim != 2:
            n = math.prod(g.shape[:-1])
            g, x = g.reshape(n, weight.shape[0]), x.reshape(n, weight.shape[1])
        if need_weight:
            gw = self.product(g.T, x, into[1])
        if need_bias:
            if g.size <= SMALL:
                gb = self.product(self._constant(np.full, g.shape[0], 1, g.dtype), g, into[2])
            else:
                gb = sum_of_rows(g, into[2])
        return gx, gw, gb

    def _stored(self, value: Array | None, dtype: Any, buffer: Array | None) -> Array | None:
        """A float32 gradient in its buffer, if there is one, else rounded to a dtype."""
        if value is None or buffer is None:
            return None if value is None else self.astype(value, dtype)
        buffer[...] = value
        return buffer

    def _constant(self, make: Callable[..., Array], *arguments: Any) -> Array:
        """`make(*arguments)`, cached. Do not change it in place."""
        key = (make, arguments)
        array = self._constants.get(key)
        if array is None:
            if len(self._constants) >= 64:
                self._constants.clear()
            array = self._constants[key] = make(*arguments)
        return array

    def _zeros_for(self, x: Array) -> Any:
        """Zeros for `np.maximum(x, zeros)`, which takes half the time of `np.maximum(x, 0)`; 0 for other lengths."""
        n = x.shape[-1] if x.ndim else 0
        return self._constant(np.full, n, 0, x.dtype) if 32 <= n <= _LONGEST_ZEROS else 0

    def one_hot(self, labels: Array, classes: int, dtype: Any) -> Array:
        _check_labels(labels, classes)
        hot = np.zeros((*labels.shape, classes), dtype)
        flat = hot.reshape(labels.size, classes)
        flat[np.arange(flat.shape[0]), labels.reshape(-1)] = 1
        return hot

    def softmax_cross_entropy(
        self,
        logits: Array,
        target: Array,
        reduction: str,
        gradient: bool = True,
        ignore_index: int | None = None,
        smoothing: float = 0.0,
    ) -> tuple[Array, Any]:
        if logits.itemsize == 2 and is_half(logits):
            return Backend.softmax_cross_entropy(self, logits, target, reduction, gradient, ignore_index, smoothing)
        n, classes = logits.shape
        kept, count = _kept(target, ignore_index)
        if kept is not None:
            target = np.where(kept, target, 0)
        shifted = np.subtract(logits, _row_maxima(logits))
        p = np.exp(shifted)
        if p.size <= SMALL:
            total = self.product(p, self._constant(np.full, classes, 1, p.dtype)).reshape(n, 1)
        else:
            total = self.sum(p, axis=1, keepdims=True)
        np.divide(p, total, p)
        log_total = np.log(total)
        if target.ndim == 2:
            losses = self.sum(target * (log_total - shifted), axis=1)
        else:
            own = shifted.reshape(-1).take(self._label_positions(target, classes))
            if smoothing:
                own = own * (1.0 - smoothing) + self.sum(shifted, axis=1) * (smoothing / classes)
            losses = np.subtract(log_total.reshape(n), own)
        if kept is not None:
            losses = np.where(kept, losses, 0)
        if reduction == "none":
            return losses, p
        loss = _reduce(losses)
        if reduction == "mean":
            loss = loss / count if count else np.nan
        return np.asarray(loss, logits.dtype), p

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
        if residual is None or not needs[0] or needs[1] or target.ndim == 2 or (g.itemsize == 2 and is_half(g)):
            arguments = g, logits, target, reduction, None, needs, ignore_index, smoothing
            return Backend.softmax_cross_entropy_backward(self, *arguments)
        kept, count = _kept(target, ignore_index)
        if reduction == "mean":
            g = g / max(count, 1)
        if kept is not None:
            g, target = np.where(kept, g, 0), np.where(kept, target, 0)
        p = residual - smoothing / logits.shape[1] if smoothing else residual
        gl = np.multiply(p, g.reshape(-1, 1), order="C")
        gl.reshape(-1)[self._label_positions(target, logits.shape[1])] -= g * (1.0 - smoothing) if smoothing else g
        return gl.astype(logits.dtype, copy=False), None

    def _label_positions(self, labels: Array, classes: int) -> Array:
        """The positions of the labels' elements in the flattened array of logits."""
        starts = self._constant(np.arange, 0, labels.size * classes, classes)
        return np.add(starts, labels, dtype=np.int64, casting="unsafe")

    def squared_error(self, x: Array, target: Array, reduction: str, gradient: bool = True) -> tuple[Array, Any]:
        if x.itemsize == 2 and is_half(x):
            return Backend.squared_error(self, x, target, reduction)
        difference = np.asarray(np.subtract(x, target))
        if reduction == "none":
            return np.square(difference), difference
        flat = difference.reshape(-1)
        total = np.dot(flat, flat) if flat.size <= sums.BLOCK else sums.square_total(flat)
        return np.asarray(total / flat.size if reduction == "mean" else total, difference.dtype), difference

    def squared_error_backward(
        self, g: Array, x: Array, target: Array, reduction: str, residual: Any, needs: Sequence[bool]
    ) -> tuple[Array | None, Array | None]:
        if g.ndim or residual is None or not needs[0] or needs[1] or (g.itemsize == 2 and is_half(g)):
            return Backend.squared_error_backward(self, g, x, target, reduction, residual, needs)
        factor = 2.0 * float(g)
        return np.multiply(residual, factor / max(residual.size, 1) if reduction == "mean" else factor), None

    def random_bits(self, key: int | None, counter: Any, n: int) -> Array:
        key, counter = numbers_of_draw(key, counter)
        return np.random.Philox(key=key, counter=counter).random_raw(n)

    def dropout(self, x: Array, p: float, key: int | None, counter: Any, skip: int = 0) -> tuple[Array, Any]:
        n = skip + x.size
        halves = self.random_bits(key, counter, (n + 1) // 2).astype("<u8", copy=False).view("<u4")[skip:n]
        mask = (halves >= dropout_threshold(p)).reshape(x.shape)
        return self.dropout_backward(x, mask, p), mask

    def dropout_backward(self, g: Array, mask: Array, p: float) -> Array:
        if g.itemsize == 2 and is_half(g):
            return Backend.dropout_backward(self, g, mask, p)
        return _masked(np.multiply(g, np.asarray(1.0 / (1.0 - p), g.dtype)), mask)

    def scatter_add(self, values: Array, key: Any, shape: tuple[int, ...], into: Array | None = None) -> Array:
        arrays = [k for k in (key if key.__class__ is tuple else (key,)) if k.__class__ is np.ndarray]
        if arrays and not (len(arrays) == 1 and arrays[0].dtype == np.bool_):  # indices may repeat
            if values.itemsize == 2 and is_half(values):
                return Backend.scatter_add(self, values, key, shape, into)
            out = np.zeros(shape, values.dtype) if into is None else into
            of_rows = key.__class__ is tuple and len(key) == len(shape) == 2 and key[1] is Ellipsis
            if of_rows and values.shape == (*arrays[0].shape, shape[1]) and out.flags.c_contiguous:
                places = arrays[0].astype(np.int64)[..., None] * shape[1] + np.arange(shape[1])
                np.add.at(out.reshape(-1), places.reshape(-1), values.reshape(-1))  # in 1-D, three times as fast
            else:
                np.add.at(out, key, values)
            return out
        if into is None:
            into = np.zeros(shape, values.dtype)
            into[key] = values
        elif arrays:
            into[key] += values
        else:
            part = into[key]
            part += values
        return into


def sum_of_rows(g: Array, out: Array | None) -> Array:
    """The sum of g over its rows, as accurate as a matrix product; float16 is summed in float32."""
    total = sums.total(g, 0) if g.shape[0] > _ROWS else _reduce(g, 0, np.result_type(g, np.float32))
    if out is None:
        return total.astype(g.dtype, copy=False)
    out[...] = total
    return out


def _kept(labels: Array, ignore_index: int | None) -> tuple[Array | None, int]:
    """Which rows do not have the label `ignore_index`, or None if that are all, and their number."""
    n = labels.shape[0]
    if ignore_index is None:
        return None, n
    kept = np.not_equal(labels, ignore_index)
    count = int(np.count_nonzero(kept))
    return (None if count == n else kept), count


def _row_maxima(x: Array) -> Array:
    """The maximum of each row, as a column. Short rows are transposed, so that NumPy compares many at a time."""
    if x.shape[1] <= 16:
        return np.maximum.reduce(np.ascontiguousarray(x.T), 0).reshape(-1, 1)
    return x.max(axis=1, keepdims=True)


def _sigmoid(x: Array) -> Array:
    decay = np.asarray(np.abs(x))
    np.negative(decay, out=decay)
    np.exp(decay, out=decay)
    top = np.where(np.greater_equal(x, 0), np.asarray(1, decay.dtype), decay)
    decay += 1
    return np.divide(top, decay, out=decay)


def _is_not_zero(x: Array) -> Array:
    """Where x is not 0. For small arrays a cast is faster than a comparison, which first converts the 0 to an array."""
    return x.astype(np.bool_) if x.size <= SMALL else np.not_equal(x, 0)


def _masked(x: Array, mask: Array) -> Array:
    """x where the mask is true, else 0, even if x is infinite or NaN, as a new array. Faster than `np.where`."""
    return np.multiply(x.view(_INTEGERS[x.dtype.itemsize]), mask).view(x.dtype)


def _check_labels(labels: Array, classes: int) -> None:
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"labels must be integers in [0, {classes}) for {classes} classes; "
            f"these are in [{labels.min()}, {labels.max()}]"
        )
