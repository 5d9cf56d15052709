"""`x.at[...]`, scatter, gather and masked_fill: repeated indices, recording, capture, Jacobians, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from tests.devices import replays


def leaf(x: Any, device: str = "cpu") -> gf.Tensor:
    return gf.tensor(np.asarray(x, "float64"), device=device, requires_grad=True)


def integers(x: Any, device: str = "cpu") -> gf.Tensor:
    return gf.tensor(np.asarray(x, "int64"), device=device)


def test_the_tensor_itself_does_not_change(device: str) -> None:
    x = gf.zeros((2, 3), device=device)
    y = x.at[1].set(gf.ones(3, device=device))
    assert x.tolist() == [[0.0] * 3] * 2
    assert y.tolist() == [[0.0] * 3, [1.0] * 3]
    assert x.at[:, 0].add(2).tolist() == [[2.0, 0.0, 0.0]] * 2
    assert x.at[0, 0].set([7]).tolist()[0] == [7.0, 0.0, 0.0]


def test_of_repeated_indices_one_value_stays_and_gets_the_gradient(device: str) -> None:
    x, v = leaf([1.0, 2.0, 3.0], device), leaf([10.0, 20.0, 30.0], device)
    y = x.at[integers([0, 1, 0], device)].set(v)
    y.backward(gf.tensor([1.0, 2.0, 4.0], dtype="float64", device=device))
    found = y.tolist()
    stays = v.tolist().index(found[0])
    assert stays in (0, 2)
    assert found[1:] == [20.0, 3.0]
    assert x.grad is not None
    assert v.grad is not None
    assert x.grad.tolist() == [0.0, 0.0, 4.0]
    assert v.grad.tolist() == [1.0 if i == stays else 2.0 if i == 1 else 0.0 for i in range(3)]
    if device == "cpu":
        assert stays == 2


def test_repeated_indices_add_up_in_a_fixed_order(device: str) -> None:
    rng = np.random.default_rng(0)
    values, rows = rng.normal(size=(200, 3)).astype("float32"), rng.integers(0, 4, 200)
    x = gf.zeros((4, 3), device=device)
    sums = [x.at[integers(rows, device)].add(gf.tensor(values, device=device)).numpy() for _ in range(2)]
    exact = np.zeros((4, 3))
    np.add.at(exact, rows, values.astype("float64"))
    np.testing.assert_allclose(sums[0], exact, atol=1e-4)
    assert np.array_equal(*sums)
    v = leaf(np.ones((3, 2)), device)
    (leaf(np.zeros((2, 2)), device).at[integers([1, 1, 0], device)].add(v) ** 2).sum().backward()
    assert v.grad is not None
    assert v.grad.tolist() == [[4.0, 4.0], [4.0, 4.0], [2.0, 2.0]]


def test_infinite_gradients_do_not_reach_what_was_replaced(device: str) -> None:
    inner = leaf([0.0, 4.0], device)
    inner.at[0].set(5.0).backward(gf.tensor([math.inf, 1.0], dtype="float64", device=device))
    assert inner.grad is not None
    assert inner.grad.tolist() == [0.0, 1.0]


def test_jacobians_and_higher_derivatives(device: str) -> None:
    x, v, i = leaf([1.0, 2.0, 3.0], device), leaf([4.0, 5.0], device), integers([2, 2], device)

    def f(x: gf.Tensor, v: gf.Tensor) -> gf.Tensor:
        y = (x**2).at[i].set(v**3)
        return y.at[0].add(v[1] ** 2) * y

    jacobian = np.array(gf.jacobian(f)(x, v).tolist())
    rows = []
    for k in range(3):
        (g,) = gf.gradients(f(x, v)[k], [x])
        rows.append(g.tolist())
    np.testing.assert_allclose(jacobian, rows)
    hessian = np.array(gf.hessian(lambda v: f(x.detach(), v).sum())(v).tolist())
    assert hessian.shape == (2, 2)
    np.testing.assert_allclose(hessian, hessian.T)
    gf.gradgradcheck(f, x.detach(), v.detach())


def test_a_captured_step_replays_them(device: str) -> None:
    w = gf.tensor(np.linspace(-1, 1, 12).reshape(4, 3), requires_grad=True, device=device)
    indices = gf.tensor(np.array([3, 1, 3]), device=device)
    mask = gf.tensor(np.array([True, False, True, False]), device=device)
    optimizer = gf.optim.SGD([w], lr=0.001)

    def step(x: gf.Tensor) -> gf.Tensor:
        optimizer.zero_grad()
        y = (w * x).at[1:3, 0].set(x[0, 0] * 2).at[indices].add(w[:3])
        y = gf.masked_fill(y, mask[:, None], 0.25)
        y = gf.tanh(gf.einsum("ij,kj->ik", gf.tril(y), gf.sort(y, 0)) + gf.median(y, 1) + gf.norm(y))
        loss = (y.scatter(gf.argsort(y, 1)[:, :1], gf.topk(y, 1)[0]) ** 2).sum() + gf.cumulative_prod(y, 1).sum()
        loss = loss + gf.softmax(y, axis=(0, 1)).square().sum() + gf.erf(gf.roll(y, 1, 0)).sum()
        loss.backward()
        optimizer.step()
        return loss

    rng = np.random.default_rng(0)
    batches = [gf.tensor(rng.normal(size=(4, 3)), device=device) for _ in range(6)]
    start = w.detach().clone()
    plain = [step(x).item() for x in batches]
    with gf.no_grad():
        w.copy_(start)
    captured = gf.capture(step)
    assert [captured(x).item() for x in batches] == plain
    assert replays(captured.status)


def test_a_step_that_sets_by_a_mask_is_not_replayed() -> None:
    step = gf.capture(lambda x: x.at[x > 0].set(9.0))
    for _ in range(4):
        assert step(gf.tensor([1.0, -1.0])).tolist() == [9.0, -1.0]
    assert step.status.startswith("indexes with a mask")


def test_nothing_waits_for_the_device() -> None:
    with gf.use_device("fake"):
        x, v = gf.ones((4, 3), requires_grad=True), gf.ones((2, 3), requires_grad=True)
        i, mask = gf.tensor([0, 2], dtype="int64"), gf.ones((4, 3)) > 2
        from gradflow.testing import forbid_sync

        with forbid_sync():
            y = x.at[i].set(v).at[1].add(v[0])
            y = gf.masked_fill(y, mask, 1.0) + gf.sort(y, 0) + gf.quantile(y, 0.3, axis=1, keepdims=True)
            y = gf.einsum("ij,kj->ik", y, gf.tril(y)) * gf.norm(y) + gf.isclose(y.sum(), 1.0).astype("float32")
            gf.nan_to_num(gf.topk(gf.cumulative_prod(y, 1), 2)[0]).sum().backward()


def test_integers_and_bools(device: str) -> None:
    x = integers([1, 2, 3], device)
    assert x.at[1].set(7).tolist() == [1, 7, 3]
    assert x.at[0].add(gf.tensor([1.0], device=device)[0]).dtype == "int64"
    assert gf.masked_fill(x, x > 1, 0).tolist() == [1, 0, 0]
    flags = gf.tensor([True, False], device=device)
    assert flags.at[1].set(True).tolist() == [True, True]
    with pytest.raises(ValueError, match=r"masked_fill: 0\.5 is not an integer"):
        gf.masked_fill(x, x > 1, 0.5)


def test_errors() -> None:
    x, i = gf.ones((2, 3)), gf.tensor([[0]], dtype="int64")
    with pytest.raises(IndexError, match=r"index 2 is out of range for axis 0 of a tensor of shape \(2, 3\)"):
        x.at[2]
    with pytest.raises(IndexError, match="index 5 is out of range for axis 1"):
        x.at[:, gf.tensor([5], dtype="int64")].set(1.0)
    for change in (x.at[0].set, x.at[0].add):
        with pytest.raises(ValueError, match=r"a value of shape \(2,\) does not broadcast to the shape \(3,\)"):
            change(gf.ones(2))
    with pytest.raises(OverflowError, match=r"at\[\.\.\.\]\.set: 1099511627776 is beyond int32"):
        gf.ones(2, dtype="int32").at[0].set(2**40)
    with pytest.raises(gf.DeviceMismatchError, match=r"at\[\.\.\.\]\.set got tensors on different devices"):
        x.at[0].set(gf.ones(3, device="fake"))
    for function, arguments in ((gf.gather, (i,)), (gf.scatter, (i, 1.0))):
        name = function.__name__
        with pytest.raises(IndexError, match=f"{name} needs integer indices; got float32"):
            function(x, gf.ones((2, 3)), *arguments[1:])
        with pytest.raises(ValueError, match=rf"{name}: indices of shape \(3, 1\) do not fit a tensor of shape"):
            function(x, gf.zeros((3, 1), dtype="int64"), *arguments[1:])
        with pytest.raises(ValueError, match=f"{name}: indices of shape"):
            function(x, gf.zeros(3, dtype="int64"), *arguments[1:])
    with pytest.raises(TypeError, match="masked_fill takes a bool mask; got float32"):
        gf.masked_fill(x, x, 1.0)
    with pytest.raises(ValueError, match="masked_fill takes a number, or a tensor without axes"):
        gf.masked_fill(x, x > 0, gf.ones(3))
