"""The interface of a row: a perceptron that is trained step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class UnavailableError(Exception):
    """A row cannot be measured here; the message says why, on one line."""


class Peer:
    """The training of a workload by one library, from its initial weights. `batches` has the arguments of `step`."""

    trains = True
    """Whether `step` trains; then its losses are compared with gradflow's."""
    batches: Sequence[tuple[Any, ...]]

    def step(self, *batch: Any) -> Any:
        """Take and finish one training step on a batch; return the loss before it, which has a method `item`."""
        raise NotImplementedError

    def restore(self) -> None:
        """Restore the initial weights and optimizer state."""
        raise NotImplementedError
