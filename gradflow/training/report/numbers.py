"""The numbers of a report: figures with bootstrap intervals, the confusion matrix, calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.training.host_metrics import BINS, bin_of

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

RESAMPLES = 2000
"""How many bootstrap resamples an interval is made from, unless there are very many samples; see `resample_count`."""

_SEED = 0
_DRAWS = 1 << 22  # of samples at a time
_MOST_DRAWS = 50_000_000  # of samples in all: more take minutes


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval, whose ends are NaN where it has none. `percent`: it is a share."""

    name: str
    value: float
    low: float
    high: float
    percent: bool = False


@dataclass(frozen=True)
class Bins:
    """For each of `BINS` bins of the confidence: the samples in it, their mean confidence, and their accuracy."""

    counts: Integers
    confidence: Floats
    accuracy: Floats


def classification_figures(targets: Integers, probabilities: npt.NDArray[Any]) -> list[Figure]:
    """Return the accuracy, the balanced accuracy, F1, the AUROC, the log loss and the calibration error.

    targets: labels (samples,). probabilities: (samples, classes).

    They are defined as in `gradflow.training.metrics`: F1 and AUROC of two classes are those of the second class, of
    more the mean over the classes. The AUROC of more than two classes has no interval, which would sort the samples for
    each class in each resample; nor has the calibration error, since resamples stray further from their probabilities,
    so that the percentiles lie too high and may miss the figure itself.
    """
    probabilities = np.asarray(probabilities, np.float64)
    classes = probabilities.shape[1]
    if classes == 2:  # sorted once, and not for each resample
        order, ties = _ranked(probabilities[:, 1])
        targets, probabilities = targets[order], probabilities[order]
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    hits = predicted == targets
    losses = -np.log(np.maximum(probabilities[np.arange(len(targets)), targets], np.finfo(np.float64).eps))
    bins, gaps = bin_of(confidence), hits - confidence

    def figures(weights: Floats) -> dict[str, Floats]:
        n = weights.sum(axis=1)
        right, actual = _sums(weights * hits, targets, classes), _sums(weights, targets, classes)
        recall = right / np.where(actual, actual, 1)
        both = actual + _sums(weights, predicted, classes)
        f1 = 2 * right / np.where(both, both, 1)
        mean_f1 = f1[:, 1] if classes == 2 else f1.sum(axis=1) / (both > 0).sum(axis=1)
        found = {"accuracy": right.sum(axis=1) / n}
        found |= {"balanced accuracy": recall.sum(axis=1) / (actual > 0).sum(axis=1), "F1": mean_f1}
        if classes == 2:
            found["AUROC"] = _auroc(weights, targets == 1, ties)
        return found | {"log loss": weights @ losses / n}

    shares = {"accuracy", "balanced accuracy", "F1"}
    *shown, log_loss = _with_intervals(len(targets), figures, percent=shares)
    if classes > 2:
        once = np.ones((1, len(targets)))
        ranked = (_ranked(scores) for scores in probabilities.T)
        areas = [_auroc(once, targets[order] == c, ties)[0] for c, (order, ties) in enumerate(ranked)]
        shown.append(Figure("AUROC", float(np.mean(areas)), np.nan, np.nan))
    error = float(np.abs(np.bincount(bins, gaps)).sum() / len(targets))
    return [*shown, log_loss, Figure("calibration error", error, np.nan, np.nan, percent=True)]


def regression_figures(targets: npt.NDArray[Any], values: npt.NDArray[Any], names: list[str]) -> list[Figure]:
    """Return R², the root of the mean squared error and the mean absolute error of each column, in its units.

    targets, values: (samples, columns). names: a prefix for the figures of each column shown, "" for a single one.

    Of several columns, the mean of all their R² comes first.
    """
    truth = np.asarray(targets, np.float64)
    residuals = np.asarray(values, np.float64) - truth
    truth = truth - truth.mean(axis=0)

    def figures(weights: Floats) -> dict[str, Floats]:
        n = weights.sum(axis=1)
        squared, absolute = weights @ residuals**2, weights @ np.abs(residuals)
        spread = weights @ truth**2 - (weights @ truth) ** 2 / n[:, None]
        varies = spread > 1e-12 * (truth**2).sum(axis=0)
        of_constants = np.where(squared == 0, 1.0, 0.0 if len(truth) > 1 else np.nan)
        r2 = np.where(varies, 1 - squared / np.where(varies, spread, 1), of_constants)
        found = {"R², mean of the targets": r2.mean(axis=1)} if r2.shape[1] > 1 else {}
        for j, name in enumerate(names):
            found[f"{name}R²"] = r2[:, j]
            found[f"{name}RMSE"] = np.sqrt(squared[:, j] / n)
            found[f"{name}MAE"] = absolute[:, j] / n
        return found

    return _with_intervals(len(truth), figures)


def error_bound(n: int) -> float:
    """Return the error rate that is exceeded with 5 % probability at most if none of n samples is predicted wrong.

    At a higher rate, n samples would all be right less often than that: (1 - rate)**n = 0.05 (Clopper and Pearson,
    1934).
    """
    return float(1 - 0.05 ** (1 / n))


def confusion(targets: Integers, predicted: Integers, classes: int) -> Integers:
    """Return how many samples of each class (rows) were taken for each class (columns)."""
    return np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def class_scores(counts: Integers) -> tuple[Integers, Floats, Floats, Floats]:
    """Return the samples of each class, its precision, recall and F1, from the confusion matrix; NaN for 0 of 0."""
    right, actual, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return actual, right / predicted, right / actual, 2 * right / (actual + predicted)


def calibration(targets: Integers, probabilities: npt.NDArray[Any]) -> Bins:
    """Return how often the most probable class is right, by its probability. Empty bins have NaN."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    bins = bin_of(confidence)
    hits = probabilities.argmax(axis=1) == targets
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        sums = (np.bincount(bins, weights=w, minlength=BINS) / counts for w in (confidence, hits))
        return Bins(counts, *sums)


def _sums(weights: Floats, groups: Integers, count: int) -> Floats:
    """Return the sums of each row of weights over the samples of each group, (rows, count)."""
    return np.stack([np.bincount(groups, row, count) for row in weights])


def _ranked(scores: Floats) -> tuple[Integers, Integers]:
    """Return the order in which scores increase, and where in it a score begins that is greater than the one before."""
    order = np.argsort(scores, kind="stable")
    return order, np.flatnonzero(np.diff(scores[order], prepend=-np.inf))


def _auroc(weights: Floats, positive: npt.NDArray[np.bool_], ties: Integers) -> Floats:
    """Return the share of pairs of a positive and a negative sample that scores order rightly; a tie is half.

    The samples are in the order of their scores; ties: where the score changes, from `_ranked`.
    """
    above = np.add.reduceat(weights * positive, ties, axis=1)
    below = np.add.reduceat(weights * ~positive, ties, axis=1)
    pairs = above.sum(axis=1) * below.sum(axis=1)
    ordered = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
    return np.where(pairs, ordered / np.where(pairs, pairs, 1), np.nan)


def _with_intervals(
    n: int, figures: Callable[[Floats], dict[str, Floats]], percent: set[str] | frozenset[str] = frozenset()
) -> list[Figure]:
    """Return the figures with percentile bootstrap intervals (Efron and Tibshirani, 1993, section 13.3).

    figures: returns each figure for each row of weights, (rows, n): how often a resample has each sample.
    """
    values = figures(np.ones((1, n)))
    draws = [figures(weights) for weights in resamples(n)] if n > 1 else []
    found = []
    for name, value in values.items():
        drawn = np.concatenate([d[name] for d in draws]) if draws else np.full(1, np.nan)
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
        if low == high:  # all resamples are alike, as where no sample is predicted wrong: that bounds nothing
            low = high = np.nan
        found.append(Figure(name, float(value[0]), float(low), float(high), name in percent))
    return found


def resample_count(n: int) -> int:
    """Return how many resamples of n samples an interval is made from: fewer of more than 25,000 samples."""
    return min(RESAMPLES, max(200, _MOST_DRAWS // n))


def resamples(n: int) -> Iterator[Floats]:
    """Yield the weights of the bootstrap's resamples of n samples, some rows at a time: (rows, n)."""
    generator = np.random.Generator(np.random.PCG64(_SEED))
    left = resample_count(n)
    while left:
        rows = min(left, max(1, _DRAWS // n))
        drawn = generator.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        left -= rows
