"""Code for sums whose order does not depend on the processor."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from gradflow_numpy.native.emit import F64, Function, Value

_LANES = 16
_BLOCK = 1024  # numbers in a partial sum, of which there are at most 2^17, as many as fit in the scratch of a kernel


def across(value: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """The lanes of a vector, combined in pairs to a scalar; their number is a power of 2."""
    fn, n = value.fn, value.type.count
    while n > 1:
        n //= 2
        low, high = (fn.shuffle(value, value, list(range(first, first + n))) for first in (0, n))
        value = combine(low, high)
    return value.lane(0)


def total(fn: Function, x: Value, n: Value, scratch: Value, term: Callable[[Value], Value]) -> Value:
    """The sum of `term` of n numbers at an address: of blocks, then of pairs of sums; computed in float64."""
    vector, zero = ir.VectorType(fn.real, _LANES), fn.constant(0.0, F64).splat(_LANES)
    block = fn.variable(zero)
    size = ((n >> 27) + 1) * _BLOCK
    count = fn.variable(fn.integer(0))
    fn.store(zero, scratch)  # the sum of no blocks

    def add(i: Value, mask: Value | None) -> None:
        block.set(block.get() + term(fn.load(x + i * fn.size, vector, mask).as_float(F64)))

    with fn.loop(0, n, size) as first:
        block.set(zero)
        stop = fn.select(first + size < n, first + size, n)
        whole = stop - (stop - first) % _LANES
        with fn.loop(first, whole, _LANES) as i:
            add(i, None)
        with fn.when(whole < stop):
            add(whole, fn.first_lanes(stop - whole, _LANES))
        fn.store(across(block.get(), lambda x, y: x + y), scratch + count.get() * 8)
        count.set(count.get() + 1)
    with fn.repeat_while(lambda: count.get() > 1):
        half = count.get() >> 1
        with fn.loop(0, half) as i:
            place = scratch + i * 8
            fn.store(fn.load(place, F64) + fn.load(place + (count.get() - half) * 8, F64), place)
        count.set(count.get() - half)
    return fn.load(scratch, F64)
