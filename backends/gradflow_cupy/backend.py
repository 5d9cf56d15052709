"""CuPy as an array backend: array functions where CuPy's differ from the Array API, and the services of a device.

CuPy takes NumPy's names and not all of the standard's keywords, and creates on the current device. What differs is
adapted here; all else is CuPy's own function, copied. The kernels are in the modules `network`, `losses` and
`optimizers` of this package.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

from gradflow.backend import ARRAY_FUNCTIONS, KERNELS, Array, Diagnosis, Event, MemoryStats
from gradflow.backend.half_floats import widened
from gradflow.dtypes import DTYPES
from gradflow_cupy import diagnosis
from gradflow_cupy.losses import LossKernels
from gradflow_cupy.memory import PeakCounter
from gradflow_cupy.optimizers import OptimizerKernels

_WITH_NUMBERS = (
    "add", "subtract", "multiply", "divide", "pow", "maximum", "minimum",
    "equal", "not_equal", "less", "less_equal", "greater", "greater_equal",
)  # fmt: skip
"""The functions of two operands that know bfloat16, and give float32 where a Python float is one of them."""
_WITHOUT_BFLOAT16 = ("where", "round", "argsort")
"""The functions that do not support bfloat16: they return float32, or fail. `AccurateSums` sums in float32."""

_SERVICES = ("to_host", "from_host", "from_host_later", "pin", "free_memory", "getitem", "setitem", "copy", "event")


class CupyBackend(LossKernels, OptimizerKernels):
    """Arrays of CuPy in the memory of one GPU, `cuda:0`, `cuda:1`, ... Making one needs CuPy and a device.

    Where there are several GPUs, every function runs with this object's one as CuPy's current device, and leaves the
    current device as it was; with a single GPU nothing is wrapped.
    """

    name = "cuda"

    def __init__(self, index: int = 0) -> None:
        import cupy
        import cupyx
        import numpy
        from cupy import cublas

        self.cupy, self.cupyx, self.cublas, self.numpy = cupy, cupyx, cublas, numpy
        super().__init__(cupy, index)
        self._place = cupy.cuda.Device(index)
        self._peak: PeakCounter | None = None
        self._streams: list[Any] = []
        if "bfloat16" in self.dtypes:
            for name in _WITH_NUMBERS:
                setattr(self, name, _with_numbers_of(self.dtypes["bfloat16"], getattr(self, name)))
            for name in _WITHOUT_BFLOAT16:
                setattr(self, name, _with_bfloat16(self, getattr(self, name)))
        if cupy.cuda.runtime.getDeviceCount() > 1:
            for function in ARRAY_FUNCTIONS:
                setattr(self, function, _on(self._place, getattr(self, function)))
            for method in (*_SERVICES, *KERNELS):
                bound = getattr(self, method)
                wrapped = _on(self._place, bound.__func__)
                if method in KERNELS:
                    self._wrapped[wrapped] = bound.__func__
                setattr(self, method, MethodType(wrapped, self))

    def _find_dtypes(self, namespace: Any) -> dict[str, Any]:
        found = {n: namespace.dtype(getattr(namespace, n)) for n in DTYPES if hasattr(namespace, n)}
        if self.numpy.lib.NumpyVersion(self.numpy.__version__) >= "2.1.2":  # as CuPy: earlier ones crash with it
            with contextlib.suppress(ImportError):
                found["bfloat16"] = namespace.dtype(importlib.import_module("ml_dtypes").bfloat16)
        return found

    # ------------------------------------------------------------------ array functions

    @staticmethod
    def astype(x: Array, dtype: Any, /, *, copy: bool = True) -> Array:
        return x.astype(dtype, order="C" if copy else "K", copy=copy)

    def full(self, shape: Any, fill_value: Any, *, dtype: Any = None) -> Array:
        dtype = self.cupy.dtype(type(fill_value) if dtype is None else dtype)
        if -1 < fill_value <= 0 and dtype in self._floating:
            value = dtype.type(fill_value)
            if value == 0 and math.copysign(1.0, value) < 0:  # CuPy clears the memory, which makes 0.0
                return self.cupy.negative(self.cupy.zeros(shape, dtype=dtype))
        return self.cupy.full(shape, fill_value, dtype=dtype)

    def clip(self, x: Array, /, min: Any = None, max: Any = None) -> Array:
        if min is not None:
            x = self.maximum(x, min)
        return x if max is None else self.minimum(x, max)

    def matmul(self, a: Array, b: Array, /, *, out: Array | None = None) -> Array:
        if a.dtype not in self.half_dtypes:
            return self.cupy.matmul(a, b, out=out)
        # CuPy knows no stacks of bfloat16, and where the result is one element it rounds each term of its sum
        gemm = a.ndim == b.ndim == 2 and (a.shape[0] > 1 or b.shape[1] > 1)
        if gemm and (a.dtype.char == "e" or self._multiplies_bfloat16):
            return self.cupy.matmul(a, b, out=out)
        wide = self.dtypes["float32"]
        product = self.cupy.matmul(a.astype(wide), b.astype(wide)).astype(a.dtype)
        if out is None:
            return product
        out[...] = product
        return out

    @staticmethod
    def reshape(x: Array, /, shape: tuple[int, ...]) -> Array:
        return x.reshape(shape)

    def argsort(self, x: Array, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
        # CuPy's sort is always stable
        if descending:  # of the reversed array, so that equal values keep their order
            order = self.cupy.argsort(self.cupy.flip(x, axis=axis), axis=axis)
            return self.cupy.flip(self.cupy.subtract(x.shape[axis] - 1, order), axis=axis)
        return self.cupy.argsort(x, axis=axis)

    # ------------------------------------------------------------------ device services

    @classmethod
    def device_count(cls) -> int:
        if not cls.diagnose().usable:
            return 0
        import cupy

        return int(cupy.cuda.runtime.getDeviceCount())

    @classmethod
    def diagnose(cls) -> Diagnosis:
        return diagnosis.diagnose()

    def describe(self) -> str:
        properties = self.cupy.cuda.runtime.getDeviceProperties(self.device.index)
        name = properties["name"]
        name = name.decode() if isinstance(name, bytes) else name
        return f"{name}, {properties['totalGlobalMem'] / 2**30:.0f} GiB, CuPy {self.cupy.__version__}"

    def to_host(self, array: Array) -> Any:
        return self.cupy.asnumpy(array)

    def from_host(self, values: Any) -> Array:
        # what is not page-locked goes through a page-locked copy that CuPy makes first: nothing waits
        return self._copied(values, blocking=self._is_pinned(values))

    def copy(self, x: Array) -> Array:
        return self.cupy.array(x, order="C")

    def pin(self, values: Any) -> Any:
        out = self.cupyx.empty_pinned(values.shape, dtype=values.dtype)
        out[...] = values
        return out

    def from_host_later(self, values: Any) -> Array:
        """As in the contract. The GPU copies page-locked values itself; CuPy keeps them until then."""
        return self._copied(values, blocking=False)

    def _copied(self, values: Any, blocking: bool) -> Array:
        values = self.numpy.asarray(values)
        if not values.size:
            return self.cupy.empty(values.shape, dtype=values.dtype)
        if values.ndim:
            return self.cupy.array(values, order="C", blocking=blocking)
        # of one number CuPy fills an array, and makes 0.0 of -0.0
        return self.cupy.array(values.reshape(1), blocking=blocking).reshape(())

    def _is_pinned(self, values: Any) -> bool:
        if not (isinstance(values, self.numpy.ndarray) and values.size and values.flags.c_contiguous):
            return False
        runtime = self.cupy.cuda.runtime
        return bool(runtime.pointerGetAttributes(values.ctypes.data).type == runtime.memoryTypeHost)

    def setitem(self, x: Array, key: Any, values: Any) -> None:
        if isinstance(values, float) and values == 0.0:  # CuPy fills with -0.0 as with 0.0
            values = self.full((), values, dtype=x.dtype)
        x[key] = values

    def synchronize(self) -> None:
        self._place.synchronize()

    def memory_stats(self) -> MemoryStats:
        """As in the contract. CuPy does not count the peak: the first call starts that, and gives None for it."""
        with self._place:
            pool = self.cupy.get_default_memory_pool()
            current, reserved = pool.used_bytes(), pool.total_bytes()
        if self._peak is None:
            self._peak = PeakCounter(self.cupy, self.device.index, current)
            return MemoryStats(current, None, reserved)
        return MemoryStats(current, max(self._peak.peak, current), reserved)

    def free_memory(self) -> int:
        """As in the contract, with CuPy's page-locked host memory, which the count leaves out."""
        pool = self.cupy.get_default_memory_pool()
        before = pool.total_bytes()
        pool.free_all_blocks()
        self.cupy.get_default_pinned_memory_pool().free_all_blocks()
        return int(before - pool.total_bytes())

    @contextlib.contextmanager
    def stream(self) -> Iterator[Any]:
        """A CUDA stream that starts after the work in hand; what follows the `with` starts after its own work.

        The streams are used again: CuPy's pool keeps the memory of each stream apart.
        """
        with self._place:
            outer = self.cupy.cuda.get_current_stream()
            inner = self._streams.pop() if self._streams else self.cupy.cuda.Stream(non_blocking=True)
            inner.wait_event(outer.record())
            try:
                with inner:
                    yield inner
            finally:
                outer.wait_event(inner.record())
                self._streams.append(inner)

    def event(self) -> Event:
        return CudaEvent(self)

    def kernels(self) -> dict[str, str]:
        from gradflow.backend import Backend

        found = {}
        for name in KERNELS:
            function = getattr(getattr(self, name), "__func__", None)  # a static method has none
            function = self._wrapped.get(function, function)
            found[name] = "composed" if function is getattr(Backend, name) else "native"
        return found

    @functools.cached_property
    def _floating(self) -> frozenset[Any]:
        return frozenset(self.dtypes[n] for n in ("bfloat16", "float16", "float32", "float64") if n in self.dtypes)

    @functools.cached_property
    def _multiplies_bfloat16(self) -> bool:
        """Whether cuBLAS multiplies bfloat16 on this device: from compute capability 8.0 on."""
        return int(self._place.compute_capability) >= 80

    @functools.cached_property
    def _wrapped(self) -> dict[Any, Any]:
        """The kernel behind each wrapper, where there are several GPUs."""
        return {}


class CudaEvent(Event):
    """A point in the current CUDA stream. Recording does not wait; asking for the time waits for both events."""

    def __init__(self, backend: CupyBackend) -> None:
        super().__init__(backend)
        self._cupy, self._place = backend.cupy, backend._place
        self._event = backend.cupy.cuda.Event()
        self._recorded = False

    def record(self) -> None:
        with self._place:  # whose stream is the current one, not that of another device
            self._event.record()
        self._recorded = True

    def seconds_since(self, earlier: Event) -> float:
        if not (isinstance(earlier, CudaEvent) and earlier._recorded and self._recorded):
            raise RuntimeError("both events must be recorded before the time between them is asked for")
        for event in (earlier, self):
            event._event.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(earlier._event, self._event)) / 1000.0


def _with_numbers_of(dtype: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of two operands, with a Python float as a number of `dtype` where the other operand is of it."""

    @functools.wraps(function, assigned=("__name__", "__doc__"), updated=())
    def with_numbers(a: Any, b: Any, /) -> Any:
        if isinstance(b, float):
            b = dtype.type(b) if a.dtype == dtype else b
        elif isinstance(a, float) and b.dtype == dtype:
            a = dtype.type(a)
        return function(a, b)

    return with_numbers


def _with_bfloat16(backend: CupyBackend, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which does not support bfloat16, computing such arrays in float32."""
    bfloat16 = backend.dtypes["bfloat16"]

    @functools.wraps(function, assigned=("__name__", "__doc__"), updated=())
    def with_bfloat16(*arguments: Any, **options: Any) -> Any:
        given = [a.dtype for a in arguments if hasattr(a, "dtype")]
        if bfloat16 not in given:
            return function(*arguments, **options)
        result = function(*widened(arguments, backend), **options)
        return result.astype(bfloat16) if result.dtype == "float32" and "float32" not in given else result

    return with_bfloat16


def _on(place: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, run with `place` as CuPy's current device."""

    @functools.wraps(function, assigned=("__name__", "__doc__"), updated=())
    def on_device(*arguments: Any, **options: Any) -> Any:
        with place:
            return function(*arguments, **options)

    return on_device
