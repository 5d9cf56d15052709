"""Composite operations at their edges: norms, order, quantiles, einsum, closeness, running products; their errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gradflow as gf

INF, NAN = math.inf, math.nan


def leaf(x: Any, device: str = "cpu") -> gf.Tensor:
    return gf.tensor(np.asarray(x, "float64"), device=device, requires_grad=True)


def gradient(y: gf.Tensor, x: gf.Tensor) -> Any:
    return gf.gradients(y.sum(), [x])[0].tolist()


THIRD: dict[str, Any] = {
    "norm": (lambda x: gf.norm(x, axis=1), lambda T: lambda x: T.linalg.vector_norm(x, 2, 1)),
    "norm 3": (lambda x: gf.norm(x, 3), lambda T: lambda x: T.linalg.vector_norm(x, 3)),
    "cumulative_prod": (lambda x: gf.cumulative_prod(x, 1), lambda T: lambda x: T.cumprod(x, 1)),
    "einsum": (lambda x: gf.einsum("ij,kj,kl->il", x, x, x), lambda T: lambda x: T.einsum("ij,kj,kl->il", x, x, x)),
    "sort": (lambda x: gf.sort(x**4, 0), lambda T: lambda x: T.sort(x**4, 0)[0]),
    "quantile": (lambda x: gf.quantile(x, 0.3, axis=1) ** 4, lambda T: lambda x: T.quantile(x, 0.3, 1) ** 4),
    "softmax": (lambda x: gf.softmax(x, axis=(0, 1)), lambda T: lambda x: T.softmax(x.reshape(-1), 0).reshape(x.shape)),
    "tril": (lambda x: gf.tril(x**4) * gf.roll(x, 1), lambda T: lambda x: T.tril(x**4) * T.roll(x, 1)),
    "set": (
        lambda x: x.at[gf.tensor([0], dtype="int64")].set(x[1] ** 4) * x,
        lambda T: lambda x: T.stack([x[1] ** 4, x[1]]) * x,
    ),
    "scatter": (
        lambda x: gf.scatter(x, gf.tensor([[2, 2]] * 2, dtype="int64"), x[:, :2] ** 4, add=True) ** 2,
        lambda T: lambda x: T.scatter_add(x, 1, T.tensor([[2, 2]] * 2), x[:, :2] ** 4) ** 2,
    ),
}
"""gradflow's and PyTorch's function of a matrix (2, 3)."""


@pytest.mark.parametrize("name", THIRD)
def test_derivatives_to_the_third_order_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    ours, find = THIRD[name]
    values, weights = (
        np.random.default_rng(0).uniform(0.5, 1.5, (2, 3)),
        np.random.default_rng(1).normal(size=(3, 2, 3)),
    )
    x, t = leaf(values), torch.tensor(values, requires_grad=True)
    y, z = ours(x).sum(), find(torch)(t).sum()
    for w in weights:
        (y,), (z,) = gf.gradients(y, [x], create_graph=True), torch.autograd.grad(z, t, create_graph=True)
        np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), rtol=1e-11, atol=1e-12)
        y, z = (y * gf.tensor(w)).sum(), (z * torch.tensor(w)).sum()


# ---------------------------------------------------------------------- norms and running products


@pytest.mark.parametrize("order", [1, 1.5, 2, 3, -1, INF, -INF])
def test_the_subgradient_of_a_norm_of_zeros_is_0_to_the_third_order(order: float, device: str) -> None:
    x = leaf(np.zeros((2, 3)), device)
    y = gf.norm(x, order, axis=1)
    assert y.tolist() == [0.0, 0.0]
    for _ in range(3):
        (y,) = gf.gradients((y * 2.0 + x.sum() * 0.0).sum(), [x], create_graph=True)
        assert not np.any(y.tolist())


def test_norms_of_special_values(device: str) -> None:
    x = gf.tensor([[3.0, 4.0], [INF, 1.0], [NAN, 1.0]], device=device)
    assert gf.norm(x[0]).item() == 5.0
    assert gf.norm(x[:2], axis=1).tolist() == [5.0, INF]
    assert np.isnan(gf.norm(x).item())
    assert gf.norm(x[0], -1).item() == pytest.approx(12 / 7)
    assert gf.norm(x[0], 0).item() == 2.0
    assert gf.norm(gf.tensor([3, 4], dtype="int64", device=device)).dtype == "float32"
    assert gf.norm(gf.ones((2, 3), device=device), axis=(0, 1), keepdims=True).shape == (1, 1)
    with pytest.raises(ValueError, match="ord of norm is a number; got NaN"):
        gf.norm(x, NAN)
    with pytest.raises(TypeError, match="ord of norm is a number; got str"):
        gf.norm(x, "fro")  # type: ignore[arg-type]


def test_half_floats_do_not_overflow_in_a_norm() -> None:
    assert gf.norm(gf.full((3,), 100.0, dtype="float16"), 3).item() == pytest.approx(3 ** (1 / 3) * 100, rel=1e-3)
    assert gf.norm(gf.full((4,), 300.0, dtype="float16")).item() == 600.0
    products = gf.cumulative_prod(gf.tensor([300.0, 300.0, 0.001], dtype="float16"))
    assert products.dtype == "float16"
    assert products[2].item() == pytest.approx(90, rel=1e-3)


def test_running_products_of_integers(device: str) -> None:
    for dtype, wide in (("int32", "int64"), ("bool", "int64"), ("uint8", "uint64")):
        x = gf.tensor([1, 1, 1, 0], dtype=dtype, device=device)
        assert gf.cumulative_prod(x).dtype == wide
        assert gf.cumulative_prod(x).tolist() == [1, 1, 1, 0]
    with pytest.raises(ValueError, match="cumulative_prod needs an axis for a tensor of 2 axes"):
        gf.cumulative_prod(gf.ones((2, 2)))
    x = leaf([3.0], device)
    assert gf.cumulative_prod(x) is not x


# ---------------------------------------------------------------------- order


def test_nan_is_larger_than_any_number(device: str) -> None:
    x = gf.tensor([2.0, NAN, -INF, 1.0, INF], device=device)
    assert str(gf.sort(x).tolist()) == "[-inf, 1.0, 2.0, inf, nan]"
    assert str(gf.sort(x, descending=True).tolist()) == "[nan, inf, 2.0, 1.0, -inf]"
    assert gf.topk(x, 2)[1].tolist() == [1, 4]
    for y in (gf.median(x), gf.quantile(x, 0.0), gf.quantile(x, [0.2, 1.0])[0]):
        assert np.isnan(y.item())
    rows = gf.stack([x, gf.zeros(5, device=device)])
    assert str(gf.median(rows, axis=1).tolist()) == "[nan, 0.0]"


def test_ties_keep_their_order_and_the_gradient(device: str) -> None:
    x = leaf([1.0, 2.0, 1.0, 2.0], device)
    weights = gf.tensor([1.0, 10.0, 100.0, 1000.0], dtype="float64", device=device)
    assert gradient(gf.sort(x) * weights, x) == [1.0, 100.0, 10.0, 1000.0]
    assert gradient(gf.sort(x, descending=True) * weights, x) == [100.0, 1.0, 1000.0, 10.0]
    assert gf.topk(x, 3, largest=False)[1].tolist() == [0, 2, 1]
    assert gradient(gf.median(x), x) == [0.0, 0.5, 0.5, 0.0]


def test_quantiles_are_numpys(device: str) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    t = gf.tensor(x, device=device)
    for axis in (None, 0, -1, (0, 2)):
        for keepdims in (False, True):
            found = gf.quantile(t, [0.0, 0.1, 0.5, 1.0], axis=axis, keepdims=keepdims).numpy()
            expected = np.quantile(x, [0.0, 0.1, 0.5, 1.0], axis=axis, keepdims=keepdims)
            np.testing.assert_allclose(found, expected, rtol=1e-13)
            np.testing.assert_allclose(gf.median(t, axis, keepdims).numpy(), np.median(x, axis, keepdims=keepdims))
    assert gf.median(gf.tensor([1, 2], dtype="int64", device=device)).item() == 1.5
    assert gf.quantile(gf.tensor([-INF, 0.0, INF], device=device), [0.0, 0.5, 1.0]).tolist() == [-INF, 0.0, INF]


def test_unique_values(device: str) -> None:
    x = np.array([[3, 1, 3], [2, 1, 3]])
    for dtype in ("int64", "float32", "uint8"):
        t = gf.tensor(x, dtype=dtype, device=device)
        assert (gf.unique_values(t).dtype, gf.unique_values(t).tolist()) == (dtype, [1, 2, 3])
        assert [y.tolist() for y in gf.unique_counts(t)] == [[1, 2, 3], [2, 1, 3]]
        values, inverse = gf.unique_inverse(t)
        assert values[inverse].tolist() == x.tolist()
    empty = gf.zeros((0, 2), device=device)
    assert [y.tolist() for y in (gf.unique_values(empty), *gf.unique_counts(empty), *gf.unique_inverse(empty))] == [
        [], [], [], [], []
    ]  # fmt: skip
    assert gf.unique_values(gf.tensor([NAN, 1.0, NAN], device=device)).shape == (3,)
    flags = gf.tensor([True, False, True], device=device)
    assert gf.unique_values(flags).tolist() == [False, True]
    assert gf.sort(flags).tolist() == [False, True, True]
    assert gf.topk(flags, 2)[1].tolist() == [0, 2]
    assert not gf.unique_values(leaf([1.0], device)).requires_grad


def test_errors_of_order() -> None:
    x = gf.ones((2, 3))
    for k in (-1, 4):
        with pytest.raises(ValueError, match=rf"topk: k is in \[0, 3\], .* axis 1; got {k}"):
            gf.topk(x, k)
    for q, error, message in (
        (1.5, ValueError, r"q of quantile is in \[0, 1\]; got 1\.5"), (NAN, ValueError, "got nan"),
        ("a", TypeError, "q of quantile is a number or a sequence of numbers; got str"),
        (gf.ones(2), TypeError, "got gradflow.Tensor"), ([], ValueError, "needs at least one q"),
        ([None], TypeError, "got None"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            gf.quantile(x, q)
    for call in (gf.median, lambda x, axis: gf.quantile(x, 0.5, axis)):
        with pytest.raises(ValueError, match=r"of no elements is undefined: the shape is \(0, 3\), the axis 0"):
            call(gf.ones((0, 3)), axis=0)
    with pytest.raises(ValueError, match="roll needs a shift for each axis; got 2 for 1 axes"):
        gf.roll(x, (1, 2), axis=0)
    with pytest.raises(ValueError, match="roll without an axis takes one shift; got 2"):
        gf.roll(x, (1, 2))


# ---------------------------------------------------------------------- matrices and einsum


@pytest.mark.parametrize(
    ("subscripts", "shapes", "message"),
    [
        ("ij,jk->ik", [(2, 3), (4, 4)], r"does not fit the shapes \(2, 3\), \(4, 4\): an axis has the lengths 3 and 4"),
        ("ij->ij", [(2, 3, 4)], "'ij' has letters for another number of axes than 3"),
        ("ij,j", [(2, 3)], "it has terms for 2 operands"),
        ("ij->ii", [(2, 3)], "each letter of the result occurs in it once, and in an operand"),
        ("ij->k", [(2, 3)], "each letter of the result"),
        ("i!->i", [(2, 3)], "einsum takes letters, commas"),
        ("ii->i", [(2, 3)], "lengths 2 and 3"),
        ("......i", [(2, 3)], "once in each term"),
    ],
)
def test_subscripts_that_do_not_fit(subscripts: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gf.einsum(subscripts, *map(gf.ones, shapes))


def test_einsum_of_numpy(device: str) -> None:
    rng = np.random.default_rng(0)
    for subscripts, shapes in (
        ("...ij,jk...->...ik", ((5, 2, 3), (3, 4, 5))), ("a,b,c->cab", ((2,), (3,), (4,))), ("iii->i", ((2, 2, 2),)),
        ("ii,ij,jj->j", ((2, 2), (2, 3), (3, 3))), (" i j , j -> i ", ((0, 3), (3,))), ("...,...", ((), ())),
        ("i...->...", ((2, 3, 4),)), ("ij,jk->ik", ((2, 1), (1, 4))), ("Ab,bA->", ((2, 3), (3, 2))),
    ):  # fmt: skip
        arrays = [rng.normal(size=shape) for shape in shapes]
        found = gf.einsum(subscripts, *(gf.tensor(x, device=device) for x in arrays))
        np.testing.assert_allclose(found.numpy(), np.einsum(subscripts, *arrays), atol=1e-12)
    a = gf.tensor([[1, 2], [3, 4]], dtype="int32", device=device)
    assert gf.einsum("ij,jk->ik", a, a).tolist() == [[7, 10], [15, 22]]
    mixed = gf.einsum("ij,j->i", a, gf.tensor([0.5, 1.0], device=device))
    assert (mixed.dtype, mixed.tolist()) == ("float32", [2.5, 5.5])
    with pytest.raises(TypeError, match=r"einsum takes its subscripts first, as text; got gradflow\.Tensor"):
        gf.einsum(a, "ij")  # type: ignore[arg-type]


def test_triangles_of_bools_and_integers_and_far_diagonals(device: str) -> None:
    flags = gf.ones((2, 2), dtype="bool", device=device)
    assert (gf.tril(flags).dtype, gf.tril(flags).tolist()) == ("bool", [[True, False], [True, True]])
    x = gf.ones((2, 3), dtype="int32", device=device)
    assert (gf.triu(x, 1).dtype, gf.triu(x, 1).tolist()) == ("int32", [[0, 1, 1], [0, 0, 1]])
    assert gf.diag(x, 7).shape == gf.diag(x, -7).shape == (0,)
    assert gf.tril(x, 50).tolist() == x.tolist()
    infinite = gf.full((2, 2), INF, device=device)
    assert gf.tril(infinite).tolist() == [[INF, 0.0], [INF, INF]]
    with pytest.raises(ValueError, match=r"diag takes a tensor of one or two axes; the shape is \(1, 1, 1\)"):
        gf.diag(gf.ones((1, 1, 1)))
    with pytest.raises(ValueError, match="triu takes a tensor of two or more axes"):
        gf.triu(gf.ones(3))


# ---------------------------------------------------------------------- closeness and softmax


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_isclose_is_numpys(dtype: str, device: str) -> None:
    if not gf.get_backend(device).supports(dtype):
        pytest.skip(f"{device} has no {dtype}")
    special = [0.0, 1.0, 1.00001, -1.0] + ([] if dtype == "int64" else [INF, -INF, NAN])
    x = np.array(special).astype(dtype)
    a, b = gf.tensor(x, device=device)[:, None], gf.tensor(x, device=device)
    for equal_nan in (False, True):
        for tolerances in ({}, {"rtol": 0.0, "atol": 0.0}, {"rtol": 1e-7}, {"atol": 3.0}):
            with np.errstate(all="ignore"):
                expected = np.isclose(x[:, None], x, equal_nan=equal_nan, **tolerances)
            assert gf.isclose(a, b, equal_nan=equal_nan, **tolerances).numpy().tolist() == expected.tolist()
    assert gf.isclose(b, 1).tolist()[1] is True
    assert gf.allclose(b[:4], b[:4]) is True
    assert gf.allclose(b, b + 1) is False


def test_isclose_of_integers_that_floats_cannot_hold(device: str) -> None:
    x = gf.tensor([2**62 + 1], dtype="int64", device=device)
    assert gf.isclose(x, x, rtol=0, atol=0).tolist() == [True]
    with pytest.raises(ValueError, match="rtol of isclose is a number >= 0; got -1"):
        gf.isclose(x, x, rtol=-1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nan_to_num_takes_the_limits_of_the_dtype(dtype: str) -> None:
    x = gf.tensor([NAN, INF, -INF, 2.0], dtype=dtype)
    most = float(np.finfo(dtype).max)
    found = gf.nan_to_num(x)
    assert (found.dtype, found.tolist()) == (dtype, [0.0, most, -most, 2.0])
    whole = gf.tensor([1, 2], dtype="int32")
    assert gf.nan_to_num(whole).tolist() == [1, 2]
    y = leaf([NAN, INF, 3.0])
    assert gradient(gf.nan_to_num(y), y) == [0.0, 0.0, 1.0]


def test_softmax_over_several_axes_sums_to_1(device: str) -> None:
    x = gf.tensor(np.random.default_rng(0).normal(size=(2, 3, 4)) * 300, device=device)
    for axis in ((0, 2), (2, 0), (-1, -2, -3), [1]):
        y = gf.softmax(x, axis=axis)  # type: ignore[arg-type]
        np.testing.assert_allclose(y.sum(axis=tuple(axis)).numpy(), 1.0)
        np.testing.assert_allclose(gf.exp(gf.log_softmax(x, axis=tuple(axis))).numpy(), y.numpy(), atol=1e-12)
    assert gf.softmax(x, axis=()).numpy().tolist() == np.ones((2, 3, 4)).tolist()
    with pytest.raises(
        ValueError, match=r"softmax of no elements is undefined: the shape is \(0, 3\), the axis \(0, 1\)"
    ):
        gf.softmax(gf.ones((0, 3)), axis=(0, 1))
    assert gf.nn.Softmax(axis=(1, 2))(x).shape == (2, 3, 4)
