"""The figures of an epoch and of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import gradflow as gf


@dataclass(frozen=True)
class Epoch:
    """The figures of an epoch. `str()` is one line. `seconds` and `samples_per_second` do not count in comparisons.

    epoch: its number, from 1. step: the number of optimizer steps so far.
    learning_rate: that of the last step, of the optimizer's first parameter group.
    train_loss, train_metrics: over the samples as they were trained on: each batch with the weights before its step,
        with dropout.
    validation_loss, validation_metrics: after the epoch, without dropout; None and {} without validation.
    stale: the number of epochs since the best; 0 for the best so far.
    seconds: the time of the epoch with its validation. samples_per_second: training samples in this time.
    skipped: how many of its steps changed nothing, because gradients overflowed float16; 0 unless `autocast` is that.

    >>> import gradflow as gf
    >>> from gradflow.data import Batches
    >>> from gradflow.training import Trainer
    >>> model = gf.nn.Linear(1, 1)
    >>> batches = Batches([[1.0], [2.0], [3.0]], [[2.0], [4.0], [6.0]], batch_size=1)
    >>> trainer = Trainer(model, gf.mse_loss, gf.optim.SGD(model.parameters(), lr=0.1), batches)
    >>> first, *_, last = trainer.epochs(20)
    >>> last.epoch, last.step, last.train_loss < first.train_loss
    (20, 60, True)
    """

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    train_metrics: dict[str, float]
    validation_loss: float | None
    validation_metrics: dict[str, float]
    stale: int
    seconds: float = field(compare=False)
    samples_per_second: float = field(compare=False)
    skipped: int = 0

    def figure(self, name: str) -> float:
        """Return "loss" or a metric by its name: of the validation if there is one, else of the training."""
        if self.validation_loss is None:
            return self.train_loss if name == "loss" else self.train_metrics[name]
        return self.validation_loss if name == "loss" else self.validation_metrics[name]

    def __str__(self) -> str:
        parts = [f"epoch {self.epoch}: {_figures(self.train_loss, self.train_metrics)}"]
        if self.validation_loss is not None:
            parts.append(f"validation {_figures(self.validation_loss, self.validation_metrics)}")
        parts.append(f"rate {self.learning_rate:.3g}")
        parts.append(f"{self.samples_per_second:,.0f} samples/s")
        if self.skipped:
            parts.append(f"{self.skipped} step{'s' * (self.skipped > 1)} skipped")
        parts.append(f"stale {self.stale}" if self.stale else "best")
        return "; ".join(parts)


def best_of(history: Sequence[Epoch]) -> Epoch | None:
    """Return the epoch of a history whose weights are kept: the last that was the best so far; None if none was."""
    return next((epoch for epoch in reversed(history) if epoch.stale == 0), None)


def _figures(loss: float, metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in {"loss": loss, **metrics}.items())


class Step(NamedTuple):
    """An optimizer step.

    step: its number, from 1. epoch: the number of its epoch, from 1.
    loss: the loss that it minimized, a tensor of shape () on the device; reading it waits for the device.
    finished: the figures of the epoch if this was its last step, else None.

    >>> import gradflow as gf
    >>> from gradflow.data import Batches
    >>> from gradflow.training import Trainer
    >>> model = gf.nn.Linear(1, 1)
    >>> batches = Batches([[1.0], [2.0]], [[2.0], [4.0]], batch_size=1)
    >>> trainer = Trainer(model, gf.mse_loss, gf.optim.SGD(model.parameters(), lr=0.1), batches)
    >>> [(step.step, step.epoch, step.finished is None) for step in trainer.steps(3)]
    [(1, 1, True), (2, 1, False), (3, 2, True)]
    """

    step: int
    epoch: int
    loss: gf.Tensor
    finished: Epoch | None


class NonFiniteLossError(ArithmeticError):
    """The loss became infinite or NaN: training has diverged.

    >>> import gradflow as gf
    >>> from gradflow.data import Batches
    >>> from gradflow.training import NonFiniteLossError, Trainer
    >>> model = gf.nn.Linear(1, 1)
    >>> batches = Batches([[1.0], [2.0]], [[1.0], [2.0]], batch_size=1)
    >>> optimizer = gf.optim.SGD(model.parameters())
    >>> trainer = Trainer(model, lambda output, target: gf.mse_loss(output, target) * float("nan"), optimizer, batches)
    >>> try:
    ...     list(trainer.epochs(9))
    ... except NonFiniteLossError:
    ...     print(f"diverged in epoch {trainer.epoch + 1}")
    diverged in epoch 1
    """
