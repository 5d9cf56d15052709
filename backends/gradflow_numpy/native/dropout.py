"""Native random bits of Philox, and dropout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gradflow.backend import Array, dropout_threshold
from gradflow.backend.philox import philox_words
from gradflow_numpy.native.base import NativeKernels, as_array, fits, items_of
from gradflow_numpy.native.kernels import kernel, launch

if TYPE_CHECKING:
    from gradflow_numpy.native.emit import Function, Value

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_BLOCK = 32  # bytes of random bits
_TOGETHER = 4  # blocks at once, since each round of one waits for a product
_CHUNK = 256  # blocks at once in dropout, so that their bits stay in the cache


def _blocks(fn: Function, words: Value, first: Value, stop: Value, out: Value) -> None:
    """Write the blocks first to stop of Philox4x64-10: see `Backend.random_bits`."""
    whole = stop - (stop - first) % _TOGETHER
    with fn.loop(first, whole, _TOGETHER) as i:
        _some_blocks(fn, words, i, _TOGETHER, out + (i - first) * _BLOCK)
    with fn.loop(whole, stop) as i:
        _some_blocks(fn, words, i, 1, out + (i - first) * _BLOCK)


def _some_blocks(fn: Function, words: Value, first: Value, count: int, out: Value) -> None:
    from llvmlite import ir

    from gradflow_numpy.native.emit import I64

    wide = ir.IntType(256)
    counter, *key = (fn.load(words + 8 * i, I64) for i in (0, 4, 5))
    start = counter.as_unsigned(wide)
    for i in (1, 2, 3):
        start = start | (fn.load(words + 8 * i, I64).as_unsigned(wide) << (64 * i))
    states = []
    for k in range(count):
        at = start + (first + k).as_unsigned(wide)
        states.append([(at >> (64 * i)).as_integer(I64) for i in range(4)])
    for turn in range(_ROUNDS):
        if turn:
            key = [x + fn.integer(step) for x, step in zip(key, _WEYL, strict=True)]
        states = [_turned(fn, state, key) for state in states]
    for k, state in enumerate(states):
        for i, word in enumerate(state):
            fn.store(word, out + (k * _BLOCK + 8 * i))


def _turned(fn: Function, state: list[Value], key: list[Value]) -> list[Value]:
    """A round of Philox."""
    high0, low0 = _product(fn, state[0], _MULTIPLIERS[0])
    high1, low1 = _product(fn, state[2], _MULTIPLIERS[1])
    return [high1 ^ state[1] ^ key[0], low1, high0 ^ state[3] ^ key[1], low0]


def _product(fn: Function, x: Value, factor: int) -> tuple[Value, Value]:
    """The high and the low word of a product."""
    from llvmlite import ir

    from gradflow_numpy.native.emit import I64

    wide = ir.IntType(128)
    product = x.as_unsigned(wide) * fn.constant(factor, wide)
    return (product >> 64).as_integer(I64), product.as_integer(I64)


@kernel("dropout", "Rw", multiple=_TOGETHER)
def random_bits(fn: Function, words: Value, out: Value, start: Value, stop: Value, scratch: Value) -> None:
    """An item is a block of 4 words."""
    _blocks(fn, words, start, stop, out + start * _BLOCK)


@kernel("dropout", "rRwwiiif")
def dropout(
    fn: Function, x: Value, words: Value, out: Value, mask: Value, inner: Value, skip: Value, threshold: Value,
    scale: Value, start: Value, stop: Value, scratch: Value,
) -> None:  # fmt: skip
    """mask = whether an element is kept, out = x * scale there, else 0; an item has `inner` elements.

    Element i has the 32-bit half i + skip of the random bits; half i is in block i // 8.
    """
    from llvmlite import ir

    from gradflow_numpy.native.emit import I8, I32, Value

    halves = ir.VectorType(I32, fn.lanes)
    least = threshold.as_integer(I32).splat(fn.lanes)
    first, last = start * inner + skip, stop * inner + skip

    with fn.loop(first >> 3, (last + 7) >> 3, _CHUNK) as block:
        blocks = fn.select(block + _CHUNK < (last + 7) >> 3, block + _CHUNK, (last + 7) >> 3)
        _blocks(fn, words, block, blocks, scratch)
        begin = fn.select(block * 8 > first, block * 8, first)
        end = fn.select(blocks * 8 < last, blocks * 8, last)

        def some(i: Value, part: Value | None, block: Value = block) -> None:
            half = fn.load(scratch + (i - block * 8) * 4, halves, part)
            kept = Value(fn, fn.builder.icmp_unsigned(">=", half.ir, least.ir))
            at = i - skip
            fn.store(kept.as_integer(I8), mask + at, part)
            value = fn.load(x + at * fn.size, mask=part) * scale
            fn.store(fn.select(kept, value, 0.0), out + at * fn.size, part)

        fn.each(begin, end, some)


@kernel("dropout", "rrwif")
def dropout_backward(
    fn: Function, g: Value, mask: Value, out: Value, inner: Value, scale: Value, start: Value, stop: Value,
    scratch: Value,
) -> None:  # fmt: skip
    """out = g * scale where the mask is true, else 0; an item has `inner` elements."""
    from llvmlite import ir

    from gradflow_numpy.native.emit import I8

    flags = ir.VectorType(I8, fn.lanes)

    def some(i: Value, part: Value | None) -> None:
        kept = fn.load(mask + i, flags, part) != 0
        value = fn.load(g + i * fn.size, mask=part) * scale
        fn.store(fn.select(kept, value, 0.0), out + i * fn.size, part)

    fn.each(start * inner, stop * inner, some)


def _words(key: int | None, counter: Any) -> Array:
    """The key and the counter of a draw as kernels take them."""
    return counter if key is None else np.array(philox_words(key, counter), np.uint64)


class DropoutKernels(NativeKernels):
    """Random bits and dropout by native kernels."""

    def random_bits(self, key: int | None, counter: Any, n: int) -> Array:
        blocks = (n + 3) // 4
        out = np.empty(blocks * 4, np.uint64)
        launch(random_bits, np.dtype(np.float32), blocks, 10.0, _words(key, counter), out)
        return out[:n]

    def dropout(self, x: Array, p: float, key: int | None, counter: Any, skip: int = 0) -> tuple[Array, Any]:
        x = as_array(x)
        if not fits(x):
            return self.numpy.dropout(x, p, key, counter, skip)
        out, mask = np.empty(x.shape, x.dtype), np.empty(x.shape, np.bool_)
        items, inner = items_of(x)
        arguments = x, _words(key, counter), out, mask, inner, skip, dropout_threshold(p), 1.0 / (1.0 - p)
        launch(dropout, x.dtype, items, 1.2 * inner, *arguments)
        return out, mask

    def dropout_backward(self, g: Array, mask: Array, p: float) -> Array:
        g, mask = as_array(g), as_array(mask)
        if not fits(g) or mask.shape != g.shape or not mask.flags.c_contiguous:
            return self.numpy.dropout_backward(g, mask, p)
        out = np.empty(g.shape, g.dtype)
        items, inner = items_of(g)
        launch(dropout_backward, g.dtype, items, 0.2 * inner, g, mask, out, inner, 1.0 / (1.0 - p))
        return out
