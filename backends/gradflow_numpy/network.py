"""NumPy as an array backend: array functions as they are, and kernels that save passes over memory.

A kernel here computes in place on arrays that it made itself. NumPy's cost is a fixed price per call (about a
microsecond) plus the memory traffic, so a kernel saves calls on small arrays and temporaries on large ones.
"""

from __future__ import annotations

import ctypes
import math
import operator
import os
import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradflow.backend import ACTIVATIONS, Array, Backend, Diagnosis, MemoryStats, dropout_threshold, in_float32
from gradflow_numpy import sums
from gradflow_numpy.threads import count, set_count, share_out

_reduce: Any = np.add.reduce  # less of Python around it than numpy.sum has
_FLOAT16 = np.dtype(np.float16)
_SMALL = 9216  # elements of a matrix up to which OpenBLAS multiplies it by a vector on one thread
_ROWS = 1024  # of a gradient that are added one after another
_CHUNK = 1 << 16  # elements of an optimizer pass: the arrays of one chunk stay in the second-level cache
_BITS = {2: np.int16, 4: np.int32, 8: np.int64}  # the integers as wide as a floating-point number, by bytes


class NumpyBackend(Backend):
    """Arrays of NumPy in the memory of the host. Its one device is `cpu`."""

    name = "cpu"
    getitem: Any = staticmethod(operator.getitem)
    # as numpy.add and so on, but ten times faster for two NumPy numbers, which sums are
    add: Any = staticmethod(operator.add)
    subtract: Any = staticmethod(operator.sub)
    multiply: Any = staticmethod(operator.mul)
    divide: Any = staticmethod(operator.truediv)

    def __init__(self, index: int = 0) -> None:
        super().__init__(np, index)
        self._held: dict[tuple[Any, ...], Array] = {}

    # ------------------------------------------------------------------ array functions

    # numpy.astype and numpy.clip pass through Python wrappers that cost more than the work on small arrays
    @staticmethod
    def astype(x: Array, dtype: Any, /, *, copy: bool = True) -> Array:
        order = "C" if copy else "K"
        if dtype == _FLOAT16:
            with np.errstate(over="ignore"):  # beyond the largest float16, inf is right
                return x.astype(dtype, order, copy=copy)
        return x.astype(dtype, order, copy=copy)

    @staticmethod
    def clip(x: Array, /, min: Any = None, max: Any = None) -> Array:
        if min is not None:
            x = np.maximum(x, min)
        return x if max is None else np.minimum(x, max)

    @staticmethod
    def ones(shape: Any, *, dtype: Any = None) -> Array:
        if shape == ():  # where each backward pass starts: in a quarter of the time
            return np.array(1, np.float64 if dtype is None else dtype)
        return np.ones(shape, dtype)

    @staticmethod
    def broadcast_to(x: Array, /, shape: tuple[int, ...]) -> Array:
        if x.shape and (x.size != 1 or x.ndim > len(shape)):
            return np.broadcast_to(x, shape)
        out = np.ndarray(shape, x.dtype, x, 0, (0,) * len(shape))  # one number, as of a loss: in a sixth of the time
        if x.__class__ is np.ndarray:  # else a NumPy number, which is read-only
            out.setflags(write=False)
        return out

    @staticmethod
    def stack(arrays: Sequence[Array], /, *, axis: int = 0) -> Array:
        return np.array(arrays) if axis == 0 else np.stack(arrays, axis)  # of many small ones ten times faster

    @staticmethod
    def sum(x: Array, /, *, axis: Any = None, keepdims: bool = False) -> Array:
        if x.dtype == _FLOAT16:
            return _rounded(sums.total(x, axis, keepdims), x)
        whole = axis is None or (axis.__class__ is tuple and len(axis) == x.ndim)
        if whole and not keepdims and x.flags.c_contiguous:  # as of a loss
            return _reduce(x, None)
        return sums.total(x, axis, keepdims)

    @staticmethod
    def mean(x: Array, /, *, axis: Any = None, keepdims: bool = False) -> Array:
        return _rounded(sums.mean(x, axis, keepdims), x)

    @staticmethod
    def var(x: Array, /, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Array:
        return _rounded(sums.variance(x, axis, correction, keepdims), x)

    @staticmethod
    def std(x: Array, /, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Array:
        return _rounded(np.sqrt(sums.variance(x, axis, correction, keepdims)), x)

    @staticmethod
    def cumulative_sum(x: Array, /, *, axis: int | None = None) -> Array:
        return _rounded(sums.running_total(x, axis), x)

    @staticmethod
    def argsort(x: Array, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
        if descending:  # of the reversed array, so that equal values keep their order
            n = x.shape[axis]
            order = np.argsort(np.flip(x, axis=axis), axis=axis, kind="stable")
            return np.flip(n - 1 - order, axis=axis)
        return np.argsort(x, axis=axis, kind="stable" if stable else None)

    # ------------------------------------------------------------------ device services

    @classmethod
    def device_count(cls) -> int:
        return 1

    @classmethod
    def diagnose(cls) -> Diagnosis:
        return Diagnosis(True, f"NumPy {np.__version__}")

    def describe(self) -> str:
        return f"{os.cpu_count()} cores ({platform.machine()}), NumPy {np.__version__}"

    def num_threads(self) -> int:
        return count()

    def set_num_threads(self, n: int) -> None:
        try:
            from threadpoolctl import threadpool_limits
        except ImportError:
            raise ImportError(
                "setting the number of threads needs threadpoolctl, which is in the extra 'fast': "
                "pip install threadpoolctl; or set OMP_NUM_THREADS before Python starts"
            ) from None
        threadpool_limits(n)  # of BLAS, and of OpenMP
        set_count(n)

    def to_host(self, array: Array) -> Any:
        return np.array(array, order="C")

    def from_host(self, values: Any) -> Array:
        return np.array(values, order="C")

    def host_values(self, array: Array) -> Any:
        return array

    def copy(self, x: Array) -> Array:
        return np.array(x, order="C")

    def synchronize(self) -> None:
        pass

    def memory_stats(self) -> MemoryStats:
        pages = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
        try:
            with open("/proc/self/statm") as statm:
                current = int(statm.read().split()[1]) * pages
        except OSError:
            current = 0
        try:
            import resource

            unit = 1 if platform.system() == "Darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        except ImportError:
            peak = None
        return MemoryStats(current, None if peak is None else max(peak, current), current)  # the system's peak lags

    def free_memory(self) -> int:
        """As in the contract. NumPy has no pool; the C library keeps what was freed, and glibc can be asked for it."""
        self._held.clear()
        before = self.memory_stats().current
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (AttributeError, OSError, TypeError):  # another C library
            return 0
        return max(before - self.memory_stats().current, 0)

    # ------------------------------------------------------------------ kernels

    def product(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """a @ b for 2-D arrays; by `np.dot`, whose price for small ones is half that of `matmul`."""
        try:
            return np.dot(a, b, out)
        except ValueError:  # it takes no buffer with gaps
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
        if x.dtype == _FLOAT16:
            return Backend.softmax(self, x, axis)
        e = np.asarray(np.subtract(x, x.max(axis=axis, keepdims=True)))
        np.exp(e, out=e)
        e /= sums.total(e, axis, True)
        return e

    def gemm(self, a: Array, b: Array, out: Array, accumulate: bool = False) -> Array:
        if accumulate:
            out += self.product(a, b)
            return out
        return self.product(a, b, out)

    def linear(
        self, x: Array, weight: Array, bias: Array | None, activation: str | None, parameter: float
    ) -> tuple[Array, Any]:
        z = self.product(x, weight.T) if x.ndim == 2 else np.asarray(np.matmul(x, weight.T))
        if bias is not None:
            np.add(z, bias, z)
        if activation is None:
            return z, None
        if activation == "relu":
            return np.maximum(z, self._zeros_for(z), out=z), None
        return self._activated(z, activation, parameter)

    def _activated(self, z: Array, activation: str, parameter: float) -> tuple[Array, Any]:
        """The activation of z, which is no longer needed, and the residual of `linear`."""
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
            if saved is None:  # the pre-activation was not kept
                saved = self.linear(x, weight, bias, None, 0.0)[0]
            g = self.activate_backward(g, saved, activation, parameter)
        need_x, need_weight, need_bias = needs
        gx = gw = gb = None
        if need_x:
            gx = self.product(g, weight, into[0]) if g.ndim == 2 else np.matmul(g, weight, out=into[0])
        if g.ndim != 2:
            g, x = g.reshape(-1, weight.shape[0]), x.reshape(-1, weight.shape[1])
        if need_weight:
            gw = self.product(g.T, x, into[1])
        if need_bias:
            if g.size <= _SMALL:
                gb = self.product(self._kept(np.full, g.shape[0], 1, g.dtype), g, into[2])
            else:
                gb = _sum_of_rows(g, into[2])
        return gx, gw, gb

    def _kept(self, make: Callable[..., Array], *arguments: Any) -> Array:
        """`make(*arguments)`, kept for the next time, and not to be changed."""
        key = (make, arguments)
        row = self._held.get(key)
        if row is None:
            if len(self._held) >= 64:
                self._held.clear()
            row = self._held[key] = make(*arguments)
        return row

    def _zeros_for(self, x: Array) -> Any:
        """What to compare x with: `maximum` of two arrays takes half the time of that of an array and a number."""
        n = x.shape[-1] if x.ndim else 0
        return self._kept(np.full, n, 0, x.dtype) if 32 <= n <= _CHUNK else 0

    def one_hot(self, labels: Array, classes: int, dtype: Any) -> Array:
        _check_labels(labels, classes)
        hot = np.zeros((*labels.shape, classes), dtype)
        flat = hot.reshape(labels.size, classes)
        flat[np.arange(flat.shape[0]), labels.reshape(-1)] = 1
        return hot

    def softmax_cross_entropy(self, logits: Array, target: Array, reduction: str) -> tuple[Array, Any]:
        if logits.dtype == _FLOAT16:
            return Backend.softmax_cross_entropy(self, logits, target, reduction)
        n, classes = logits.shape
        shifted = np.subtract(logits, _row_maxima(logits))
        p = np.exp(shifted)
        if p.size <= _SMALL:
            total = self.product(p, self._kept(np.full, classes, 1, p.dtype)).reshape(n, 1)
        else:
            total = self.sum(p, axis=1, keepdims=True)
        np.divide(p, total, p)
        log_total = np.log(total)
        if target.ndim == 2:
            losses = self.sum(target * (log_total - shifted), axis=1)
        else:
            losses = np.subtract(log_total.reshape(n), shifted.reshape(-1).take(self._places(target, classes)))
        if reduction == "none":
            return losses, p
        loss = _reduce(losses)
        return np.asarray(loss / n if reduction == "mean" else loss, logits.dtype), p

    def softmax_cross_entropy_backward(
        self, g: Array, logits: Array, target: Array, reduction: str, residual: Any, needs: Sequence[bool]
    ) -> tuple[Array | None, Array | None]:
        if residual is None or not needs[0] or needs[1] or target.ndim == 2 or g.dtype == _FLOAT16:
            return Backend.softmax_cross_entropy_backward(self, g, logits, target, reduction, None, needs)
        if reduction == "mean":
            g = g / logits.shape[0]
        gl = np.multiply(residual, g.reshape(-1, 1), order="C")
        gl.reshape(-1)[self._places(target, logits.shape[1])] -= g
        return gl.astype(logits.dtype, copy=False), None

    def _places(self, labels: Array, classes: int) -> Array:
        """Where the elements of these labels are in the flat array of all rows."""
        starts = self._kept(np.arange, 0, labels.size * classes, classes)
        return np.add(starts, labels, dtype=np.int64, casting="unsafe")

    def squared_error(self, x: Array, target: Array, reduction: str) -> tuple[Array, Any]:
        if x.dtype == _FLOAT16:
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
        if g.ndim or residual is None or not needs[0] or needs[1] or g.dtype == _FLOAT16:
            return Backend.squared_error_backward(self, g, x, target, reduction, residual, needs)
        factor = 2.0 * float(g)
        return np.multiply(residual, factor / max(residual.size, 1) if reduction == "mean" else factor), None

    def random_bits(self, key: int, counter: int, n: int) -> Array:
        return np.random.Philox(key=key, counter=counter).random_raw(n)

    def dropout(self, x: Array, p: float, key: int, counter: int) -> tuple[Array, Any]:
        n = x.size
        halves = self.random_bits(key, counter, (n + 1) // 2).astype("<u8", copy=False).view("<u4")[:n]
        mask = (halves >= dropout_threshold(p)).reshape(x.shape)
        return self.dropout_backward(x, mask, p), mask

    def dropout_backward(self, g: Array, mask: Array, p: float) -> Array:
        if g.dtype == _FLOAT16:
            return Backend.dropout_backward(self, g, mask, p)
        return _masked(np.multiply(g, np.asarray(1.0 / (1.0 - p), g.dtype)), mask)

    def scatter_add(self, values: Array, key: Any, shape: tuple[int, ...], into: Array | None = None) -> Array:
        arrays = [k for k in (key if key.__class__ is tuple else (key,)) if k.__class__ is np.ndarray]
        if arrays and not (len(arrays) == 1 and arrays[0].dtype == np.bool_):  # they may name an element twice
            if values.dtype == _FLOAT16:
                return Backend.scatter_add(self, values, key, shape, into)
            out = np.zeros(shape, values.dtype) if into is None else into
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

    def sgd_step(
        self,
        parameter: Array,
        gradient: Array,
        velocity: Array | None,
        lr: float,
        momentum: float,
        dampening: float,
        nesterov: bool,
        weight_decay: float,
        first: bool,
    ) -> None:
        if parameter.dtype == _FLOAT16:
            return Backend.sgd_step(
                self, parameter, gradient, velocity, lr, momentum, dampening, nesterov, weight_decay, first
            )
        options = (lr, momentum, float(dampening), nesterov, weight_decay, first)
        self._pass("sgd", (parameter, gradient, velocity), options)
        return None

    def adam_step(
        self,
        parameter: Array,
        gradient: Array,
        mean: Array,
        square: Array,
        step: int,
        lr: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        if parameter.dtype == _FLOAT16:
            return Backend.adam_step(
                self, parameter, gradient, mean, square, step, lr, beta1, beta2, epsilon, weight_decay, decoupled
            )
        root = math.sqrt(1 - beta2**step)  # m / (sqrt(v) / root + epsilon) with one pass less
        keep, decay = (1 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
        options = (lr * root / (1 - beta1**step), beta1, beta2, epsilon * root, keep, decay)
        self._pass("adam", (parameter, gradient, mean, square), options)
        return None

    def rmsprop_step(
        self,
        parameter: Array,
        gradient: Array,
        square: Array,
        mean: Array | None,
        velocity: Array | None,
        lr: float,
        alpha: float,
        epsilon: float,
        weight_decay: float,
        momentum: float,
    ) -> None:
        if parameter.dtype == _FLOAT16:
            return Backend.rmsprop_step(
                self, parameter, gradient, square, mean, velocity, lr, alpha, epsilon, weight_decay, momentum
            )
        options = (lr, alpha, epsilon, weight_decay, momentum)
        self._pass("rmsprop", (parameter, gradient, square, mean, velocity), options)
        return None

    def _pass(self, name: str, arrays: Sequence[Array | None], options: Sequence[Any]) -> None:
        """An optimizer's pass over flat arrays of one length, or None."""
        share_out(_PASSES[name], arrays, options)

    def clip_global_norm(self, gradients: Sequence[Array], max_norm: float) -> Array:
        if gradients[0].dtype == _FLOAT16:
            return Backend.clip_global_norm(self, gradients, max_norm)
        norm = math.sqrt(sum(float(sums.square_total(g.reshape(-1))) for g in gradients))
        factor = min(max_norm / (norm + 1e-6), 1.0)
        if not factor >= 1.0:  # a NaN scales too, as it does in the composed default
            for g in gradients:
                g *= factor
        with np.errstate(over="ignore"):  # beyond the largest number, the norm is inf
            return np.asarray(norm).astype(gradients[0].dtype)


def _sgd(
    parameter: Array, gradient: Array, velocity: Array | None, lr: float, momentum: float, dampening: float,
    nesterov: bool, weight_decay: float, first: bool,
) -> None:  # fmt: skip
    """`Backend.sgd_step`, chunk by chunk."""
    scratch = np.empty(min(_CHUNK, parameter.size), parameter.dtype)
    for p, g, v in _chunks(parameter, gradient, velocity):
        t = scratch if scratch.size == p.size else scratch[: p.size]
        if weight_decay:
            np.multiply(p, weight_decay, t)
            g = np.add(g, t)
        if v is not None:
            if first:
                v[...] = g
            else:
                np.multiply(v, momentum, v)
                np.add(v, np.multiply(g, 1 - dampening, t) if dampening else g, v)
            if nesterov:
                g = np.add(g, np.multiply(v, momentum, t), t)
            else:
                g = v
        np.multiply(g, lr, t)
        np.subtract(p, t, p)


def _adam(
    parameter: Array, gradient: Array, mean: Array, square: Array, rate: float, beta1: float, beta2: float,
    epsilon: float, keep: float, weight_decay: float,
) -> None:  # fmt: skip
    """`Backend.adam_step`, chunk by chunk; keep: what a decoupled decay leaves of a parameter."""
    size = min(_CHUNK, parameter.size)
    scratch = np.empty(size, parameter.dtype), np.empty(size if weight_decay else 0, parameter.dtype)
    for p, g, m, v in _chunks(parameter, gradient, mean, square):
        t = scratch[0] if scratch[0].size == p.size else scratch[0][: p.size]
        if keep != 1:
            np.multiply(p, keep, p)
        elif weight_decay:
            u = scratch[1][: p.size]
            np.multiply(p, weight_decay, u)
            g = np.add(g, u, u)
        np.multiply(m, beta1, m)
        np.multiply(g, 1 - beta1, t)
        np.add(m, t, m)
        np.multiply(v, beta2, v)
        np.multiply(g, g, t)
        np.multiply(t, 1 - beta2, t)
        np.add(v, t, v)
        np.sqrt(v, t)
        np.add(t, epsilon, t)
        np.divide(m, t, t)
        np.multiply(t, rate, t)
        np.subtract(p, t, p)


def _rmsprop(
    parameter: Array, gradient: Array, square: Array, mean: Array | None, velocity: Array | None, lr: float,
    alpha: float, epsilon: float, weight_decay: float, momentum: float,
) -> None:  # fmt: skip
    """`Backend.rmsprop_step`, chunk by chunk."""
    size = min(_CHUNK, parameter.size)
    scratch = np.empty(size, parameter.dtype), np.empty(size if weight_decay else 0, parameter.dtype)
    for p, g, s, m, v in _chunks(parameter, gradient, square, mean, velocity):
        t = scratch[0] if scratch[0].size == p.size else scratch[0][: p.size]
        if weight_decay:
            u = scratch[1][: p.size]
            np.multiply(p, weight_decay, u)
            g = np.add(g, u, u)
        np.multiply(s, alpha, s)
        np.multiply(g, g, t)
        np.multiply(t, 1 - alpha, t)
        np.add(s, t, s)
        average = s
        if m is not None:
            np.multiply(m, alpha, m)
            np.multiply(g, 1 - alpha, t)
            np.add(m, t, m)
            np.multiply(m, m, t)
            average = np.maximum(np.subtract(s, t, t), 0, out=t)
        np.sqrt(average, t)
        np.add(t, epsilon, t)
        np.divide(g, t, t)
        if v is not None:
            np.multiply(v, momentum, v)
            np.add(v, t, v)
            t = np.multiply(v, lr, t)
        else:
            np.multiply(t, lr, t)
        np.subtract(p, t, p)


_PASSES: dict[str, Callable[..., None]] = {"sgd": _sgd, "adam": _adam, "rmsprop": _rmsprop}


def _sum_of_rows(g: Array, out: Array | None) -> Array:
    """The sum of g over its rows, as exact as the products beside it; of float16 in float32."""
    total = sums.total(g, 0) if g.shape[0] > _ROWS else _reduce(g, 0, np.result_type(g, np.float32))
    if out is None:
        return total.astype(g.dtype, copy=False)
    out[...] = total
    return out


def _rounded(result: Array, x: Array) -> Array:
    """A result that was computed in float32 where x is of float16, in the dtype of that."""
    if x.dtype != _FLOAT16:
        return result
    with np.errstate(over="ignore"):  # beyond the largest float16, inf is right
        return result.astype(_FLOAT16)


def _row_maxima(x: Array) -> Array:
    """The maximum of each row, as a column. Short rows are compared as columns, many at a time."""
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
    """Where x is not 0. A cast of few numbers takes less than a comparison, which makes an array of the 0 first."""
    return x.astype(np.bool_) if x.size <= _SMALL else np.not_equal(x, 0)


def _masked(x: Array, mask: Array) -> Array:
    """A new array: x where the mask is true, else 0, also where x is infinite or NaN. Faster than `where`."""
    return np.multiply(x.view(_BITS[x.dtype.itemsize]), mask).view(x.dtype)


def _chunks(*arrays: Array | None) -> Sequence[Sequence[Any]]:
    """Flat arrays of one length, or None, in parts that are worked on one after another."""
    size = arrays[0].size  # type: ignore[union-attr]
    if size <= _CHUNK:
        return (arrays,)
    return [[None if a is None else a[i : i + _CHUNK] for a in arrays] for i in range(0, size, _CHUNK)]


def _check_labels(labels: Array, classes: int) -> None:
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"labels must be integers in [0, {classes}) for {classes} classes; "
            f"these are in [{labels.min()}, {labels.max()}]"
        )
