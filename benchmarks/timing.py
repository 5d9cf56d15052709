"""Measurements: warm up, then time a call together with the wait for the device.

A GPU call only queues work: timed without the wait, it would show the time of queueing. So the wait is part of the
timed call, on every device; it costs 0.1 µs if there is nothing to wait for.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

MAX_ROUNDS = 10_000


def measure(
    benchmark: Any,
    function: Callable[..., Any],
    synchronize: Callable[[], Any],
    setup: Callable[[], tuple[Any, ...]] | None = None,
    max_time: float = 1.0,
    min_rounds: int = 5,
    steps: int = 1,
) -> Any:
    """Time `function` with pytest-benchmark's fixture and return its last result.

    benchmark: the fixture. With timing disabled, the function runs once.
    synchronize: waits for the device.
    setup: runs untimed before each call and returns its arguments (default: no arguments).
    max_time, min_rounds: seconds and rounds to measure for, as pytest-benchmark takes them.
    steps: the steps that one call takes; the recorded times are divided by it (default 1).
    """

    def timed(*arguments: Any) -> Any:
        result = function(*arguments)
        synchronize()
        return result

    def prepared() -> tuple[tuple[Any, ...], dict[str, Any]]:
        arguments = setup() if setup else ()
        synchronize()
        return arguments, {}

    if not benchmark.enabled:
        return benchmark.pedantic(timed, setup=prepared)
    elapsed = 0.0
    for _ in range(2):  # the first call compiles kernels and fills memory pools; the second is typical
        start = time.perf_counter()
        timed(*prepared()[0])
        elapsed = time.perf_counter() - start
    if setup is None:
        result = benchmark(timed)
    else:
        rounds = max(min_rounds, min(MAX_ROUNDS, round(max_time / elapsed)))
        result = benchmark.pedantic(timed, setup=prepared, rounds=rounds)
    times = benchmark.stats.stats.data
    times[:] = [seconds / steps for seconds in times]
    return result


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
