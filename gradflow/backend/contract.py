"""The abstract array backend: all that the core asks of an array library, in three tiers.

1. *Array functions*, required: functions with Array-API names and semantics (`ARRAY_FUNCTIONS`). `Backend.__init__`
   copies them from a namespace, so a call costs what the library's own call costs.
2. *Device services*, required: what is there, moving values between host and device, waiting, memory.
3. *Kernels*, optional: fused functions, each with a composed default below that states the contract. A backend
   overrides those that it has a faster way for; `kernels()` tells which, and `GRADFLOW_FUSED=0` turns them off.

Kernels compute in float32 where their arrays are half floats, and round at the end: counts, factors, squares and small
epsilons leave the range of those. Products of matrices are left to the library.

A composed default is written in array functions on `self` alone. Where a gradient rule calls one, the same function
also runs with the differentiable operations in place of `self`, so one formula serves every order of derivative.

Arrays need `shape`, `dtype`, `ndim`, arithmetic, indexing and assignment to an index; basic slices are views, and
the results of `reshape` on contiguous arrays are too. One `Backend` object serves one device.

Arithmetic and comparisons may take subnormal numbers for zeros of their sign; moves keep them, and the sign of zero.
Where bfloat16 is offered, every array function knows it.
"""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from gradflow.backend.array_functions import ARRAY_FUNCTIONS, Array
from gradflow.backend.composed import ComposedKernels
from gradflow.backend.device import Device, Diagnosis, Event, MemoryStats
from gradflow.backend.kernels import KERNELS
from gradflow.backend.optimizer_steps import OptimizerKernels
from gradflow.backend.philox import RandomKernels
from gradflow.dtypes import DTYPES, as_dtype
from gradflow.environment import switch


class Backend(ComposedKernels, RandomKernels, OptimizerKernels, ABC):
    """One device of one array library. See the module's docstring for the three tiers.

    `namespace` offers the array functions and the dtypes; a method or class attribute of the same name wins over it.
    Raises NotImplementedError, naming them, where array functions are missing.
    """

    name: str
    """The device prefix, as in "cpu" or "cuda"."""

    unsupported: ClassVar[dict[str, str]] = {}
    """What fails here and may, with the reason: what `gradflow.testing.conformance` does not count as a failure.

    Keys: a dtype ("float16"), a function, service or kernel ("argsort"), one of those for a dtype ("softmax[float16]"),
    or a check by its name ("test_a_view_is_one"). One that does not fail is an error there, so that none outlives it.
    """

    made_by: ClassVar[dict[str, str]] = {}
    """What compiled the native kernels of these names, for `kernels` to report: {"linear": "numba"}."""

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
        self.dtypes: dict[str, Any] = self._find_dtypes(namespace)
        self.single, self.double = self.dtypes.get("float32"), self.dtypes.get("float64")
        self.half_dtypes = tuple(self.dtypes[n] for n in ("float16", "bfloat16") if n in self.dtypes)
        self._dtype_names = {native: name for name, native in self.dtypes.items()}
        if switch("GRADFLOW_FUSED") is False:
            for kernel_name in KERNELS:
                setattr(self, kernel_name, getattr(Backend, kernel_name).__get__(self))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.device}>"

    def _find_dtypes(self, namespace: Any) -> dict[str, Any]:
        return {n: self.empty((0,), dtype=getattr(namespace, n)).dtype for n in DTYPES if hasattr(namespace, n)}

    # ------------------------------------------------------------------ device services

    @classmethod
    @abstractmethod
    def device_count(cls) -> int:
        """The number of devices that can be used; 0 where `diagnose` says why there is none. Never raises."""

    @classmethod
    @abstractmethod
    def diagnose(cls) -> Diagnosis:
        """Whether devices of this kind can be used here, and if not, why and what to type. Never raises."""

    @abstractmethod
    def to_host(self, array: Array) -> Any:
        """The values as a new NumPy array, C-contiguous whatever the layout here; waits until they are there."""

    @abstractmethod
    def from_host(self, values: Any) -> Array:
        """A new array on this device, C-contiguous, with the values and the dtype of a NumPy array, which is copied.

        The NumPy array has any layout and this machine's byte order: gradflow converts others, and subclasses, before.
        It may change after the return, also where it is one from `pin`.
        """

    def host_values(self, array: Array) -> Any:
        """As `to_host`, but where an array is in host memory anyway, that memory itself: for reading at once."""
        return self.to_host(array)

    def pin(self, values: Any) -> Any:
        """A NumPy array with these values in memory from which this device copies fastest (page-locked).

        The default, for a device that has no such memory, is the array given.
        """
        return values

    def from_host_later(self, values: Any) -> Array:
        """As `from_host`, and the values may still be read after the return, until `synchronize`.

        So the caller leaves them unchanged; in exchange, values in memory from `pin` are copied while both host and
        device go on. The default copies at once.
        """
        return self.from_host(values)

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all work of this device is done."""

    @abstractmethod
    def memory_stats(self) -> MemoryStats:
        """The memory of this device in bytes, as far as the library tells."""

    def free_memory(self) -> int:
        """Give back to the system what a pool keeps and no array uses; the bytes given back, 0 without a pool."""
        return 0

    def num_threads(self) -> int:
        """The threads of the host that this device computes with; 0 where it does not compute on the host."""
        return 0

    def set_num_threads(self, n: int) -> None:
        """Compute with n threads of the host from now on. The default, for a device elsewhere, does nothing."""

    def prepare(self) -> None:
        """Import and make ready what kernels would else import when they are first called. By default, nothing."""

    def describe(self) -> str:
        """The device in a few words: its name, its memory."""
        return type(self).__name__

    @functools.cached_property
    def uint64_works(self) -> bool:
        """Whether the library computes with uint64: tried once. Without, random numbers come from the host.

        They are the same ones to the bit; but each draw, so each mask of dropout, is then copied to the device.
        """
        try:
            x = self.full((2,), (1 << 63) + 1, dtype=self.dtypes["uint64"])
            for function in (self.add, self.multiply, self.bitwise_and, self.bitwise_xor, self.greater_equal):
                function(x, x)
            self.bitwise_right_shift(x, self.full((), 12, dtype=x.dtype))
            self.astype(x, self.dtypes["float64"])
            self.argsort(x)
        except Exception:  # each library has its own
            return False
        return True

    def supports(self, dtype: str) -> bool:
        """Whether arrays of the dtype of this name work here."""
        return dtype in self.dtypes

    def dtype_name(self, native: Any) -> str:
        """The gradflow name of a dtype object of this library; TypeError where it has none (complex numbers)."""
        name = self._dtype_names.get(native)
        return as_dtype(native).name if name is None else name

    def stream(self) -> contextlib.AbstractContextManager[Any]:
        """A stream of work of its own for the time of a `with`; on a device without streams, nothing."""
        return contextlib.nullcontext()

    def event(self) -> Event:
        """A new event, to mark a point in the stream of work and to measure the time between two such points."""
        return Event(self)

    def kernels(self) -> dict[str, str]:
        """For each kernel, "composed", "native", or what made it native, such as "numba".

        "host" is a default that NumPy computes on the host, for want of `uint64_works`.
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
        """x[key], for integers, slices, None, Ellipsis, integer arrays, or one boolean array."""
        return x[key]

    def setitem(self, x: Array, key: Any, values: Any) -> None:
        """x[key] = values, for a key as of `getitem`; values of the dtype of x, or a Python number, broadcast."""
        x[key] = values

    def copy(self, x: Array) -> Array:
        """A new array of the values and the dtype of x, C-contiguous whatever the layout of x."""
        out = self.empty(x.shape, dtype=x.dtype)
        self.setitem(out, ..., x)
        return out
