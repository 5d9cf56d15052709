"""The figures that scikit-learn computes from the outputs and targets of a whole epoch, on the host."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gradflow.environment import DISTRIBUTION, delayed_interrupts, to_install

BINS = 15
"""The number of bins of the calibration error."""


def import_scikit_learn(names: Iterable[str]) -> None:
    """Import scikit-learn if these metrics need it; ModuleNotFoundError, which says what to type, if it is missing."""
    needing = [name for name in names if name != "calibration_error"]
    if not needing:
        return
    if importlib.util.find_spec("sklearn") is None:
        raise ModuleNotFoundError(
            f'the metrics {", ".join(needing)} need scikit-learn, from the extra "train" of {DISTRIBUTION}; '
            f"{to_install('train')}"
        )
    with delayed_interrupts():
        importlib.import_module("sklearn.metrics")


def host_figures(names: Sequence[str], kind: str, outputs: Any, targets: Any, weights: Any = None) -> dict[str, float]:
    """Return the figures by name of float64 arrays, whose kind is one of `metrics.KINDS`.

    Samples of weight 0 do not count. Undefined figures, and all figures of outputs that are not finite, are NaN.
    Raises ValueError for labels that are no class.
    """
    if weights is not None:
        counts = weights > 0
        outputs, targets, weights = outputs[counts], targets[counts], weights[counts]
    with np.errstate(invalid="ignore"):
        predictions = _predictions(kind, outputs)
    if not len(targets) or not np.isfinite(predictions).all():
        return dict.fromkeys(names, math.nan)
    columns = _columns(kind, predictions, targets, weights)
    return {name: float(np.mean([FIGURES[name](*column) for column in columns])) for name in names}


def _predictions(kind: str, outputs: Any) -> Any:
    """The probabilities, or the values."""
    if kind == "values":
        return outputs
    if kind == "binary":
        return np.exp(-np.logaddexp(0.0, -outputs))
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _columns(kind: str, predictions: Any, targets: Any, weights: Any) -> list[tuple[Any, Any, Any]]:
    """Triples of predictions, targets and weights, each with one row for one target; those of binary logits by column.

    Predictions are (m, C) probabilities with labels (m,), or values and targets (m, columns).
    """
    n = len(targets)
    if kind == "values":
        return [(predictions.reshape(n, -1), targets.reshape(n, -1), weights)]
    if kind == "binary":
        ones, labels = predictions.reshape(n, -1), (targets > 0.5).reshape(n, -1).astype(int)
        return [(np.stack([1 - p, p], axis=1), y, weights) for p, y in zip(ones.T, labels.T, strict=True)]
    classes = predictions.shape[1]
    labels = (targets.argmax(axis=1) if kind == "probabilities" else targets.astype(int)).reshape(-1)
    if not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels of {classes} classes must be in [0, {classes}); got {labels.min()} to {labels.max()}")
    if weights is not None:
        weights = np.repeat(weights, len(labels) // n)
    return [(np.moveaxis(predictions, 1, -1).reshape(-1, classes), labels, weights)]


def _of_each_class(score: str) -> Callable[..., Any]:
    """A figure from the probabilities of class 1 of two, or the mean of those of each class against all others."""

    def figure(p: Any, y: Any, weights: Any) -> Any:
        from sklearn import metrics

        classes = [1] if p.shape[1] == 2 else range(p.shape[1])
        if any((y == c).all() or not (y == c).any() for c in classes):
            return math.nan
        return np.mean([getattr(metrics, score)(y == c, p[:, c], sample_weight=weights) for c in classes])

    return figure


def _of_predicted_labels(score: str, average: str | None = None, undefined: float = 0.0) -> Callable[..., Any]:
    """A figure from the predicted labels: of class 1 of two, or the mean over the classes that occur."""

    def figure(p: Any, y: Any, weights: Any) -> Any:
        from sklearn import metrics

        over = average or ("binary" if p.shape[1] == 2 else "macro")
        return getattr(metrics, score)(
            y, p.argmax(axis=1), average=over, sample_weight=weights, zero_division=undefined
        )

    return figure


def _log_loss(p: Any, y: Any, weights: Any) -> Any:
    from sklearn import metrics

    return metrics.log_loss(y, p, labels=range(p.shape[1]), sample_weight=weights)


def _calibration_error(p: Any, y: Any, weights: Any) -> Any:
    """The expected calibration error with 15 bins of equal width, Guo et al. 2017, equation 3.

    "On Calibration of Modern Neural Networks". In each bin of confidences, the accuracy less the mean confidence; the
    mean of the absolute values, weighted by the samples in the bin.
    """
    weights = np.ones(len(y)) if weights is None else weights
    confidence = p.max(axis=1)
    gaps = np.bincount(bin_of(confidence), weights * ((p.argmax(axis=1) == y) - confidence))
    return np.abs(gaps).sum() / weights.sum()


def bin_of(confidence: Any) -> Any:
    """Return the bin of each confidence, of `BINS` bins of equal width: (0, 1/15], (1/15, 2/15], ..."""
    return np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(int)


def _mae(values: Any, targets: Any, weights: Any) -> Any:
    from sklearn import metrics

    return metrics.mean_absolute_error(targets, values, sample_weight=weights)


FIGURES = {
    "auroc": _of_each_class("roc_auc_score"),
    "average_precision": _of_each_class("average_precision_score"),
    "balanced_accuracy": _of_predicted_labels("recall_score", "macro", math.nan),  # the mean over classes with samples
    "calibration_error": _calibration_error,
    "f1": _of_predicted_labels("f1_score"),
    "log_loss": _log_loss,
    "mae": _mae,
    "precision": _of_predicted_labels("precision_score"),
    "recall": _of_predicted_labels("recall_score"),
}
