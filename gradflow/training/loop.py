"""`fit` and `evaluate`: a model is trained or evaluated in one call, with the figures that suit its loss."""

from __future__ import annotations

from collections.abc import Iterator

import gradflow as gf
from gradflow.data import Batches
from gradflow.training.checks import check_batches
from gradflow.training.epoch import Epoch
from gradflow.training.evaluation import Figures
from gradflow.training.metrics import default_metric
from gradflow.training.objective import Loss, check_loss
from gradflow.training.trainer import Trainer


def fit(
    model: gf.nn.Module,
    criterion: Loss,
    optimizer: gf.optim.Optimizer,
    train_batches: Batches,
    test_batches: Batches,
    epochs: int,
) -> Iterator[Epoch]:
    """Train the model in place and yield the figures of each epoch: `for epoch in fit(...): ...`.

    criterion: a loss of outputs and targets that averages over the batch, such as `gradflow.cross_entropy`.
    optimizer: what updates the parameters of the model.
    train_batches, test_batches: the batches of an epoch, and those that are evaluated after it (its validation).
    epochs: the number of epochs. You may leave the loop early.

    It is a `Trainer` with one metric: "r2" for values, "accuracy" for labels. Raises as that and its `epochs`.

    >>> import gradflow as gf
    >>> from gradflow.data import Batches
    >>> from gradflow.training import fit
    >>> x = gf.random.normal((200, 2), generator=gf.Generator(0))
    >>> batches = Batches(x, (x[:, 0] > x[:, 1]).astype("int64"), batch_size=20)
    >>> model = gf.nn.MLP([2, 16, 2])
    >>> *_, last = fit(model, gf.cross_entropy, gf.optim.Adam(model.parameters(), lr=0.01), batches, batches, epochs=20)
    >>> last.validation_metrics["accuracy"] > 0.95
    True
    """
    check_batches("train_batches", train_batches)
    check_batches("test_batches", test_batches)
    check_loss(criterion)
    metrics = [default_metric(criterion, train_batches.targets)]
    return Trainer(model, criterion, optimizer, train_batches, test_batches, metrics=metrics).epochs(epochs)


def evaluate(model: gf.nn.Module, criterion: Loss, batches: Batches) -> tuple[float, float]:
    """Return the mean loss of the model over all samples, and its accuracy, or R² for values, in evaluation mode.

    criterion: a loss of outputs and targets that averages over the batch.

    The samples are taken in order, also with `shuffle` or `drop_last`.
    Each module is then in the mode that it was in. Raises TypeError or ValueError for batches that do not fit.

    >>> import gradflow as gf
    >>> from gradflow.data import Batches
    >>> from gradflow.training import evaluate
    >>> labels = gf.tensor([1, 0, 1], dtype="int64")
    >>> batches = Batches([[-1.0, 1.0], [1.0, -1.0], [3.0, 1.0]], labels, batch_size=2)
    >>> loss, accuracy = evaluate(gf.nn.Identity(), gf.cross_entropy, batches)
    >>> round(accuracy, 4)
    0.6667
    """
    check_batches("batches", batches)
    check_loss(criterion)
    name = default_metric(criterion, batches.targets)
    figures = Figures(model, criterion, batches.in_order(), [name])
    loss, metrics = figures.read(figures.tally(model))
    return loss, metrics[name]
