"""The steps of optimizers as native kernels. The conformance kit compares them with float64, within bounds."""

from __future__ import annotations

import itertools
import platform
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite", reason="llvmlite, of the extra 'fast', is not installed")

from gradflow_numpy import FastNumpyBackend, NumpyBackend
from gradflow_numpy.native import kernels, optimizers

from gradflow.backend import (
    AdamOptions,
    AdamScalars,
    MomentOptions,
    MomentScalars,
    RMSpropOptions,
    RMSpropScalars,
    SGDOptions,
    SGDScalars,
)
from tests.native.emitting import TARGETS
from tests.native.kernel_runs import runner

STEPS: dict[str, tuple[Any, tuple[bool, ...], tuple[float, ...], tuple[float, ...]]] = {
    "sgd": (optimizers.sgd, (True, True, False), SGDOptions(0.0, 0.0, 0.0, False), SGDScalars(0.1, False)),
    "sgd-first": (optimizers.sgd, (True, True, True), SGDOptions(0.9, 0.1, 0.0, False), SGDScalars(0.1, True)),
    "sgd-nesterov": (optimizers.sgd, (True, True, True), SGDOptions(0.9, 0.0, 0.1, True), SGDScalars(0.1, False)),
    "adam": (optimizers.adam, (True,) * 4, AdamOptions(0.9, 0.999, 1e-8, 0.0), AdamScalars.at(3, 0.1, 0.9, 0.999, 0.1)),
    "adam-decay": (optimizers.adam, (True,) * 4, AdamOptions(0.9, 0.99, 1e-8, 0.1), AdamScalars.at(3, 0.1, 0.9, 0.99)),
    "rmsprop": (
        optimizers.rmsprop, (True, True, True, False, False), RMSpropOptions(0.9, 1e-8, 0.1, 0.0), RMSpropScalars(0.1)
    ),
    "rmsprop-centred": (
        optimizers.rmsprop, (True,) * 5, RMSpropOptions(0.9, 1e-8, 0.0, 0.9), RMSpropScalars(0.1)
    ),
    "adagrad": (
        optimizers.moments, (True, True, False, True, False), MomentOptions(0.0, 1.0, 1.0, 0.1),
        MomentScalars(0.1, 0.0, 1.0, 1.0, 1e-10, 1.0),
    ),
    "amsgrad": (
        optimizers.moments, (True,) * 5, MomentOptions(0.9, 0.999, 0.001, 0.0),
        MomentScalars(0.1, 3.3, 0.4, 18.0, 1e-8, 0.99),
    ),
    "lion": (
        optimizers.moments, (True, True, True, False, False), MomentOptions(0.99, 0.0, 0.0, 0.0),
        MomentScalars(0.01, 0.9, 0.1, 0.0, 0.0, 0.999),
    ),
}  # fmt: skip
"""A formula, which arrays it is given, its options and its scalars."""
WIDEST = TARGETS["avx512"]
GUARD = 16


def arrays_of(given: tuple[bool, ...], n: int, dtype: str) -> list[Any]:
    """Random arrays of n elements, not negative but for the gradient, between others."""
    rng = np.random.default_rng(0)
    whole = [np.abs(rng.standard_normal(GUARD + n + GUARD)).astype(dtype) for _ in given]
    whole[1] *= np.sign(rng.standard_normal(GUARD + n + GUARD)).astype(dtype)
    return [x if there else None for x, there in zip(whole, given, strict=True)]


def inner(arrays: list[Any]) -> list[Any]:
    return [None if x is None else x[GUARD : x.size - GUARD] for x in arrays]


def float64s(numbers: Any) -> Any:
    return np.array(numbers, np.float64)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_has_the_same_bits_in_vectors_of_any_width_and_in_any_parts(name: str, dtype: str) -> None:
    """And nothing is written beside the arrays, or to the gradient."""
    formula, given, options, scalars = STEPS[name]
    numbers = float64s(options), float64s(scalars), None
    found: dict[int, list[bytes]] = {}
    for (target, watched), n in itertools.product([*((t, False) for t in TARGETS.values()), (WIDEST, True)], (1, 37)):
        kernel = optimizers.step_kernel(formula, given, tuple(map(bool, options)), watched)
        run = runner(kernel, dtype, target)
        for ranges in ([(0, n)], [(0, 0), (5, n), (2, 5), (0, 2)]) if n > 5 else ([(0, n)],):
            whole = arrays_of(given, n, dtype)
            before = [None if x is None else x.copy() for x in whole]
            run(ranges, *inner(whole), *numbers, np.zeros((), np.int32) if watched else None, 1)
            for x, y in zip(whole, before, strict=True):
                if x is not None:
                    np.testing.assert_array_equal(x[:GUARD], y[:GUARD])
                    np.testing.assert_array_equal(x[-GUARD:], y[-GUARD:])
            np.testing.assert_array_equal(whole[1], before[1])
            assert not np.array_equal(whole[0], before[0])
            bits = [x.tobytes() for x in whole if x is not None]
            assert found.setdefault(n, bits) == bits


@pytest.mark.parametrize("name", STEPS)
def test_zeros_stay_zeros(name: str) -> None:
    """Such as the padding between parameters."""
    formula, given, options, scalars = STEPS[name]
    arrays = [np.zeros(37, np.float32) if there else None for there in given]
    kernel = optimizers.step_kernel(formula, given, tuple(map(bool, options)), False)
    kernels.launch(kernel, np.dtype(np.float32), 37, 1.0, *arrays, float64s(options), float64s(scalars), None, None, 1)
    assert not any(x is not None and x.any() for x in arrays)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("array", [0, 1])
def test_what_is_not_finite_in_any_place_raises_the_flag(name: str, array: int, value: float) -> None:
    formula, given, options, scalars = STEPS[name]
    kernel = optimizers.step_kernel(formula, given, tuple(map(bool, options)), True)
    for n, place in ((1, None), (37, None), (37, 0), (37, 20), (37, 36)):
        arrays, flag = inner(arrays_of(given, n, "float32")), np.zeros((), np.int32)
        if place is not None:
            arrays[array][place] = value
        kernels.launch(
            kernel, np.dtype(np.float32), n, 1.0, *arrays, float64s(options), float64s(scalars), None, flag, 1
        )
        assert flag == (place is not None)


def test_an_epsilon_of_zero_raises_no_flag_in_what_lies_behind_the_arrays() -> None:
    backend = FastNumpyBackend()
    backend.nonfinite = np.zeros((), np.int32)
    p, g, m, v = (np.ones(3, np.float32) for _ in range(4))
    backend.adam_step(p, g, m, v, AdamOptions(0.9, 0.999, 0.0, 0.0), AdamScalars.at(1, 0.1, 0.9, 0.999))
    assert not backend.nonfinite


def test_without_weight_decay_infinite_parameters_leave_the_gradient_alone() -> None:
    p, v = np.array([np.inf], np.float32), np.zeros(1, np.float32)
    FastNumpyBackend().sgd_step(p, np.ones_like(p), v, SGDOptions(0.9, 0.0, 0.0, False), SGDScalars(0.1, False))
    assert v[0] == 1.0


@pytest.mark.parametrize("largest", [np.nan, 2.0])
@pytest.mark.parametrize("square", [np.nan, 1.0, 3.0])
def test_the_largest_square_is_not_a_number_if_one_of_the_two_is_not(largest: float, square: float) -> None:
    found = []
    for backend in (FastNumpyBackend(), NumpyBackend()):
        p, g, m, s, w = (np.array([x], np.float32) for x in (1.0, 0.5, 0.5, square, largest))
        _, _, options, scalars = STEPS["amsgrad"]
        backend.moment_step(p, g, m, s, w, MomentOptions(*options), MomentScalars(*scalars))
        found.append([*w, *p])
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_what_is_derived_from_the_numbers_is_computed_in_float64() -> None:
    """1 - beta2 is 1e-9, which is 0 if beta2 is rounded first; so is the epsilon times the correction."""
    p, g, m, v = (np.array([x], np.float32) for x in (0.0, 1.0, 0.0, 0.0))
    FastNumpyBackend().adam_step(p, g, m, v, AdamOptions(0.9, 1 - 1e-9, 1e-50, 0.0), AdamScalars(1.0, 1.0, 1e30, 1.0))
    np.testing.assert_allclose(v, 1e-9, rtol=1e-6)
    np.testing.assert_allclose(p, -(0.1 * 1e30 / (np.sqrt(1e-9) + 1e-20)), rtol=1e-5)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="only on x86-64")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_takes_subnormal_numbers_for_zero_and_nothing_after_it_does(dtype: str) -> None:
    smallest = np.finfo(dtype).smallest_normal
    tiny = smallest / 4
    p, g, v = np.zeros(37, dtype), np.zeros(37, dtype), np.full(37, tiny, dtype)
    backend = FastNumpyBackend()
    backend.sgd_step(p, g, v, SGDOptions(0.9, 0.0, 0.0, False), SGDScalars(1.0, False))
    assert not v.any()
    assert not p.any()
    v[:] = smallest
    backend.sgd_step(p, g, v, SGDOptions(0.5, 0.0, 0.0, False), SGDScalars(1.0, False))  # a result that is subnormal
    assert not v.any()
    assert tiny * tiny.dtype.type(0.5) > 0


def test_half_copies_are_rounded_as_numpy_and_ml_dtypes_round() -> None:
    """Ties, subnormal halves, overflow, infinities and NaN, from all float32 numbers with few bits."""
    bits = np.arange(1 << 18, dtype=np.uint32) << 14
    numbers = np.concatenate([bits, bits + 1, bits + 0x3FFF]).view(np.float32)
    halves = [np.dtype(np.float16)]
    backend = FastNumpyBackend()
    if backend.supports("bfloat16"):
        halves.append(backend.dtypes["bfloat16"])
    for dtype in halves:
        found = np.zeros(numbers.size, dtype)
        arguments = numbers, found, int(dtype == np.float16), None
        kernels.launch(optimizers.round_to_half, numbers.dtype, numbers.size, 1.0, *arguments)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = numbers.astype(dtype)
        known = ~np.isnan(numbers)
        np.testing.assert_array_equal(found[known].view(np.uint16), expected[known].view(np.uint16))
        assert np.isnan(found[~known].astype(np.float32)).all()


@pytest.mark.parametrize("half", [np.zeros((2, 8), np.float16)[:, ::2].reshape(-1)[::2], np.zeros(8, np.float16)])
def test_a_half_copy_is_made_wherever_it_lies(half: Any) -> None:
    p = np.linspace(1, 2, half.size, dtype=np.float32)
    FastNumpyBackend().sgd_step(
        p, np.zeros_like(p), None, SGDOptions(0.0, 0.0, 0.0, False), SGDScalars(0.1, False), half=half
    )
    np.testing.assert_array_equal(half, p.astype(np.float16))
