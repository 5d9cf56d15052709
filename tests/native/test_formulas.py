"""Elementary functions of native code, to units in the last place, for vectors of every processor's width."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from emitting import TARGETS, run
from gradflow_numpy.native import formulas
from gradflow_numpy.native.emit import F32, F64, Function, Target, Value

REALS = {"float32": F32, "float64": F64}
BOUNDS = {"exp": 2, "expm1": 2, "log": 2, "log1p": 2, "tanh": 4}
"""The largest errors, in units in the last place."""
INF, NAN = math.inf, math.nan
EDGES: dict[str, list[tuple[float, float]]] = {
    "exp": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (1000.0, INF), (-1000.0, 0.0), (NAN, NAN)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1.0), (1000.0, INF), (-1000.0, -1.0), (NAN, NAN)],
    "log": [(0.0, -INF), (-0.0, -INF), (1.0, 0.0), (INF, INF), (-INF, NAN), (-1e-30, NAN), (NAN, NAN)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (INF, INF), (-INF, NAN), (-1.5, NAN), (NAN, NAN)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (1000.0, 1.0), (-1000.0, -1.0), (NAN, NAN)],
}
"""Arguments and values."""
REFERENCE: dict[str, Callable[[Decimal], Decimal]] = {
    "exp": Decimal.exp,
    "expm1": lambda x: x.exp() - 1,
    "log": Decimal.ln,
    "log1p": lambda x: (1 + x).ln(),
    "tanh": lambda x: 1 - 2 / ((2 * max(min(x, Decimal(50)), Decimal(-50))).exp() + 1),
}

targets = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
functions = pytest.mark.parametrize("name", BOUNDS)


def values(name: str, target: Target, x: Any, vectors: bool = True) -> Any:
    """The function of every element of x, whose length is a multiple of 16."""
    out = np.empty_like(x)

    def build(fn: Function, source: Value, to: Value) -> None:
        with fn.loop(0, x.size, fn.lanes if vectors else 1) as i:
            given = fn.load(source + i * fn.size, None if vectors else fn.real)
            fn.store(getattr(formulas, name)(fn, given), to + i * fn.size)

    run(build, target, x, out, real=REALS[x.dtype.name])
    return out


def points(name: str, dtype: str, n: int) -> Any:
    """Numbers where the function is finite: all magnitudes, and the ranges where its values change; 5 n."""
    r = np.random.default_rng(17)
    bits = np.dtype(dtype).itemsize * 8
    low, high = {"exp": (-104, 88.7), "expm1": (-20, 88.7), "tanh": (-10, 10)}.get(name, (-1, 4))
    if dtype == "float64" and name.startswith("exp"):
        low, high = low * 7, 709.7
    parts = [
        r.integers(0, 2**bits - 1, n, f"uint{bits}", endpoint=True).view(dtype),
        *(r.uniform(a, b, n) for a, b in ((low, high), (-1, 1), (0.4, 1.6))),
        r.choice([-1, 1], n) * 10.0 ** r.uniform(-12, 0, n),
    ]
    x = np.concatenate(parts, dtype=dtype, casting="same_kind")
    if name == "log":
        x = np.abs(x)
    inside = np.isfinite(x) & (x > -1 if name == "log1p" else x < high if name.startswith("exp") else x == x)
    return np.where(inside, x, np.asarray(0.5, dtype))


def unit(exact: Any, dtype: str) -> Any:
    """The unit in the last place of the numbers nearest to `exact`."""
    return np.spacing(np.abs(exact.astype(dtype))).astype(exact.dtype)


@targets
@functions
def test_in_float32_they_are_within_units_in_the_last_place(name: str, target: Target) -> None:
    x = points(name, "float32", 16000)
    exact = getattr(np, name)(x.astype("float64"))
    error = np.abs(values(name, target, x) - exact) / unit(exact, "float32")
    assert error.max() <= BOUNDS[name], x[error.argmax()]


@functions
def test_in_float64_they_are_within_units_in_the_last_place(name: str) -> None:
    x = points(name, "float64", 800)
    x = np.where(np.abs(x) < 1e-30, x * 0 + 2.0**-70, x) if name != "log" else x  # the digits below would not do
    out = values(name, TARGETS["avx2"], x)
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -(10**6), 10**6
        for given, found in zip(x.tolist(), out.tolist(), strict=True):
            exact = REFERENCE[name](Decimal(given))
            error = abs(Decimal(found) - exact) / Decimal(math.ulp(float(exact)))
            assert error <= BOUNDS[name], given


@targets
@pytest.mark.parametrize("dtype", REALS)
@functions
def test_their_edges_are_those_of_the_functions(name: str, dtype: str, target: Target) -> None:
    given, expected = np.resize(np.array(EDGES[name], dtype), (16, 2)).T.copy()
    out = values(name, target, given)
    assert np.array_equal(out, expected, equal_nan=True), (given, out)
    zeros = expected == 0
    assert np.array_equal(np.signbit(out[zeros]), np.signbit(expected[zeros]))


@pytest.mark.parametrize("dtype", REALS)
def test_exp_is_rounded_at_the_ends_of_its_range(dtype: str) -> None:
    high, low = (88.72283, -103.9) if dtype == "float32" else (709.782712893384, -745.1)
    x = np.resize(np.array([high, np.nextafter(high, INF, dtype=dtype), low, low - 1, low + 5.3], dtype), 16)
    x[1] = np.float32(88.72284) if dtype == "float32" else 709.7827128933841
    out = values("exp", TARGETS["avx2"], x)
    assert np.isfinite(out[0])
    assert out[1] == INF
    smallest = np.finfo(dtype).smallest_subnormal
    assert out[2] == smallest
    assert out[3] == 0
    assert abs(out[4] - np.exp(x[4])) <= smallest


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("name", ["expm1", "log1p", "tanh"])
def test_they_keep_subnormal_numbers_to_the_bit(name: str, dtype: str) -> None:
    smallest = np.finfo(dtype).smallest_subnormal
    x = np.array([n * sign for n in (1, 2, 3, 5, 101, 12345, 2**20 + 1, 7) for sign in (1, -1)], dtype) * smallest
    assert np.array_equal(values(name, TARGETS["avx2"], x), x)


@pytest.mark.parametrize("dtype", REALS)
def test_log_of_subnormal_numbers_is_within_two_units_in_the_last_place(dtype: str) -> None:
    x = np.array([1, 2, 3, 5, 101, 12345, 2**20 + 1, 7] * 2, dtype) * np.finfo(dtype).smallest_subnormal
    exact = np.array([math.log(v) for v in x.tolist()])
    assert np.all(np.abs(values("log", TARGETS["avx2"], x) - exact) <= 2 * unit(exact, dtype))


@pytest.mark.parametrize("dtype", REALS)
@functions
def test_they_have_the_same_bits_for_scalars_and_vectors_of_every_width(name: str, dtype: str) -> None:
    x = points(name, dtype, 3200)
    expected = values(name, TARGETS["avx2"], x, vectors=False)
    for target in TARGETS.values():
        assert values(name, target, x).tobytes() == expected.tobytes()
