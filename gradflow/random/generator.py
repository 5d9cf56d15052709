"""Random numbers that are the same on every device: a counter-based generator.

Philox4x64-10 (Salmon et al. 2011) turns a key and a counter into bits, with no state besides, so that any device can
compute any part of the stream. The bits are those of `numpy.random.Philox(key=seed)`. Numbers are made of them by
operations that IEEE 754 rounds exactly (+, -, *, /, sqrt, comparisons) in float64, so they too are equal to the bit.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from operator import index
from threading import Lock
from typing import Any

from gradflow.backend import Array, Backend
from gradflow.device import DeviceLike, get_backend
from gradflow.dtypes import DEFAULT, as_dtype
from gradflow.recording import forbid_replay
from gradflow.tensor import Tensor, shape_from

_KEY_BITS, _COUNTER_BITS = 128, 256


_drawing = Lock()
"""Held to advance a counter."""


def _renew_lock() -> None:
    """In a forked child, where another thread may have held the lock."""
    global _drawing
    _drawing = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class Generator:
    """A stream of random numbers: a `key`, from the seed, and a `counter`, the place in the stream.

    Threads may share one: no two of them draw the same numbers, but which of them draws which is up to chance.
    Raises ValueError for a seed that is not an integer in [0, 2^128).
    """

    def __init__(self, seed: int = 0) -> None:
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> Generator:
        """Restart the stream with `seed`; returns the generator. ValueError as above."""
        try:
            key = -1 if isinstance(seed, bool) else index(seed)
        except TypeError:
            key = -1
        if not 0 <= key < 1 << _KEY_BITS:
            raise ValueError(f"a seed is an integer in [0, 2^128); got {seed!r}")
        self.key = key
        self.counter = 0
        return self

    def draw(self, words: int) -> tuple[int, int]:
        """Reserve that many 64-bit words; returns the key and the counter that `Backend.random_bits` makes them of."""
        forbid_replay("{} draws random numbers")
        with _drawing:
            key, counter = self.key, self.counter
            self.counter = (counter + (words + 3) // 4) % (1 << _COUNTER_BITS)
        used = _used.get()
        if used is not None:
            used.setdefault(self, (key, counter))
        return key, counter

    def state_dict(self) -> dict[str, str]:
        """The state, as decimal numbers in strings: they have more bits than most file formats hold."""
        return {"key": str(self.key), "counter": str(self.counter)}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Go on from a state that `state_dict` gave."""
        self.key, self.counter = int(state["key"]), int(state["counter"])

    def __repr__(self) -> str:
        return f"Generator(key={self.key}, counter={self.counter})"


default_generator = Generator(0)
"""The generator of everything that is not given another one."""

States = dict[Generator, tuple[int, int]]
_used: ContextVar[States | None] = ContextVar("gradflow_used_generators", default=None)


@contextlib.contextmanager
def states_before() -> Iterator[States]:
    """The states that the generators used inside a `with` had before it: filled in as they are used."""
    outer = _used.get()
    states: States = {}
    token = _used.set(states)
    try:
        yield states
    finally:
        _used.reset(token)
        for generator, state in states.items():
            if outer is not None:
                outer.setdefault(generator, state)


@contextlib.contextmanager
def restored(states: States) -> Iterator[None]:
    """Generators in the given states inside a `with`, and after it in those they have now."""
    now = {generator: (generator.key, generator.counter) for generator in states}
    try:
        _set_states(states)
        yield
    finally:
        _set_states(now)


def _set_states(states: States) -> None:
    for generator, state in states.items():
        generator.key, generator.counter = state


def manual_seed(seed: int) -> Generator:
    """Seed the default generator. ValueError for a seed that is not an integer in [0, 2^128).

    A forked process starts from a copy of the generator, so workers of one parent draw equal numbers, as they do from
    NumPy's. Give each a seed from its number first: `gradflow.manual_seed(seed + number)`, for example as the
    `initializer` of a `multiprocessing.Pool`.

    >>> import gradflow
    >>> _ = gradflow.manual_seed(0)
    >>> gradflow.random.uniform((2,)).tolist() == gradflow.random.uniform((2,)).tolist()
    False
    """
    return default_generator.manual_seed(seed)


def _words(generator: Generator | None, n: int, backend: Backend) -> Array:
    generator = default_generator if generator is None else generator
    return backend.random_bits(*generator.draw(n), n)


def _fractions(words: Array, F: Backend) -> Array:
    """float64 in (0, 1): the upper 52 bits and a half, exactly."""
    shift = F.full((), 12, dtype=F.dtypes["uint64"])
    whole = F.astype(F.bitwise_right_shift(words, shift), F.dtypes["float64"])
    return F.multiply(F.add(whole, 0.5), 2.0**-52)


def _source(backend: Backend) -> Backend:
    """The backend that makes random numbers for this one: itself, or NumPy's where it does not compute with uint64."""
    return backend if backend.uint64_works else get_backend("cpu")


def _placed(values: Array, shape: tuple[int, ...], dtype: str, source: Backend, backend: Backend) -> Tensor:
    """The values of `source` as a tensor on `backend`."""
    if source.supports(dtype):
        values = source.astype(values, source.dtypes[dtype])
    if source is not backend:
        values = backend.from_host(source.to_host(values))
    return Tensor(backend.astype(backend.reshape(values, shape), backend.dtypes[dtype], copy=False), backend)


def _prepare(shape: int | Sequence[int], dtype: Any, device: DeviceLike | None) -> tuple[tuple[int, ...], str, Backend]:
    backend = get_backend(device)
    found = as_dtype(DEFAULT if dtype is None else dtype)
    if not found.is_floating:
        raise TypeError(f"random numbers are floating-point; got {found}")
    if not backend.supports(found.name):
        raise TypeError(f"device {backend.device} does not support {found}")
    return shape_from(shape), found.name, backend


def uniform(
    shape: int | Sequence[int],
    *,
    low: float = 0.0,
    high: float = 1.0,
    dtype: Any = None,
    device: DeviceLike | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Numbers spread evenly between `low` and `high`, computed in float64 and rounded to `dtype` (float32).

    Raises ValueError for a `low` above `high`, or one that is not finite.
    """
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"uniform needs finite low <= high; got low={low}, high={high}")
    shape, name, backend = _prepare(shape, dtype, device)
    F = _source(backend)
    u = _fractions(_words(generator, math.prod(shape), F), F)
    values = F.add(F.multiply(u, float(high) - float(low)), float(low))
    return _placed(values, shape, name, F, backend)


def normal(
    shape: int | Sequence[int],
    *,
    mean: float = 0.0,
    std: float = 1.0,
    dtype: Any = None,
    device: DeviceLike | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Normally distributed numbers, computed in float64 (to about 1e-15) and rounded to `dtype` (float32).

    Raises ValueError for a negative `std`, or a `mean` or `std` that is not finite.
    """
    if not (math.isfinite(mean) and 0 <= std < math.inf):
        raise ValueError(f"normal needs a finite mean and a finite std >= 0; got mean={mean}, std={std}")
    shape, name, backend = _prepare(shape, dtype, device)
    F = _source(backend)
    z = _normal_quantile(_fractions(_words(generator, math.prod(shape), F), F), F)
    values = F.add(F.multiply(z, float(std)), float(mean))
    return _placed(values, shape, name, F, backend)


def permutation(n: int, *, device: DeviceLike | None = None, generator: Generator | None = None) -> Tensor:
    """The numbers 0 to n - 1 in random order, int64: what sorts n random words. The same on every device."""
    backend = get_backend(device)
    F = _source(backend)
    (n,) = shape_from((n,))
    return _placed(F.argsort(_words(generator, n, F), axis=-1, stable=True), (n,), "int64", F, backend)


# Wichura 1988, "Algorithm AS 241: The Percentage Points of the Normal Distribution", routine PPND16: numerators and
# denominators, the highest power first, for |p - 1/2| <= 0.425, for r <= 5, and beyond
_CENTRE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_MIDDLE = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
     3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
     0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)  # fmt: skip
_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
     0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
     0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0),
)  # fmt: skip


def _horner(x: Array, coefficients: Sequence[float], F: Backend) -> Array:
    total = F.add(F.multiply(x, coefficients[0]), coefficients[1])
    for c in coefficients[2:]:
        total = F.add(F.multiply(total, x), c)
    return total


def _ratio(x: Array, coefficients: tuple[Sequence[float], Sequence[float]], F: Backend) -> Array:
    return F.divide(_horner(x, coefficients[0], F), _horner(x, coefficients[1], F))


def _log(p: Array, F: Backend) -> Array:
    """The logarithm of float64 p in [2^-53, 1/2], by operations that round exactly: the library's own differ."""
    exponent = F.zeros_like(p)
    for step in (32, 16, 8, 4, 2, 1):
        small = F.less(p, 2.0**-step)
        p = F.where(small, F.multiply(p, 2.0**step), p)
        exponent = F.where(small, F.add(exponent, float(step)), exponent)
    s = F.divide(F.subtract(p, math.sqrt(0.5)), F.add(p, math.sqrt(0.5)))  # p in [1/2, 1): |s| < 0.172
    series = _horner(F.square(s), [1.0 / k for k in range(23, 0, -2)], F)
    return F.subtract(F.multiply(F.multiply(s, series), 2.0), F.multiply(F.add(exponent, 0.5), math.log(2)))


def _normal_quantile(p: Array, F: Backend) -> Array:
    q = F.subtract(p, 0.5)
    centre = F.multiply(q, _ratio(F.subtract(0.180625, F.square(q)), _CENTRE, F))
    r = F.sqrt(F.negative(_log(F.subtract(0.5, F.abs(q)), F)))
    outer = F.where(
        F.less_equal(r, 5.0),
        _ratio(F.subtract(r, 1.6), _MIDDLE, F),
        _ratio(F.subtract(r, 5.0), _TAIL, F),
    )
    outer = F.where(F.less(q, 0.0), F.negative(outer), outer)
    return F.where(F.less_equal(F.abs(q), 0.425), centre, outer)
