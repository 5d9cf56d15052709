"""One measurement: warm up, then time the call together with the wait for the device.

A GPU only queues what it is told to do. Timed without the wait, a call shows how long the queueing took; so the wait
stands inside the timed call, on every device (where there is nothing to wait for, it costs a tenth of a microsecond).
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
    """Time `function`, of so many `steps`, with pytest-benchmark's fixture; returns the function's last result.

    The times are those of one step.

    `setup`, if given, runs before each call, untimed, and makes the call's arguments. With timing disabled, the
    function runs once.
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
    for _ in range(2):  # the first call compiles kernels and fills pools; the second one is typical
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
    """The median seconds of each function, called in turn, so that all of them meet the machine in the same moods.

    `prepare` has what to call, untimed, before each call of a function of that name. As in `timeit`, the garbage
    collector waits meanwhile: what one library leaves behind is not to be paid for in the time of another.
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
