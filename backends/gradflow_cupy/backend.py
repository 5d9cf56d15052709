"""CuPy as an array backend: array functions where CuPy's differ from the Array API, and the services of a device.

CuPy takes NumPy's names and not all of the standard's keywords, and creates on the current device. What differs is
adapted here; all else is CuPy's own function, copied. The kernels are in the modules `network`, `losses` and
`optimizers` of this package.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections import deque
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

from gradflow.backend import ARRAY_FUNCTIONS, KERNELS, Array, Diagnosis, Event, MemoryStats
from gradflow.dtypes import DTYPES
from gradflow_cupy import diagnosis
from gradflow_cupy.losses import LossKernels
from gradflow_cupy.memory import PeakCounter
from gradflow_cupy.optimizers import OptimizerKernels

_SERVICES = ("to_host", "from_host", "from_host_later", "pin", "free_memory", "getitem", "setitem", "copy", "event")


class CupyBackend(LossKernels, OptimizerKernels):
    """Arrays of CuPy in the memory of one GPU, `cuda:0`, `cuda:1`, ... Making one needs CuPy and a device.

    Where there are several GPUs, every function runs with this object's one as CuPy's current device, and leaves the
    current device as it was; with a single GPU nothing is wrapped.
    """

    name = "cuda"

    def __init__(self, index: int = 0) -> None:
        with contextlib.suppress(ImportError):  # before CuPy's first use: it registers the dtype bfloat16
            importlib.import_module("ml_dtypes")
        import cupy
        import cupyx
        from cupy import cublas

        self.cupy, self.cupyx, self.cublas = cupy, cupyx, cublas
        super().__init__(cupy, index)
        self._place = cupy.cuda.Device(index)
        self._peak: PeakCounter | None = None
        self._in_flight: deque[tuple[Any, Any]] = deque()
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
        with contextlib.suppress(ImportError):
            found["bfloat16"] = namespace.dtype(importlib.import_module("ml_dtypes").bfloat16)
        return found

    # ------------------------------------------------------------------ array functions

    @staticmethod
    def astype(x: Array, dtype: Any, /, *, copy: bool = True) -> Array:
        return x.astype(dtype, order="C" if copy else "K", copy=copy)

    def clip(self, x: Array, /, min: Any = None, max: Any = None) -> Array:
        if min is not None:
            x = self.cupy.maximum(x, min)
        return x if max is None else self.cupy.minimum(x, max)

    def var(self, x: Array, /, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Array:
        return self.cupy.var(x, axis=axis, ddof=correction, keepdims=keepdims)

    def std(self, x: Array, /, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Array:
        return self.cupy.std(x, axis=axis, ddof=correction, keepdims=keepdims)

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
        # CuPy copies to pinned memory first and goes on from there by itself: nothing waits
        return self.cupy.array(values, order="C")

    def copy(self, x: Array) -> Array:
        return self.cupy.array(x, order="C")

    def pin(self, values: Any) -> Any:
        out = self.cupyx.empty_pinned(values.shape, dtype=values.dtype)
        out[...] = values
        return out

    def from_host_later(self, values: Any) -> Array:
        """As in the contract. Page-locked values are copied by the GPU itself; others as by `from_host`."""
        if not values.size or not self._is_pinned(values):
            return self.from_host(values)
        out = self.cupy.empty(values.shape, dtype=values.dtype)
        stream = self.cupy.cuda.get_current_stream()
        out.set(values, stream=stream)
        while self._in_flight and self._in_flight[0][0].done:
            self._in_flight.popleft()
        # CuPy would give freed page-locked memory to the next who asks, while the GPU still reads it
        self._in_flight.append((stream.record(), values))
        return out

    def _is_pinned(self, values: Any) -> bool:
        if not (hasattr(values, "ctypes") and values.flags.c_contiguous):  # a NumPy scalar has no address
            return False
        runtime = self.cupy.cuda.runtime
        return bool(runtime.pointerGetAttributes(values.ctypes.data).type == runtime.memoryTypeHost)

    def synchronize(self) -> None:
        self._place.synchronize()
        self._in_flight.clear()

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
        """A CUDA stream that starts after the work in hand; what follows the `with` starts after its own work."""
        with self._place:
            outer = self.cupy.cuda.get_current_stream()
            inner = self.cupy.cuda.Stream(non_blocking=True)
            inner.wait_event(outer.record())
            try:
                with inner:
                    yield inner
            finally:
                outer.wait_event(inner.record())

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
    def _wrapped(self) -> dict[Any, Any]:
        """The kernel behind each wrapper, where there are several GPUs."""
        return {}


class CudaEvent(Event):
    """A point in the current CUDA stream. Recording does not wait; asking for the time waits for the later event."""

    def __init__(self, backend: CupyBackend) -> None:
        super().__init__(backend)
        self._cupy = backend.cupy
        self._event = backend.cupy.cuda.Event()
        self._recorded = False

    def record(self) -> None:
        self._event.record()
        self._recorded = True

    def seconds_since(self, earlier: Event) -> float:
        if not (isinstance(earlier, CudaEvent) and earlier._recorded and self._recorded):
            raise RuntimeError("both events must be recorded before the time between them is asked for")
        self._event.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(earlier._event, self._event)) / 1000.0


def _on(place: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, run with `place` as CuPy's current device."""

    @functools.wraps(function, assigned=("__name__", "__doc__"), updated=())
    def on_device(*arguments: Any, **options: Any) -> Any:
        with place:
            return function(*arguments, **options)

    return on_device
