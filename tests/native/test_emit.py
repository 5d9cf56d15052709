"""What kernels are written in computes what is written, for scalars and vectors of every processor's width."""

from __future__ import annotations

import ctypes
import mmap
import operator
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from emitting import TARGETS, assert_same, compiled, rows, run
from gradflow_numpy.native import emit
from gradflow_numpy.native.emit import F32, F64, I1, I32, I64, Function, Target, Value
from llvmlite import ir

REALS = {"float32": F32, "float64": F64}
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, -2.75, 1e-30, 3e38, 1e-40, np.inf, -np.inf, np.nan, 7.0, 1 / 3, -1e-5, 1e10]
INTEGERS = [0, 1, -1, 2, -2, 3, 7, -7, 100, -100, 2**31 - 1, -(2**31), 12345, -54321, 5, 2**20]

targets = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
reals = pytest.mark.parametrize("dtype", REALS)
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # of infinities and NaN


def pairs(values: list[Any], dtype: str) -> tuple[Any, Any]:
    """Each of 16 values with each of 16."""
    x = np.array(values, dtype)
    return np.repeat(x, 16), np.tile(x, 16)


# ---------------------------------------------------------------------- floats

ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "x + y": operator.add,
    "x - y": operator.sub,
    "x * y": operator.mul,
    "x / y": operator.truediv,
    "x + 2.5": lambda x, y: x + 2.5,
    "2.5 + x": lambda x, y: 2.5 + x,
    "x - 2.5": lambda x, y: x - 2.5,
    "2.5 - x": lambda x, y: 2.5 - x,
    "2.5 * x": lambda x, y: 2.5 * x,
    "x / 3": lambda x, y: x / 3,
    "3 / x": lambda x, y: 3 / x,
    "-x": lambda x, y: -x,
    "x * y + x": lambda x, y: x * y + x,  # two roundings
    "x - y * y": lambda x, y: x - y * y,
}
COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
               "!=": operator.ne}  # fmt: skip


@targets
@reals
@pytest.mark.parametrize("vectors", [True, False], ids=["vectors", "scalars"])
def test_arithmetic_of_floats_is_that_of_numpy(target: Target, dtype: str, vectors: bool) -> None:
    x, y = pairs(FLOATS, dtype)
    found = rows(target, REALS[dtype], [x, y], list(ARITHMETIC.values()), dtype, vectors=vectors)
    assert_same(found, [f(x, y) for f in ARITHMETIC.values()], ARITHMETIC)


@targets
@reals
@pytest.mark.parametrize("vectors", [True, False], ids=["vectors", "scalars"])
def test_comparisons_of_floats_are_those_of_numpy(target: Target, dtype: str, vectors: bool) -> None:
    x, y = pairs(FLOATS, dtype)
    results = [lambda x, y, f=f: x.fn.select(f(x, y), 1.0, x * 0 + 2.0) for f in COMPARISONS.values()]
    results += [lambda x, y, f=f: f(x, y).as_float(x.element) for f in COMPARISONS.values()]
    results += [lambda x, y: (~((x > y) | (x < 1.0)) & (y <= 2)).as_float(x.element)]
    results += [lambda x, y: ((x > y) ^ (y > 0)).as_float(x.element)]
    found = rows(target, REALS[dtype], [x, y], results, dtype, vectors=vectors)
    expected = [np.where(f(x, y), 1.0, np.where(np.isfinite(x), 2.0, np.nan)) for f in COMPARISONS.values()]
    expected += [f(x, y) for f in COMPARISONS.values()]
    expected += [~((x > y) | (x < 1.0)) & (y <= 2), (x > y) ^ (y > 0)]
    assert_same(found, expected, [*COMPARISONS, *COMPARISONS, "& | ~", "^"])


@targets
@reals
def test_scalars_become_vectors(target: Target, dtype: str) -> None:
    x, real = np.array(FLOATS, dtype), REALS[dtype]
    results: dict[str, tuple[Callable[..., Any], Any]] = {
        "x * s": (lambda x: x * x.lane(0), None),
        "s - x": (lambda x: x.lane(0) - x, None),
        "x < s": (lambda x: (x < x.lane(1)).as_float(real), None),
        "vector of s": (lambda x: x.fn.vector(x.lane(1)), None),
        "vector of a number": (lambda x: x.fn.vector(1.5), None),
        "select of scalars": (lambda x: x.fn.select(x > 0.5, x.lane(0), x.lane(1)), None),
        "select by a scalar": (lambda x: x.fn.select(x.lane(0) > x.lane(1), x, 4.0), None),
        "min of a number": (lambda x: x.fn.intrinsic("minnum", 0.25, x), None),
    }
    lanes = target.vector_bytes // x.itemsize
    blocks = x.reshape(-1, lanes)
    first, second = blocks[:, :1], blocks[:, 1:2]
    expected = [
        blocks * first, first - blocks, blocks < second, second, 1.5, np.where(blocks > 0.5, first, second),
        np.where(first > second, blocks, 4.0), np.fmin(blocks, 0.25),
    ]  # fmt: skip
    found = rows(target, real, [x], [f for f, _ in results.values()], dtype)
    assert_same(found, [np.broadcast_to(e, blocks.shape).reshape(-1) for e in expected], results)


@targets
@reals
def test_only_fma_is_fused(target: Target, dtype: str) -> None:
    eps = np.finfo(dtype).eps
    x, y = np.full(16, 1 + eps, dtype), np.full(16, 1 - eps, dtype)
    results: list[Callable[..., Value]] = [
        lambda x, y: x * y - 1,
        lambda x, y: x * y + -1.0,
        lambda x, y: x.fn.fma(x, y, -1),
        lambda x, y: x.fn.fma(x.lane(0), y, -1.0),
        lambda x, y: x.fn.sqrt(x + 1.0),
    ]
    found = rows(target, REALS[dtype], [x, y], results, dtype)
    assert found[:4, 0].tolist() == [0.0, 0.0, -(eps**2), -(eps**2)]
    assert_same(found[4:], [np.sqrt(x + 1)], ["sqrt"])


@targets
def test_floats_are_converted(target: Target) -> None:
    x, out = np.array(FLOATS, "f4"), np.zeros((3, 16), "f8")
    narrow, bits, whole = np.zeros(16, "f4"), np.zeros(16, "i4"), np.zeros(16, "i8")

    def build(fn: Function, x: Value, out: Value, narrow: Value, bits: Value, whole: Value) -> None:
        with fn.loop(0, 16, fn.lanes) as i:
            v = fn.load(x + i * 4)
            wide = v.as_float(F64)
            fn.store(wide / 3.0, out + i * 8)
            fn.store((wide / 3.0).as_float(F32), narrow + i * 4)
            fn.store(v.bits_as(I32), bits + i * 4)
            near = fn.select((v < 1e6) & (v > -1e6), v, 0.0)
            fn.store(near.as_integer(I64), whole + i * 8)
            fn.store(near.as_integer(I64).as_float(F64), out + 128 + i * 8)
            fn.store(v.bits_as(I32).bits_as(F32).as_float(F64), out + 256 + i * 8)

    run(build, target, x, out, narrow, bits, whole)
    near = np.where(np.abs(x) < 1e6, x, 0).astype("f4")
    assert_same(out, [x.astype("f8") / 3, np.trunc(near) + 0.0, x], ["wide", "whole", "same bits"])
    assert_same([narrow, whole], [(x.astype("f8") / 3).astype("f4"), near.astype("i8")], ["narrow", "whole"])
    np.testing.assert_array_equal(bits, x.view("i4"))


# ---------------------------------------------------------------------- integers

OF_INTEGERS: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {
    "i + j": (operator.add, None),
    "i - j": (operator.sub, None),
    "i * j": (operator.mul, None),
    "5 - i": (lambda i, j: 5 - i, None),
    "i % 8": (lambda i, j: i % 8, lambda i, j: np.fmod(i, 8)),
    "i // 8": (lambda i, j: i // 8, lambda i, j: np.trunc(i / 8)),
    "i // j": (lambda i, j: i // ((j & 63) | 1), lambda i, j: np.trunc(i / ((j & 63) | 1))),
    "i << 3": (lambda i, j: i << 3, None),
    "i >> 3": (lambda i, j: i >> 3, lambda i, j: i.view(f"u{i.itemsize}") >> 3),
    "i & j": (operator.and_, None),
    "i | j": (operator.or_, None),
    "i ^ j": (operator.xor, None),
    "~i": (lambda i, j: ~i, None),
    "-i": (lambda i, j: -i, None),
    **{
        f"i {name} j": (lambda i, j, f=f: f(i, j).as_integer(i.element), lambda i, j, f=f: f(i, j))
        for name, f in COMPARISONS.items()
    },
}


@targets
@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("vectors", [True, False], ids=["vectors", "scalars"])
def test_arithmetic_of_integers_is_that_of_c(target: Target, dtype: str, vectors: bool) -> None:
    i, j = pairs(INTEGERS, dtype)
    kind = I32 if dtype == "int32" else I64
    found = rows(target, F32, [i, j], [f for f, _ in OF_INTEGERS.values()], dtype, kind, vectors)
    assert_same(found, [(g or f)(i, j).astype(dtype) for f, g in OF_INTEGERS.values()], OF_INTEGERS)


@targets
def test_integers_are_converted(target: Target) -> None:
    i = np.array(INTEGERS, "i4")
    results: dict[str, tuple[Callable[..., Value], Any]] = {
        "sign": (lambda i: i.as_integer(I64), i),
        "no sign": (lambda i: i.as_unsigned(I64), i.view("u4")),
        "narrowed": (lambda i: (i.as_integer(I64) + 2**40).as_integer(I32).as_integer(I64), i),
        "float64": (lambda i: i.as_float(F64).bits_as(I64), i.astype("f8").view("i8")),
        "float32": (lambda i: i.as_float(F32).as_float(F64).bits_as(I64), i.astype("f4").astype("f8").view("i8")),
        "boolean": (lambda i: (i > 0).as_float(F64).bits_as(I64), (i > 0).astype("f8").view("i8")),
    }
    found = rows(target, F32, [i], [f for f, _ in results.values()], "i8", I32)
    assert_same(found, [np.asarray(e).astype("i8") for _, e in results.values()], results)


@targets
def test_elements_are_moved(target: Target) -> None:
    x, out = np.arange(32, dtype="f4"), np.zeros((2, 16), "f4")

    def build(fn: Function, x: Value, out: Value) -> None:
        n = fn.lanes
        a, b = fn.load(x), fn.load(x + n * 4)
        fn.store(fn.shuffle(a, b, [*range(n - 1, -1, -1)]), out)
        fn.store(fn.shuffle(a, b, [k // 2 + n * (k % 2) for k in range(n)]), out + 64)

    run(build, target, x, out)
    n = target.vector_bytes // 4
    assert out[0, :n].tolist() == [*range(n - 1, -1, -1)]
    assert out[1, :n].tolist() == [k // 2 + n * (k % 2) for k in range(n)]


# ---------------------------------------------------------------------- memory


@targets
@reals
def test_masked_elements_are_neither_read_nor_written(target: Target, dtype: str) -> None:
    """The part of the vector behind the mask lies in a page that must not be touched."""
    if sys.platform != "linux":
        pytest.skip("protects a page as on Linux")
    size, page = np.dtype(dtype).itemsize, mmap.PAGESIZE
    lanes = target.vector_bytes // size
    memory = mmap.mmap(-1, 4 * page)
    given = np.frombuffer(memory, dtype)
    start, per = given.ctypes.data, page // size
    library = ctypes.CDLL(None, use_errno=True)
    for k in (1, 3):
        assert library.mprotect(ctypes.c_void_p(start + k * page), ctypes.c_size_t(page), 0) == 0
    try:
        for n in range(1, lanes):
            given[per - n : per] = np.arange(1, n + 1)
            given[3 * per - n : 3 * per] = 0
            found = np.zeros(lanes, dtype)

            def build(fn: Function, x: Value, out: Value, found: Value, n: Value) -> None:
                v = fn.load(x, mask=fn.first_lanes(n))
                fn.store(v, found)
                fn.store(v * 2.0, out, fn.first_lanes(n))

            source, target_address = start + page - n * size, start + 3 * page - n * size
            run(build, target, source, target_address, found, n, real=REALS[dtype])
            assert found.tolist() == [*range(1, n + 1), *[0.0] * (lanes - n)]
            assert given[3 * per - n : 3 * per].tolist() == [2.0 * k for k in range(1, n + 1)]
    finally:
        for k in (1, 3):
            library.mprotect(ctypes.c_void_p(start + k * page), ctypes.c_size_t(page), 3)


@targets
def test_addresses_need_no_alignment(target: Target) -> None:
    x, out = np.arange(40, dtype="f4"), np.zeros(40, "f4")

    def build(fn: Function, x: Value, out: Value) -> None:
        fn.store(fn.load(x + 12), out + 4)

    run(build, target, x, out)
    n = target.vector_bytes // 4
    assert out[: n + 2].tolist() == [0, *range(3, n + 3), 0]


# ---------------------------------------------------------------------- control


@targets
@pytest.mark.parametrize(("start", "stop", "step"), [(0, 10, 1), (3, 20, 4), (5, 5, 1), (7, 2, 3), (-6, 4, 5)])
def test_a_loop_goes_over_a_range(target: Target, start: int, stop: int, step: int) -> None:
    out = np.zeros(3, "i8")

    def build(fn: Function, out: Value, first: Value, stop: Value, step: Value) -> None:
        turns, total, last = fn.variable(fn.integer(0)), fn.variable(fn.integer(0)), fn.variable(fn.integer(-99))
        with fn.loop(first, stop, step) as i:
            turns.set(turns.get() + 1)
            last.set(i)
            with fn.loop(0, i) as j:
                total.set(total.get() + j)
        for k, x in enumerate((turns, total, last)):
            fn.store(x.get(), out + 8 * k)

    run(build, target, out, start, stop, step)
    expected = range(start, stop, step)
    assert out.tolist() == [len(expected), sum(sum(range(i)) for i in expected), expected[-1] if expected else -99]


@targets
def test_code_runs_where_conditions_say(target: Target) -> None:
    out = np.zeros((3, 30), "i8")

    def build(fn: Function, out: Value) -> None:
        with fn.loop(0, 30) as i:
            with fn.when(i % 3 == 0):
                fn.store(i, out + i * 8)
            with fn.when_else(i > 10) as (then, otherwise):
                with then:
                    fn.store(fn.integer(1), out + 240 + i * 8)
                with otherwise, fn.when(i > 5):
                    fn.store(fn.integer(2), out + 240 + i * 8)
            value, turns = fn.variable(i + 1), fn.variable(fn.integer(0))
            with fn.repeat_while(lambda: value.get() != 1):
                odd, x = value.get() % 2 == 1, value.get()
                value.set(fn.select(odd, x * 3 + 1, x // 2))
                turns.set(turns.get() + 1)
            fn.store(turns.get(), out + 480 + i * 8)

    run(build, target, out)

    def collatz(n: int) -> int:
        return 0 if n == 1 else 1 + collatz(3 * n + 1 if n % 2 else n // 2)

    assert out[0].tolist() == [i if i % 3 == 0 else 0 for i in range(30)]
    assert out[1].tolist() == [1 if i > 10 else 2 if i > 5 else 0 for i in range(30)]
    assert out[2].tolist() == [collatz(i + 1) for i in range(30)]


@targets
@reals
def test_each_does_every_element_once(target: Target, dtype: str) -> None:
    size = np.dtype(dtype).itemsize
    lanes = target.vector_bytes // size

    def build(fn: Function, x: Value, start: Value, stop: Value) -> None:
        def body(i: Value, mask: Value | None) -> None:
            fn.store(fn.load(x + i * size, mask=mask) + 1.0, x + i * size, mask)

        fn.each(start, stop, body)

    function = compiled(build, target, 3, REALS[dtype])
    for start, n in [(0, 0), (3, -2), *[(s, n) for s in (0, 1, 5) for n in range(2 * lanes + 3)]]:
        x = np.zeros(3 * lanes + 12, dtype)
        function(x.ctypes.data, start, start + n)
        assert x.tolist() == [1.0 if start <= i < start + n else 0.0 for i in range(len(x))]


@targets
def test_a_vector_is_a_variable_of_a_loop(target: Target) -> None:
    x, out = np.random.default_rng(0).normal(size=(7, 16)).astype("f4"), np.zeros(16, "f4")

    def build(fn: Function, x: Value, out: Value) -> None:
        total = fn.variable(fn.vector(0))
        with fn.loop(0, 7) as i:
            total.set(total.get() + fn.load(x + i * 64))
        fn.store(total.get(), out)

    run(build, target, x, out)
    n = target.vector_bytes // 4
    expected = np.zeros(16, "f4")
    for row in x:
        expected += row
    assert out[:n].tolist() == expected[:n].tolist()


def test_a_function_calls_another() -> None:
    out = np.zeros(1, "f8")

    def build(fn: Function, out: Value) -> None:
        helper = Function(fn.module, "helper", [F64, I64], F64, fn.target, F64)
        x, i = helper.parameters
        helper.finish(x * 2.0 + i.as_float(F64))
        fn.store(fn.call("helper", F64, fn.constant(1.5, F64), fn.integer(4)), out)

    run(build, TARGETS["avx2"], out)
    assert out.tolist() == [7.0]


# ---------------------------------------------------------------------- mistakes


def test_mistakes_in_what_is_written_raise() -> None:
    module = ir.Module("test")
    fn = emit.Function(module, "function", [I64], F32, TARGETS["avx2"])
    (n,) = fn.parameters
    with pytest.raises(TypeError, match="use `when` or `select`"):
        assert n > 3
    with pytest.raises(TypeError, match="integer"):
        n * 0.5
    with pytest.raises(TypeError):
        fn.variable(fn.integer(0)).set(fn.constant(1.0))
    assert (n > 3).type == I1
