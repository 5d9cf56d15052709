"""The step of several processes: strong and weak scaling, the share of communication, and what overlap gains.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 mpiexec -n 2 python -m benchmarks.ranks

Each rank has one BLAS thread. Rank 0 prints, for each width of the hidden layers and each batch: the milliseconds of a
step whose sums begin during the backward pass, and of one whose sums begin after it, and the share of the first that
is spent on starting and waiting for sums. They are medians over epochs, which take turns.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from typing import Any

import numpy as np

import gradflow as gf
from gradflow.data import Batches
from gradflow.distributed.mpi import MPICommunicator
from gradflow.distributed.reduction import GradientReduction
from gradflow.training import Trainer

EPOCHS = 24
STEPS = 12
WIDTHS = (128, 512, 1024)
BATCH = 256


class Clock:
    """The seconds that are spent in the functions of an object's class that it measures."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def measure(self, cls: type, name: str) -> None:
        function = getattr(cls, name)

        def measured(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - began

        setattr(cls, name, measured)


def trainer_of(world: gf.distributed.Communicator, width: int, batch: int) -> Trainer:
    model = gf.nn.MLP([784, width, width, 10], generator=gf.Generator(0))
    x = np.random.default_rng(0).normal(size=(STEPS * batch, 784)).astype("float32")
    train = Batches(x, np.arange(STEPS * batch) % 10, batch, gf.Generator(1))
    optimizer = gf.optim.Adam(model.parameters())
    return Trainer(model, gf.cross_entropy, optimizer, train, communicator=world)


def measure(world: gf.distributed.Communicator, width: int, batch: int, clock: Clock) -> tuple[float, float, float]:
    """The milliseconds of a step with overlap and without, and the share of communication of the first."""
    overlapping = trainer_of(world, width, batch)
    plain = GradientReduction.during_backward
    GradientReduction.during_backward = lambda self: contextlib.nullcontext()  # type: ignore[assignment]
    behind = trainer_of(world, width, batch)
    [*behind.epochs(2)]  # recorded without overlap
    GradientReduction.during_backward = plain  # type: ignore[method-assign]
    [*overlapping.epochs(2)]
    seconds: dict[Trainer, list[float]] = {overlapping: [], behind: []}
    shares = []
    for epoch in range(3, EPOCHS + 3):
        for trainer in seconds:
            world.barrier()
            clock.seconds, began = 0.0, time.perf_counter()
            [*trainer.epochs(epoch)]
            seconds[trainer].append(time.perf_counter() - began)
            if trainer is overlapping:
                shares.append(clock.seconds / seconds[trainer][-1])
    with_overlap, without = (1000 * statistics.median(each) / STEPS for each in seconds.values())
    return with_overlap, without, statistics.median(shares)


def main() -> None:
    world = gf.distributed.world()
    clock = Clock()
    clock.measure(MPICommunicator, "wait")
    clock.measure(MPICommunicator, "start_sum")
    if not world.rank:
        print(f"{world.size} ranks, {os.cpu_count()} cores, NumPy {np.__version__}")
        print("width  batch  step ms  without overlap ms  communication")
    for width in WIDTHS:
        for batch in sorted({BATCH, BATCH * world.size}):
            overlapping, behind, share = measure(world, width, batch, clock)
            if not world.rank:
                print(f"{width:5}  {batch:5}  {overlapping:7.2f}  {behind:18.2f}  {share:12.1%}", flush=True)


if __name__ == "__main__":
    main()
