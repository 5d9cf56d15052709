"""The plot of a run: loss and score by epoch, for the training and the test split."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence

from gradflow.training.loop import Epoch

_TRAIN, _TEST = "#8a8f98", "#c0392b"


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Inside a `with`, use matplotlib's default settings, not those of the user or the environment."""
    named = os.environ.pop("MPLBACKEND", None)  # an unknown backend would make the import fail
    try:
        import matplotlib.style
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    with matplotlib.style.context("default"):
        yield


def curves_png(epochs: Sequence[Epoch], title: str, classification: bool) -> bytes:
    """Return a PNG image of two plots side by side. Opens no window, and uses matplotlib's default settings."""
    with own_settings():
        return _draw(epochs, title, classification)


def _draw(epochs: Sequence[Epoch], title: str, classification: bool) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    loss, score = figure.subplots(1, 2)
    xs = [epoch.epoch for epoch in epochs]
    for axes, train, test in (
        (loss, [e.train_loss for e in epochs], [e.test_loss for e in epochs]),
        (score, [e.train_score for e in epochs], [e.test_score for e in epochs]),
    ):
        marker = "o" if len(xs) == 1 else None
        axes.plot(xs, train, color=_TRAIN, marker=marker, label="training")
        axes.plot(xs, test, color=_TEST, marker=marker, label="test")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    loss.set_title("loss")
    if min(e.train_loss for e in epochs) > 0:
        loss.set_yscale("log")
    score.set_title("accuracy" if classification else "R²")
    if classification:
        score.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    figure.suptitle(title)
    buffer = io.BytesIO()
    canvas.print_figure(buffer, format="png", dpi=120)
    return buffer.getvalue()
