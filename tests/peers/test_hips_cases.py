"""Cases like those of HIPS autograd's tests, checked by central differences and, if installed, against autograd.

`python tests/peers/test_hips_cases.py` prints the number of cases, and which of autograd's have no counterpart here.
"""

from __future__ import annotations

import itertools
import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import gradflow as gf

try:
    import autograd
    import autograd.numpy as anp
except ImportError:
    autograd = None

needs_autograd = pytest.mark.skipif(autograd is None, reason="HIPS autograd, the peer, is not installed")

RTOL = 1e-10
ATOL = 1e-12


@dataclass(frozen=True)
class Case:
    """`ours(*tensors)` and `theirs(*arrays)` of `inputs`, all differentiable; each returns an array or a list of them.

    `theirs` is None if autograd cannot express it, or has another result (NaN for a product with zeros).
    """

    name: str
    ours: Callable[..., Any]
    theirs: Callable[..., Any] | None
    inputs: tuple[np.ndarray, ...]

    def __str__(self) -> str:
        return self.name


CASES: list[Case] = []

NO_COUNTERPART: dict[str, str] = {
    "arcsinh arccosh arctanh sinc": "elementary functions that gradflow does not have",
    "mod hypot logaddexp2 fmax fmin fabs": "likewise; mod is remainder, fabs is abs",
    "rad2deg deg2rad degrees radians": "factors of units",
    "real imag conj angle real_if_close": "no complex numbers, and so none of the complex halves of the other tests",
    "trace": "not among the operations: gf.trace records a computational graph",
    "kron cross diagflat make_diagonal gradient": "not among the operations",
    "partition msort": "only sort and argsort",
    "r_ c_ array_box frexp select": "of NumPy's interface; `where` stands for the last two below",
    "array_split rollaxis row_stack column_stack atleast_1d atleast_2d atleast_3d": "other names for split, "
    "permute_dims, concat and expand_dims",
}
"""Functions that autograd's four test files check and gradflow does not have, with the reason."""


def rng(key: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(key.encode()))


def R(*shape: int) -> np.ndarray:  # noqa: N802
    """Return normal numbers, different ones for each call."""
    return np.asarray(rng(f"{next(_serial)}").normal(size=shape))


_serial = itertools.count()


def apart(*shape: int) -> np.ndarray:
    """Return numbers that are not close to each other or to 0."""
    order = rng(f"{next(_serial)}").permutation(math.prod(shape)).reshape(shape)
    return np.asarray(0.31 * order - 1.13)


def positive(*shape: int) -> np.ndarray:
    return np.asarray(0.4 + np.abs(R(*shape)))


def case(name: str, ours: Any, theirs: Any, *inputs: Any) -> None:
    CASES.append(Case(name, ours, theirs, tuple(np.asarray(x, "float64") for x in inputs)))


def sweep(name: str, ours: Any, theirs: Any, *choices: Iterable[Any], **options: Iterable[Any]) -> None:
    """Add a case for every combination of the inputs' choices and the options' values."""
    names = list(options)
    for inputs in itertools.product(*choices):
        for values in itertools.product(*options.values()):
            given = dict(zip(names, values, strict=True))
            shapes = " ".join(str(np.shape(x)).replace(" ", "") for x in inputs)
            text = "".join(f" {k}={v}" for k, v in given.items())
            case(f"{name} {shapes}{text}", _given(ours, given), theirs and _given(theirs, given), *inputs)


def _given(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    return lambda *arguments: function(*arguments, **options)


# ---------------------------------------------------------------------- scalars

for _name, _theirs, _points in [
    ("abs", "abs", [1.1, -1.1]),
    ("sin", "sin", [0.7, -2.0]),
    ("cos", "cos", [0.7, -2.0]),
    ("sign", "sign", [1.1, -1.1]),
    ("exp", "exp", [0.3, -1.2]),
    ("log", "log", [0.2, 1.9]),
    ("log1p", "log1p", [0.2, -0.4]),
    ("expm1", "expm1", [1e-3, -1.5]),
    ("negative", "negative", [0.8]),
    ("floor", "floor", [1.2, -0.7]),
    ("ceil", "ceil", [1.2, -0.7]),
    ("tanh", "tanh", [0.4, -2.5]),
    ("sqrt", "sqrt", [0.6, 7.0]),
    ("square", "square", [1.3, -0.2, 0.0]),
]:
    for _x in _points:
        case(
            f"3 {_name}({_x})",
            lambda x, f=_name: 3.0 * getattr(gf, f)(x),
            lambda x, f=_theirs: 3.0 * getattr(anp, f)(x),
            _x,
        )
    for _shape in [(1,), (4,), (2, 3), (2, 1, 3), (0, 2)]:
        _values = positive(*_shape) if _name in ("log", "log1p", "sqrt", "abs") else apart(*_shape)
        case(
            f"{_name} {_shape}",
            lambda x, f=_name: getattr(gf, f)(x),
            lambda x, f=_theirs: getattr(anp, f)(x),
            _values,
        )
for _name, _theirs in {
    "log2": "log2", "log10": "log10", "exp2": "exp2", "tan": "tan", "sinh": "sinh", "cosh": "cosh", "asin": "arcsin",
    "acos": "arccos", "atan": "arctan", "nan_to_num": "nan_to_num",
}.items():  # fmt: skip
    case(_name, lambda x, f=_name: getattr(gf, f)(x), lambda x, f=_theirs: getattr(anp, f)(x), [[0.3], [0.8]])
case("reciprocal", lambda x: 1 / x, lambda x: 1 / x, 0.7)
case("+x", lambda x: +x * x, lambda x: x * x, 0.7)

for _y in [1.7, 2, 3, 1, 0.5, -1, -2.5]:
    case(f"x ** {_y}, x a scalar", lambda x, y=_y: x**y, lambda x, y=_y: x**y, 1.4)
for _y in [2, 3, 4, -1, -2, 1]:
    case(f"x ** {_y}, x negative", lambda x, y=_y: x**y, lambda x, y=_y: x**y, -apart(5) - 2.0)
for _y in [2, 3, 4, 1]:
    case(f"x ** {_y} at 0", lambda x, y=_y: x**y, lambda x, y=float(_y): x**y, [0.0, 0.5])
case("2 ** y", lambda y: 2**y, lambda y: 2.0**y, [0.3, -1.0])
case("power in the exponent", lambda y: gf.power(1.3, y), lambda y: anp.power(1.3, y), 0.8)
case("power in the exponent, of 0", lambda y: gf.power(0.0, y), None, 0.8)

# ---------------------------------------------------------------------- two arguments

PAIRS = [np.asarray(2.0), R(4), R(3, 4), R(1, 4)]
MORE = [np.asarray(-0.7), R(1), R(3, 1), R(2, 1, 4)]

for _symbol, _f in {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
}.items():
    sweep(_symbol, _f, _f, PAIRS, PAIRS)
    sweep(_symbol, _f, _f, MORE, MORE[1:3])
    case(f"tensor {_symbol} number", lambda x, f=_f: f(x, 1.5), lambda x, f=_f: f(x, 1.5), R(3))
    case(f"number {_symbol} tensor", lambda x, f=_f: f(2, x), lambda x, f=_f: f(2, x), R(3))
    case(f"x {_symbol} x", lambda x, f=_f: f(x, x), lambda x, f=_f: f(x, x), R(2, 3))
for _name, _theirs in {"remainder": "remainder", "atan2": "arctan2", "logaddexp": "logaddexp"}.items():
    case(
        _name,
        lambda x, y, f=_name: getattr(gf, f)(x, y),
        lambda x, y, f=_theirs: getattr(anp, f)(x, y),
        [[0.7, -1.6], [2.5, 0.4]],
        [0.6, 1.3],
    )
for _name in ("diag", "tril", "triu"):
    case(
        f"{_name} of a matrix",
        lambda x, f=_name: getattr(gf, f)(x, 1) ** 3,
        lambda x, f=_name: getattr(anp, f)(x, 1) ** 3,
        R(4, 4),
    )
_gap = [np.sqrt(x**2 + 0.5) for x in PAIRS]
sweep("/", lambda x, y: x / y, lambda x, y: x / y, _gap, _gap)
sweep("/ of negative", lambda x, y: x / y, lambda x, y: x / y, PAIRS, [-x for x in _gap])
case("x / x", lambda x: x / x, lambda x: x / x, positive(3))
case("number / tensor", lambda x: 2 / x, lambda x: 2 / x, positive(3))
case("tensor / number", lambda x: x / 4, lambda x: x / 4, R(3))
sweep("**", lambda x, y: x**y, lambda x, y: x**y, [np.abs(x) + 1.1 for x in PAIRS], PAIRS)
case("x ** x", lambda x: x**x, lambda x: x**x, positive(3))
_extremes = [apart(1), apart(1, 4), apart(3, 4)]
for _name in ("maximum", "minimum"):
    _f = getattr(gf, _name)
    sweep(_name, _f, lambda x, y, n=_name: getattr(anp, n)(x, y), _extremes, [x + 0.15 for x in _extremes])
    case(f"{_name} with a number", lambda x, f=_f: f(x, 0.2), lambda x, n=_name: getattr(anp, n)(x, 0.2), apart(2, 3))
    case(f"{_name}(x, x)", lambda x, f=_f: f(x, x), lambda x, n=_name: getattr(anp, n)(x, x), R(3))

# ---------------------------------------------------------------------- ties: equal along the only direction there is


def _tied(F: Any, x: Any) -> Any:
    """Return rows of x and constants."""
    half = x * 0.0 + 0.5
    array = gf.stack if F is gf else anp.array
    return array([array([x, x, x]), array([x, half, half]), array([half, half, half]), array([x, x, half])])


for _x in (1.0, -1.0, 2.0):
    for _name in ("max", "min"):
        for _axis in (None, 0, 1):
            case(
                f"{_name} of ties, axis {_axis}, x = {_x}",
                lambda x, f=_name, a=_axis: getattr(gf, f)(_tied(gf, x), axis=a),
                lambda x, f=_name, a=_axis: getattr(anp, f)(_tied(anp, x), axis=a),
                _x,
            )
    for _name in ("maximum", "minimum"):
        case(
            f"{_name} of ties, broadcast, x = {_x}",
            lambda x, f=_name: getattr(gf, f)(gf.stack([x, x, x * 0 + 0.5]), _tied(gf, x)),
            lambda x, f=_name: getattr(anp, f)(anp.array([x, x, x * 0 + 0.5]), _tied(anp, x)),
            _x,
        )

# ---------------------------------------------------------------------- reductions

_AXES: dict[int, list[Any]] = {0: [None], 1: [None, 0, -1], 2: [None, 0, 1, -1, (0, 1)], 3: [None, 1, (1, 2), (0, -1)]}

for _name in ("sum", "mean", "max", "min", "prod", "var", "std"):
    for _shape in [(), (1,), (3,), (1, 3), (3, 1), (2, 3), (2, 3, 2)]:
        if _name in ("var", "std") and _shape in [(), (1,)]:
            continue
        for _axis, _keep in itertools.product(_AXES[len(_shape)], (False, True)):
            _numpy_axis = _axis if _axis is None else tuple(np.atleast_1d(_axis).tolist())
            if _name == "std" and math.prod(_shape[a] for a in _numpy_axis or range(len(_shape))) == 1:
                continue  # the standard deviation of one number has no derivative
            case(
                f"{_name} {_shape} axis={_axis} keepdims={_keep}",
                lambda x, f=_name, a=_axis, k=_keep: getattr(gf, f)(x, axis=a, keepdims=k),
                lambda x, f=_name, a=_axis, k=_keep: getattr(anp, f)(x, axis=a, keepdims=k),
                apart(*_shape) + 0.01,
            )
for _name in ("var", "std"):
    for _ddof, _keep in itertools.product((0, 1), (True, False)):
        sweep(
            f"{_name} ddof={_ddof}",
            lambda x, f=_name, d=_ddof, **o: getattr(gf, f)(x, correction=d, **o),
            lambda x, f=_name, d=_ddof, **o: getattr(anp, f)(x, ddof=d, **o),
            [R(3), R(3, 4), R(1, 3)],
            axis=[None],
            keepdims=[_keep],
        )
    sweep(
        f"{_name} ddof=2",
        lambda x, f=_name, **o: getattr(gf, f)(x, correction=2, **o),
        lambda x, f=_name, **o: getattr(anp, f)(x, ddof=2, **o),
        [R(3, 4), R(1, 3)],
        axis=[None, 1],
        keepdims=[True, False],
    )
    case(
        f"{_name} of a list",
        lambda x, f=_name: getattr(gf, f)(gf.stack([x, x * x, x + 2])),
        lambda x, f=_name: getattr(anp, f)(anp.array([x, x * x, x + 2])),
        0.3,
    )
case("mean of a list", lambda x: gf.mean(gf.stack([x, x + 2])), lambda x: anp.mean(anp.array([x, x + 2])), 0.0)
case("sum by Python", lambda x, y: sum([x, y]), lambda x, y: sum([x, y]), R(3, 4), R(3, 4))
case("sum of integers and tensors", lambda x: sum([1, x, 2.5]), lambda x: sum([1, x, 2.5]), R(3))
for _axis in (0, 1, -1):
    case(
        f"cumsum axis={_axis}",
        lambda x, a=_axis: gf.cumulative_sum(x, axis=a),
        lambda x, a=_axis: anp.cumsum(x, axis=a),
        R(3, 4),
    )
case("cumsum of a vector", gf.cumulative_sum, lambda x: anp.cumsum(x), R(5))
case("cumsum of all", lambda x: gf.cumulative_sum(x.reshape(-1)), lambda x: anp.cumsum(x), R(3, 4))
for _zeros in (1, 2, 3):
    _x = apart(2, 3)
    _x.reshape(-1)[:_zeros] = 0.0
    case(f"prod with {_zeros} zeros", gf.prod, None, _x)
    case(f"prod with {_zeros} zeros, axis 1", lambda x: gf.prod(x, axis=1), None, _x)
case("logsumexp", gf.logsumexp, lambda x: anp.log(anp.sum(anp.exp(x))), R(2, 3))
case("logsumexp axis", lambda x: gf.logsumexp(x, axis=0), lambda x: anp.log(anp.sum(anp.exp(x), axis=0)), R(2, 3))

# ---------------------------------------------------------------------- indices

INDICES: dict[str, Callable[[Any], Any]] = {
    "integers": lambda x: x[3, 0, 1],
    "one integer": lambda x: x[-2],
    "slices, one backwards": lambda x: x[::-1, 2:4, :],
    "steps": lambda x: x[1:5:2, ::-2],
    "an empty slice": lambda x: x[2:2],
    "ellipsis": lambda x: x[..., 1],
    "new axes": lambda x: x[None, :, 1, None],
    "list and slices": lambda x: x[[0, 1, 2], :, :],
    "integer, slice and list": lambda x: x[3, 2:, [1, 3]],
    "lists with a slice between": lambda x: x[[0, 2], :, [1, 0]],
    "list after slice": lambda x: x[:, [3, 1, 1]],
    "lists that broadcast": lambda x: x[[[0], [1]], [2, 2]],
    "repeated": lambda x: x[[0, 0]],
    "repeated, others between": lambda x: x[[0, 1, 0]],
    "negative list": lambda x: x[[-1, -5]],
    "fan-out of slices that overlap": lambda x: x[::-1, 2:4, :] + x[::-1, 3:5, :],
    "slice of a slice": lambda x: x[1:4][1:, 1:3][0],
    "list of a list": lambda x: x[[0, 1, 0]][[2, 2, 1]],
    "slice times another": lambda x: x[:2] * x[2:4],
}
for _name, _f in INDICES.items():
    case(f"index: {_name}", _f, _f, R(5, 4, 4))
case("index: product of two halves", lambda x: x[:2] @ x[2:], lambda x: anp.dot(x[:2], x[2:]), R(4))
case("index: mask", lambda x: x[gf.tensor([True, False, True])], lambda x: x[np.array([True, False, True])], R(3, 2))
case("index: where the values say", lambda x: x[x > 0.2], lambda x: x[x > 0.2], apart(3, 3))
case(
    "index: by values cast to integers",
    lambda x: x[:, :-1][gf.astype(x[:, -1], "int64")].sum(axis=1),
    None,
    np.concatenate([R(3, 2), [[1.5], [0.5], [1.5]]], axis=1),
)
case("take", lambda x: gf.take(x, [2, 0, 2], axis=1), lambda x: x[:, [2, 0, 2]], R(2, 3))
case(
    "sort by argsort",
    lambda x: gf.take_along_axis(x, gf.argsort(x)),
    lambda x: anp.sort(x),
    apart(7),
)
case("diagonal by indices", lambda x: x[[0, 1, 2], [0, 1, 2]], lambda x: anp.diagonal(x, 0, -1, -2), R(3, 3))

# ---------------------------------------------------------------------- shapes

sweep(
    "transpose",
    lambda x, axes: gf.permute_dims(x, axes),
    lambda x, axes: anp.transpose(x, axes),
    [R(2, 3, 2)],
    axes=list(itertools.permutations(range(3))),
)
case("x.T", lambda x: x.T, lambda x: x.T, R(3, 4))
case("x.T of three axes", lambda x: x.T, lambda x: x.T, R(2, 3, 2))
case("x.mT", lambda x: x.mT, lambda x: anp.swapaxes(x, 1, 2), R(2, 3, 2))
sweep(
    "moveaxis",
    lambda x, a, b: gf.moveaxis(x, a, b),
    lambda x, a, b: anp.moveaxis(x, a, b),
    [R(2, 3, 2)],
    a=range(3),
    b=range(3),
)


sweep(
    "swapaxes",
    lambda x, a, b: gf.swapaxes(x, a, b),
    lambda x, a, b: anp.swapaxes(x, a, b),
    [R(2, 3, 2)],
    a=range(3),
    b=range(3),
)
sweep(
    "repeat",
    lambda x, n, axis: gf.repeat(x, n, axis=axis),
    lambda x, n, axis: anp.repeat(x, n, axis=axis),
    [R(2, 3, 2), R(3, 1)],
    n=[0, 1, 2],
    axis=[None, 0, 1],
)
for _shape, _times in [((2, 1, 3), (1, 4, 2)), ((1, 2), (2, 3)), ((1, 2), (3, 2, 1)), ((1,), (2,)), ((3,), 2)]:
    case(f"tile {_shape} {_times}", lambda x, n=_times: gf.tile(x, n), lambda x, n=_times: anp.tile(x, n), R(*_shape))
for _shape in [(6, 2), (-1, 3), (2, 2, 3), (12,), (1, 12, 1)]:
    case(f"reshape {_shape}", lambda x, s=_shape: x.reshape(s), lambda x, s=_shape: anp.reshape(x, s), R(3, 4))
case("reshape by numbers", lambda x: x.reshape(4, 3), lambda x: x.reshape(4, 3), R(3, 4))
case("reshape, then transposed, then back", lambda x: x.T.reshape(2, 6).T, lambda x: x.T.reshape(2, 6).T, R(3, 4))
case("flatten", lambda x: x.flatten(), lambda x: anp.ravel(x), R(2, 3, 2))
case("squeeze", gf.squeeze, lambda x: anp.squeeze(x), R(3, 1, 2, 1))
case("squeeze an axis", lambda x: x.squeeze(1), lambda x: anp.squeeze(x, axis=1), R(3, 1, 2, 1))
for _axis in (0, 1, 2, -1):
    case(
        f"expand_dims {_axis}",
        lambda x, a=_axis: gf.expand_dims(x, a),
        lambda x, a=_axis: anp.expand_dims(x, a),
        R(3, 2),
    )
case("flipud", lambda x: gf.flip(x, axis=0), lambda x: anp.flipud(x), R(3, 4))
case("fliplr", lambda x: gf.flip(x, axis=1), lambda x: anp.fliplr(x), R(3, 4))
case("rot90", lambda x: gf.flip(x, axis=1).T, lambda x: anp.rot90(x), R(3, 4))
case("roll", lambda x: gf.concat([x[:, -2:], x[:, :-2]], axis=1), lambda x: anp.roll(x, 2, axis=1), R(3, 4))
case("diff", lambda x: x[1:] - x[:-1], lambda x: anp.diff(x, axis=0), R(4, 2))
case("diff twice", lambda x: x[2:] - 2 * x[1:-1] + x[:-2], lambda x: anp.diff(x, n=2, axis=0), R(5))
case("broadcast_to", lambda x: gf.broadcast_to(x, (2, 3, 4)), lambda x: x * np.ones((2, 3, 4)), R(3, 1))
sweep(
    "split",
    lambda x, at, axis: gf.split(x, at, axis=axis),
    lambda x, at, axis: anp.split(x, at, axis=axis),
    [R(4, 4, 4)],
    at=[4, [1, 2], []],
    axis=[0, 1, 2],
)
case("split, one part used", lambda x: gf.split(x, 2)[1], lambda x: anp.split(x, 2)[1], R(4, 2))
for _axis in (0, 1, 2):
    case(
        f"concatenate axis={_axis}",
        lambda x, y, a=_axis: gf.concat([x, y], axis=a),
        lambda x, y, a=_axis: anp.concatenate((x, y), axis=a),
        R(2, 2, 2),
        R(2, 2, 2),
    )
_CONSTANT = R(2, 3)
for _axis in (0, 1):
    case(
        f"concatenate with constants, axis {_axis}",
        lambda x, a=_axis: gf.concat([gf.tensor(_CONSTANT), x, gf.tensor(_CONSTANT)], a),
        lambda x, a=_axis: anp.concatenate((_CONSTANT, x, _CONSTANT), a),
        R(2, 3),
    )
case("concatenate x with x", lambda x: gf.concat([x, x, x * x]), lambda x: anp.concatenate([x, x, x * x]), R(2, 2))
case("append", lambda x, y: gf.concat([x, y[None]]), lambda x, y: anp.append(x, y), R(3), R())
case("append along an axis", lambda x, y: gf.concat([x, y], 0), lambda x, y: anp.append(x, y, axis=0), R(2, 3), R(1, 3))
case("vstack", lambda x, y: gf.concat([x, y]), lambda x, y: anp.vstack([x, y]), R(2, 3), R(4, 3))
case("hstack", lambda x, y: gf.concat([x, y], 1), lambda x, y: anp.hstack([x, y]), R(3, 4), R(3, 2))
for _axis in (0, 1, -1):
    case(
        f"stack axis={_axis}",
        lambda x, y, a=_axis: gf.stack([x, y], axis=a),
        lambda x, y, a=_axis: anp.stack([x, y], axis=a),
        R(2, 3),
        R(2, 3),
    )
case("array of scalars", lambda x: gf.stack([x, x * 1.0, x + 2.5]), lambda x: anp.array([x, x * 1.0, x + 2.5]), 3.0)
case(
    "array of rows of scalars",
    lambda x: gf.stack([gf.stack([x, x * 1.0, x + 2.5]), gf.stack([x**2, x, x / 2.0])]),
    lambda x: anp.array([[x, x * 1.0, x + 2.5], [x**2, x, x / 2.0]]),
    3.0,
)
case(
    "array of arrays",
    lambda x: gf.stack([gf.stack([2 * x, x + 1]), gf.stack([x, x])]),
    lambda x: anp.array([[2 * x, x + 1], [x, x]]),
    R(3, 2),
)


def _fan_out(F: Any, x: Any) -> Any:
    a = (gf.stack if F is gf else anp.array)([x, x * x, x + 2.5])
    return a + a * a


case("fan-out of an array", lambda x: _fan_out(gf, x), lambda x: _fan_out(anp, x), 3.0)
for _width in [0, 2, (1, 2), ((1, 2), (0, 3)), ((0, 0), (0, 0))]:
    case(
        f"pad {_width}",
        lambda x, w=_width: gf.pad(x, w),
        lambda x, w=_width: anp.pad(x, w, "constant"),
        R(2, 2),
    )

# ---------------------------------------------------------------------- products

sweep(
    "matmul",
    lambda x, y: x @ y,
    lambda x, y: anp.matmul(x, y),
    [R(3), R(2, 3), R(2, 2, 3)],
    [R(3), R(3, 4), R(2, 3, 4)],
)
case("matmul broadcast", gf.matmul, lambda x, y: anp.matmul(x, y), R(1, 2, 2), R(3, 2, 1))
case("matmul broadcast both ways", gf.matmul, lambda x, y: anp.matmul(x, y), R(2, 1, 2, 3), R(3, 3, 1))
case("matmul of no rows", gf.matmul, lambda x, y: anp.matmul(x, y), R(0, 3), R(3, 2))
case("dot with a transposed one", lambda x, y: x @ y.T, lambda x, y: anp.dot(x, y.T), R(3, 4), R(2, 4))
case("dot of x with itself", lambda x: x @ x.T, lambda x: anp.dot(x, x.T), R(2, 3))
for _shape in [(2, 3), (4,)]:
    case(f"dot of {_shape} with a scalar", lambda x, s: x * s, lambda x, s: anp.dot(x, s), R(*_shape), R())
    case(f"dot of a scalar with {_shape}", lambda s, x: s * x, lambda s, x: anp.dot(s, x), R(), R(*_shape))
case("outer", gf.outer, lambda x, y: anp.outer(x, y), R(4), R(3))
case("inner", lambda x, y: x @ y.T, lambda x, y: anp.inner(x, y), R(2, 3), R(4, 3))


def tensordot(x: Any, y: Any, axes: Any) -> Any:
    """Composed of gradflow operations: permute, reshape, matmul."""
    if isinstance(axes, int):
        axes = (range(x.ndim - axes, x.ndim), range(axes))
    first, second = [[a % t.ndim for a in np.atleast_1d(ax)] for ax, t in zip(axes, (x, y), strict=True)]
    kept = [i for i in range(x.ndim) if i not in first]
    rest = [i for i in range(y.ndim) if i not in second]
    shape = [x.shape[i] for i in kept] + [y.shape[i] for i in rest]
    inner = math.prod(x.shape[a] for a in first)
    left = gf.permute_dims(x, kept + first).reshape(math.prod(x.shape[i] for i in kept), inner)
    right = gf.permute_dims(y, second + rest).reshape(inner, math.prod(y.shape[i] for i in rest))
    return (left @ right).reshape(tuple(shape))


for _a, _b, _axes in [
    ((1, 3), (3,), [(1,), (0,)]),
    ((2, 3, 2), (3, 4, 2), [(1,), (0,)]),
    ((3, 1), (2, 3, 2), [(0,), (1,)]),
    ((2, 3), (1, 2, 3), [(0, 1), (1, 2)]),
    ((2, 3, 2), (2, 2, 3), [(1, 0), (2, 1)]),
    ((2, 2), (2, 2), 1),
    ((3, 2, 2), (2, 2, 3), 2),
    ((4,), (3,), 0),
    ((2, 4), (4, 3), [(-1,), (0,)]),
]:
    case(
        f"tensordot {_a} {_b} {_axes}",
        lambda x, y, a=_axes: tensordot(x, y, a),
        lambda x, y, a=_axes: anp.tensordot(x, y, a),
        R(*_a),
        R(*_b),
    )


def einsum(spec: str, *xs: Any) -> Any:
    """Composed of gradflow operations: permute, reshape, multiply, sum. No ellipsis, no letter twice in an operand."""
    operands, out = spec.split("->")
    letters = sorted(set(operands) - {","})
    product: Any = 1.0
    for names, x in zip(operands.split(","), xs, strict=True):
        ordered = gf.permute_dims(x, [names.index(c) for c in letters if c in names])
        lengths = iter(ordered.shape)
        product = product * ordered.reshape(tuple(next(lengths) if c in names else 1 for c in letters))
    total = gf.sum(product, axis=tuple(i for i, c in enumerate(letters) if c not in out))
    remaining = [c for c in letters if c in out]
    return gf.permute_dims(total, [remaining.index(c) for c in out])


for _spec, *_shapes in [
    ("ij->ji", (3, 4)),
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("bij,bjk->bik", (2, 2, 3), (2, 3, 2)),
    ("ijk,lji->lki", (2, 3, 2), (3, 3, 2)),
    ("k,nk->", (3,), (4, 3)),
    ("abcd->bd", (2, 2, 3, 2)),
    ("ij,k->ijk", (2, 3), (2,)),
    ("ij,jk,k->i", (2, 3), (3, 2), (2,)),
]:
    case(
        f"einsum {_spec}",
        lambda *xs, s=_spec: einsum(s, *xs),
        lambda *xs, s=_spec: anp.einsum(s, *xs),
        *[R(*s) for s in _shapes],
    )

# ---------------------------------------------------------------------- choices

_MASK = R(3, 4) > 0
case("where", lambda x, y: gf.where(gf.tensor(_MASK), x, y), lambda x, y: anp.where(_MASK, x, y), R(3, 4), R(3, 4))
case("where, broadcast", lambda x, y: gf.where(gf.tensor(_MASK), x, y), None, R(4), R(3, 1))
case("where, by the values", lambda x: gf.where(x > 0, x, x * x), lambda x: anp.where(x > 0, x, x * x), apart(4))
case(
    "select: where in where",
    lambda x, y, z: gf.where(x > 0, x, gf.where(y > 0, y * z, 1.1)),
    lambda x, y, z: anp.select([x > 0, y > 0], [x, y * z], 1.1),
    apart(2, 3),
    apart(2, 3),
    R(2, 3),
)
case("clip", lambda x: gf.clip(x, 0.1, 1.1), lambda x: anp.clip(x, 0.1, 1.1), apart(3, 3))
case("clip below only", lambda x: gf.clip(x, min=0.1), None, apart(3, 3))
_UNFIT = np.array([0.0, np.nan, np.inf, -np.inf])
case(
    "nan_to_num by where",
    lambda x: gf.sin(gf.where(gf.isfinite(x + gf.tensor(_UNFIT)), x + gf.tensor(_UNFIT), 0.0)),
    lambda x: anp.sin(anp.where(anp.isfinite(x + _UNFIT), x + _UNFIT, 0.0)),
    R(4),
)
case("masked before log", lambda x: gf.log(gf.where(x > 0, x, 1.0)), None, apart(5))
case("comparison times value", lambda x, y: (x > y) * x, lambda x, y: (x > y) * x, apart(3), apart(3) + 0.1)


# ---------------------------------------------------------------------- the tests of the table


def parts(out: Any) -> list[Any]:
    return [out] if hasattr(out, "shape") else list(out)


def tensors(case: Case) -> list[gf.Tensor]:
    return [gf.tensor(x) for x in case.inputs]


def weights(shapes: Sequence[Any], seed: int) -> list[np.ndarray]:
    return [np.asarray(np.random.default_rng(seed).normal(size=tuple(s))) for s in shapes]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_derivatives_are_those_of_central_differences(case: Case) -> None:
    with np.errstate(invalid="ignore"):  # some cases have NaN
        gf.gradcheck(case.ours, *tensors(case))
        gf.gradgradcheck(case.ours, *tensors(case))


@needs_autograd
@pytest.mark.parametrize("case", [c for c in CASES if c.theirs is not None], ids=str)
def test_value_and_derivatives_are_those_of_autograd(case: Case) -> None:
    shapes = [y.shape for y in parts(case.ours(*tensors(case)))]
    first, second = weights(shapes, 1), weights([x.shape for x in case.inputs], 2)
    everything = tuple(range(len(case.inputs)))

    def by_each(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *xs: [autograd.grad(function, i)(*xs) for i in everything]

    def total(function: Callable[..., Any], sum_: Callable[..., Any], ws: list[Any]) -> Callable[..., Any]:
        return lambda *xs: sum(sum_(part * w) for part, w in zip(parts(function(*xs)), ws, strict=True))

    ours = total(case.ours, gf.sum, [gf.tensor(w) for w in first])
    theirs = total(case.theirs, anp.sum, first)
    our_gradient, their_gradient = gf.grad(ours, everything), by_each(theirs)
    our_second = gf.grad(total(our_gradient, gf.sum, [gf.tensor(w) for w in second]), everything)
    their_second = by_each(total(their_gradient, anp.sum, second))
    arrays = [x if x.ndim else np.float64(x) for x in case.inputs]
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.filterwarnings("ignore", "Output seems independent of input", UserWarning)
        pairs = [
            (parts(case.ours(*tensors(case))), parts(case.theirs(*arrays))),
            (our_gradient(*tensors(case)), their_gradient(*arrays)),
            (our_second(*tensors(case)), their_second(*arrays)),
        ]
    for (found, expected), what in zip(pairs, ("value", "gradient", "second derivative"), strict=True):
        for y, t in zip(found, expected, strict=True):
            scale = np.max(np.abs(t), initial=1.0)
            np.testing.assert_allclose(y.numpy(), t, rtol=RTOL, atol=ATOL * scale, err_msg=what)
            assert y.shape == np.shape(t)


# ---------------------------------------------------------------------- values that differences cannot check


def gradients(f: Callable[..., Any], *numbers: float) -> tuple[list[float], list[float]]:
    """Return the first and the second derivative by each number (not the mixed ones)."""
    xs = [gf.tensor(n, dtype="float64") for n in numbers]
    with np.errstate(all="ignore"):
        first = [gf.grad(f, i)(*xs).item() for i in range(len(xs))]
        second = [gf.grad(gf.grad(f, i), i)(*xs).item() for i in range(len(xs))]
    return first, second


@pytest.mark.parametrize(
    ("f", "numbers", "first", "second"),
    [
        (gf.abs, [0.0], [0.0], [0.0]),
        (gf.sign, [0.0], [0.0], [0.0]),
        (gf.relu, [0.0], [0.0], [0.0]),
        (lambda x: x**0, [0.0], [0.0], [0.0]),
        (lambda x: x**0, [2.0], [0.0], [0.0]),
        (lambda x: x**1, [0.0], [1.0], [0.0]),
        (lambda x: x**2, [0.0], [0.0], [2.0]),
        (lambda x: x**3, [-2.0], [12.0], [-12.0]),
        (lambda x: x**-1, [-2.0], [-0.25], [-0.25]),
        (lambda x, y: x**y, [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
        (lambda x, y: x**y, [0.0, 3.0], [0.0, 0.0], [0.0, 0.0]),
        (lambda x, y: x**y, [-2.0, 2.0], [-4.0, math.nan], [2.0, math.nan]),
        (lambda y: 0.0**y, [1.5], [0.0], [0.0]),
        (lambda y: 1.0**y, [1.5], [0.0], [0.0]),
        (gf.sqrt, [0.0], [math.inf], [-math.inf]),
        (gf.log, [0.0], [math.inf], [-math.inf]),
        (lambda x: 1 / x, [0.0], [-math.inf], [math.inf]),
        (gf.exp, [-math.inf], [0.0], [0.0]),
        (gf.exp, [math.inf], [math.inf], [math.inf]),
        (gf.tanh, [math.inf], [0.0], [0.0]),
        (gf.sigmoid, [-math.inf], [0.0], [0.0]),
        (gf.softplus, [1000.0], [1.0], [0.0]),
        (lambda x, y: x * y, [math.nan, 2.0], [2.0, math.nan], [0.0, 0.0]),
        (lambda x, y: gf.maximum(x, y), [1.0, 1.0], [0.5, 0.5], [0.0, 0.0]),
        (lambda x, y: gf.stack([x, y, y]).max(), [1.0, 1.0], [1 / 3, 2 / 3], [0.0, 0.0]),
        (lambda x: gf.stack([x, x + 2]).var(), [0.0], [0.0], [0.0]),
        (lambda x: gf.stack([x, x + 2]).std(), [0.0], [0.0], [0.0]),
        (lambda x: gf.stack([x, x]).std(), [1.0], [0.0], [0.0]),
        (lambda x: gf.where(x > 0, gf.log(gf.where(x > 0, x, 1.0)), 0.0), [-1.0], [0.0], [0.0]),
        (lambda x: gf.clip(x, 0.0, 1.0), [0.0], [1.0], [0.0]),
    ],
)
def test_derivatives_at_edges(f: Any, numbers: list[float], first: list[float], second: list[float]) -> None:
    np.testing.assert_array_equal(gradients(f, *numbers), (first, second))


COMPARISONS: list[Callable[..., Any]] = [
    lambda x, y: x < y,
    lambda x, y: x <= y,
    lambda x, y: x > y,
    lambda x, y: x >= y,
    lambda x, y: x == y,
    lambda x, y: x != y,
]


@pytest.mark.parametrize("i", range(len(COMPARISONS)), ids=["<", "<=", ">", ">=", "==", "!="])
def test_comparisons_have_gradient_zero_and_their_value_under_grad(i: int) -> None:
    def count(x: Any, y: Any) -> Any:
        return gf.astype(COMPARISONS[i](x, y), "float64").sum() + 0.0

    for a, b in itertools.product(PAIRS, PAIRS):
        x, y = gf.tensor(a), gf.tensor(b)
        value, found = gf.value_and_grad(count, (0, 1))(x, y)
        assert value.item() == np.sum(COMPARISONS[i](a, b))
        assert [g.shape for g in found] == [a.shape, b.shape]
        assert all((g == 0).all().item() for g in found)


def test_a_function_that_does_not_depend_on_its_argument_has_gradient_zero() -> None:
    constant = gf.tensor(R(3, 2))
    x = gf.tensor(R(3, 2))
    assert gf.grad(lambda x: constant.sum())(x).tolist() == gf.zeros_like(x).tolist()
    _, back = gf.vjp(lambda x: constant, x)
    assert back(gf.ones_like(constant))[0].tolist() == gf.zeros_like(x).tolist()


def test_gradient_comes_back_in_the_dtype_of_the_argument() -> None:
    x = gf.tensor([0.0, 1.0, 2.0], dtype="float32")
    found = gf.grad(lambda x: gf.sin(gf.astype(x, "float64")).sum())(x)
    assert found.dtype is gf.float32
    np.testing.assert_allclose(found.numpy(), np.cos([0.0, 1.0, 2.0]), rtol=1e-6)


def test_a_traced_number_looks_like_a_0d_tensor() -> None:
    def f(x: Any) -> Any:
        assert (x.shape, x.ndim, x.size, x.dtype) == ((), 0, 1, gf.float64)
        return x**2

    assert gf.grad(f)(gf.tensor(3.0, dtype="float64")).item() == 6.0


def test_a_traced_tensor_has_a_length_and_rows() -> None:
    def f(x: Any) -> Any:
        assert len(x) == 3
        return sum(row[0] * row[1] for row in x)

    assert gf.grad(f)(gf.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])).tolist() == [[2, 1], [4, 3], [6, 5]]


# ---------------------------------------------------------------------- functions of functions, and of containers


def test_derivatives_of_nested_functions_are_not_confused() -> None:
    x = gf.tensor(3.0, dtype="float64")
    assert gf.grad(lambda x: x * gf.grad(lambda y: x + y)(gf.ones_like(x)))(x).item() == 1.0
    assert gf.grad(lambda x: x * gf.grad(lambda y: x * y)(gf.ones_like(x)))(x).item() == 6.0
    assert gf.grad(lambda x: gf.grad(lambda y: x * y * y)(x))(x).item() == 12.0


def test_repeated_gradients_to_order_five() -> None:
    f: Any = lambda x: gf.sin(x * 2.0)  # noqa: E731
    x = gf.tensor(0.3, dtype="float64")
    for order in range(1, 6):
        f = gf.grad(f)
        expected = 2.0**order * [math.sin, math.cos, lambda v: -math.sin(v), lambda v: -math.cos(v)][order % 4](0.6)
        assert f(x).item() == pytest.approx(expected, rel=1e-12)


def test_one_argument_given_twice() -> None:
    x = gf.tensor(R(3))
    one, two = gf.grad(lambda a, b: (a * a * b).sum(), (0, 1))(x, x)
    np.testing.assert_allclose(one.numpy(), 2 * x.numpy() ** 2)
    np.testing.assert_allclose(two.numpy(), x.numpy() ** 2)


def test_a_closure_sees_its_variable_as_a_constant() -> None:
    x, y = gf.tensor(2.0), gf.tensor(5.0)
    assert gf.grad(lambda x: x * x * y)(x).item() == 20.0
    assert gf.grad(lambda y: x * x * y)(y).item() == 4.0


def test_loops_and_branches_are_followed() -> None:
    def f(x: Any) -> Any:
        y = x
        for i in range(4):
            y = y * x if i % 2 else y + gf.sin(x)
            if y.item() > 10:
                break
        return y

    gf.gradcheck(f, gf.tensor(1.2, dtype="float64"))
    gf.gradgradcheck(f, gf.tensor(1.2, dtype="float64"))


@pytest.mark.parametrize(
    ("name", "f", "make"),
    [
        ("dict", lambda p: (p["w"] * p["w"] * p["b"]).sum(), lambda a, b: {"w": a, "b": b}),
        ("list", lambda p: (p[0] * p[0] * p[1]).sum(), lambda a, b: [a, b]),
        ("tuple", lambda p: (p[0] * p[0] * p[1]).sum(), lambda a, b: (a, b)),
        ("dict of lists", lambda p: (p["l"][0] ** 2 * p["l"][1]).sum(), lambda a, b: {"l": [a, b]}),
        ("items", lambda p: sum((v * v * v).sum() for v in p.values()), lambda a, b: {"w": a, "b": b}),
        ("slice of a list", lambda p: sum((v * v).sum() for v in p[1:]), lambda a, b: [a, b, a]),
        ("one unused", lambda p: (p["w"] * p["w"]).sum(), lambda a, b: {"w": a, "b": b}),
        ("made inside", lambda p: (lambda q: (q["x"] * q["y"]).sum())({"x": p[0], "y": p[1] * 2}), lambda a, b: [a, b]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_containers_as_arguments(name: str, f: Any, make: Any) -> None:
    argument = make(gf.tensor(R(2, 3)), gf.tensor(R(3)))
    found = gf.grad(f)(argument)
    assert type(found) is type(argument)
    gf.gradcheck(f, argument)
    gf.gradgradcheck(f, argument)


def test_containers_as_results() -> None:
    def f(x: Any, y: Any) -> Any:
        return {"sum": x + y, "more": [x * y, (gf.sin(x),)]}

    gf.gradcheck(f, gf.tensor(R(2)), gf.tensor(R(2)))
    gf.gradgradcheck(f, gf.tensor(R(2)), gf.tensor(R(2)))


@needs_autograd
def test_jacobian_hessian_and_products_are_those_of_autograd() -> None:
    a, x, v = R(3, 4), R(4), R(4)

    def ours(x: Any) -> Any:
        return gf.tanh(gf.tensor(a) @ x)

    def theirs(x: Any) -> Any:
        return anp.tanh(anp.dot(a, x))

    def scalar(x: Any) -> Any:
        return anp.sum(theirs(x) ** 3)

    t, tv = gf.tensor(x), gf.tensor(v)
    np.testing.assert_allclose(gf.jacobian(ours)(t).numpy(), autograd.jacobian(theirs)(x), rtol=RTOL)
    found = gf.hessian(lambda x: (ours(x) ** 3).sum())(t)
    np.testing.assert_allclose(found.numpy(), autograd.hessian(scalar)(x), rtol=RTOL, atol=ATOL)
    (product,) = gf.hvp(lambda x: (ours(x) ** 3).sum(), (t,), (tv,))
    np.testing.assert_allclose(product.numpy(), autograd.hessian_vector_product(scalar)(x, v), rtol=RTOL, atol=ATOL)
    _, direction = gf.jvp(ours, (t,), (tv,))
    np.testing.assert_allclose(direction.numpy(), autograd.jacobian(theirs)(x) @ v, rtol=RTOL)
    third = gf.jacobian(gf.hessian(lambda x: (ours(x) ** 3).sum()))(t)
    np.testing.assert_allclose(third.numpy(), autograd.jacobian(autograd.hessian(scalar))(x), rtol=1e-9, atol=1e-11)


def test_names_of_cases_are_unique() -> None:
    names = [c.name for c in CASES]
    assert sorted(set(names)) == sorted(names)


def test_what_has_no_counterpart_has_none() -> None:
    names = {name for group in NO_COUNTERPART for name in group.split()}
    assert [name for name in names - {"trace"} if hasattr(gf, name)] == []


def main() -> None:
    """Print the counts."""
    print(f"{len(CASES)} cases; {sum(c.theirs is not None for c in CASES)} of them against autograd as well")
    for names, why in NO_COUNTERPART.items():
        print(f"no counterpart: {names}: {why}")


if __name__ == "__main__":
    main()
