"""NumPy arrays beside tensors: on the CPU they are tensors of their dtype, elsewhere they are refused with advice."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
import gradflow.testing  # the device "fake"

ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul]
COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]
FUNCTIONS: list[Callable[..., Any]] = [gf.add, gf.multiply, gf.power, gf.matmul, gf.maximum, gf.minimum, gf.less_equal]


@pytest.mark.parametrize("function", [*ARITHMETIC, *COMPARISONS, *FUNCTIONS], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_an_array_is_a_tensor_of_its_dtype(function: Any, dtype: str) -> None:
    x = gf.tensor([[1.0, 2.0], [3.0, 0.5]], requires_grad=True)
    array = np.array([[1, 1 if function in (operator.truediv, operator.pow) else 0], [2, 3]]).astype(dtype)
    for call in (lambda a: function(x, a), lambda a: function(a, x), lambda a: function(x.detach(), a)):
        found, expected = call(array), call(gf.tensor(array))
        assert isinstance(found, gf.Tensor)
        assert (found.dtype, found.tolist()) == (expected.dtype, expected.tolist())
        assert found.requires_grad == expected.requires_grad


def test_bools_and_logic() -> None:
    x, array = gf.tensor([True, True, False]), np.array([True, False, False])
    assert (x * array).dtype == (x * gf.tensor(array)).dtype
    assert (x * array).tolist() == (array * x).tolist() == (x * gf.tensor(array)).tolist()
    assert (x & array).tolist() == (array & x).tolist() == gf.logical_and(x, array).tolist() == [True, False, False]
    with pytest.raises(TypeError, match="logical_or takes bool tensors; got int64"):
        x | np.array([1, 2, 3])


def test_gradients_and_in_place_operators() -> None:
    x, w = gf.tensor([[1.0, 2.0]], requires_grad=True), np.array([[3.0], [4.0]], np.float32)
    loss = (x @ w).sum() * np.array(2.0)  # without axes, it is a number
    w[...] = 0.0  # before the backward pass
    assert (gf.ones(2, device="fake") * np.array(2.0)).tolist() == (np.array(2.0) * gf.ones(2, device="fake")).tolist()
    loss.backward()
    assert x.grad is not None
    assert (loss.dtype, loss.item(), x.grad.tolist()) == (gf.float32, 22.0, [[6.0, 8.0]])
    y = x.detach().clone()
    y += np.array([[1.0, 1.0]], np.float32)
    assert y.tolist() == [[2.0, 3.0]]
    with pytest.raises(ValueError, match="float64"):
        y += np.array([[1.0, 1.0]])
    assert (x + np.arange(2, dtype=">f4")[::-1]).tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize("function", [*ARITHMETIC, *COMPARISONS, *FUNCTIONS], ids=lambda f: f.__name__)
def test_beside_a_tensor_on_another_device_it_is_refused_with_advice(function: Any) -> None:
    x, array = gf.ones((2, 2), device="fake"), np.ones((2, 2), np.float32)
    for call in (lambda: function(x, array), lambda: function(array, x)):
        with pytest.raises(
            TypeError, match=r"a tensor on fake:0: copy the array .* gradflow\.tensor\(\.\.\., device='fake:0'\)"
        ):
            call()


def test_arrays_with_rules_of_their_own_are_refused() -> None:
    x = gf.ones((2, 2))
    for array in (np.ma.ones((2, 2)), np.ones((2, 2)).astype(object), np.ones((2, 2), complex), np.array([["a", "b"]])):
        with pytest.raises(TypeError, match=r"make a tensor|is made of numbers"):
            x * array
    with pytest.raises(TypeError, match=r"numpy\.add does not take tensors"):
        np.ones((2, 2)).__iadd__(x)
    with pytest.raises(TypeError, match=r"linear takes tensors; got numpy\.ndarray"):
        gf.linear(np.ones((2, 2)), x)


def test_a_captured_step_takes_the_array_as_it_is_then() -> None:
    w = np.array([1.0, 2.0], np.float32)

    @gf.capture
    def step(x: gf.Tensor) -> gf.Tensor:
        return (x * w).sum()

    found = []
    for i in range(5):
        w[0] = i
        found.append(step(gf.tensor([1.0, 1.0])).item())
    assert found == [2.0, 3.0, 4.0, 5.0, 6.0]
