"""The CuPy backend: array functions that differ from the Array API, and device services.

CuPy has NumPy's names but not all keywords of the standard, and creates arrays on its current device. Functions that
differ are adapted here; all others are CuPy's own. The kernels are in the modules `network`, `losses`, `optimizers` and
`gather`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import Any, ClassVar

from gradflow.backend import ARRAY_FUNCTIONS, KERNELS, Array, Diagnosis, Event, MemoryStats
from gradflow.backend.graphs import RecordedStep
from gradflow.backend.half_floats import widened
from gradflow.dtypes import DTYPES
from gradflow_cupy import diagnosis
from gradflow_cupy.gather import GatherKernels
from gradflow_cupy.graph import StepGraph
from gradflow_cupy.linear import PRODUCTS, LinearKernels
from gradflow_cupy.losses import LossKernels
from gradflow_cupy.memory import PeakCounter
from gradflow_cupy.normalization import NormalizationKernels
from gradflow_cupy.optimizers import OptimizerKernels

_WITH_PYTHON_FLOATS = (
    "add", "subtract", "multiply", "divide", "floor_divide", "remainder", "pow", "atan2", "maximum", "minimum",
    "equal", "not_equal", "less", "less_equal", "greater", "greater_equal",
)  # fmt: skip
"""The binary functions that support bfloat16, but return float32 for a bfloat16 array and a Python float."""
_WITHOUT_BFLOAT16 = ("where", "round", "argsort")
"""The functions that do not support bfloat16: they return float32, or fail. `AccurateSums` sums in float32."""

_SERVICES = (
    "to_host", "from_host", "from_host_later", "from_host_ahead", "pin", "free_memory", "getitem", "setitem", "copy",
    "event", "from_dlpack", "to_dlpack",
)  # fmt: skip
"""The services that use CuPy's current device."""


_SMALLEST_NORMAL = 2.0**-126
"""The smallest positive float32 that is not subnormal."""


def _becomes_zero(value: Any) -> bool:
    """Whether CuPy fills an array with 0.0 for this number: for -0.0 and for subnormal numbers."""
    return abs(value) < _SMALLEST_NORMAL and (value != 0 or math.copysign(1.0, value) < 0)


class CupyBackend(LinearKernels, NormalizationKernels, GatherKernels, LossKernels, OptimizerKernels):
    """CuPy arrays in the memory of one GPU: `cuda:0`, `cuda:1`, ... Creating an object needs CuPy and a GPU.

    index: the number of the GPU (default 0). If there are several GPUs, every function runs with this one as CuPy's
    current device and restores the current device afterwards; with a single GPU nothing is wrapped.
    """

    name = "cuda"
    dlpack_type = 2
    reports_launches = True
    dtype_extras: ClassVar[dict[str, tuple[str, str]]] = {"bfloat16": ("ml_dtypes", "half")}

    def __init__(self, index: int = 0) -> None:
        import cupy
        import cupyx
        import numpy

        self.cupy, self.cupyx, self.numpy = cupy, cupyx, numpy
        super().__init__(cupy, index)
        self._cuda_device = cupy.cuda.Device(index)
        self._peak: PeakCounter | None = None
        self._streams: list[Any] = []
        if "bfloat16" in self.dtypes:
            for name in _WITH_PYTHON_FLOATS:
                setattr(self, name, _with_python_floats(self.dtypes["bfloat16"], getattr(self, name)))
            for name in _WITHOUT_BFLOAT16:
                setattr(self, name, _with_bfloat16(self, getattr(self, name)))
        if cupy.cuda.runtime.getDeviceCount() > 1:
            for function in ARRAY_FUNCTIONS:
                setattr(self, function, _on_device(self._cuda_device, getattr(self, function)))
            for method in (*_SERVICES, *KERNELS):
                bound = getattr(self, method)
                wrapped = _on_device(self._cuda_device, bound.__func__)
                if method in KERNELS:
                    self._wrapped[wrapped] = bound.__func__
                setattr(self, method, MethodType(wrapped, self))

    def find_dtypes(self, namespace: Any) -> dict[str, Any]:
        found = {n: namespace.dtype(getattr(namespace, n)) for n in DTYPES if hasattr(namespace, n)}
        if self.numpy.lib.NumpyVersion(self.numpy.__version__) >= "2.1.2":  # as in CuPy: earlier versions crash
            with contextlib.suppress(ImportError):
                found["bfloat16"] = namespace.dtype(importlib.import_module("ml_dtypes").bfloat16)
        return found

    # ------------------------------------------------------------------ array functions

    @staticmethod
    def astype(x: Array, dtype: Any, /, *, copy: bool = True) -> Array:
        return x.astype(dtype, order="C" if copy else "K", copy=copy)

    def full(self, shape: Any, fill_value: Any, *, dtype: Any = None) -> Array:
        dtype = self.cupy.dtype(type(fill_value) if dtype is None else dtype)
        if -1 < fill_value < 1 and dtype in self._floating:
            value = dtype.type(fill_value)
            if _becomes_zero(value):
                bits = value.view(f"u{dtype.itemsize}")
                return self.cupy.full(shape, bits, dtype=bits.dtype).view(dtype)
        return self.cupy.full(shape, fill_value, dtype=dtype)

    def clip(self, x: Array, /, min: Any = None, max: Any = None) -> Array:
        if min is not None:
            x = self.maximum(x, min)
        return x if max is None else self.minimum(x, max)

    @staticmethod
    def reshape(x: Array, /, shape: tuple[int, ...]) -> Array:
        return x.reshape(shape)

    def argsort(self, x: Array, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
        # CuPy's sort is always stable
        if descending:  # sort the reversed array, so that equal values keep their order
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
        gib, lt = properties["totalGlobalMem"] / 2**30, self._cublaslt
        products = f"no cuBLASLt: {self.no_cublaslt}" if lt is None else f"cuBLASLt {lt.version}"
        return f"{name}, {gib:.0f} GiB, CuPy {self.cupy.__version__}, {products}"

    def to_host(self, array: Array) -> Any:
        return self.cupy.asnumpy(array)

    def from_host(self, values: Any) -> Array:
        # CuPy first copies other memory to page-locked memory, so only page-locked values need to wait
        return self._copied(values, blocking=self._is_pinned(values))

    def copy(self, x: Array) -> Array:
        return self.cupy.array(x, order="C")

    def pin(self, values: Any) -> Any:
        out = self.cupyx.empty_pinned(values.shape, dtype=values.dtype)
        out[...] = values
        return out

    def from_host_later(self, values: Any) -> Array:
        """As in the contract. The GPU copies page-locked values asynchronously; CuPy keeps them alive until then."""
        return self._copied(values, blocking=False)

    def from_host_ahead(self, values: Sequence[Any]) -> tuple[list[Array], Event]:
        """As in the contract. Values that are not page-locked are copied before this returns.

        The memory comes from the current stream's arena of CuPy's pool and returns there, so only later work of that
        stream can use it again; the copies, on another stream, wait for its earlier work.
        """
        arrays = [self.cupy.empty(x.shape, dtype=x.dtype) for x in values]
        self._copier.wait_event(self.cupy.cuda.get_current_stream().record())
        for array, x in zip(arrays, values, strict=True):
            array.set(x, self._copier)
        return arrays, CudaEvent(self, self._copier)

    def _copied(self, values: Any, blocking: bool) -> Array:
        values = self.numpy.asarray(values)
        if not values.size:
            return self.cupy.empty(values.shape, dtype=values.dtype)
        if values.ndim:
            return self.cupy.array(values, order="C", blocking=blocking)
        # CuPy would fill the array with the number, which turns -0.0 into 0.0
        return self.cupy.array(values.reshape(1), blocking=blocking).reshape(())

    def _is_pinned(self, values: Any) -> bool:
        if not (isinstance(values, self.numpy.ndarray) and values.size and values.flags.c_contiguous):
            return False
        runtime = self.cupy.cuda.runtime
        return bool(runtime.pointerGetAttributes(values.ctypes.data).type == runtime.memoryTypeHost)

    def setitem(self, x: Array, key: Any, values: Any) -> None:
        if isinstance(values, float) and _becomes_zero(values):
            values = self.full((), values, dtype=x.dtype)
        x[key] = values

    def from_dlpack(self, x: Any) -> Array:
        return self.cupy.from_dlpack(x)

    def synchronize(self) -> None:
        self._cuda_device.synchronize()

    def memory_stats(self) -> MemoryStats:
        """As in the contract. CuPy does not track the peak: the first call starts to, and returns None for it."""
        with self._cuda_device:
            pool = self.cupy.get_default_memory_pool()
            current, reserved = pool.used_bytes(), pool.total_bytes()
        if self._peak is None:
            self._peak = PeakCounter(self.cupy, self.device.index, current)
            return MemoryStats(current, None, reserved)
        return MemoryStats(current, max(self._peak.peak, current), reserved)

    def available_memory(self) -> int:
        """As in the contract: the GPU's free memory, and what CuPy's pool has to spare."""
        with self._cuda_device:
            pool = self.cupy.get_default_memory_pool()
            free, _ = self.cupy.cuda.runtime.memGetInfo()
            return int(free + pool.total_bytes() - pool.used_bytes())

    def free_memory(self) -> int:
        """As in the contract. Also frees CuPy's page-locked host memory, which is not counted in the result."""
        pool = self.cupy.get_default_memory_pool()
        before = pool.total_bytes()
        pool.free_all_blocks()
        self.cupy.get_default_pinned_memory_pool().free_all_blocks()
        return int(before - pool.total_bytes())

    @contextlib.contextmanager
    def stream(self) -> Iterator[Any]:
        """A CUDA stream that waits for the work queued so far; work after the `with` waits for the work in it.

        Streams are reused, since CuPy's memory pool keeps a separate arena for each stream.
        """
        with self._cuda_device:
            outer = self.cupy.cuda.get_current_stream()
            try:
                inner = self._streams.pop()
            except IndexError:
                inner = self.cupy.cuda.Stream(non_blocking=True)
            inner.wait_event(outer.record())
            try:
                with inner:
                    yield inner
            finally:
                outer.wait_event(inner.record())
                self._streams.append(inner)

    def seed(self, dtype: Any) -> Array:
        """As in the contract. It is there before this returns, since work in any stream may read it next."""
        found = self._seeds.get(dtype)
        if found is None:
            with (
                self._cuda_device,
                self.cupy.cuda.Stream(non_blocking=True) as own,
            ):  # so that nothing else is waited for
                made = self.ones((), dtype=dtype)
                own.synchronize()
            found = self._seeds.setdefault(dtype, made)
        return found

    def event(self) -> Event:
        return CudaEvent(self)

    def named_ranges(self) -> tuple[Callable[[str], Any], Callable[[], Any]] | None:
        """As in the contract: the ranges of NVTX, which Nsight Systems shows."""
        try:
            nvtx = self.cupy.cuda.nvtx
            return nvtx.RangePush, nvtx.RangePop
        except (AttributeError, RuntimeError):  # CuPy was built without it
            return None

    def free_stream(self, address: int) -> None:
        """Free the memory that the sums of a stream share, which is not used again."""
        for key in list(self._scratches):  # a copy: another thread may add one
            if key[0] == address:
                self._scratches.pop(key, None)

    def graph(self, step: RecordedStep, inputs: Sequence[Array]) -> StepGraph:
        """As in the contract: a CUDA graph."""
        return StepGraph(self, step)

    def kernels(self) -> dict[str, str]:
        from gradflow.backend import Backend

        found = {}
        for name in KERNELS:
            function = getattr(getattr(self, name), "__func__", None)  # a static method has none
            function = self._wrapped.get(function, function)
            found[name] = "composed" if function is getattr(Backend, name) else "native"
            if found[name] == "native" and name in PRODUCTS and self._cublaslt is not None:
                found[name] = "cublaslt"
        return found

    @functools.cached_property
    def _copier(self) -> Any:
        """The stream of `from_host_ahead`."""
        return self.cupy.cuda.Stream(non_blocking=True)

    @functools.cached_property
    def _floating(self) -> frozenset[Any]:
        return frozenset(self.dtypes[n] for n in ("bfloat16", "float16", "float32", "float64") if n in self.dtypes)

    @functools.cached_property
    def _wrapped(self) -> dict[Any, Any]:
        """The kernel inside each wrapper, if there are several GPUs."""
        return {}


class CudaEvent(Event):
    """A point in the current CUDA stream. `record` does not wait; `seconds_since` waits for both events.

    stream: where to record the event now (default: it is recorded later).
    """

    def __init__(self, backend: CupyBackend, stream: Any = None) -> None:
        super().__init__(backend)
        self._cupy, self._device = backend.cupy, backend._cuda_device
        self._event = backend.cupy.cuda.Event() if stream is None else stream.record()
        self._recorded = stream is not None

    def record(self) -> None:
        with self._device:  # each device has its own current stream
            self._event.record()
        self._recorded = True

    def wait(self) -> None:
        with self._device:
            self._cupy.cuda.get_current_stream().wait_event(self._event)

    def synchronize(self) -> None:
        self._event.synchronize()

    def seconds_since(self, earlier: Event) -> float:
        if not (isinstance(earlier, CudaEvent) and earlier._recorded and self._recorded):
            raise RuntimeError("both events must be recorded before the time between them can be measured")
        for event in (earlier, self):
            event._event.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(earlier._event, self._event)) / 1000.0


def _with_python_floats(dtype: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The binary `function`, converting a Python float operand to `dtype` if the other operand has it."""

    @functools.wraps(function, assigned=("__name__", "__doc__"), updated=())
    def with_python_floats(a: Any, b: Any, /) -> Any:
        if isinstance(b, float):
            b = dtype.type(b) if a.dtype == dtype else b
        elif isinstance(a, float) and b.dtype == dtype:
            a = dtype.type(a)
        return function(a, b)

    return with_python_floats


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


def _on_device(device: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, run with `device` as CuPy's current device."""

    @functools.wraps(function, assigned=("__name__", "__doc__"), updated=())
    def on_device(*arguments: Any, **options: Any) -> Any:
        with device:
            return function(*arguments, **options)

    return on_device
