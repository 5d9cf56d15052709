"""The tensor as Python sees it: making one, operators, printing, copying, changing in place."""

from __future__ import annotations

import copy
import inspect
import math
import operator
import pickle
from inspect import signature
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.tensor_methods import TensorMethods

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


@pytest.mark.parametrize("kind", [np.bool_, np.int8, np.int64, np.float16, np.float32, np.float64])
def test_numpy_numbers_keep_their_dtype(kind: Any) -> None:
    for make in (gf.tensor, gf.asarray):
        t = make(kind(1))
        assert t.dtype == np.dtype(kind)
        assert t.shape == ()
        assert t.item() == 1


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


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([None], TypeError, "made of numbers; got None"),
        ([[1.0], ["a"]], TypeError, "made of numbers; got 'a'"),
        ([1j], TypeError, "made of numbers; got 1j"),
        (2**70, ValueError, "at most 64 bits; for 1180591620717411303424, write a float"),
        ([0, -(2**63) - 1], ValueError, "at most 64 bits"),
        ([[1, 2], [3]], ValueError, "unequal lengths"),
    ],
)
def test_data_that_is_refused_is_named(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gf.tensor(data)


def test_integers_of_64_bits_are_taken() -> None:
    assert gf.tensor(2**64 - 1, dtype="uint64").item() == 2**64 - 1
    assert gf.tensor(-(2**63), dtype="int64").item() == -(2**63)


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
    for function in (gf.zeros, gf.ones):
        with pytest.raises(TypeError, match=r"one tuple, like .* got the number 3 as the dtype"):
            function(2, 3)


def test_full_like_eye_and_linspace(device: str) -> None:
    x = gf.ones((2, 1), dtype="float64")
    assert gf.full_like(x, 3).tolist() == [[3.0], [3.0]]
    assert (gf.full_like(x, 3).dtype, gf.full_like(x, 3, dtype="int8").dtype) == (gf.float64, gf.int8)
    assert gf.eye(2).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert gf.eye(2, 3, dtype="int8").tolist() == [[1, 0, 0], [0, 1, 0]]
    assert (gf.eye(0).shape, gf.eye(1).dtype, gf.eye(2, 0).shape) == ((0, 0), gf.float32, (2, 0))
    for start, stop, n in ((0, 1, 5), (2.5, -1, 7), (3, 3, 2), (4, 9, 1), (0, 1, 0)):
        t = gf.linspace(start, stop, n, dtype="float64")
        np.testing.assert_allclose(t.numpy(), np.linspace(start, stop, n), rtol=1e-15, atol=1e-15)
    ends = gf.linspace(0.1, 0.7, 4, dtype="float64").tolist()
    assert (ends[0], ends[-1], gf.linspace(0, 1, 2).dtype) == (0.1, 0.7, gf.float32)
    with pytest.raises(ValueError, match="integers >= 0"):
        gf.linspace(0, 1, -1)


def test_numpy_integers_are_integers() -> None:
    n, x = np.int64, gf.ones((2, 3))
    for shape in (n(3), (n(3),), np.array([3])):
        assert gf.zeros(shape).shape == gf.full(shape, 2).shape == gf.random.uniform(shape).shape == (3,)
    assert gf.arange(n(3)).dtype == gf.arange(n(0), n(3), n(1)).dtype == gf.int64
    assert gf.eye(n(2)).shape == (2, 2)
    assert gf.reshape(x, n(6)).shape == x.reshape(n(6)).shape == (6,)
    assert x.reshape(n(3), -1).shape == (3, 2)
    assert gf.broadcast_to(x[0], (n(2), n(3))).shape == (2, 3)
    assert gf.broadcast_to(x[0, 0], n(4)).shape == (4,)
    assert gf.expand_dims(x, n(0)).shape == (1, 2, 3)
    assert [p.shape for p in gf.split(x, n(3), axis=n(1))] == [(2, 1)] * 3
    assert [p.shape for p in gf.split(x, np.array([1]))] == [(1, 3), (1, 3)]
    assert gf.pad(x, n(1)).shape == gf.pad(x, (n(1), n(1))).shape == gf.pad(x, ((1, n(1)), (n(1), 1))).shape == (4, 5)
    assert gf.repeat(x, n(2)).shape == (12,)
    assert gf.concat([x, x], axis=n(0)).shape == (4, 3)
    assert gf.stack([x, x], axis=n(0)).shape == (2, 2, 3)
    assert gf.take(x, [0], axis=n(1)).shape == (2, 1)
    for function in (gf.sum, gf.mean, gf.max, gf.argmax, gf.any, gf.logsumexp):
        assert function(x, axis=n(0)).shape == (3,)
    for function in (gf.softmax, gf.cumulative_sum, gf.argsort, gf.flip):
        assert function(x, axis=n(-1)).shape == (2, 3)
    assert gf.sum(x, axis=(n(0), 1)).shape == ()


def test_numpy_numbers_are_limits_of_clip() -> None:
    x = gf.tensor([-1.0, 0.5, 2.0])
    assert x.clip(np.float32(0), np.int64(1)).tolist() == [0.0, 0.5, 1.0]
    i = gf.arange(4).clip(np.int64(1), np.uint8(2))
    assert (i.dtype, i.tolist()) == (gf.int64, [1, 1, 2, 2])
    assert gf.arange(2).clip(np.float64(0.5)).tolist() == [0.5, 1.0]


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
    assert (x == object()) is False
    assert (x != object()) is True
    assert (x == [1.0, 1.0]) is False


class Foreign:
    """A class whose operators take tensors, and which gradflow does not know."""

    def __radd__(self, other: Any) -> str:
        return "foreign"

    __rsub__ = __rmul__ = __rtruediv__ = __rpow__ = __rmatmul__ = __rand__ = __ror__ = __rxor__ = __radd__
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __radd__  # type: ignore[assignment]
    __hash__ = object.__hash__


_ALL_OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul,
                  operator.and_, operator.or_, operator.xor, operator.eq, operator.ne, operator.lt, operator.le,
                  operator.gt, operator.ge, operator.iadd, operator.isub, operator.imul, operator.itruediv,
                  operator.ipow]  # fmt: skip


@pytest.mark.parametrize("function", _ALL_OPERATORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_an_operand_of_another_class_is_asked(function: Any, requires_grad: bool) -> None:
    x = gf.ones(2, requires_grad=requires_grad)
    assert function(x, Foreign()) == "foreign"
    if function not in (operator.eq, operator.ne):
        with pytest.raises(TypeError, match=r"unsupported operand|not supported between"):
            function(x, object())


@pytest.mark.parametrize("function", [gf.add, gf.power, gf.matmul, gf.less, gf.equal], ids=lambda f: f.__name__)
def test_functions_refuse_what_operators_leave_to_python(function: Any) -> None:
    with pytest.raises(TypeError, match="Foreign: make a tensor of it"):
        function(gf.ones(2), Foreign())


@pytest.mark.parametrize("symbol", ["+", "*", "@", "<"])
def test_a_list_beside_a_tensor_is_refused_with_the_way_out(symbol: str) -> None:
    for expression in (f"[1, 2] {symbol} tensor", f"tensor {symbol} [1, 2]"):
        for t in (gf.ones(2), gf.tensor(2, dtype="int64")):  # a list can be multiplied by what is an index
            with pytest.raises(TypeError, match="list: make a tensor of it"):
                eval(expression, {"tensor": t})


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
def test_comparisons_with_numpy_numbers_on_both_sides(name: str) -> None:
    function, x = getattr(operator, name), np.array([1.0, 2.0, 3.0])
    for number in (np.float64(2.0), np.float32(2.0), np.int64(2)):
        assert function(gf.tensor(x), number).tolist() == function(x, number).tolist()
        assert function(number, gf.tensor(x)).tolist() == function(number, x).tolist()


def test_numpy_bools_are_bools() -> None:
    x, p = gf.tensor([1.0, 2.0]), gf.tensor([True, False])
    assert (x * np.True_).tolist() == (np.True_ * x).tolist() == [1.0, 2.0]
    assert (x + np.False_).dtype == gf.float32
    assert (p & np.True_).tolist() == gf.logical_and(np.True_, p).tolist() == [True, False]
    assert (p == np.True_).tolist() == [True, False]


BOTH_SIDES = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.eq, operator.ne, operator.lt,
    operator.le, operator.gt, operator.ge,
]  # fmt: skip


@pytest.mark.parametrize("function", [*BOTH_SIDES, operator.and_, operator.or_, operator.xor], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32", "float64"])
def test_numpy_numbers_are_as_good_as_pythons_on_both_sides(function: Any, dtype: str, device: str) -> None:
    x = gf.tensor([True, False] if dtype == "bool" else [1, 2], dtype, device)
    numbers = [np.True_, np.False_]
    if function in BOTH_SIDES:
        numbers += [np.float16(2), np.float32(2), np.float64(0.5), np.int8(2), np.uint8(1), np.int64(3)]
    elif dtype != "bool":
        return
    if function not in (operator.eq, operator.ne) and function in BOTH_SIDES and dtype == "bool":
        numbers = numbers[2:]  # not of bools on every device
    if function is operator.truediv:
        numbers, x = [n for n in numbers if n], x + 1
    for number in numbers:
        for found, expected in (
            (function(number, x), function(number.item(), x)), (function(x, number), function(x, number.item()))
        ):  # fmt: skip
            assert isinstance(found, gf.Tensor)
            assert (found.dtype, found.tolist()) == (expected.dtype, expected.tolist())


def test_numpy_functions_are_refused_with_the_way_out() -> None:
    x = gf.ones(2)
    for call in (
        lambda: np.exp(x), lambda: np.add(x, x), lambda: np.add.reduce(x), lambda: np.sum(x), lambda: np.mean(x),
        lambda: np.add(np.ones(2), 1.0, out=x), lambda: np.multiply(1.0, x, where=[True, False]),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"numpy\.\w+ does not take tensors: use .* gradflow.*\.numpy\(\)"):
            call()
    array = np.ones(2)
    with pytest.raises(TypeError, match=r"numpy\.add"):
        array += x
    assert np.stack([x, x]).tolist() == [[1.0, 1.0]] * 2, "functions that convert by __array__ may"
    with pytest.raises(TypeError, match="make a tensor of it"):
        np.array(2.0) @ x


def test_unary_operators_and_logic() -> None:
    x = gf.tensor([-1.0, 2.0])
    assert (-x).tolist() == [1.0, -2.0]
    assert (+x).tolist() == [-1.0, 2.0]
    assert abs(x).tolist() == [1.0, 2.0]
    p, q = gf.tensor([True, False]), gf.tensor([True, True])
    assert (p & q).tolist() == [True, False]
    assert (p | q).tolist() == [True, True]
    assert (~p).tolist() == [False, True]
    assert (p ^ q).tolist() == gf.logical_xor(p, q).tolist() == [False, True]
    assert (True & p).tolist() == (False | p).tolist() == (False ^ p).tolist() == [True, False]
    with pytest.raises(TypeError, match="logical_xor takes bool tensors; got float32"):
        p ^ x
    assert (gf.ones((2, 3)) @ gf.ones((3, 1))).shape == (2, 1)


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
    assert x.swapaxes(0, 1).tolist() == x.moveaxis(0, 1).tolist() == x.T.tolist()
    assert x.maximum(2.5).tolist() == [[2.5, 2.5], [3.0, 4.0]]
    assert x.minimum(2.5).tolist() == [[1.0, 2.0], [2.5, 2.5]]
    assert x.argsort(descending=True).tolist() == [[1, 0], [1, 0]]
    for name in ("gelu", "silu", "softplus", "elu", "leaky_relu", "floor", "ceil", "round", "isinf"):
        assert getattr(x, name)().tolist() == getattr(gf, name)(x).tolist()
    assert x.elu(0.5).tolist() == gf.elu(x, 0.5).tolist()
    x.exp().log().sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", [n for n, value in vars(TensorMethods).items() if n[0] != "_" and callable(value)])
def test_a_declared_method_has_the_signature_and_the_documentation_of_its_function(name: str) -> None:
    declared, attached = vars(TensorMethods)[name], vars(gf.Tensor)[name]
    assert list(signature(declared).parameters.values())[1:] == list(signature(attached).parameters.values())[1:]
    assert attached.__doc__


def test_each_declared_operator_is_attached() -> None:
    declared = {name for name, value in vars(TensorMethods).items() if inspect.isfunction(value)}
    assert declared <= set(vars(gf.Tensor))


# ---------------------------------------------------------------------- to Python


def test_repr_tells_values_dtype_device_and_operation() -> None:
    assert repr(gf.tensor([1.0, 2.5])) == "tensor([1. , 2.5], dtype=float32, device=cpu)"
    assert repr(gf.tensor(1.5)) == "tensor(1.5, dtype=float32, device=cpu)"
    x = gf.tensor(np.array([[1.0], [2.0]]), requires_grad=True)
    assert repr(x) == "tensor([[1.],\n        [2.]], dtype=float64, device=cpu, requires_grad=True)"
    assert repr(gf.exp(x[0] * 0.0)) == "tensor([1.], dtype=float64, device=cpu, op=exp)"
    assert repr(x[0, 0]) == "tensor(1., dtype=float64, device=cpu, op=getitem)"
    assert repr(gf.zeros((0, 3))) == "tensor([], shape=(0, 3), dtype=float32, device=cpu)"
    assert repr(gf.tensor([True])) == "tensor([ True], dtype=bool, device=cpu)"
    assert repr(gf.zeros(2000)) == "tensor([0., 0., 0., ..., 0., 0., 0.], shape=(2000,), dtype=float32, device=cpu)"
    assert "shape=(40, 50)" in repr(gf.zeros((40, 50), requires_grad=True))
    assert repr((x * 1.0)[[0], [0]]) == "tensor([1.], dtype=float64, device=cpu, op=take)"
    assert repr(gf.sum(gf.ones(2))) == "tensor(2., dtype=float32, device=cpu)"


def test_one_element_formats_as_a_number() -> None:
    for x in (gf.tensor(2.0), gf.tensor([2.0]), gf.tensor([[2.0]], requires_grad=True)):
        assert f"{x:.2f}" == "2.00"
        assert f"{x}" == str(x)
    assert f"{gf.tensor([7], dtype='int64'):03d}" == "007"
    with pytest.raises(
        TypeError, match=r"format '\.2f' is for a tensor of one element; .* shape \(2,\), float32 on cpu"
    ):
        f"{gf.ones(2):.2f}"
    assert f"{gf.ones(2):>60}" == f"{gf.ones(2)!r:>60}"


def test_what_draws_a_tensor_that_requires_a_gradient_is_told_what_to_do() -> None:
    x = gf.ones(3, requires_grad=True)
    for t in (x, x * 2.0):
        for read in (np.asarray, lambda t: np.asarray(copy.copy(t)), lambda t: np.atleast_1d(t[:, None])):
            with pytest.raises(RuntimeError, match=r"use \.detach\(\)\.numpy\(\)"):
                read(t)


def test_matplotlib_is_told_what_to_do_with_a_gradient() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes, x = figure.add_subplot(), gf.ones(3, requires_grad=True)
    for t in (x, x * 2.0):
        for draw in (axes.plot, axes.hist, lambda t: axes.scatter(t, t), lambda t: axes.imshow(t[None])):
            with pytest.raises(RuntimeError, match=r"use \.detach\(\)\.numpy\(\)"):
                draw(t)
    assert axes.plot(x.detach())[0].get_ydata().tolist() == [1.0] * 3


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
    assert np.array(gf.ones(2), copy=True).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="copy=False"):
        np.asarray(gf.ones(2), copy=False)


def test_to_takes_a_device_a_dtype_or_both() -> None:
    x = gf.ones(2)
    assert x.to("cpu") is x.to(device="cpu") is x.to(dtype="float32") is x.to(gf.Device("cpu"), gf.float32) is x
    for y in (x.to("float64"), x.to(gf.float64), x.to(dtype=np.float64), x.to(np.float64),
              x.to("cpu", "float64"), x.to("cpu", dtype="float64"), x.to(device="cpu", dtype="float64")):  # fmt: skip
        assert y.dtype == gf.float64
    for name in ("flaot32", "gpu", "gpu:0"):
        with pytest.raises(ValueError, match=f"unknown device or dtype '{name}'; .*cpu, cuda.*float32, float64"):
            x.to(name)
    with pytest.raises(TypeError, match="needs a device, a dtype, or both"):
        x.to()
    with pytest.raises(TypeError, match="two devices"):
        x.to("cpu", device="cpu")
    with pytest.raises(TypeError, match="two dtypes"):
        x.to(gf.float32, "float64")
    model = gf.nn.Linear(2, 1)
    assert model.to(device="cpu", dtype="float64").weight.dtype == gf.float64
    with pytest.raises(ValueError, match="unknown device or dtype 'flaot32'"):
        model.to("flaot32")


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


def test_an_element_is_a_view_as_a_slice_is() -> None:
    x = gf.tensor([[1.0, 2.0], [3.0, 4.0]])
    vector = x[0]
    element, other, last = vector[0], x[1, 1], x.reshape(4)[2]
    element += 5.0
    other.zero_()
    last[...] = 9.0
    assert x.tolist() == [[6.0, 2.0], [9.0, 0.0]]
    x *= 2.0
    assert (element.item(), other.item(), last.item()) == (12.0, 0.0, 18.0)
    for t in vector:
        t -= 1.0
    assert x[0].tolist() == [11.0, 3.0]


@pytest.mark.parametrize("key", [0, slice(0, 1), (0, None), (0, ...)], ids=str)
def test_a_change_of_an_element_is_noticed_as_one_of_a_slice_is(key: Any) -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    y = x * 2.0
    out = (y * y).sum()
    with gf.no_grad():
        y[key].zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        out.backward()


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
        with pytest.raises(RuntimeError, match=r"a leaf that requires grad in place; .*no_grad"):
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


def test_copy_takes_what_a_tensor_is_made_of(device: str, other_device: str) -> None:
    x = gf.zeros((2, 2), "int16", device)
    rows = [[1, 2], [3, 4]]
    for source in (rows, tuple(rows), np.array(rows), np.array(rows, ">f8"), gf.tensor(rows, device=other_device)):
        assert x.zero_().copy_(source) is x
        assert (x.tolist(), x.dtype) == (rows, gf.int16)
    for number in (5, 5.0, np.float32(5), np.int8(5)):
        assert x.zero_().copy_(number).tolist() == [[5, 5], [5, 5]]
    for wrong in ([1, 2], np.ones((2, 3)), gf.ones(1, device=device)):
        with pytest.raises(ValueError, match=r"copy_ needs a source of shape \(2, 2\); got"):
            x.copy_(wrong)
    for wrong in ("a", None, [[1, 2], [3, "b"]]):
        with pytest.raises(TypeError, match="a tensor is made of numbers"):
            x.copy_(wrong)
    assert x.tolist() == [[5, 5], [5, 5]]


def test_item_assignment_casts_tensors_of_another_dtype(device: str) -> None:
    x = gf.zeros(2, "int16", device)
    x[...] = gf.tensor([1.0, 2.0], device=device)
    x[1] = gf.tensor(3, "int64", device=device)
    assert (x.tolist(), x.dtype) == ([1, 3], gf.int16)


def test_read_only_memory_is_named_when_it_would_change() -> None:
    array = np.zeros(3)
    array.flags.writeable = False
    shared = gf.asarray(array)
    assert shared.array is array or np.shares_memory(shared.array, array)
    for x in (shared, gf.broadcast_to(gf.ones(1), (3,))):
        changes = [
            lambda x=x: x.copy_(1.0), lambda x=x: x.zero_(), lambda x=x: operator.setitem(x, 0, 1.0),
            lambda x=x: operator.iadd(x, 1.0), lambda x=x: operator.setitem(x[1:], ..., gf.ones(2)),
        ]  # fmt: skip
        for change in changes:
            with pytest.raises(ValueError, match=r"its memory is read-only, .* copy it with gradflow\.tensor"):
                change()
    with pytest.raises(ValueError, match="broadcast"):
        gf.zeros(3)[...] = np.zeros(2)
    assert gf.tensor(array).zero_().tolist() == [0.0] * 3


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


def test_a_copy_of_a_computed_tensor_is_a_clone() -> None:
    x = gf.ones(2, requires_grad=True)
    y = copy.copy(x * 2.0)
    assert not y.is_leaf
    y.sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]


def test_computed_tensors_refuse_to_be_copied_with_their_graph() -> None:
    y = gf.ones(2, requires_grad=True) * 2.0
    with pytest.raises(RuntimeError, match=r"only a leaf .* computed tensor .*\.detach\(\)\.clone\(\)"):
        copy.deepcopy(y)
    with pytest.raises(RuntimeError, match=r"only a leaf .* computed tensor of shape \(2,\), .*\.detach\(\)"):
        pickle.dumps(y)


METHODS = [name for name, value in vars(gf.Tensor).items() if inspect.isfunction(value) and not name.startswith("_")]


@pytest.mark.parametrize("name", [*METHODS, "__format__", "__repr__", "__setitem__"])
def test_methods_can_be_pickled(name: str) -> None:
    method = getattr(gf.Tensor, name)
    assert pickle.loads(pickle.dumps(method)) is method
    bound = pickle.loads(pickle.dumps(getattr(gf.tensor([1.0, 2.0]), name)))
    assert bound.__func__ is method
    assert bound.__self__.tolist() == [1.0, 2.0]


def test_errors_name_methods_as_users_call_them() -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match=r"^Tensor\.clone\(\) takes 1 positional argument but 2 were given$"):
        x.clone(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^Tensor\.to\(\) got an unexpected keyword argument 'of'$"):
        x.to(of="cpu")  # type: ignore[call-arg]
    gf.Tensor.backward(self=x.sum())
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0]
    assert repr(gf.Tensor.reshape).startswith("<function Tensor.reshape at ")


def transposed(device: str) -> gf.Tensor:
    """A tensor whose memory holds the columns one after the other."""
    with gf.no_grad():
        return gf.tensor(np.arange(6.0).reshape(3, 2), device=device).T


COPIES: dict[str, Any] = {
    "clone": lambda t, _: t.clone(), "tensor": lambda t, _: gf.tensor(t), "cast": lambda t, _: gf.tensor(t, "float32"),
    "asarray": lambda t, _: gf.asarray(t, copy=True), "astype": lambda t, _: t.astype("float32"),
    "moved": lambda t, other: t.to(other), "moved and cast": lambda t, other: t.to(other, "float32"),
    "of the host": lambda t, _: gf.tensor(t.numpy().T, device=t.device).T.clone(),
    "in Fortran order": lambda t, _: gf.tensor(np.asfortranarray(t.numpy()), device=t.device),
    "copy": lambda t, _: copy.copy(t), "deepcopy": lambda t, _: copy.deepcopy(t),
    "of a leaf": lambda t, _: copy.deepcopy(gf.nn.Parameter(t)), "of a result": lambda t, _: copy.copy(gf.exp(t)),
    "pickle": lambda t, _: pickle.loads(pickle.dumps(t)), "requiring": lambda t, _: gf.tensor(t, requires_grad=True),
}  # fmt: skip


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_in_c_order(how: str, device: str, other_device: str) -> None:
    if "moved" in how and other_device == device:
        other_device = "cpu"  # a tensor is not moved to where it is
    if "astype" in how and gf.Device(device).type not in ("cpu", "fake", "cuda"):
        pytest.skip("the Array API leaves the order of a cast to the library")
    x = transposed(device)
    made = COPIES[how](x, other_device).detach()
    flat = made.backend.reshape(made.array, (6,))
    made.backend.setitem(flat, ..., 7.0)
    assert (made.numpy() == 7.0).all(), "reshaping the copy gives no view of it"
    assert x.tolist() == [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]


def test_a_state_is_in_c_order(device: str) -> None:
    module = gf.nn.Module()
    module.weight = gf.nn.Parameter(transposed(device))
    module.register_buffer("mean", transposed(device))
    for made in module.state_dict().values():
        made.backend.setitem(made.backend.reshape(made.array, (6,)), ..., 7.0)
        assert (made.numpy() == 7.0).all()


def test_values_leave_in_c_order(device: str) -> None:
    x = transposed(device)
    for view in (x, x[:, ::2], gf.flip(x), gf.broadcast_to(x[:, :1], (2, 3)), gf.exp(x), gf.nn.Parameter(x).detach()):
        found = view.numpy()
        assert found.flags.c_contiguous
        assert found.tolist() == view.tolist()
    assert np.asarray(x.cpu()).flags.c_contiguous


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
