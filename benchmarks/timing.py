"""Times of functions that are called in turn, so that all run under the same load of the machine."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any


def interleaved(
    rows: dict[str, Callable[[], Any]], rounds: int, prepare: dict[str, Callable[[], Any]] | None = None
) -> dict[str, float]:
    """Return the median seconds of each function; they are called in turn, so all run under the same machine load.

    `prepare` maps names to functions that run untimed before each call of the function of that name. As in `timeit`,
    garbage collection is off while a function runs, so no library pays for the garbage of another.
    """
    times: dict[str, list[float]] = {name: [] for name in rows}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds + 2):
            for name, function in rows.items():
                if prepare and name in prepare:
                    prepare[name]()
                start = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - start)
            gc.collect(1)
    finally:
        if collecting:
            gc.enable()
    return {name: statistics.median(each[2:]) for name, each in times.items()}  # the first two warm up
