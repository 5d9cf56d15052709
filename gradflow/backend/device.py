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
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

from gradflow.dtypes import DTYPES, as_dtype
from gradflow.environment import switch

Array = Any
"""An array of a backend's own library."""

ARRAY_FUNCTIONS: tuple[str, ...] = (
    # creation and type
    "asarray", "empty", "zeros", "ones", "full", "arange", "zeros_like", "ones_like", "astype",
    # element by element; a Python number may stand for one of two operands
    "abs", "add", "subtract", "multiply", "divide", "negative", "pow", "exp", "log", "log1p", "expm1", "sqrt",
    "square", "sign", "sin", "cos", "tanh", "floor", "ceil", "round", "maximum", "minimum", "clip", "where", "isfinite",
    "isinf", "isnan",
    "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or",
    "logical_not", "bitwise_and", "bitwise_xor", "bitwise_right_shift",
    # reductions and scans
    "sum", "prod", "mean", "var", "std", "max", "min", "any", "all", "argmax", "argmin", "cumulative_sum", "argsort",
    # shape
    "reshape", "broadcast_to", "permute_dims", "matrix_transpose", "squeeze", "expand_dims", "concat", "stack",
    "flip",
    # selection and products
    "take_along_axis", "matmul",
)  # fmt: skip
"""The Array-API functions that a backend must have: semantics and names of arguments are the standard's (2024.12).

Beyond the standard, sums are accurate: that of n floating-point numbers, over any axes, and each number of a running
sum, is within (20 + log2 n) * eps * sum(|x|) of the exact one, with eps of the result; `mean`, `var` and `std` rest on
such sums. Half floats are summed in float32. `AccurateSums` is for libraries whose own functions err by more.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """A place for tensors: the `type` is the prefix of a backend ("cpu", "cuda"), `index` counts its devices.

    The type may carry the index, as in "cuda:1". A device equals each of its names, and has the hash of `str(device)`:
    that is the name to look it up by. Raises ValueError for an index that is not a number >= 0.

    >>> Device("cuda:1") == Device("cuda", 1), str(Device("cuda")), str(Device("cpu"))
    (True, 'cuda:0', 'cpu')
    >>> Device("cuda") == "cuda" == Device("cuda:0"), Device("cuda") == "cpu"
    (True, False)
    """

    type: str
    index: int = 0

    def __post_init__(self) -> None:
        prefix, colon, number = self.type.partition(":")
        if not prefix or (colon and (self.index or not number.isdecimal())) or self.index < 0:
            given = f"{self.type!r} with the index {self.index}" if self.index else repr(self.type)
            raise ValueError(f"a device is a name like 'cpu', 'cuda' or 'cuda:0'; got {given}")
        if colon:
            object.__setattr__(self, "type", prefix)
            object.__setattr__(self, "index", int(number))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            try:
                other = Device(other)
            except ValueError:
                return False
        if not isinstance(other, Device):
            return NotImplemented
        return self.type == other.type and self.index == other.index

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return self.type if self.type == "cpu" else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        return f"Device('{self}')"


class Diagnosis(NamedTuple):
    """Whether a device can be used (`usable`), the state it is in, in one sentence, and the `fix` to type if not.

    `code` names the state for programs, as in "driver-too-old"; it stays the same where the words change.
    """

    usable: bool
    state: str
    fix: str = ""
    code: str = ""

    def __str__(self) -> str:
        return self.state if not self.fix else f"{self.state}; {self.fix}"


class MemoryStats(NamedTuple):
    """Bytes in use now, the most since the start (None where not counted), and held from the system by the pool."""

    current: int
    peak: int | None
    reserved: int


_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])
KERNELS: list[str] = []
"""The names of the kernels, in the order of their definition. A residual goes to the same backend's own backward."""


def kernel(function: _Kernel) -> _Kernel:
    """Mark a method of `Backend` as a kernel: optional, with this composed default."""
    KERNELS.append(function.__name__)
    return function


def in_float32(kernel: _Kernel, changes: tuple[int, ...] = ()) -> _Kernel:
    """The kernel with half floats computed in float32, by the backend's own, and rounded at the end.

    A residual stays in float32. `changes`: the positions of the arguments that it changes in place.
    """
    name = kernel.__name__

    @functools.wraps(kernel)
    def wide(self: Any, *arguments: Any, **options: Any) -> Any:
        first = arguments[0][0] if isinstance(arguments[0], (list, tuple)) else arguments[0]
        half = first.dtype
        if half not in self.half_dtypes:
            return kernel(self, *arguments, **options)
        given = _converted(self, arguments, half, self.single)
        results = getattr(self, name)(*given, **_converted(self, options, half, self.single))
        for i in changes:
            for array, value in zip(*map(_leaves, (arguments[i], given[i])), strict=True):
                self.setitem(array, ..., self.astype(value, half))
        if isinstance(results, tuple) and not name.endswith("_backward"):
            return self.astype(results[0], half), results[1]
        return _converted(self, results, self.single, half)

    return wide  # type: ignore[return-value]


def _converted(F: Any, x: Any, source: Any, target: Any) -> Any:
    """x, with the arrays of one dtype in it in another."""
    if isinstance(x, (tuple, list)):
        return type(x)([_converted(F, part, source, target) for part in x])
    if isinstance(x, dict):
        return {name: _converted(F, part, source, target) for name, part in x.items()}
    return F.astype(x, target) if hasattr(x, "shape") and x.dtype == source else x


def _leaves(x: Any) -> Sequence[Any]:
    return x if isinstance(x, (list, tuple)) else () if x is None else (x,)


class Activation(NamedTuple):
    """An elementwise activation in array functions: its value, and its VJP from what it `saves` ("x" or "out")."""

    forward: Callable[[Any, Array, float], Array]
    backward: Callable[[Any, Array, Array, float], Array]
    saves: str
    parameter: float = 0.0


def _sigmoid(F: Any, x: Array, _p: float) -> Array:
    decay = F.exp(F.negative(F.abs(x)))  # never above 1, so that nothing overflows
    return F.divide(F.where(F.greater_equal(x, 0), 1.0, decay), F.add(decay, 1.0))


def _softplus(F: Any, x: Array, _p: float) -> Array:
    return F.add(F.maximum(x, 0.0), F.log1p(F.exp(F.negative(F.abs(x)))))


_GELU_A, _GELU_B = math.sqrt(2 / math.pi), 0.044715


def _gelu_tanh(F: Any, x: Array) -> Array:
    return F.tanh(F.multiply(F.add(F.multiply(F.multiply(F.square(x), x), _GELU_B), x), _GELU_A))


def _gelu_backward(F: Any, g: Array, x: Array, _p: float) -> Array:
    t = _gelu_tanh(F, x)
    inner = F.multiply(F.add(F.multiply(F.square(x), 3 * _GELU_B), 1.0), _GELU_A)
    sech2 = F.subtract(1.0, F.square(t))
    slope = F.multiply(F.add(F.add(t, 1.0), F.multiply(F.multiply(x, sech2), inner)), 0.5)
    return F.multiply(g, slope)


def _silu_backward(F: Any, g: Array, x: Array, p: float) -> Array:
    s = F.sigmoid(x)
    return F.multiply(g, F.multiply(s, F.add(F.multiply(x, F.subtract(1.0, s)), 1.0)))


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(
        lambda F, x, p: F.maximum(x, 0.0), lambda F, g, out, p: F.where(F.equal(out, 0), 0.0, g), "out"
    ),
    "leaky_relu": Activation(
        lambda F, x, p: F.where(F.greater(x, 0), x, F.multiply(x, p)),
        lambda F, g, x, p: F.where(F.greater(x, 0), g, F.multiply(g, p)),
        "x",
        0.01,
    ),
    "elu": Activation(  # Clevert et al. 2015, "Fast and Accurate Deep Network Learning by ELUs", eq. 15
        lambda F, x, p: F.where(F.greater(x, 0), x, F.multiply(F.expm1(F.minimum(x, 0.0)), p)),
        lambda F, g, x, p: F.where(F.less_equal(x, 0), F.multiply(g, F.multiply(F.exp(F.minimum(x, 0.0)), p)), g),
        "x",
        1.0,
    ),
    "gelu": Activation(  # Hendrycks & Gimpel 2016, "Gaussian Error Linear Units", section 2: the tanh form
        lambda F, x, p: F.multiply(F.multiply(x, 0.5), F.add(_gelu_tanh(F, x), 1.0)), _gelu_backward, "x"
    ),
    "silu": Activation(lambda F, x, p: F.multiply(x, F.sigmoid(x)), _silu_backward, "x"),
    "sigmoid": Activation(
        _sigmoid, lambda F, g, out, p: F.multiply(F.multiply(g, out), F.subtract(1.0, out)), "out"
    ),
    "softplus": Activation(_softplus, lambda F, g, x, p: F.multiply(g, F.sigmoid(x)), "x"),
    "tanh": Activation(
        lambda F, x, p: F.tanh(x), lambda F, g, out, p: F.multiply(g, F.subtract(1.0, F.square(out))), "out"
    ),
}  # fmt: skip
"""The activations that `activate` and `linear` know, by name."""

_PHILOX_M = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_PHILOX_W = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_U64 = (1 << 64) - 1


def _words_of_host(key: int, counter: int, n: int) -> Any:
    """What `Backend.random_bits` gives, as a NumPy array."""
    from numpy.random import Philox  # in place of a library that cannot

    return Philox(key=key, counter=counter).random_raw(n)


class Backend(ABC):
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

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"backend {getattr(type(self), 'name', '')!r} has no function {name!r}")

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

    def set_num_threads(self, n: int) -> None:  # noqa: B027
        """Compute with n threads of the host from now on. The default, for a device elsewhere, does nothing."""

    def prepare(self) -> None:  # noqa: B027
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

    # ------------------------------------------------------------------ kernels: activations

    @kernel
    @in_float32
    def activate(self, x: Array, name: str, parameter: float) -> Array:
        """A new array: the activation `name` of every element. `parameter` is its slope or alpha, else ignored."""
        return ACTIVATIONS[name].forward(self, x, parameter)

    @kernel
    @in_float32
    def activate_backward(self, g: Array, saved: Array, name: str, parameter: float) -> Array:
        """A new array: the VJP of `activate`; `saved` is its input or its output, as `ACTIVATIONS[name].saves` says.

        Where `saved` is NaN, relu and elu pass g on, so that what has become NaN does not look like a dead unit.
        """
        return ACTIVATIONS[name].backward(self, g, saved, parameter)

    def sigmoid(self, x: Array) -> Array:
        """1 / (1 + exp(-x)) without overflow."""
        return self.activate(x, "sigmoid", 0.0)

    @kernel
    @in_float32
    def softmax(self, x: Array, axis: int) -> Array:
        """exp(x) / sum(exp(x)) along `axis`, of x less its maximum, so that nothing overflows."""
        e = self.exp(self.subtract(x, self.max(x, axis=axis, keepdims=True)))
        return self.divide(e, self.sum(e, axis=axis, keepdims=True))

    @kernel
    @in_float32
    def log_softmax(self, x: Array, axis: int) -> Array:
        """log(softmax(x)) along `axis`, finite for every finite x."""
        shifted = self.subtract(x, self.max(x, axis=axis, keepdims=True))
        return self.subtract(shifted, self.log(self.sum(self.exp(shifted), axis=axis, keepdims=True)))

    @kernel
    @in_float32
    def logsumexp(self, x: Array, axis: int | tuple[int, ...] | None, keepdims: bool) -> Array:
        """log(sum(exp(x))) over `axis`, of x less its maximum; -inf where all of x is, +inf where any is."""
        top = self.max(x, axis=axis, keepdims=True)
        top = self.where(self.isfinite(top), top, 0.0)
        total = self.sum(self.exp(self.subtract(x, top)), axis=axis, keepdims=True)
        tiny = self.equal(total, 0)  # the logarithm of 0 would warn
        out = self.add(self.where(tiny, -math.inf, self.log(self.where(tiny, 1.0, total))), top)
        if keepdims:
            return out
        return self.squeeze(out, axis=tuple(range(x.ndim)) if axis is None else axis)

    # ------------------------------------------------------------------ kernels: linear layers

    @kernel
    def gemm(self, a: Array, b: Array, out: Array, accumulate: bool = False) -> Array:
        """`out` = a @ b for 2-D arrays, or `out` += a @ b with `accumulate`; returns `out`, which neither overlaps."""
        product = self.matmul(a, b)
        out[...] = self.add(out, product) if accumulate else product
        return out

    @kernel
    def linear(
        self, x: Array, weight: Array, bias: Array | None, activation: str | None, parameter: float
    ) -> tuple[Array, Any]:
        """activation(x @ weight.T + bias) and a residual for `linear_backward`.

        x: (..., in), weight: (out, in), bias: (out,) or None; all of one dtype. The result: (..., out), new.
        """
        z = _affine(self, x, weight, bias)
        if activation is None:
            return z, None
        return self.activate(z, activation, parameter), z if ACTIVATIONS[activation].saves == "x" else None

    @kernel
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
        """The VJP of `linear` for x, weight and bias, each None where `needs` is false.

        A gradient with a buffer in `into` is written there and the buffer returned. `residual` None: recompute.
        g is not overwritten.
        """
        if activation is not None:
            if ACTIVATIONS[activation].saves == "out":
                saved = out
            else:
                saved = residual if residual is not None else _affine(self, x, weight, bias)
            g = self.activate_backward(g, saved, activation, parameter)
        rows = self.reshape(g, (-1, weight.shape[0])) if g.ndim != 2 else g
        need_x, need_weight, need_bias = needs
        gx = gw = gb = None
        if need_x:
            gx = self.matmul(g, weight)
            if into[0] is not None:
                into[0][...] = gx
                gx = into[0]
        if need_weight:
            columns = self.reshape(x, (-1, weight.shape[1])) if x.ndim != 2 else x
            if into[1] is not None:
                gw = self.gemm(self.matrix_transpose(rows), columns, into[1])
            else:
                gw = self.matmul(self.matrix_transpose(rows), columns)
        if need_bias:
            gb = self.sum(rows, axis=0)
            if into[2] is not None:
                into[2][...] = gb
                gb = into[2]
        return gx, gw, gb

    @kernel
    @in_float32
    def layer_norm(
        self, x: Array, weight: Array | None, bias: Array | None, axes: tuple[int, ...], epsilon: float
    ) -> tuple[Array, Any]:
        """(x - mean) / sqrt(var + epsilon) over the trailing `axes`, times weight plus bias; and a residual.

        weight and bias have the shape of those axes, or are None. The residual shares no memory with the result.
        Ba et al. 2016, "Layer Normalization", eq. 4.
        """
        normal, scale = _normalise(self, x, axes, epsilon)
        out = self.copy(normal) if weight is None else self.multiply(normal, weight)
        return (out if bias is None else self.add(out, bias)), (normal, scale)

    @kernel
    @in_float32
    def layer_norm_backward(
        self,
        g: Array,
        x: Array,
        weight: Array | None,
        axes: tuple[int, ...],
        epsilon: float,
        residual: Any,
        needs: Sequence[bool],
    ) -> tuple[Array | None, Array | None, Array | None]:
        """The VJP of `layer_norm` for x, weight and bias, each None where `needs` is false."""
        normal, scale = residual if residual is not None else _normalise(self, x, axes, epsilon)
        need_x, need_weight, need_bias = needs
        leading = tuple(range(x.ndim - len(axes)))
        gx = gw = gb = None
        if need_x:
            gn = g if weight is None else self.multiply(g, weight)
            mean_g = self.mean(gn, axis=axes, keepdims=True)
            mean_gn = self.mean(self.multiply(gn, normal), axis=axes, keepdims=True)
            gx = self.multiply(self.subtract(self.subtract(gn, mean_g), self.multiply(normal, mean_gn)), scale)
        if need_weight:
            gw = self.multiply(g, normal)
            gw = self.sum(gw, axis=leading) if leading else gw
        if need_bias:
            gb = self.sum(g, axis=leading) if leading else g
        return gx, gw, gb

    # ------------------------------------------------------------------ kernels: losses

    @kernel
    def one_hot(self, labels: Array, classes: int, dtype: Any) -> Array:
        """1 at each label and 0 elsewhere, (..., classes), in `dtype`; labels are integers in [0, classes)."""
        i64 = self.dtypes["int64"]  # a narrow dtype may not hold all classes
        labels = self.astype(labels, i64, copy=False)
        hot = self.equal(self.expand_dims(labels, axis=-1), self.arange(classes, dtype=i64))
        return self.astype(hot, dtype)

    @kernel
    @in_float32
    def softmax_cross_entropy(self, logits: Array, target: Array, reduction: str) -> tuple[Array, Any]:
        """-sum(target * log_softmax(logits)) along the last axis, reduced over rows; and a residual.

        logits: (N, C). target: N integers in [0, C), or weights (N, C) in the dtype of the logits.
        The result: () for the reductions "mean" (over N) and "sum", (N,) for "none".
        """
        logp = self.log_softmax(logits, axis=-1)
        if target.ndim == 2:
            terms = self.multiply(target, logp)
        else:  # a selection, not a product: another class may have the log-probability -inf
            terms = self.where(self.one_hot(target, logits.shape[1], self.dtypes["bool"]), logp, 0.0)
        losses = self.negative(self.sum(terms, axis=-1))
        return _reduce(self, losses, reduction), None

    @kernel
    @in_float32
    def softmax_cross_entropy_backward(
        self, g: Array, logits: Array, target: Array, reduction: str, residual: Any, needs: Sequence[bool]
    ) -> tuple[Array | None, Array | None]:
        """The VJP of `softmax_cross_entropy` for logits and target, each None where `needs` is false."""
        if reduction == "mean":
            g = self.divide(g, float(logits.shape[0]))
        g = self.reshape(g, (-1, 1))
        need_logits, need_target = needs
        gl = gt = None
        if need_logits:
            p = self.softmax(logits, axis=-1)
            if target.ndim == 2:
                p = self.subtract(self.multiply(p, self.sum(target, axis=-1, keepdims=True)), target)
            else:
                p = self.subtract(p, self.one_hot(target, logits.shape[1], logits.dtype))
            gl = self.multiply(p, g)
        if need_target:
            gt = self.multiply(self.negative(self.log_softmax(logits, axis=-1)), g)
        return gl, gt

    @kernel
    @in_float32
    def squared_error(self, x: Array, target: Array, reduction: str) -> tuple[Array, Any]:
        """(x - target)^2, reduced over all elements ("mean", "sum") or not ("none"); and a residual. Equal shapes."""
        difference = self.subtract(x, target)
        return _reduce(self, self.square(difference), reduction), difference

    @kernel
    @in_float32
    def squared_error_backward(
        self, g: Array, x: Array, target: Array, reduction: str, residual: Any, needs: Sequence[bool]
    ) -> tuple[Array | None, Array | None]:
        """The VJP of `squared_error` for x and target, each None where `needs` is false."""
        difference = residual if residual is not None else self.subtract(x, target)
        factor = 2.0 / max(math.prod(x.shape), 1) if reduction == "mean" else 2.0
        gx = self.multiply(difference, self.multiply(g, factor))
        return gx if needs[0] else None, self.negative(gx) if needs[1] else None

    # ------------------------------------------------------------------ kernels: randomness

    @kernel
    def random_bits(self, key: int, counter: int, n: int) -> Array:
        """n uint64 values: the stream of `numpy.random.Philox(key=key, counter=counter)`, bit for bit.

        Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3": Philox4x64-10. Value i is lane i % 4 of
        the block of counter + 1 + i // 4; key has 128 bits and counter 256. Without `uint64_works`, the default has
        them made by NumPy on the host.
        """
        if not self.uint64_works:
            return self.from_host(_words_of_host(key, counter, n))
        blocks = (n + 3) // 4
        u64 = self.dtypes["uint64"]

        def constant(value: int) -> Array:
            return self.full((), value & _U64, dtype=u64)

        low_mask, half = constant(0xFFFFFFFF), constant(32)

        def multiply_high_low(a: Array, m: int) -> tuple[Array, Array]:
            a0, a1 = self.bitwise_and(a, low_mask), self.bitwise_right_shift(a, half)
            m0, m1 = constant(m & 0xFFFFFFFF), constant(m >> 32)
            middle = self.add(self.multiply(a1, m0), self.bitwise_right_shift(self.multiply(a0, m0), half))
            other = self.add(self.multiply(a0, m1), self.bitwise_and(middle, low_mask))
            high = self.add(self.multiply(a1, m1), self.bitwise_right_shift(middle, half))
            return self.add(high, self.bitwise_right_shift(other, half)), self.multiply(a, constant(m))

        start = counter + 1
        words = [constant(start >> (64 * i)) for i in range(4)]
        steps = self.arange(blocks, dtype=u64)
        c = [self.add(words[0], steps)]
        carry = self.astype(self.less(c[0], words[0]), u64)
        for word in words[1:]:
            c.append(self.add(word, carry))
            carry = self.astype(self.less(c[-1], word), u64)
        for r in range(10):
            k0, k1 = constant(key + r * _PHILOX_W[0]), constant((key >> 64) + r * _PHILOX_W[1])
            high0, low0 = multiply_high_low(c[0], _PHILOX_M[0])
            high1, low1 = multiply_high_low(c[2], _PHILOX_M[1])
            c = [
                self.bitwise_xor(self.bitwise_xor(high1, c[1]), k0), low1,
                self.bitwise_xor(self.bitwise_xor(high0, c[3]), k1), low0,
            ]  # fmt: skip
        return self.reshape(self.stack(c, axis=-1), (-1,))[:n]

    @kernel
    def dropout(self, x: Array, p: float, key: int, counter: int) -> tuple[Array, Any]:
        """x / (1 - p) where kept and 0 where dropped, with probability p in [0, 1); and a residual, the mask.

        Element i (in C order) is kept where the 32-bit half i % 2 (the low one first) of word i // 2 of
        `random_bits` is at least p * 2^32. Srivastava et al. 2014, "Dropout", scaled while training. Without
        `uint64_works`, the default has the mask made by NumPy on the host.
        """
        n = math.prod(x.shape)
        if not self.uint64_works:
            host = _words_of_host(key, counter, (n + 1) // 2).astype("<u8", copy=False).view("<u4")[:n]
            mask = self.from_host((host >= dropout_threshold(p)).reshape(x.shape))
            return self.dropout_backward(x, mask, p), mask
        words = self.random_bits(key, counter, (n + 1) // 2)
        u64 = self.dtypes["uint64"]
        low = self.bitwise_and(words, self.full((), 0xFFFFFFFF, dtype=u64))
        high = self.bitwise_right_shift(words, self.full((), 32, dtype=u64))
        halves = self.reshape(self.stack([low, high], axis=-1), (-1,))[:n]
        keep = self.greater_equal(halves, self.full((), dropout_threshold(p), dtype=u64))
        mask = self.reshape(keep, x.shape)
        return self.dropout_backward(x, mask, p), mask

    @kernel
    @in_float32
    def dropout_backward(self, g: Array, mask: Array, p: float) -> Array:
        """g / (1 - p) where the mask is true, else 0, as a new array."""
        return self.where(mask, self.multiply(g, 1.0 / (1.0 - p)), 0.0)

    def dropout_factors(self, like: Any, p: float, key: int, counter: int) -> Array:
        """What `dropout` multiplies an array of the shape and dtype of `like` by: 0 or 1 / (1 - p).

        In float32 for half floats, since 1 / (1 - p) may be beyond them.
        """
        dtype = self.single if like.dtype in self.half_dtypes else like.dtype
        return self.dropout(self.ones(like.shape, dtype=dtype), p, key, counter)[0]

    # ------------------------------------------------------------------ kernels: scatter

    @kernel
    def scatter_add(self, values: Array, key: Any, shape: tuple[int, ...], into: Array | None = None) -> Array:
        """Zeros of `shape` with `values` added at `[key]`, each as often as the key names it: the VJP of indexing.

        key: what `x[key]` takes: integers, slices, None, Ellipsis, integer arrays, or one boolean array. `into`: an
        array of that shape, which is added to instead of zeros, and returned. The default makes a matrix of the hits
        by the size for integer arrays: fit for small arrays only.
        """
        basic = not any(hasattr(k, "shape") for k in (key if isinstance(key, tuple) else (key,)))
        if into is not None:
            old = self.getitem(into, key) if basic else into
            more = values if basic else self.scatter_add(values, key, shape)
            self.setitem(into, key if basic else ..., self.add(old, more))
            return into
        if basic:
            out = self.zeros(shape, dtype=values.dtype)
            self.setitem(out, key, values)
            return out
        if values.dtype in self.half_dtypes:
            return self.astype(self.scatter_add(self.astype(values, self.single), key, shape), values.dtype)
        size = math.prod(shape)
        positions = self.getitem(self.reshape(self.arange(size, dtype=self.dtypes["int64"]), shape), key)
        values = self.broadcast_to(values, positions.shape)
        hits = self.one_hot(self.reshape(positions, (-1,)), size, values.dtype)
        return self.reshape(self.matmul(self.reshape(values, (-1,)), hits), shape)

    @kernel
    def scatter_add_along_axis(self, values: Array, indices: Array, shape: tuple[int, ...], axis: int) -> Array:
        """Zeros of `shape` with `values` added at `indices` along `axis`: the VJP of `take_along_axis`."""
        key: list[Array] = []
        for i, n in enumerate(values.shape):
            steps = self.arange(n, dtype=self.dtypes["int64"])  # the indices' own may not hold all steps
            key.append(self.reshape(steps, tuple(n if j == i else 1 for j in range(values.ndim))))
        key[axis] = indices
        return self.scatter_add(values, tuple(key), shape)

    # ------------------------------------------------------------------ kernels: optimizers, all in place

    @kernel
    @functools.partial(in_float32, changes=(0, 2))
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
        """A step of SGD on flat arrays: `parameter` and `velocity` change, `gradient` does not.

        PyTorch's SGD: d = g + weight_decay * p; v = d at the `first` step, else momentum * v + (1 - dampening) * d;
        p -= lr * (d + momentum * v if nesterov else v). `velocity` is None where momentum is 0.
        """
        d = gradient
        if weight_decay:
            d = self.add(d, self.multiply(parameter, weight_decay))
        if velocity is not None:
            if first:
                velocity[...] = d
            else:
                velocity[...] = self.add(self.multiply(velocity, momentum), self.multiply(d, 1.0 - dampening))
            d = self.add(d, self.multiply(velocity, momentum)) if nesterov else velocity
        parameter[...] = self.subtract(parameter, self.multiply(d, lr))

    @kernel
    @functools.partial(in_float32, changes=(0, 2, 3))
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
        """A step of Adam, or of AdamW with `decoupled`, on flat arrays: all but `gradient` change. step: 1, 2, ...

        Kingma & Ba 2015, "Adam", algorithm 1, with epsilon as in PyTorch, outside the corrected root; Loshchilov &
        Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
        """
        if weight_decay and decoupled:
            parameter[...] = self.multiply(parameter, 1.0 - lr * weight_decay)
        elif weight_decay:
            gradient = self.add(gradient, self.multiply(parameter, weight_decay))
        mean[...] = self.add(self.multiply(mean, beta1), self.multiply(gradient, 1.0 - beta1))
        square[...] = self.add(self.multiply(square, beta2), self.multiply(self.square(gradient), 1.0 - beta2))
        root = self.multiply(self.sqrt(square), 1.0 / math.sqrt(1.0 - beta2**step))
        update = self.divide(self.multiply(mean, lr / (1.0 - beta1**step)), self.add(root, epsilon))
        parameter[...] = self.subtract(parameter, update)

    @kernel
    @functools.partial(in_float32, changes=(0, 2, 3, 4))
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
        """A step of RMSprop on flat arrays: all but `gradient` change.

        Tieleman & Hinton 2012, lecture 6.5; centred where `mean` is given (Graves 2013, "Generating Sequences",
        eq. 38-41), with a momentum where `velocity` is; epsilon outside the root, as in PyTorch. Where rounding makes
        the centred mean square negative, it is 0.
        """
        if weight_decay:
            gradient = self.add(gradient, self.multiply(parameter, weight_decay))
        square[...] = self.add(self.multiply(square, alpha), self.multiply(self.square(gradient), 1.0 - alpha))
        average = square
        if mean is not None:
            mean[...] = self.add(self.multiply(mean, alpha), self.multiply(gradient, 1.0 - alpha))
            average = self.maximum(self.subtract(square, self.square(mean)), 0.0)  # which rounding may miss
        update = self.divide(gradient, self.add(self.sqrt(average), epsilon))
        if velocity is not None:
            velocity[...] = self.add(self.multiply(velocity, momentum), update)
            update = velocity
        parameter[...] = self.subtract(parameter, self.multiply(update, lr))

    @kernel
    @functools.partial(in_float32, changes=(0,))
    def clip_global_norm(self, gradients: Sequence[Array], max_norm: float) -> Array:
        """Scale the arrays in place by min(1, max_norm / (norm + 1e-6)); returns their 2-norm before that, 0-d.

        The norm stays on the device: nothing waits for it. Pascanu et al. 2013, "On the difficulty of training
        recurrent neural networks", algorithm 1.
        """
        total = self.sum(self.square(gradients[0]))
        for gradient in gradients[1:]:
            total = self.add(total, self.sum(self.square(gradient)))
        norm = self.sqrt(total)
        factor = self.minimum(self.divide(max_norm, self.add(norm, 1e-6)), 1.0)
        for gradient in gradients:
            gradient[...] = self.multiply(gradient, self.astype(factor, gradient.dtype, copy=False))
        return self.astype(norm, gradients[0].dtype, copy=False)


class AccurateSums(Backend):
    """A backend whose library's own sums err by more than the contract allows: inherit from it in place of `Backend`.

    Defines `sum`, `mean`, `var`, `std` and `cumulative_sum` in other array functions. The library sums at most 32
    numbers at a time, by `own_sum`, and makes running sums by `own_cumulative_sum`: the functions of the namespace,
    unless the class defines them. Running sums need float64.
    """

    own_sum: Callable[..., Array]
    own_cumulative_sum: Callable[..., Array]

    def __init__(self, namespace: Any, index: int = 0) -> None:
        for name in ("sum", "cumulative_sum"):
            if not hasattr(type(self), f"own_{name}"):
                setattr(self, f"own_{name}", getattr(namespace, name))
        super().__init__(namespace, index)

    def sum(self, x: Array, /, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        """The sum over `axis`: of 32 numbers each, then of 8 of those sums each, until one is left."""
        if x.dtype in self.half_dtypes:
            return self.astype(self.sum(self._widened(x), axis=axis, keepdims=keepdims), x.dtype)
        axes = axes_of(axis, x.ndim)
        n, step = math.prod(x.shape[a] for a in axes), 32
        if n <= step or 0 in x.shape or self.dtype_name(x.dtype) not in ("float32", "float64"):
            return self.own_sum(x, axis=axis, keepdims=keepdims)
        kept = tuple(a for a in range(x.ndim) if a not in axes)
        rows = self.reshape(self.permute_dims(x, axes + kept), (n, -1))
        while n > step:
            whole = n - n % step
            parts = [self.own_sum(self.reshape(rows[:whole, :], (whole // step, step, -1)), axis=1)]
            if whole < n:
                parts.append(self.own_sum(rows[whole:, :], axis=0, keepdims=True))
            rows = self.concat(parts, axis=0)
            n, step = rows.shape[0], 8
        shape = tuple(1 if a in axes else m for a, m in enumerate(x.shape) if keepdims or a not in axes)
        return self.reshape(self.own_sum(rows, axis=0), shape)

    def mean(self, x: Array, /, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        """The sum over `axis` divided by the number of its terms."""
        n = math.prod(x.shape[a] for a in axes_of(axis, x.ndim))
        total = self.sum(self._widened(x), axis=axis, keepdims=keepdims)
        return self.astype(self.divide(total, float(n)), x.dtype, copy=False)

    def var(
        self, x: Array, /, *, axis: int | tuple[int, ...] | None = None, correction: float = 0.0, keepdims: bool = False
    ) -> Array:
        """The mean of the squared deviations from the mean, divided by their number less `correction`."""
        return self.astype(self._variance(x, axis, correction, keepdims), x.dtype, copy=False)

    def std(
        self, x: Array, /, *, axis: int | tuple[int, ...] | None = None, correction: float = 0.0, keepdims: bool = False
    ) -> Array:
        """The square root of the variance."""
        return self.astype(self.sqrt(self._variance(x, axis, correction, keepdims)), x.dtype, copy=False)

    def cumulative_sum(self, x: Array, /, *, axis: int | None = None) -> Array:
        """The running sum along `axis`: in float64; that of float64 with the running sum of its own errors added."""
        if x.dtype in self.half_dtypes:
            return self.astype(self.cumulative_sum(self._widened(x), axis=axis), x.dtype)
        name = self.dtype_name(x.dtype)
        if name == "float32":
            wide = self.astype(x, self.dtypes["float64"])
            return self.astype(self.own_cumulative_sum(wide, axis=axis), x.dtype)
        sums = self.own_cumulative_sum(x, axis=axis)
        if name != "float64" or 0 in x.shape:
            return sums
        (along,) = axes_of(axis, x.ndim)
        start = tuple(1 if a == along else n for a, n in enumerate(x.shape))
        but_last = sums[tuple(slice(n - 1 if a == along else n) for a, n in enumerate(x.shape))]
        before = self.concat([self.zeros(start, dtype=x.dtype), but_last], axis=along)
        step = self.subtract(sums, before)  # with what it loses, as in Knuth 1997, volume 2, section 4.2.2, theorem B
        back = self.subtract(step, sums)
        lost = self.subtract(self.subtract(sums, self.subtract(step, back)), self.add(before, back))
        missing = self.subtract(self.subtract(x, step), lost)
        missing = self.where(self.isfinite(missing), missing, 0.0)  # of infinite sums
        return self.add(sums, self.own_cumulative_sum(missing, axis=axis))

    def _widened(self, x: Array) -> Array:
        return self.astype(x, self.single) if x.dtype in self.half_dtypes else x

    def _variance(self, x: Array, axis: int | tuple[int, ...] | None, correction: float, keepdims: bool) -> Array:
        x = self._widened(x)
        n = math.prod(x.shape[a] for a in axes_of(axis, x.ndim))
        squares = self.square(self.subtract(x, self.mean(x, axis=axis, keepdims=True)))
        return self.divide(self.sum(squares, axis=axis, keepdims=keepdims), max(n - correction, 0.0))


class Event:
    """A point in the stream of work of a device that runs in step with the host: the time at `record`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.time: float | None = None

    def record(self) -> None:
        """Mark this point."""
        import time

        self.backend.synchronize()
        self.time = time.perf_counter()

    def seconds_since(self, earlier: Event) -> float:
        """Seconds between `earlier` and this event; RuntimeError where one was not recorded."""
        if self.time is None or earlier.time is None:
            raise RuntimeError("both events must be recorded before the time between them is asked for")
        return self.time - earlier.time


def _affine(F: Any, x: Array, weight: Array, bias: Array | None) -> Array:
    z = F.matmul(x, F.matrix_transpose(weight))
    return z if bias is None else F.add(z, bias)


def _normalise(F: Any, x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array]:
    centred = F.subtract(x, F.mean(x, axis=axes, keepdims=True))
    variance = F.mean(F.square(centred), axis=axes, keepdims=True)
    scale = F.divide(1.0, F.sqrt(F.add(variance, epsilon)))
    return F.multiply(centred, scale), scale


def axes_of(axis: int | tuple[int, ...] | None, ndim: int) -> tuple[int, ...]:
    """The axes that `axis` stands for, each in [0, ndim). IndexError where there is no such axis."""
    axes = range(ndim)
    return tuple(axes) if axis is None else tuple(axes[a] for a in (axis if isinstance(axis, tuple) else (axis,)))


def _reduce(F: Any, losses: Array, reduction: str) -> Array:
    if reduction == "none":
        return losses
    return F.mean(losses) if reduction == "mean" else F.sum(losses)


def dropout_threshold(p: float) -> int:
    """The least 32-bit value that is kept in a dropout of probability p in [0, 1)."""
    return min(round(p * 2**32), 2**32 - 1)
