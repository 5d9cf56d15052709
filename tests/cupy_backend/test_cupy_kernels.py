"""Each kernel of the CuPy backend against its composed default on NumPy, through the Python that launches it.

Layouts, dtypes, empty arrays, buffers and fallbacks: on the emulated CuPy, without a GPU, and, marked `gpu`, on a real
GPU if there is one.
"""

from __future__ import annotations

import math
import os
from typing import Any

import emulated_cupy
import numpy as np
import pytest
from emulated_device import REALS, agree, needs_compiler, numbers, on_device
from gradflow_cupy import gather

import gradflow as gf
from gradflow.backend import (
    ACTIVATIONS,
    AdamOptions,
    AdamScalars,
    Backend,
    RMSpropOptions,
    RMSpropScalars,
    SGDOptions,
    SGDScalars,
)
from gradflow.testing.conformance.kernel_cases.optimizers import MOMENTS

pytestmark = pytest.mark.slow


@pytest.fixture(params=[pytest.param("emulated", marks=needs_compiler), pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> Backend:
    """The backend of the device `emulated`, and of a GPU."""
    if request.param == "emulated":
        request.getfixturevalue("cupy")
    elif not (diagnosis := gf.diagnose("cuda")).usable:
        if os.environ.get("GRADFLOW_REQUIRE_GPU") == "1":
            pytest.fail(f"GRADFLOW_REQUIRE_GPU=1, but no CUDA device: {diagnosis}", pytrace=False)
        pytest.skip(f"no CUDA device: {diagnosis}")
    return gf.get_backend(request.param)


def both(backend: Any, reference: Any, name: str, *arguments: Any, ulp: float = 64, **options: Any) -> tuple[Any, Any]:
    """The results of a kernel on the device and, composed, on NumPy; they must agree."""
    moved = [on_device(backend, a) for a in arguments]
    copies = [np.array(a) if isinstance(a, np.ndarray) else a for a in arguments]
    actual = getattr(backend, name)(*moved, **options)
    with np.errstate(all="ignore"):
        expected = getattr(Backend, name)(reference, *copies, **options)
    compared = (actual, expected)
    if name in ("softmax_cross_entropy", "squared_error", "layer_norm", "batch_norm", "linear"):
        compared = (actual[0], np.asarray(expected[0]))  # residuals are each backend's own
    if name in ("dropout", "random_bits", "one_hot", "dropout_backward"):
        ulp = 0
    agree(backend, *compared, ulp)
    for array, copy in zip(moved, copies, strict=True):  # what is changed in place too
        if isinstance(copy, np.ndarray):
            agree(backend, array, copy, ulp)
    return actual, expected


LAYOUTS = {
    "2-d": lambda s: numbers((5, 7), s), "3-d": lambda s: numbers((2, 3, 7), s), "1-d": lambda s: numbers((7,), s),
    "no rows": lambda s: numbers((0, 7), s), "transposed": lambda s: numbers((7, 5), s).T,
    "many rows": lambda s: numbers((600, 7), s),
}  # fmt: skip


SUMS = {
    "all": ((7, 50), None), "one": ((1,), None), "columns": ((70, 3), 0), "rows": ((3, 70), 1),
    "33 rows": ((33, 5), (0,)), "middle": ((4, 40, 3), 1), "two axes": ((9, 8, 3), (0, 1)),
    "apart": ((9, 3, 8), (0, -1)), "last two": ((3, 9, 8), (2, 1)), "in three passes": ((9000,), 0),
    "few": ((5, 32), 1), "none": ((0, 50), 1), "of none": ((50, 0), 1),
}  # fmt: skip


@pytest.mark.parametrize("real", [*REALS, pytest.param(np.float16, id="float16"), pytest.param(np.int32, id="int32")])
@pytest.mark.parametrize("case", SUMS)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "reversed"])
def test_sum(backend: Any, case: str, layout: str, real: Any) -> None:
    shape, axis = SUMS[case]
    x = np.asarray(numbers(shape) * 8, real)
    given = {"contiguous": x, "transposed": x.T, "reversed": x[::-1]}[layout]
    axis = None if layout == "transposed" else axis
    moved = backend.from_host(x)
    moved = {"contiguous": moved, "transposed": moved.T, "reversed": moved[::-1]}[layout]
    for keepdims in (False, True):
        expected = given.sum(axis=axis, keepdims=keepdims, dtype=np.float64)
        n = given.size // max(expected.size, 1)
        found = backend.sum(moved, axis=axis, keepdims=keepdims)
        values = backend.to_host(found)
        assert values.shape == expected.shape
        assert values.dtype == (np.int64 if real is np.int32 else real)
        eps = 0.0 if real is np.int32 else float(np.finfo(real).eps)
        size = np.abs(given).sum(axis=axis, keepdims=keepdims, dtype=np.float64)
        assert (np.abs(values - expected) <= (20 + math.log2(max(n, 1))) * eps * size).all()


@pytest.mark.parametrize("real", [*REALS, pytest.param(np.float16, id="float16")])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(backend: Any, reference: Any, name: str, real: Any) -> None:
    for x in (numbers((5, 7), real), numbers((0, 7), real), numbers((), real), numbers((7, 5), real).T):
        both(backend, reference, "activate", x, name, 0.3)
        both(backend, reference, "activate_backward", np.ones_like(x), x, name, 0.3)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("buffers", [True, False])
def test_linear(
    backend: Any, reference: Any, layout: str, real: Any, activation: str | None, with_bias: bool, buffers: bool
) -> None:
    x, weight, bias = LAYOUTS[layout](real), numbers((3, 7), real, 1), numbers((3,), real, 2) if with_bias else None

    def move(a: Any) -> Any:
        return on_device(backend, a)

    out, residual = both(backend, reference, "linear", x, weight, bias, activation, 0.0)[0]
    g = numbers((*x.shape[:-1], 3), real, 3)
    flat = backend.zeros((24,), dtype=weight.dtype)
    into = [None, backend.reshape(flat[:21], (3, 7)), flat[21:]] if buffers else [None] * 3
    needs = [True, True, with_bias]
    moved = [move(g), out, move(x), move(weight), move(bias)]
    actual = backend.linear_backward(*moved, activation, 0.0, residual, needs, into)
    value, kept = Backend.linear(reference, x, weight, bias, activation, 0.0)
    expected = Backend.linear_backward(reference, g, value, x, weight, bias, activation, 0.0, kept, needs, [None] * 3)
    agree(backend, list(actual), [None if e is None else np.asarray(e) for e in expected], 128)
    agree(backend, moved[0], g, 0)
    if buffers:
        assert actual[1] is into[1]
        assert actual[2] is (into[2] if with_bias else None)
    again = backend.linear_backward(*moved, activation, 0.0, None, needs, [None] * 3)
    agree(backend, list(again), [None if e is None else np.asarray(e) for e in expected], 128)


@pytest.mark.parametrize("real", REALS)
def test_gemm(backend: Any, reference: Any, real: Any) -> None:
    for a, b in ((numbers((3, 5), real), numbers((5, 4), real)), (numbers((5, 3), real).T, numbers((4, 5), real).T),
                 (numbers((3, 0), real), numbers((0, 4), real))):  # fmt: skip
        for accumulate in (False, True):
            both(backend, reference, "gemm", a, b, numbers((3, 4), real, 9), accumulate)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(backend: Any, reference: Any, real: Any, name: str) -> None:
    for x in (numbers((5, 7), real), numbers((2, 3, 7), real), numbers((7,), real), numbers((7, 5), real).T,
              numbers((0, 7), real)):  # fmt: skip
        for axis in range(-1, x.ndim):
            if x.shape[axis]:
                both(backend, reference, name, x, axis)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["labels", "labels int8", "dense"])
def test_cross_entropy(backend: Any, reference: Any, real: Any, reduction: str, kind: str) -> None:
    logits = numbers((6, 9), real)
    target = np.abs(numbers((6, 9), real, 1)) if kind == "dense" else np.arange(6, dtype="int8" if "8" in kind else "q")
    actual, _ = both(backend, reference, "softmax_cross_entropy", logits, target, reduction)
    g = numbers((), real, 2)
    moved_g, moved_logits, moved_target = (on_device(backend, a) for a in (g, logits, target))
    if reduction == "none":  # a gradient that was spread is a view without memory of its own
        g, moved_g = np.broadcast_to(g, (6,)), backend.broadcast_to(moved_g, (6,))
    for needs in ([True, False], [True, True], [False, True]):
        if needs[1] and kind != "dense":
            continue
        expected = Backend.softmax_cross_entropy_backward(reference, g, logits, target, reduction, None, needs)
        for residual in (actual[1], None):
            found = backend.softmax_cross_entropy_backward(
                moved_g, moved_logits, moved_target, reduction, residual, needs
            )
            agree(backend, found, expected, 64)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_squared_error(backend: Any, reference: Any, real: Any, reduction: str) -> None:
    for x, y in (
        (numbers((6, 9), real), numbers((6, 9), real, 1)),
        (numbers((9, 6), real).T, numbers((6, 9), real, 1)),
    ):
        actual, (_, kept) = both(backend, reference, "squared_error", x, y, reduction)
        g = numbers((6, 9) if reduction == "none" else (), real, 2)
        for needs in ([True, True], [True, False]):
            expected = Backend.squared_error_backward(reference, g, x, y, reduction, kept, needs)
            arguments = *(on_device(backend, a) for a in (g, x, y)), reduction
            for residual in (actual[1], None):
                agree(backend, backend.squared_error_backward(*arguments, residual, needs), expected)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(backend: Any, reference: Any, real: Any, affine: bool) -> None:
    for x, axes in ((numbers((5, 7), real), (1,)), (numbers((4, 2, 6), real), (1, 2)), (numbers((600, 3), real), (1,)),
                    (numbers((7, 5), real).T, (1,)), (numbers((6,), real), (0,))):  # fmt: skip
        shape = tuple(x.shape[a] for a in axes)
        weight, bias = (numbers(shape, real, 1), numbers(shape, real, 2)) if affine else (None, None)
        actual, (_, kept) = both(backend, reference, "layer_norm", x, weight, bias, axes, 1e-5)
        g, needs = numbers(x.shape, real, 3), [True, affine, affine]
        expected = Backend.layer_norm_backward(reference, g, x, weight, axes, 1e-5, kept, needs)
        moved = [on_device(backend, a) for a in (g, x, weight)]
        for residual in (actual[1], None):
            found = backend.layer_norm_backward(*moved, axes, 1e-5, residual, needs)
            agree(backend, found, expected, 256)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm(backend: Any, reference: Any, real: Any, affine: bool) -> None:
    for x in (numbers((5, 7), real), numbers((600, 3), real), numbers((7, 5), real).T):
        columns = x.shape[1:]
        weight, bias = (numbers(columns, real, 1), numbers(columns, real, 2)) if affine else (None, None)
        actual, (_, kept) = both(backend, reference, "batch_norm", x, weight, bias, 1e-5)
        g, needs = numbers(x.shape, real, 3), [True, affine, affine]
        expected = Backend.batch_norm_backward(reference, g, x, weight, 1e-5, kept, needs)
        moved = [on_device(backend, a) for a in (g, x, weight)]
        for residual in (actual[1], None):
            agree(backend, backend.batch_norm_backward(*moved, 1e-5, residual, needs), expected, 256)


@pytest.mark.parametrize("real", [*REALS, pytest.param(np.float16, id="float16")])
def test_dropout(backend: Any, reference: Any, real: Any) -> None:
    for x in (numbers((41, 101), real), numbers((101, 41), real).T, numbers((0, 3), real), numbers((), real)):
        actual, _ = both(backend, reference, "dropout", x, 0.3, 2**90 + 7, 2**128 - 2)
        mask = backend.to_host(actual[1])
        both(backend, reference, "dropout_backward", x, mask, 0.3)


def test_random_numbers_are_those_of_the_cpu(backend: Any) -> None:
    for make in (gf.random.uniform, gf.random.normal):
        gf.manual_seed(7)
        expected = make((1000,)).numpy()
        gf.manual_seed(7)
        assert np.array_equal(make((1000,), device=backend.device).numpy(), expected)
    gf.manual_seed(7)
    expected = gf.random.permutation(1000).numpy()
    gf.manual_seed(7)
    assert np.array_equal(gf.random.permutation(1000, device=backend.device).numpy(), expected)


def test_one_hot(backend: Any, reference: Any) -> None:
    for labels in (
        np.array([[0, 2], [1, 1]]),
        np.array([1, 0], np.int32),
        np.zeros((0,), np.int64),
        np.array(2, np.uint8),
    ):
        for dtype in (np.float32, np.float64, np.float16, np.int64):
            both(backend, reference, "one_hot", labels, 3, np.dtype(dtype))


def test_take_rows(backend: Any, reference: Any) -> None:
    """Each batch begins at a multiple of 256 bytes, so that it has the same products wherever it is in an epoch."""
    rng = np.random.default_rng(7)
    rows = rng.permutation(60)[:35].reshape(5, 7)
    labels, mask = np.arange(60), rng.random((60, 3)) < 0.5
    for arrays in (
        [numbers((60, 17)), labels, numbers((60,), np.float64)],
        [numbers((60, 2, 4)), mask, labels.astype(np.int8), numbers((60, 3), np.float16)],
    ):
        found, _ = both(backend, reference, "take_rows", arrays, rows)
        for x in found:
            assert {(x[i].data.ptr - x.data.ptr) % 256 for i in range(5)} == {0}
            assert all(x[i].flags.c_contiguous for i in range(5))
    both(backend, reference, "take_rows", [np.asfortranarray(numbers((60, 17))), np.zeros((60, 0))], rows)


def test_take_rows_of_a_view(backend: Any, reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread moves as many bytes at once as divide the row and the address: on a GPU more of them are an error."""
    seen: list[Any] = []
    launch = gather.launch
    monkeypatch.setattr(gather, "launch", lambda *given: (seen.append(given), launch(*given)))
    memory = backend.zeros((1000,), dtype=backend.dtypes["float32"])
    start = -memory.data.ptr % 16 // 4
    rows = backend.from_host(np.asarray([[3, 0, 2]]))
    for offset, width in ((0, 16), (1, 4), (2, 8), (3, 4), (4, 16)):
        x = memory[start + offset : start + offset + 40].reshape(10, 4)
        backend.take_rows([x], rows)
        assert seen.pop()[10] == width


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "int64"])
def test_scatter_add(backend: Any, reference: Any, dtype: str) -> None:
    rows, columns = np.array([2, 0, 2]), np.array([1, 1, 1])
    mask = np.array([[True, False], [False, True], [True, True], [False, False]])
    for key in (rows, (slice(None), columns), (rows, columns), mask, 1, (slice(1, 3), 0), np.array([[0, 1], [1, 1]])):
        shape = np.zeros((4, 2))[key].shape
        values = np.arange(1, 1 + math.prod(shape)).reshape(shape).astype(dtype)
        both(backend, reference, "scatter_add", values, key, (4, 2))


def test_repeated_indices_are_not_added_atomically(
    backend: Any, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Atomic additions of floats come in any order; those of integers are exact. Half floats are added in float32."""
    if backend.name == "emulated":  # CuPy's own functions cannot be replaced
        monkeypatch.setattr(backend.cupy.add, "at", lambda *_: pytest.fail("an atomic addition"))
    key = np.array([1, 0, 1, 1])
    for dtype in (np.float32, np.float64, np.float16):
        values, into = numbers((4, 3), dtype), numbers((2, 3), dtype, 1)
        both(backend, reference, "scatter_add", values, key, (2, 3))
        both(backend, reference, "scatter_add", values, key, (2, 3), into)
        columns = numbers((3, 4), dtype, 2)  # the array to add to is transposed
        both(backend, reference, "scatter_add", columns, (slice(None), key), (3, 2), np.asfortranarray(into.T))
    ones, many = backend.from_host(np.ones(5000, np.float16)), backend.from_host(np.zeros(5000, np.int64))
    assert backend.to_host(backend.scatter_add(ones, (many, ...), (2,))).tolist() == [5000, 0]
    device = backend.device
    w, i = gf.tensor(numbers((4, 3)), device=device, requires_grad=True), gf.tensor(key, device=device)
    (w[i].square().sum() + gf.take_along_axis(w, gf.reshape(i, (4, 1)), axis=1).sum()).backward()
    assert w.grad is not None


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("columns", [1, 6])
def test_an_index_may_repeat_any_number_of_times(backend: Any, columns: int, real: Any) -> None:
    """Runs of 1 to 60,000 rows, in several launches, from either end of the axis: rounded few times, the same bits."""
    n, rng = 100_000, np.random.default_rng(0)
    key = np.where(rng.random(n) < 0.6, 7, rng.geometric(0.001, n) % 3000) - 1000
    values = numbers((n, columns), real)
    expected, terms = np.zeros((3000, columns)), np.zeros((3000, columns))
    np.add.at(expected, key, values.astype(np.float64))
    np.add.at(terms, key, np.abs(values).astype(np.float64))
    moved = on_device(backend, (values, key))
    found = [backend.to_host(backend.scatter_add(*moved, (3000, columns))) for _ in range(2)]
    assert found[0].tobytes() == found[1].tobytes()
    assert (np.abs(found[0] - expected) <= 2 * np.finfo(real).eps * terms).all()


@pytest.mark.parametrize("real", [*REALS, pytest.param(np.float16, id="float16")])
def test_optimizer_steps(backend: Any, reference: Any, real: Any) -> None:
    def state(*signs: int) -> list[Any]:
        return [
            np.abs(numbers((1001,), real, i)) * 0.1 if s else numbers((1001,), real, i) for i, s in enumerate(signs)
        ]

    ulp = 8.0 if real is np.float16 else 64.0
    for momentum, dampening, nesterov, decay, first in (
        (0.0, 0.0, False, 0.0, True),
        (0.9, 0.1, False, 0.01, False),
        (0.9, 0.0, True, 0.01, False),
        (0.9, 0.1, False, 0.0, True),
    ):
        p, g, v = state(0, 0, 0)
        options, scalars = SGDOptions(momentum, dampening, decay, nesterov), SGDScalars(0.1, first)
        both(backend, reference, "sgd_step", p, g, v if momentum else None, options, scalars, ulp=ulp)
    for decay, decoupled in ((0.0, False), (0.1, False), (0.1, True)):
        for step in (1, 100):
            adam_options = AdamOptions(0.9, 0.999, 1e-3, 0.0 if decoupled else decay)
            adam_scalars = AdamScalars.at(step, 0.1, 0.9, 0.999, decay if decoupled else 0.0)
            both(backend, reference, "adam_step", *state(0, 0, 0, 1), adam_options, adam_scalars, ulp=ulp)
    for centred in (False, True):
        for momentum in (0.0, 0.9):
            p, g, s, m, v = state(0, 0, 1, 1, 0)
            m *= 0.1
            s += 1
            both(backend, reference, "rmsprop_step", p, g, s, m if centred else None, v if momentum else None,
                 RMSpropOptions(0.9, 1e-3, 0.01, momentum), RMSpropScalars(0.1), ulp=ulp)  # fmt: skip
    for names, *numbers_ in MOMENTS.values():
        p, g, m, s, w = state(0, 0, 0, 1, 1)
        given = [x if name in names.split() else None for name, x in {"mean": m, "square": s, "largest": w}.items()]
        both(backend, reference, "moment_step", p, g, *given, *numbers_, ulp=ulp)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_a_half_copy_is_rounded_as_numpy_rounds(backend: Any, reference: Any, half: str) -> None:
    """Around each number that the half float has, the middle between it and the next, and the limits of its range."""
    native, tiny = np.dtype(backend.dtypes[half]), np.finfo(np.float32).smallest_normal
    every = np.sort(np.arange(1 << 16).astype(np.uint16).view(native).astype(np.float32))
    every = every[np.isfinite(every)]
    values = np.concatenate([every, every[1:] / 2 + every[:-1] / 2, np.float32([65520, 3.4e38, np.inf, -np.inf])])
    infinite = np.copysign(np.float32(np.inf), values)
    with np.errstate(over="ignore", under="ignore"):
        values = np.concatenate([values, np.nextafter(values, np.float32(0)), np.nextafter(values, infinite)])
    values = np.append(values[(values == 0) | (np.abs(values) >= tiny)], np.float32(np.nan))
    with np.errstate(over="ignore"):
        expected = values.astype(native)
    p, zeros = on_device(backend, values), on_device(backend, np.zeros_like(values))
    copied = backend.zeros(values.shape, dtype=native)
    backend.sgd_step(p, zeros, None, SGDOptions(0.0, 0.0, 0.0, False), SGDScalars(0.0, False), half=copied)
    wide = [x.astype(np.float32) for x in (backend.to_host(copied), expected)]
    assert np.array_equal(*wide, equal_nan=True)


@pytest.mark.parametrize("real", [*REALS, pytest.param(np.float16, id="float16")])
def test_clip_global_norm(backend: Any, reference: Any, real: Any) -> None:
    for max_norm in (0.5, 1e4):
        host = [numbers((100,), real), numbers((3, 5), real, 1), numbers((0,), real)]
        arrays = on_device(backend, host)
        before = emulated_cupy.State.transfers, emulated_cupy.State.synchronizations
        norm = backend.clip_global_norm(arrays, max_norm)
        assert (emulated_cupy.State.transfers, emulated_cupy.State.synchronizations) == before
        agree(backend, norm, np.asarray(Backend.clip_global_norm(reference, host, max_norm)), 64)
        agree(backend, arrays, host, 64)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_hyperparameters_of_numpy(backend: Backend, kind: Any) -> None:
    """NumPy scalars are passed by value, whatever their size in memory."""

    def step(number: Any) -> list[Any]:
        p, g, m, s, v = (on_device(backend, np.abs(numbers((33,), seed=seed))) for seed in range(5))
        half, small, much = number(0.5), number(0.25), number(0.75)
        backend.sgd_step(p, g, v, SGDOptions(half, small, half, True), SGDScalars(small, False))
        adam_options = AdamOptions(half, much, small, number(0.0))
        backend.adam_step(p, g, m, s, adam_options, AdamScalars.at(3, small, half, much, half))
        backend.rmsprop_step(p, g, s, None, v, RMSpropOptions(much, small, half, half), RMSpropScalars(small))
        norm = backend.clip_global_norm([g], half)
        x = backend.reshape(p, (3, 11))
        out, residual = backend.layer_norm(x, None, None, (1,), small)
        gx = backend.layer_norm_backward(x, x, None, (1,), small, residual, [True, False, False])[0]
        return [p, m, s, v, norm, g, out, gx, backend.activate(x, "elu", half), backend.dropout(x, half, 1, 2)[0]]

    for found, expected in zip(step(kind), step(float), strict=True):
        agree(backend, found, backend.to_host(expected), 64)
