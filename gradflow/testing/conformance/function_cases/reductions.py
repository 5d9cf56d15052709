"""Calls of reductions, running sums and `argsort`."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gradflow.testing.conformance.function_cases.calls import WIDE_INTEGERS, Table
from gradflow.testing.conformance.kernel_cases.inputs import normal

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


def add_reductions(t: Table) -> None:
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


def add_long_sums(t: Table) -> None:
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
