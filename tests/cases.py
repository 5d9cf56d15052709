"""The operations under test, as data: each with gradflow's expression, PyTorch's, and inputs.

A case is used by several tests: the value and both derivatives against PyTorch and against central differences, the
dtype of everything, memory layouts, devices. `covers` names the functions of `FUNCTIONS` that the case is about.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import gradflow as gf
from gradflow.ops import creation, exchange
from gradflow.ops.network import perceptron

NONDIFFERENTIABLE = {
    *creation.__all__, *exchange.__all__, "all", "allclose", "any", "argmax", "argmin", "argsort", "equal", "greater",
    "greater_equal", "isclose", "isfinite", "isinf", "isnan", "less", "less_equal", "logical_and", "logical_not",
    "logical_or", "logical_xor", "not_equal", "unique_counts", "unique_inverse", "unique_values",
}  # fmt: skip
"""The public operations whose results do not require grad."""

FUNCTIONS = sorted({*gf.ops.__all__, "getitem"} - NONDIFFERENTIABLE)
"""Every differentiable function that gradflow promises; "getitem" is basic and integer-array indexing."""


@dataclass(frozen=True, eq=False)
class Case:
    """`call(*tensors)` and `torch(T, *tensors)`, each a tensor or a list of tensors, of `inputs`.

    Floating inputs need a gradient unless their index is in `constant`. `smooth` False: the inputs lie on a kink or an
    edge, where central differences mean nothing. `half` False: not for float16. `dtype`: that of the result where it
    is not the inputs'. `torch` None: PyTorch has no such function (`reference` says what is compared instead).
    """

    name: str
    call: Callable[..., Any]
    torch: Callable[..., Any] | None
    inputs: tuple[np.ndarray, ...]
    covers: tuple[str, ...]
    constant: tuple[int, ...] = ()
    smooth: bool = True
    half: bool = True
    dtype: str | None = None

    def __str__(self) -> str:
        return self.name

    def differentiable(self) -> list[int]:
        """The indices of the inputs that need a gradient."""
        return [i for i, x in enumerate(self.inputs) if x.dtype.kind == "f" and i not in self.constant]


CASES: list[Case] = []


def case(name: str, call: Any, torch: Any, *inputs: np.ndarray, covers: str = "", **options: Any) -> None:
    """Add a case; it covers the function that its name begins with, unless `covers` says otherwise."""
    names = tuple((covers or name.split()[0]).split())
    CASES.append(Case(name, call, torch, inputs, names, **options))


_serial = itertools.count()


def normal(*shape: int, away: float = 0.0) -> np.ndarray:
    """Normal numbers, different for each case; with `away`, at least that far from 0."""
    rng = np.random.default_rng(zlib.crc32(f"{next(_serial)} {shape}".encode()))
    x = rng.normal(size=shape)
    return np.asarray(x + np.copysign(away, x))


def positive(*shape: int) -> np.ndarray:
    """Numbers in about [0.3, 2.5]."""
    return np.asarray(0.3 + 2.2 / (1 + np.exp(-normal(*shape))))


def distinct(*shape: int) -> np.ndarray:
    """Numbers in random order, no two of which are close to each other."""
    rng = np.random.default_rng(next(_serial))
    return np.asarray(rng.permutation(math.prod(shape)).reshape(shape) * 0.37 - 1.9)


def labels(classes: int, *shape: int) -> np.ndarray:
    """Integers in [0, classes)."""
    return np.random.default_rng(next(_serial)).integers(0, classes, shape)


def probabilities(*shape: int) -> np.ndarray:
    """Positive rows that sum to 1 along axis 1 (axis 0 where there is no other)."""
    x = positive(*shape)
    return x / x.sum(axis=min(1, x.ndim - 1), keepdims=True)


# ---------------------------------------------------------------------- element by element, two operands


def torch_quantile(T: Any, x: Any, q: float, axis: Any) -> Any:
    """PyTorch's quantile, which takes one axis or none."""
    if isinstance(axis, tuple):
        x, axis = T.movedim(x, axis, tuple(range(-len(axis), 0))).flatten(-len(axis)), -1
    return T.quantile(x, q, axis)


def torch_put(T: Any, x: Any, index: Any, values: Any) -> Any:
    """What `x.at[index].set(values)` returns."""
    out = x.clone()
    out[index] = values
    return out


SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "same shape": ((2, 3), (2, 3)),
    "row": ((2, 3), (3,)),
    "column": ((2, 1), (2, 3)),
    "both ways": ((4, 1, 3), (2, 1)),
    "0-d with 2-d": ((), (2, 3)),
    "0-d": ((), ()),
    "no elements": ((0, 3), (1, 3)),
    "one with none": ((1,), (0,)),
}

_BINARY: dict[str, tuple[Any, Any, str]] = {
    "add": (gf.add, lambda T: T.add, "any"),
    "subtract": (gf.subtract, lambda T: T.subtract, "any"),
    "multiply": (gf.multiply, lambda T: T.multiply, "any"),
    "divide": (gf.divide, lambda T: T.divide, "positive"),
    "power": (gf.power, lambda T: T.pow, "positive"),
    "maximum": (gf.maximum, lambda T: T.maximum, "apart"),
    "minimum": (gf.minimum, lambda T: T.minimum, "apart"),
    "atan2": (gf.atan2, lambda T: T.atan2, "any"),
    "logaddexp": (gf.logaddexp, lambda T: T.logaddexp, "any"),
    "floor_divide": (gf.floor_divide, lambda T: lambda a, b: T.div(a, b, rounding_mode="floor"), "positive"),
    "remainder": (gf.remainder, lambda T: T.remainder, "positive"),
}


def _operand(kind: str, shape: tuple[int, ...], second: bool) -> np.ndarray:
    if kind == "positive":
        return positive(*shape)
    if kind == "apart":  # no element of one within 0.1 of one of the other
        return np.asarray(distinct(*shape) + (0.15 if second else 0.0))
    return normal(*shape)


_FURTHER_BINARY = ("atan2", "logaddexp", "floor_divide", "remainder")
"""What broadcasts as the others do: a few shapes show it."""


def _binary(name: str, function: Any, in_torch: Any, kind: str) -> None:
    def torch_call(T: Any, a: Any, b: Any) -> Any:
        return in_torch(T)(a, b)

    for what in ("both ways", "0-d", "no elements") if name in _FURTHER_BINARY else SHAPES:
        a, b = SHAPES[what]
        case(f"{name} {what}", function, torch_call, _operand(kind, a, False), _operand(kind, b, True))


for _name, _entry in _BINARY.items():
    _binary(_name, *_entry)

case("add a tensor to itself", lambda x: x + x, lambda T, x: x + x, normal(2, 3))
case("subtract a tensor from itself", lambda x: x - x, lambda T, x: x - x, normal(2, 3))
case("multiply a tensor by itself", lambda x: x * x, lambda T, x: x * x, normal(2, 3))
case("multiply a tensor by its row", lambda x: x * x[0], lambda T, x: x * x[0], normal(2, 3))
case("divide a tensor by itself", lambda x: x / x, lambda T, x: x / x, positive(2, 3))
case("power of a tensor to itself", lambda x: x**x, lambda T, x: x**x, positive(2, 3))
case("maximum of a tensor and itself", lambda x: gf.maximum(x, x), lambda T, x: T.maximum(x, x), normal(2, 3))
case("minimum of a tensor and itself", lambda x: gf.minimum(x, x), lambda T, x: T.minimum(x, x), normal(2, 3))
for _name in ("maximum", "minimum"):
    case(
        f"{_name} with ties, shared equally", getattr(gf, _name), lambda T, a, b, n=_name: getattr(T, n)(a, b),
        np.array([1.0, 2.0, 3.0, 3.0]), np.array([1.0, 3.0, 2.0, 3.0]), smooth=False,
    )  # fmt: skip
    case(
        f"{_name} with a number", lambda x, n=_name: getattr(gf, n)(x, 0.25),
        lambda T, x, n=_name: getattr(T, n)(x, T.full_like(x, 0.25)), np.array([0.5, -0.5, 0.75]),
    )  # fmt: skip
case("add a number", lambda x: 2 + (x + 1.5), lambda T, x: 2 + (x + 1.5), normal(3))
case("subtract from a number", lambda x: 2.5 - (x - 1), lambda T, x: 2.5 - (x - 1), normal(3))
case("multiply by a number", lambda x: 2 * (x * -1.5), lambda T, x: 2 * (x * -1.5), normal(3))
case("divide a number", lambda x: 1.7 / (x / 3), lambda T, x: 1.7 / (x / 3), positive(3))
case("power of a number", lambda x: 2.1**x, lambda T, x: 2.1**x, normal(2, 3))
case("power of 1", lambda x: 1**x, lambda T, x: 1**x, normal(3))
for _exponent in (0, 1, 2, 3, -1, 0.5, -1.5, 2.5):
    case(f"power {_exponent}", lambda x, e=_exponent: x**e, lambda T, x, e=_exponent: x**e, positive(2, 3))
for _exponent in (1, 2, 3):
    case(
        f"power {_exponent} of zero and negative numbers", lambda x, e=_exponent: x**e,
        lambda T, x, e=_exponent: x**e, np.array([0.0, -1.5, 2.0]),
    )  # fmt: skip
case("power 0 of zero", lambda x: x**0, lambda T, x: x**0, np.array([0.0, -1.5, 2.0]))
case("power to the zero", gf.power, lambda T, a, b: T.exp(b * T.log(a)), positive(3), np.zeros(3))
case("power by a constant tensor", gf.power, lambda T, a, b: T.pow(a, b), np.array([-2.0, 2.0, 1.5]),
     np.array([2.0, 3.0, -1.0]), constant=(1,))  # fmt: skip

# ---------------------------------------------------------------------- element by element, one operand

_UNARY: dict[str, tuple[Any, Callable[..., np.ndarray]]] = {
    "negative": (lambda T: T.negative, normal),
    "exp": (lambda T: T.exp, normal),
    "log": (lambda T: T.log, positive),
    "log1p": (lambda T: T.log1p, positive),
    "expm1": (lambda T: T.expm1, normal),
    "sqrt": (lambda T: T.sqrt, positive),
    "square": (lambda T: T.square, normal),
    "abs": (lambda T: T.abs, lambda *s: normal(*s, away=0.1)),
    "sign": (lambda T: T.sign, lambda *s: normal(*s, away=0.1)),
    "log2": (lambda T: T.log2, positive),
    "log10": (lambda T: T.log10, positive),
    "exp2": (lambda T: T.exp2, normal),
    "tan": (lambda T: T.tan, lambda *s: np.tanh(normal(*s))),
    "asin": (lambda T: T.asin, lambda *s: np.tanh(normal(*s)) * 0.9),
    "acos": (lambda T: T.acos, lambda *s: np.tanh(normal(*s)) * 0.9),
    "atan": (lambda T: T.atan, normal),
    "sinh": (lambda T: T.sinh, normal),
    "cosh": (lambda T: T.cosh, normal),
    "erf": (lambda T: T.erf, normal),
    "trunc": (lambda T: T.trunc, distinct),
    "floor": (lambda T: T.floor, distinct),
    "ceil": (lambda T: T.ceil, distinct),
    "round": (lambda T: T.round, distinct),
    "sin": (lambda T: T.sin, normal),
    "cos": (lambda T: T.cos, normal),
    "tanh": (lambda T: T.tanh, normal),
    "sigmoid": (lambda T: T.sigmoid, normal),
    "relu": (lambda T: T.relu, lambda *s: normal(*s, away=0.1)),
    "leaky_relu": (lambda T: T.nn.functional.leaky_relu, lambda *s: normal(*s, away=0.1)),
    "elu": (lambda T: T.nn.functional.elu, lambda *s: normal(*s, away=0.1)),
    "gelu": (lambda T: lambda x: T.nn.functional.gelu(x, approximate="tanh"), normal),
    "silu": (lambda T: T.nn.functional.silu, normal),
    "softplus": (lambda T: T.nn.functional.softplus, normal),
    "selu": (lambda T: T.nn.functional.selu, lambda *s: normal(*s, away=0.1)),
    "mish": (lambda T: T.nn.functional.mish, normal),
    "softsign": (lambda T: T.nn.functional.softsign, lambda *s: normal(*s, away=0.1)),
    "hardtanh": (lambda T: T.nn.functional.hardtanh, distinct),
}


_FURTHER_UNARY = ("log2", "log10", "exp2", "tan", "asin", "acos", "atan", "sinh", "cosh", "erf", "trunc", "selu",
                  "mish", "softsign", "hardtanh")  # fmt: skip


def _unary(name: str, in_torch: Any, make: Any) -> None:
    shapes: dict[str, tuple[int, ...]] = {"2-d": (2, 5), "0-d": (), "no elements": (0, 2)}
    for what, shape in ({"2-d": (2, 5)} if name in _FURTHER_UNARY else shapes).items():
        case(f"{name} {what}", getattr(gf, name), lambda T, x: in_torch(T)(x), make(*shape))


for _name, _pair in _UNARY.items():
    _unary(_name, *_pair)

for _name in ("abs", "sign", "relu"):
    case(f"{_name} at zero", getattr(gf, _name), lambda T, x, n=_name: getattr(T, n)(x), np.zeros(3), smooth=False)
case("leaky_relu with a slope", lambda x: gf.leaky_relu(x, 0.2), lambda T, x: T.nn.functional.leaky_relu(x, 0.2),
     normal(4, away=0.1))  # fmt: skip
case("elu with alpha", lambda x: gf.elu(x, 0.7), lambda T, x: T.nn.functional.elu(x, 0.7), normal(4, away=0.1))
case("hardtanh with limits", lambda x: gf.hardtanh(x, -0.5, 2), lambda T, x: T.nn.functional.hardtanh(x, -0.5, 2.0),
     distinct(2, 5))  # fmt: skip
case("hardtanh at its limits", gf.hardtanh, lambda T, x: T.nn.functional.hardtanh(x), np.array([-1.0, 0.5, 1.0]),
     smooth=False)  # fmt: skip
_PRELUS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "with one slope": ((2, 3), (1,)), "with a 0-d slope": ((3,), ()), "of 0-d": ((), (1,)),
    "of channels": ((2, 3), (3,)), "of channels with places": ((2, 3, 2), (3,)), "of no elements": ((0, 3), (3,)),
}  # fmt: skip
for _what, (_x, _w) in _PRELUS.items():
    case(f"prelu {_what}", gf.prelu, lambda T, x, w: T.nn.functional.prelu(x, w), normal(*_x, away=0.1), normal(*_w))
case("glu", gf.glu, lambda T, x: T.nn.functional.glu(x), normal(2, 4))
case("glu along axis 0", lambda x: gf.glu(x, axis=0), lambda T, x: T.nn.functional.glu(x, 0), normal(2, 3))
case("softplus far out", gf.softplus, lambda T, x: T.logaddexp(x, T.zeros_like(x)), np.array([-30.0, -5.0, 12.0, 30.0]))
case("gelu in its exact form", lambda x: gf.gelu(x, "none"), lambda T, x: T.nn.functional.gelu(x), normal(2, 5))
case("logaddexp with a number", lambda x: gf.logaddexp(0.5, x), lambda T, x: T.logaddexp(x, T.full_like(x, 0.5)),
     normal(3))  # fmt: skip
case("logaddexp with ties", gf.logaddexp, lambda T, a, b: T.logaddexp(a, b), np.array([1.0, 2.0]), np.array([1.0, 2.0]))
case("remainder of negative numbers", lambda x: x % 0.7, lambda T, x: x % 0.7, np.array([-1.0, 1.0, -2.5, 0.3]))
case("remainder of a number", lambda x: 2.5 % x, lambda T, x: T.remainder(T.full_like(x, 2.5), x), positive(3))
case("floor_divide by operators", lambda x: (x // 0.7) + (3.3 // x),
     lambda T, x: T.floor(x / 0.7) + T.floor(3.3 / x) + x * 0, positive(3))  # fmt: skip
case("clip", lambda x: gf.clip(x, -0.5, 0.75), lambda T, x: T.clamp(x, -0.5, 0.75), distinct(3, 4))
case("clip below", lambda x: gf.clip(x, min=0), lambda T, x: T.clamp(x, min=0), distinct(5))
case("clip above", lambda x: gf.clip(x, max=0.3), lambda T, x: T.clamp(x, max=0.3), distinct(5))
case("clip without limits", lambda x: gf.clip(x), lambda T, x: x * 1, normal(5))
case("clip at its edges", lambda x: gf.clip(x, -1.0, 1.0), lambda T, x: T.clamp(x, -1.0, 1.0),
     np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), smooth=False)  # fmt: skip

_mask = np.array([[True, False, True], [False, False, True]])
case("where", gf.where, lambda T, c, a, b: T.where(c, a, b), _mask, normal(2, 3), normal(2, 3))
case("where broadcast", gf.where, lambda T, c, a, b: T.where(c, a, b), _mask, normal(3), normal(2, 1))
case("where the condition broadcasts", gf.where, lambda T, c, a, b: T.where(c, a, b), _mask[0], normal(2, 3), normal())
case("where or a number", lambda c, a: gf.where(c, a, 0.5), lambda T, c, a: T.where(c, a, 0.5), _mask, normal(2, 3))
case("where a number or", lambda c, a: gf.where(c, 2, a), lambda T, c, a: T.where(c, 2.0, a), _mask, normal(3))
case("where a tensor or itself", lambda c, a: gf.where(c, a, a), lambda T, c, a: T.where(c, a, a), _mask, normal(2, 3))
case("where without elements", gf.where, lambda T, c, a, b: T.where(c, a, b), _mask[:0], normal(0, 3), normal(3))

# ---------------------------------------------------------------------- reductions

_AXES: dict[str, tuple[tuple[int, ...], Any]] = {
    "over all": ((2, 3), None),
    "over axis 0": ((2, 3), 0),
    "over axis -1": ((2, 3, 2), -1),
    "over two axes": ((2, 3, 2), (0, 2)),
    "of 0-d": ((), None),
    "over length 1": ((3, 1), 1),
}


def _torch_axes(x: Any, axis: Any) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)


def _torch_prod(T: Any, x: Any, axis: Any, keepdims: bool) -> Any:
    for a in sorted((a % x.ndim for a in _torch_axes(x, axis)), reverse=True):
        x = T.prod(x, a, keepdim=keepdims)
    return x


_REDUCTIONS: dict[str, tuple[Any, Callable[..., np.ndarray]]] = {
    "sum": (lambda T, x, axis, keepdims: T.sum(x, _torch_axes(x, axis), keepdim=keepdims), normal),
    "mean": (lambda T, x, axis, keepdims: T.mean(x, _torch_axes(x, axis), keepdim=keepdims), normal),
    "max": (lambda T, x, axis, keepdims: T.amax(x, _torch_axes(x, axis), keepdim=keepdims), distinct),
    "min": (lambda T, x, axis, keepdims: T.amin(x, _torch_axes(x, axis), keepdim=keepdims), distinct),
    "prod": (_torch_prod, positive),
    "logsumexp": (lambda T, x, axis, keepdims: T.logsumexp(x, _torch_axes(x, axis), keepdim=keepdims), normal),
    "var": (lambda T, x, axis, keepdims: T.var(x, _torch_axes(x, axis), correction=0, keepdim=keepdims), normal),
    "std": (lambda T, x, axis, keepdims: T.std(x, _torch_axes(x, axis), correction=0, keepdim=keepdims), distinct),
}


def _reduction(name: str, in_torch: Any, make: Any) -> None:
    function = getattr(gf, name)
    for what, (shape, axis) in _AXES.items():
        if name == "std" and what in ("of 0-d", "over length 1"):
            continue  # a standard deviation of 0 has no derivative: see test_stability
        for keepdims in (False, True):
            case(
                f"{name} {what}{', axes kept' if keepdims else ''}",
                lambda x, axis=axis, k=keepdims: function(x, axis=axis, keepdims=k),
                lambda T, x, axis=axis, k=keepdims: in_torch(T, x, axis, k),
                make(*shape),
            )


for _name, _pair in _REDUCTIONS.items():
    _reduction(_name, *_pair)

for _ord in (2, 1, 3, 2.5, math.inf, -math.inf):
    case(f"norm {_ord}", lambda x, o=_ord: gf.norm(x, o), lambda T, x, o=_ord: T.linalg.vector_norm(x, o),
         distinct(2, 3))  # fmt: skip
case("norm over an axis", lambda x: x.norm(axis=-1, keepdims=True),
     lambda T, x: T.linalg.vector_norm(x, 2, 1, keepdim=True), distinct(2, 3))  # fmt: skip
case("norm 0", lambda x: gf.norm(x, 0) * x, lambda T, x: T.linalg.vector_norm(x, 0) * x, normal(2, 3))
case("norm over two axes", lambda x: gf.norm(x, axis=(0, 2)), lambda T, x: T.linalg.vector_norm(x, 2, (0, 2)),
     normal(2, 3, 2))  # fmt: skip
case("norm of no elements", lambda x: gf.norm(x, axis=1), lambda T, x: T.linalg.vector_norm(x, 2, 1), normal(0, 3))
case("norm of ties", lambda x: gf.norm(x, math.inf), lambda T, x: T.linalg.vector_norm(x, math.inf),
     np.array([1.0, -1.0, 0.5]), smooth=False)  # fmt: skip
for _shape, _axis in (((5,), 0), ((2, 6), 1), ((7, 2), 0), ((3, 1), -1), ((2, 0), 1)):
    case(f"cumulative_prod of {_shape} along axis {_axis}", lambda x, a=_axis: gf.cumulative_prod(x, axis=a),
         lambda T, x, a=_axis: T.cumprod(x, a), positive(*_shape))  # fmt: skip
case(
    "cumulative_prod with zeros", gf.cumulative_prod, lambda T, x: T.cumprod(x, 0), np.array([2.0, 0.0, 3.0, 0.0, 1.5])
)
for _axis in (0, -1):
    case(f"sort along axis {_axis}", lambda x, a=_axis: gf.sort(x, axis=a), lambda T, x, a=_axis: T.sort(x, a)[0],
         distinct(3, 4))  # fmt: skip
case("sort descending", lambda x: x.sort(descending=True), lambda T, x: T.sort(x, descending=True)[0], distinct(5))
case("sort of no elements", gf.sort, lambda T, x: T.sort(x)[0], normal(2, 0))
case("topk", lambda x: gf.topk(x, 2)[0], lambda T, x: T.topk(x, 2)[0], distinct(3, 4))
case("topk smallest", lambda x: gf.topk(x, 2, axis=0, largest=False)[0],
     lambda T, x: T.topk(x, 2, 0, largest=False)[0], distinct(3, 4))  # fmt: skip
case("topk of none", lambda x: gf.topk(x, 0)[0], lambda T, x: T.topk(x, 0)[0], normal(3))
for _shape, _axis in (((5,), None), ((2, 4), 1), ((2, 3, 2), (0, 2)), ((), None)):
    for _name, _q in (("median", 0.5), ("quantile", 0.3)):
        case(f"{_name} of {_shape} over {_axis}",
             lambda x, a=_axis, q=_q: gf.median(x, axis=a) if q == 0.5 else gf.quantile(x, q, axis=a),
             lambda T, x, a=_axis, q=_q: torch_quantile(T, x, q, a), distinct(*_shape))  # fmt: skip
case("quantile several", lambda x: gf.quantile(x, [0.0, 0.35, 1.0], axis=0, keepdims=True),
     lambda T, x: T.quantile(x, T.tensor([0.0, 0.35, 1.0], dtype=x.dtype), 0, keepdim=True),
     distinct(5, 2))  # fmt: skip
for _name in ("softmax", "log_softmax"):
    case(f"{_name} over two axes", lambda x, n=_name: getattr(gf, n)(x, axis=(0, -1)),
         lambda T, x, n=_name: getattr(T, n)(x.transpose(1, 2).reshape(4, 3), 0).reshape(2, 2, 3).transpose(1, 2),
         normal(2, 3, 2))  # fmt: skip
    case(f"{_name} over all axes", lambda x, n=_name: getattr(gf, n)(x, axis=(0, 1)),
         lambda T, x, n=_name: getattr(T, n)(x.reshape(-1), 0).reshape(x.shape), normal(2, 3))  # fmt: skip
case("sum of no elements", lambda x: gf.sum(x, axis=0), lambda T, x: T.sum(x, 0), normal(0, 3))
case("sum over no axis", lambda x: gf.sum(x, axis=()), lambda T, x: x * 1, normal(2, 3))
case("prod of no elements", lambda x: gf.prod(x, axis=0), lambda T, x: T.prod(x, 0), normal(0, 3))
case("prod with one zero", lambda x: gf.prod(x, axis=1), lambda T, x: T.prod(x, 1),
     np.array([[2.0, 0.0, 3.0, -1.0], [1.0, 2.0, 3.0, 4.0]]))  # fmt: skip
case(
    "prod with two zeros", lambda x: gf.prod(x), lambda T, x: x[0] * x[1] * x[2] * x[3], np.array([0.0, 2.0, 0.0, 3.0])
)
case("prod of seven", lambda x: gf.prod(x, axis=0), lambda T, x: T.prod(x, 0), positive(7, 2))
case("mean of no rows", lambda x: gf.mean(x, axis=1), lambda T, x: T.mean(x, 1), normal(0, 3))
for _name in ("max", "min"):
    case(
        f"{_name} with ties, shared equally", lambda x, n=_name: getattr(gf, n)(x, axis=1),
        lambda T, x, n=_name: getattr(T, "a" + n)(x, 1),
        np.array([[1.0, 3.0, 3.0, 1.0], [2.0, 2.0, 2.0, 2.0]]), smooth=False,
    )  # fmt: skip
case("var with a correction", lambda x: gf.var(x, axis=0, correction=1), lambda T, x: T.var(x, 0, correction=1),
     normal(4, 2))  # fmt: skip
case("std with a correction", lambda x: gf.std(x, correction=1.5), lambda T, x: T.std(x, (0, 1), correction=1.5),
     normal(4, 2))  # fmt: skip
for _axis in (0, 1, -1):
    case(f"cumulative_sum along axis {_axis}", lambda x, a=_axis: gf.cumulative_sum(x, axis=a),
         lambda T, x, a=_axis: T.cumsum(x, a), normal(2, 3))  # fmt: skip
case("cumulative_sum of a vector", gf.cumulative_sum, lambda T, x: T.cumsum(x, 0), normal(4))
case("cumulative_sum of no elements", gf.cumulative_sum, lambda T, x: T.cumsum(x, 0), normal(0))
for _name in ("softmax", "log_softmax"):
    for _axis in (0, 1, -1):
        case(f"{_name} along axis {_axis}", lambda x, n=_name, a=_axis: getattr(gf, n)(x, axis=a),
             lambda T, x, n=_name, a=_axis: getattr(T, n)(x, a), normal(2, 3, 2))  # fmt: skip
    case(f"{_name} of a vector", getattr(gf, _name), lambda T, x, n=_name: getattr(T, n)(x, 0), normal(4))
    case(f"{_name} of no rows", getattr(gf, _name), lambda T, x, n=_name: getattr(T, n)(x, 1), normal(0, 4))
    case(f"{_name} of one class", getattr(gf, _name), lambda T, x, n=_name: getattr(T, n)(x, 1), normal(3, 1))

# ---------------------------------------------------------------------- shape

case("reshape", lambda x: gf.reshape(x, (3, 2)), lambda T, x: x.reshape(3, 2), normal(2, 3))
case("reshape with -1", lambda x: x.reshape(2, -1), lambda T, x: x.reshape(2, -1), normal(3, 2, 2))
case("reshape to 0-d", lambda x: gf.reshape(x, ()), lambda T, x: x.reshape(()), normal(1, 1))
case("reshape of a transpose", lambda x: x.T.reshape(-1), lambda T, x: x.T.reshape(-1), normal(2, 3))
case("reshape of no elements", lambda x: x.reshape(3, 0), lambda T, x: x.reshape(3, 0), normal(0, 2))
case("broadcast_to", lambda x: gf.broadcast_to(x, (4, 2, 3)), lambda T, x: T.broadcast_to(x, (4, 2, 3)), normal(2, 1))
case("broadcast_to from 0-d", lambda x: gf.broadcast_to(x, (2, 2)), lambda T, x: T.broadcast_to(x, (2, 2)), normal())
case(
    "broadcast_to no elements", lambda x: gf.broadcast_to(x, (0, 3)), lambda T, x: T.broadcast_to(x, (0, 3)), normal(3)
)
case("squeeze", gf.squeeze, lambda T, x: T.squeeze(x), normal(1, 3, 1))
case("squeeze one axis", lambda x: gf.squeeze(x, axis=-1), lambda T, x: T.squeeze(x, -1), normal(1, 3, 1))
case("expand_dims", lambda x: gf.expand_dims(x, 1), lambda T, x: T.unsqueeze(x, 1), normal(2, 3))
case("expand_dims twice", lambda x: gf.expand_dims(x, (0, -1)), lambda T, x: x[None, :, None], normal(2))
case("permute_dims", lambda x: gf.permute_dims(x, (2, 0, 1)), lambda T, x: T.permute(x, (2, 0, 1)), normal(2, 3, 4))
case("permute_dims counted from the end", lambda x: x.permute_dims(-1, 0, 1), lambda T, x: T.permute(x, (-1, 0, 1)),
     normal(2, 1, 3))  # fmt: skip
case("moveaxis", lambda x: gf.moveaxis(x, 0, -1), lambda T, x: T.moveaxis(x, 0, -1), normal(2, 3, 4))
case("moveaxis of two", lambda x: x.moveaxis((2, 0), (0, 1)), lambda T, x: T.moveaxis(x, (2, 0), (0, 1)),
     normal(2, 3, 4))  # fmt: skip
case("swapaxes", lambda x: x.swapaxes(0, -1), lambda T, x: T.swapaxes(x, 0, -1), normal(2, 3, 4))
case("repeat", lambda x: gf.repeat(x, 2, axis=0), lambda T, x: T.repeat_interleave(x, 2, 0), normal(3, 2))
case("repeat of the flat tensor", lambda x: gf.repeat(x, 3), lambda T, x: T.repeat_interleave(x, 3), normal(2, 2))
case("tile", lambda x: gf.tile(x, (2, 1, 3)), lambda T, x: T.tile(x, (2, 1, 3)), normal(2, 2))
case("tile along the last axis", lambda x: gf.tile(x, 2), lambda T, x: T.tile(x, (2,)), normal(2, 2))
case("outer", gf.outer, lambda T, x, y: T.outer(x, y), normal(3), normal(2))
case("matrix_transpose", gf.matrix_transpose, lambda T, x: x.mT, normal(2, 2, 3))
case("flip", lambda x: gf.flip(x, axis=1), lambda T, x: T.flip(x, (1,)), normal(2, 3))
case("flip all", gf.flip, lambda T, x: T.flip(x, (0, 1)), normal(2, 3))
case("concat", lambda x, y: gf.concat([x, y], axis=1), lambda T, x, y: T.cat([x, y], 1), normal(2, 3), normal(2, 1))
case("concat along -2", lambda x, y: gf.concat([x, y], axis=-2), lambda T, x, y: T.cat([x, y], -2), normal(2, 3),
     normal(1, 3))  # fmt: skip
case("concat of a tensor with itself", lambda x: gf.concat([x, x * 2, x]), lambda T, x: T.cat([x, x * 2, x]), normal(2))
case("concat with a constant and nothing", lambda x, c, e: gf.concat([x, c, e]), lambda T, x, c, e: T.cat([x, c, e]),
     normal(2, 2), normal(1, 2), normal(0, 2), constant=(1,))  # fmt: skip
case("stack", lambda x, y: gf.stack([x, y], axis=1), lambda T, x, y: T.stack([x, y], 1), normal(2, 3), normal(2, 3))
case("stack of 0-d", lambda x, y: gf.stack([x, y]), lambda T, x, y: T.stack([x, y]), normal(), normal())
case("stack of a tensor with itself", lambda x: gf.stack([x, x], -1), lambda T, x: T.stack([x, x], -1), normal(2, 2))
case("split in equal parts", lambda x: gf.split(x, 3, axis=1), lambda T, x: list(T.tensor_split(x, 3, 1)), normal(2, 6))
case("split at indices", lambda x: gf.split(x, [1, 3]), lambda T, x: list(T.tensor_split(x, [1, 3])), normal(5, 2))
case(
    "split, one part used", lambda x: gf.split(x, 2)[1], lambda T, x: T.tensor_split(x, 2)[1], normal(4), covers="split"
)
case("pad", lambda x: gf.pad(x, ((1, 0), (2, 1)), 0.5), lambda T, x: T.nn.functional.pad(x, (2, 1, 1, 0), value=0.5),
     normal(2, 3))  # fmt: skip
case("pad all around", lambda x: gf.pad(x, 1), lambda T, x: T.nn.functional.pad(x, (1, 1, 1, 1)), normal(2, 2))
case("pad by nothing", lambda x: gf.pad(x, (0, 0)), lambda T, x: x * 1, normal(2))

# ---------------------------------------------------------------------- selection

case("take", lambda x, i: gf.take(x, i, axis=1), lambda T, x, i: x[:, i], normal(2, 4), np.array([3, 0, 0, -1]))
case("take a table of rows", lambda x, i: gf.take(x, i, axis=0), lambda T, x, i: x[i], normal(3, 2),
     np.array([[0, 2], [2, 2]]))  # fmt: skip
case("take from a vector", lambda x: gf.take(x, [1, 1, 2]), lambda T, x: x[[1, 1, 2]], normal(3))
case("take nothing", lambda x, i: gf.take(x, i, axis=0), lambda T, x, i: x[i], normal(3, 2), np.zeros(0, np.int64))
case("take_along_axis", lambda x, i: gf.take_along_axis(x, i, axis=1), lambda T, x, i: T.take_along_dim(x, i, 1),
     normal(2, 3), np.array([[0, 0], [2, 1]]))  # fmt: skip
case("take_along_axis 0", lambda x, i: gf.take_along_axis(x, i, axis=0), lambda T, x, i: T.take_along_dim(x, i, 0),
     normal(3, 2), np.array([[2, 0], [2, 2], [1, 1], [2, 0]]))  # fmt: skip
_KEYS: dict[str, Any] = {
    "an integer": 1,
    "a negative integer": -1,
    "integers for all axes": (1, -2),
    "a slice": slice(1, 3),
    "a stepped slice": (slice(None), slice(None, None, 2)),
    "a reversed slice": (slice(None, None, -1), 1),
    "an empty slice": slice(2, 2),
    "a new axis": (None, 1, None),
    "an ellipsis": (..., 0),
    "nothing": (),
}
for _what, _key in _KEYS.items():
    case(f"getitem by {_what}", lambda x, k=_key: x[k],
         lambda T, x, k=_key: T.flip(x, (0,))[:, 1] if _what_is_reversed(k) else x[k], normal(3, 4))  # fmt: skip


def _what_is_reversed(key: Any) -> bool:
    """PyTorch has no negative steps: the one such key of the table is written with `flip`."""
    return isinstance(key, tuple) and bool(key) and isinstance(key[0], slice) and key[0].step == -1


case("getitem by an integer array with repeats", lambda x, i: x[i], lambda T, x, i: x[i], normal(3, 2),
     np.array([0, 2, 0, 0]))  # fmt: skip
case("getitem by two integer arrays", lambda x, i, j: x[i, j], lambda T, x, i, j: x[i, j], normal(3, 4),
     np.array([[0], [2]]), np.array([1, 1, 3]))  # fmt: skip
case("getitem by an array and a slice", lambda x, i: x[:, i, 1:], lambda T, x, i: x[:, i, 1:], normal(2, 3, 3),
     np.array([2, 0]))  # fmt: skip
case("getitem by arrays apart", lambda x, i, j: x[i, :, j], lambda T, x, i, j: x[i, :, j], normal(2, 3, 4),
     np.array([1, 1]), np.array([0, 0]))  # fmt: skip
case("getitem by an array and a new axis", lambda x, i: x[i, None], lambda T, x, i: x[i, None], normal(3, 2),
     np.array([1, 1]))  # fmt: skip
case("getitem by a list", lambda x: x[[2, 0]], lambda T, x: x[[2, 0]], normal(3, 2))
case("getitem by a mask", lambda x, m: x[m], lambda T, x, m: x[m], normal(2, 3), _mask)
case("getitem by a mask of rows", lambda x, m: x[m], lambda T, x, m: x[m], normal(3, 2), np.array([True, False, True]))
case("getitem by an empty array", lambda x, i: x[i], lambda T, x, i: x[i], normal(3, 2), np.zeros((0,), np.int64))
case("getitem of a getitem", lambda x: x[1:][0][1:], lambda T, x: x[1:][0][1:], normal(3, 4))
case("getitem by a 0-d tensor", lambda x, i: x[i], lambda T, x, i: x[i], normal(3, 2), np.array(1))

# ---------------------------------------------------------------------- changed copies

_i, _j = np.array([2, 0]), np.array([[0], [1]])
case("x.at a slice", lambda x, v: x.at[1:, 0].set(v), lambda T, x, v: torch_put(T, x, (slice(1, None), 0), v),
     normal(3, 2), normal(2), covers="scatter")  # fmt: skip
case("x.at a slice, a number", lambda x: x.at[..., 1].set(2.0), lambda T, x: torch_put(T, x, (..., 1), 2.0),
     normal(3, 2), covers="scatter")  # fmt: skip
case("x.at an integer, broadcast", lambda x, v: x.at[0].set(v), lambda T, x, v: torch_put(T, x, 0, v), normal(3, 2),
     normal(), covers="scatter")  # fmt: skip
case("x.at an array", lambda x, v, i: x.at[i].set(v), lambda T, x, v, i: torch_put(T, x, i, v), normal(3, 2),
     normal(2, 2), _i, covers="scatter")  # fmt: skip
case("x.at an array, broadcast", lambda x, v, i: x.at[i, :].set(v), lambda T, x, v, i: torch_put(T, x, i, v),
     normal(3, 2), normal(1, 2), _i, covers="scatter")  # fmt: skip
case("x.at two arrays", lambda x, v, i, j: x.at[j, i].set(v), lambda T, x, v, i, j: torch_put(T, x, (j, i), v),
     normal(2, 3), normal(2, 2), _i, _j, covers="scatter")  # fmt: skip
case("x.at repeated indices", lambda x, v, i: x.at[i].set(v), lambda T, x, v, i: torch_put(T, x, i[1:], v[1:]),
     normal(3), normal(3), np.array([1, 0, 1]), covers="scatter")  # fmt: skip
case("x.at a mask", lambda x, v, m: x.at[m].set(v), lambda T, x, v, m: torch_put(T, x, m, v), normal(2, 3), normal(3),
     _mask, covers="scatter")  # fmt: skip
case("x.at no rows", lambda x, v: x.at[3:].set(v), lambda T, x, v: torch_put(T, x, slice(3, None), v), normal(3, 2),
     normal(0, 2), covers="scatter")  # fmt: skip
case("x.at an array, added", lambda x, v, i: x.at[i].add(v),
     lambda T, x, v, i: x.index_add(0, i, v.broadcast_to(3, 2)), normal(3, 2), normal(2), np.array([1, 0, 1]),
     covers="scatter")  # fmt: skip
case("x.at a slice, added", lambda x, v: x.at[1:].add(v), lambda T, x, v: T.cat([x[:1], x[1:] + v]), normal(3, 2),
     normal(2, 2), covers="scatter")  # fmt: skip
case("x.at a mask, added", lambda x, v, m: x.at[m].add(v), lambda T, x, v, m: torch_put(T, x, m, x[m] + v),
     normal(2, 3), normal(3), _mask, covers="scatter")  # fmt: skip
_indices = np.array([[2, 0], [1, 2]])
case("gather", lambda x, i: gf.gather(x, i, axis=1), lambda T, x, i: T.gather(x, 1, i), normal(3, 3), _indices)
case("gather along axis 0", lambda x, i: x.gather(i, axis=0), lambda T, x, i: T.gather(x, 0, i), normal(3, 3), _indices)
case("scatter", lambda x, v, i: gf.scatter(x, i, v, axis=1), lambda T, x, v, i: T.scatter(x, 1, i, v), normal(3, 3),
     normal(2, 2), _indices)  # fmt: skip
case("scatter a number", lambda x, i: x.scatter(i, 0.5, axis=0), lambda T, x, i: T.scatter(x, 0, i, 0.5), normal(3, 3),
     _indices)  # fmt: skip
case("scatter, added", lambda x, v, i: gf.scatter(x, i, v, axis=0, add=True),
     lambda T, x, v, i: T.scatter_add(x, 0, i, v), normal(3, 3), normal(2, 2), np.array([[0, 1], [0, 1]]),
     covers="scatter")  # fmt: skip
case(
    "masked_fill", lambda x, m: gf.masked_fill(x, m, 2.0), lambda T, x, m: T.masked_fill(x, m, 2.0), normal(2, 3), _mask
)
case("masked_fill with a tensor", lambda x, m, v: x.masked_fill(m, v), lambda T, x, m, v: T.masked_fill(x, m, v),
     normal(2, 3), _mask[0], normal())  # fmt: skip
case("nan_to_num", lambda x: gf.nan_to_num(x, 1.0, 2.0, 3.0), lambda T, x: T.nan_to_num(x, 1.0, 2.0, 3.0),
     np.array([1.5, math.nan, math.inf, -math.inf]), smooth=False)  # fmt: skip
case("roll", lambda x: gf.roll(x, 2), lambda T, x: T.roll(x, 2), normal(2, 3))
case("roll along axes", lambda x: x.roll((1, -1), axis=(0, 1)), lambda T, x: T.roll(x, (1, -1), (0, 1)), normal(2, 3))
case("roll of no elements", lambda x: gf.roll(x, 1, axis=0), lambda T, x: T.roll(x, 1, 0), normal(0, 3))
for _k in (1, -2):
    case(f"diag {_k} of a vector", lambda x, k=_k: gf.diag(x, k), lambda T, x, k=_k: T.diag(x, k), normal(3))
    case(f"diag {_k} of a matrix", lambda x, k=_k: gf.diag(x, k), lambda T, x, k=_k: T.diag(x, k), normal(3, 4))
    case(f"tril {_k}", lambda x, k=_k: gf.tril(x, k), lambda T, x, k=_k: T.tril(x, k), normal(2, 3, 4))
    case(f"triu {_k}", lambda x, k=_k: gf.triu(x, k), lambda T, x, k=_k: T.triu(x, k), normal(4, 3))
case("diag of no elements", gf.diag, lambda T, x: T.diag(x), normal(0))

# ---------------------------------------------------------------------- products

_EINSUMS: dict[str, tuple[tuple[int, ...], ...]] = {
    "ij,jk": ((2, 3), (3, 2)), "ij->": ((2, 3),), "iij->ji": ((2, 2, 3),), "i,j->ji": ((2,), (3,)),
    "bij,bjk->bik": ((2, 2, 3), (2, 3, 2)),
    "bn,anm,bm->ba": ((2, 3), (3, 3, 2), (2, 2)), "...ij,...jk->...ik": ((2, 1, 2, 3), (3, 3, 2)),
    "ij,jk->ki": ((2, 0), (0, 3)),
}  # fmt: skip
for _what, _shapes in _EINSUMS.items():
    case(f"einsum {_what}", lambda *xs, s=_what: gf.einsum(s, *xs), lambda T, *xs, s=_what: T.einsum(s, *xs),
         *(normal(*shape) for shape in _shapes))  # fmt: skip
case("einsum of a matrix with itself", lambda x: gf.einsum("ij,kj->ik", x, x), lambda T, x: x @ x.T, normal(2, 3))

_PRODUCTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "of vectors": ((3,), (3,)),
    "vector @ matrix": ((3,), (3, 2)),
    "matrix @ vector": ((2, 3), (3,)),
    "of matrices": ((2, 3), (3, 4)),
    "in batches": ((2, 2, 3), (2, 3, 2)),
    "batch @ matrix": ((2, 2, 3), (3, 2)),
    "matrix @ batch": ((2, 3), (2, 3, 2)),
    "of broadcast batches": ((2, 1, 2, 3), (3, 3, 2)),
    "vector @ batch": ((3,), (2, 3, 2)),
    "batch @ vector": ((2, 2, 3), (3,)),
    "over nothing": ((2, 0), (0, 3)),
    "of no rows": ((0, 3), (3, 2)),
}
for _what, (_a, _b) in _PRODUCTS.items():
    case(f"matmul {_what}", gf.matmul, lambda T, a, b: T.matmul(a, b), normal(*_a), normal(*_b))
case("matmul of a matrix with itself", lambda x: x @ x, lambda T, x: x @ x, normal(3, 3))
case("matmul of a matrix with its transpose", lambda x: x @ x.T, lambda T, x: x @ x.T, normal(2, 3))
case("matmul of a vector with itself", lambda x: x @ x, lambda T, x: x @ x, normal(3))


def _torch_activation(T: Any, name: str | None, z: Any) -> Any:
    if name is None:
        return z
    if name in ("gelu", "gelu_exact"):
        return T.nn.functional.gelu(z, approximate="tanh" if name == "gelu" else "none")
    return getattr(T.nn.functional, name)(z)


def _linear(activation: str | None, shape: tuple[int, ...], bias: bool) -> None:
    case(
        f"linear {activation}, x of {len(shape)} axes, {'with' if bias else 'no'} bias",
        lambda x, w, b=None: gf.linear(x, w, b, activation=activation),
        lambda T, x, w, b=None: _torch_activation(T, activation, T.nn.functional.linear(x, w, b)),
        *(normal(*s) for s in [shape, (2, 3), (2,)][: 3 if bias else 2]),
    )


for _activation in (None, "relu", "leaky_relu", "elu", "gelu", "gelu_exact", "silu", "sigmoid", "softplus", "tanh"):
    for _x in ((3,), (4, 3), (2, 2, 3)):
        for _bias in (True, False):
            _linear(_activation, _x, _bias)
for _activation in ("selu", "mish", "softsign", "hardtanh"):
    _linear(_activation, (4, 3), True)
case("linear of no rows", gf.linear, lambda T, x, w, b: T.nn.functional.linear(x, w, b), normal(0, 3), normal(2, 3),
     normal(2))  # fmt: skip
case("linear of a tensor with itself", lambda x: gf.linear(x, x, activation="tanh"),
     lambda T, x: T.tanh(T.nn.functional.linear(x, x)), normal(3, 3))  # fmt: skip
case("linear with frozen weights", gf.linear, lambda T, x, w, b: T.nn.functional.linear(x, w, b), normal(2, 3),
     normal(2, 3), normal(2), constant=(1, 2))  # fmt: skip
case("linear with a frozen input", lambda x, w, b: gf.linear(x, w, b, activation="gelu"),
     lambda T, x, w, b: _torch_activation(T, "gelu", T.nn.functional.linear(x, w, b)), normal(2, 3), normal(2, 3),
     normal(2), constant=(0,))  # fmt: skip


def _perceptron(activation: str) -> dict[str, Any]:
    """gradflow's and PyTorch's function of an input and of (weight, bias) for each layer."""

    def ours(x: Any, *layers: Any) -> Any:
        return perceptron(x, list(zip(layers[::2], layers[1::2], strict=True)), activation)

    def theirs(T: Any, x: Any, *layers: Any) -> Any:
        for w, b in zip(layers[:-2:2], layers[1:-2:2], strict=True):
            x = _torch_activation(T, activation, T.nn.functional.linear(x, w, b))
        return T.nn.functional.linear(x, *layers[-2:])

    return {"call": ours, "torch": theirs}


_LAYERS = [normal(*s) for s in ((4, 3), (4,), (4, 4), (4,), (2, 4), (2,))]
for _activation in ("relu", "gelu", "tanh"):
    for _x in ((3,), (5, 3), (2, 2, 3)):
        case(
            f"perceptron {_activation}, x of {len(_x)} axes", *_perceptron(_activation).values(), normal(*_x), *_LAYERS
        )
for _title, _constant in (
    ("input", (0,)),
    ("first layers", (0, 1, 2, 3, 4)),
    ("last layer", (5, 6)),
    ("biases", (2, 4, 6)),
):
    case(
        f"perceptron with a frozen {_title}", *_perceptron("silu").values(), normal(5, 3), *_LAYERS, constant=_constant
    )
case("perceptron of one layer", *_perceptron("relu").values(), normal(5, 3), *_LAYERS[:2])
case("perceptron with a layer twice", lambda x, w, b: perceptron(x, [(w, b), (w, b)], "tanh"),
     lambda T, x, w, b: T.nn.functional.linear(T.tanh(T.nn.functional.linear(x, w, b)), w, b), normal(5, 4),
     normal(4, 4), normal(4))  # fmt: skip

# ---------------------------------------------------------------------- normalization, dropout, types

case("layer_norm", lambda x, w, b: gf.layer_norm(x, (4,), w, b),
     lambda T, x, w, b: T.nn.functional.layer_norm(x, (4,), w, b), normal(3, 4), normal(4), normal(4))  # fmt: skip
case("layer_norm over two axes", lambda x, w, b: gf.layer_norm(x, (2, 3), w, b, eps=0.1),
     lambda T, x, w, b: T.nn.functional.layer_norm(x, (2, 3), w, b, 0.1), normal(2, 2, 3), normal(2, 3),
     normal(2, 3))  # fmt: skip
case("layer_norm without weights", lambda x: gf.layer_norm(x, (4,)), lambda T, x: T.nn.functional.layer_norm(x, (4,)),
     normal(3, 4))  # fmt: skip
case("layer_norm without a bias", lambda x, w: gf.layer_norm(x, (4,), w),
     lambda T, x, w: T.nn.functional.layer_norm(x, (4,), w), normal(3, 4), normal(4))  # fmt: skip
case("rms_norm", lambda x, w: gf.rms_norm(x, (4,), w), lambda T, x, w: T.nn.functional.rms_norm(x, (4,), w),
     normal(3, 4), normal(4))  # fmt: skip
case("rms_norm over two axes", lambda x: gf.rms_norm(x, (2, 3), eps=0.1),
     lambda T, x: T.nn.functional.rms_norm(x, (2, 3), None, 0.1), normal(2, 2, 3))  # fmt: skip
case("batch_norm", lambda x, w, b: gf.batch_norm(x, None, None, w, b, training=True),
     lambda T, x, w, b: T.nn.functional.batch_norm(x, None, None, w, b, True), normal(5, 4), normal(4),
     normal(4))  # fmt: skip
case("batch_norm without weights", lambda x: gf.batch_norm(x, training=True, eps=0.1),
     lambda T, x: T.nn.functional.batch_norm(x, None, None, training=True, eps=0.1), normal(5, 4))  # fmt: skip
case("batch_norm of several places", lambda x, w: gf.batch_norm(x, None, None, w, training=True),
     lambda T, x, w: T.nn.functional.batch_norm(x, None, None, w, training=True), normal(2, 3, 2),
     normal(3))  # fmt: skip
case("batch_norm by running statistics", lambda x, m, v, w, b: gf.batch_norm(x, m, v * v + 1.0, w, b),
     lambda T, x, m, v, w, b: T.nn.functional.batch_norm(x, m, v * v + 1.0, w, b), normal(5, 4), normal(4), normal(4),
     normal(4), normal(4), constant=(1, 2))  # fmt: skip
case("layer_norm of a vector", lambda x, w, b: gf.layer_norm(x, (4,), w, b),
     lambda T, x, w, b: T.nn.functional.layer_norm(x, (4,), w, b), normal(4), normal(4), normal(4))  # fmt: skip


def dropout_mask(shape: tuple[int, ...], p: float, key: int, counter: int = 0) -> np.ndarray:
    """The mask by contract: element i is kept where the 32-bit half i % 2 of word i // 2 is at least p * 2^32."""
    n = math.prod(shape)
    words = [int(w) for w in np.random.Philox(key=key, counter=counter).random_raw((n + 1) // 2)]
    halves = [word >> (32 * half) & 0xFFFFFFFF for word in words for half in (0, 1)][:n]
    return np.array([h >= p * 2**32 for h in halves], bool).reshape(shape)


for _p in (0.3, 0.75):
    case(f"dropout {_p}", lambda x, p=_p: gf.dropout(x, p, generator=gf.Generator(5)),
         lambda T, x, p=_p: x * T.tensor(dropout_mask(tuple(x.shape), p, 5) / (1 - p)), normal(3, 5))  # fmt: skip
case("dropout of no elements", lambda x: gf.dropout(x, 0.5), lambda T, x: x * 1, normal(0, 2))
case("dropout while not training", lambda x: gf.dropout(x, 0.5, training=False) * 1, lambda T, x: x * 1, normal(3))
case("astype to its own dtype", lambda x: gf.astype(x, x.dtype) * 2, lambda T, x: x * 2, normal(3))
case("astype to float64", lambda x: gf.astype(x, "float64") ** 2, lambda T, x: x**2, normal(3), dtype="float64")
case("copy", lambda x: x.clone(), lambda T, x: x.clone(), normal(2, 2), covers="copy")

# ---------------------------------------------------------------------- losses

for _name in ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss"):
    for _reduction_name in ("mean", "sum", "none"):
        case(f"{_name} {_reduction_name}", lambda x, y, n=_name, r=_reduction_name: getattr(gf, n)(x, y, reduction=r),
             lambda T, x, y, n=_name, r=_reduction_name: getattr(T.nn.functional, n)(x, y, reduction=r),
             distinct(3, 4), distinct(3, 4) + 0.15)  # fmt: skip
    case(f"{_name} of 0-d", getattr(gf, _name), lambda T, x, y, n=_name: getattr(T.nn.functional, n)(x, y),
         np.array(0.75), np.array(0.5))  # fmt: skip
    case(f"{_name} against a constant", getattr(gf, _name), lambda T, x, y, n=_name: getattr(T.nn.functional, n)(x, y),
         distinct(5), distinct(5) + 0.15, constant=(1,))  # fmt: skip
    case(f"{_name} of no elements", lambda x, y, n=_name: getattr(gf, n)(x, y, reduction="sum"),
         lambda T, x, y, n=_name: getattr(T.nn.functional, n)(x, y, reduction="sum"), normal(0, 2),
         normal(0, 2))  # fmt: skip
case("mse_loss of a tensor with itself", lambda x: gf.mse_loss(x, x), lambda T, x: T.nn.functional.mse_loss(x, x),
     normal(3))  # fmt: skip
case("huber_loss with delta", lambda x, y: gf.huber_loss(x, y, delta=0.5),
     lambda T, x, y: T.nn.functional.huber_loss(x, y, delta=0.5), distinct(3, 4), distinct(3, 4) + 0.15)  # fmt: skip
case("huber_loss at zero error", lambda x, y: gf.huber_loss(x, y, reduction="sum"),
     lambda T, x, y: T.sum((x - y) ** 2 / 2), np.array([0.5, -2.0]), np.array([0.5, -2.0]))  # fmt: skip

case("smooth_l1_loss with beta", lambda x, y: gf.smooth_l1_loss(x, y, beta=0.5),
     lambda T, x, y: T.nn.functional.smooth_l1_loss(x, y, beta=0.5), distinct(3, 4), distinct(3, 4) + 0.15)  # fmt: skip
for _reduction_name in ("sum", "none", "batchmean"):  # PyTorch's warns of "mean"
    for _log in (False, True):
        case(f"kl_div {_reduction_name}{' of logarithms' if _log else ''}",
             lambda x, t, r=_reduction_name, log=_log: gf.kl_div(x, t, r, log_target=log),
             lambda T, x, t, r=_reduction_name, log=_log: T.nn.functional.kl_div(x, t, reduction=r, log_target=log),
             normal(3, 4), probabilities(3, 4))  # fmt: skip
for _full, _shape, _reduction_name in [(False, (3, 4), "mean"), (True, (3,), "none"), (True, (3, 1), "sum")]:
    case(f"gaussian_nll_loss {_reduction_name}, variances {_shape}",
         lambda x, t, v, f=_full, r=_reduction_name: gf.gaussian_nll_loss(x, t, v, f, reduction=r),
         lambda T, x, t, v, f=_full, r=_reduction_name: T.nn.functional.gaussian_nll_loss(x, t, v, f, reduction=r),
         normal(3, 4), normal(3, 4), positive(*_shape))  # fmt: skip
for _reduction_name in ("mean", "sum", "none"):
    case(f"binary_cross_entropy {_reduction_name}",
         lambda x, t, r=_reduction_name: gf.binary_cross_entropy(x, t, reduction=r),
         lambda T, x, t, r=_reduction_name: T.nn.functional.binary_cross_entropy(x, t, reduction=r),
         probabilities(3, 4), probabilities(3, 4))  # fmt: skip
case("binary_cross_entropy, weights", lambda x, t, w: gf.binary_cross_entropy(x, t, w),
     lambda T, x, t, w: -((t * T.log(x) + (1 - t) * T.log1p(-x)) * w).mean(),
     probabilities(3, 4), probabilities(3, 4), positive(4))  # fmt: skip

_SHAPES_OF_LOGITS = {"of a vector": (4,), "": (3, 4), "of 3 axes": (2, 4, 3), "of 4 axes": (2, 3, 2, 2)}
for _what, _shape in _SHAPES_OF_LOGITS.items():
    _classes = _shape[0] if len(_shape) == 1 else _shape[1]
    _label_shape = () if len(_shape) == 1 else (_shape[0], *_shape[2:])
    for _reduction_name in ("mean", "sum", "none"):
        for _smoothing in (0.0, 0.2):
            _how = f"{_what} {_reduction_name}{', smoothed' if _smoothing else ''}".strip()

            def _ours(x: Any, t: Any, w: Any = None, r: str = _reduction_name, s: float = _smoothing) -> Any:
                return gf.cross_entropy(x, t, weight=w, reduction=r, label_smoothing=s)

            def _theirs(T: Any, x: Any, t: Any, w: Any = None, r: str = _reduction_name, s: float = _smoothing) -> Any:
                # PyTorch has no gradient for the weights: the mean over labels, spelled out, has
                if w is None:
                    return T.nn.functional.cross_entropy(x, t, reduction=r, label_smoothing=s)
                return torch_weighted(T, x, t, w, r, s)

            case(f"cross_entropy, labels, {_how}", _ours, _theirs, normal(*_shape), labels(_classes, *_label_shape),
                 covers="cross_entropy")  # fmt: skip
            case(f"cross_entropy, probabilities, {_how}", _ours, _theirs, normal(*_shape), probabilities(*_shape),
                 covers="cross_entropy")  # fmt: skip
            if len(_shape) < 4:
                case(f"cross_entropy, labels and weights, {_how}", _ours, _theirs, normal(*_shape),
                     labels(_classes, *_label_shape), positive(_classes), covers="cross_entropy")  # fmt: skip
                case(f"cross_entropy, probabilities and weights, {_how}", _ours, _theirs, normal(*_shape),
                     probabilities(*_shape), positive(_classes), covers="cross_entropy")  # fmt: skip


def torch_weighted(T: Any, x: Any, t: Any, w: Any, reduction: str, smoothing: float) -> Any:
    """Cross-entropy with weights in elementary functions; a test compares it with PyTorch's own."""
    axis = 0 if x.ndim == 1 else 1
    classes = x.shape[axis]
    dense = t
    if not t.is_floating_point():
        dense = T.movedim(T.nn.functional.one_hot(t, classes).to(x.dtype), -1, axis)
    dense = dense * (1 - smoothing) + smoothing / classes
    along = w.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    losses = -(dense * along * T.log_softmax(x, axis)).sum(axis)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / (w[t].sum() if not t.is_floating_point() else max(losses.numel(), 1))


def torch_nll(T: Any, x: Any, t: Any, w: Any, reduction: str) -> Any:
    axis = 0 if x.ndim == 1 else 1
    losses = -T.gather(x, axis, T.unsqueeze(t, axis)).squeeze(axis)
    factors = T.ones_like(losses) if w is None else w[t]
    losses = losses * factors
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / factors.sum()


for _what, _shape in _SHAPES_OF_LOGITS.items():
    _classes = _shape[0] if len(_shape) == 1 else _shape[1]
    _label_shape = () if len(_shape) == 1 else (_shape[0], *_shape[2:])
    for _reduction_name in ("mean", "sum", "none"):
        for _weighted in (False, True):
            case(f"nll_loss {_what} {_reduction_name}{', weighted' if _weighted else ''}",
                 lambda x, t, w=None, r=_reduction_name: gf.nll_loss(x, t, w, reduction=r),
                 lambda T, x, t, w=None, r=_reduction_name: torch_nll(T, x, t, w, r), normal(*_shape),
                 labels(_classes, *_label_shape), *([positive(_classes)] if _weighted else []))  # fmt: skip


def torch_bce(T: Any, x: Any, t: Any, w: Any, p: Any, reduction: str) -> Any:
    log_p, log_not = T.nn.functional.logsigmoid(x), T.nn.functional.logsigmoid(-x)
    losses = -((t if p is None else t * p) * log_p + (1 - t) * log_not)
    if w is not None:
        losses = losses * w
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


def torch_ignoring(name: str, T: Any, x: Any, t: Any, w: Any = None, **options: Any) -> Any:
    return getattr(T.nn.functional, name)(x, t, weight=None if w is None else w.detach(), ignore_index=1, **options)


for _name, _how in [
    ("nll_loss", {}), ("cross_entropy", {}), ("cross_entropy", {"label_smoothing": 0.2}),
    ("nll_loss", {"reduction": "none"}), ("cross_entropy", {"reduction": "none"}),
]:  # fmt: skip
    for _weights in ([], [positive(3)]):
        case(f"{_name} but one label, {_how}, {len(_weights)} weights",
             lambda x, t, w=None, n=_name, o=_how: getattr(gf, n)(x, t, weight=w, ignore_index=1, **o),
             lambda T, x, t, w=None, n=_name, o=_how: torch_ignoring(n, T, x, t, w, **o),
             normal(3, 3, 2), np.array([[0, 1], [2, 1], [0, 0]]), *_weights,
             constant=(1, 2), covers=_name)  # fmt: skip


_BCE = "binary_cross_entropy_with_logits"
for _reduction_name in ("mean", "sum", "none"):
    case(f"{_BCE} {_reduction_name}", lambda x, t, r=_reduction_name: getattr(gf, _BCE)(x, t, reduction=r),
         lambda T, x, t, r=_reduction_name: torch_bce(T, x, t, None, None, r), normal(3, 4, away=0.1),
         probabilities(3, 4))  # fmt: skip
    case(f"{_BCE} {_reduction_name}, weights",
         lambda x, t, w, r=_reduction_name: getattr(gf, _BCE)(x, t, weight=w, reduction=r),
         lambda T, x, t, w, r=_reduction_name: torch_bce(T, x, t, w, None, r), normal(3, 4, away=0.1),
         probabilities(3, 4), positive(4))  # fmt: skip
    case(f"{_BCE} {_reduction_name}, weights of positives",
         lambda x, t, p, r=_reduction_name: getattr(gf, _BCE)(x, t, pos_weight=p, reduction=r),
         lambda T, x, t, p, r=_reduction_name: torch_bce(T, x, t, None, p, r), normal(3, 4, away=0.1),
         probabilities(3, 4), positive(4))  # fmt: skip
    case(f"{_BCE} {_reduction_name}, both weights",
         lambda x, t, w, p, r=_reduction_name: getattr(gf, _BCE)(x, t, weight=w, pos_weight=p, reduction=r),
         lambda T, x, t, w, p, r=_reduction_name: torch_bce(T, x, t, w, p, r), normal(3, 4, away=0.1),
         probabilities(3, 4), positive(3, 1), positive(4))  # fmt: skip
case(f"{_BCE} at logits of zero", getattr(gf, _BCE), lambda T, x, t: torch_bce(T, x, t, None, None, "mean"),
     np.zeros((2, 2)), np.array([[0.0, 1.0], [0.25, 0.5]]))  # fmt: skip
case(f"{_BCE} at logits of zero, weights of positives", lambda x, t, p: getattr(gf, _BCE)(x, t, pos_weight=p),
     lambda T, x, t, p: torch_bce(T, x, t, None, p, "mean"), np.zeros((2, 2)), np.array([[0.0, 1.0], [0.25, 0.5]]),
     positive(2))  # fmt: skip
case("unbind", lambda x: gf.unbind(x, 1), lambda T, x: list(T.unbind(x, 1)), normal(2, 3))
