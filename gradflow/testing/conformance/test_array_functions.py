"""The array functions of a backend against NumPy: values, dtypes, shapes and defaults, in every layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradflow.backend import ARRAY_FUNCTIONS, Backend
from gradflow.dtypes import DTYPES
from gradflow.testing.conformance import REALS, about
from gradflow.testing.conformance.function_cases import ALL, CALLS, Call, Native
from gradflow.testing.conformance.harness import LAYOUTS, Placed, cast, compare_result, leaves, rounded
from gradflow.testing.tolerances import assert_agree, eps

CHECKS = [pytest.param(call, dtype, id=f"{call}-{dtype}") for call in CALLS for dtype in call.dtypes]


def test_every_function_has_a_call() -> None:
    """The kit covers every array function."""
    called = {call.subject for call in CALLS}
    assert called == set(ARRAY_FUNCTIONS), f"no calls of {sorted(set(ARRAY_FUNCTIONS) - called)}"


@pytest.mark.parametrize("dtype", [*ALL])
def test_dtype(backend: Backend, dtype: str) -> None:
    """The backend has every dtype except bfloat16, each with one object."""
    assert backend.supports(dtype), f"{backend.device} has no {dtype}"
    native = backend.dtypes[dtype]
    made = backend.zeros((2, 3), dtype=native)
    assert made.dtype == native
    assert backend.dtype_name(made.dtype) == dtype
    assert DTYPES[backend.dtype_name(native)].name == dtype


def _typed(x: Any, dtype: str) -> Any:
    """Return arguments with floating arrays in the dtype under test; int64 arrays if that is an integer dtype."""
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
    """Return the value by NumPy (in float64 if an error is allowed) and the dtype that the result must have."""
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
    """One call with its arrays in every layout; it must not change them."""
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
        placed.check_unchanged(what)


IN_BFLOAT16 = [call for call in CALLS if call.dtypes == REALS and "asarray" not in call.subject]


@pytest.mark.parametrize(("call", "dtype"), [pytest.param(c, "bfloat16", id=f"{c}-bfloat16") for c in IN_BFLOAT16])
def test_bfloat16(backend: Backend, call: Call, dtype: str) -> None:
    """If the backend has bfloat16, every function supports it: within one ulp of the float64 value."""
    native, wide = backend.dtypes[dtype], backend.dtypes["float32"]
    given = [rounded(a) for a in call.arguments]
    expected, expected_dtype = _expected(call, [_typed(a, "float32") for a in given], "float32")
    if expected_dtype == np.float32 and "float32" not in call.needs:
        expected_dtype = dtype

    def place(x: Any) -> Any:
        if isinstance(x, (tuple, list)):
            return type(x)(place(part) for part in x)
        if isinstance(x, Native):
            return backend.dtypes[x.name or dtype]
        if not isinstance(x, np.ndarray):
            return x
        return backend.astype(backend.from_host(x), native) if x.dtype == np.float32 else backend.from_host(x)

    with np.errstate(all="ignore"):
        result = getattr(backend, call.subject)(
            *(place(a) for a in given), **{key: place(value) for key, value in call.options.items()}
        )
    assert result.shape == expected.shape
    if expected_dtype == dtype and any(isinstance(a, float) for a in given):  # the core rounds a wider result
        assert backend.dtype_name(result.dtype) in (dtype, "float32", "float64")
        result = backend.astype(result, native)
    assert backend.dtype_name(result.dtype) == str(expected_dtype)
    if call.subject == "empty":
        return
    if expected_dtype != dtype:
        assert_agree(str(call), backend.to_host(result), expected, ulp=4 if expected.dtype.kind == "f" else None)
        return
    found = backend.to_host(backend.astype(result, wide))
    step = 2.0**-7
    with np.errstate(all="ignore"):
        exact = np.asarray(expected, np.float64)
        bound = step * np.abs(exact)
        if call.bound is not None:
            bound = bound + call.bound(step, *cast(given, "float64"), **call.options)
    assert_agree(str(call), found, exact, bound=np.nan_to_num(bound, posinf=0.0))


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
    """A wrong shape or axis raises."""
    x, y = (backend.from_host(np.arange(12, dtype="float32").reshape(3, 4)) for _ in range(2))
    with pytest.raises(Exception):  # noqa: B017 (each library has its own)
        ERRORS[title](backend, x, y)


@about("reshape")
def test_a_view_is_one(backend: Backend) -> None:
    """Basic slices and `reshape` of a contiguous array share memory with it: flat parameters need both."""
    x = backend.from_host(np.zeros(12, "float32"))
    part = backend.reshape(x[4:10], (2, 3))
    part[...] = 1.0
    part[1, :] = 2.0
    assert backend.to_host(x).tolist() == [0.0] * 4 + [1.0] * 3 + [2.0] * 3 + [0.0] * 2


@about("full", "setitem", "from_host", "copy")
@pytest.mark.parametrize("dtype", REALS)
def test_a_negative_zero_keeps_its_sign(backend: Backend, dtype: str) -> None:
    """When a number fills an array, and in arrays of one element."""
    native = backend.dtypes[dtype]
    minus, tiny = np.asarray(-0.0, dtype), -float(np.finfo(dtype).smallest_subnormal) / 4
    x = backend.from_host(np.ones((2, 3), dtype))
    y = backend.from_host(np.ones((2, 3), dtype))
    backend.setitem(x, ..., -0.0)
    backend.setitem(y, (slice(None), backend.from_host(np.array([2, 0, 1]))), -0.0)
    made = {
        "full": backend.full((2, 3), -0.0, dtype=native), "full of one": backend.full((), -0.0, dtype=native),
        "full of what is too small": backend.full((2,), tiny, dtype=native),
        "asarray": backend.asarray([-0.0], dtype=native), "copy": backend.copy(backend.from_host(minus)),
        "from_host": backend.from_host(minus), "from_host_later": backend.from_host_later(minus),
        "setitem": x, "setitem at integers": y,
    }  # fmt: skip
    for title, array in made.items():
        found = backend.to_host(array)
        assert found.dtype == dtype
        assert not found.any(), title
        assert np.signbit(found).all(), f"{title}: 0.0, not -0.0"
    assert not np.signbit(backend.to_host(backend.full((2,), 0.0, dtype=native))).any()


@about("from_host", "reshape", "concat", "where", "copy")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_subnormal_numbers(backend: Backend, dtype: str) -> None:
    """Moves keep them; arithmetic keeps them or flushes them to zeros of the same sign."""
    tiny = float(np.finfo(dtype).smallest_normal)
    x = np.array([tiny, -tiny, 3 * tiny, tiny / 8, -tiny / 8, 0.0], dtype)
    placed, mask = backend.from_host(x), np.array([True, False, True, False, True, False])
    moved = {
        "reshape": (backend.reshape(placed, (2, 3)), x.reshape(2, 3)),
        "concat": (backend.concat([placed, placed]), np.concat([x, x])),
        "copy": (backend.copy(placed), x),
        "where": (backend.where(backend.from_host(mask), placed, placed), x),
        "full": (backend.full((2,), tiny / 8, dtype=backend.dtypes[dtype]), np.full(2, tiny / 8, dtype)),
    }
    for title, (result, expected) in moved.items():
        assert_agree(title, backend.to_host(result), expected)
    computed = {
        "multiply": (backend.multiply(placed, 0.25), x * 0.25), "add": (backend.add(placed, placed), x + x),
        "subtract": (backend.subtract(placed, tiny), x - tiny), "negative": (backend.negative(placed), -x),
        "divide": (backend.divide(placed, 4.0), x / 4), "maximum": (backend.maximum(placed, -1.0), x),
        "sum": (backend.sum(placed), x.sum()), "abs": (backend.abs(placed), np.abs(x)),
        "linear": (backend.activate(placed, "leaky_relu", 0.01), np.where(x > 0, x, x * x.dtype.type(0.01))),
    }  # fmt: skip
    for title, (result, expected) in computed.items():
        found = backend.to_host(result)
        room = 6 * tiny if title == "sum" else tiny
        assert (np.abs(found - expected) <= room).all(), title
        assert (found * expected >= 0).all(), title


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
    """They keep all their digits: gradflow first creates an array of them and then casts it."""
    data, dtype = NUMBERS[title]
    made = backend.asarray(data)
    assert (backend.dtype_name(made.dtype) == "bool") == (dtype == "bool")
    found = backend.to_host(backend.astype(made, backend.dtypes[dtype]))
    assert_agree(title, found, np.asarray(data, dtype))


@pytest.mark.parametrize("dtype", REALS)
def test_operators(backend: Backend, dtype: str) -> None:
    """Arithmetic of arrays and numbers keeps the dtype; comparisons return bool."""
    a, b = np.array([1.5, -2.0, 0.25], dtype), np.array([[2.0], [0.5]], dtype)
    x, y = backend.from_host(a), backend.from_host(b)
    for found, expected in (
        (x + y, a + b), (x - y, a - b), (x * y, a * b), (x / y, a / b), (-x, -a), (x * 2.5, a * a.dtype.type(2.5)),
        (2.5 * x, a * a.dtype.type(2.5)), (1 - x, 1 - a), (x + 1, a + 1), (x / 4, a / 4),
        (x < y, a < b), (x <= 0.25, a <= 0.25), (x > y, a > b), (x >= 0.25, a >= 0.25), (x == y, a == b),
        (x != 1.5, a != 1.5),
    ):  # fmt: skip
        assert_agree("an operator", backend.to_host(found), expected)
