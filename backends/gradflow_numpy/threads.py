"""How many threads the CPU backend may use, and work on long arrays shared out among them."""

from __future__ import annotations

import contextvars
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from gradflow_numpy.subnormals import flushed

SHARE = 1 << 21
"""The least elements of arrays for which threads are tried; they are started for a call and end with it."""
_PART = 1 << 18
"""The elements that a thread takes at a time: one that is slower takes fewer."""
_TRIALS = 3
"""How often each way is tried."""
_trials: dict[tuple[Any, int], tuple[list[float], list[float]]] = {}
"""For each kind of work and length of arrays the seconds that it took, alone and on threads."""

_count = 0


def count() -> int:
    """The threads that may be used: as many as OMP_NUM_THREADS says or cores may be used, unless `set_count` said."""
    global _count
    if not _count:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        asked = os.environ.get("OMP_NUM_THREADS", "")
        _count = min(cores, int(asked)) if asked.isdecimal() and int(asked) else cores
    return _count


def set_count(n: int) -> None:
    """Use n threads from now on."""
    global _count
    _count = n
    _trials.clear()


def share_out(work: Callable[..., Any], arrays: Sequence[Any], options: Sequence[Any]) -> None:
    """Call `work(*arrays, *options)`, on long arrays in parts on threads; flat arrays of one length, or None.

    Whether threads pay is measured: those of OpenBLAS wait in a loop for up to 0.1 s after a product, and two cores
    may share a memory that one can use up. The first calls with arrays so long try both ways, all later ones take the
    faster. Subnormal numbers count as zero meanwhile. An error of a part is raised when all have ended.
    """
    size = arrays[0].size
    if size < SHARE or count() == 1:
        flushed(work, *arrays, *options)
        return
    trials = _trials.setdefault((work, size), ([], []))
    alone, shared = trials
    on_threads = len(shared) < len(alone) or (len(shared) == _TRIALS and min(shared) < min(alone))
    start = perf_counter()
    if on_threads:
        _run_on_threads(work, arrays, options)
    else:
        flushed(work, *arrays, *options)
    if len(shared) < _TRIALS:
        trials[on_threads].append(perf_counter() - start)


def _run_on_threads(work: Callable[..., Any], arrays: Sequence[Any], options: Sequence[Any]) -> None:
    size = arrays[0].size
    take = itertools.count(0, _PART).__next__
    errors: list[BaseException] = []

    def run() -> None:
        try:
            while (start := take()) < size:
                part = slice(start, start + _PART)
                flushed(work, *[None if a is None else a[part] for a in arrays], *options)
        except BaseException as error:
            errors.append(error)

    threads = []
    for _ in range(min(count(), -(-size // _PART)) - 1):
        # in a copy of the context: it has what numpy.errstate says
        thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="gradflow")
        try:
            thread.start()
        except RuntimeError:  # none can be started: there are too many, or the interpreter is about to end
            break
        threads.append(thread)
    run()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
