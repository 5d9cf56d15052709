"""The products of linear layers: their error, and that nothing but the numbers decides their bits."""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from gradflow_numpy import FastNumpyBackend, NumpyBackend
from gradflow_numpy.native import emit, kernels, llvm, products
from gradflow_numpy.native.linear import LinearKernels
from gradflow_numpy.threads import count, set_count
from native.emitting import TARGETS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),  # of infinities and NaN
    pytest.mark.skipif(not kernels.is_supported(), reason="this processor has no kernels"),
]
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
FORMS = (products.DIRECT, products.COPIED, products.PACKED)
SHAPES = [
    (1, 1, 1), (2, 3, 1), (5, 1, 4), (0, 3, 2), (3, 0, 2), (3, 2, 0), (32, 2, 16), (32, 16, 1), (33, 65, 17),
    (8, 513, 10), (64, 784, 128), (257, 40, 300), (40, 1100, 30),
]  # fmt: skip
"""Rows, inputs and outputs of layers: edges of tiles, panels, groups, blocks of k and of rows."""


class Native:
    """The kernels of products for a dtype, made for a target."""

    def __init__(self, dtype: str, target: emit.Target, split: Callable[[int], list[tuple[int, int]]]) -> None:
        self.dtype, self.target, self.split = dtype, target, split
        self.library = _library(dtype, target)

    def run(self, kernel: kernels.Kernel, items: int, *arguments: Any) -> None:
        function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(self.library.address(f"kernel_{kernel.name}"))
        words = kernels.Launch(kernel, np.dtype(self.dtype), items, 1.0, arguments).words()
        scratch = np.full(kernels.SCRATCH // 8 + 8, np.nan)
        at = -(-scratch.ctypes.data // 64) * 64
        for start, stop in self.split(items):
            function(words.ctypes.data, start, stop, at)

    def pack(self, b: Any, turned: bool) -> Any:
        inner, columns = b.shape[::-1] if turned else b.shape
        panels = np.full(products.packed_shape(columns, inner, b.itemsize, self.target), np.nan, b.dtype)
        self.run(products.pack, len(panels), b, panels, columns, inner, turned)
        return panels

    def layer(self, x: Any, w: Any, b: Any, g: Any, relu: bool, form: int) -> tuple[Any, ...]:
        """z, masked g, gx, gw and gb of a linear layer."""
        (n, inputs), outputs = x.shape, len(w)

        def new(*shape: int) -> Any:
            return np.full(shape, np.nan, self.dtype)

        def pack(b: Any, turned: bool) -> Any:
            return self.pack(b, turned) if form == products.PACKED else b

        z, masked, gx, gw, gb = new(n, outputs), new(n, outputs), new(n, inputs), new(outputs, inputs), new(outputs)
        self.run(products.forward, n, x, pack(w, True), b, z, inputs, outputs, form == products.PACKED, relu)
        out = z if relu else None
        own = masked if relu else None
        self.run(products.backward_rows, n, g, out, own, pack(w, False), gx, outputs, inputs, form)
        passed = masked if relu else g
        self.run(products.backward_outputs, outputs, passed, pack(x, False), gw, gb, n, outputs, inputs, form)
        return z, passed, gx, gw, gb


@functools.cache
def _library(dtype: str, target: emit.Target) -> llvm.Library:
    return llvm.Library(llvm.object_code(kernels.module_text("products", dtype, target)))


def whole(items: int) -> list[tuple[int, int]]:
    return [(0, items)]


def parts(seed: int) -> Callable[[int], list[tuple[int, int]]]:
    """Cuts items at random, and takes the parts in any order."""

    def split(items: int) -> list[tuple[int, int]]:
        r = np.random.default_rng([seed, items])
        cuts = [0, *sorted(r.integers(0, items + 1, r.integers(0, 6))), items]
        return [(int(a), int(b)) for a, b in r.permutation(list(itertools.pairwise(cuts)))]

    return split


def misaligned(x: Any) -> Any:
    """A copy at an address that is a multiple of the size of a number only."""
    buffer = np.empty(x.size + 1, x.dtype)[1:].reshape(x.shape)
    buffer[...] = x
    return buffer


def numbers(shape: tuple[int, ...], dtype: str, r: np.random.Generator) -> Any:
    return misaligned((r.standard_normal(shape) * 10.0 ** r.integers(-3, 4)).astype(dtype))


def inputs_of(shape: tuple[int, int, int], dtype: str, seed: int = 0) -> tuple[Any, ...]:
    n, inputs, outputs = shape
    r = np.random.default_rng([seed, *shape])
    return tuple(numbers(s, dtype, r) for s in ((n, inputs), (outputs, inputs), (outputs,), (n, outputs)))


def assert_near(found: Any, a: Any, b: Any, more: Any = 0) -> None:
    """Whether found = a b + more, but for K + 2 roundings of each product."""
    a, b, more = (np.asarray(x, np.longdouble) for x in (a, b, more))
    bound = (a.shape[1] + 2) * np.finfo(found.dtype).eps * (abs(a) @ abs(b) + abs(more))
    assert (abs(found - (a @ b + more)) <= bound).all()


def assert_right(shape: tuple[int, int, int], dtype: str, target: emit.Target, seed: int = 0) -> None:
    x, w, b, g = inputs_of(shape, dtype, seed)
    native = Native(dtype, target, whole)
    for form in FORMS:
        z, passed, gx, gw, gb = native.layer(x, w, b, g, False, form)
        assert_near(z, x, w.T, b)
        assert_near(gx, g, w)
        assert_near(gw, g.T, x)
        error = 300 * np.finfo(dtype).eps  # 256 in each of four sums, and their sums
        assert (abs(gb - g.astype(np.longdouble).sum(0)) <= error * abs(g).astype(np.longdouble).sum(0)).all()
        rectified, passed, *_ = native.layer(x, w, b, g, True, form)
        assert np.array_equal(rectified, np.maximum(z, 0))
        assert np.array_equal(passed, np.where(rectified != 0, g, 0))
    few = np.full(z.shape, np.nan, dtype)
    native.run(products.forward_few, len(w), x, w, b, few, *w.shape[::-1], len(x), False)
    assert_near(few, x, w.T, b)


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_element_is_right_to_the_bound_of_its_sum(shape: tuple[int, int, int], dtype: str) -> None:
    assert_right(shape, dtype, kernels.target())


@pytest.mark.slow
@dtypes
def test_each_element_of_random_shapes_is_right(dtype: str) -> None:
    r = np.random.default_rng(1)
    for seed in range(100):
        rows, inputs, outputs = (int(2.0 ** r.uniform(0, 8.5)) for _ in range(3))
        assert_right((rows, inputs, outputs), dtype, kernels.target(), seed)


@dtypes
@pytest.mark.parametrize("relu", [False, True])
def test_any_partition_and_packing_has_the_same_bits(relu: bool, dtype: str) -> None:
    for seed, shape in enumerate([(33, 65, 17), (70, 1100, 40), (300, 20, 270)]):
        x, w, b, g = inputs_of(shape, dtype)
        expected = Native(dtype, kernels.target(), whole).layer(x, w, b, g, relu, products.DIRECT)
        for form in FORMS:
            found = Native(dtype, kernels.target(), parts(seed)).layer(x, w, b, g, relu, form)
            assert [y.tobytes() for y in found] == [y.tobytes() for y in expected]


@pytest.mark.slow
@dtypes
def test_any_width_of_vectors_has_the_same_bits(dtype: str) -> None:
    for shape in SHAPES:
        x, w, b, g = inputs_of(shape, dtype)
        found = []
        for target in TARGETS.values():
            native = Native(dtype, target, whole)
            few = np.full((len(x), len(w)), np.nan, dtype)
            native.run(products.forward_few, len(w), x, w, b, few, *w.shape[::-1], len(x), True)
            for form in FORMS:
                layer = (*native.layer(x, w, b, g, True, form), few)
                found.append([y.tobytes() for y in layer])
        assert found == [found[0]] * len(found)


def test_a_long_sum_has_the_error_of_its_blocks() -> None:
    x, w = (np.full(shape, 0.1, np.float32) for shape in ((16, 1 << 16), (1, 1 << 16)))
    exact = float(x[0, 0]) ** 2 * x.shape[1]
    z = LinearKernels().linear(x, w, None, None, 0.0)[0]
    assert (abs(z - exact) <= (512 + 128) * np.finfo("float32").eps * exact).all()
    gb = LinearKernels().linear_backward(
        x.T.copy(), x.T, w.T.copy(), np.ones((16, 1), np.float32), None, None, 0.0, None, (False, False, True),
        (None,) * 3,
    )[2]  # fmt: skip
    assert gb is not None
    exact = float(x[0, 0]) * x.shape[1]
    assert (abs(gb - exact) <= (256 + 64) * np.finfo("float32").eps * exact).all()


@dtypes
def test_special_numbers_come_out_as_from_numpy(dtype: str) -> None:
    tiny = float(np.finfo(dtype).smallest_subnormal)
    r = np.random.default_rng(2)
    for shape in [(3, 4, 5), (40, 33, 19)]:
        x, w, b, g = inputs_of(shape, dtype)
        for a in (x, w, g):
            places = r.integers(0, a.size, 4)
            a.reshape(-1)[places] = [np.nan, np.inf, -np.inf, 3 * tiny]
        b[0] = np.nan
        for activation in (None, "relu"):
            results = []
            for backend in (NumpyBackend(), LinearKernels()):
                out, residual = backend.linear(x, w, b, activation, 0.0)
                rest = (residual, (True,) * 3, (None,) * 3)
                results.append((out, *backend.linear_backward(g, out, x, w, b, activation, 0.0, *rest)))
            for expected, found in zip(*results, strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)


def test_subnormal_numbers_are_not_lost() -> None:
    x = np.full((20, 3), 3 * np.finfo("float32").smallest_subnormal, np.float32)
    w = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
    assert np.array_equal(LinearKernels().linear(x, w, None, None, 0.0)[0], x @ w.T)


@dtypes
@pytest.mark.parametrize("accumulate", [False, True])
def test_gemm_takes_any_strides(accumulate: bool, dtype: str) -> None:
    r = np.random.default_rng(3)
    backend = LinearKernels()
    for n, k, m in [(7, 5, 9), (40, 1, 3), (1, 20, 20), (33, 600, 1), (50, 70, 300)]:
        a, b = numbers((2 * n, 3 * k), dtype, r), numbers((k, 2 * m), dtype, r)
        lefts = [a[:n, :k], a[::2, ::3], a[n - 1 :: -1, :k], np.asfortranarray(a[:n, :k])]
        rights = [b[:, :m], b[:, ::2], b[::-1, :m], np.asfortranarray(b[:, :m])]
        for left in lefts:
            for right in rights:
                out = numbers((n, m), dtype, r) if accumulate else np.full((n, m), np.nan, dtype)
                before = out.copy() if accumulate else 0
                assert backend.gemm(left, right, out, accumulate) is out
                assert_near(out, left, right, before)


def launches_of(work: Callable[[], Any]) -> list[str]:
    found: list[str] = []
    from threading import get_ident

    kernels.recorders[get_ident()] = lambda launch: found.append(launch.kernel.name)
    try:
        work()
    finally:
        del kernels.recorders[get_ident()]
    return found


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = count()
    set_count(2)
    yield
    set_count(before)


@pytest.mark.usefixtures("two_threads")
def test_a_call_is_native_as_a_whole_or_not_at_all() -> None:
    backend = FastNumpyBackend()
    x, w, b, g = inputs_of((40, 50, 60), "float32")
    needs, into = (True,) * 3, (None,) * 3
    forward = ["pack", "forward"]
    backward = ["backward_rows", "backward_outputs"]
    assert launches_of(lambda: backend.linear(x, w, b, "relu", 0.0)) == forward
    assert launches_of(lambda: backend.linear_backward(g, g, x, w, b, "relu", 0.0, None, needs, into)) == backward
    assert launches_of(lambda: backend.linear(x[:4], w, b, None, 0.0)) == ["forward_few"]
    many = np.concatenate([x, x])
    assert launches_of(lambda: backend.linear(many, w, b, "relu", 0.0)) == forward[1:]  # each thread copies w
    half = [a.astype(np.float16) for a in (x, w, b, g)]
    strided = [a[::-1] for a in (x, w, b, g)]
    for x, w, b, g in (half, strided):
        assert launches_of(lambda x=x, w=w, b=b: backend.linear(x, w, b, "relu", 0.0)) == []
        for name in (None, "relu", "gelu"):
            arguments = (g, g, x, w, b, name, 1.0, None, needs, into)
            assert launches_of(lambda arguments=arguments: backend.linear_backward(*arguments)) == []


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, w, b, _ = inputs_of((4, 5, 6), "float32")
    with pytest.raises(ValueError, match="mismatch"):
        LinearKernels().linear(x[:, :4].copy(), w, b, None, 0.0)
    with pytest.raises(ValueError, match="broadcast"):
        LinearKernels().linear(x, w, b[:5].copy(), None, 0.0)


@dtypes
@pytest.mark.parametrize("shape", [(5, 1100, 700), (7, 520, 1030), (300, 600, 1030)], ids=str)
def test_products_by_columns_and_for_few_rows_have_the_bits_of_tiles(shape: tuple[int, int, int], dtype: str) -> None:
    (n, inputs, outputs), size = shape, np.dtype(dtype).itemsize
    x, w, b, g = inputs_of(shape, dtype)
    for target in TARGETS.values() if n == 5 else [kernels.target()]:
        native = Native(dtype, target, parts(n))
        z, passed, gx, gw, _ = native.layer(x, w, b, g, True, products.DIRECT)
        found = [np.full(y.shape, np.nan, dtype) for y in (z, gx, gw, gx)]
        row, column = inputs * size, outputs * size
        by_columns = products.by_columns
        native.run(by_columns, outputs, x, row, size, w, row, True, b, found[0], n, outputs, inputs, True)
        native.run(by_columns, inputs, passed, column, size, w, row, False, None, found[1], n, inputs, outputs, False)
        native.run(by_columns, inputs, passed, size, column, x, row, False, None, found[2], outputs, inputs, n, False)
        if n < 16:
            native.run(products.by_few, inputs, passed, column, size, w, found[3], n, inputs, outputs)
        else:
            found[3] = gx
        assert [y.tobytes() for y in found] == [y.tobytes() for y in (z, gx, gw, gx)]


@pytest.mark.parametrize("shape", [(1, 300, 257), (7, 300, 257), (9, 1500, 1501), (5600, 400, 40)], ids=str)
def test_layers_of_all_sizes_are_right(shape: tuple[int, int, int]) -> None:
    x, w, b, g = (np.array(y) for y in inputs_of(shape, "float32"))
    backend = LinearKernels()
    z = backend.linear(x, w, b, "relu", 0.0)[0]
    assert_near(backend.linear(x, w, b, None, 0.0)[0], x, w.T, b)
    gx, gw, gb = backend.linear_backward(g, z, x, w, b, "relu", 0.0, None, (True,) * 3, (None,) * 3)
    assert gb is not None
    passed = np.where(z != 0, g, 0)
    assert_near(gx, passed, w)
    assert_near(gw, passed.T, x)
    np.testing.assert_allclose(gb, passed.sum(0, np.float64), rtol=1e-4, atol=1e-4 * abs(g).max())
