"""The pictures of curves: what their axes, lines and marks say, read from the figures that matplotlib draws."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gradflow.training import curves
from gradflow.training.epoch import Epoch

pytest.importorskip("matplotlib")


def history(
    accuracies: Sequence[float], losses: Sequence[float] | None = None, validated: bool = True, **metrics: float
) -> list[Epoch]:
    """Epochs with these figures; training figures are a little better than those of the validation."""
    losses = [2.0 - a for a in accuracies] if losses is None else losses
    epochs, best, stale = [], math.inf, 0
    for i, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True), 1):
        best, stale = (loss, 0) if loss < best else (best, stale + 1)
        figures = {"accuracy": accuracy, **metrics}
        valid = (loss, figures) if validated else (None, {})
        epochs.append(
            Epoch(i, 10 * i, 0.1, 0.9 * loss, {**figures, "accuracy": accuracy + 0.01}, *valid, stale, 1.0, 1.0)
        )
    return epochs


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Calls a function of `curves` and returns the figure that it made, with its ticks computed."""

    def call(function: Callable[..., bytes], *arguments: Any) -> Any:
        figures = []

        def finish(figure: Any, first: Any) -> bytes:
            figures.append(figure)
            return finished(figure, first)

        finished = curves._finish
        monkeypatch.setattr(curves, "_finish", finish)
        picture = function(*arguments)
        monkeypatch.setattr(curves, "_finish", finished)
        assert picture.startswith(b"\x89PNG")
        assert picture.endswith(b"IEND\xaeB`\x82")
        return figures[0]

    return call


def shown_ticks(axis: Any) -> dict[str, float]:
    """The labels of the ticks within the range of an axis, with their positions."""
    low, high = sorted(axis.get_view_interval())
    pairs = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    return {label.get_text().replace("\N{MINUS SIGN}", "-"): at for at, label in pairs if low <= at <= high}


def lines(axes: Any, label: str) -> list[Any]:
    return [line for line in axes.get_lines() if line.get_label() == label]


@pytest.mark.parametrize(
    ("low", "high"), [(0.89, 0.98), (0.9, 0.95), (0.5, 0.99), (0.975, 0.985), (0.9991, 0.9999), (0.0, 1.0)]
)
def test_each_tick_of_the_accuracy_says_where_it_is(drawn: Any, low: float, high: float) -> None:
    figure = drawn(curves.run_png, [history([low, (low + high) / 2, high])], "digits-1")
    axes = figure.axes[1]
    assert axes.get_title() == "accuracy (%)"
    ticks = shown_ticks(axes.yaxis)
    assert len(ticks) >= 3
    assert {label: float(label) for label in ticks} == pytest.approx(ticks, abs=1e-9)


@pytest.mark.parametrize(
    ("losses", "log"),
    [([2.0, 0.5, 0.01], True), ([2.0, 1.0, 0.5], False), ([2.0, 0.0, 0.0], False), ([3.0, -1.0, -2.0], False)],
)
def test_the_loss_is_logarithmic_where_its_range_is_wide(drawn: Any, losses: list[float], log: bool) -> None:
    axes = drawn(curves.run_png, [history([0.5, 0.6, 0.7], losses)], "run").axes[0]
    assert axes.get_yscale() == ("log" if log else "linear")
    ticks = shown_ticks(axes.yaxis)
    assert len(ticks) >= 3
    assert {label: float(label) for label in ticks} == pytest.approx(ticks, rel=1e-9)


def test_the_best_epoch_is_marked_on_the_validation_curve(drawn: Any) -> None:
    epochs = history([0.5, 0.7, 0.6], losses=[1.0, 0.5, 0.8])
    for axes, value in zip(drawn(curves.run_png, [epochs], "run").axes, (0.5, 70.0), strict=True):
        (mark,) = [line for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
        assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([2], [pytest.approx(value)])
        (validation,) = lines(axes, "validation")
        assert list(validation.get_ydata())[1] == pytest.approx(value)
        assert len(lines(axes, "training")) == 1


def test_without_validation_the_best_epoch_is_marked_on_the_training_curve(drawn: Any) -> None:
    axes = drawn(curves.run_png, [history([0.5, 0.7], validated=False)], "run").axes[1]
    assert not lines(axes, "validation")
    (mark,) = [line for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
    assert list(mark.get_ydata()) == [pytest.approx(71.0)]


def test_all_members_of_an_ensemble_are_drawn_and_named_once(drawn: Any) -> None:
    figure = drawn(curves.run_png, [history([0.5, 0.6, 0.6 + i / 100]) for i in range(3)], "run")
    curved = [line for line in figure.axes[1].get_lines() if len(line.get_xdata()) == 3]
    assert len(curved) == 6
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["training", "validation", "best epoch"]


def test_one_epoch_is_a_point_over_a_whole_number(drawn: Any) -> None:
    axes = drawn(curves.run_png, [history([0.5])], "run").axes[0]
    assert all(at == int(at) for at in shown_ticks(axes.xaxis).values())
    (line,) = lines(axes, "validation")
    assert line.get_marker() == "o"


def test_each_metric_has_a_plot_and_a_name(drawn: Any) -> None:
    figure = drawn(curves.run_png, [history([0.5, 0.6], r2=0.1, log_loss=0.2, auroc=0.9)], "run")
    assert [a.get_title() for a in figure.axes] == ["loss", "accuracy (%)", "R²", "log loss", "AUROC"]


def test_runs_are_compared_in_colours_and_dashes_of_their_own(drawn: Any) -> None:
    runs = [[history([0.5, 0.6 + i / 100])] for i in range(9)] + [[history([0.4, 0.5], validated=False)] * 2]
    names = [f"runs/digits-{i}" for i in range(10)]
    figure = drawn(curves.compare_png, names, runs)
    shown = [line for line in figure.axes[1].get_lines() if len(line.get_xdata()) == 2]
    assert len(shown) == 11
    assert len({(line.get_color(), line.get_linestyle()) for line in shown[:9]}) == 9
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [
        *names[:9],
        "runs/digits-9 (2 models, training)",
        "best epoch",
    ]


def test_the_loss_of_compared_runs_is_logarithmic_where_what_is_shown_has_a_wide_range(drawn: Any) -> None:
    for losses, scale in (([1.0, 0.5, 0.052], "linear"), ([1.0, 0.5, 0.04], "log")):
        axes = drawn(curves.compare_png, ["a"], [[history([0.5, 0.6, 0.7], losses)]]).axes[0]
        assert axes.get_yscale() == scale


def test_a_run_without_a_metric_is_missing_in_its_plot_only(drawn: Any) -> None:
    figure = drawn(curves.compare_png, ["a", "b"], [[history([0.5, 0.6])], [history([0.5, 0.6], f1=0.3)]])
    assert [len(a.get_lines()) for a in figure.axes] == [4, 4, 2]


def test_titles_and_names_may_be_any_text() -> None:
    title = "$\\alpha$ _{ \n\x1b 日本 <b>" + "long " * 50
    assert curves.run_png([history([0.5, 0.6])], title) == curves.run_png([history([0.5, 0.6])], title)
    assert curves.compare_png([title], [[history([0.5, 0.6])]], title).startswith(b"\x89PNG")


def test_losses_that_are_not_finite_leave_a_gap(drawn: Any) -> None:
    axes = drawn(curves.run_png, [history([0.5, 0.6, 0.7], losses=[1.0, math.nan, math.inf])], "run").axes[0]
    assert all(map(math.isfinite, axes.get_ylim()))


def test_compared_curves_say_of_which_samples_and_of_how_many_models_they_are(drawn: Any) -> None:
    runs = [[history([0.5, 0.75])], [history([0.5, 0.6]), history([0.4, 0.7])]]
    figure = drawn(curves.compare_png, ["one", "three"], runs)
    assert [axes.get_title() for axes in figure.axes] == ["validation loss", "validation accuracy (%)"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "three (2 models)", "best epoch"]
    figure = drawn(curves.compare_png, ["one"], [[history([0.5, 0.75], validated=False)]])
    assert figure.axes[0].get_title() == "loss"
    assert figure.legends[0].get_texts()[0].get_text() == "one (training)"


def test_names_in_hangul_have_a_font_where_one_is_installed() -> None:
    with curves.own_settings():
        from matplotlib import font_manager, rcParams

        known = {font.name for font in font_manager.fontManager.ttflist}
        assert rcParams["font.family"] == ["DejaVu Sans", *(name for name in curves._HANGUL if name in known)]
        if "NanumGothic" not in known:
            pytest.skip("NanumGothic is not installed")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a glyph that is missing warns
            curves.png(curves.run_figure(curves.panels([history([0.5, 0.6])]), "학습"))


def test_matplotlib_logs_no_news_while_it_draws() -> None:
    logger = logging.getLogger("matplotlib")
    before = logger.level
    with curves.own_settings():
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.level == before
