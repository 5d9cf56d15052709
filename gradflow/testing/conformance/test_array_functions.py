"""The array functions of a backend: values, dtypes, shapes and defaults, in every layout, against NumPy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradflow.backend import ARRAY_FUNCTIONS, Backend
from gradflow.dtypes import DTYPES
from gradflow.testing.agreement import assert_agree, eps
from gradflow.testing.conformance import REALS, about
from gradflow.testing.conformance.function_cases import ALL, CALLS, Call, Native
from gradflow.testing.conformance.harness import LAYOUTS, Placed, cast, compare_result, leaves

CHECKS = [pytest.param(call, dtype, id=f"{call}-{dtype}") for call in CALLS for dtype in call.dtypes]


def test_every_function_has_a_call() -> None:
    """The kit is complete."""
    assert {call.subject for call in CALLS} == set(ARRAY_FUNCTIONS)


@pytest.mark.parametrize("dtype", [*ALL])
def test_dtype(backend: Backend, dtype: str) -> None:
    """Every dtype but bfloat16 is there, with the same object each time it is asked for."""
    assert backend.supports(dtype), f"{backend.device} has no {dtype}"
    native = backend.dtypes[dtype]
    made = backend.zeros((2, 3), dtype=native)
    assert made.dtype == native
    assert backend.dtype_name(made.dtype) == dtype
    assert DTYPES[backend.dtype_name(native)].name == dtype


def _typed(x: Any, dtype: str) -> Any:
    """Arguments with their arrays in the dtype under test: floating ones, or integers where it is one of integers."""
    if isinstance(x, (tuple, list)):
        return type(x)(_typed(part, dtype) for part in x)
    if isinstance(x, Native):
        return Native(x.name or dtype)
    if isinstance(x, np.ndarray) and x.dtype == np.int64 and dtype not in (*REALS, "bool"):
        return x.astype(dtype)
    return cast(x, dtype)


def _resolved(x: Any, find: Callable[[str], Any]) -> Any:
    return find(x.name) if isinstance(x, Native) else x


def _expected(call: Call, given: list[Any], dtype: str) -> tuple[Any, Any]:
    """The value, by NumPy in float64 where a bound or ulps are allowed, and the dtype that the result must have."""
    function = call.reference or getattr(np, call.subject)

    def run(arguments: list[Any]) -> Any:
        options = {key: _resolved(_typed(value, dtype), np.dtype) for key, value in call.options.items()}
        return np.asarray(function(*[_resolved(a, np.dtype) for a in arguments], **options))

    with np.errstate(all="ignore"):
        plain = run(given)
        exact = plain if call.ulp is None and call.bound is None else run(cast(given, "float64"))
    return exact, plain.dtype


@pytest.mark.parametrize(("call", "dtype"), CHECKS)
def test_array_function(backend: Backend, call: Call, dtype: str) -> None:
    """One call, with its arrays in every layout; it changes none of them."""
    given: list[Any] = [_typed(a, dtype) for a in call.arguments]
    expected, expected_dtype = _expected(call, given, dtype)
    options = {
        key: _resolved(_typed(value, dtype), lambda name: backend.dtypes[name]) for key, value in call.options.items()
    }
    for layout in LAYOUTS if any(x.ndim for x in leaves(given) if isinstance(x, np.ndarray)) else LAYOUTS[:1]:
        what = f"{call} {dtype} {layout} on {backend.device}"
        placed = Placed(backend, given, layout)
        arguments = [_resolved(a, lambda name: backend.dtypes[name]) for a in placed.arguments]
        with np.errstate(all="ignore"):  # infinities and NaN are among the values
            result = getattr(backend, call.subject)(*arguments, **options)
        found = backend.to_host(result)
        assert result.shape == expected.shape, f"{what}: shape {result.shape}, not {expected.shape}"
        assert result.ndim == expected.ndim, f"{what}: {result.ndim} axes, not {expected.ndim}"
        name = backend.dtype_name(result.dtype)
        assert name == str(expected_dtype), f"{what}: {name}, not {expected_dtype}"
        if call.subject == "empty":
            continue
        if call.bound is not None:
            bound = call.bound(eps(dtype), *cast(given, "float64"), **call.options)
            compare_result(what, found, expected, dtype, bound)
        else:
            assert_agree(what, found, expected, ulp=call.ulp)
        placed.check_the_rest(what)


ERRORS: dict[str, Callable[..., Any]] = {
    "shapes that do not broadcast": lambda B, x, y: B.add(x, B.reshape(y, (4, 3))),
    "a condition that does not broadcast": lambda B, x, y: B.where(B.reshape(B.less(x, y), (4, 3)), x, y),
    "matrices that do not fit": lambda B, x, y: B.matmul(x, y),
    "a shape of another size": lambda B, x, y: B.reshape(x, (5, 2)),
    "a shape that nothing divides": lambda B, x, y: B.reshape(x, (5, -1)),
    "a shape to which nothing broadcasts": lambda B, x, y: B.broadcast_to(x, (3, 5)),
    "arrays that do not line up": lambda B, x, y: B.concat([x, B.reshape(y, (4, 3))], axis=0),
    "arrays of two shapes": lambda B, x, y: B.stack([x, B.reshape(y, (4, 3))], axis=0),
    "an axis of more than one": lambda B, x, y: B.squeeze(x, axis=0),
    "an axis that is not there": lambda B, x, y: B.sum(x, axis=2),
    "an axis below the first": lambda B, x, y: B.max(x, axis=-3),
    "axes that are not all there": lambda B, x, y: B.permute_dims(x, (0,)),
    "an axis twice": lambda B, x, y: B.permute_dims(x, (0, 0)),
    "the largest of nothing": lambda B, x, y: B.max(x[:0], axis=0),
    "the index of the largest of nothing": lambda B, x, y: B.argmax(x[:0], axis=0),
}


@pytest.mark.parametrize("title", ERRORS)
def test_what_has_no_result_raises(backend: Backend, title: str) -> None:
    """A wrong shape or axis is an error and not another result."""
    x, y = (backend.from_host(np.arange(12, dtype="float32").reshape(3, 4)) for _ in range(2))
    with pytest.raises(Exception):  # noqa: B017 (each library has its own)
        ERRORS[title](backend, x, y)


@about("reshape")
def test_a_view_is_one(backend: Backend) -> None:
    """Basic slices, and `reshape` of a contiguous array, share memory with it: flat parameters are made of both."""
    x = backend.from_host(np.zeros(12, "float32"))
    part = backend.reshape(x[4:10], (2, 3))
    part[...] = 1.0
    part[1, :] = 2.0
    assert backend.to_host(x).tolist() == [0.0] * 4 + [1.0] * 3 + [2.0] * 3 + [0.0] * 2


@about("copy", "astype")
def test_a_copy_is_one(backend: Backend) -> None:
    """`copy` and `astype` share no memory with their argument."""
    copies: list[Callable[[Any], Any]] = [backend.copy, lambda x: backend.astype(x, x.dtype)]
    for copied in copies:
        x = backend.from_host(np.zeros((2, 3), "float32"))
        y = copied(x)
        y[...] = 1.0
        assert not backend.to_host(x).any()
        x[...] = 2.0
        assert (backend.to_host(y) == 1).all()


NUMBERS: dict[str, tuple[Any, str]] = {
    "float": (0.1, "float64"), "floats": ([[0.1], [-1 / 3]], "float64"), "none": ([], "float64"),
    "integers": ([2**53 + 1, -3], "int64"), "large integer": (2**64 - 1, "uint64"), "truths": ([True, False], "bool"),
}  # fmt: skip


@about("asarray")
@pytest.mark.parametrize("title", NUMBERS)
def test_python_numbers(backend: Backend, title: str) -> None:
    """They keep all their digits: gradflow makes an array of them first, and casts it afterwards."""
    data, dtype = NUMBERS[title]
    made = backend.asarray(data)
    assert (backend.dtype_name(made.dtype) == "bool") == (dtype == "bool")
    found = backend.to_host(backend.astype(made, backend.dtypes[dtype]))
    assert_agree(title, found, np.asarray(data, dtype))


@pytest.mark.parametrize("dtype", REALS)
def test_operators(backend: Backend, dtype: str) -> None:
    """Arithmetic of arrays and numbers keeps the dtype; comparisons give bool."""
    a, b = np.array([1.5, -2.0, 0.25], dtype), np.array([[2.0], [0.5]], dtype)
    x, y = backend.from_host(a), backend.from_host(b)
    for found, expected in (
        (x + y, a + b), (x - y, a - b), (x * y, a * b), (x / y, a / b), (-x, -a), (x * 2.5, a * a.dtype.type(2.5)),
        (2.5 * x, a * a.dtype.type(2.5)), (1 - x, 1 - a), (x + 1, a + 1), (x / 4, a / 4),
        (x < y, a < b), (x <= 0.25, a <= 0.25), (x > y, a > b), (x >= 0.25, a >= 0.25), (x == y, a == b),
        (x != 1.5, a != 1.5),
    ):  # fmt: skip
        assert_agree("an operator", backend.to_host(found), expected)
