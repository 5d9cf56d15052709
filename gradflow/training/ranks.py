"""What makes the trainers of several ranks one: equal data, settings, weights and random numbers."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import gradflow as gf
from gradflow.distributed import Communicator
from gradflow.training.checks import generators_of
from gradflow.training.objective import in_words
from gradflow.training.trainer_state import check_same, run_of

if TYPE_CHECKING:
    from gradflow.training.trainer import Trainer


def join(trainer: Trainer, communicator: Communicator) -> None:
    """Give all ranks the weights of rank 0. Raises ValueError, on all ranks, if one has other data or settings."""
    check_alike(communicator, {**run_of(trainer), **_beginning(trainer)})
    for x in trainer.model._state().values():
        values = x.backend.copy(x.array)
        communicator.broadcast(values)
        x._assign(values)


def _beginning(trainer: Trainer) -> dict[str, Any]:
    """What ranks have in common when they begin, besides what a saved state has."""
    groups = trainer.optimizer.param_groups
    return {
        "version of gradflow": gf.__version__,
        "hyperparameters": [
            {name: in_words(repr(value)) for name, value in group.items() if name != "params"} for group in groups
        ],
        "trainable": [name for name, p in trainer.model.named_parameters() if p.requires_grad],
        "steps of the optimizer": trainer.optimizer.steps,
        "random generators": [[g.key, g.counter] for g in generators_of(trainer.model, trainer.train)],
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


def check_epoch(trainer: Trainer, communicator: Communicator) -> None:
    """Raise RuntimeError, on all ranks, if random generators or buffers of the model differ after an epoch."""
    found = {
        "the state of a random generator": [
            f"{g.key}, {g.counter}" for g in generators_of(trainer.model, trainer.train)
        ],
        "the checksum of buffer": {
            name: zlib.crc32(x.backend.to_host(x.array).tobytes()) for name, x in trainer.model.named_buffers()
        },
    }
    try:
        check_alike(communicator, found)
    except ValueError as error:
        raise RuntimeError(
            f"the ranks have gone apart in this epoch: {error}; in a model of several ranks, only dropout draws by the "
            "place in the batch, and buffers may not depend on the samples of a rank"
        ) from None
