"""Logarithms, angles, erf, remainders and the exact GELU: special points, accuracy, and derivatives to third order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.testing import assert_agree

INF, NAN = math.inf, math.nan


def derivatives(f: Callable[..., Any], *points: float, orders: int = 3) -> list[list[float]]:
    """The value of f, and the sums of its derivatives by all arguments, to the third order."""
    xs = [gf.tensor([p], dtype="float64", requires_grad=True) for p in points]
    y, found = f(*xs), []
    for order in range(orders + 1):
        found.append(y.tolist())
        if order < orders:
            y = sum(gf.gradients(y.sum(), xs, create_graph=True))
    return found


THIRD: dict[str, tuple[Any, Any, tuple[float, ...]]] = {
    **{name: (getattr(gf, name), lambda T, n=name: getattr(T, n), (0.6,))
       for name in ("log2", "log10", "exp2", "tan", "asin", "acos", "atan", "sinh", "cosh", "erf")},
    "atan2": (gf.atan2, lambda T: T.atan2, (0.6, -1.2)),
    "logaddexp": (gf.logaddexp, lambda T: T.logaddexp, (0.6, 0.1)),
    "logaddexp of ties": (gf.logaddexp, lambda T: T.logaddexp, (0.6, 0.6)),
    "remainder": (lambda a, b: a % b * a**2 * b, lambda T: lambda a, b: a % b * a**2 * b, (-5.0, 1.5)),
    "gelu": (lambda x: gf.gelu(x, "none"), lambda T: T.nn.functional.gelu, (0.6,)),
}  # fmt: skip


@pytest.mark.parametrize("name", THIRD)
def test_derivatives_to_the_third_order_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    f, find, points = THIRD[name]
    xs = [torch.tensor([p], dtype=torch.float64, requires_grad=True) for p in points]
    y, expected = find(torch)(*xs), []
    for order in range(4):
        expected.append(y.tolist())
        if order < 3:
            y = sum(torch.autograd.grad(y.sum(), xs, create_graph=True, materialize_grads=True))
    np.testing.assert_allclose(derivatives(f, *points), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_erf_is_right_to_8_ulp(dtype: str, device: str) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-7, 7, 500), 10.0 ** rng.uniform(-30, 0, 100), [0.46875, 0.469, 6.0]]).astype(dtype)
    expected = np.array([math.erf(v) for v in x])
    assert_agree("erf", gf.erf(gf.tensor(x, device=device)), expected, ulp=8)
    many = gf.erf(gf.tensor(np.tile(x, 120), device=device))  # NumPy computes it in blocks
    assert_agree("many", many, np.tile(expected, 120), ulp=8)
    special = gf.erf(gf.tensor([-0.0, INF, -INF, 30.0], device=device))
    assert special.tolist() == [0.0, 1.0, -1.0, 1.0]
    assert np.signbit(special.backend.to_host(special.array)[0])
    assert np.isnan(gf.erf(gf.tensor([NAN], device=device)).item())


@pytest.mark.filterwarnings("ignore:.*encountered")
def test_special_points(device: str) -> None:
    def at(f: Any, *points: float) -> list[float]:
        xs = [gf.tensor(p, dtype="float64", device=device, requires_grad=True) for p in points]
        y = f(*xs)
        y.backward()
        return [y.item(), *(x.grad.item() for x in xs)]

    assert at(gf.atan2, 0.0, 0.0) == [0.0, 0.0, 0.0]
    assert at(gf.logaddexp, INF, INF) == [INF, 0.5, 0.5]
    assert at(gf.logaddexp, -INF, -INF) == [-INF, 0.5, 0.5]
    assert at(gf.logaddexp, -INF, 1.0) == [1.0, 0.0, 1.0]
    assert at(gf.asin, 1.0) == [math.asin(1.0), INF]
    assert at(gf.acos, -1.0) == [math.pi, -INF]
    assert at(gf.log2, 0.0) == [-INF, INF]
    assert at(gf.tan, 0.0) == [0.0, 1.0]
    assert at(lambda x: gf.gelu(x, "none"), INF) == [INF, 1.0]
    assert np.isnan(at(gf.log10, -1.0)[0])
    assert np.isnan(at(gf.asin, 1.5)[0])
    assert derivatives(gf.atan2, 0.0, 0.0, orders=3) == [[0.0]] * 4


def test_the_slope_of_asin_keeps_its_digits_near_1(device: str) -> None:
    x = gf.tensor([1 - 2.0**-20, -1 + 2.0**-20], device=device, requires_grad=True)
    gf.asin(x).sum().backward()
    assert_agree("slope", x.grad, 1 / np.sqrt(1 - np.abs(x.detach().numpy()).astype("f8") ** 2), ulp=4)


def test_division_with_a_remainder_is_pythons(device: str) -> None:
    a, b = np.array([7, -7, 7, -7]), np.array([3, 3, -3, -3])
    for dtype in ("int32", "int64", "float32"):
        x, y = (gf.tensor(v, dtype=dtype, device=device) for v in (a, b))
        assert (x // y).tolist() == [m // n for m, n in zip(a.tolist(), b.tolist(), strict=True)]
        assert (x % y).tolist() == [m % n for m, n in zip(a.tolist(), b.tolist(), strict=True)]
        assert (x // y).dtype == (x % y).dtype == dtype
        assert (7 // y).tolist() == [2, 2, -3, -3]
        assert (7 % y).tolist() == [1, 1, -2, -2]
        assert (np.int64(7) % y).tolist() == [1, 1, -2, -2]
        assert gf.trunc(x).tolist() == a.tolist()
    assert (gf.tensor([5], dtype="int64", device=device) // 2.0).dtype == "float32"


def test_half_floats_are_computed_in_float32(device: str) -> None:
    if not gf.get_backend(device).supports("float16"):
        pytest.skip(f"{device} has no float16")
    x = np.array([0.3, -1.7, 9.0], "float16")
    t = gf.tensor(x, device=device)
    wide = x.astype("f8")
    assert_agree("erf", gf.erf(t), np.vectorize(math.erf)(wide), ulp=1)
    assert_agree("logaddexp", gf.logaddexp(t, 1.0), np.logaddexp(wide, 1.0), ulp=1)
    exact = wide * 0.5 * (1 + np.vectorize(math.erf)(wide * math.sqrt(0.5)))
    assert_agree("gelu", gf.gelu(t, "none"), exact, ulp=1)


@pytest.mark.parametrize("name", ["atan2", "logaddexp", "floor_divide", "remainder"])
def test_errors_of_two_operands(name: str) -> None:
    f = getattr(gf, name)
    with pytest.raises(ValueError, match=f"{name}: the shapes"):
        f(gf.ones(2), gf.ones(3))
    with pytest.raises(TypeError, match=f"{name} takes tensors and Python numbers; got str"):
        f(gf.ones(2), "1")


def test_other_forms_of_gelu_are_refused() -> None:
    with pytest.raises(ValueError, match="approximate of gelu is 'tanh' or 'none', the exact form; got 'exact'"):
        gf.gelu(gf.ones(2), approximate="exact")
    with pytest.raises(ValueError, match="approximate of gelu"):
        gf.nn.GELU(approximate=None)
