"""Generators: counter-based streams of random bits that are the same on every device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from operator import index
from typing import Any

from gradflow.autograd.mapping import current_level
from gradflow.backend import graphs
from gradflow.backend.graphs import MAX_AHEAD, Source, current_rows
from gradflow.backend.philox import philox_words
from gradflow.interception import forbid_replay, opaque_call

_KEY_BITS, _COUNTER_BITS = 128, 256


class Generator:
    """A stream of random numbers: a `key`, which is the seed, and a `counter`, the position in the stream.

    seed: an integer in [0, 2^128) (default 0); else ValueError.

    Threads may share a generator. They never draw the same numbers, but which thread draws which depends on timing.

    >>> import gradflow as gf
    >>> generator = gf.Generator(seed=1)
    >>> state = generator.state_dict()
    >>> x = gf.random.normal(3, generator=generator)
    >>> generator.load_state_dict(state)
    >>> (gf.random.normal(3, generator=generator) == x).tolist()
    [True, True, True]
    """

    def __init__(self, seed: int = 0) -> None:
        self.manual_seed(seed)

    def __setattr__(self, name: str, value: Any) -> None:
        forbid_replay(f"sets the {name} of a random generator")
        super().__setattr__(name, value)

    def manual_seed(self, seed: int) -> Generator:
        """Restart the stream with `seed`; returns the generator. Raises ValueError like the constructor."""
        forbid_replay("{} seeds a random generator")
        try:
            key = -1 if isinstance(seed, bool) else index(seed)
        except TypeError:
            key = -1
        if not 0 <= key < 1 << _KEY_BITS:
            raise ValueError(f"a seed must be an integer in [0, 2^128); got {seed!r}")
        self.key = key
        self.counter = 0
        return self

    @opaque_call
    def draw(self, words: int, skipped: int = 0) -> tuple[Any, Any]:
        """Reserve that many 64-bit words; returns the key and counter to pass to `Backend.random_bits`.

        Integers; for a graph that is captured, None and the array with both. skipped: how many blocks of 4 words are
        before those that the counter is for (default 0).
        """
        if current_level.get() is not None:
            raise RuntimeError(
                "inside vmap, no random numbers are drawn: draw them outside for all examples, and pass them as an "
                "argument; model.eval() turns dropout off"
            )
        with graphs.counter_lock:
            key, counter = self.key, self.counter
            vars(self)["counter"] = (counter + (words + 3) // 4) % (1 << _COUNTER_BITS)
        used = _used.get()
        if used is not None:
            used.setdefault(self, (key, counter))
        rows, at = current_rows(), (counter + skipped) % (1 << _COUNTER_BITS)
        if rows is not None:
            return None, rows.array(_Drawn(self, (words + 3) // 4, skipped), philox_words(key, at))
        return key, at

    def _stepped(self) -> Iterator[tuple[Any, str]]:
        """The attribute that drawing changes: see `gradflow.replay.host_state`."""
        yield self, "counter"

    def state_dict(self) -> dict[str, str]:
        """The key and counter as decimal strings, since most file formats cannot hold integers of so many bits."""
        return {"key": str(self.key), "counter": str(self.counter)}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Continue from a state that `state_dict` returned."""
        forbid_replay("{} sets a random generator")
        self.key, self.counter = int(state["key"]), int(state["counter"])

    def __repr__(self) -> str:
        return f"Generator(key={self.key}, counter={self.counter})"


class _Drawn(Source):
    """The key and the counter of a draw, as `philox_words`."""

    dtype = "uint64"

    def __init__(self, generator: Generator, blocks: int, skipped: int) -> None:
        self.generator, self.blocks, self.skipped = generator, blocks, skipped

    def begin(self, sources: Sequence[Source]) -> int:
        own = [x for x in sources if isinstance(x, _Drawn) and x.generator is self.generator]
        self.start = self.generator.counter
        self.first = self.start + self.skipped + sum(x.blocks for x in own[: own.index(self)])
        self.stride = sum(x.blocks for x in own)
        self.key = self.generator.key
        return MAX_AHEAD

    def rows(self, n: int) -> list[float]:
        return [word for k in range(n) for word in philox_words(self.key, self.first + k * self.stride)]

    def is_at(self, k: int) -> bool:
        at = (self.start + k * self.stride) % (1 << _COUNTER_BITS)
        return self.generator.counter == at and self.generator.key == self.key


default_generator = Generator(0)
"""The generator that functions of random numbers use by default."""
States = dict[Generator, tuple[int, int]]
"""Keys and counters by generator."""
_used: ContextVar[States | None] = ContextVar("gradflow_used_generators", default=None)
"""The dict that the innermost `states_before` of this context fills, if there is one."""


@contextlib.contextmanager
def states_before() -> Iterator[States]:
    """A dict that collects, for each generator used inside a `with`, the state that it had before its first use."""
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
    """Set generators to the given states inside a `with`, and back to their present states at its end."""
    now = {generator: (generator.key, generator.counter) for generator in states}
    try:
        set_states(states)
        yield
    finally:
        set_states(now)


def set_states(states: States) -> None:
    """Set generators to the given states."""
    if states:
        forbid_replay("sets random generators back to draw the same numbers again")
    for generator, state in states.items():
        generator.key, generator.counter = state


def manual_seed(seed: int) -> Generator:
    """Seed the default generator and return it. Raises ValueError unless the seed is an integer in [0, 2^128).

    A forked process inherits a copy of the generator, so the workers of one parent draw the same numbers, as with
    NumPy. Seed each worker by its rank: `gradflow.manual_seed(seed + rank)`, for example in the `initializer` of a
    `multiprocessing.Pool`.

    >>> import gradflow
    >>> _ = gradflow.manual_seed(0)
    >>> gradflow.random.uniform((2,)).tolist() == gradflow.random.uniform((2,)).tolist()
    False
    """
    return default_generator.manual_seed(seed)
