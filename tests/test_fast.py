"""The extra `fast`: native kernels against those of plain NumPy, and what chooses them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
from typing import Any

import gradflow_numpy
import numpy as np
import pytest
from gradflow_numpy import FastNumpyBackend, NumpyBackend, subnormals, threads

import gradflow as gf
from gradflow.backend import AdamOptions, AdamScalars, SGDOptions, SGDScalars

HAS_LLVMLITE = importlib.util.find_spec("llvmlite") is not None
needs_llvmlite = pytest.mark.skipif(not HAS_LLVMLITE, reason="llvmlite, of the extra 'fast', is not installed")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new Python, with these environment variables; an empty value removes a variable."""
    whole = {**os.environ, **environment}
    kept = {name: value for name, value in whole.items() if value}
    return subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True)


# ---------------------------------------------------------------------- which backend


SHOW = "import gradflow as gf; b = gf.get_backend('cpu'); print(type(b).__name__, b.kernels()['linear'], b.describe())"


@needs_llvmlite
def test_the_compiled_kernels_are_chosen_where_llvmlite_is_installed() -> None:
    for value in ("", "1"):
        name, kind, description = run(SHOW, GRADFLOW_FAST=value).stdout.split(" ", 2)
        assert (name, kind) == ("FastNumpyBackend", "llvmlite")
        assert ", llvmlite " in description
        assert ", layers by tiles" in description


def test_they_are_not_chosen_with_gradflow_fast_0_or_without_llvmlite() -> None:
    without = "import sys; sys.modules['llvmlite'] = None\n" + SHOW.replace(
        "import gradflow as gf; ", "import gradflow as gf\n"
    )
    hidden = (
        "import importlib.util as u; f = u.find_spec\n"
        "u.find_spec = lambda n, *p: None if n == 'llvmlite' else f(n, *p)\n"
    )
    for done in (run(SHOW, GRADFLOW_FAST="0"), run(hidden + without, GRADFLOW_FAST="")):
        assert done.returncode == 0, done.stderr
        name, kind, description = done.stdout.split(" ", 2)
        assert (name, kind) == ("NumpyBackend", "native")
        assert "llvmlite" not in description


def test_an_llvmlite_that_cannot_be_imported_is_told_with_what_to_do() -> None:
    done = run(
        "import sys; sys.modules['llvmlite'] = None\nimport gradflow as gf\nm = gf.nn.MLP([2, 2])\nm(gf.ones((1, 2)))",
        GRADFLOW_FAST="1",
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: llvmlite, of the extra 'fast', cannot be imported")
    assert "GRADFLOW_FAST=0" in done.stderr.splitlines()[-1]
    assert "type" in done.stderr.splitlines()[-1]
    assert "pip install" in done.stderr.splitlines()[-1]


def test_a_missing_llvmlite_is_told_by_the_list_of_devices() -> None:
    done = run(
        "import sys; sys.modules['llvmlite'] = None\nimport importlib.metadata as m\n"
        "def version(name, real=m.version):\n"
        "    if name == 'llvmlite': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\nfrom gradflow.cli import main\nmain(['devices'])",
        GRADFLOW_FAST="1",
    )
    (line,) = [each for each in done.stdout.splitlines() if each.startswith("cpu")]
    assert "llvmlite, of the extra 'fast', cannot be imported" in line
    assert "pip install" in done.stdout


@needs_llvmlite
def test_on_a_processor_without_wide_vectors_numpys_kernels_are_chosen_or_the_reason_is_told() -> None:
    without = (
        "from numpy._core import _multiarray_umath as u\n"
        "u.__cpu_features__.update(dict.fromkeys(('AVX2', 'ASIMD'), False))\n"
    )
    done = run(without + SHOW.replace("import gradflow as gf; ", "import gradflow as gf\n"), GRADFLOW_FAST="")
    assert done.stdout.startswith("NumpyBackend native"), done.stderr
    done = run(f"{without}import gradflow as gf\ngf.gelu(gf.ones(2))", GRADFLOW_FAST="1")
    assert done.returncode == 1
    assert "RuntimeError: the extra 'fast' makes code for AVX2" in done.stderr
    assert "GRADFLOW_FAST=0" in done.stderr.splitlines()[-1]


@needs_llvmlite
def test_llvmlite_is_not_imported_before_a_kernel_runs() -> None:
    code = "import sys, gradflow as gf; x = gf.ones((2, 2)) @ gf.ones((2, 2)); print('llvmlite' in sys.modules)"
    assert run(code, GRADFLOW_FAST="1").stdout == "False\n"


# ---------------------------------------------------------------------- what was not compiled for


@needs_llvmlite
@pytest.mark.parametrize("spoil", ["read-only", "transposed", "with gaps", "another dtype object", "float16"])
def test_arrays_that_nothing_was_compiled_for_give_what_numpy_gives(spoil: str) -> None:
    """They do not make llvmlite compile again, either."""
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

    x, w, b, g = spoilt(5, 3), spoilt(4, 3), spoilt(4), spoilt(5, 4)
    plain, fast = NumpyBackend(), FastNumpyBackend()
    tolerance = 1e-2 if spoil == "float16" else 1e-5
    (y, r), (expected, _) = fast.linear(x, w, b, "relu", 0.0), plain.linear(x, w, b, "relu", 0.0)
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
    arguments = (g, expected, x, w, b, "relu", 0.0, r, (True, True, True), (None, None, None))
    for found, like in zip(fast.linear_backward(*arguments), plain.linear_backward(*arguments), strict=True):
        np.testing.assert_allclose(found, like, rtol=tolerance, atol=tolerance)


@needs_llvmlite
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


# ---------------------------------------------------------------------- threads


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of at least 100 elements are tried on three threads, in parts of 30."""
    monkeypatch.setattr(threads, "_count", 3)
    monkeypatch.setattr(threads, "SHARE", 100)
    monkeypatch.setattr(threads, "_PART", 30)
    monkeypatch.setattr(threads, "_trials", {})


@pytest.mark.usefixtures("short_parts")
def test_work_is_shared_out_in_parts_that_make_up_the_whole() -> None:
    values, out = np.arange(305), np.zeros(305, int)
    sizes: list[int] = []

    def work(x: Any, none: Any, out: Any, factor: int) -> None:
        assert none is None
        sizes.append(x.size)
        np.multiply(x, factor, out)

    for factor in (2, 3):  # in one, and in parts
        threads.share_out(work, (values, None, out), (factor,))
        assert (out == factor * values).all()
    assert sorted(sizes) == [5, *[30] * 10, 305]
    sizes.clear()
    for _ in range(3):
        threads.share_out(work, (values[:99], None, out[:99]), (3,))
    assert sizes == [99] * 3


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("pays", [False, True])
def test_work_goes_on_threads_where_that_was_measured_to_pay(pays: bool) -> None:
    sizes: list[int] = []

    def work(x: Any) -> None:
        sizes.append(x.size)
        time.sleep(0.001 * (50 if (x.size == 305) == pays else 1))

    for _ in range(10):
        threads.share_out(work, (np.zeros(305),), ())
    assert sizes.count(305) == (3 if pays else 7)
    sizes.clear()
    threads.set_count(3)  # forgets what was measured
    threads.share_out(work, (np.zeros(305),), ())
    assert sizes == [305]


@pytest.mark.usefixtures("short_parts")
def test_an_error_in_a_part_is_raised() -> None:
    def work(x: Any) -> None:
        if x.size < 400 and x[0]:
            raise ArithmeticError("in a later part")

    threads.share_out(work, (np.arange(400),), ())
    with pytest.raises(ArithmeticError, match="later part"):
        threads.share_out(work, (np.arange(400),), ())


@pytest.mark.usefixtures("short_parts")
def test_without_threads_the_parts_run_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As during the shutdown of the interpreter."""

    def refuse(*_: Any) -> Any:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    out = np.zeros(400)
    threads._run_on_threads(lambda x: np.add(x, 1, x), (out,), ())
    assert (out == 1).all()


@pytest.mark.usefixtures("short_parts")
def test_what_errstate_says_holds_in_all_threads() -> None:
    def work(x: Any) -> None:
        time.sleep(0.01)  # so that each thread gets a part
        seen.add(threading.current_thread().name)
        with contextlib.suppress(FloatingPointError):
            np.divide(1.0, x, x)
            unseen.append(x)

    seen: set[str] = set()
    unseen: list[Any] = []
    with np.errstate(divide="raise"):
        threads._run_on_threads(work, (np.zeros(400),), ())
    assert not unseen
    assert seen == {"MainThread", "gradflow"}


def test_a_step_in_parts_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = NumpyBackend()
    monkeypatch.setattr(threads, "_count", 2)
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(10_007).astype(np.float32) for _ in range(3)]
    found = []
    for part in (20_000, 1_000, 333):
        monkeypatch.setattr(threads, "_PART", part)
        monkeypatch.setattr("gradflow_numpy.optimizers.share_out", threads._run_on_threads)
        arrays = [*(a.copy() for a in start), np.abs(start[0])]
        backend.adam_step(*arrays, AdamOptions(0.9, 0.999, 1e-8, 0.0), AdamScalars.at(3, 1e-2, 0.9, 0.999, 0.1))
        backend.sgd_step(*arrays[:3], SGDOptions(0.9, 0.0, 0.1, True), SGDScalars(0.1, False))
        found.append([a.tobytes() for a in arrays])
    assert found[0] == found[1] == found[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_an_optimizer_steps_on_in_a_forked_process() -> None:
    code = (
        "import os, signal, gradflow as gf\n"
        "p = gf.zeros(5_000_000, requires_grad=True)\n"
        "optimizer = gf.optim.SGD([p], lr=1.0)\n"
        "p.grad = gf.ones(5_000_000)\n"
        "optimizer.step()\n"
        "child = os.fork()\n"
        "if not child: signal.alarm(30)\n"
        "optimizer.step()\n"
        "if not child: os._exit(int(p.min().item() != -2.0))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert run(code).stdout == "0\n"


# ---------------------------------------------------------------------- long sums


@pytest.mark.parametrize(
    "backend", [NumpyBackend(), pytest.param(FastNumpyBackend(), marks=needs_llvmlite)], ids=["plain", "fast"]
)
def test_rounding_errors_of_long_sums_do_not_add_up(backend: Any) -> None:
    n = 300_000
    g, x, w, b = (np.full(shape, 0.1, np.float32) for shape in ((n, 2), (n, 1), (2, 1), (2,)))
    out, residual = backend.linear(x, w, b, "relu", 0.0)
    for activation in (None, "relu"):
        arguments = (g, out, x, w, b, activation, 0.0, residual, (False, False, True), (None, None, None))
        np.testing.assert_allclose(backend.linear_backward(*arguments)[2], 0.1 * n, rtol=5e-5)
    loss = backend.softmax_cross_entropy(np.zeros((n, 2), np.float32), np.zeros(n, np.int64), "mean")[0]
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)
    loss = backend.squared_error(g, np.zeros_like(g), "mean")[0]
    np.testing.assert_allclose(loss, 0.01, rtol=1e-3)


def test_the_gradient_of_a_bias_in_float16_is_summed_in_float32() -> None:
    n = 20_000
    x, w, b, g = (
        np.full(shape, value, np.float16) for shape, value in (((n, 3), 1), ((4, 3), 1), (4, 0), ((n, 4), 0.1))
    )
    arguments = (g, None, x, w, b, None, 0.0, None, (False, False, True), (None, None, None))
    np.testing.assert_allclose(NumpyBackend().linear_backward(*arguments)[2], 2000, rtol=1e-3)


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


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", None, True, 2**40])
def test_a_number_of_threads_that_is_none_raises(n: Any) -> None:
    with pytest.raises(ValueError, match="set_num_threads takes an integer of at least 1 and at most 1024; got"):
        gf.set_num_threads(n)


def test_without_threadpoolctl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(ImportError, match="extra 'fast'"):
        gf.set_num_threads(1)


# ---------------------------------------------------------------------- subnormal numbers


@pytest.mark.skipif(subnormals._functions is None, reason="only on Linux on x86-64")
def test_an_optimizer_pass_takes_subnormal_numbers_for_zero_and_nothing_else_does() -> None:
    backends = [NumpyBackend(), *[FastNumpyBackend()] * HAS_LLVMLITE]
    for backend in backends:
        for size in (100, *[2 * threads.SHARE] * 2):  # the second time on threads
            tiny = np.float32(1e-39)
            p, g, v = np.zeros(size, np.float32), np.zeros(size, np.float32), np.full(size, tiny)
            backend.sgd_step(p, g, v, SGDOptions(0.9, 0.0, 0.0, False), SGDScalars(1.0, False))
            assert not v.any()
            assert not p.any()
            assert tiny * np.float32(0.5) > 0
            normal = np.full(size, 1e-30, np.float32)
            backend.sgd_step(p, g, normal, SGDOptions(0.5, 0.0, 0.0, False), SGDScalars(1.0, False))
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
