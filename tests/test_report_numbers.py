"""The numbers and figures of a report, against scikit-learn, SciPy and slow references."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest

from gradflow.training.metrics import figures_of
from gradflow.training.report import report_html
from gradflow.training.report.figures import Axis, picture, wilson
from gradflow.training.report.numbers import (
    RESAMPLES,
    calibration,
    classification_figures,
    confusion,
    error_bound,
    regression_figures,
    resample_count,
    resamples,
)
from tests.reports import CASES, Page, measured, probabilities, shown

sklearn_metrics = pytest.importorskip("sklearn.metrics")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: report_html(data) for name, data in CASES.items()}


@pytest.mark.parametrize("classes", [2, 5])
def test_figures_are_those_of_the_metrics(classes: int) -> None:
    targets, outputs = probabilities(100, classes)
    names = ["accuracy", "balanced_accuracy", "f1", "auroc", "log_loss", "calibration_error"]
    expected = figures_of(names, "classes", outputs, targets)
    found = classification_figures(targets, outputs)
    assert [f.name.lower().replace(" ", "_") for f in found] == names
    assert [f.value for f in found] == pytest.approx(list(expected.values()), rel=1e-12)


def test_figures_of_values_are_those_of_the_metrics() -> None:
    data = measured(columns=2)
    mean, *rest = regression_figures(data.targets, data.outputs, ["a: ", "b: "])
    assert mean.value == pytest.approx(figures_of(["r2"], "values", data.outputs, data.targets)["r2"], rel=1e-12)
    for j in range(2):
        expected = figures_of(["r2", "rmse", "mae"], "values", data.outputs[:, j], data.targets[:, j])
        found = {f.name.split(": ")[1]: f.value for f in rest if f.name.startswith("ab"[j])}
        assert found == pytest.approx(dict(zip(["R²", "RMSE", "MAE"], expected.values(), strict=True)), rel=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
def test_intervals_are_those_of_a_slow_bootstrap(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    monkeypatch.setattr("gradflow.training.report.numbers.RESAMPLES", 60)
    monkeypatch.setattr("gradflow.training.report.numbers._DRAWS", 500)  # of samples at a time, so in several parts
    targets, outputs = probabilities(25, classes)
    outputs = outputs.round(1) + 0.01  # ties
    outputs /= outputs.sum(axis=1, keepdims=True)
    order = np.argsort(outputs[:, 1], kind="stable")  # that of the samples to which the weights of two classes belong
    targets, outputs = targets[order], outputs[order]
    drawn = [np.repeat(np.arange(25), w.astype(int)) for weights in resamples(25) for w in weights]
    assert len(drawn) == 60
    names = ["accuracy", "balanced_accuracy", "f1", *(["auroc"] if classes == 2 else []), "log_loss"]
    slow = [list(figures_of(names, "classes", outputs[rows], targets[rows]).values()) for rows in drawn]
    low, high = np.percentile(slow, [2.5, 97.5], axis=0)
    *found, calibration_error = classification_figures(targets, outputs)
    assert np.isnan(calibration_error.low)
    if classes > 2:
        area = found.pop(3)
        assert (area.name, np.isnan(area.low)) == ("AUROC", True)
    assert [f.low for f in found] == pytest.approx(low.tolist(), rel=1e-9)
    assert [f.high for f in found] == pytest.approx(high.tolist(), rel=1e-9)


def test_figures_that_every_resample_has_get_no_interval() -> None:
    targets = np.arange(20) % 4
    found = {f.name: f for f in classification_figures(targets, np.eye(4)[targets])}
    assert found["accuracy"].value == found["balanced accuracy"].value == 1
    assert np.isnan([found["accuracy"].low, found["balanced accuracy"].high]).all()
    assert error_bound(20) == pytest.approx(0.1391, abs=1e-4)


def test_a_class_without_samples_counts_for_no_balanced_accuracy_and_leaves_no_area() -> None:
    targets, outputs = probabilities(60, 4)
    targets %= 3
    found = {f.name: f.value for f in classification_figures(targets, outputs)}
    expected = figures_of(["balanced_accuracy", "auroc"], "classes", outputs, targets)
    assert found["balanced accuracy"] == pytest.approx(expected["balanced_accuracy"])
    assert np.isnan([found["AUROC"], expected["auroc"]]).all()


def test_intervals_of_values_are_those_of_a_slow_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradflow.training.report.numbers.RESAMPLES", 60)
    data = measured(n=25, columns=2)
    drawn = [np.repeat(np.arange(25), w.astype(int)) for weights in resamples(25) for w in weights]
    slow = [
        [sklearn_metrics.r2_score(data.targets[rows], data.outputs[rows])]
        + [
            score(data.targets[rows, j], data.outputs[rows, j])
            for j in range(2)
            for score in (
                sklearn_metrics.r2_score,
                sklearn_metrics.root_mean_squared_error,
                sklearn_metrics.mean_absolute_error,
            )
        ]
        for rows in drawn
    ]
    low, high = np.percentile(slow, [2.5, 97.5], axis=0)
    found = regression_figures(data.targets, data.outputs, ["a: ", "b: "])
    assert [f.low for f in found] == pytest.approx(low.tolist(), rel=1e-9)
    assert [f.high for f in found] == pytest.approx(high.tolist(), rel=1e-9)


def test_resamples_draw_each_sample_equally_often() -> None:
    weights = np.concatenate(list(resamples(50)))
    assert weights.shape == (RESAMPLES, 50)
    assert (weights.sum(axis=1) == 50).all()
    assert abs(weights.mean(axis=0) - 1).max() < 5 / np.sqrt(RESAMPLES)
    assert weights.var() == pytest.approx(1 - 1 / 50, rel=0.05)  # a binomial number of draws


def test_very_many_samples_have_fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [resample_count(n) for n in (2, 25_000, 50_000, 10**9)] == [RESAMPLES, RESAMPLES, 1000, 200]
    monkeypatch.setattr("gradflow.training.report.numbers._MOST_DRAWS", 3000)
    assert sum(map(len, resamples(10))) == 300


def test_the_interval_of_the_accuracy_is_that_of_a_binomial_number() -> None:
    from scipy import stats

    targets, outputs = probabilities(200, 5)
    accuracy = classification_figures(targets, outputs)[0]
    expected = stats.binom.ppf([0.025, 0.975], 200, accuracy.value) / 200
    assert [accuracy.low, accuracy.high] == pytest.approx(expected.tolist(), abs=1.01 / 200)


@pytest.mark.parametrize(("n", "right"), [(1, 0), (1, 1), (7, 3), (200, 199)])
def test_intervals_of_shares_are_wilsons(n: int, right: int) -> None:
    from scipy import stats

    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_calibration_counts_each_sample_once() -> None:
    targets, outputs = probabilities(500, 4)
    bins = calibration(targets, outputs)
    assert bins.counts.sum() == 500
    right = np.nansum(bins.counts * bins.accuracy)
    assert right == pytest.approx((outputs.argmax(axis=1) == targets).sum())
    gaps = np.nansum(bins.counts * abs(bins.accuracy - bins.confidence)) / 500
    assert gaps == pytest.approx(figures_of(["calibration_error"], "classes", outputs, targets)["calibration_error"])


@pytest.mark.parametrize("case", ["classes", "two classes", "pictures", "one sample", "no mistakes"])
def test_the_matrix_is_scikit_learns(pages: dict[str, str], case: str) -> None:
    data = CASES[case]
    predicted = data.outputs.argmax(axis=1)
    labels = range(len(data.classes))
    expected = sklearn_metrics.confusion_matrix(data.targets, predicted, labels=labels)
    assert (confusion(data.targets, predicted, len(labels)) == expected).all()
    rows = Page(pages[case]).table("actual ↓predicted →", *data.classes, "total")
    for row, counts, name in zip(rows, expected, data.classes, strict=True):
        cells = [f"{n}{shown(n / counts.sum())}" if n else "0" for n in counts]
        assert row == [name, *cells, str(counts.sum())]


@pytest.mark.parametrize("case", ["classes", "two classes", "many classes", "one sample"])
def test_the_table_of_classes_is_scikit_learns(pages: dict[str, str], case: str) -> None:
    data = CASES[case]
    labels = range(len(data.classes))
    expected = sklearn_metrics.precision_recall_fscore_support(
        data.targets, data.outputs.argmax(axis=1), labels=labels, zero_division=np.nan
    )
    rows = {row[0]: row[1:] for row in Page(pages[case]).table("class", "support", "precision", "recall", "F1")}
    assert len(rows) == len(labels)
    for name, *scores, support in zip(data.classes, *expected, strict=True):
        assert rows[name][0] == str(support)
        given = [s if s == s else None for s in scores]
        assert [None if v == "\u2013" else v for v in rows[name][1:]] == [s if s is None else shown(s) for s in given]


def test_many_classes_show_the_pairs_that_are_confused_most(pages: dict[str, str]) -> None:
    data = CASES["many classes"]
    wrong = sklearn_metrics.confusion_matrix(data.targets, data.outputs.argmax(axis=1), labels=range(60))
    support = wrong.sum(axis=1)
    np.fill_diagonal(wrong, 0)
    rows = Page(pages["many classes"]).table("actual", "predicted", "samples", "share")
    assert [int(row[2]) for row in rows] == sorted(wrong.ravel().tolist(), reverse=True)[:20]
    for actual, predicted, n, share in rows:
        i, j = data.classes.index(actual), data.classes.index(predicted)
        assert wrong[i, j] == int(n)
        assert share == shown(int(n) / support[i])


def test_the_most_confident_mistakes_come_first(pages: dict[str, str]) -> None:
    data = CASES["classes"]
    predicted, sure = data.outputs.argmax(axis=1), data.outputs.max(axis=1)
    wrong = sorted(np.flatnonzero(predicted != data.targets), key=lambda i: -sure[i])[:12]
    rows = Page(pages["classes"]).table("row", "actual", "predicted", "probability", "most unusual features")
    assert [int(row[0]) for row in rows] == [7000 + i for i in wrong]
    for i, row in zip(wrong, rows, strict=True):
        assert row[1:4] == [f"class {data.targets[i]}", f"class {predicted[i]}", shown(sure[i])]
        away = (data.inputs[i] - data.means) / data.deviations
        farthest = int(abs(away).argmax())
        assert row[4].startswith(f"feature {farthest} ")
        assert f"({away[farthest]:+.1f} sd)".replace("-", "\u2212") in row[4]


def test_the_largest_errors_come_first(pages: dict[str, str]) -> None:
    data = CASES["values"]
    errors = (data.targets - data.outputs)[:, 0]
    rows = Page(pages["values"]).table("row", "actual", "predicted", "actual \u2212 predicted", "most unusual features")
    order = sorted(range(200), key=lambda i: -abs(errors[i]))[:12]
    assert [int(row[0]) for row in rows] == [7000 + i for i in order]
    assert [float(row[3].replace("\u2212", "-")) for row in rows] == pytest.approx(errors[order].tolist(), abs=0.51)


@pytest.mark.parametrize("case", ["values", "huge values", "classes"])
def test_the_title_of_an_axis_stands_above_its_numbers(pages: dict[str, str], case: str) -> None:
    figures = [figure for figure in re.findall("<svg.*?</svg>", pages[case]) if '<text x="0" y="10">' in figure]
    assert len(figures) == (1 if case == "classes" else 2)
    for figure in figures:
        numbers = [float(y) for y in re.findall(r'<text class="end" x="48" y="([\d.]+)">', figure)]
        assert len(numbers) > 2
        assert min(numbers) - 10 > 10  # the height of a line
        assert "rotate" not in figure


@pytest.mark.parametrize(("shape", "channels"), [((5, 4), 1), ((5, 4, 1), 1), ((5, 4, 3), 3), ((5, 4, 4), 4)])
def test_pictures_are_pngs(shape: tuple[int, ...], channels: int) -> None:
    from matplotlib import image

    values = np.random.default_rng(0).integers(-8, 17, size=np.prod(shape)).astype(np.float32)
    uri = picture(values, shape, -8, 16)
    assert uri.startswith("data:image/png;base64,")
    found = image.imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert np.reshape(found, (5, 4, -1))[:, :, :channels] == pytest.approx(
        ((values + 8) / 24).reshape(5, 4, channels), abs=1 / 255
    )


def test_pictures_of_mistakes_are_in_the_page(pages: dict[str, str]) -> None:
    for case in ("pictures", "colours"):
        data = CASES[case]
        wrong = int((data.outputs.argmax(axis=1) != data.targets).sum())
        assert len(Page(pages[case]).found("img")) == min(12, wrong) > 0
    assert not Page(pages["classes"]).found("img")


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0.89, 0.98, False), (89.3, 97.9, False), (-1e-3, 2e-3, False), (0, 12345, False), (5.0, 5.0, False),
     (0.003, 2.4, True), (1e-9, 1e3, True), (0.12, 3.1, True)],
)  # fmt: skip
def test_each_tick_of_a_figure_says_where_it_is(low: float, high: float, log: bool) -> None:
    axis = Axis(low, high, 0.0, 100.0, log=log)
    assert 2 <= len(axis.ticks) <= 13
    for value, label in axis.ticks:
        assert float(label.replace("\u2212", "-").replace(",", "")) == pytest.approx(value, rel=1e-9, abs=1e-12)
        assert -1e-6 <= axis(value) <= 100 + 1e-6
    assert axis(axis.ticks[0][0]) < axis(axis.ticks[-1][0])
