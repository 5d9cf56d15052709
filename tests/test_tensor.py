"""The tensor as Python sees it: making one, operators, printing, copying, changing in place."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from typing import Any

import numpy as np
import pytest

import gradflow as gf

# ---------------------------------------------------------------------- making


@pytest.mark.parametrize("data", [1, 1.5, [1, 2], [[1, 2.5]], (1, 2), [], [[]]], ids=repr)
def test_python_numbers_become_float32(data: Any) -> None:
    t = gf.tensor(data)
    assert t.dtype == gf.float32
    assert t.tolist() == np.array(data, "float32").tolist()


def test_python_bools_stay_bools() -> None:
    assert gf.tensor(True).dtype == gf.bool
    assert gf.tensor([True, False]).dtype == gf.bool
    assert gf.tensor([True, 2]).dtype == gf.float32


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"])
def test_numpy_arrays_and_tensors_keep_their_dtype(dtype: str) -> None:
    array = np.ones((2, 3), dtype)
    assert gf.tensor(array).dtype == dtype
    assert gf.tensor(gf.tensor(array)).dtype == dtype
    assert gf.asarray(array).dtype == dtype


def test_tensor_copies() -> None:
    array = np.zeros(3)
    t = gf.tensor(array)
    array[0] = 1.0
    assert t.tolist() == [0.0] * 3
    u = gf.tensor(t)
    with gf.no_grad():
        u[1] = 1.0
    assert t.tolist() == [0.0] * 3
    t.numpy()[2] = 1.0
    assert t.tolist() == [0.0] * 3, "numpy() gives a copy"


def test_tensor_of_a_tensor_is_a_new_leaf() -> None:
    x = gf.tensor([1.0], requires_grad=True)
    y = gf.tensor(x * 2.0)
    assert y.is_leaf
    assert not y.requires_grad
    assert gf.tensor(x, dtype="float64", requires_grad=True).requires_grad


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ("text", TypeError), (["a"], TypeError), (None, TypeError), ({}, TypeError), (1j, TypeError),
        (np.array([1j]), TypeError), (np.array(["a"]), TypeError), (np.array([None]), TypeError),
        ([[1, 2], [3]], ValueError), ([gf.ones(1), gf.ones(1)], TypeError),
    ],
)  # fmt: skip
def test_what_is_no_array_of_numbers_is_refused(data: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        gf.tensor(data)


def test_creation_functions() -> None:
    assert gf.zeros((2, 1)).tolist() == [[0.0], [0.0]]
    assert gf.ones(2, dtype="int32").tolist() == [1, 1]
    assert gf.full((2,), 2.5, dtype="float64").tolist() == [2.5, 2.5]
    assert gf.arange(3).tolist() == [0, 1, 2]
    assert gf.arange(3).dtype == gf.int64
    assert gf.arange(1, 2, 0.25).tolist() == [1.0, 1.25, 1.5, 1.75]
    assert gf.arange(1, 2, 0.25).dtype == gf.float32
    assert gf.arange(3, 0, -1).tolist() == [3, 2, 1]
    x = gf.ones((2, 3), dtype="float64")
    assert gf.zeros_like(x).dtype == gf.float64
    assert gf.ones_like(x, dtype="int8").dtype == gf.int8
    assert gf.one_hot(gf.tensor(np.array([[1], [0]])), 3).tolist() == [[[0, 1, 0]], [[1, 0, 0]]]
    assert gf.zeros(3, requires_grad=True).requires_grad
    for wrong in ((-1,), (1.5,), "ab"):
        with pytest.raises(ValueError, match="shape"):
            gf.zeros(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="step"):
        gf.arange(0, 1, 0)


# ---------------------------------------------------------------------- operators

_OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]


@pytest.mark.parametrize("function", _OPERATORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("other", [2, 2.5, True])
def test_arithmetic_with_numbers_on_both_sides(function: Any, other: Any) -> None:
    x = np.array([[1.0, 2.0, 4.0]])
    t = gf.tensor(x)
    np.testing.assert_allclose(function(t, other).numpy(), function(x, other), rtol=1e-15)
    np.testing.assert_allclose(function(other, t).numpy(), function(other, x), rtol=1e-15)
    np.testing.assert_allclose(function(t, t).numpy(), function(x, x), rtol=1e-15)


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_comparisons(name: str) -> None:
    function = getattr(operator, name)
    x, y = np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])
    t, u = gf.tensor(x), gf.tensor(y)
    for left, right, expected in ((t, u, function(x, y)), (t, 2, function(x, 2)), (2.0, t, function(2.0, x))):
        out = function(left, right)
        assert out.dtype == gf.bool
        assert not out.requires_grad
        assert out.tolist() == expected.tolist()


def test_equality_with_none_and_text_is_false() -> None:
    x = gf.ones(2)
    assert (x == None) is False  # noqa: E711
    assert (x != None) is True  # noqa: E711
    assert (x == "a") is False


def test_unary_operators_and_logic() -> None:
    x = gf.tensor([-1.0, 2.0])
    assert (-x).tolist() == [1.0, -2.0]
    assert (+x).tolist() == [-1.0, 2.0]
    assert abs(x).tolist() == [1.0, 2.0]
    p, q = gf.tensor([True, False]), gf.tensor([True, True])
    assert (p & q).tolist() == [True, False]
    assert (p | q).tolist() == [True, True]
    assert (~p).tolist() == [False, True]
    assert (gf.ones((2, 3)) @ gf.ones((3, 1))).shape == (2, 1)


@pytest.mark.parametrize("symbol", ["+", "-", "*", "/", "**", "@", "<", "=="])
def test_a_numpy_array_beside_a_tensor_is_refused_with_the_way_out(symbol: str) -> None:
    for expression in (f"array {symbol} tensor", f"tensor {symbol} array"):
        with pytest.raises(TypeError, match=r"ndarray: make a tensor of it with gradflow\.tensor"):
            eval(expression, {"array": np.ones((2, 2)), "tensor": gf.ones((2, 2))})


def test_methods_are_the_functions() -> None:
    x = gf.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    assert x.sum().item() == 10.0
    assert x.mean(axis=0).tolist() == [2.0, 3.0]
    assert x.T.tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert x.mT.tolist() == x.T.tolist()
    assert x.reshape(4).shape == x.reshape((4,)).shape == x.flatten().shape == (4,)
    assert x.permute_dims(1, 0).tolist() == x.permute_dims((1, 0)).tolist()
    assert x.clip(2, 3).tolist() == [[2.0, 2.0], [3.0, 3.0]]
    assert x.argmax(axis=1).tolist() == [1, 1]
    assert (x.ndim, x.size, x.shape, len(x)) == (2, 4, (2, 2), 2)
    x.exp().log().sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 1.0, rtol=1e-6)


# ---------------------------------------------------------------------- to Python


def test_repr_tells_values_dtype_device_and_operation() -> None:
    assert repr(gf.tensor([1.0, 2.5])) == "tensor([1. , 2.5], dtype=float32, device=cpu)"
    assert repr(gf.tensor(1.5)) == "tensor(1.5, dtype=float32, device=cpu)"
    x = gf.tensor(np.array([[1.0], [2.0]]), requires_grad=True)
    assert repr(x) == "tensor([[1.],\n        [2.]], dtype=float64, device=cpu, requires_grad=True)"
    assert repr(gf.exp(x[0] * 0.0)) == "tensor([1.], dtype=float64, device=cpu, op=exp)"
    assert repr(x[0, 0]) == "tensor(1., dtype=float64, device=cpu, op=getitem_view)"
    assert repr(gf.zeros((0, 3))) == "tensor([], shape=(0, 3), dtype=float32, device=cpu)"
    assert repr(gf.tensor([True])) == "tensor([ True], dtype=bool, device=cpu)"
    assert repr(gf.zeros(2000)).startswith("tensor([0., 0., 0., ..., 0., 0., 0.]")
    assert repr(gf.sum(gf.ones(2))) == "tensor(2., dtype=float32, device=cpu)"


def test_item_numpy_and_tolist() -> None:
    assert gf.tensor(2.5).item() == 2.5
    assert gf.tensor([[2.5]]).item() == 2.5
    assert type(gf.arange(3).sum().item()) is int
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        gf.ones(2).item()
    assert gf.tensor([[1, 2]]).tolist() == [[1.0, 2.0]]
    assert gf.tensor(1.0).tolist() == 1.0
    array = gf.tensor(np.eye(2)).numpy()
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.float64
    assert isinstance(gf.tensor(1.0).sum().numpy(), np.ndarray)
    x = gf.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"\.detach\(\)\.numpy\(\)"):
        x.numpy()
    assert np.asarray(gf.ones(2)).tolist() == [1.0, 1.0]
    assert np.asarray(gf.ones(2), dtype="int8").dtype == np.int8


def test_truth_numbers_and_length() -> None:
    assert bool(gf.tensor(1.0))
    assert not gf.tensor([0.0])
    with pytest.raises(ValueError, match="ambiguous"):
        bool(gf.ones(2))
    assert float(gf.tensor(2.5)) == 2.5
    assert int(gf.tensor(2.5)) == 2
    assert [10, 20, 30][gf.arange(3)[1]] == 20
    with pytest.raises(TypeError, match="only an integer tensor"):
        [10, 20][gf.tensor(1.0)]
    assert f"{gf.tensor(0.125):.2f}" == "0.12"
    assert math.isclose(math.sqrt(gf.tensor(4.0)), 2.0)
    with pytest.raises(TypeError, match="no length"):
        len(gf.tensor(1.0))


def test_iteration_goes_along_the_first_axis_and_is_differentiable() -> None:
    x = gf.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    rows = list(x)
    assert [r.tolist() for r in rows] == [[1.0, 2.0], [3.0, 4.0]]
    a, b = x
    (a * b).sum().backward()
    assert x.grad.tolist() == [[3.0, 4.0], [1.0, 2.0]]
    with pytest.raises(TypeError, match="iterated"):
        list(gf.tensor(1.0))


def test_tensors_are_hashed_by_identity() -> None:
    a, b = gf.ones(1), gf.ones(1)
    assert len({a, b, a}) == 2
    assert {a: 1}[a] == 1


# ---------------------------------------------------------------------- in place


def test_in_place_operators_change_the_memory_that_views_share() -> None:
    x = gf.tensor([[1.0, 2.0], [3.0, 4.0]])
    row, flat = x[1], x.reshape(4)
    same = x
    x += 1.0
    x *= gf.tensor([2.0, 1.0])
    x -= 1.0
    x /= 2.0
    x **= 2.0
    assert same is x
    expected = ((np.array([[2.0, 3.0], [4.0, 5.0]]) * [2.0, 1.0] - 1.0) / 2.0) ** 2
    np.testing.assert_allclose(x.numpy(), expected)
    np.testing.assert_allclose(row.numpy(), expected[1])
    np.testing.assert_allclose(flat.numpy(), expected.ravel())


def test_in_place_operators_keep_shape_and_dtype() -> None:
    x = gf.ones(2)
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        x += gf.ones((2, 2))
    i = gf.arange(2)
    with pytest.raises(ValueError, match="float32"):
        i += 0.5
    assert i.tolist() == [0, 1]
    z = gf.sum(gf.ones(2))
    z += 1.0
    assert z.item() == 3.0


def test_in_place_on_a_leaf_needs_no_grad() -> None:
    x = gf.ones(2, requires_grad=True)
    for change in (lambda: operator.iadd(x, 1.0), lambda: x.zero_(), lambda: x.copy_(gf.zeros(2)),
                   lambda: operator.setitem(x, 0, 1.0)):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"a leaf that requires a gradient in place; .*no_grad"):
            change()
    with gf.no_grad():
        x += 1.0
        x[0] = 5.0
    assert x.tolist() == [5.0, 2.0]
    assert x.requires_grad
    assert x.is_leaf


def test_in_place_on_a_computed_tensor_makes_a_new_one() -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    y = x * 2.0
    first = y
    y += 1.0
    assert y is not first
    assert first.tolist() == [2.0, 4.0]
    (y * y).sum().backward()
    assert x.grad.tolist() == [12.0, 20.0]


def test_accumulating_into_a_plain_tensor_records() -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    total = gf.zeros(2)
    for _ in range(3):
        total += x
    total.sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


def test_item_assignment() -> None:
    x = gf.zeros((3, 2))
    x[0] = 1.0
    x[1, 0] = gf.tensor(2.0)
    x[2] = [3.0, 4.0]
    x[gf.tensor([True, False, False])] = -1.0
    x[gf.tensor(np.array([1, 1])), 1] = np.array([5.0, 6.0], "float32")
    assert x.tolist() == [[-1.0, -1.0], [2.0, 6.0], [3.0, 4.0]]
    x[...] = 0
    assert x.tolist() == [[0.0, 0.0]] * 3
    with pytest.raises(IndexError):
        x[3] = 1.0
    with pytest.raises(ValueError):
        x[0] = gf.ones(3)
    with pytest.raises(RuntimeError, match="not recorded"):
        x[0] = gf.ones(2, requires_grad=True)
    scalar = gf.tensor(1.0)
    scalar[...] = 2.0
    scalar[()] = 3.0
    assert scalar.item() == 3.0


def test_copy_and_zero() -> None:
    x = gf.ones(2, dtype="float64")
    assert x.copy_(gf.tensor([3.0, 4.0])) is x
    assert x.tolist() == [3.0, 4.0]
    assert x.dtype == gf.float64
    with pytest.raises(ValueError, match=r"shape \(2,\); got \(3,\)"):
        x.copy_(gf.ones(3))
    assert x.zero_().tolist() == [0.0, 0.0]


# ---------------------------------------------------------------------- copies


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, lambda t: pickle.loads(pickle.dumps(t))],
                         ids=["deepcopy", "copy", "pickle"])  # fmt: skip
@pytest.mark.parametrize("requires_grad", [False, True])
def test_copies_of_a_leaf(how: Any, requires_grad: bool) -> None:
    x = gf.tensor(np.array([1.0, 2.0]), requires_grad=requires_grad)
    y = how(x)
    assert y is not x
    assert (y.tolist(), y.dtype, y.requires_grad, y.is_leaf) == ([1.0, 2.0], gf.float64, requires_grad, True)
    with gf.no_grad():
        y += 1.0
    assert x.tolist() == [1.0, 2.0]


def test_deepcopy_keeps_the_gradient_and_what_is_shared() -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    (x * 2.0).sum().backward()
    one, two = copy.deepcopy([x, x])
    assert one is two
    assert one.grad.tolist() == [2.0, 2.0]
    with gf.no_grad():
        one.grad.zero_()
    assert x.grad.tolist() == [2.0, 2.0]


def test_computed_tensors_refuse_to_be_copied_with_their_graph() -> None:
    y = gf.ones(2, requires_grad=True) * 2.0
    with pytest.raises(RuntimeError, match="leaf"):
        copy.deepcopy(y)
    with pytest.raises(RuntimeError, match="leaf"):
        pickle.dumps(y)


def test_detach_shares_and_clone_copies() -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    d, c = x.detach(), x.clone()
    assert not d.requires_grad
    assert c.requires_grad
    with gf.no_grad():
        x += 1.0
    assert d.tolist() == [2.0, 3.0]
    assert c.tolist() == [1.0, 2.0]


def test_requires_grad_can_be_set_on_leaves() -> None:
    x = gf.ones(2)
    x.requires_grad = True
    assert x.requires_grad
    assert x.requires_grad_(False) is x
    assert not x.requires_grad
    y = x.requires_grad_() * 2.0
    with pytest.raises(RuntimeError, match=r"detach\(\)"):
        y.requires_grad = False
    assert y.requires_grad_() is y
