"""How many threads the CPU backend may use, and work on long arrays shared out among them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from gradflow_numpy.subnormals import flushed

SHARE = 1 << 18
"""The least elements of an array that are worth a thread: waking one takes about as long as a pass over them."""

_count = 0
_pool: ThreadPoolExecutor | None = None


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
    global _count, _pool
    _count = n
    if _pool is not None:
        _pool.shutdown()
        _pool = None


def share_out(work: Callable[..., Any], arrays: Sequence[Any], options: Sequence[Any]) -> None:
    """Call `work(*arrays, *options)` in parts, on as many threads as pays; flat arrays of one length, or None.

    Subnormal numbers count as zero meanwhile.
    """
    global _pool
    size = arrays[0].size
    if size < 2 * SHARE or count() == 1:
        flushed(work, *arrays, *options)
        return
    n = min(count(), size // SHARE)
    if _pool is None:
        _pool = ThreadPoolExecutor(count() - 1, "gradflow")
    step = -(-size // n)
    parts = [[None if a is None else a[i : i + step] for a in arrays] for i in range(0, size, step)]
    others: list[Future[Any]] = [_pool.submit(flushed, work, *part, *options) for part in parts[1:]]
    flushed(work, *parts[0], *options)
    for other in others:
        other.result()
