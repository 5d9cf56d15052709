"""Exact array functions as kernels: NumPy's bits, and which arguments have a kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from gradflow_numpy import NumpyBackend
from gradflow_numpy.native import kernels
from gradflow_numpy.native.elementwise import ELEMENTWISE, launch_elementwise

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),  # of infinities and NaN
    pytest.mark.skipif(not kernels.is_supported(), reason="this processor has no kernels"),
]
BINARY = ("add", "subtract", "multiply", "divide")
UNARY = ("negative", "abs", "square", "sqrt", "copy")
SPECIAL = [0.0, -0.0, np.inf, -np.inf, 1e-40, -1e-40, 3e38, -3e38, 1.0, -1.0]

dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
numpy = NumpyBackend()


def numbers(shape: Any, dtype: str, seed: int = 0) -> Any:
    """Random numbers, with special ones among them."""
    r = np.random.default_rng(seed)
    x = (10.0 ** r.uniform(-20, 20, shape) * r.choice([-1, 1], shape)).astype(dtype)
    return np.where(r.random(shape) < 0.3, r.choice(SPECIAL, shape).astype(dtype), x)


def assert_numpys_bits(name: str, *arguments: Any) -> None:
    expected = np.asarray(getattr(numpy, name)(*arguments))
    out = np.empty(expected.shape, expected.dtype)
    assert launch_elementwise(name, arguments, out)
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(out), nan)
    assert out[~nan].tobytes() == expected[~nan].tobytes()


def test_the_functions_are_those_of_the_table() -> None:
    assert {*BINARY, *UNARY, "setitem"} == ELEMENTWISE


@dtypes
@pytest.mark.parametrize("shape", [(), (1,), (1000,), (37, 5), (0, 4), (2, 3, 4)])
@pytest.mark.parametrize("name", BINARY)
def test_two_arrays_give_numpys_bits(name: str, shape: Any, dtype: str) -> None:
    assert_numpys_bits(name, np.array(numbers(shape, dtype)), np.array(numbers(shape, dtype, 1)))


@dtypes
@pytest.mark.parametrize("name", BINARY)
def test_an_array_and_one_number_give_numpys_bits(name: str, dtype: str) -> None:
    x = numbers((50, 7), dtype)
    for one in (np.array(1 / 3, dtype), np.array([7], dtype), 0.1, 3, np.array(np.inf, dtype), 0.0, -1e-300):
        assert_numpys_bits(name, x, one)
        assert_numpys_bits(name, one, x)
        assert_numpys_bits(name, np.array(0.7, dtype), one)


@dtypes
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_array_give_numpys_bits(name: str, dtype: str) -> None:
    for shape in ((), (1000,), (37, 5)):
        assert_numpys_bits(name, np.array(numbers(shape, dtype)))


@dtypes
def test_setitem_writes_an_array_or_a_number_to_all_of_an_array_or_to_a_part_at_its_start(dtype: str) -> None:
    for key in (..., (), slice(None), (2,), (2, ...), (2, 3), slice(1, 3), (-1, slice(0, 2))):
        for scalar in (0.1, 2, np.array(np.nan, dtype), None):
            found, expected = numbers((4, 5), dtype), numbers((4, 5), dtype)
            value = numbers(np.shape(expected[key]), dtype, 1) if scalar is None else scalar
            value = np.asarray(value) if scalar is None else value
            expected[key] = value
            assert launch_elementwise("setitem", (found, key, value))
            assert found.tobytes() == expected.tobytes()


@dtypes
def test_the_result_may_be_an_operand(dtype: str) -> None:
    x, y = numbers(100, dtype), numbers(100, dtype, 1)
    expected = x * y
    assert launch_elementwise("multiply", (x, y), x)
    assert np.array_equal(x, expected, equal_nan=True)


def test_other_arguments_have_no_kernel_and_nothing_is_written() -> None:
    x, wide = np.ones((4, 4), np.float32), np.ones((4, 4))
    for name, arguments in (
        ("add", (x, np.float32(1))),  # a NumPy scalar
        ("add", (x, wide)),
        ("add", (x.T, x)),
        ("add", (x, x[:1])),  # broadcast rows
        ("add", (x, True)),
        ("add", (x, np.ones((4, 4), np.int32))),
        ("negative", (x.astype(np.float16),)),
    ):
        out = np.full((4, 4), 7, np.float32)
        assert not launch_elementwise(name, arguments, out)
        assert np.all(out == 7)
    flat = np.arange(8, dtype=np.float32)
    assert not launch_elementwise("negative", (flat[:4],), flat[2:6])  # overlap
    assert not launch_elementwise("multiply", (flat, flat[3:4]), flat)
    for key, value in ((slice(None, None, 2), 0.0), (np.array([1, 2]), 0.0), (..., wide), (..., np.float32(1))):
        assert not launch_elementwise("setitem", (x, key, value))
    assert np.array_equal(flat, np.arange(8))
    assert np.all(x == 1)
