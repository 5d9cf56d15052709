"""The device `fake`: NumPy behind an array type that hides its values and counts operations.

A program that runs on `fake` reads no value implicitly, does not mix arrays of different devices, and uses no array
attribute beyond those that `Backend` promises. So it meets these requirements of a GPU, tested on a machine without
one. There are two devices, `fake:0` and `fake:1`; importing `gradflow.testing` registers them.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradflow.backend import ARRAY_FUNCTIONS, Backend, Diagnosis, Event, MemoryStats
from gradflow.backend.registry import get_backend
from gradflow.testing.counting import HostTraffic

_ARITHMETIC = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift",
)  # fmt: skip
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_VALUES = (
    "array", "bool", "complex", "float", "index", "int", "iter", "dlpack", "contains",
)  # fmt: skip
"""The methods by which Python and NumPy read the values of an array."""


@dataclass
class Counts(HostTraffic):
    """Counts of operations on a fake device: see `FakeBackend.counts`.

    >>> import gradflow as gf
    >>> from gradflow.testing import FakeBackend
    >>> x = gf.ones(3, device="fake")
    >>> before = x.backend.counts.to_host
    >>> x.tolist()
    [1.0, 1.0, 1.0]
    >>> x.backend.counts.to_host - before
    1
    """

    allocations: int = 0
    """New arrays that own their memory."""
    launches: int = 0
    """Calls of array functions and operators, and indexing with arrays: each would be one kernel on a GPU."""


class FakeArray:
    """An array of a fake device. It has shape, dtype, ndim, arithmetic and indexing, and hides its values.

    >>> import gradflow as gf
    >>> import gradflow.testing
    >>> x = gf.ones((2, 3), device="fake")
    >>> x.array, x.array.shape
    (<FakeArray of shape (2, 3), float32 on fake:0>, (2, 3))
    """

    __slots__ = ("_backend", "_memory", "_values")
    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, values: Any, backend: FakeBackend, memory: Any = None) -> None:
        self._values = values
        self._backend = backend
        self._memory = memory

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return tuple(self._values.shape)

    @property
    def dtype(self) -> Any:
        """The NumPy dtype."""
        return self._values.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return int(self._values.ndim)

    def __getitem__(self, key: Any) -> FakeArray:
        return self._backend._wrap(self._values[self._backend._key(key)], (self,))

    def __setitem__(self, key: Any, values: Any) -> None:
        raw, given = self._backend._key(key), self._backend._unwrap(values)
        self._backend.counts.launches += 1
        self._values[raw] = given

    def __neg__(self) -> FakeArray:
        return self._backend._run(operator.neg, (self,))

    def __abs__(self) -> FakeArray:
        return self._backend._run(operator.abs, (self,))

    def __invert__(self) -> FakeArray:
        return self._backend._run(operator.invert, (self,))

    def __repr__(self) -> str:
        return f"<FakeArray of shape {self.shape}, {self.dtype} on {self._backend.device}>"


def _operator(function: Callable[[Any, Any], Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(self: FakeArray, other: Any) -> FakeArray:
        return self._backend._run(function, (self, other))

    def reflected(self: FakeArray, other: Any) -> FakeArray:
        return self._backend._run(function, (other, self))

    return forward, reflected


def _refusal(name: str) -> Callable[..., Any]:
    def refuse(self: FakeArray, *_: Any, **__: Any) -> Any:
        raise TypeError(
            f"__{name}__ would wait for {self._backend.device} and copy an array of shape {self.shape} to the host: "
            "do so explicitly with Backend.to_host, Tensor.numpy() or .item()"
        )

    return refuse


for _name in _ARITHMETIC:
    _forward, _reflected = _operator(getattr(operator, f"__{_name}__"))
    setattr(FakeArray, f"__{_name}__", _forward)
    setattr(FakeArray, f"__r{_name}__", _reflected)
for _name in _COMPARISONS:
    setattr(FakeArray, f"__{_name}__", _operator(getattr(operator, _name))[0])
for _name in _VALUES:
    setattr(FakeArray, f"__{_name}__", _refusal(_name))


class _Memory:
    """A block of memory of a fake device, in use until its last array is deleted."""

    __slots__ = ("backend", "size")

    def __init__(self, backend: FakeBackend, size: int) -> None:
        self.backend, self.size = backend, size
        backend.counts.allocations += 1
        backend._in_use += size
        backend._peak = max(backend._peak, backend._in_use)

    def __del__(self) -> None:
        self.backend._in_use -= self.size


class _CopyAhead(Event):
    """The end of a copy that is made as late as allowed, so that code which does not wait for it gets other values."""

    def __init__(self, backend: FakeBackend, values: Sequence[Any], arrays: Sequence[FakeArray]) -> None:
        super().__init__(backend)
        self._left = list(zip(values, arrays, strict=True))

    def synchronize(self) -> None:
        for x, array in self._left:
            array._values[...] = x
        self._left = []

    wait = synchronize


class FakeBackend(Backend):
    """NumPy's array functions on `FakeArray`s, with the composed kernels. `counts` counts the operations so far.

    >>> import gradflow as gf
    >>> with gf.use_device("fake"):
    ...     x = gf.ones((2, 2))
    ...     before = gf.get_backend().counts.launches
    ...     y = x * 3 + x
    ...     gf.get_backend().counts.launches - before
    2
    >>> y
    tensor([[4., 4.],
            [4., 4.]], dtype=float32, device=fake:0)
    >>> y.array
    <FakeArray of shape (2, 2), float32 on fake:0>
    >>> float(y.array[0, 0])
    Traceback (most recent call last):
    ...
    TypeError: __float__ would wait for fake:0 and copy an array of shape () to the host: do so explicitly with \
Backend.to_host, Tensor.numpy() or .item()
    """

    name = "fake"

    def __init__(self, index: int = 0) -> None:
        self.counts = Counts()
        self._in_use = self._peak = 0
        cpu = get_backend("cpu")
        for name in ARRAY_FUNCTIONS:
            if not hasattr(FakeBackend, name):
                setattr(self, name, functools.partial(self._call, getattr(cpu, name)))
        super().__init__(np, index)

    @classmethod
    def device_count(cls) -> int:
        return 2

    @classmethod
    def diagnose(cls) -> Diagnosis:
        return Diagnosis(True, f"no device: NumPy {np.__version__} behind arrays that hide their values")

    def describe(self) -> str:
        return "NumPy behind opaque arrays, for tests"

    # ------------------------------------------------------------------ array functions

    def asarray(self, obj: Any, /, *, dtype: Any = None) -> FakeArray:
        if isinstance(obj, FakeArray):
            return obj if dtype is None or obj.dtype == dtype else self.astype(obj, dtype)
        if isinstance(obj, (np.ndarray, np.generic)):
            raise TypeError(f"a NumPy array goes to {self.device} with from_host")
        self.counts.record("from_host")
        return self._wrap(np.array(obj, dtype=dtype))

    def empty(self, shape: Any, *, dtype: Any = None) -> FakeArray:
        filler = math.nan if np.dtype(dtype).kind == "f" else 1  # not zeros, so that code which relies on zeros fails
        return self._wrap(np.full(shape, filler, dtype))

    # ------------------------------------------------------------------ device services

    def to_host(self, array: Any) -> Any:
        self.counts.record("to_host")
        if not isinstance(array, FakeArray):
            raise TypeError(f"to_host of {self.device} got a {type(array).__name__}")
        return np.array(self._unwrap(array), order="C")

    def from_host(self, values: Any) -> FakeArray:
        self.counts.record("from_host")
        return self._wrap(np.array(values, order="C"))

    def from_host_ahead(self, values: Sequence[Any]) -> tuple[list[FakeArray], Event]:
        self.counts.record("from_host")
        arrays = [self.empty(x.shape, dtype=x.dtype) for x in values]
        return arrays, _CopyAhead(self, values, arrays)

    def copy(self, x: FakeArray) -> FakeArray:
        return self._run(lambda values: np.array(values, order="C"), (x,))

    def synchronize(self) -> None:
        self.counts.record("synchronize")

    def memory_stats(self) -> MemoryStats:
        return MemoryStats(self._in_use, self._peak, self._in_use)

    # ------------------------------------------------------------------ wrapping arrays

    def _unwrap(self, x: Any) -> Any:
        """Return the NumPy values of an argument: an array of this device, a list or tuple of them, or a number."""
        if isinstance(x, FakeArray):
            if x._backend is not self:
                raise TypeError(f"an array of {x._backend.device} in an operation on {self.device}")
            return x._values
        if isinstance(x, (np.ndarray, np.generic)):
            raise TypeError(f"a value of NumPy in an operation on {self.device}")
        return type(x)(self._unwrap(part) for part in x) if isinstance(x, (list, tuple)) else x

    def _key(self, key: Any) -> Any:
        if any(isinstance(part, FakeArray) for part in (key if isinstance(key, tuple) else (key,))):
            self.counts.launches += 1
        return self._unwrap(key)

    def _wrap(self, x: Any, sources: tuple[Any, ...] = ()) -> FakeArray:
        """Return an array of these values: a view if they lie in the memory of a source, else with new memory."""
        values = np.asarray(x)
        for source in sources:
            if isinstance(source, FakeArray) and np.may_share_memory(source._values, values):
                return FakeArray(values, self, source._memory)
        return FakeArray(values, self, _Memory(self, values.nbytes))

    def _run(
        self, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any] | None = None
    ) -> FakeArray:
        self.counts.launches += 1
        return self._wrap(function(*self._unwrap(args), **(options or {})), args)

    def _call(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> FakeArray:
        return self._run(function, args, {name: self._unwrap(x) for name, x in options.items()})
