"""What the rows have in common: a perceptron in training, driven step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class UnavailableError(Exception):
    """Why a row cannot be measured here, in one line."""


class Peer:
    """The training of a workload by one library, at its initial weights. `batches` has the arguments of `step`."""

    trains = True
    """Whether `step` trains, so that its losses are gradflow's."""
    batches: Sequence[tuple[Any, ...]]

    def step(self, *batch: Any) -> Any:
        """One finished training step on a batch; the loss before it, which has PyTorch's method `item`."""
        raise NotImplementedError

    def restore(self) -> None:
        """Go back to the initial weights and the optimizer's initial state."""
        raise NotImplementedError
