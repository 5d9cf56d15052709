"""The sections of a report on what the kept weights do on samples that did not train them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.training.host_metrics import BINS
from gradflow.training.report import figures as draw
from gradflow.training.report.data import ReportData
from gradflow.training.report.markup import (
    LEVEL,
    MINUS,
    NONE,
    Number,
    count,
    name,
    number,
    percent,
    scrolling,
    table,
    text,
)
from gradflow.training.report.numbers import (
    Figure,
    Integers,
    calibration,
    class_scores,
    classification_figures,
    confusion,
    error_bound,
    regression_figures,
    resample_count,
)

_LARGEST_MATRIX = 25  # classes
_SHARES_IN_MATRIX = 12  # classes
_LONG_TABLE = 25  # rows
_PAIRS = 20
_MISTAKES = 12
_COLUMNS = 6  # of targets
_UNUSUAL = 3  # features

_RESIDUAL = f"actual {MINUS} predicted"

_MEANINGS = {
    "accuracy": "share of the samples whose class is predicted correctly",
    "balanced accuracy": "mean over the classes of the share that is right, so that rare classes count as much",
    "F1": "harmonic mean of precision and recall, {of}",
    "AUROC": "how often a sample of {area}; 0.5 is chance, 1 is best",
    "log loss": "mean of the negative logarithm of the probability of the true class; 0 is best",
    "calibration error": "mean gap between the predicted probability and the share that is right; 0 is best",
    "R²": "share of the variance that is explained; 1 is best",
    "R², mean of the targets": "share of the variance that is explained; 1 is best",
    "RMSE": "root of the mean squared error, in the units of the target",
    "MAE": "mean absolute error, in the units of the target",
}


def figures_of(data: ReportData) -> list[Figure]:
    """Return the figures of the assessed samples, the main one first."""
    targets, outputs = _assessed(data)
    if data.classes:
        return classification_figures(targets, outputs)
    return regression_figures(targets, outputs, _target_prefixes(data, outputs.shape[1]))


def figures_section(data: ReportData, figures: Sequence[Figure]) -> str:
    """Return the table of the figures, and what they are to be compared with."""
    first, *rest = [name(c) for c in data.classes] or [""]
    second = rest[0] if rest else ""
    two = len(rest) == 1
    words = {
        "of": f"of {second}" if two else "mean of the classes",
        "area": f"{second} gets a higher probability of it than one of {first}"
        if two
        else "a class gets a higher probability of it than one of the others, mean of the classes",
    }
    rows, explained = [], set()
    for f in figures:
        show = percent if f.percent else lambda v, f=f: number(v, like=(f.value, f.high - f.low))
        interval = NONE if math.isnan(f.low) else f"{show(f.low)} to {show(f.high)}"
        value = Number(f'<span class="value">{show(f.value)}</span>')
        kind = f.name.split(": ")[-1]
        meaning = "" if kind in explained else f"<small>{_MEANINGS[kind].format(**words)}</small>"
        rows.append([f"{text(f.name)}{meaning}", value, Number(interval)])
        explained.add(kind)
    shown = table("figures", ["figure", "value", f"{LEVEL} interval"], rows, "figures")
    return f'{shown}<p class="note">{" ".join(_notes(data, figures[0]))}</p>'


def _notes(data: ReportData, main: Figure) -> Iterator[str]:
    """Yield what the figures are to be compared with, and what the intervals mean."""
    targets, _ = _assessed(data)
    n = len(targets)
    if data.classes:
        most = int(np.bincount(targets).argmax())
        share = percent(float((targets == most).mean()))
        yield f"Always to predict the most frequent class, {name(data.classes[most])}, is right for {share}."
        if main.value == 1.0:
            bound = percent(error_bound(n))
            yield f"No sample is predicted wrong: with {LEVEL} confidence, the error rate is below {bound}."
    elif targets.shape[1] == 1:
        deviation = number(float(targets.std()))
        yield f"Always to predict the mean of these samples has an R² of 0 and an RMSE of {deviation}."
    if n == 1:
        yield "A single sample has no interval."
        return
    yield (
        f"Intervals are percentile bootstrap intervals at {LEVEL}, from {resample_count(n):,} resamples of the "
        f"{count(n, f'{data.assessed} sample')}. They tell how much the choice of these samples matters, not that of "
        "another split or another seed."
    )
    if data.classes:
        several = "The AUROC of several classes and the" if len(data.classes) > 2 else "The"
        yield f"{several} calibration error {'have' if len(data.classes) > 2 else 'has'} none."
    if n < 50:
        yield "With so few samples they are rough."


def classification_sections(data: ReportData) -> list[tuple[str, str, str]]:
    """Return the sections on classes, each as (identifier, heading, markup)."""
    targets, probabilities = _assessed(data)
    predicted = probabilities.argmax(axis=1)
    counts = confusion(targets, predicted, len(data.classes))
    small = len(data.classes) <= _LARGEST_MATRIX
    heading = "Confusion matrix" if small else "Classes that are confused"
    return [
        ("confusion", heading, _matrix(counts, data.classes) if small else _pairs(counts, data.classes)),
        ("classes", "Each class", _class_table(counts, data.classes)),
        ("calibration", "Calibration", _calibration(targets, probabilities)),
        ("mistakes", "Most confident mistakes", _mistakes(data, targets, probabilities)),
    ]


def regression_sections(data: ReportData) -> list[tuple[str, str, str]]:
    """Return the sections on predicted values, each as (identifier, heading, markup)."""
    targets, values = _assessed(data)
    prefixes = _target_prefixes(data, values.shape[1])
    plots = []
    for j, prefix in enumerate(prefixes):
        of = f" of {name(prefix.removesuffix(': '))}" if prefix else ""
        plots.append(
            f"<figure><h3>Predicted and actual values{of}</h3>"
            f"{draw.scatter(targets[:, j], values[:, j], 'actual', 'predicted', diagonal=True)}"
            "<figcaption>On the dashed line the prediction equals the actual value.</figcaption></figure>"
            f"<figure><h3>Residuals{of}</h3>"
            f"{draw.scatter(values[:, j], targets[:, j] - values[:, j], 'predicted', _RESIDUAL, diagonal=False)}"
            "<figcaption>Above the dashed line the prediction is too low, below it too high.</figcaption></figure>"
        )
    notes = []
    if len(values) > draw.MOST_POINTS:
        step = -(-len(values) // draw.MOST_POINTS)
        notes.append(f"The plots show one in {step} of the {count(len(values), 'sample')}.")
    if values.shape[1] > len(prefixes):
        notes.append(f"Shown are the first {len(prefixes)} of {values.shape[1]} targets.")
    note = f'<p class="note">{" ".join(notes)}</p>' if notes else ""
    return [
        ("predictions", "Predictions", f'<div class="row">{"".join(plots)}</div>{note}'),
        ("mistakes", "Largest errors", _largest_errors(data, targets, values, prefixes)),
    ]


def _assessed(data: ReportData) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    if data.targets is None or data.outputs is None:
        raise ValueError("the report has no outputs to assess")
    return data.targets, data.outputs


def _pictures(data: ReportData, rows: Sequence[int]) -> list[str] | None:
    """Return the pictures of these samples as data URIs; None if they are not images."""
    shape = data.image_shape
    if data.inputs is None or shape is None or (*shape, 1)[2] not in draw.CHANNELS:
        return None
    low, high = float(data.inputs.min()), float(data.inputs.max())
    return [draw.picture(data.inputs[i], shape, low, high) for i in rows]


def _target_prefixes(data: ReportData, columns: int) -> list[str]:
    """Return what the figures of the first target columns are called; nothing if there is one."""
    names = data.columns or [f"target {j}" for j in range(columns)]
    return [""] if columns == 1 else [f"{name}: " for name in names[:_COLUMNS]]


def _matrix(counts: Integers, classes: Sequence[str]) -> str:
    """Return the confusion matrix as a table, shaded by the share of the row."""
    totals = counts.sum(axis=1)
    with_shares = len(classes) <= _SHARES_IN_MATRIX
    parts = ['<tr><th scope="col" class="axis-name">actual ↓<br>predicted →</th>']
    parts += [f'<th scope="col">{name(c)}</th>' for c in classes] + ['<th scope="col">total</th></tr>']
    head = "".join(parts)
    body = []
    for i, cls in enumerate(classes):
        body.append(f'<tr><th scope="row">{name(cls)}</th>')
        for j, n in enumerate(counts[i].tolist()):
            share = n / max(1, int(totals[i]))
            small = f"<small>{percent(share)}</small>" if with_shares and n else ""
            kind = ("right" if i == j else "wrong") if n else "none"
            style = f' style="--share:{share:.3f}"' if n else ""
            body.append(f'<td class="{kind}"{style}>{n:,}{small}</td>')
        body.append(f'<td class="total">{totals[i]:,}</td></tr>')
    caption = (
        "Each row has the samples of one class, each column those predicted as one: the diagonal is right"
        f"{'; the share is that of the row' if with_shares else ''}. The shade follows the share of the row, in blue "
        "on the diagonal and orange beside it."
    )
    return f'<p class="note">{caption}</p>' + scrolling(
        "confusion matrix", f'<table class="matrix"><thead>{head}</thead><tbody>{"".join(body)}</tbody></table>'
    )


def _pairs(counts: Integers, classes: Sequence[str]) -> str:
    """Return the most frequent mistakes as a table."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong.ravel(), kind="stable")[:_PAIRS]
    pairs = [(*divmod(int(k), len(classes)), int(wrong.ravel()[k])) for k in order if wrong.ravel()[k]]
    if not pairs:
        return "<p>No sample was taken for another class.</p>"
    totals = counts.sum(axis=1)
    rows = [
        [name(classes[i]), name(classes[j]), Number(f"{n:,}"), Number(percent(n / int(totals[i])))] for i, j, n in pairs
    ]
    caption = (
        f"The {len(pairs)} most frequent of {count(int((wrong > 0).sum()), 'kind')} of mistake among "
        f"{len(classes)} classes; the share is that of the samples of the actual class."
    )
    return f'<p class="note">{caption}</p>' + table(
        "confused classes", ["actual", "predicted", "samples", "share"], rows
    )


def _class_table(counts: Integers, classes: Sequence[str]) -> str:
    """Return support, precision, recall and F1 of each class."""
    support, *scores = class_scores(counts)
    f1 = scores[-1]
    long = len(classes) > _LONG_TABLE
    order = np.argsort(np.nan_to_num(f1, nan=2.0), kind="stable") if long else range(len(classes))
    rows = [[name(classes[c]), Number(f"{support[c]:,}"), *(Number(percent(v[c])) for v in scores)] for c in order]
    caption = (
        "Support: the samples of the class. Precision: the share of the predictions of the class that are right. "
        "Recall: the share of its samples that are found. F1: the harmonic mean of both."
    )
    note = "The class with the lowest F1 comes first. " if long else ""
    return f'<p class="note">{note}{caption}</p>' + table(
        "classes", ["class", "support", "precision", "recall", "F1"], rows, "tall" if long else ""
    )


def _calibration(targets: Integers, probabilities: npt.NDArray[Any]) -> str:
    bins = calibration(targets, probabilities)
    return (
        f'<div class="row"><figure>{draw.reliability(bins)}</figure>'
        f'<p class="note">The predicted class has a probability; the samples are sorted into {BINS} bins by it. Each '
        "point is one bin: its mean probability, and the share of its predictions that are right, with the "
        f"{LEVEL} Wilson interval. On the dashed line both are equal; below it the model is too sure of itself, above "
        "it not sure enough. The bars at the bottom count the samples in each bin.</p></div>"
    )


def _mistakes(data: ReportData, targets: Integers, probabilities: npt.NDArray[Any]) -> str:
    predicted, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != targets)
    if not len(wrong):
        return f"<p>None of the {count(len(targets), f'{data.assessed} sample')} is predicted wrong.</p>"
    shown = wrong[np.argsort(-sure[wrong], kind="stable")][:_MISTAKES].tolist()
    intro = f"{count(len(wrong), 'sample')} of {len(targets):,} {'is' if len(wrong) == 1 else 'are'} predicted wrong"
    most = f"; these are the {len(shown)} of which the model is most sure" if len(wrong) > len(shown) else ""
    intro = f"<p>{intro}{most}. {_counted(data)}</p>"
    rows = _row_numbers(data)
    facts = [(name(data.classes[targets[i]]), name(data.classes[predicted[i]]), percent(float(sure[i]))) for i in shown]
    pictures = _pictures(data, shown)
    if pictures is None:
        cells = [
            [Number(str(rows[i])), actual, taken, Number(share), *_unusual(data, i)]
            for i, (actual, taken, share) in zip(shown, facts, strict=True)
        ]
        return intro + table("mistakes", ["row", "actual", "predicted", "probability", *_unusual_head(data)], cells)
    items = [
        f'<li><img src="{picture}" alt="sample in row {rows[i]}">'
        f"{actual}, taken for {taken}<br><span>{share} sure<br>row {rows[i]}</span></li>"
        for i, picture, (actual, taken, share) in zip(shown, pictures, facts, strict=True)
    ]
    return f'{intro}<ul class="mistakes">{"".join(items)}</ul>'


def _largest_errors(
    data: ReportData, targets: npt.NDArray[Any], values: npt.NDArray[Any], prefixes: Sequence[str]
) -> str:
    errors = (targets - values)[:, : len(prefixes)].astype(np.float64)
    scale = np.sqrt((errors**2).mean(axis=0))
    relative = np.abs(errors) / np.where(scale, scale, 1)
    order = np.argsort(-relative.ravel(), kind="stable")[:_MISTAKES]
    rows, cells = _row_numbers(data), []
    for i, j in (divmod(int(k), len(prefixes)) for k in order):
        numbers = [float(targets[i, j]), float(values[i, j]), float(errors[i, j])]
        which = [text(prefixes[j].removesuffix(": "))] if len(prefixes) > 1 else []
        shown = [Number(number(v, like=numbers)) for v in numbers]
        cells.append([Number(str(rows[i])), *which, *shown, *_unusual(data, i)])
    target = ["target"] if len(prefixes) > 1 else []
    counted = f"<p>{_counted(data)}</p>"
    return counted + table("errors", ["row", *target, "actual", "predicted", _RESIDUAL, *_unusual_head(data)], cells)


def _row_numbers(data: ReportData) -> Sequence[int]:
    """Return the row in the data of each assessed sample, as `_counted` says that they are counted."""
    rows = np.arange(len(_assessed(data)[0])) if data.rows is None else data.rows
    found: list[int] = (rows + (data.table is not None)).tolist()
    return found


def _counted(data: ReportData) -> str:
    if data.table is not None:
        file = Path(data.settings.get(f"{data.assessed}_file") or data.dataset).name
        left_out = f"without the header, blank lines and rows that have no {name(data.table.target)}"
        return f"Rows of {name(file)} count from 1, {left_out}."
    numbered = bool(_unusual_head(data)) and not data.features and _pictures(data, []) is None
    return f"Rows {'and features ' if numbered else ''}count from 0."


def _unusual_head(data: ReportData) -> list[str]:
    has = data.inputs is not None and data.means is not None and data.deviations is not None
    return ["most unusual features"] if has else []


def _unusual(data: ReportData, i: int) -> list[str]:
    """Return a cell with the features of a sample that are farthest from their mean, in standard deviations."""
    if data.inputs is None or data.means is None or data.deviations is None:
        return []
    varies = data.deviations > 0
    away = np.where(varies, (data.inputs[i] - data.means) / np.where(varies, data.deviations, 1), 0.0)
    order = np.argsort(-np.abs(away), kind="stable")[:_UNUSUAL].tolist()
    names = data.features or [f"feature {f}" for f in range(len(away))]
    told = [f"{name(names[f])} {number(float(data.inputs[i][f]))} ({away[f]:+.1f} sd)" for f in order]
    shown = "; ".join(told).replace("(-", f"({MINUS}")
    return [f'<div class="wide">{shown}</div>']
