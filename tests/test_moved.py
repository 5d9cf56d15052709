"""Gradients through a move to another device: a node belongs to the backend of its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import gradflow as gf

VALUES = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
FUNCTIONS: dict[str, Callable[[gf.Tensor, str], Any]] = {
    "there": lambda x, d: (x.to(d) * x.to(d)).sum(),
    "there and back": lambda x, d: ((x * 2.0).to(d).square().cpu() * x).sum(),
    "used on both": lambda x, d: (x * x).sum() + x.to(d).square().sum().cpu(),
    "an intermediate of both": lambda x, d: (lambda y: y.sum() + (y.to(d) * y.to(d)).sum().cpu())(x * 3.0),
    "a vector": lambda x, d: x.to(d)[0] * x.to(d)[1],
    "tall": lambda x, d: gf.outer(x.to(d)[0], gf.outer(x.to(d)[1], x.to(d)[0]).flatten()),
    "twice": lambda x, d: (lambda y: (y, y))(x.to(d)),
}


@pytest.fixture
def x() -> gf.Tensor:
    return gf.tensor(VALUES, dtype="float64", device="cpu", requires_grad=True)


def total(result: Any) -> gf.Tensor:
    parts = result if isinstance(result, tuple) else (result,)
    return sum((part.cpu().square().sum() for part in parts[1:]), start=parts[0].cpu().square().sum())


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_backward(x: gf.Tensor, other_device: str, name: str, create_graph: bool) -> None:
    expected = gf.grad(lambda x: total(FUNCTIONS[name](x, "cpu")))(x.detach())
    total(FUNCTIONS[name](x, other_device)).backward(create_graph=create_graph)
    assert str(x.grad.device) == "cpu"
    assert x.grad.tolist() == expected.tolist()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms(x: gf.Tensor, other_device: str, name: str) -> None:
    values, here = x.detach(), lambda x: FUNCTIONS[name](x, "cpu")
    there = lambda x: FUNCTIONS[name](x, other_device)  # noqa: E731
    one, other = gf.jacobian(there)(values), gf.jacobian(here)(values)
    for a, b in zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]:
        assert str(a.device) == "cpu"
        assert a.tolist() == b.tolist()
    found = gf.hessian(lambda x: total(there(x)))(values)
    assert found.tolist() == gf.hessian(lambda x: total(here(x)))(values).tolist()
    y, back = gf.vjp(there, values)
    expected = gf.vjp(here, values)[1](gf.vjp(here, values)[0])
    assert [g.tolist() for g in back(y)] == [g.tolist() for g in expected]
    gf.gradcheck(lambda x: total(there(x)), values)


def test_the_node_of_a_moved_tensor_is_of_its_backend(x: gf.Tensor, other_device: str) -> None:
    moved, seen = x.to(other_device), []
    assert moved._node.backend is moved.backend
    moved.register_hook(lambda g: seen.append(g) or g * 2)
    moved.sum().backward()
    assert [g.device for g in seen] == [moved.device]
    assert x.grad.tolist() == [[2.0] * 3] * 2


def test_a_hook_on_a_moved_tensor_sees_each_of_a_batch(x: gf.Tensor, other_device: str) -> None:
    devices = []

    def f(x: gf.Tensor) -> gf.Tensor:
        moved = x.to(other_device)
        moved.register_hook(lambda g: devices.append(str(g.device)) or g * 10)
        return moved

    assert gf.jacobian(f)(x.detach())[0, 0, 0].tolist() == [10.0, 0.0, 0.0]
    assert {device.partition(":")[0] for device in devices} == {other_device}


def test_detect_anomaly_sees_moves(x: gf.Tensor, other_device: str) -> None:
    with gf.detect_anomaly():
        y = x.to(other_device)
        (y * y).sum().backward()
        (x.grad + x.to(other_device).cpu()).sum().backward()
    with pytest.raises(gf.NonFiniteError, match="to_device gave inf"), gf.detect_anomaly():
        gf.tensor([float("inf")], device="cpu").to(other_device)
    inverse = gf.operation("spoilt", lambda F, x: F.add(x, x), lambda F, g, _out, _x: F.multiply(g, float("inf")))
    with pytest.raises(gf.NonFiniteError, match="the gradient of input 0 of spoilt is inf"), gf.detect_anomaly():
        inverse(x.to(other_device)).sum().backward()


def test_a_checkpoint_that_moves(x: gf.Tensor, other_device: str) -> None:
    gf.checkpoint(lambda x: x.to(other_device).square(), x * 1.0).sum().backward()
    assert x.grad.tolist() == (x.detach() * 2).tolist()
    x.zero_grad()
    (gf.checkpoint(lambda x: x.to(other_device).square(), x).cpu() + x).sum().backward()
    assert x.grad.tolist() == (x.detach() * 2 + 1).tolist()
