"""How many threads the CPU backend may use, and work on long arrays shared out among them."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from gradflow_numpy.subnormals import flushed

SHARE = 1 << 21
"""The least elements of an array that are worth a thread, which is started for them and ends with them."""

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


def share_out(work: Callable[..., Any], arrays: Sequence[Any], options: Sequence[Any]) -> None:
    """Call `work(*arrays, *options)` in parts, on as many threads as pays; flat arrays of one length, or None.

    Subnormal numbers count as zero meanwhile. An error of a part is raised when all have ended.
    """
    size = arrays[0].size
    if size < 2 * SHARE or count() == 1:
        flushed(work, *arrays, *options)
        return
    step = -(-size // min(count(), size // SHARE))
    parts = [[None if a is None else a[i : i + step] for a in arrays] for i in range(0, size, step)]
    errors: list[BaseException] = []

    def run(part: Sequence[Any]) -> None:
        try:
            flushed(work, *part, *options)
        except BaseException as error:
            errors.append(error)

    threads = []
    for part in parts[1:]:
        # in a copy of the context: it has what numpy.errstate says
        thread = threading.Thread(target=contextvars.copy_context().run, args=(run, part), name="gradflow")
        try:
            thread.start()
        except RuntimeError:  # none can be started: there are too many, or the interpreter is about to end
            run(part)
        else:
            threads.append(thread)
    run(parts[0])
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
