"""Graphs: what a device needs of a recorded step to replay it as one graph, and the numbers that change with each step.

A graph repeats the work of the device with the same arguments. What a step changes on the host (gradient states, step
counts) is a `HostState`; what it takes from the host and what changes from step to step (rates, bias corrections,
counters of random numbers) comes from a `Source`. While a graph is captured, the code that computes such numbers asks
`current_rows` for an array on the device in their place.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import RLock, get_ident
from types import MappingProxyType
from typing import Any, Protocol

from gradflow.backend.array_functions import Array

MAX_AHEAD = 1024
"""The largest number of steps whose numbers are computed ahead."""


class HostState(Protocol):
    """What a step may change on the host, as it was when this was made."""

    def restore(self) -> None:
        """Set everything back."""

    def difference(self) -> HostDifference:
        """What has changed since then. Raises NotImplementedError, with words that follow "it", for other changes."""


class HostDifference(Protocol):
    """What a step changes on the host."""

    def applies(self) -> bool:
        """Whether a step would change the same now."""

    def apply(self) -> None:
        """Make the changes of one more step."""


class RecordedStep(Protocol):
    """A recorded step, as `Backend.graph` gets it."""

    @property
    def run(self) -> Callable[..., Any]:
        """A function of the arrays of the inputs: makes the recorded calls, and returns the results of the step."""

    def parts(self) -> tuple[Callable[..., tuple[Array, ...]], Callable[..., Any]]:
        """`run` in two parts: a function of the inputs' arrays that makes the calls and returns the arrays of the
        results, which are not copied; and one that makes the results of such arrays.
        """

    def trace_obstacle(self) -> str | None:
        """Why `trace` is not possible, in words that follow "it", or None."""

    def trace(self, make: Callable[..., Any], *inputs: Array) -> tuple[Array, ...] | None:
        """Do the step, and return the arrays of the results, which are not copied; None, at once, if that must wait.

        make: `make(name, function, arguments, options)` makes each call of the backend, and returns its result, which
        is what later calls get. It is also called for those within calls that the recording has as one, such as a step
        of an optimizer, and for other functions that only check values.
        """

    def report(self, reason: str) -> None:
        """Report that the calls are made one by one, and why, in words that follow "it"."""

    def note(self, words: str) -> None:
        """Tell how the step is replayed, in words that follow "replaying"; nobody need be warned of it."""

    def obstacle(self) -> str | None:
        """Why the device must make the calls one by one, in words that follow "it"; None: it need not."""

    def host_state(self) -> HostState:
        """What the step may change on the host, as it is now."""


class Source(ABC):
    """Numbers that a step takes from the host. The rows of future steps are computed as the plain step computes them.

    dtype: the dtype of the numbers by name, "float64" or "uint64".
    """

    dtype: str

    @abstractmethod
    def begin(self, sources: Sequence[Source]) -> int:
        """Start at the present state of the host, between two steps; how many rows from here on can be computed.

        sources: all sources of the step, in the order in which it takes the numbers.
        """

    @abstractmethod
    def rows(self, n: int) -> list[float]:
        """The numbers of the next n steps, one step after another."""

    @abstractmethod
    def is_at(self, k: int) -> bool:
        """Whether the host has done k steps since `begin`, the step still `holds`, and row k is the next one."""

    def holds(self) -> bool:
        """Whether the step makes the same calls as when the graph was captured, apart from these numbers.

        It is asked when the guards of the recorded step hold.
        """
        return True


class Rows(ABC):
    """The numbers of a step on the device, while a graph of the step is captured or the device may skip steps.

    options: further keyword arguments for the kernels that take the numbers.
    captures: whether the calls are captured, not made.
    """

    options: Mapping[str, Any] = MappingProxyType({})
    captures = False

    def before_launch(self, check: Callable[..., bool], *arguments: Any) -> None:  # noqa: B027
        """Call a function before the graph is captured, and before each launch.

        Its arguments are how often a launch does what asks for this call, and `arguments`. It prepares what the graph
        reads on the device, and returns False if another graph is needed; it may raise NotImplementedError, with words
        that follow "it". The functions of the first step are called, each once. The default does nothing.
        """

    @abstractmethod
    def array(self, source: Source, numbers: Sequence[float]) -> Array:
        """A flat array on the device that has the numbers of `source` whenever the step runs.

        numbers: those of the present step.
        """

    def next_step(self) -> None:  # noqa: B027
        """Begin another step in the same graph: from here on, the arrays have its numbers.

        Calls of `array` return the same arrays as in the first step, in the same order, and the graph takes the numbers
        of all its steps from the sources of the first. The default does nothing.
        """

    def beside(self, *arrays: Array) -> contextlib.AbstractContextManager[Any]:
        """A context manager in which work on these arrays may be done beside what follows, until `join`.

        Nothing may use the results before `join`, or change the arrays. The default does nothing.
        """
        return contextlib.nullcontext()

    def join(self) -> None:  # noqa: B027
        """Let what follows come after all work `beside`."""


class Patience:
    """Decides when to stop capturing a step again: after 4 captures in a row with fewer than 16 replays each.

    replays: how often the present capture was replayed.
    """

    def __init__(self) -> None:
        self.replays = self._in_vain = 0

    def is_over(self) -> bool:
        """Count a capture that has become invalid, and return whether to stop."""
        self._in_vain = 0 if self.replays >= 16 else self._in_vain + 1
        self.replays = 0
        return self._in_vain >= 4


counter_lock = RLock()
"""Held while the counter of a generator advances, and by a graph from reading counters until it has advanced them, so
that threads never draw the same numbers. Use it as `graphs.counter_lock`, since a forked child replaces it."""


def _renew_lock() -> None:
    global counter_lock
    counter_lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)  # another thread of the parent may have held the lock

_rows: dict[int, Rows] = {}
"""The rows of each thread that captures a graph, by the identifier of the thread."""


def current_rows() -> Rows | None:
    """The rows for the graph that this thread captures, or None."""
    return _rows.get(get_ident()) if _rows else None


def join() -> None:
    """`Rows.join` of the graph that this thread captures."""
    rows = current_rows()
    if rows is not None:
        rows.join()


@contextlib.contextmanager
def taking_from(rows: Rows) -> Iterator[None]:
    """Within the `with`, steps in this thread take their numbers from `rows`."""
    thread, outer = get_ident(), current_rows()
    _rows[thread] = rows
    try:
        yield
    finally:
        if outer is None:
            del _rows[thread]
        else:
            _rows[thread] = outer
