"""Kernels for tests of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
from gradflow_numpy.native.kernels import Launch, kernel
from gradflow_numpy.native.threads import Input, Program


@kernel("test-threads", "Rwif")
def fold(fn: Any, x: Any, out: Any, n: Any, a: Any, start: Any, stop: Any, scratch: Any) -> None:
    """out[i] = x[n - 1 - i] * a + x[i] * (1 - a): reads what other chunks of the level before have written."""
    with fn.loop(start, stop) as i:
        mirrored = fn.load(x + (n - 1 - i) * fn.size, fn.real)
        fn.store(mirrored * a + fn.load(x + i * fn.size, fn.real) * (1.0 - a), out + i * fn.size)


@kernel("test-threads", "rwi")
def through_scratch(fn: Any, x: Any, out: Any, turns: Any, start: Any, stop: Any, scratch: Any) -> None:
    """out[i] = 2 x[i], read from the scratch memory some time after it was written there."""
    with fn.loop(start, stop) as i:
        fn.store(fn.load(x + i * fn.size, fn.real), scratch + (i - start) * fn.size)
    number = fn.variable(fn.constant(1.0))
    with fn.loop(0, turns):
        number.set(number.get() * 1.0000001)
    with fn.loop(start, stop) as i:
        zero = fn.select(number.get() > 0.0, 0.0, number.get())
        fn.store(fn.load(scratch + (i - start) * fn.size, fn.real) * 2.0 + zero, out + i * fn.size)


@kernel("test-threads", "wi", multiple=4)
def who(fn: Any, out: Any, turns: Any, start: Any, stop: Any, scratch: Any) -> None:
    """Write the address of the thread's scratch memory, plus the place in its 4 where the range starts, slowly."""
    with fn.loop(start, stop) as i:
        number = fn.variable(fn.constant(1.0))
        with fn.loop(0, turns):
            number.set(number.get() * 1.0000001)
        fn.store(fn.select(number.get() > 0.0, scratch + start % 4, fn.integer(0)), out + i * 8)


@kernel("test-threads", "rW")
def refuse_negative(fn: Any, x: Any, status: Any, start: Any, stop: Any, scratch: Any) -> None:
    """Set the status to 7 if an item is negative."""
    with fn.loop(start, stop) as i, fn.when(fn.load(x + i * fn.size, fn.real) < 0.0):
        fn.store(fn.integer(7), status)


def folds(dtype: Any, n: int, levels: int, cost: float, first: Any = None) -> tuple[Program, Any, Any]:
    """A program that folds again and again, its first array, and its last. first: an `Input` instead."""
    arrays = [np.zeros(n, dtype) for _ in range(levels + 1)]
    arrays[0][:] = np.random.default_rng(3).standard_normal(n)
    chain = [first if isinstance(first, Input) else arrays[0], *arrays[1:]]
    program = Program([[[Launch(fold, dtype, n, cost, (chain[i], chain[i + 1], n, 0.25))]] for i in range(levels)])
    return program, arrays[0], arrays[-1]


def folded(x: Any, levels: int) -> Any:
    """What `folds` computes, by NumPy."""
    a = x.dtype.type(0.25)
    for _ in range(levels):
        x = x[::-1] * a + x * (1 - a)
    return x
