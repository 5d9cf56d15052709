"""The page of a report: its markup, what it says, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradflow.training import Settings, train
from gradflow.training.layers import Spread, histograms
from gradflow.training.report import report_html
from gradflow.training.report.figures import MOST_POINTS
from gradflow.training.report.layers import layers_section
from gradflow.training.report.tables import date_ticks
from tests.reports import CASES, HOSTILE, Page, classified, history, measured, shown, snapshots

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: report_html(data) for name, data in CASES.items()}


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


def test_a_table_comes_after_its_figures_and_its_rows_count_as_in_the_file(pages: dict[str, str]) -> None:
    page = Page(pages["a table"])
    links = [str(a["href"]) for a in page.found("a")]
    assert links[:5] == ["#figures", "#columns", "#importance", "#dependence", "#training"]
    given = replace(CASES["a table"], rows=None, settings={**CASES["a table"].settings, "test_file": "x/new.csv"})
    told = Page(report_html(given))
    assert "Rows of new.csv count from 1, without the header, blank lines and rows that have no" in told.text
    assert given.targets is not None
    rows = told.table("row", "actual", "predicted", "probability")
    assert [row[1] for row in rows] == [f"class {given.targets[int(row[0]) - 1]}" for row in rows]


def test_text_from_outside_is_escaped(pages: dict[str, str]) -> None:
    for case in ("hostile", "hostile columns", "a hostile table"):
        html, page = pages[case], Page(pages[case])
        assert "<script" not in html
        assert "onerror=alert" not in html.replace(escape(HOSTILE[1]), "")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", html)
        assert HOSTILE[0] in page.text
        assert HOSTILE[1] in page.text
        assert "&amp;lt;" not in html  # escaped twice
    named = [name for name in (HOSTILE[3], HOSTILE[4], HOSTILE[5]) if f"<bdi>{name}</bdi>" in pages["hostile"]]
    assert len(named) == 3
    assert HOSTILE[6] not in re.sub("<pre>.*?</pre>|<div.*?facts.*?</div>", "", pages["hostile"])  # cut


@pytest.mark.parametrize(
    ("first", "last", "labels"),
    [
        ("2019-01-01", "2020-08-05", ["2019-01", "2019-07", "2020-01", "2020-07"]),
        ("1903-01-01", "2026-01-01", ["1950", "2000"]),
        ("2021-03-04", "2021-03-09", ["2021-03-04", "2021-03-06", "2021-03-08"]),
        ("2021-03-04T10:01", "2021-03-04T10:14", ["03-04 10:05", "03-04 10:10"]),
    ],
)
def test_axes_of_dates_have_round_dates(first: str, last: str, labels: list[str]) -> None:
    low, high = np.array([first, last], "datetime64[us]").astype(float) / 86_400e6
    ticks = date_ticks(low, high)
    assert [label for _, label in ticks] == labels
    assert low <= ticks[0][0] < ticks[-1][0] <= high


def test_equal_data_give_equal_text() -> None:
    assert report_html(classified()) == report_html(classified())
    assert report_html(classified()) != report_html(classified(seed=1))


@pytest.mark.parametrize("name", ["iris", "diabetes"])
def test_the_report_of_a_run_tells_its_figures(name: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    result = train(Settings(name, epochs=3, hidden=(8,), ensemble=2, device="cpu"), tmp_path / "run")
    page = Page((tmp_path / "run" / "report.html").read_text("utf-8"))
    rows = {row[0]: row[1] for row in page.table("figure", "value", "95\u202f% interval")}
    if name == "iris":
        assert rows["accuracyshare of the samples whose class is predicted correctly"] == shown(
            result.figures["accuracy"]
        )
    else:
        r2 = next(float(value.replace("\u2212", "-")) for row, value in rows.items() if row.startswith("R²"))
        assert r2 == pytest.approx(result.figures["r2"], abs=0.01)
    assert f"best epoch ({result.best[0].epoch} and {result.best[1].epoch})" in page.text
    assert "An ensemble of 2 multilayer perceptrons" in page.text
    assert f"gradflow train --config {tmp_path / 'run'}" in page.text


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("diverged", ["Training ended early, after 12 of 12 epochs: the loss became nan in epoch 13"]),
        ("diverged at once", ["after 0 of 12 epochs", "There are no figures, because the weights"]),
        ("no test set", ["There is no test set.", "Figures on the validation samples", "of 300 validation samples"]),
        ("nothing held out", ["No samples were held out"]),
        ("two classes", ["The calibration error has none"]),
        ("one sample", ["A single sample has no interval."]),
        ("no mistakes", ["It is right for 100.0 % of 20 test samples, which it never saw before.",
                         "None of the 20 test samples is predicted wrong", "the error rate is below 13.9 %"]),
        ("an ensemble", ["An ensemble of 3 multilayer perceptrons", "12, 9, and 12 epochs", "line for each member"]),
        ("classes", ["1,500 samples of 12 features, with 5 classes", "1,000 trained the model, 200 validated it",
                     "AdamW with a learning rate of 0.002, which falls to 0 along half a cosine, and weight decay 0.01",
                     "12\u201332\u201316\u20135 units, ReLU between them, and has 1,029 parameters",
                     "took 4.2 s", "Kept are the weights of epoch 12", "gradflow train --config runs/digits-1"]),
        ("watched", ["Inside the network", "Taken at the end of 5 of 12 epochs.", "About 0.001, the dashed line"]),
        ("watched and deep", ["Shown are 8 of 30 layers."]),
        ("watched and diverged", ["Weights are not finite from epoch 12 on, first in 0.weight, 0.bias, 1.weight and"]),
        ("pictures", ["Rows count from 0", "clipped at 3 standard deviations"]),
        ("values", ["predicts a value of digits from 12 features", "It reaches an R² of"]),
        ("three values", ["R², mean of the targets", "target 2: RMSE", "Rows and features count from 0"]),
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


def test_each_layer_has_a_line_and_histograms(pages: dict[str, str]) -> None:
    watched = pages["watched"]
    assert watched.count('<path class="ridge"') == 2 * 3 * 5  # weights and gradients, layers, epochs
    assert watched.count('<path class="layer"') == 3 + 3 + 3 + 2 + 1  # the key, ratios, gradients, dead units, rate
    assert pages["watched and diverged"].count('<path class="ridge"') == 2 * 3 * 4
    assert pages["watched and diverged"].count("none is finite</text>") == 2 * 3
    assert "Dead units" in watched
    assert "Dead units" not in pages["watched and diverged"]
    labels = [svg["aria-label"] for svg in Page(watched).found("svg") if "aria-label" in svg]
    assert "Weights of 0.weight, histograms by epoch: RMS from 0.1 to 0.1" in labels
    assert "Inside the network" not in pages["classes"]


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

    css = (files("gradflow.training.report") / "report.css").read_text("utf-8")
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


# ---------------------------------------------------------------------- in a browser


MEASURE = """
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, root = page.documentElement;
    const clipped = [...page.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, pre, svg, .matrix")
        && e.getBoundingClientRect().right > root.clientWidth + 1).map((e) => e.outerHTML.slice(0, 80));
    const outside = [...page.querySelectorAll("svg[role=img] text")].filter((e) => {
      const own = e.getBoundingClientRect(), figure = e.closest("svg").getBoundingClientRect();
      return own.left < figure.left - 12 || own.right > figure.right + 12;  // less than the margin of the page
    }).map((e) => e.textContent);
    return {
      width: root.clientWidth, scrolls: root.scrollWidth, clipped, outside,
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
    (folder / "all.html").write_text(
        f'<!doctype html><meta charset="utf-8"><pre id="found"></pre>{frames}{MEASURE}', "utf-8"
    )
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
    assert page["outside"] == []
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


ZEROS = histograms(np.zeros(500, np.float32), [500])[0]


def test_layers_whose_gradient_is_0_are_drawn_and_named() -> None:
    found = []
    for s in snapshots():
        gradients = {n: Spread(0.0, ZEROS) if n[0] in "01" else g for n, g in s.gradients.items()}
        found.append(replace(s, gradients=gradients, dead={"0": 1.0}))
    page = layers_section(found)
    assert "The gradient is exactly 0 in all epochs: 0.weight and 1.weight." in page
    assert "All units are dead, so that no gradient passes: 0." in page
    assert page.count("all 0") == 2 * 5  # layers, epochs
    gradients = page.split("RMS of the gradient, logarithmic</h3>")[1].split("</svg>")[0]
    assert gradients.count('<path class="layer"') == gradients.count(' d="M58') == 3
    assert ">0</text>" in gradients


def test_a_gradient_that_becomes_0_is_told_with_its_epoch() -> None:
    *before, last = snapshots()
    last = replace(last, gradients={n: Spread(0.0, ZEROS) for n in last.gradients})
    text = layers_section([*before, last])
    assert "The gradient is exactly 0 from epoch 12 on: 0.weight, 1.weight, and 2.weight." in text
