"""The cases of `test_array_functions`: calls of every array function, and how close to NumPy each must be.

Results must be exact where IEEE 754 or the nature of the function makes it so; within 4 ulp of the float64 value for
functions of one number; within K * eps * sum(|x|) for sums and products of K terms, and within
(20 + log2 K) * eps * sum(|x|) for sums of many terms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradflow.testing.conformance import REALS
from gradflow.testing.conformance.kernel_cases.inputs import name_of, normal

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
WIDE_INTEGERS = ("int32", "int64")
ALL = ("bool", *INTEGERS, *REALS)


@dataclass(frozen=True)
class Native:
    """A dtype among arguments: the backend's object of this name; without a name, that of the dtype under test."""

    name: str = ""


@dataclass(frozen=True)
class Call:
    """A call of the array function `subject`; floating arrays among the arguments are cast to the dtype under test.

    bound: `bound(eps, *arguments, **options)` returns the error allowed, from the float64 value.
    ulp: the error allowed in units in the last place. With neither, the result must equal NumPy's bit for bit.
    reference: the function to call instead of NumPy's.
    """

    subject: str
    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = REALS
    ulp: float | None = None
    bound: Callable[..., Any] | None = None
    reference: Callable[..., Any] | None = None

    @property
    def needs(self) -> set[str]:
        """The dtypes that the call names, besides the one under test."""
        return {x.name for x in (*self.arguments, *self.options.values()) if isinstance(x, Native) and x.name}

    def __str__(self) -> str:
        return f"{self.subject}-{self.name}"


def _of(dtypes: tuple[str, ...], x: Any) -> Any:
    """Return integers from 1 to 100 for integer dtypes, so that casts are exact; x itself for other dtypes."""
    return x if dtypes[0] in REALS else (np.abs(x * 20).astype(np.int64) % 100 + 1)


class _Table:
    """Collects calls. A call without a name is named after its shapes and options."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def add(self, subject: str, *arguments: Any, name: str = "", dtypes: tuple[str, ...] = REALS, ulp: Any = None,
            bound: Any = None, reference: Any = None, **options: Any) -> None:  # fmt: skip
        parts = [name] if name else [_title(a) for a in arguments]
        parts += [f"{key}={_title(value)}" for key, value in options.items()]
        title = "-".join(parts)
        if dtypes[0] not in REALS:
            title += "-" + dtypes[0].rstrip("0123456789")
        self.calls.append(Call(subject, title, _arrays(arguments), options, dtypes, ulp, bound, reference))


def _arrays(x: Any) -> Any:
    """Return NumPy scalars as arrays, since backends take only those."""
    if isinstance(x, (tuple, list)):
        return type(x)(_arrays(part) for part in x)
    return np.asarray(x) if isinstance(x, np.generic) else x


def _title(x: Any) -> str:
    if isinstance(x, np.ndarray):
        return name_of(x.shape)
    if isinstance(x, Native):
        return x.name or "dtype"
    if isinstance(x, (list, tuple)):
        return "(" + ",".join(_title(part) for part in x) + ")"
    return str(x)


SHAPES: list[tuple[int, ...]] = [(3, 4), (), (0, 3), (5,), (2, 3, 4)]
PAIRS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((), (2, 3)), ((), ()), ((0, 3), (1, 3)), ((2, 3, 4), (3, 1)),
]  # fmt: skip
EDGES = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -1.5, np.inf, -np.inf, np.nan, 3.0, -3.0])


def _creation(t: _Table) -> None:
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    for dtypes in (REALS, ("bool",), INTEGERS):
        for shape in ((3, 4), (), (0, 3), (5,)):
            for subject in ("zeros", "ones"):
                t.add(subject, shape, dtype=Native(), dtypes=dtypes)
            t.add("empty", shape, dtype=Native(), dtypes=dtypes, reference=_only_shape)
            x = _of(dtypes, normal(shape, 50))
            t.add("zeros_like", x, dtypes=dtypes)
            t.add("ones_like", x, dtypes=dtypes)
        t.add("full", (2, 3), 1 if dtypes != REALS else 0.3, dtype=Native(), dtypes=dtypes)
        t.add("full", (), 1, dtype=Native(), dtypes=dtypes)
    t.add("full", (), 2**64 - 1, dtype=Native(), dtypes=("uint64",))
    t.add("full", (2,), -math.inf, dtype=Native())
    for dtypes in (REALS, WIDE_INTEGERS, ("uint64",)):
        t.add("arange", 5, dtype=Native(), dtypes=dtypes)
        t.add("arange", 0, dtype=Native(), dtypes=dtypes)
        t.add("arange", 2, 11, 3, dtype=Native(), dtypes=dtypes)
    t.add("arange", 5, 0, -2, dtype=Native(), dtypes=("int64", "int32"))
    for shape in SHAPES:
        x = normal(shape, 51, 3.0)
        t.add("asarray", x)
        for target in ("float32", "float64", "int64", "bool"):
            t.add("astype", x, Native(target), reference=lambda x, dtype: x.astype(dtype))
        t.add("astype", x, Native(), copy=False, reference=lambda x, dtype, copy: x.astype(dtype))
    for target in ALL:
        x = (normal((3, 5), 52) * 30).astype(np.int64)
        x = np.abs(x) if target.startswith("u") else x
        t.add("astype", x, Native(target), dtypes=("int64",), reference=lambda x, dtype: x.astype(dtype))
        t.add("astype", x > 0, Native(target), dtypes=("bool",), reference=lambda x, dtype: x.astype(dtype))
    t.add("asarray", 1.5, dtype=Native())
    t.add("asarray", normal((3,), 53), dtype=Native("float64"))


def _only_shape(shape: Any, dtype: Any) -> Any:
    """The reference for `empty`, whose values are not compared: see `test_array_function`."""
    return np.zeros(shape, dtype)


def _elementwise(t: _Table) -> None:
    for subject in ("abs", "negative", "square", "sign", "floor", "ceil", "round", "isfinite", "isinf", "isnan"):
        for shape in SHAPES:
            t.add(subject, normal(shape, 54, 3.0))
        t.add(subject, EDGES, name="edges")
    for subject in ("abs", "negative", "square", "sign"):
        t.add(subject, np.array([[3, -4], [0, 7]]), dtypes=WIDE_INTEGERS)
    for subject in ("exp", "expm1", "sin", "cos", "tanh"):
        for shape in SHAPES:
            t.add(subject, normal(shape, 55, 2.0), ulp=4)
        t.add(subject, np.array([0.0, -0.0, 1e-4, -1e-4, 1.0, -1.0, 5.0, -5.0]), name="small", ulp=4)
    for subject in ("log", "sqrt", "log1p"):
        for shape in SHAPES:
            t.add(subject, np.abs(normal(shape, 56, 2.0)) + 0.1, ulp=None if subject == "sqrt" else 4)
    t.add("log1p", np.array([0.0, 1e-4, -1e-4, 1e-3, -0.5]), name="small", ulp=4)
    for a, b in PAIRS:
        x, y = normal(a, 57, 2.0), normal(b, 58, 2.0)
        for subject in ("add", "subtract", "multiply", "divide", "maximum", "minimum"):
            t.add(subject, x, y)
        t.add("pow", np.abs(x) + 0.1, y, ulp=4)
        for subject in _COMPARISONS:
            t.add(subject, np.floor(x), np.floor(y))
            t.add(subject, np.floor(x).astype(np.int64), np.floor(y).astype(np.int64), dtypes=WIDE_INTEGERS)
        for subject in ("add", "subtract", "multiply", "maximum", "minimum"):
            t.add(subject, (x * 9).astype(np.int64), (y * 9).astype(np.int64), dtypes=WIDE_INTEGERS)
        for subject in ("logical_and", "logical_or"):
            t.add(subject, x > 0, y > 0, dtypes=("bool",))
        t.add("where", x > y, x, y)
        t.add("where", x > 0, (x * 9).astype(np.int64), (y * 9).astype(np.int64), dtypes=WIDE_INTEGERS)
    t.add("logical_not", normal((3, 4), 59) > 0, dtypes=("bool",))
    t.add("logical_not", np.asarray(True), dtypes=("bool",))
    for subject in ("maximum", "minimum"):  # NaN wins on either side
        t.add(subject, np.array([np.nan, 1.0, np.inf, -np.inf]), np.array([1.0, np.nan, 0.0, 0.0]), name="edges")
    words = np.array([0, 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15], np.uint64)
    small = np.array([0, 1, 12, 32, 63], np.uint64)
    for subject in ("add", "subtract", "multiply", "bitwise_and", "bitwise_xor", "less", "less_equal", "greater_equal"):
        t.add(subject, words[:, None], words, name="words", dtypes=("uint64",))
    t.add("bitwise_right_shift", words[:, None], small, name="words", dtypes=("uint64",))
    # a Python number for one operand does not change the dtype
    x = normal((3, 4), 60, 2.0)
    for y in (x, np.asarray(1.25)):
        for subject in ("add", "subtract", "multiply", "divide", "maximum", "minimum", *_COMPARISONS):
            t.add(subject, y, 0.5, name=f"{name_of(y.shape)}-number")
            t.add(subject, 2, y, name=f"number-{name_of(y.shape)}")
        t.add("pow", np.abs(y) + 0.1, 2.5, name=f"{name_of(y.shape)}-number", ulp=4)
        t.add("pow", 2.0, y, name=f"number-{name_of(y.shape)}", ulp=4)
        t.add("where", y > 0, y, 0.0, name=f"{name_of(y.shape)}-number")
        t.add("where", y > 0, -math.inf, y, name=f"number-{name_of(y.shape)}")
    integers = np.array([[3, -4], [0, 7]])
    for subject in ("add", "subtract", "multiply", "maximum", "minimum", *_COMPARISONS):
        t.add(subject, integers, 3, name="number", dtypes=WIDE_INTEGERS)
    for low, high in ((-1.0, 1.0), (None, 0.5), (-0.5, None), (0, 1)):
        t.add("clip", x, low, high, reference=np.clip)
    t.add("clip", x, min=-0.5, reference=np.clip)
    t.add("clip", x, max=0.5, reference=np.clip)
    t.add("clip", x, x - 0.1, np.abs(x), name="arrays", reference=np.clip)
    t.add("clip", integers, -1, 3, dtypes=WIDE_INTEGERS, reference=np.clip)


_COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
AXES: list[tuple[tuple[int, ...], Any]] = [
    ((3, 4), None), ((3, 4), 0), ((3, 4), -1), ((3, 4), (0, 1)), ((2, 3, 4), (0, 2)), ((2, 3, 4), 1), ((), None),
    ((0, 3), 0), ((5,), 0), ((3, 4), ()),
]  # fmt: skip


def _terms(x: Any, axis: Any) -> int:
    chosen = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return int(np.prod([x.shape[a] for a in chosen]))


def _roundings(n: Any) -> Any:
    """Return the error allowed for a sum of n terms, in units of eps times the sum of their magnitudes."""
    return np.minimum(n + 1, 20 + np.log2(np.maximum(n, 1)))


def _sum_bound(e: float, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return _roundings(_terms(x, axis)) * e * np.sum(np.abs(x), axis=axis, keepdims=keepdims)


def _mean_bound(e: float, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return 2 * _sum_bound(e, x, axis, keepdims) / _terms(x, axis)


def _prod_bound(e: float, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return (_terms(x, axis) + 1) * e * np.prod(np.abs(x), axis=axis, keepdims=keepdims)


def _var_bound(e: float, x: Any, axis: Any = None, keepdims: bool = False, correction: float = 0.0) -> Any:
    n = _terms(x, axis)
    return 4 * _roundings(n + 1) * e * np.sum(x**2, axis=axis, keepdims=keepdims) / (n - correction)


def _std_bound(e: float, x: Any, axis: Any = None, keepdims: bool = False, correction: float = 0.0) -> Any:
    root = np.std(x, axis=axis, keepdims=keepdims, correction=correction)
    return _var_bound(e, x, axis, keepdims, correction) / np.where(root == 0, np.inf, root) + 4 * e * root


def _scan_bound(e: float, x: Any, axis: Any = None) -> Any:
    axis = 0 if axis is None else axis
    n = np.arange(1, x.shape[axis] + 1).reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])
    return _roundings(n) * e * np.cumsum(np.abs(x), axis=axis)


def _reductions(t: _Table) -> None:
    bounds = {"sum": _sum_bound, "mean": _mean_bound, "prod": _prod_bound, "var": _var_bound, "std": _std_bound}
    where: dict[str, Any]
    orders: list[dict[str, Any]] = [{}, {"descending": True}]
    for shape, axis in AXES:
        x = normal(shape, 61, 2.0)
        for keepdims in ({}, {"keepdims": True}):
            where = {**({} if axis is None else {"axis": axis}), **keepdims}
            for subject, bound in bounds.items():
                if subject in ("sum", "prod") or _terms(x, axis):
                    t.add(subject, x, bound=bound, **where)
            if axis != () and x.size:
                for subject in ("max", "min"):
                    t.add(subject, x, **where)
                    t.add(subject, (x * 30).astype(np.int64), dtypes=WIDE_INTEGERS, **where)
            for subject in ("any", "all"):
                t.add(subject, x > -1, dtypes=("bool",), **where)
            if x.ndim and x.size and not isinstance(axis, tuple):
                for subject in ("argmax", "argmin"):
                    t.add(subject, np.round(x), **where)
        for name in ("int8", "int32", "int64", "uint8", "uint64"):
            integers = np.abs(x * 9).astype(np.int64)
            t.add("sum", integers, dtypes=(name,), **({} if axis is None else {"axis": axis}))
    t.add("sum", np.ones((2000,)), name="long", bound=_sum_bound)
    t.add("mean", normal((3, 700), 62), axis=-1, bound=_mean_bound)
    t.add("sum", np.full((100,), 1000.0), name="large", dtypes=("float32", "float64"), bound=_sum_bound)
    t.add("mean", np.full((100,), 1000.0), name="large", bound=_mean_bound)  # the sum exceeds float16
    t.add("prod", np.array([1, 2, 3, -4]), dtypes=WIDE_INTEGERS)
    t.add("max", np.array([[1.0, np.nan], [np.inf, -np.inf]]), axis=1, name="edges")
    t.add("min", np.array([[1.0, np.nan], [np.inf, -np.inf]]), axis=1, name="edges")
    for subject in ("var", "std"):
        t.add(subject, normal((3, 4), 63), axis=1, correction=1.0, bound=bounds[subject])
    ties = np.array([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, -1.0, -1.0, 5.0]])
    for subject in ("argmax", "argmin"):  # the first of several
        t.add(subject, ties, name="ties", axis=1)
        t.add(subject, ties, name="ties")
    empty = (((0, 3), 0), ((3, 0), 1), ((100, 0), 0), ((0, 100), 1))
    for shape, axis in (((3, 4), 0), ((3, 4), 1), ((2, 3, 4), -1), ((5,), None), *empty):
        where = {} if axis is None else {"axis": axis}
        x = normal(shape, 64)
        t.add("cumulative_sum", x, bound=_scan_bound, **where)
        t.add("cumulative_sum", (x * 9).astype(np.int64), dtypes=WIDE_INTEGERS, **where)
    for shape, axis in (((3, 4), 0), ((3, 4), 1), ((2, 3, 4), None), ((7,), None), ((0, 3), 0), ((1,), 0)):
        where = {} if axis is None else {"axis": axis}
        for order in orders:
            x = np.round(normal(shape, 65, 2.0))
            t.add("argsort", x, reference=_argsort, **where, **order)
            t.add("argsort", x.astype(np.int64), reference=_argsort, dtypes=WIDE_INTEGERS, **where, **order)
    words = np.array([2**63, 1, 2**64 - 1, 0, 1], np.uint64)
    t.add("argsort", words, stable=True, dtypes=("uint64",), reference=_argsort)


def _long_sums(t: _Table) -> None:
    """Sums of many equal numbers: added one after another, their rounding errors have one sign and add up."""
    x = np.full((10_000, 3), 0.7)
    for terms, axis in (
        (x, 0), (x, None), (x.T, 1), (x.reshape(100, 100, 3), (0, 1)), (x.reshape(2, 5000, 3), 1),
        (x.reshape(100, 3, 100), (0, 2)), (x.reshape(-1), 0),
    ):  # fmt: skip
        n = _terms(terms, axis)
        allowed = 0.7 * _roundings(n)
        for subject, times, bound in (
            ("sum", n, lambda e, x, axis, b=n * allowed: b * e),
            ("mean", 1, lambda e, x, axis, b=2 * allowed: b * e),
            ("var", 0, lambda e, x, axis, b=2 * allowed: (b * e) ** 2),
            ("std", 0, lambda e, x, axis, b=2 * allowed: b * e),
        ):
            t.add(subject, terms, axis=axis, reference=functools.partial(_multiple, times=times), bound=bound)
        if isinstance(axis, int):
            t.add("cumulative_sum", terms, axis=axis, reference=_multiples, bound=_scan_bound)


def _multiple(x: Any, axis: Any, times: int) -> Any:
    """Return the reduction of equal numbers to `times` the number."""
    return np.full(np.any(x, axis=axis).shape, times * float(x.reshape(-1)[0])).astype(x.dtype)


def _multiples(x: Any, axis: int) -> Any:
    """Return the running sum of equal numbers."""
    n = np.arange(1.0, x.shape[axis] + 1).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return np.broadcast_to(n * float(x.reshape(-1)[0]), x.shape).astype(x.dtype)


def _argsort(x: Any, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """The standard's argsort: equal elements keep their order, also in descending order."""
    ranks = np.unique(x, return_inverse=True)[1].reshape(x.shape)
    return np.argsort(-ranks if descending else ranks, axis=axis, kind="stable")


def _shapes(t: _Table) -> None:
    shape: tuple[int, ...]
    for dtypes in (REALS, ("bool",), ("int64",)):
        x, y = (_of(dtypes, normal((2, 3, 4), seed)) for seed in (66, 67))
        if dtypes == ("bool",):
            x, y = x > 50, y > 50
        empty, scalar = x[:, :0], x[0, 0, 0].reshape(())
        for shape in ((24,), (4, 6), (-1,), (2, -1), (2, 1, 3, 4)):
            t.add("reshape", x, shape, dtypes=dtypes)
        t.add("reshape", empty, (0, 5), dtypes=dtypes)
        t.add("reshape", scalar, (1, 1), dtypes=dtypes)
        t.add("reshape", x[:1, :1, :1], (), dtypes=dtypes)
        sources = ((x[0], (5, 3, 4)), (x[:, :1], (2, 3, 4)), (scalar, (2, 2)), (x, (2, 3, 4)), (empty, (2, 0, 4)))
        for a, shape in sources:
            t.add("broadcast_to", a, shape, dtypes=dtypes)
        for axes in ((2, 0, 1), (0, 1, 2), (1, 0, 2)):
            t.add("permute_dims", x, axes, dtypes=dtypes)
        t.add("permute_dims", scalar, (), dtypes=dtypes)
        t.add("matrix_transpose", x, dtypes=dtypes)
        t.add("matrix_transpose", x[0], dtypes=dtypes)
        t.add("squeeze", x[:, :1], axis=1, dtypes=dtypes)
        t.add("squeeze", x[:1, :, :1], axis=(0, 2), dtypes=dtypes)
        t.add("squeeze", x[:1, :, :1], axis=-1, dtypes=dtypes)
        for axis in (0, 1, -1):
            t.add("expand_dims", x, axis=axis, dtypes=dtypes)
        t.add("expand_dims", scalar, axis=0, dtypes=dtypes)
        t.add("concat", [x, y], dtypes=dtypes)
        t.add("concat", [x, y[:, :1]], axis=1, dtypes=dtypes)
        t.add("concat", [x, y, empty], axis=-2, dtypes=dtypes)
        t.add("concat", [x], axis=0, dtypes=dtypes)
        t.add("stack", [x, y], dtypes=dtypes)
        t.add("stack", [x, y, x], axis=-1, dtypes=dtypes)
        t.add("stack", [scalar, scalar], axis=0, dtypes=dtypes)
        t.add("flip", x, dtypes=dtypes)
        t.add("flip", x, axis=0, dtypes=dtypes)
        t.add("flip", x, axis=(1, 2), dtypes=dtypes)
        t.add("flip", empty, axis=-1, dtypes=dtypes)
        t.add("flip", scalar, dtypes=dtypes)
    x = normal((3, 4), 68)
    for indices, axis in (
        (np.array([[0, 3, 3], [1, 1, 1], [2, 0, 3]]), 1), (np.array([[0, 2, 2, 0]]), 0),
        (np.array([[3], [0], [1]]), -1), (np.zeros((3, 0), np.int64), 1),
    ):  # fmt: skip
        t.add("take_along_axis", x, indices, axis=axis)
    t.add("take_along_axis", normal((5,), 69), np.array([4, 0, 0]), axis=0)
    for a, b in (
        ((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (3, 4, 5)), ((0, 4), (4, 5)), ((3, 0), (0, 5)), ((3, 4), (4, 0)), ((33, 65), (65, 17)),
    ):  # fmt: skip
        t.add("matmul", normal(a, 70), normal(b, 71), bound=_matmul_bound)


def _matmul_bound(e: float, a: Any, b: Any) -> Any:
    return (a.shape[-1] + 1) * e * np.matmul(np.abs(a), np.abs(b))


def _calls() -> Sequence[Call]:
    table = _Table()
    for part in (_creation, _elementwise, _reductions, _long_sums, _shapes):
        part(table)
    return list({str(call) + str(call.dtypes): call for call in table.calls}.values())


CALLS = _calls()
"""The calls of every array function."""
