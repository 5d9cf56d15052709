"""The report of a run: its numbers against scikit-learn and slow references, its markup, and the page in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import escape
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from gradflow.training.epoch import Epoch
from gradflow.training.metrics import figures_of
from gradflow.training.report import ReportData, report_html
from gradflow.training.report_figures import MOST_POINTS, Axis, picture, wilson
from gradflow.training.report_numbers import (
    RESAMPLES,
    calibration,
    classification_figures,
    confusion,
    regression_figures,
    resample_count,
    resamples,
)

sklearn_metrics = pytest.importorskip("sklearn.metrics")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "&amp; 'quoted' \x00\x1b[31m\n</table>",
    "محمد علي",
    "\u202etfel ot thgir",
    "👩‍👩‍👧‍👦",
    "nowhitespace" * 30,
    "\ud800",
)


def history(n: int = 12, validated: bool = True, metric: str = "accuracy") -> list[Epoch]:
    losses = [2.0 / i + 0.01 * i for i in range(1, n + 1)]
    best = losses.index(min(losses))
    return [
        Epoch(
            i + 1, 10 * i, 0.1, 0.8 * loss, {metric: 0.9 - loss / 4},
            loss if validated else None, {metric: 0.9 - loss / 3} if validated else {},
            max(0, i - best), 1.0, 1.0,
        )
        for i, loss in enumerate(losses)
    ]  # fmt: skip


def probabilities(n: int, classes: int, seed: int = 0) -> tuple[Any, Any]:
    """Labels, and probabilities of a model that is often right."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(classes, size=n)
    powers = np.exp(2 * (rng.normal(size=(n, classes)) + 2 * np.eye(classes)[targets]))
    return targets, powers / powers.sum(axis=1, keepdims=True)


SETTINGS = {
    "dataset": "digits", "optimizer": "adamw", "lr": 0.002, "weight_decay": 0.01, "momentum": None, "batch_size": 64,
    "schedule": "cosine", "epochs": 12, "dropout": 0.2, "activation": "relu", "hidden": [32, 16], "seed": 0,
}  # fmt: skip


def classified(n: int = 300, k: int = 5, seed: int = 0, **other: Any) -> ReportData:
    targets, outputs = probabilities(n, k, seed)
    names = HOSTILE if k == len(HOSTILE) else [f"class {c}" for c in range(k)]
    inputs = np.random.default_rng(seed).normal(size=(n, 12)).astype(np.float32)
    given: dict[str, Any] = {
        "name": "digits-1", "dataset": "digits", "settings": SETTINGS, "environment": {"python": "3.11"},
        "sizes": (12, 32, 16, k), "counts": (1000, 200, n), "histories": [history()], "inputs": inputs,
        "targets": targets, "outputs": outputs, "rows": np.arange(n) + 7000, "means": inputs.mean(0),
        "deviations": inputs.std(0), "classes": names, "seconds": 4.2,
        "command": "gradflow train --config runs/digits-1",
    }  # fmt: skip
    return ReportData(**(given | other))


def measured(n: int = 200, columns: int = 1, columns_named: Sequence[str] = (), **other: Any) -> ReportData:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(n, columns)) * 50 + 100
    given: dict[str, Any] = {
        "targets": targets, "outputs": targets + rng.normal(size=targets.shape) * 20, "classes": (),
        "sizes": (12, 32, columns), "histories": [history(metric="r2")], "columns": columns_named,
    }  # fmt: skip
    return classified(n, **(given | other))


class Page(HTMLParser):
    """The parts of a page; raises where tags are not closed in the order in which they were opened."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.headings: list[int] = []
        self.declaration = ""
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_decl(self, decl: str) -> None:
        self.declaration = decl

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [key for key, _ in attrs]
        assert len(set(names)) == len(names)
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert "svg" in self.open

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "text"):
            self.words.append(data)
            if {"td", "th"} & set(self.open):
                self.tables[-1][-1][-1] += data

    def found(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def table(self, *head: str) -> list[list[str]]:
        """The rows of the table whose header is this."""
        (rows,) = [rows for first, *rows in self.tables if first == list(head)]
        return rows


def shown(share: float) -> str:
    return f"{100 * share:.1f}\u202f%"


ENSEMBLE = [history(12), history(9), history(12)]
DIVERGED = "the loss became nan in epoch 13; try a lower learning rate"
CASES = {
    "classes": classified(),
    "two classes": classified(k=2, n=40),
    "pictures": classified(image_shape=(3, 4)),
    "colours": classified(image_shape=(2, 2, 3)),
    "many classes": classified(n=1000, k=60),
    "hostile": classified(
        k=8, stopped=HOSTILE[1], name=HOSTILE[0], dataset=HOSTILE[1], environment={HOSTILE[0]: HOSTILE[6]},
        command=f"gradflow train '{HOSTILE[2]}'", features=[f"{HOSTILE[i % 8]} {i}" for i in range(12)],
    ),
    "hostile columns": measured(columns=3, columns_named=HOSTILE[:3]),
    "one sample": classified(n=1),
    "one epoch": classified(histories=[history(1)]),
    "no mistakes": classified(n=20, outputs=np.eye(5)[probabilities(20, 5)[0]]),
    "an ensemble": classified(histories=ENSEMBLE),
    "diverged": classified(stopped=DIVERGED),
    "diverged at once": classified(histories=[[]], stopped=DIVERGED, outputs=np.full((300, 5), np.nan)),
    "no test set": classified(assessed="validation", counts=(1000, 300, 0)),
    "nothing held out": classified(
        histories=[history(validated=False)], counts=(1000, 0, 0), inputs=None, targets=None, outputs=None, rows=None
    ),
    "values": measured(),
    "three values": measured(columns=3),
    "one value": measured(n=1),
    "equal values": measured(targets=np.ones((200, 1)), outputs=np.ones((200, 1))),
}  # fmt: skip


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: report_html(data) for name, data in CASES.items()}


# ---------------------------------------------------------------------- the markup


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_well_formed_and_loads_nothing(pages: dict[str, str], case: str) -> None:
    html = pages[case]
    page = Page(html)
    assert page.declaration == "doctype html"
    assert page.found("html") == [{"lang": "en"}]
    assert not page.found("script")
    assert not page.found("link")
    assert {"http-equiv", "content"} in [set(m) for m in page.found("meta")]
    sources = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert [s for s in sources if s is None or not s.startswith(("data:image/png;base64,", "#"))] == []
    assert not re.search(r"url\(|@import|https?:", html)
    assert html.encode("utf-8").decode("utf-8") == html


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_accessible(pages: dict[str, str], case: str) -> None:
    page = Page(pages[case])
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
    assert all(th.get("scope") in ("col", "row") for th in page.found("th"))
    assert all(img.get("alt") for img in page.found("img"))
    for svg in page.found("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and svg["aria-label"])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {f"#{i}" for i in ids} == {a["href"] for a in page.found("a")}
    assert all(
        box["tabindex"] == "0" and box["aria-label"] for box in page.found("div") if box.get("class") == "scroll"
    )


def test_text_from_outside_is_escaped(pages: dict[str, str]) -> None:
    for case in ("hostile", "hostile columns"):
        html, page = pages[case], Page(pages[case])
        assert "<script" not in html
        assert "onerror=alert" not in html.replace(escape(HOSTILE[1]), "")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", html)
        assert HOSTILE[0] in page.text
        assert HOSTILE[1] in page.text
    named = [name for name in (HOSTILE[3], HOSTILE[4], HOSTILE[5]) if f"<bdi>{name}</bdi>" in pages["hostile"]]
    assert len(named) == 3
    assert HOSTILE[6] not in re.sub("<pre>.*?</pre>|<div.*?facts.*?</div>", "", pages["hostile"])  # cut


def test_equal_data_give_equal_text() -> None:
    assert report_html(classified()) == report_html(classified())
    assert report_html(classified()) != report_html(classified(seed=1))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("diverged", ["Training ended early, after 12 of 12 epochs: the loss became nan in epoch 13"]),
        ("diverged at once", ["after 0 of 12 epochs", "There are no figures, because the weights"]),
        ("no test set", ["There is no test set.", "Figures on the validation samples", "of 300 validation samples"]),
        ("nothing held out", ["No samples were held out"]),
        ("one sample", ["A single sample has no interval."]),
        ("no mistakes", ["It is right for 100.0 % of 20 test samples, which it never saw before.",
                         "None of the 20 test samples is predicted wrong", "the error rate is below 13.9 %"]),
        ("an ensemble", ["An ensemble of 3 multilayer perceptrons", "12, 9, and 12 epochs", "line for each member"]),
        ("classes", ["1,500 samples of 12 features, with 5 classes", "1,000 trained the model, 200 validated it",
                     "AdamW with a learning rate of 0.002, which falls to 0 along half a cosine, and weight decay 0.01",
                     "12\u201332\u201316\u20135 units, ReLU between them, and has 1,029 parameters",
                     "took 4.2 s", "Kept are the weights of epoch 12", "gradflow train --config runs/digits-1"]),
        ("values", ["predicts a value of digits from 12 features", "It reaches an R² of"]),
        ("three values", ["R², mean of the targets", "target 3: RMSE"]),
    ],
)  # fmt: skip
def test_what_the_page_says(pages: dict[str, str], case: str, words: list[str]) -> None:
    text = Page(pages[case]).text
    assert [w for w in words if w not in text] == []
    if case == "classes":
        assert not re.search("ended early|no test set|held out", text)


def test_an_ensemble_has_the_curves_of_all_members(pages: dict[str, str]) -> None:
    assert pages["classes"].count('class="curve validation"') == 3  # loss, accuracy, and the key
    assert pages["an ensemble"].count('class="curve validation many"') == 6
    assert pages["an ensemble"].count('class="best"') == 7
    assert not re.search('class="(curve|dot) validation', pages["nothing held out"])


def test_pages_are_small() -> None:
    assert max(len(report_html(data).encode()) for data in CASES.values()) < 200_000
    digits = classified(n=360, inputs=np.random.default_rng(0).random((360, 784)), image_shape=(28, 28))
    assert len(report_html(digits).encode()) < 500_000


@pytest.mark.slow
def test_pages_of_many_samples_are_small() -> None:
    histories = [history(2000)] * 8
    assert len(report_html(classified(n=10_000, k=100, histories=histories)).encode()) < 2_000_000
    values = report_html(measured(n=10_000, columns=4, histories=histories))
    assert len(values.encode()) < 2_000_000
    assert values.count("h0M") < 8 * MOST_POINTS
    assert "one in 5 of the 10,000 samples" in values


def test_colours_have_enough_contrast() -> None:
    def luminance(color: Sequence[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: Sequence[float], b: Sequence[float]) -> float:
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    css = (files("gradflow.training") / "report.css").read_text("utf-8")
    themes = re.findall(r":root \{(.*?)\}", css, re.S)
    assert len(themes) == 3  # light, dark, print
    for theme in themes:
        color = {
            k: [int(v[i : i + 2], 16) / 255 for i in (0, 2, 4)] for k, v in re.findall(r"--(\w+): #(\w{6})", theme)
        }
        for ink in ("ink", "muted", "accent", "second"):
            assert min(contrast(color[ink], color[ground]) for ground in ("page", "panel")) >= 4.5
        strongest = {"accent": 0.42, "second": 0.08 + 0.45}  # of the matrix's cells
        for name, share in strongest.items():
            shade = [int(v) / 255 for v in re.findall(rf"--{name}-rgb: (\d+) (\d+) (\d+)", theme)[0]]
            mixed = [share * s + (1 - share) * p for s, p in zip(shade, color["page"], strict=True)]
            assert contrast(color["ink"], mixed) >= 4.5
    assert "var(--share) * 0.42" in css
    assert "0.08 + var(--share) * 0.45" in css


# ---------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("classes", [2, 5])
def test_figures_are_those_of_the_metrics(classes: int) -> None:
    targets, outputs = probabilities(100, classes)
    names = ["accuracy", "f1", *(["auroc"] if classes == 2 else []), "log_loss", "calibration_error"]
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
    monkeypatch.setattr("gradflow.training.report_numbers.RESAMPLES", 60)
    monkeypatch.setattr("gradflow.training.report_numbers._DRAWS", 500)  # of samples at a time, so in several parts
    targets, outputs = probabilities(25, classes)
    outputs = outputs.round(1) + 0.01  # ties
    outputs /= outputs.sum(axis=1, keepdims=True)
    drawn = [np.repeat(np.arange(25), w.astype(int)) for weights in resamples(25) for w in weights]
    assert len(drawn) == 60
    names = ["accuracy", "f1", *(["auroc"] if classes == 2 else []), "log_loss", "calibration_error"]
    slow = [list(figures_of(names, "classes", outputs[rows], targets[rows]).values()) for rows in drawn]
    low, high = np.percentile(slow, [2.5, 97.5], axis=0)
    found = classification_figures(targets, outputs)
    assert [f.low for f in found] == pytest.approx(low.tolist(), rel=1e-9)
    assert [f.high for f in found] == pytest.approx(high.tolist(), rel=1e-9)


def test_intervals_of_values_are_those_of_a_slow_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradflow.training.report_numbers.RESAMPLES", 60)
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


def test_very_many_samples_have_fewer_resamples() -> None:
    assert [resample_count(n) for n in (2, 25_000, 50_000, 10**9)] == [RESAMPLES, RESAMPLES, 1000, 200]
    assert sum(map(len, resamples(300_000))) == 200


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
        assert row[4].startswith(f"feature {farthest + 1} ")
        assert f"({away[farthest]:+.1f} sd)".replace("-", "\u2212") in row[4]


def test_the_largest_errors_come_first(pages: dict[str, str]) -> None:
    data = CASES["values"]
    errors = (data.targets - data.outputs)[:, 0]
    rows = Page(pages["values"]).table("row", "actual", "predicted", "actual \u2212 predicted", "most unusual features")
    order = sorted(range(200), key=lambda i: -abs(errors[i]))[:12]
    assert [int(row[0]) for row in rows] == [7000 + i for i in order]
    assert [float(row[3].replace("\u2212", "-")) for row in rows] == pytest.approx(errors[order].tolist(), abs=0.51)


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


# ---------------------------------------------------------------------- in a browser


MEASURE = """
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, root = page.documentElement;
    const clipped = [...page.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, pre, svg, .matrix")
        && e.getBoundingClientRect().right > root.clientWidth + 1).map((e) => e.outerHTML.slice(0, 80));
    return {
      width: root.clientWidth, scrolls: root.scrollWidth, clipped,
      loaded: frame.contentWindow.performance.getEntriesByType("resource").map((e) => e.name),
      headings: [...page.querySelectorAll("h1, h2, h3")].map((e) => e.textContent),
      heights: [...page.querySelectorAll("svg[role=img], img")].map((e) => e.getBoundingClientRect().height),
      background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    };
  });
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


@pytest.fixture(scope="module")
def in_browser(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What Chromium finds in each page at 360 and 1280 pixels, and what it writes to its log."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; on Debian: apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")
    broken = "<!doctype html><div style='width: 2000px'>wide</div><img src='https://pictures.invalid/x.png'>"
    shown = [*pages.items(), ("broken", broken)]
    keys = [f"{name} {width}" for name, _ in shown for width in (360, 1280)]
    frames = "".join(
        f'<iframe width="{width}" height="800" style="border: 0" srcdoc="{escape(html)}"></iframe>'
        for _, html in shown
        for width in (360, 1280)
    )
    (folder / "all.html").write_text(f'<!doctype html><pre id="found"></pre>{frames}{MEASURE}', "utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--dump-dom",
               "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]  # fmt: skip
    done = subprocess.run(
        [CHROMIUM, *options, (folder / "all.html").as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    written = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert written is not None, done.stderr
    found = json.loads(re.sub("&lt;", "<", re.sub("&gt;", ">", re.sub("&amp;", "&", written.group(1)))))
    return dict(zip(keys, found, strict=True)), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("case", CASES)
def test_the_page_in_a_browser(in_browser: Any, pages: dict[str, str], case: str, width: int) -> None:
    page = in_browser[0][f"{case} {width}"]
    assert width - 20 <= page["width"] <= width
    assert page["scrolls"] == page["width"]
    assert page["clipped"] == []
    assert page["loaded"] == []
    assert len(page["headings"]) == len(Page(pages[case]).headings) >= 3
    assert all(height > 50 for height in page["heights"])


@pytest.mark.slow
def test_the_browser_reports_no_errors_but_those_of_a_broken_page(in_browser: Any) -> None:
    """The last page overflows and asks for a picture, which shows that the test above would notice."""
    found, log = in_browser
    broken = found["broken 360"]
    assert broken["scrolls"] > broken["width"]
    assert broken["clipped"]
    assert broken["loaded"] == ["https://pictures.invalid/x.png"]
    messages = [line for line in log.splitlines() if "CONSOLE" in line]
    assert [line for line in messages if "pictures.invalid" not in line and "ERR_NAME_NOT_RESOLVED" not in line] == []
