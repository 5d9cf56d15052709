"""The NumPy backend: array functions that differ from NumPy's own or are faster, and the services of the CPU."""

from __future__ import annotations

import ctypes
import operator
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from gradflow.backend import Array, Diagnosis, MemoryStats
from gradflow_numpy import sums
from gradflow_numpy.half import FLOAT16, bfloat16, is_half
from gradflow_numpy.normalization import NormalizationKernels
from gradflow_numpy.optimizers import OptimizerKernels
from gradflow_numpy.threads import count, set_count

_reduce: Any = np.add.reduce  # has less Python overhead than numpy.sum
_LARGEST_FLOAT16 = 65504.0


class NumpyBackend(NormalizationKernels, OptimizerKernels):
    """NumPy arrays in host memory. Its only device is `cpu`."""

    name = "cpu"
    dlpack_type = 1
    dtype_extras: ClassVar[dict[str, tuple[str, str]]] = {"bfloat16": ("ml_dtypes", "half")}
    getitem: Any = staticmethod(operator.getitem)
    # like numpy.add and so on, but ten times faster for two NumPy scalars, such as sums
    add: Any = staticmethod(operator.add)
    subtract: Any = staticmethod(operator.sub)
    multiply: Any = staticmethod(operator.mul)
    divide: Any = staticmethod(operator.truediv)

    def __init__(self, index: int = 0) -> None:
        super().__init__(np, index)
        self._constants: dict[tuple[Any, ...], Array] = {}

    # ------------------------------------------------------------------ array functions

    # numpy.astype and numpy.clip are Python wrappers, which on small arrays cost more than the work
    @staticmethod
    def astype(x: Array, dtype: Any, /, *, copy: bool = True) -> Array:
        order = "C" if copy else "K"
        if dtype == FLOAT16:
            with np.errstate(over="ignore"):  # inf is right for numbers beyond the largest float16
                return x.astype(dtype, order, copy=copy)
        return x.astype(dtype, order, copy=copy)

    @staticmethod
    def clip(x: Array, /, min: Any = None, max: Any = None) -> Array:
        if min is not None:
            x = np.maximum(x, _limit(min, x.dtype))
        if max is not None:
            x = np.minimum(x, _limit(max, x.dtype))
        return x

    @staticmethod
    def ones(shape: Any, *, dtype: Any = None) -> Array:
        if shape == ():  # the start of each backward pass; four times faster
            return np.array(1, np.float64 if dtype is None else dtype)
        return np.ones(shape, dtype)

    @staticmethod
    def broadcast_to(x: Array, /, shape: tuple[int, ...]) -> Array:
        if x.shape and (x.size != 1 or x.ndim > len(shape)):
            return np.broadcast_to(x, shape)
        out = np.ndarray(shape, x.dtype, x, 0, (0,) * len(shape))  # one number, such as a loss; six times faster
        if x.__class__ is np.ndarray:  # otherwise a NumPy scalar, which is read-only
            out.setflags(write=False)
        return out

    @staticmethod
    def stack(arrays: Sequence[Array], /, *, axis: int = 0) -> Array:
        return np.array(arrays) if axis == 0 else np.stack(arrays, axis)  # ten times faster for many small arrays

    @staticmethod
    def sum(x: Array, /, *, axis: Any = None, keepdims: bool = False) -> Array:
        if x.itemsize == 2 and is_half(x):
            return _rounded(sums.total(x, axis, keepdims), x)
        whole = axis is None or (axis.__class__ is tuple and len(axis) == x.ndim)
        if whole and not keepdims and x.flags.c_contiguous:  # such as a loss
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
        if descending:  # sort the reversed array, so that equal values keep their order
            n = x.shape[axis]
            order = np.argsort(np.flip(x, axis=axis), axis=axis, kind="stable")
            return np.flip(n - 1 - order, axis=axis)
        return np.argsort(x, axis=axis, kind="stable" if stable else None)

    @staticmethod
    def matmul(x1: Array, x2: Array, /) -> Array:
        found = np.matmul(x1, x2)
        return found if found.itemsize != 4 or x1.itemsize != 2 else _rounded(found, x1)

    # ------------------------------------------------------------------ device services

    def supports(self, dtype: str) -> bool:
        if dtype == "bfloat16" and dtype not in self.dtypes and (found := bfloat16()) is not None:
            self.dtypes[dtype], self._dtype_names[found] = found, dtype
            self.half_dtypes = (*self.half_dtypes, found)
        return dtype in self.dtypes

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
                "setting the number of threads needs threadpoolctl, of the extra 'fast': "
                "pip install threadpoolctl; or set OMP_NUM_THREADS before Python starts"
            ) from None
        threadpool_limits(n)  # BLAS and OpenMP
        set_count(n)

    def to_host(self, array: Array) -> Any:
        return np.array(array, order="C")

    def from_host(self, values: Any) -> Array:
        return np.array(values, order="C")

    def host_values(self, array: Array) -> Any:
        return array

    def from_dlpack(self, x: Any) -> Array:
        return np.from_dlpack(x)

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
        # the system updates the peak with a delay
        return MemoryStats(current, None if peak is None else max(peak, current), current)

    def available_memory(self) -> int | None:
        """As in the contract. Where the system does not tell how much is free, it is all of its memory."""
        try:
            with open("/proc/meminfo") as meminfo:
                kilobytes = next(line.split()[1] for line in meminfo if line.startswith("MemAvailable:"))
            return min(int(kilobytes) * 1024, _limit_of_container())
        except (OSError, StopIteration):
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None

    def free_memory(self) -> int:
        """As in the contract. NumPy has no pool, but the C library keeps freed memory; glibc can release it."""
        self._constants.clear()
        before = self.memory_stats().current
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (AttributeError, OSError, TypeError):  # another C library
            return 0
        return max(before - self.memory_stats().current, 0)


def _limit_of_container() -> int:
    """The memory in bytes that the control group of this process may use, or a number beyond any memory."""
    try:
        with open("/sys/fs/cgroup/memory.max") as limit:
            return int(limit.read())
    except (OSError, ValueError):  # none, or "max"
        return sys.maxsize


def _rounded(result: Array, x: Array) -> Array:
    """`result`, which was computed in float32 if x is of a half float, in the dtype of x then."""
    return NumpyBackend.astype(result, x.dtype) if x.itemsize == 2 and is_half(x) else result


def _limit(limit: Any, dtype: Any) -> Any:
    """A limit of `clip`. A float beyond float16, or for bfloat16, becomes a scalar of `dtype`, which does not warn."""
    if limit.__class__ is not float or dtype.kind not in "fV":
        return limit
    if dtype.kind == "f" and -_LARGEST_FLOAT16 <= limit <= _LARGEST_FLOAT16:
        return limit
    with np.errstate(over="ignore"):
        return dtype.type(limit)
