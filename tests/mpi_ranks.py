"""A small training, and what `test_distributed_mpi.py` runs under `mpiexec`: checks of so many ranks, or a fault."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import gradflow as gf
from gradflow import nn
from gradflow.data import Batches
from gradflow.distributed.world import World
from gradflow.training import Trainer
from tests.devices import replays

X = np.random.default_rng(0).normal(size=(37, 5))
LABELS = np.random.default_rng(1).integers(0, 3, 37)
STEPS = 20


def trainer_of(communicator: Any, dtype: str = "float64", **options: Any) -> Trainer:
    """A trainer with 4 batches in an epoch, the last of 7 samples, and dropout.

    norms: whether there are layers of batch norm, one of them without running statistics (default False).
    """
    g = gf.Generator(3)
    model = gf.nn.MLP([5, 16, 3], "tanh", dropout=0.3, generator=g, dtype=dtype)
    if options.pop("norms", False):
        norms = [nn.BatchNorm1d(16, dtype=dtype), nn.BatchNorm1d(3, track_running_stats=False, dtype=dtype)]
        model = nn.Sequential(*model[:1], norms[0], *model[1:], norms[1])
    train = Batches(X.astype(dtype), LABELS, options.pop("batch_size", 10), gf.Generator(1))
    validation = Batches(X[:9].astype(dtype), LABELS[:9], 5, shuffle=False)
    optimizer = gf.optim.AdamW(model.parameters(), lr=options.pop("lr", 0.01))
    options = {"metrics": ["accuracy"], **options}
    return Trainer(model, gf.cross_entropy, optimizer, train, validation, communicator=communicator, **options)


def trained(communicator: Any, **options: Any) -> tuple[list[float], list[Any], bytes]:
    """The losses of 20 steps, the figures of the epochs, and the bits of the weights."""
    trainer = trainer_of(communicator, **options)
    losses = [step.loss.item() for step in trainer.steps(STEPS)]
    figures = [
        [epoch.train_loss, *epoch.train_metrics.values(), epoch.validation_loss, *epoch.validation_metrics.values()]
        for epoch in trainer.history
    ]
    return losses, figures, bits(trainer)


def bits(trainer: Trainer) -> bytes:
    return b"".join(x.numpy().tobytes() for x in trainer.model.state_dict().values())


OPTIONS: list[dict[str, Any]] = [
    {},
    {"capture": False},
    {"norms": True},
    {"norms": True, "accumulate": 3},
    {"average": 0.9, "clip_norm": 0.1, "class_weight": "balanced"},
]


def check(world: World, folder: Path) -> None:
    """Train with several options, write what rank 0 found, and go on from a state of another number of ranks."""
    results = []
    for options in OPTIONS:
        losses, figures, weights = trained(world, **options)
        assert world.text_of(weights.hex()) == weights.hex(), "the weights of the ranks differ"
        assert world.text_of(json.dumps(losses)) == json.dumps(losses)
        results.append((losses, figures))
    half = world.all_reduce(gf.tensor([1.0, world.rank / 2], dtype="float16"), mean=True)
    assert half.tolist() == [1.0, (world.size - 1) / 4]
    trainer = trainer_of(world, clip_norm=0.5)
    step = trainer._step.whole
    if world.size == 4:
        trainer.load(folder / "state")
        assert trainer.step == 5
    for _ in trainer.steps(5 if world.size == 2 else 24):
        pass
    trainer.save(folder / "state")
    world.barrier()
    if world.size == 4:
        assert replays(step.status)
    if not world.rank:
        (folder / f"{world.size}.json").write_text(json.dumps({"results": results, "weights": bits(trainer).hex()}))


def fault(world: World, how: str, path: str) -> None:
    """Train, save the state after each step, and let a rank fail after step 20: the last, or the first to sleep."""
    x = np.ones((64, 4), np.float32)
    model = gf.nn.MLP([4, 8, 1], generator=gf.Generator(0))
    optimizer = gf.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, gf.mse_loss, optimizer, Batches(x, x[:, :1], 16), communicator=world)
    for step in trainer.steps(10**6):
        trainer.save(path)
        if step.step == 20 and world.rank == (0 if how == "sleep" else world.size - 1):
            stand_still(how)


def stand_still(how: str) -> None:
    """Raise an error, end the process, or stop its work."""
    if how == "raise":
        raise ValueError("a reason")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


if __name__ == "__main__":
    what = sys.argv[1]
    if what == "check":
        assert gf.distributed.world() is gf.distributed.world(30)
        check(gf.distributed.world(), Path(sys.argv[2]))
    else:
        fault(gf.distributed.world(timeout=2.0), what, sys.argv[2])
