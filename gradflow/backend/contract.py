"""The abstract array backend: everything that the core needs from an array library.

`Backend` has three tiers: array functions, device services and kernels; its docstring explains them. This module
defines the services. The array functions are listed in `gradflow.backend.array_functions`; the kernels, with their
composed defaults, are in `composed`, `normalization`, `philox` and `optimizer_steps`.
"""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from gradflow.backend.array_functions import ARRAY_FUNCTIONS, Array
from gradflow.backend.composed import ComposedKernels
from gradflow.backend.device import Device, Diagnosis, Event, MemoryStats
from gradflow.backend.graphs import RecordedStep
from gradflow.backend.kernels import KERNELS
from gradflow.backend.normalization import NormalizationKernels
from gradflow.backend.optimizer_steps import OptimizerKernels
from gradflow.backend.philox import RandomKernels
from gradflow.dtypes import DTYPES, as_dtype
from gradflow.environment import DISTRIBUTION, switch, to_install


class Backend(ComposedKernels, NormalizationKernels, RandomKernels, OptimizerKernels, ABC):
    """The base class of backends. An object serves one device of one array library.

    1. *Array functions*, required: the functions of `ARRAY_FUNCTIONS`, with the names and semantics of the Array API.
       The constructor copies them from a namespace, so that a call costs what the library's own call costs. A method
       or class attribute of the same name takes precedence.
    2. *Device services*, required: the abstract methods below find devices, move values between host and device,
       wait for the device and report its memory. Others have defaults.
    3. *Kernels*, optional: fused functions (`KERNELS`). Each has a default composed of array functions, which also
       specifies it. A backend overrides those that it can compute faster; `kernels()` lists which, and
       `GRADFLOW_FUSED=0` turns them off. Defaults use array functions of `self` only, so a gradient rule can also run
       them on tensors, with the differentiable operations as `self`: one formula serves every order of derivative.

    Arrays have `shape`, `dtype` and `ndim`, arithmetic operators, indexing and assignment to an index. Basic slices are
    views; so is the result of `reshape` of a contiguous array. Arithmetic and comparisons may flush subnormal numbers
    to zero; copies preserve them and the sign of zero. If bfloat16 is supported, every array function supports it; the
    result for such an array and a Python number may have a wider dtype, and the core rounds it.
    Kernels compute half floats in float32 and round at the end, except matrix products: see
    `gradflow.backend.half_floats`.

    namespace: an object with the array functions and dtypes of the library.
    index: the number of the device (default 0).

    Raises NotImplementedError, which names the missing functions, if array functions are missing.
    """

    name: str
    """The device prefix, such as "cpu" or "cuda"."""

    unsupported: ClassVar[dict[str, str]] = {}
    """Known limitations, each with its reason: `gradflow.testing.conformance` expects these checks to fail.

    Keys: a dtype ("float16"), a function, service or kernel ("argsort"), one of those for a dtype ("softmax[float16]"),
    or the name of a check ("test_a_view_is_one"). An entry whose checks all pass is an error, so that no entry becomes
    stale.
    """

    dtype_extras: ClassVar[dict[str, tuple[str, str]]] = {}
    """The dtypes that need a package, each with the package and the extra of gradflow that has it."""

    made_by: ClassVar[dict[str, str]] = {}
    """The compiler or library behind native kernels, which `kernels()` reports: {"linear": "llvmlite"}."""

    dlpack_type: ClassVar[int | None] = None
    """DLPack's number of this kind of device (1: CPU, 2: CUDA); None if its arrays are not exchanged through DLPack."""

    reports_launches: ClassVar[bool] = False
    """Whether native kernels report all that they launch, see `launched`. If not, a profile counts each as one."""

    graphs_of_several: ClassVar[bool] = True
    """Whether `graph` also takes several steps, which one call of the host starts: worth it where that takes time."""

    def __init__(self, namespace: Any, index: int = 0) -> None:
        self.device = Device(self.name, index)
        missing = []
        for function in ARRAY_FUNCTIONS:
            if not hasattr(self, function):
                if hasattr(namespace, function):
                    setattr(self, function, getattr(namespace, function))
                else:
                    missing.append(function)
        if missing:
            raise NotImplementedError(f"backend {self.name!r} lacks required array functions: {', '.join(missing)}")
        self.dtypes: dict[str, Any] = self.find_dtypes(namespace)
        self.single, self.double = self.dtypes.get("float32"), self.dtypes.get("float64")
        self.half_dtypes = tuple(self.dtypes[n] for n in ("float16", "bfloat16") if n in self.dtypes)
        self._dtype_names = {native: name for name, native in self.dtypes.items()}
        self._seeds: dict[Any, Array] = {}
        if switch("GRADFLOW_FUSED") is False:
            for kernel_name in KERNELS:
                setattr(self, kernel_name, getattr(Backend, kernel_name).__get__(self))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.device}>"

    # ------------------------------------------------------------------ device services

    @classmethod
    @abstractmethod
    def device_count(cls) -> int:
        """The number of usable devices; if it is 0, `diagnose` explains why. Never raises."""

    @classmethod
    @abstractmethod
    def diagnose(cls) -> Diagnosis:
        """Whether devices of this kind can be used, and if not, why and what to type. Never raises."""

    @abstractmethod
    def to_host(self, array: Array) -> Any:
        """A new NumPy array with the values of `array`, C-contiguous. Waits for the device."""

    @abstractmethod
    def from_host(self, values: Any) -> Array:
        """A new array on this device with the values and dtype of the NumPy array `values`, C-contiguous.

        `values` is a plain `ndarray` (no subclass) with native byte order and any memory layout. The caller may change
        it right after the call, even if it comes from `pin`.
        """

    def host_values(self, array: Array) -> Any:
        """Like `to_host`, but a zero-copy view if the array is in host memory: read it immediately."""
        return self.to_host(array)

    def pin(self, values: Any) -> Any:
        """A NumPy array with these values in the memory that this device copies from fastest (page-locked).

        The default returns `values`, for devices without such memory.
        """
        return values

    def from_host_later(self, values: Any) -> Array:
        """Like `from_host`, but asynchronous: `values` may be read until `synchronize`, so leave them unchanged.

        Values from `pin` are copied while the host and the device continue. The default copies immediately.
        """
        return self.from_host(values)

    def from_host_ahead(self, values: Sequence[Any]) -> tuple[list[Array], Event]:
        """New arrays like those of `from_host_later`, and an event: copied while the device computes.

        The copy waits for the work queued so far, and later work does not wait for it. Call the event's `wait` before
        work reads the arrays, and its `synchronize` before `values`, which come from `pin`, change or the arrays are
        deleted unused. The default copies immediately.
        """
        return [self.from_host(x) for x in values], Event(self)

    def to_dlpack(self, array: Array, stream: Any, max_version: tuple[int, int] | None, copy: bool | None) -> Any:
        """A DLPack capsule of the memory of `array`, on this device; used only with a `dlpack_type`.

        The arguments are those of `__dlpack__` in the Array API standard; by default, that of the array is called.
        """
        return array.__dlpack__(stream=stream, max_version=max_version, copy=copy)

    def from_dlpack(self, x: Any) -> Array:
        """An array in the memory of x, an array of another library on this device, which has `__dlpack__`.

        Used only with a `dlpack_type`. An error that it raises becomes a BufferError.
        """
        raise NotImplementedError(f"{type(self).__name__} has a dlpack_type, but no from_dlpack")

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all work queued on this device is done."""

    @abstractmethod
    def memory_stats(self) -> MemoryStats:
        """The memory of this device in bytes, as far as the library reports it."""

    def available_memory(self) -> int | None:
        """The bytes that new arrays can take on this device now; None, the default, if that is unknown."""
        return None

    def free_memory(self) -> int:
        """Release unused memory of the library's pool to the system; returns the bytes released, 0 without a pool."""
        return 0

    def num_threads(self) -> int:
        """The number of CPU threads that this device computes with; 0 for a device other than the CPU."""
        return 0

    def set_num_threads(self, n: int) -> None:
        """Set the number of CPU threads to n. The default, for a device other than the CPU, does nothing."""

    def prepare(self) -> None:
        """Import and initialize what kernels would otherwise load at their first call. The default does nothing."""

    def describe(self) -> str:
        """A short description of the device, such as its name and memory."""
        return type(self).__name__

    @functools.cached_property
    def uint64_works(self) -> bool:
        """Whether the library computes with uint64, tried once. If not, random numbers are computed on the host.

        The numbers are the same, but each draw, and so each dropout mask, is copied to the device.
        """
        try:
            x = self.full((2,), (1 << 63) + 1, dtype=self.dtypes["uint64"])
            for function in (self.add, self.multiply, self.bitwise_and, self.bitwise_xor, self.greater_equal):
                function(x, x)
            self.bitwise_right_shift(x, self.full((), 12, dtype=x.dtype))
            self.astype(x, self.dtypes["float64"])
            self.argsort(x)
        except Exception:  # each library raises its own
            return False
        return True

    def find_dtypes(self, namespace: Any) -> dict[str, Any]:
        """The dtypes of this library by gradflow name, for `self.dtypes`: those of `gradflow.dtypes` in `namespace`.

        Override it to add or remove dtypes.
        """
        return {n: self.empty((0,), dtype=getattr(namespace, n)).dtype for n in DTYPES if hasattr(namespace, n)}

    def supports(self, dtype: str) -> bool:
        """Whether arrays of the dtype with this name work on this device."""
        return dtype in self.dtypes

    def native_dtype(self, name: str) -> Any:
        """The dtype object of this library with a gradflow name. Raises TypeError if the device does not support it."""
        if self.supports(name):
            return self.dtypes[name]
        text = f"device {self.device} does not support {name}"
        if name in self.dtype_extras:
            package, extra = self.dtype_extras[name]
            text += f' without {package} from the extra "{extra}" of {DISTRIBUTION}; {to_install(extra)}'
        raise TypeError(text)

    def dtype_name(self, native: Any) -> str:
        """The gradflow name of a dtype object of this library; TypeError if it has none (complex numbers)."""
        name = self._dtype_names.get(native)
        return as_dtype(native).name if name is None else name

    def stream(self) -> contextlib.AbstractContextManager[Any]:
        """A context manager that runs work in a separate stream; without streams, it does nothing."""
        return contextlib.nullcontext()

    def seed(self, dtype: Any) -> Array:
        """The number 1 as a 0-d array of this dtype, from which `Tensor.backward` starts: the same one in each call.

        Nothing may change it. A backward kernel that finds it as its `g` may return what the forward kernel has made.
        """
        found = self._seeds.get(dtype)
        return self._seeds.setdefault(dtype, self.ones((), dtype=dtype)) if found is None else found

    def event(self) -> Event:
        """A new event: `record()` marks a point in the stream of work.

        `seconds_since(earlier)` measures the time between two events, `wait()` lets later work begin after the event,
        and `synchronize()` waits for it on the host.
        """
        return Event(self)

    def named_ranges(self) -> tuple[Callable[[str], Any], Callable[[], Any]] | None:
        """Functions that begin a range with a name, and end it, for the profiler of the device's vendor.

        None, the default, if there are none.
        """
        return None

    def graph(self, step: RecordedStep, inputs: Sequence[Array]) -> Callable[..., Any]:
        """What replays a recorded step: a function of the arrays of other inputs, like `step.run`, the default.

        inputs: arrays with the shapes and dtypes that all later calls have. See `gradflow.backend.graphs`.
        """
        return step.run

    def kernels(self) -> dict[str, str]:
        """For each kernel: "composed", "native", "host", or what compiled it, such as "llvmlite".

        "host": NumPy computes it on the host, because `uint64_works` is false.
        """
        found = {}
        for name in KERNELS:
            method = getattr(self, name)
            function = getattr(method, "__func__", None)  # a static method has none
            found[name] = "composed" if function is getattr(Backend, name) else self.made_by.get(name, "native")
            if name in ("random_bits", "dropout") and found[name] == "composed" and not self.uint64_works:
                found[name] = "host"
        return found

    # ------------------------------------------------------------------ indexing and copies

    def getitem(self, x: Array, key: Any) -> Array:
        """x[key]. The key holds integers, slices, None, Ellipsis and integer arrays, or is one boolean array."""
        return x[key]

    def setitem(self, x: Array, key: Any, values: Any) -> None:
        """x[key] = values, broadcast: an array with the dtype of x, or a Python number. Keys as in `getitem`."""
        x[key] = values

    def copy(self, x: Array) -> Array:
        """A copy of x, C-contiguous whatever the layout of x."""
        out = self.empty(x.shape, dtype=x.dtype)
        self.setitem(out, ..., x)
        return out
