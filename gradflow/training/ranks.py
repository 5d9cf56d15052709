"""What makes the trainers of several ranks one: equal data, settings, weights and random numbers."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

import gradflow as gf
from gradflow.distributed import Communicator
from gradflow.training.checks import generators_of
from gradflow.training.objective import in_words
from gradflow.training.trainer_state import check_same, run_of

if TYPE_CHECKING:
    from gradflow.training.trainer import Trainer


def join(trainer: Trainer, communicator: Communicator) -> None:
    """Give all ranks the weights of rank 0. Raises ValueError, on all ranks, if one has other data or settings."""
    check_alike(communicator, {"version of gradflow": gf.__version__, **run_of(trainer), **_standing(trainer)})
    for x in trainer.model._state().values():
        values = x.backend.copy(x.array)
        communicator.broadcast(values)
        x._assign(values)


def _standing(trainer: Trainer) -> dict[str, Any]:
    """What ranks have in common besides their weights."""
    groups, generators = trainer.optimizer.param_groups, generators_of(trainer.model, trainer.train)
    return {
        "steps of the optimizer": trainer.optimizer.steps,
        "hyperparameter": {
            f"{name} of group {i}": in_words(repr(value))
            for i, group in enumerate(groups)
            for name, value in group.items()
            if name != "params"
        },
        "trainable": [name for name, p in trainer.model.named_parameters() if p.requires_grad],
        "random generator": {str(i): f"{g.key}, {g.counter}" for i, g in enumerate(generators)},
    }


def check_alike(communicator: Communicator, own: dict[str, Any]) -> None:
    """Raise ValueError, on all ranks, for the first rank whose values differ from those of rank 0."""
    first = json.loads(communicator.text_of(json.dumps(own)))
    error = ""
    try:
        check_same(first, json.loads(json.dumps(own)), f"{{}} is {{}} on rank 0, but {{}} on rank {communicator.rank}")
    except ValueError as difference:
        error = str(difference)
    error = communicator.first_error(error)
    if error:
        raise ValueError(error)


def check_together(trainer: Trainer, communicator: Communicator) -> None:
    """Raise RuntimeError, on all ranks, unless all stand at the same step, with equal weights and buffers."""
    try:
        # first, since a rank that waits for a GPU misses no other
        check_alike(communicator, {"step": trainer.step, **_standing(trainer)})
        check_alike(communicator, {"checksum": {name: _checksum(x) for name, x in trainer.model._state().items()}})
    except ValueError as error:
        raise RuntimeError(
            f"the ranks have gone apart: {error}; all ranks load the same state and change the same hyperparameters; "
            "of what a model draws, only dropout goes by the place in the batch, and of buffers, only those of "
            "nn.BatchNorm1d may depend on samples"
        ) from None


def _checksum(x: gf.Tensor) -> int:
    return zlib.crc32(x.backend.to_host(x.array).reshape(-1).view(np.uint8).data)
