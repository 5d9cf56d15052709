"""What the Trainer costs: `python -m benchmarks.trainer [ROUNDS]`, on the CPU.

An epoch of a captured `Trainer` without metrics is compared with a bare loop, `for x, y in batches: step(x, y)`, of the
same captured step over the same batches. The two are interleaved, and of each the median counts. Before, the losses of
both are compared: they must be equal bit for bit. The exit status is 1 if a ratio is above its bound. A save of the
trainer's state is timed, too.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradflow as gf
from benchmarks.peers.options import Parser, count
from benchmarks.timing import interleaved
from benchmarks.workloads import MEDIUM, SMALL, TINY, GradflowTraining, Workload
from gradflow.data import Batches
from gradflow.training import Trainer

BOUNDS = {"tiny": 1.2, "small": 1.05, "medium": 1.05}
"""The most that an epoch of the Trainer may take, relative to the bare loop."""
EPOCH = 128
"""The batches of an epoch."""


class Both:
    """A workload, trained twice from the same weights: by a Trainer, and by a bare loop."""

    def __init__(self, workload: Workload) -> None:
        self.trained, self.looped = GradflowTraining(workload, "cpu"), GradflowTraining(workload, "cpu")
        self.trainer = Trainer(*self._parts(self.trained))
        self.epochs = self.trainer.epochs(10**9)
        model, loss, optimizer, self.batches = self._parts(self.looped)

        def step(x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            optimizer.step()
            return value

        self.step: Callable[..., gf.Tensor] = gf.capture(step)

    def _parts(self, training: GradflowTraining) -> tuple[Any, ...]:
        batches = Batches(training.inputs, training.targets, training.workload.batch, gf.Generator(0))
        return training.model, training.loss_function, training.optimizer, batches

    def loop(self) -> None:
        """Train for an epoch; nothing is kept."""
        for x, y in self.batches:
            self.step(x, y)

    def check_equal(self) -> None:
        """Raise AssertionError unless the mean losses of two epochs are equal."""
        for _ in range(2):
            losses = [(self.step(x, y).item(), len(x)) for x, y in self.batches]
            expected = sum(loss * n for loss, n in losses) / sum(n for _, n in losses)
            found = next(self.epochs).train_loss
            assert found == expected, f"the Trainer's loss is {found}, that of the bare loop {expected}"


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = Parser(prog="python -m benchmarks.trainer", description="Time an epoch of the Trainer and of a bare loop.")
    parser.add_argument("rounds", nargs="?", type=count, default=30, help="epochs of each (default: 30)")
    rounds = parser.parse_args(arguments).rounds
    failed = False
    for workload in (replace(each, batches=EPOCH) for each in (TINY, SMALL, MEDIUM)):
        both = Both(workload)
        both.check_equal()
        times = interleaved({"trainer": lambda b=both: next(b.epochs), "loop": both.loop}, rounds)
        ratio, bound = times["trainer"] / times["loop"], BOUNDS[workload.name]
        failed |= ratio > bound
        steps = [f"{name} {1e6 * seconds / EPOCH:.1f} µs" for name, seconds in times.items()]
        print(f"{workload.size}, batch {workload.batch}: {', '.join(steps)} a step; {ratio:.3f} (at most {bound})")
        size, seconds = saved(both.trainer)
        print(f"  a save of {size / 1e6:.2f} MB: {1e3 * seconds:.1f} ms; an epoch: {1e3 * times['trainer']:.0f} ms")
    return int(failed)


def saved(trainer: Trainer) -> tuple[int, float]:
    """Return the bytes of a saved state, and the median seconds of a save; the first one also hashes the data."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        for _ in range(6):
            start = time.perf_counter()
            trainer.save(path)
            times.append(time.perf_counter() - start)
        return path.stat().st_size, statistics.median(times[1:])


if __name__ == "__main__":
    sys.exit(main())
