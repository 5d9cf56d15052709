"""Where the time of a training step goes: `python -m benchmarks.step_breakdown [SECONDS]`, with Adam, on the CPU.

The parts of a step are timed one by one inside whole steps, so each finds the caches as the part before left them. The
matrix products of the step alone, by NumPy's BLAS, are a lower bound on its time. The rest is elementwise work and
Python. `GRADFLOW_FAST=0` or `1` selects the kernels.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace

import gradflow as gf
from benchmarks.machine import blas, threads, versions
from benchmarks.peers.gemms import NumpyGemms
from benchmarks.peers.options import Parser, duration
from benchmarks.peers.ours import Captured, Gradflow
from benchmarks.peers.tables import markdown
from benchmarks.peers.worker import turn
from benchmarks.workloads import LARGE, WORKLOADS, Workload
from gradflow.text import three_digits

PARTS = ("zero_grad", "forward", "loss", "backward", "optimizer")


def parts(workload: Workload, seconds: float) -> dict[str, float]:
    """Return the median seconds of each part, the whole step, its products alone, and the captured step."""
    ours = Gradflow(workload)
    found: dict[str, list[float]] = {name: [] for name in (*PARTS, "step")}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found["step"]) < 5:
        for x, y in ours.batches:
            marks = [time.perf_counter()]
            ours.optimizer.zero_grad()
            marks.append(time.perf_counter())
            outputs = ours.model(x)
            marks.append(time.perf_counter())
            loss = ours.loss(outputs, y)
            marks.append(time.perf_counter())
            loss.backward()
            marks.append(time.perf_counter())
            ours.optimizer.step()
            marks.append(time.perf_counter())
            for name, start, stop in zip(PARTS, marks, marks[1:], strict=False):
                found[name].append(stop - start)
            found["step"].append(marks[-1] - marks[0])
    medians = {name: statistics.median(each[len(each) // 4 :]) for name, each in found.items()}
    return {
        **medians,
        "products alone": turn(NumpyGemms(workload), seconds),
        "captured step": turn(Captured(workload), seconds),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = Parser(prog="python -m benchmarks.step_breakdown", description="Time the parts of a training step.")
    parser.add_argument("seconds", nargs="?", type=duration, default=1.0, help="seconds for each column (default: 1)")
    seconds = parser.parse_args(arguments).seconds
    described = ", ".join(f"{name} {number}" for name, number in versions().items() if name in ("gradflow", "numpy"))
    print(f"{described}, {blas()} - {gf.get_backend('cpu').describe()}, {threads()} threads, float32")
    workloads = [replace(each, optimizer="Adam", batches=4) for each in (*WORKLOADS, LARGE)]
    found = {each.letter: parts(each, seconds) for each in workloads}
    lines = {name: [three_digits(1e6 * each[name]) for each in found.values()] for name in next(iter(found.values()))}
    print("\n".join(f"{each.letter}: {each.size}, batch {each.batch}" for each in workloads))
    print(markdown("Adam, µs", list(found), lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
