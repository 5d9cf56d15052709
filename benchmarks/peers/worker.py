"""The process of one row: `python -m benchmarks.peers.worker MODULE:CLASS [CHECKOUT]`.

With a checkout, it measures the gradflow that is there, by the code of this folder.

It reads commands from standard input, one JSON list per line, and answers each with one line: `{"result": ...}`, or
`{"left_out": reason}` if the row cannot be measured here.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.peers.peer import Peer
    from benchmarks.workloads import Workload

CHECKED_STEPS = 5
"""The number of first steps whose losses are compared."""
WARM_UP, MAX_STEPS = 3, 1000
PAUSE = 0.02


def pin(cores: list[int]) -> None:
    """Compute on these cores only. It comes before the first import of a library: threads inherit it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def first_losses(peer: Peer) -> list[float] | None:
    """Return the losses of the first steps; None if the row does not train."""
    batches = itertools.islice(itertools.cycle(peer.batches), CHECKED_STEPS)
    return [peer.step(*batch).item() for batch in batches] if peer.trains else None


def turn(peer: Peer, seconds: float) -> float:
    """Return the median time of a step: see `times`."""
    return statistics.median(times(peer, seconds))


def times(peer: Peer, seconds: float) -> list[float]:
    """Return the times of steps, starting from the initial weights. Garbage collection is off, as in timeit.

    If a step takes longer than these seconds, one step warms up and one is timed.
    """
    batches = itertools.cycle(peer.batches)
    found: list[float] = []
    gc.collect()
    gc.disable()
    peer.restore()
    end = time.perf_counter() + seconds
    for _ in range(WARM_UP):
        peer.step(*next(batches))
        if time.perf_counter() > end:
            break
    end = time.perf_counter() + seconds
    while not found or (len(found) < MAX_STEPS and time.perf_counter() < end):
        batch = next(batches)
        start = time.perf_counter()
        peer.step(*batch)
        found.append(time.perf_counter() - start)
    gc.enable()
    rest()
    return found


def rest() -> None:
    """Sleep until the threads of this process sleep too: those of a BLAS spin for 0.1 s and longer."""
    for _ in range(50):
        before = time.process_time()
        time.sleep(PAUSE)
        if time.process_time() - before < PAUSE / 10:
            return


def make(where: str, workload: Workload) -> Peer:
    """Return the row's training of a workload."""
    module, name = where.split(":")
    return getattr(importlib.import_module(module), name)(workload)


def main(where: str, checkout: str | None = None) -> None:
    """Answer commands until the input ends. What libraries print goes to stderr, since stdout has the answers."""
    if checkout:
        sys.path[:0] = [checkout, str(Path(checkout, "backends"))]  # `benchmarks`, imported already, is still this one
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # stderr is not buffered until the end
    peer: Any = None
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        answer: dict[str, Any] = {}
        if command == "pin":
            answer["result"] = pin(*arguments)
        elif command == "blas":
            from benchmarks.machine import blas

            answer["result"] = blas()
        elif command == "facts":
            try:
                answer["result"] = peer.facts()
            except Exception as error:  # the times are there already
                answer["result"] = {"unknown": f"{type(error).__name__}: {error}"}
        elif command == "times":
            answer["result"] = times(peer, *arguments)
        elif command == "turn":
            answer["result"] = getattr(peer, "turn", partial(turn, peer))(*arguments)
        else:
            from benchmarks.peers.memory import watch
            from benchmarks.peers.peer import UnavailableError
            from benchmarks.workloads import Workload

            peer = None  # free its memory before the next one allocates
            workload = Workload(**{**arguments[0], "layers": tuple(arguments[0]["layers"])})
            try:
                if command == "prepare":
                    peer = make(where, workload)
                    answer["result"] = first_losses(peer)
                else:
                    answer["result"] = watch(partial(make, where), workload)
            except UnavailableError as reason:
                answer["left_out"] = str(reason)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
