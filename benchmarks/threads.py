"""Check that a step uses only its threads: `python -m benchmarks.threads [SECONDS]`, with Adam, on the CPU.

For each number of threads up to the number of cores, print the time of a step, the processor seconds per second (which
should be at most the number of threads), and the threads of the process.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import gradflow as gf
from benchmarks.machine import blas
from benchmarks.peers.options import Parser, cores, duration
from benchmarks.peers.ours import Gradflow
from benchmarks.peers.worker import rest
from benchmarks.workloads import LARGE, MEDIUM, SMALL, Workload
from gradflow.text import three_digits


def alive() -> int | None:
    """Return the number of threads of this process; None if unknown."""
    tasks = Path("/proc/self/task")
    return len(os.listdir(tasks)) if tasks.exists() else None


def measure(workload: Workload, seconds: float) -> tuple[float, float]:
    """Return the median seconds of a step, and the processor seconds per second."""
    training = Gradflow(workload)
    for batch in training.batches:
        training.step(*batch)
    times = []
    start, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds or len(times) < 5:
        for batch in training.batches:
            before = time.perf_counter()
            training.step(*batch)
            times.append(time.perf_counter() - before)
    return statistics.median(times), (time.process_time() - used) / (time.perf_counter() - start)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; return status 1 if a step uses more processor time than its threads can."""
    parser = Parser(prog="python -m benchmarks.threads", description="Time a step by its number of threads.")
    parser.add_argument("seconds", nargs="?", type=duration, default=2.0, help="seconds per row (default: 2)")
    seconds = parser.parse_args(arguments).seconds
    print(f"{gf.get_backend('cpu').describe()}, {blas()}")
    columns = ("perceptron", "threads", "µs per step", "processor seconds per second", "threads of the process")
    print(f"| {' | '.join(columns)} |\n|---|--:|--:|--:|--:|")
    exceeded = False
    for workload in (SMALL, MEDIUM, LARGE):
        for n in range(1, len(cores()) + 1):
            gf.set_num_threads(n)
            rest()
            step, used = measure(replace(workload, optimizer="Adam", batches=4), seconds)
            print(f"| {workload.size} | {n} | {three_digits(1e6 * step)} | {used:.2f} | {alive()} |", flush=True)
            exceeded |= used > n + 0.05
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
