"""Clipping by the global norm as native kernels. The conformance kit compares it with float64, within bounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite", reason="llvmlite, of the extra 'fast', is not installed")

from gradflow_numpy import FastNumpyBackend
from gradflow_numpy.native import clipping

from tests.native.emitting import TARGETS
from tests.native.kernel_runs import runner

SIZES = (1, 15, 256, 2047, 2048, 2049, 100_003)


def exact_norm(*arrays: Any) -> float:
    return math.sqrt(math.fsum(float(x) * float(x) for a in arrays for x in a.reshape(-1)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", SIZES)
def test_the_norm_and_the_scaled_gradients_are_right_to_the_last_bits(dtype: str, n: int) -> None:
    rng = np.random.default_rng(n)
    first, second = rng.standard_normal(n).astype(dtype), rng.standard_normal((3, 7)).astype(dtype)
    expected, eps = exact_norm(first, second), np.finfo(dtype).eps
    gradients = [first.copy(), second.copy()]
    norm = FastNumpyBackend().clip_global_norm(gradients, 0.1)
    assert (norm.shape, norm.dtype) == ((), dtype)
    assert abs(float(norm) - expected) <= (2 if dtype == "float32" else 16 + np.log2(n)) * eps * expected
    for found, before in zip(gradients, (first, second), strict=True):
        bound = 24 * eps * np.abs(before) * 0.1 / expected
        assert (np.abs(found - before * (0.1 / (expected + 1e-6))) <= bound).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_sums_have_the_same_bits_in_vectors_of_any_width_and_in_any_parts(dtype: str) -> None:
    runners = [runner(clipping.square_sums, dtype, target) for target in TARGETS.values()]
    for n in SIZES:
        x = np.random.default_rng(0).standard_normal(n).astype(dtype)
        blocks = -(-n // 2048)
        found = set()
        for run in runners:
            for ranges in ([(0, blocks)], [(i, i + 1) for i in reversed(range(blocks))]):
                sums = np.full(blocks, np.nan)
                run(ranges, x, n, sums)
                found.add(sums.tobytes())
        assert len(found) == 1


def test_rounding_errors_of_long_sums_do_not_add_up() -> None:
    x = np.full(10_000_000, 0.1, np.float32)
    norm = FastNumpyBackend().clip_global_norm([x], math.inf)
    np.testing.assert_allclose(norm, float(np.float32(0.1)) * math.sqrt(x.size), rtol=1e-7)


def test_gradients_within_the_norm_keep_their_bits() -> None:
    g = np.array([1e-39, -0.0, 0.5, -0.25], np.float32)  # one is subnormal
    before = g.tobytes()
    FastNumpyBackend().clip_global_norm([g], 0.6)
    assert g.tobytes() == before


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_leaves_padding_zero(broken: float) -> None:
    first, second = np.array([broken, 0.0, 2.0, 0.0], np.float32), np.array([3.0, 0.0], np.float32)
    norm = FastNumpyBackend().clip_global_norm([first, second], 1.0, [None, np.array([1])])
    np.testing.assert_equal(float(norm), broken)
    zero = np.nan if np.isnan(broken) else 0.0
    np.testing.assert_array_equal(first, [np.nan, zero, zero, zero])
    np.testing.assert_array_equal(second, [zero, 0.0])


def test_the_norm_is_infinite_where_the_sum_of_squares_is() -> None:
    """In float32 from 1.8e19 on; then finite gradients become 0."""
    for value, infinite in ((1.8e19, False), (1.9e19, True)):
        g = np.array([value], np.float32)
        norm = FastNumpyBackend().clip_global_norm([g], 1.0)
        assert np.isinf(norm) == infinite
        assert g[0] == (0.0 if infinite else pytest.approx(1.0))


def test_the_norm_of_nothing_is_zero() -> None:
    empty = np.empty((0, 2), np.float32)
    assert FastNumpyBackend().clip_global_norm([empty, empty], 1.0) == 0.0


def test_arrays_that_kernels_do_not_take_give_what_numpy_gives() -> None:
    wide = np.arange(6.0, dtype=np.float32)
    for g in (wide[::2], wide.astype(np.float16)):
        expected = np.linalg.norm(g.astype(np.float64))
        np.testing.assert_allclose(FastNumpyBackend().clip_global_norm([g], 1.0), expected, rtol=1e-3)
        np.testing.assert_allclose(np.linalg.norm(g.astype(np.float64)), 1.0, rtol=1e-3)
