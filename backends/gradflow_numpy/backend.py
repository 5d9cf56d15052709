"""NumPy as an array backend: array functions as they are, and device services of the host."""

from __future__ import annotations

import ctypes
import operator
import os
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.backend import Array, Diagnosis, MemoryStats
from gradflow_numpy import sums
from gradflow_numpy.network import NetworkKernels
from gradflow_numpy.optimizers import OptimizerKernels
from gradflow_numpy.threads import count, set_count

_reduce: Any = np.add.reduce  # less of Python around it than numpy.sum has
_FLOAT16 = np.dtype(np.float16)


class NumpyBackend(NetworkKernels, OptimizerKernels):
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


def _rounded(result: Array, x: Array) -> Array:
    """A result that was computed in float32 where x is of float16, in the dtype of that."""
    if x.dtype != _FLOAT16:
        return result
    with np.errstate(over="ignore"):  # beyond the largest float16, inf is right
        return result.astype(_FLOAT16)
