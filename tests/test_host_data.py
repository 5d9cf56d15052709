"""Data from the host: byte order, subclasses, data that is not numeric, and numbers beyond an integer dtype."""

from __future__ import annotations

import datetime
import decimal
import fractions
import functools
import math
import operator
import sys
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow.data import Batches, Dataset
from gradflow.dtypes import DTYPES

DTYPE_NAMES = [name for name in DTYPES if name != "bfloat16"]
INTEGERS = [name for name in DTYPE_NAMES if DTYPES[name].kind in ("int", "uint")]


def other_order(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("S")


# ---------------------------------------------------------------------- byte order and subclasses


def ways_in(values: Any, device: str) -> dict[str, gf.Tensor]:
    """Return tensors of an array of shape (2, 3) that is brought to the device in each way."""
    x = gf.zeros((2, 3), values.dtype.name, device)
    with gf.no_grad():
        copied, assigned, rows = gf.zeros_like(x).copy_(values), gf.zeros_like(x), gf.zeros_like(x)
        assigned[...] = values
        rows[1], rows[0] = values[1], list(values[0])
    module = nn.Module()
    module.register_buffer("x", x)
    module.load_state_dict({"x": values})
    ((batch, targets),) = Batches(values, values, batch_size=2, shuffle=False, device=device)
    return {
        "tensor": gf.tensor(values, device=device), "asarray": gf.asarray(values, device=device), "copy_": copied,
        "setitem": assigned, "setitem of rows": rows, "load_state_dict": x, "batch": batch, "targets": targets,
        "rows": gf.tensor(list(values), values.dtype.name, device),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_arrays_of_another_byte_order_become_native(dtype: str, device: str) -> None:
    if not gf.get_backend(device).supports(dtype):
        pytest.skip(f"{device} has no {dtype}")
    values = np.arange(6).reshape(2, 3).astype(dtype)
    for way, x in ways_in(values.astype(other_order(dtype)), device).items():
        assert x.dtype == dtype, way
        assert x.numpy().dtype.isnative, way
        assert x.array.dtype == x.backend.dtypes[dtype], way
        assert x.tolist() == values.tolist(), way


def test_layers_take_data_of_another_byte_order(device: str) -> None:
    values = np.ones((2, 3), other_order("float32"))
    with gf.use_device(device):
        model, x = nn.Linear(3, 1), gf.tensor(values)
        (model(x) - gf.tensor(values[:, :1])).square().mean().backward()
        assert model.weight.grad.shape == (1, 3)


def test_indices_of_another_byte_order_are_read_right() -> None:
    assert gf.arange(3)[np.array([2, 0], other_order("int64"))].tolist() == [2, 0]


def test_datasets_take_data_of_another_byte_order() -> None:
    made = Dataset("d", np.ones((2, 3), other_order("float32")), np.array([0, 1], other_order("int64")), ("a", "b"))
    assert made.inputs.dtype.isnative
    assert made.targets.dtype.isnative
    assert made.targets.tolist() == [0, 1]


def test_a_matrix_becomes_an_array(device: str) -> None:
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix([[1.0, 2.0], [3.0, 4.0]])
    for x in (gf.tensor(matrix, device=device), gf.asarray(matrix, device=device)):
        assert x[0].shape == x.sum(axis=0).shape == (2,)
        assert (x * x).tolist() == [[1.0, 4.0], [9.0, 16.0]]
    x = gf.asarray(matrix, device="cpu")
    assert type(x.array) is np.ndarray
    assert np.shares_memory(x.array, matrix), "asarray copies only where it must"


@pytest.mark.parametrize("mask", [False, [True, False]])
def test_masked_arrays_are_refused_with_the_way_out(mask: Any, device: str) -> None:
    masked = np.ma.masked_array([1.0, 2.0], mask)
    x = gf.zeros(2, device=device)
    module = nn.Module()
    module.register_buffer("x", x)
    calls = [
        lambda: gf.tensor(masked, device=device), lambda: gf.asarray(masked, device=device), lambda: x.copy_(masked),
        lambda: gf.tensor([masked, masked], device=device), lambda: operator.setitem(x, ..., masked),
        lambda: module.load_state_dict({"x": masked}), lambda: Batches(masked, masked, 1, device=device),
        lambda: gf.tensor([1.0, np.ma.masked]),
        lambda: Dataset("d", masked.astype("float32").reshape(2, 1), np.array([0, 1]), ("a", "b")),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(TypeError, match=r"masked array .* fill them first, for example with \.filled\(0\)"):
            call()
    assert gf.tensor(masked.filled(0.0), device=device).shape == (2,)


# ---------------------------------------------------------------------- kinds that are no numbers


class Table:
    """Like a data frame of pandas or polars: columns with dtypes, and an array of their common dtype."""

    def __init__(self, dtype: Any = object, **columns: str) -> None:
        self.columns, self.dtypes, self.dtype = list(columns), list(columns.values()), dtype

    def __array__(self, *_: Any, **__: Any) -> Any:
        return np.zeros((2, len(self.columns)), self.dtype)


_RECORDS = np.zeros(2, [("age", "f4"), ("name", "U3")])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.array([1.0, "a", None], object), r"got text \('a'\): .* encode words with numpy\.unique"),
        (np.array([1, None], object), r"Python objects like None: convert numbers with \.astype\('float32'\) .* NaN"),
        (np.array([1, 2], object), r"Python objects like 1: convert numbers with \.astype\('float32'\)"),
        (np.array(["1", "2"]), r"text \(<U1\): convert numbers with .* encode words with numpy\.unique"),
        (np.array([b"1"]), r"text \(\|S1\)"),
        (np.array(["1"], np.dtypes.StringDType()), r"text \(StringDType"),
        (np.array(["2026-01-01"], "datetime64[D]"), r"dates \(datetime64\[D\]\): count from one of them"),
        (np.array([1], "timedelta64[s]"), r"durations \(timedelta64\[s\]\): divide by a unit"),
        (np.array([1j]), r"complex numbers \(complex128\): .* take \.real and \.imag"),
        (_RECORDS, r"records with the fields age, name: take one, as in x\['age'\]"),
        (np.zeros(2, "longdouble"), r"convert with \.astype\('float64'\)"),
        (Table(age="float64", name="object"), r"it cannot hold columns 'name' \(object\): leave them out"),
        (Table(a="Float64", day="Datetime", s="String"), r"columns 'day' \(Datetime\), 's' \(String\)"),
        (Table(a="bool", b="float64"), r"columns 'a' \(bool\), 'b' \(float64\)"),
        ([1.0, "a"], r"made of numbers; got 'a' among them: convert numbers with float\(\), and encode words"),
        ([[1.0], [None]], r"got None among them: for a missing number write math\.nan"),
        ([1.0, 1j], r"got 1j among them: .* take \.real and \.imag"),
        ([np.datetime64("2026-01-01")], r"dates \(datetime64"),
        ([datetime.date(2026, 1, 1)], r"got datetime\.date\(2026, 1, 1\) among them"),
        ([decimal.Decimal(1)], r"got Decimal\('1'\) among them: convert it with float\(\)"),
        ([1, fractions.Fraction(1, 2)], r"got Fraction\(1, 2\) among them: convert it with float\(\)"),
        ([np.complex64(1j)], "complex numbers"),
        ([1.0, gf.ones(())], r"gradflow\.stack or gradflow\.concat"),
        ([[gf.ones(2)], [gf.ones(2)]], r"gradflow\.stack or gradflow\.concat"),
        ({1.0}, r"numbers, nested lists, arrays or tensors; got set"),
    ],
)  # fmt: skip
def test_what_is_no_array_of_numbers_is_named_with_the_fix(data: Any, message: str, device: str) -> None:
    for make in (gf.tensor, gf.asarray):
        with pytest.raises(TypeError, match=message):
            make(data, device=device)


def test_a_table_of_numbers_is_taken(device: str) -> None:
    assert gf.tensor(Table(np.float64, a="int64", b="float64"), device=device).shape == (2, 2)


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ([[1, 2], [3]], r"data\[0\] has 2 elements, data\[1\] has 1 element; pad"),
        ([1, [2]], r"data\[0\] is a number, data\[1\] has 1 element"),
        ([[[1], [2]], [[3], [4, 5]]], r"data\[0\]\[0\] has 1 element, data\[1\]\[1\] has 2 elements"),
        ([np.ones(2), np.ones(3)], r"data\[0\] has 2 elements, data\[1\] has 3 elements"),
        ([[], [1]], r"data\[0\] has 0 elements, data\[1\] has 1 element"),
    ],
)
def test_ragged_lists_are_refused_with_the_place(data: Any, where: str) -> None:
    with pytest.raises(ValueError, match=f"a tensor cannot be made of lists of unequal lengths: {where}"):
        gf.tensor(data)


@pytest.mark.parametrize(
    "data",
    [
        [1, 2.5], [np.float32(1), 2], [np.float64(1), np.int8(2), True], [[1, 2], (3, 4)], [np.arange(2), [2.5, 3]],
        range(4), [range(2), range(2)], [[[]]], [np.array(1.0), 2.0], [True, np.False_],
    ],
    ids=repr,
)  # fmt: skip
def test_nested_numbers_are_taken(data: Any, device: str) -> None:
    x, expected = gf.tensor(data, device=device), np.array(data)
    assert x.dtype == ("bool" if expected.dtype == bool else "float32")
    assert (x.shape, x.tolist()) == (expected.shape, expected.astype(x.dtype.name).tolist())


@pytest.mark.parametrize("dtype", [None, "float64", "int64", "uint8"])
@pytest.mark.parametrize("kind", [float, int, np.float32, np.uint8, bool])
def test_long_lists_are_not_walked_in_python(kind: Any, dtype: str | None) -> None:
    row = [kind(i % 2) for i in range(5000)]
    for data in (row, [row, row], (row, [kind(1)] * 5000), [[[x] for x in row[:50]]]):
        calls: list[str] = []
        sys.setprofile(lambda _frame, event, _arg, calls=calls: calls.append(event))  # type: ignore[misc]
        try:
            gf.tensor(data, dtype)
        finally:
            sys.setprofile(None)
        assert len(calls) < 500, "so many calls for 5000 numbers"


# ---------------------------------------------------------------------- numbers beyond an integer dtype


def unfit(dtype: str) -> list[tuple[Any, type[Exception]]]:
    low, high = DTYPES[dtype].limits
    return [
        (high + 1, OverflowError), (low - 1, OverflowError), (math.inf, OverflowError), (-math.inf, OverflowError),
        (math.nan, ValueError), (0.5, ValueError), (1e30, OverflowError), (np.float32(1.5), ValueError),
    ]  # fmt: skip


def host_data(number: Any) -> list[Any]:
    """A number in the forms in which it may come from the host."""
    lists = [[number], [[1, 0], [0, number]]]
    arrays = [np.array(data) for data in (number, *lists)]
    return [number, *lists, *(a for a in arrays if a.dtype.kind in "iuf")]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_numbers_that_an_integer_dtype_cannot_hold_are_refused(dtype: str, device: str) -> None:
    x = gf.ones((2, 2), dtype, device)
    for number, error in unfit(dtype):
        if isinstance(number, int) and not -(2**63) <= number < 2**64:  # too large for a list of integers
            error = (error, ValueError)  # type: ignore[assignment]
        for data in host_data(number):
            with pytest.raises(error):
                gf.tensor(data, dtype, device)
            with pytest.raises(error):
                gf.asarray(data, dtype, device)
            with pytest.raises(error):
                x[...] = data
            if isinstance(data, np.ndarray) and data.dtype.kind != "f":
                module = nn.Module()
                module.register_buffer("x", gf.zeros(data.shape, dtype, device))
                with pytest.raises(error):
                    module.load_state_dict({"x": data})
        with pytest.raises(error):
            x.copy_(number)
        with pytest.raises(error):
            gf.full((2,), number, dtype, device)
        with pytest.raises(error):
            gf.full_like(x, number)
        with pytest.raises(error):
            gf.pad(x, 1, number)
        with pytest.raises(error):
            gf.arange(number, number + 1, dtype=dtype, device=device)
        with pytest.raises(error):
            gf.linspace(0, number, 2, dtype=dtype, device=device)
    assert x.tolist() == [[1, 1], [1, 1]], "a refused number changes nothing"


OPERATORS = [operator.add, operator.sub, operator.mul, operator.pow]


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_beyond_the_dtype_of_an_operand_are_refused(dtype: str, above: bool, device: str) -> None:
    x = gf.ones(2, dtype, device)
    low, high = DTYPES[dtype].limits
    number = high + 1 if above else low - 1
    calls: list[Any] = [
        lambda: gf.where(x == 1, x, number), lambda: gf.where(x == 1, number, x),
        lambda: x.clip(min(number, 0), max(number, 0)),
    ]  # fmt: skip
    for function in (*OPERATORS, gf.maximum, gf.minimum):
        calls += [functools.partial(function, x, number), functools.partial(function, number, x)]
    for call in calls:
        with pytest.raises(OverflowError, match=rf"{number} is beyond {dtype}, which holds {low} to {high}"):
            call()
    assert (x + (high - 1)).tolist() == [high, high]
    assert gf.where(x == 1, high, x).tolist() == [high, high]


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_comparisons_with_integers_beyond_the_dtype_are_right(name: str, dtype: str, device: str) -> None:
    compare, (low, high) = getattr(operator, name), DTYPES[dtype].limits
    x = gf.tensor([low, 0, high], dtype, device)
    for number in (high + 1, low - 1, 2**70, -(2**70)):
        assert compare(x, number).tolist() == [compare(v, number) for v in (low, 0, high)]
        assert compare(number, x).tolist() == [compare(number, v) for v in (low, 0, high)]
        assert compare(x, number).dtype == gf.bool
    with pytest.raises(OverflowError):
        compare(gf.ones(1, device=device), 10**400)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_numbers_at_the_limits_are_held(dtype: str, device: str) -> None:
    for number in DTYPES[dtype].limits:
        assert gf.tensor([number], dtype, device).tolist() == [number]
        assert gf.full((), number, dtype, device).item() == number
        assert gf.tensor(np.array([number]), dtype, device).tolist() == [number]
        assert gf.tensor([0, number, 1], dtype, device).tolist() == [0, number, 1]
        assert gf.tensor([[0.0], [number]], dtype, device).tolist() == [[0], [number]], "to the digit"
    assert gf.tensor([1.0, -0.0], dtype, device).tolist() == [1, 0]
    assert gf.tensor(np.array([True]), dtype, device).tolist() == [1]


def test_a_cast_of_a_tensor_reads_nothing_from_the_device() -> None:
    with gf.testing.count_transfers() as moved:
        gf.ones(3, device="fake").astype("uint8")
        gf.tensor(gf.ones(3, device="fake"), dtype="uint8")
    assert (moved.to_host, moved.synchronizations) == (0, 0)


def test_a_number_of_the_wrong_kind_is_named() -> None:
    x = gf.ones(2)
    for fill in ("a", None, x):
        with pytest.raises(TypeError, match=r"full takes a number; got (str|NoneType|Tensor)"):
            gf.full((2,), fill)
    for one, two in ((None, 1), (None, x), (x, "a")):
        with pytest.raises(TypeError, match="where takes tensors and Python numbers; got"):
            gf.where(x == 1, one, two)
