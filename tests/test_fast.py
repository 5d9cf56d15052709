"""The extra `fast`: kernels compiled by numba against those of plain NumPy, products by MKL, and what chooses them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import gradflow_numpy
import numpy as np
import pytest
from gradflow_numpy import FastNumpyBackend, NumpyBackend, mkl, subnormals, threads

import gradflow as gf

HAS_NUMBA = importlib.util.find_spec("numba") is not None
needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba, of the extra 'fast', is not installed")
needs_mkl = pytest.mark.skipif(mkl.library() is None, reason="MKL, of the extra 'fast', is not installed")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python on `code`, with more in its environment; an empty value removes a variable."""
    whole = {**os.environ, **environment}
    kept = {name: value for name, value in whole.items() if value}
    return subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True)


# ---------------------------------------------------------------------- which backend


SHOW = (
    "import gradflow as gf; b = gf.get_backend('cpu'); print(type(b).__name__, b.kernels()['adam_step'], b.describe())"
)


@needs_numba
def test_the_compiled_kernels_are_chosen_where_numba_is_installed() -> None:
    for value in ("", "1"):
        name, kind, description = run(SHOW, GRADFLOW_FAST=value).stdout.split(" ", 2)
        assert (name, kind) == ("FastNumpyBackend", "numba")
        assert ", numba " in description


def test_they_are_not_chosen_with_gradflow_fast_0_or_without_numba() -> None:
    without = "import sys; sys.modules['numba'] = None\n" + SHOW.replace(
        "import gradflow as gf; ", "import gradflow as gf\n"
    )
    hidden = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *p: None if n == 'numba' else f(n, *p)\n"
    )
    for done in (run(SHOW, GRADFLOW_FAST="0"), run(hidden + without, GRADFLOW_FAST="")):
        assert done.returncode == 0, done.stderr
        name, kind, description = done.stdout.split(" ", 2)
        assert (name, kind) == ("NumpyBackend", "native")
        assert "numba" not in description


def test_a_numba_that_cannot_be_imported_is_told_with_what_to_do() -> None:
    done = run(
        "import sys; sys.modules['numba'] = None\nimport gradflow as gf\nm = gf.nn.MLP([2, 2])\nm(gf.ones((1, 2)))",
        GRADFLOW_FAST="1",
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: numba, of the extra 'fast', cannot be imported")
    assert "GRADFLOW_FAST=0" in done.stderr.splitlines()[-1]


@needs_numba
def test_numba_is_not_imported_before_a_kernel_runs() -> None:
    code = "import sys, gradflow as gf; x = gf.ones((2, 2)) @ gf.ones((2, 2)); print('numba' in sys.modules)"
    assert run(code, GRADFLOW_FAST="1").stdout == "False\n"


# ---------------------------------------------------------------------- what was not compiled for


@needs_numba
@pytest.mark.parametrize("spoil", ["read-only", "transposed", "with gaps", "another dtype object", "float16"])
def test_arrays_that_nothing_was_compiled_for_give_what_numpy_gives(spoil: str) -> None:
    """And do not make numba compile anew."""
    rng = np.random.default_rng(0)

    def spoilt(*shape: int) -> Any:
        x = rng.standard_normal(shape).astype(np.float32)
        if spoil == "read-only":
            x.flags.writeable = False
        elif spoil == "transposed":
            x = np.asfortranarray(x)
        elif spoil == "with gaps":
            x = np.repeat(x, 2, axis=-1)[..., ::2]
        elif spoil == "another dtype object":
            x = x.view(np.dtype("float32").newbyteorder("="))
        else:
            x = x.astype(np.float16)
        return x

    from gradflow_numpy import compiled

    def compilations() -> int:
        functions = [f for f in vars(compiled).values() if hasattr(f, "signatures")]
        return sum(len(f.signatures) for f in functions)

    FastNumpyBackend().linear(
        np.ones((2, 3), np.float32), np.ones((4, 3), np.float32), np.ones(4, np.float32), "relu", 0.0
    )
    FastNumpyBackend().linear_backward(
        np.ones((2, 4), np.float32), np.ones((2, 4), np.float32), np.ones((2, 3), np.float32),
        np.ones((4, 3), np.float32), np.ones(4, np.float32), "relu", 0.0, None, (True,) * 3, (None,) * 3,
    )  # fmt: skip
    before = compilations()
    x, w, b, g = spoilt(5, 3), spoilt(4, 3), spoilt(4), spoilt(5, 4)
    plain, fast = NumpyBackend(), FastNumpyBackend()
    tolerance = 1e-2 if spoil == "float16" else 1e-5
    (y, r), (expected, _) = fast.linear(x, w, b, "relu", 0.0), plain.linear(x, w, b, "relu", 0.0)
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
    arguments = (g, expected, x, w, b, "relu", 0.0, r, (True, True, True), (None, None, None))
    for found, like in zip(fast.linear_backward(*arguments), plain.linear_backward(*arguments), strict=True):
        np.testing.assert_allclose(found, like, rtol=tolerance, atol=tolerance)
    assert compilations() == before


@needs_numba
@pytest.mark.parametrize("activation", [None, "relu"])
def test_not_a_number_stays_what_it_is(activation: str | None) -> None:
    x = np.array([[np.nan], [np.inf], [-np.inf], [1.0]], np.float32)
    w, b = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    np.testing.assert_array_equal(
        FastNumpyBackend().linear(x, w, b, activation, 0.0)[0], NumpyBackend().linear(x, w, b, activation, 0.0)[0]
    )
    logits = np.array([[0.0, np.nan], [np.inf, 0.0], [-np.inf, 0.0], [3.0, 4.0]], np.float32)
    labels = np.array([0, 1, 1, 0])
    with np.errstate(invalid="ignore"):
        found, expected = (
            b.softmax_cross_entropy(logits, labels, "none")[0] for b in (FastNumpyBackend(), NumpyBackend())
        )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# ---------------------------------------------------------------------- products by MKL


@needs_mkl
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["CC", "CF", "FC", "FF"])
@pytest.mark.parametrize("buffer", [False, True])
def test_a_product_by_mkl_is_numpys(dtype: str, layout: str, buffer: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = (
        np.require(rng.standard_normal(shape).astype(dtype), requirements=[how])
        for shape, how in zip(((70, 80), (80, 90)), layout, strict=True)
    )
    out = np.full((70, 90), np.nan, dtype) if buffer else None
    found = mkl.multiply(a, b, out)
    assert found is not None
    assert not buffer or found is out
    assert found.dtype == dtype
    bound = 80 * np.finfo(dtype).eps * (np.abs(a) @ np.abs(b))
    assert (np.abs(found - a.astype("float64") @ b.astype("float64")) <= bound).all()


@needs_mkl
def test_what_is_not_for_mkl_is_left_to_numpy() -> None:
    large = np.ones((128, 128), np.float32)
    assert mkl.multiply(large[:8, :8], large[:8, :8]) is None  # too small
    assert mkl.multiply(large.astype("float16"), large.astype("float16")) is None
    assert mkl.multiply(large, large.astype("float64")) is None
    assert mkl.multiply(np.ones((128, 256), np.float32)[:, ::2], large) is None
    assert mkl.multiply(large, large, np.empty((256, 128), np.float32)[::2]) is None
    backend = FastNumpyBackend()
    backend._by_mkl = True
    buffer = np.empty((256, 128), np.float32)[::2]
    np.testing.assert_array_equal(backend.product(large, large, buffer), np.full((128, 128), 128.0))


# ---------------------------------------------------------------------- threads


def test_work_is_shared_out_in_parts_that_make_up_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_count", 3)
    monkeypatch.setattr(threads, "_pool", None)
    size = 3 * threads.SHARE + 5
    values, twice, sizes = np.arange(size), np.zeros(size, int), []

    def work(x: Any, none: Any, out: Any, factor: int) -> None:
        assert none is None
        sizes.append(x.size)
        np.multiply(x, factor, out)

    threads.share_out(work, (values, None, twice), (2,))
    assert (twice == 2 * values).all()
    assert len(sizes) == 3
    sizes.clear()
    threads.share_out(work, (values[:100], None, twice[:100]), (3,))
    assert sizes == [100]


def test_an_error_in_a_part_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_count", 2)
    monkeypatch.setattr(threads, "_pool", None)

    def work(x: Any) -> None:
        if x[0]:
            raise ArithmeticError("in the second part")

    with pytest.raises(ArithmeticError, match="second part"):
        threads.share_out(work, (np.arange(4 * threads.SHARE),), ())


def test_the_number_of_threads_is_that_of_blas_and_of_gradflow() -> None:
    pytest.importorskip("threadpoolctl", reason="threadpoolctl, of the extra 'fast', is not installed")
    code = (
        "import gradflow as gf, threadpoolctl\n"
        "before = gf.get_num_threads()\n"
        "gf.set_num_threads(1)\n"
        "pools = {p['num_threads'] for p in threadpoolctl.threadpool_info()}\n"
        "print(before, gf.get_num_threads(), pools)"
    )
    assert run(code, OMP_NUM_THREADS="2").stdout in ("2 1 {1}\n", "1 1 {1}\n")  # 1 at first: on one core


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", None, True])
def test_a_number_of_threads_that_is_none_raises(n: Any) -> None:
    with pytest.raises(ValueError, match="set_num_threads takes an integer of at least 1; got"):
        gf.set_num_threads(n)


def test_without_threadpoolctl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(ImportError, match="extra 'fast'"):
        gf.set_num_threads(1)


# ---------------------------------------------------------------------- subnormal numbers


@pytest.mark.skipif(subnormals._functions is None, reason="only on Linux on x86-64")
def test_an_optimizer_pass_takes_subnormal_numbers_for_zero_and_nothing_else_does() -> None:
    backends = [NumpyBackend(), *[FastNumpyBackend()] * HAS_NUMBA]
    for backend in backends:
        for size in (100, 3 * threads.SHARE):
            tiny = np.float32(1e-39)
            p, g, v = np.zeros(size, np.float32), np.zeros(size, np.float32), np.full(size, tiny)
            backend.sgd_step(p, g, v, 1.0, 0.9, 0.0, False, 0.0, False)
            assert not v.any()
            assert not p.any()
            assert tiny * np.float32(0.5) > 0
            normal = np.full(size, 1e-30, np.float32)
            backend.sgd_step(p, g, normal, 1.0, 0.5, 0.0, False, 0.0, False)
            np.testing.assert_allclose(normal, 5e-31, rtol=1e-6)


def test_the_floating_point_environment_is_restored_after_an_error() -> None:
    def work() -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        subnormals.flushed(work)
    assert np.float32(1e-39) * np.float32(0.5) > 0


def test_gradflow_numpy_offers_both() -> None:
    assert issubclass(FastNumpyBackend, NumpyBackend)
    assert gradflow_numpy.CpuBackend in (NumpyBackend, FastNumpyBackend)
