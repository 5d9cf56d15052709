"""Pictures of the curves of runs: losses and metrics by epoch, for the training and the validation samples."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradflow.text import printable
from gradflow.training.epoch import Epoch, best_of

TRAINING, VALIDATION = "#b8560b", "#0b63b8"
"""The colours of the two kinds of curves: apart for people with any kind of colour blindness, and in grey."""

_RUNS = ("#0b63b8", "#d0660f", "#1a8f6b", "#b0488f", "#7a6a00", "#3aa0d8", "#555b66")
_DASHES = ("-", "--", ":", "-.")
_LABELS = {"r2": "R²", "rmse": "RMSE", "mae": "MAE", "f1": "F1", "auroc": "AUROC"}
_HANGUL = ("NanumGothic", "Noto Sans CJK KR", "Noto Sans KR", "Apple SD Gothic Neo", "Malgun Gothic")
"""Fonts that have what matplotlib's own font lacks, in this order, where they are installed."""

_LONGEST_TITLE, _LONGEST_NAME = 100, 50  # characters


History = Sequence[Epoch]
"""The epochs of one model, in order."""


@dataclass(frozen=True)
class Curve:
    """One model's course of one figure. A value is NaN where there is none."""

    epochs: list[int]
    training: list[float]
    validation: list[float]
    best: int | None

    @property
    def watched(self) -> list[float]:
        """The validation values; the training values where there is no validation."""
        return self.validation if any(map(math.isfinite, self.validation)) else self.training


@dataclass(frozen=True)
class Panel:
    """The curves of one figure, for each model. `name` is "loss" or a metric, `label` its name with the unit."""

    name: str
    label: str
    curves: list[Curve]

    @classmethod
    def of_rates(cls, history: History) -> Panel:
        """Return the panel of the learning rate, which is that of the training."""
        none = [math.nan] * len(history)
        return cls(
            "rate", "learning rate", [Curve([e.epoch for e in history], [e.learning_rate for e in history], none, None)]
        )

    def log(self, watched: bool = False) -> bool:
        """Whether a logarithmic axis shows more: positive losses over a range of more than 20.

        watched: whether only the watched values are shown.
        """
        shown = [c.watched if watched else [*c.training, *c.validation] for c in self.curves]
        values = [v for course in shown for v in course if math.isfinite(v)]
        return self.name == "loss" and bool(values) and 0 < 20 * min(values) < max(values)


def panels(histories: Sequence[History]) -> list[Panel]:
    """Return the panel of the loss and one for each metric, in percent where it is an accuracy."""
    names = dict.fromkeys(n for h in histories for e in h for n in (*e.validation_metrics, *e.train_metrics))
    found = [Panel("loss", "loss", [_curve(h, "loss") for h in histories])]
    for name in names:
        label = f"{_LABELS.get(name, name.replace('_', ' '))}{' (%)' if _scale(name) == 100 else ''}"
        found.append(Panel(name, label, [_curve(h, name) for h in histories]))
    return found


def _scale(name: str) -> float:
    return 100.0 if name.endswith("accuracy") else 1.0


def _curve(history: History, name: str) -> Curve:
    def values(losses: list[float | None], metrics: list[Mapping[str, float]]) -> list[float]:
        if name == "loss":
            return [math.nan if loss is None else loss for loss in losses]
        return [_scale(name) * m.get(name, math.nan) for m in metrics]

    best = best_of(history)
    return Curve(
        [e.epoch for e in history],
        values([e.train_loss for e in history], [e.train_metrics for e in history]),
        values([e.validation_loss for e in history], [e.validation_metrics for e in history]),
        None if best is None else best.epoch,
    )


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Inside a `with`, use matplotlib's default settings, not those of the user or the environment, and log no news."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it tells of its cache where the home folder is read-only
    named = os.environ.pop("MPLBACKEND", None)  # an unknown backend would make the import fail
    try:
        import matplotlib.style
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    with matplotlib.style.context("default"), warnings.catch_warnings():
        from matplotlib import font_manager, rcParams

        known = {font.name for font in font_manager.fontManager.ttflist}
        rcParams["font.family"] = ["DejaVu Sans", *(name for name in _HANGUL if name in known)]
        warnings.filterwarnings("ignore", "Glyph .* missing")  # for names in scripts that the font lacks
        try:
            yield
        finally:
            logger.setLevel(level)


def run_png(histories: Sequence[History], title: str) -> bytes:
    """Return a PNG image of the curves of a run: a plot of the loss and one for each metric, the best epoch marked.

    histories: the epochs of each member of the ensemble; a single one without.

    Opens no window, and uses matplotlib's default settings.
    """
    with own_settings():
        return png(run_figure(panels(histories), title))


def run_figure(shown: Sequence[Panel], title: str) -> Any:
    """Return the figure of `run_png`, of these panels. Call it within `own_settings`."""
    figure, plots = _plots(shown, title)
    for axes, panel in plots:
        for i, curve in enumerate(panel.curves):
            many = {"linewidth": 1.0, "alpha": 0.7} if len(panel.curves) > 1 else {"linewidth": 1.6}
            for values, label, color, dash in (
                (curve.training, "training", TRAINING, (0, (4, 1.5))),
                (curve.validation, "validation", VALIDATION, "-"),
            ):
                if any(map(math.isfinite, values)):
                    _line(axes, curve, values, color=color, linestyle=dash, label=label if not i else None, **many)
            _mark_best(axes, curve, VALIDATION if curve.watched is curve.validation else TRAINING)
    return _finish(figure, plots[0][0])


def compare_png(names: Sequence[str], runs: Sequence[Sequence[History]], title: str = "") -> bytes:
    """Return a PNG image of the curves of several runs, one color each, the best epochs marked.

    names: the runs' names. runs: for each run, the epochs of each of its members.

    A run's curves are those of its validation samples, or of its training samples, dotted, where it has no others. An
    ensemble has one for each member.
    """
    with own_settings():
        figure, plots = _plots(panels([history for run in runs for history in run]), title, watched=True)
        owners = [i for i, run in enumerate(runs) for _ in run]
        for axes, panel in plots:
            seen: set[int] = set()
            for i, curve in zip(owners, panel.curves, strict=True):
                if not any(map(math.isfinite, curve.watched)):
                    continue
                validated = curve.watched is curve.validation
                dash = _DASHES[i // len(_RUNS) % len(_DASHES)] if validated else (0, (1, 1))
                color = _RUNS[i % len(_RUNS)]
                told = [*([f"{len(runs[i])} models"] if len(runs[i]) > 1 else []), *([] if validated else ["training"])]
                name = _short(names[i], _LONGEST_NAME) + (f" ({', '.join(told)})" if told else "")
                _line(axes, curve, curve.watched, color=color, linestyle=dash, label=None if i in seen else name)
                _mark_best(axes, curve, color)
                seen.add(i)
        return png(_finish(figure, plots[0][0]))


def _plots(shown: Sequence[Panel], title: str, watched: bool = False) -> tuple[Any, list[tuple[Any, Panel]]]:
    """Return a figure with axes for each panel, two in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(5 * columns, 3.8 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(_short(title, _LONGEST_TITLE), parse_math=False)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in grid[len(shown) :]:
        unused.remove()
    plots = list(zip(grid, shown, strict=False))
    for axes, panel in plots:
        validated = watched and any(curve.watched is curve.validation for curve in panel.curves)
        axes.set_title(f"validation {panel.label}" if validated else panel.label, fontsize="medium")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if all(len(c.epochs) == 1 for c in panel.curves):
            axes.set_xlim(0, 2)
        if panel.log(watched):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, plots


def _line(axes: Any, curve: Curve, values: Sequence[float], **style: Any) -> None:
    axes.plot(curve.epochs, values, marker="o" if len(curve.epochs) == 1 else None, markersize=4, **style)


def _mark_best(axes: Any, curve: Curve, color: str) -> None:
    if curve.best is None:
        return
    value = curve.watched[curve.epochs.index(curve.best)]
    if math.isfinite(value):
        axes.plot(curve.best, value, marker="o", markersize=6, color=color, markerfacecolor="white", zorder=5)


def _finish(figure: Any, first: Any) -> Any:
    """Add a legend below all plots, and return the figure."""
    from matplotlib.lines import Line2D

    lines, labels = first.get_legend_handles_labels()
    if any(line.get_markerfacecolor() == "white" for line in first.get_lines()):
        lines.append(Line2D([], [], linestyle="", marker="o", markersize=6, color="#555", markerfacecolor="white"))
        labels.append("best epoch")
    columns = 4 if max(map(len, labels), default=0) < 20 else 2
    legend = figure.legend(lines, labels, loc="outside lower center", ncols=columns, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def png(figure: Any) -> bytes:
    """Return a figure as a PNG image. Call it within `own_settings`."""
    buffer = io.BytesIO()
    figure.canvas.print_figure(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _short(text: str, longest: int) -> str:
    text = printable(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
