"""Sums over any axes and in any order of memory, and running sums: near float64 however many terms there are.

|error| <= (20 + log2 n) * eps * sum(|x|) for each sum of n terms, in the dtype of the result. The terms are equal, so
that their rounding errors have one sign.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.testing.tolerances import assert_agree, eps, long_sum_bound

SHAPES: list[tuple[int, ...]] = [
    (5000,), (3000, 2), (33, 40), (1100, 70), (2, 3000), (40, 3, 50), (5, 300, 6), (100, 100, 3), (2, 40, 3, 41),
]  # fmt: skip
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "cycled": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 0, -1)), -1, 0),
    "reversed": lambda x: x[::-1],
    "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "rows repeated": lambda x: np.broadcast_to(x[:1], x.shape),
    "columns repeated": lambda x: np.broadcast_to(x[..., :1], x.shape),
    "one element": lambda x: np.broadcast_to(x[(slice(1),) * x.ndim], x.shape),
}
DTYPES = ("float16", "float32", "float64")


def values(shape: tuple[int, ...], dtype: str) -> Any:
    """Two numbers, so small that no sum leaves float16."""
    x = np.full(shape, 0.1)
    x[..., 0] = 0.3
    return x.astype(dtype)


def all_axes(ndim: int) -> list[tuple[int, ...]]:
    return [axes for k in range(1, ndim + 1) for axes in itertools.combinations(range(ndim), k)]


def exactly(function: Any, x: Any, **options: Any) -> Any:
    """The sum by NumPy in its widest floating-point type, of a contiguous copy with the reduced axes last."""
    return function(np.ascontiguousarray(x, np.longdouble), **options).astype(np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_over_all_axes_in_all_orders_of_memory(shape: tuple[int, ...], dtype: str, layout: str) -> None:
    backend = gf.get_backend("cpu")
    x = LAYOUTS[layout](values(shape, dtype))
    for axes, keepdims in itertools.product(all_axes(x.ndim), (False, True)):
        options = {"axis": axes, "keepdims": keepdims}
        bound = long_sum_bound(x, axes, dtype)
        n = x.size / bound.size
        bound = bound.reshape(exactly(np.sum, x, **options).shape)
        what = f"{axes}, {keepdims}"
        assert_agree(f"sum over {what}", backend.sum(x, **options), exactly(np.sum, x, **options), bound)
        assert_agree(f"mean over {what}", backend.mean(x, **options), exactly(np.mean, x, **options), 1.1 * bound / n)
        spread = exactly(np.var, x, **options)
        room = 4 * bound / n + 8 * eps(dtype) * spread  # every x is below 1, and so is what it contributes
        assert_agree(f"var over {what}", backend.var(x, **options), spread, room)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_running_sums_along_all_axes_in_all_orders_of_memory(shape: tuple[int, ...], dtype: str, layout: str) -> None:
    backend = gf.get_backend("cpu")
    x = LAYOUTS[layout](values(shape, dtype))
    for axis in range(-x.ndim, x.ndim):
        expected = exactly(np.cumsum, x, axis=axis)
        n = np.arange(1, x.shape[axis] + 1).reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])
        bound = (20 + np.log2(n)) * eps(dtype) * expected
        assert_agree(f"axis {axis}", backend.cumulative_sum(x, axis=axis), expected, bound)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_running_sums_of_what_is_not_finite(dtype: str) -> None:
    x = np.ones(200, dtype)
    x[70], x[150] = np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        found, expected = gf.get_backend("cpu").cumulative_sum(x), np.cumsum(x.astype("float64")).astype(dtype)
    assert_agree("a running sum", found, expected)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "bool"])
def test_sums_of_integers_are_exact(dtype: str) -> None:
    x = (np.arange(9000) % 7).astype(dtype).reshape(3000, 3)
    for axis in (None, 0, 1):
        found = gf.sum(gf.tensor(x), axis=axis).numpy()
        np.testing.assert_array_equal(found, x.astype("int64").sum(axis))
    assert gf.cumulative_sum(gf.tensor(x.astype("int64")), axis=0).numpy()[-1].tolist() == x.astype(int).sum(0).tolist()


# ---------------------------------------------------------------------- so many that float32 would stop to count


def test_the_mean_of_many_rows_of_ones_is_one() -> None:
    assert gf.ones((20_000_000, 2)).mean(axis=0).tolist() == [1.0, 1.0]


def test_the_spread_of_a_constant_is_zero() -> None:
    x = gf.tensor(np.tile(np.array([100.0, -100.0], "float32"), (1_000_000, 1)))
    assert gf.std(x, axis=0).tolist() == [0.0, 0.0]


def test_the_mean_over_leading_axes() -> None:
    found = gf.full((2000, 2000, 3), 0.1).mean(axis=(0, 1)).numpy()
    assert_agree("a mean", found, np.full(3, np.float32(0.1), "float64"), (20 + np.log2(4e6)) * eps() * 0.1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_gradient_of_a_broadcast_counts_on(dtype: str) -> None:
    b, c = (gf.zeros(2, dtype=dtype, requires_grad=True) for _ in range(2))
    n = 20_000_000 if dtype == "float32" else 60_000
    (gf.broadcast_to(b, (n, 2)) + gf.zeros((n, 2), dtype=dtype) * c).sum().backward()
    assert b.grad is not None
    assert b.grad.tolist() == [float(np.dtype(dtype).type(n))] * 2
    x = gf.full((1_000_000, 2), 0.1)
    d = gf.zeros(2, requires_grad=True)
    (x * d).sum().backward()
    assert d.grad is not None
    assert_agree("a gradient", d.grad, np.full(2, 1e6 * float(np.float32(0.1))), 40 * eps() * 1e5)


def test_a_running_sum_counts_on() -> None:
    n = 20_000_000
    x = gf.full((n,), 0.1)
    bound = (20 + np.log2(n)) * eps() * n * 0.1
    assert_agree("its last", gf.cumulative_sum(x)[-1], n * float(np.float32(0.1)), bound)
    assert gf.cumulative_sum(gf.ones(60_000, dtype="float16"))[-1].item() == np.float16(60_000)


def test_the_gradient_of_a_running_sum_counts_on() -> None:
    n = 2_000_000
    x = gf.ones(n, requires_grad=True)
    (gf.cumulative_sum(x) * gf.full((n,), 0.1)).sum().backward()
    assert x.grad is not None
    assert_agree("the first", x.grad[0], n * float(np.float32(0.1)), (20 + np.log2(n)) * eps() * n * 0.1)


def test_a_softmax_over_a_leading_axis_adds_up_to_one() -> None:
    x = np.full((1_000_000, 2), -2.0, "float32")
    x[0] = 0
    total = 1 + (len(x) - 1) * np.exp(-2.0)
    assert_agree("softmax", gf.softmax(gf.tensor(x), axis=0)[0], [1 / total] * 2, 44 * eps() / total)
    assert_agree("logsumexp", gf.logsumexp(gf.tensor(x), axis=0), [np.log(total)] * 2, ulp=44)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_of_many_rows(dtype: str) -> None:
    n = 1_000_000
    allowed = (20 + np.log2(n)) * eps(dtype)
    x = np.full((n,), 0.7, dtype)
    found = gf.mse_loss(gf.tensor(x), gf.zeros(n, dtype=dtype))
    assert_agree("mse", found, float(x[0]) ** 2, allowed * 0.49)
    logits = gf.tensor(np.tile(np.array([0.3, 0.0], dtype), (n, 1)))
    labels = gf.zeros(n, dtype="int64")
    one = gf.cross_entropy(logits[:1], labels[:1]).item()
    assert_agree("cross_entropy", gf.cross_entropy(logits, labels), one, allowed * one)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_norm_of_a_long_gradient(dtype: str) -> None:
    x = np.full(3_000_000, 0.7, dtype)
    expected = float(x[0]) * np.sqrt(x.size)
    found = gf.get_backend("cpu").clip_global_norm([x], 1e9)
    assert_agree("a norm", found, expected, (20 + np.log2(x.size)) * eps(dtype) * expected)
