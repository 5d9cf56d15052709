"""Generators: counter-based streams of random bits that are the same on every device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from operator import index
from threading import Lock

from gradflow.interception import forbid_replay

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
