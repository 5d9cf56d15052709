"""Products by cuBLASLt through the stand-in: their values, and what is kept, refused and reported. EMULATED: no GPU."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cublaslt_stand_in import number, stand_in
from emulated_device import losses_of, needs_compiler
from gradflow_cupy import cublaslt
from gradflow_cupy.cublaslt import CublasLt
from gradflow_cupy.cublaslt_library import CublasLtError

import gradflow as gf
from gradflow.backend import ACTIVATIONS

pytestmark = needs_compiler

DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SHAPES = [(3, 4, 5), (1, 6, 4), (6, 1, 4), (1, 1, 3), (5, 10, 16), (8, 16, 100), (4, 7, 1)]
"""Rows, columns and length of a product: with one row, one column, a width of 10, and a length that is split."""


@pytest.fixture
def lt(backend: Any) -> CublasLt:
    return CublasLt(backend.cupy, backend.dtypes)


def values(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype])


def close(found: Any, expected: Any, terms: int, sizes: Any, dtype: Any) -> bool:
    """Within the rounding of `terms` additions of numbers with these absolute sums, and of the result."""
    unit, own = (float(ml_dtypes.finfo(t).eps) for t in (np.promote_types(dtype, np.float32), dtype))
    return bool((np.abs(found.astype(float) - expected) <= (terms + 4) * unit * sizes + own * np.abs(expected)).all())


def operands(rows: int, columns: int, inner: int, dtype: str, ta: bool, tb: bool) -> tuple[Any, Any, Any, Any]:
    """Two matrices as they are stored, and as they are multiplied in float64."""
    a = values((inner, rows) if ta else (rows, inner), dtype)
    b = values((columns, inner) if tb else (inner, columns), dtype, 1)
    left, right = a.astype(float), b.astype(float)
    return a, b, left.T if ta else left, right.T if tb else right


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product(backend: Any, lt: CublasLt, shape: tuple[int, int, int], dtype: str) -> None:
    """Transposed or not, written or added, of arrays stored by rows or by columns."""
    rows, columns, inner = shape
    for ta, tb, turned, accumulate in itertools.product((False, True), repeat=4):
        a, b, left, right = operands(rows, columns, inner, dtype, ta, tb)
        x, y = backend.from_host(a), backend.from_host(b)
        if turned:  # the same matrices, stored by columns
            x, y = backend.from_host(a.T.copy()).T, backend.from_host(b.T.copy()).T
        before = values((rows, columns), dtype, 2)
        out = backend.from_host(before)
        assert lt.product(x, y, out, transpose_a=ta, transpose_b=tb, accumulate=accumulate)
        added = before.astype(float) if accumulate else 0.0
        sizes = np.abs(left) @ np.abs(right) + np.abs(added)
        assert close(backend.to_host(out), left @ right + added, inner, sizes, DTYPES[dtype]), (ta, tb, turned)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3])
def test_a_stack_of_products_is_one_call(backend: Any, lt: CublasLt, count: int, dtype: str) -> None:
    """Of stacks in any order of axes, as they are in memory after a transposition, and of one repeated matrix."""
    a, b = values((count, 5, 70), dtype), values((count, 70, 6), dtype, 1)
    for first, second in itertools.product(itertools.permutations(range(3)), repeat=2):
        x, y = (
            backend.permute_dims(backend.from_host(z.transpose(order).copy()), tuple(np.argsort(order)))
            for z, order in ((a, first), (b, second))
        )
        before, out = number("products").value, backend.empty((count, 5, 6), dtype=backend.dtypes[dtype])
        assert lt.product(x, y, out)
        assert number("products").value == before + 1
        left, right = a.astype(float), b.astype(float)
        sizes = np.abs(left) @ np.abs(right)
        assert close(backend.to_host(out), left @ right, 70, sizes, DTYPES[dtype]), (first, second)
    x = backend.broadcast_to(backend.from_host(a[:1]), a.shape)
    assert lt.product(x, backend.from_host(b), out)
    left = np.broadcast_to(a[:1].astype(float), a.shape)
    assert close(
        backend.to_host(out), left @ b.astype(float), 70, np.abs(left) @ np.abs(b.astype(float)), DTYPES[dtype]
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_floats_give_float32(backend: Any, lt: CublasLt, dtype: str) -> None:
    """As in the gradient of a master weight: nothing is rounded to the half float, and bits are lost in none."""
    a, b, left, right = operands(5, 6, 100, dtype, True, False)
    out = backend.zeros((5, 6), dtype=backend.dtypes["float32"])
    assert lt.product(backend.from_host(a), backend.from_host(b), out, transpose_a=True, accumulate=True)
    assert close(backend.to_host(out), left @ right, 100, np.abs(left) @ np.abs(right), np.float32)
    assert not lt.product(out, out, backend.empty((5, 5), dtype=backend.dtypes[dtype]), transpose_b=True)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_an_epilogue(backend: Any, lt: CublasLt, activation: str | None, has_bias: bool, dtype: str) -> None:
    for rows, columns in ((5, 16), (1, 8), (4, 24)):
        a, b, left, right = operands(rows, columns, 7, dtype, False, True)
        bias = values((columns,), dtype, 3)
        z = left @ right + (bias.astype(float) if has_bias else 0.0)
        out, aux = (backend.empty((rows, columns), dtype=backend.dtypes[dtype]) for _ in range(2))
        assert lt.product(
            backend.from_host(a), backend.from_host(b), out, transpose_b=True, activation=activation,
            bias=backend.from_host(bias) if has_bias else None, aux=aux if activation == "gelu" else None,
        )  # fmt: skip
        sizes = np.abs(left) @ np.abs(right) + np.abs(bias.astype(float))
        expected = z if activation is None else np.maximum(z, 0) if activation == "relu" else gelu(z)
        assert close(backend.to_host(out), expected, 8, 2 * sizes, DTYPES[dtype])
        if activation == "gelu":
            assert close(backend.to_host(aux), z, 8, sizes, DTYPES[dtype])


def gelu(z: Any) -> Any:
    return ACTIVATIONS["gelu"].forward(gf.get_backend("cpu"), z, 0.0)


def test_each_call_has_its_own_bias(backend: Any, lt: CublasLt) -> None:
    """The pointer lies in the descriptor that calls share."""
    a, b, left, right = operands(3, 4, 5, "float32", False, False)
    x, y, out = backend.from_host(a), backend.from_host(b), backend.empty((3, 4), dtype=backend.dtypes["float32"])
    rows = backend.from_host(np.repeat(np.arange(1, 4, dtype=np.float32), 64).reshape(3, 64))  # aligned alike
    for shift in (1, 2, 3):
        assert lt.product(x, y, out, bias=rows[shift - 1, :4])
        assert np.allclose(backend.to_host(out), left @ right + shift, atol=1e-5)
    assert len(lt.plans) == 1


def test_views(backend: Any, lt: CublasLt) -> None:
    """Rows and columns cut out of larger matrices, stored by rows or columns, at addresses that are multiples of 4."""
    for offset, width in itertools.product((0, 1, 3), (1, 2, 5)):
        a, b = values((9, 9), "float32"), values((9, 9), "float32", 1)
        kept = values((6, 12), "float32", 2)
        x, y, target = (backend.from_host(v) for v in (a, b, kept))
        cut = np.s_[1:6, offset : offset + 5], np.s_[offset : offset + 5, 2 : 2 + width]
        out = target[1:6, offset : offset + width]
        assert lt.product(x[cut[0]], y[cut[1]], out, transpose_a=True)
        expected = kept.copy()
        expected[1:6, offset : offset + width] = a[cut[0]].T @ b[cut[1]]
        assert np.allclose(backend.to_host(target), expected, atol=1e-5)
        assert lt.product(x.T[cut[0]], y.T[cut[1]], out)
        expected[1:6, offset : offset + width] = a.T[cut[0]] @ b.T[cut[1]]
        assert np.allclose(backend.to_host(target), expected, atol=1e-5)


def test_what_is_stored_in_neither_way_is_copied(backend: Any, lt: CublasLt) -> None:
    a, b = values((4, 12), "float32"), values((5,), "float32", 1)
    x, y = backend.from_host(a)[:, ::3], backend.broadcast_to(backend.from_host(b), (4, 5))
    out = backend.empty((4, 5), dtype=backend.dtypes["float32"])
    assert lt.product(x, y, out)
    assert np.allclose(backend.to_host(out), a[:, ::3] @ np.broadcast_to(b, (4, 5)), atol=1e-5)
    assert not lt.product(x, y, backend.empty((5, 4), dtype=backend.dtypes["float32"]).T)


def test_empty_arrays(backend: Any, lt: CublasLt) -> None:
    """Nothing is written to an empty result; a product of length 0 is not cuBLASLt's."""
    empty = lambda *shape: backend.empty(shape, dtype=backend.dtypes["float32"])  # noqa: E731
    before = number("products").value
    assert lt.product(empty(0, 3), empty(3, 4), empty(0, 4))
    assert lt.product(empty(2, 3), empty(3, 0), empty(2, 0), bias=empty(0), activation="relu")
    assert not lt.product(empty(2, 0), empty(0, 4), empty(2, 4))
    assert number("products").value == before


# ------------------------------------------------------------------ plans


def test_plans_are_kept(backend: Any, lt: CublasLt) -> None:
    x = backend.from_host(values((8, 8), "float32"))
    out = backend.empty((8, 8), dtype=backend.dtypes["float32"])
    before = number("queries").value
    for accumulate in (False, True, False):
        assert lt.product(x, x, out, accumulate=accumulate)
    assert number("queries").value == before + 1
    assert lt.product(x[:4], x, out[4:])
    assert lt.product(x, x, out, transpose_a=True)
    assert number("queries").value == before + 3


def test_plans_know_how_arrays_are_aligned(backend: Any, lt: CublasLt) -> None:
    """An algorithm for aligned pointers is not given others: the stand-in refuses that."""
    memory = backend.from_host(values((64,), "float32"))
    out = backend.empty((2, 2), dtype=backend.dtypes["float32"])
    for start in (0, 1, 2, 4):
        x = memory[start : start + 4].reshape(2, 2)
        assert lt.product(x, x, out)
    found = {kind[-2] for kind in lt.plans}
    assert {4, 8, 16} <= found
    assert all(256 % alignment == 0 for alignment in found)


def test_the_number_of_plans_is_bounded(backend: Any, lt: CublasLt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cublaslt, "MOST_PLANS", 3)
    x = backend.from_host(values((8, 8), "float32"))
    gc.collect()  # the plans of earlier tests
    before = number("objects").value
    for rows in range(1, 9):
        assert lt.product(x[:rows], x, backend.empty((rows, 8), dtype=backend.dtypes["float32"]))
        assert len(lt.plans) <= 3
    lt.plans.clear()
    assert number("objects").value == before, "descriptors, layouts and preferences are destroyed"


def test_the_workspace_of_a_product(backend: Any, lt: CublasLt, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many bytes as the algorithm needs, or none; nothing is kept, however many streams there are."""
    call, found = cublaslt.call, []

    def watched(*arguments: Any) -> int:
        found.append(None if arguments[-1] is None else (arguments[-1].nbytes, weakref.ref(arguments[-1])))
        return call(*arguments)

    monkeypatch.setattr(cublaslt, "call", watched)
    long, short = (backend.from_host(values((4, n), "float32")) for n in (100, 8))
    out = backend.empty((4, 4), dtype=backend.dtypes["float32"])
    assert lt.product(short, short, out, transpose_b=True)
    for _ in range(3):
        with backend.stream():
            assert lt.product(long, long, out, transpose_b=True)
    assert found[0] is None
    assert [(size, reference()) for size, reference in found[1:]] == [(1024, None)] * 3


def test_products_of_two_streams_in_a_graph_share_no_workspace(backend: Any) -> None:
    """Which those of a long batch need; the emulation finds memory that two streams use in no order."""

    losses = partial(losses_of, [70, 66, 66, 3], 80, partial(gf.optim.SGD, lr=0.1), 5)
    assert losses(True) == losses(False)


def of_two_threads(function: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(function), pool.submit(function)]]


def test_two_threads_have_one_scratch_in_a_stream(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if both find none: that of the second would replace, and free, one that a kernel is about to use."""
    both, zeros = threading.Barrier(2), backend.cupy.zeros
    monkeypatch.setattr(backend.cupy, "zeros", lambda *args, **options: (zeros(*args, **options), both.wait(10))[0])
    first, second = of_two_threads(backend._scratch)
    assert first is second


def test_the_scratch_of_a_stream_that_each_thread_has(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under one address, but the work of two threads runs at once. That of other streams is shared by all threads."""
    stream, both = backend.cupy.cuda.get_current_stream(), threading.Barrier(2)

    def found() -> int:
        both.wait(10)
        return id(backend._scratch())

    for address, number_of_each in ((2, 2), (5, 1)):
        monkeypatch.setattr(stream, "ptr", address)
        assert len(set(of_two_threads(found))) == number_of_each
        backend.free_stream(address)
        assert all(key[0] != address for key in backend._scratches)


def test_streams_share_no_scratch(backend: Any) -> None:
    scratch = backend._scratch()
    assert backend._scratch() is scratch
    with backend.stream():
        assert backend._scratch() is not scratch
    assert backend._scratch() is scratch


def test_products_of_two_threads_have_their_own_bias(
    backend: Any, lt: CublasLt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One descriptor points to both: until a product is queued, no other thread changes it."""
    point, ready = cublaslt._point, threading.Barrier(2)

    def slowly(plan: Any, bias: Any, aux: Any) -> None:
        point(plan, bias, aux)
        time.sleep(0.02)  # in which the other thread would point it to its own

    x, zeros = backend.from_host(np.eye(4, dtype=np.float32)), backend.from_host(np.zeros((4, 4), np.float32))
    out = [backend.empty((4, 4), dtype=backend.dtypes["float32"]) for _ in range(2)]
    lt.product(x, zeros, out[0], bias=backend.from_host(np.zeros(4, np.float32)))  # makes the plan
    monkeypatch.setattr(cublaslt, "_point", slowly)

    def multiply(i: int) -> None:
        bias = backend.from_host(np.full(4, i, np.float32))
        ready.wait(10)
        for _ in range(5):
            assert lt.product(x, zeros, out[i], bias=bias)
            assert (backend.to_host(out[i]) == i).all()

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(multiply, i) for i in range(2)]:
            future.result()


# ------------------------------------------------------------------ what fails


def test_no_algorithm(backend: Any, lt: CublasLt) -> None:
    """Nothing is written, whether the heuristic or the call refuses; the answer is kept."""
    one, square = backend.from_host(values((1, 4), "float32")), backend.from_host(values((4, 4), "float32"))
    before = values((1, 4), "float32", 1)
    out, bias = backend.from_host(before), backend.from_host(before[0])
    with stand_in(refuses_vectors=1):
        asked = number("queries").value
        for _ in range(2):
            assert not lt.product(one, square, out, bias=bias)
        assert number("queries").value == asked + 1
    assert not lt.product(one, square, out, bias=bias)
    with stand_in(status=15):
        assert not lt.product(one, square, out)
    assert not lt.product(one, square, out)
    assert np.array_equal(backend.to_host(out), before)


def test_an_error_says_the_status_in_words(backend: Any, lt: CublasLt) -> None:
    x = backend.from_host(values((3, 3), "float32"))
    words = r"cublasLtMatmul of Kind\(.*m=3.* failed: an unsupported value .* \(status 7\)"
    with stand_in(status=7), pytest.raises(CublasLtError, match=words) as caught:
        lt.product(x, x, backend.empty((3, 3), dtype=backend.dtypes["float32"]))
    assert caught.value.status == 7


def test_a_library_that_is_not_there(backend: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(cublaslt, "find", lambda: str(tmp_path / "libcublasLt.so.13"))
    with pytest.raises(CublasLtError, match=r"cuBLASLt cannot be loaded: .*libcublasLt\.so\.13"):
        CublasLt(backend.cupy, backend.dtypes)


def test_tf32(backend: Any) -> None:
    """Rounds the factors of float32, and those alone; the stand-in keeps 10 bits of their fractions."""
    exact, rounded = 1 + 2.0**-10, 1 + 2.0**-12
    try:
        for dtype in ("float32", "float64"):
            x = backend.from_host(np.array([[exact, rounded]], dtype))
            one = backend.from_host(np.ones((2, 2), dtype) * [[1, 0], [0, 1]])
            gf.set_matmul_precision("tf32")
            found = backend.to_host(backend.matmul(x, one.astype(dtype)))
            assert found.tolist() == [[exact, rounded if dtype == "float64" else 1.0]]
            gf.set_matmul_precision("highest")
            assert backend.to_host(backend.matmul(x, one.astype(dtype))).tolist() == [[exact, rounded]]
    finally:
        gf.set_matmul_precision("highest")
