"""The number of threads of the CPU backend, and work on long arrays divided among them."""

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
"""The smallest number of elements for which threads are tried; they are started for each call and end with it."""
_PART = 1 << 18
"""The elements that a thread takes at a time, so that a slower thread takes fewer in total."""
_TRIALS = 3
"""How often each way, with and without threads, is measured."""
_trials: dict[tuple[Any, int], tuple[list[float], list[float]]] = {}
"""The seconds measured for each function and array length, without and with threads."""

_count = 0


def count() -> int:
    """The number of threads to use: that of `set_count`, else OMP_NUM_THREADS, but at most the available cores."""
    global _count
    if not _count:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        asked = os.environ.get("OMP_NUM_THREADS", "")
        _count = min(cores, int(asked)) if asked.isdecimal() and int(asked) else cores
    return _count


def set_count(n: int) -> None:
    """Use n threads from now on, and measure again whether they are faster."""
    global _count
    _count = n
    _trials.clear()


def share_out(work: Callable[..., Any], arrays: Sequence[Any], options: Sequence[Any]) -> None:
    """Call `work(*arrays, *options)`, on long arrays in parts on several threads, flushing subnormal numbers to zero.

    work: a function that changes its arrays in place. options: its other arguments.
    arrays: flat arrays of one length, or None.

    Threads are not always faster: those of OpenBLAS spin for up to 0.1 s after a product, and one core may already
    saturate the memory bandwidth. So the first calls for each length measure both ways, and later calls take the faster
    one. An error in a part is raised after all threads have finished.
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
        # a copy of the context carries the settings of numpy.errstate
        thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="gradflow")
        try:
            thread.start()
        except RuntimeError:  # no more threads can be started, or the interpreter is shutting down
            break
        threads.append(thread)
    run()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
