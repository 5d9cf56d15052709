"""The training loop.

Within an epoch nothing is read from the device. Losses and counts are kept there, and one transfer at the end of the
epoch reads them all, so the host never waits for a GPU between two steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import gradflow as gf
from gradflow.data import Batches

Criterion = Callable[[gf.Tensor, gf.Tensor], gf.Tensor]
"""A loss of outputs and targets, averaged over the batch, such as `gradflow.cross_entropy` or `nn.MSELoss()`."""


class Epoch(NamedTuple):
    """The figures of an epoch. A score is the share of correct labels, or R² for targets that are not labels.

    `epoch` counts from 1, `step` is the number of optimizer steps so far, `learning_rate` that of the last step.
    The training figures are means over the batches as each was trained on, with dropout; the test figures are computed
    after the epoch, without dropout.
    """

    epoch: int
    step: int
    learning_rate: float
    train_loss: float
    train_score: float
    test_loss: float
    test_score: float


class NonFiniteLossError(ArithmeticError):
    """The loss became infinite or NaN: training has diverged."""


def fit(
    model: gf.nn.Module,
    criterion: Criterion,
    optimizer: gf.optim.Optimizer,
    train_batches: Batches,
    test_batches: Batches,
    epochs: int,
) -> Iterator[Epoch]:
    """Train the model in place and yield the figures of each epoch: `for epoch in fit(...): ...`.

    model, criterion, optimizer: what to train, its loss (see `Criterion`), and what updates its parameters.
    train_batches, test_batches: the batches of an epoch, and those that are evaluated after it.
    epochs: the number of epochs. You may leave the loop early.

    Raises NonFiniteLossError after an epoch with a non-finite loss, and ValueError for
    labels outside the model's outputs, since CUDA kernels do not check labels.
    """
    train_tally, test_tally = _Tally(train_batches.targets), _Tally(test_batches.targets)
    for epoch in range(1, epochs + 1):
        model.train()
        for inputs, targets in train_batches:
            learning_rate = optimizer.learning_rates[0]
            optimizer.zero_grad()
            outputs = model(inputs)
            train_tally.check(outputs, targets)
            loss = criterion(outputs, targets)
            loss.backward()
            optimizer.step()
            train_tally.add(loss, outputs, targets)
        _run_test(model, criterion, test_batches, test_tally)

        train_loss, train_score, test_loss, test_score = _read(train_tally, test_tally)
        if not (math.isfinite(train_loss) and math.isfinite(test_loss)):
            wrong = train_loss if not math.isfinite(train_loss) else test_loss
            raise NonFiniteLossError(f"the loss became {wrong} in epoch {epoch}; try a lower learning rate")
        yield Epoch(epoch, optimizer.steps, learning_rate, train_loss, train_score, test_loss, test_score)


def evaluate(model: gf.nn.Module, criterion: Criterion, batches: Batches) -> tuple[float, float]:
    """Return the mean loss of the model on all samples, and its score (see `Epoch`), in evaluation mode."""
    tally = _Tally(batches.targets)
    _run_test(model, criterion, batches, tally)
    loss, score = _read(tally)
    return loss, score


def _run_test(model: gf.nn.Module, criterion: Criterion, batches: Batches, tally: _Tally) -> None:
    model.eval()
    with gf.no_grad():
        for inputs, targets in batches:
            outputs = model(inputs)
            tally.check(outputs, targets)
            tally.add(criterion(outputs, targets), outputs, targets)


class _Tally:
    """The results of an epoch, kept on the device until its end: losses, and predicted labels or squared errors."""

    def __init__(self, all_targets: gf.Tensor) -> None:
        self.counts_labels = not all_targets.dtype.is_floating
        self.range = (0, 0)
        if all_targets.dtype.kind in ("int", "uint"):
            lowest, highest = gf.stack([gf.min(all_targets), gf.max(all_targets)]).tolist()
            self.range = lowest, highest
        self.variance = 1.0 if self.counts_labels else float(all_targets.var().item())
        self.start()

    def start(self) -> None:
        """Drop all results."""
        self.losses: list[gf.Tensor] = []
        self.samples: list[int] = []
        self.results: list[gf.Tensor] = []  # predicted labels, or sums of squared errors
        self.targets: list[gf.Tensor] = []

    def check(self, outputs: gf.Tensor, targets: gf.Tensor) -> None:
        lowest, highest = self.range
        if outputs.shape[:-1] == targets.shape and not 0 <= lowest <= highest < outputs.shape[-1]:
            classes = outputs.shape[-1]
            raise ValueError(f"labels for {classes} outputs must be in [0, {classes}); got {lowest} to {highest}")

    def add(self, loss: gf.Tensor, outputs: gf.Tensor, targets: gf.Tensor) -> None:
        """Keep what `sums` needs of a batch; this runs between steps, so it does little."""
        outputs = outputs.detach()
        self.results.append(gf.argmax(outputs, axis=-1) if self.counts_labels else gf.sum(gf.square(outputs - targets)))
        self.losses.append(loss.detach())
        self.samples.append(len(targets))
        self.targets.append(targets)

    def sums(self) -> gf.Tensor:
        """Return one tensor: the loss of each batch, then the number of correct labels or the sum of squared errors."""
        if self.counts_labels:
            last = gf.sum(gf.equal(gf.concat(self.results), gf.concat(self.targets)))
        else:
            last = gf.sum(gf.stack(self.results))
        losses = gf.stack(self.losses)
        if losses.dtype is not gf.float64:
            losses = gf.astype(losses, "float32")  # float16 cannot count beyond 2048
        return gf.concat([losses, gf.reshape(gf.astype(last, losses.dtype), (1,))])

    def figures(self, sums: list[float]) -> tuple[float, float]:
        """Return the mean loss and the score from the values of `sums`, and drop the results."""
        loss = sum(loss * n for loss, n in zip(sums, self.samples, strict=False)) / sum(self.samples)
        share = sums[-1] / sum(t.size for t in self.targets)
        self.start()
        if self.counts_labels:
            return loss, share
        return loss, 1.0 - share / self.variance if self.variance else math.nan


def _read(*tallies: _Tally) -> list[float]:
    """Return the figures of all tallies, with one transfer."""
    sums = [tally.sums() for tally in tallies]
    values = iter(gf.concat(sums).tolist())
    return [figure for t, s in zip(tallies, sums, strict=True) for figure in t.figures(list(islice(values, s.size)))]
