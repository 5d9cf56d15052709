"""Native random bits and dropout have the bits of NumPy's Philox, in any parts."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from emitting import TARGETS
from gradflow_numpy import NumpyBackend
from gradflow_numpy.native.dropout import DropoutKernels
from kernel_parts import again, assert_every_launch_gives_the_same_bits, launches_of

from gradflow.backend.philox import numbers_of_draw, philox_words

NATIVE, PLAIN = DropoutKernels(), NumpyBackend()
KEYS = [0, 2**64 - 1, 2**128 - 5]
COUNTERS = [0, 5, 2**64 - 3, 2**64 - 1, 2**128 - 2, 2**192 - 4, 2**256 - 3]  # where a carry goes through the words
SHAPES = [(), (1,), (5, 3), (64, 40), (3, 5, 7), (0, 4), (4, 0), (700, 13), (3, 5000)]

dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
targets = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def words_of(key: int, counter: int) -> Any:
    return np.array(philox_words(key, counter), np.uint64)


def example(shape: tuple[int, ...], dtype: str) -> Any:
    x = np.asarray(np.random.default_rng(0).standard_normal(shape), dtype)
    x.reshape(-1)[::7] = np.nan
    x.reshape(-1)[3::11] = -np.inf
    return x


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("counter", COUNTERS)
def test_random_bits_are_those_of_numpys_philox(key: int, counter: int) -> None:
    for n in (0, 1, 3, 4, 5, 16, 17, 30, 1001):
        expected = np.random.Philox(key=key, counter=counter).random_raw(n)
        for arguments in ((key, counter), (None, words_of(key, counter))):
            bits, launched = launches_of(partial(NATIVE.random_bits, *arguments, n))
            assert launched
            assert bits.dtype == np.uint64
            np.testing.assert_array_equal(bits, expected)


def test_the_words_of_a_draw_are_its_key_and_counter() -> None:
    for key in KEYS:
        for counter in COUNTERS:
            assert numbers_of_draw(None, words_of(key, counter)) == (key, counter)


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dropout_drops_what_numpys_does(shape: tuple[int, ...], dtype: str) -> None:
    x = example(shape, dtype)
    for skip in (0, 1, 7):
        for p in (0.0, 0.3, 0.999999):
            key, counter = KEYS[skip % 3], 2**64 - 3
            expected, kept = PLAIN.dropout(x, p, key, counter, skip)
            for arguments in ((key, counter), (None, words_of(key, counter))):
                (out, mask), launched = launches_of(partial(NATIVE.dropout, x, p, *arguments, skip))
                assert launched
                assert mask.dtype == np.bool_
                assert out.dtype == x.dtype
                np.testing.assert_array_equal(mask, kept)
                np.testing.assert_array_equal(out, expected)  # 0 where dropped, even of NaN and infinity
            gradient, launched = launches_of(partial(NATIVE.dropout_backward, x, mask, p))
            assert launched
            np.testing.assert_array_equal(gradient, PLAIN.dropout_backward(x, mask, p))


@dtypes
def test_bits_at_the_threshold_are_kept_and_those_below_dropped(dtype: str) -> None:
    halves = np.random.Philox(key=3, counter=4).random_raw(8).astype("<u8").view("<u4")
    x = np.ones(16, dtype)
    for half in halves.tolist():
        mask = NATIVE.dropout(x, half / 2**32, 3, 4)[1]
        np.testing.assert_array_equal(mask, halves >= half)


@targets
@dtypes
def test_targets_and_parts_give_the_same_bits(target: Any, dtype: str) -> None:
    parts = np.random.default_rng(1)
    for shape in ((9, 3), (70,), (13, 250)):
        x, mask = example(shape, dtype), parts.random(shape) < 0.5
        for skip in (0, 5):
            assert_every_launch_gives_the_same_bits(partial(NATIVE.dropout, x, 0.4, 3, 9, skip), target, parts)
        assert_every_launch_gives_the_same_bits(partial(NATIVE.dropout_backward, x, mask, 0.4), target, parts)
    assert_every_launch_gives_the_same_bits(partial(NATIVE.random_bits, 3, 2**64 - 9, 133), target, parts)


@dtypes
def test_launching_again_takes_the_present_counter(dtype: str) -> None:
    x, words = example((9, 30), dtype), words_of(3, 4)
    (out, mask), launched = launches_of(lambda: NATIVE.dropout(x, 0.5, None, words))
    words[...] = words_of(3, 75)
    for each in launched:
        again(each)
    expected, kept = PLAIN.dropout(x, 0.5, 3, 75)
    np.testing.assert_array_equal(mask, kept)
    np.testing.assert_array_equal(out, expected)


@dtypes
def test_what_is_not_native_is_numpys_as_a_whole(dtype: str) -> None:
    x, mask = example((6, 4), dtype), np.arange(24).reshape(6, 4) % 2 == 0
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("dropout", (np.asfortranarray(x), 0.5, 3, 4)),
        ("dropout", (x.astype(np.float16), 0.5, 3, 4)),
        ("dropout", (x.astype(np.float16), 0.5, None, words_of(3, 4))),
        ("dropout_backward", (x.astype(np.float16), mask, 0.5)),
        ("dropout_backward", (np.asfortranarray(x), mask, 0.5)),
        ("dropout_backward", (x, np.asfortranarray(mask), 0.5)),
    ]
    for name, arguments in calls:
        found, launched = launches_of(partial(getattr(NATIVE, name), *arguments))
        assert not launched
        np.testing.assert_array_equal(found, getattr(PLAIN, name)(*arguments))
