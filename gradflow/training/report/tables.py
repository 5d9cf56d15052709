"""The sections of a report on a table: its columns, how much each matters, and how predictions depend on them."""

from __future__ import annotations

import unicodedata
from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np

from gradflow.training.report.data import Dependence, Importance, ReportData, TableFacts
from gradflow.training.report.figures import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Axis, axes, svg
from gradflow.training.report.markup import Number, name, table, text
from gradflow.training.report.numbers import Floats

MOST_BARS = 30
"""How many columns the figure of their importance has at most."""

MOST_LINES = 4
"""How many classes a figure has lines for, at most: those that are predicted most."""

_BAR, _NAMES, _LEVELS = 18, 150, 110
_LONGEST, _LONGEST_LEVEL = 21, 15  # characters of a name in a figure, and of a level
_STEPS = [
    *(("m", n) for n in (1, 5, 15)), *(("h", n) for n in (1, 3, 6, 12)), *(("D", n) for n in (1, 2, 7, 14)),
    *(("M", n) for n in (1, 3, 6)), *(("Y", n * 10**power) for power in range(4) for n in (1, 2, 5)),
]  # fmt: skip
"""The steps between ticks of dates."""
_MOST_DATES = 4


def table_sections(data: ReportData, facts: TableFacts) -> Iterator[tuple[str, str, str]]:
    """Yield the sections on a table, each as (identifier, heading, markup)."""
    yield "columns", "The columns", _columns(facts)
    if data.outputs is not None and len(data.outputs):
        many = "<p>There are too many columns to find out how much each of them matters.</p>"
        yield "importance", "How much each column matters", _importance(data, facts) if facts.importance else many
    if facts.dependence:
        yield "dependence", "How predictions depend on the columns", _dependence(data, facts)


def _columns(facts: TableFacts) -> str:
    rows = [
        [name(c["column"]), text(c["kind"]), text(c["treatment"]), Number(c["missing"]), name(c["values"])]
        for c in facts.columns
    ]
    told = "Each column as it is understood, from the training rows. Missing: rows without a value among them."
    head = ["column", "kind", "treatment", "missing", "values"]
    return f'<p class="note">{told}</p>' + table("columns", head, rows, "tall" if len(rows) > MOST_BARS else "")


def _importance(data: ReportData, facts: TableFacts) -> str:
    shown = facts.importance[:MOST_BARS]
    measure = "log loss" if data.classes else "RMSE"
    several = len(shown[0].losses)
    spread = f": the mean of {several} shuffles, with the least and the largest" if several > 1 else ""
    notes = [
        f"By how much the {measure} grows if the values of one column are shuffled among {facts.rows:,} "
        f"{data.assessed} rows{spread}.",
        "Columns that tell the same share what they matter: the model falls back on the others.",
    ]
    if len(shown) < len(facts.importance):
        notes.append(f"Shown are the first {len(shown)} of {len(facts.importance)} columns.")
    return f'<div class="row"><figure>{_bars(shown, measure)}</figure><p class="note">{" ".join(notes)}</p></div>'


def _bars(shown: Sequence[Importance], measure: str) -> str:
    means = [float(each.losses.mean()) for each in shown]
    low = min(0.0, *(float(each.losses.min()) for each in shown))
    high = max(0.0, *(float(each.losses.max()) for each in shown))
    height = TOP + _BAR * len(shown) + BOTTOM
    x = Axis(low, high if high > low else low + 1, _NAMES, WIDTH - RIGHT)
    parts = [f'<path class="grid" d="{"".join(f"M{x(v):.1f} {TOP}V{height - BOTTOM}" for v, _ in x.ticks)}"/>']
    parts += [
        f'<text class="middle" x="{x(v):.1f}" y="{height - BOTTOM + 14}">{label}</text>' for v, label in x.ticks[::2]
    ]
    for i, (each, mean) in enumerate(zip(shown, means, strict=True)):
        y = TOP + _BAR * i
        left, right = sorted((x(0), x(mean)))
        parts.append(f'<text class="end" x="{_NAMES - 6}" y="{y + 13}">{text(_short(each.column))}</text>')
        parts.append(f'<rect class="bar" x="{left:.1f}" y="{y + 3}" width="{right - left:.1f}" height="{_BAR - 6}"/>')
        ends = f"M{x(float(each.losses.min())):.1f} {y + _BAR / 2}H{x(float(each.losses.max())):.1f}"
        parts.append(f'<path class="whisker" d="{ends}"/>')
    parts.append(f'<path class="axis" d="M{x(0):.1f} {TOP}V{height - BOTTOM}"/>')
    middle = (_NAMES + WIDTH - RIGHT) / 2
    parts.append(f'<text class="middle" x="{middle:.1f}" y="{height - 5}">growth of the {measure}</text>')
    told = "; ".join(f"{each.column} {mean:.3g}" for each, mean in zip(shown, means, strict=True))
    return svg(height, f"Growth of the {measure} if a column is shuffled: {told}", parts)


def _dependence(data: ReportData, facts: TableFacts) -> str:
    shown = _shown_outputs(data, facts.dependence)
    charts = "".join(
        f"<figure><h3>{name(each.column)}</h3>{_chart(data, facts, each, shown)}</figure>" for each in facts.dependence
    )
    if data.classes:
        what = f"probability of {name(data.classes[1])}" if len(data.classes) == 2 else "probability of each class"
    else:
        what = f"prediction of {name(facts.target)}"
    note = (
        f"The mean {what} if a column had the same value in all {facts.rows:,} {data.assessed} rows, and the other "
        "columns their own: for the columns that matter most, numbers and dates from their 1st to their 99th "
        "percentile, and the most frequent levels. It tells what the model does, not what causes what."
    )
    if len(data.classes) > 2 and len(shown) < len(data.classes):
        note += f" Shown are the {len(shown)} classes of {len(data.classes)} that are predicted most."
    key = "" if len(shown) == 1 else _key([data.classes[j] for j in shown])
    return f'<p class="note">{note}</p>{key}<div class="row">{charts}</div>'


def _shown_outputs(data: ReportData, dependence: Sequence[Dependence]) -> list[int]:
    """Return the outputs that figures show: the second of two classes, the most probable of more."""
    if len(data.classes) <= 2:
        return [len(data.classes) // 2]
    means = np.concatenate([each.means for each in dependence]).mean(axis=0)
    return sorted(np.argsort(-means, kind="stable")[:MOST_LINES].tolist())


def _chart(data: ReportData, facts: TableFacts, each: Dependence, shown: Sequence[int]) -> str:
    means = each.means[:, shown]
    low, high = float(means.min()), float(means.max())
    if data.classes:
        low, high = min(low, max(0.0, high - 0.05)), max(high, min(1.0, low + 0.05))
    elif data.outputs is not None:
        more = max(0.0, 0.05 * float(np.ptp(data.outputs)) - (high - low)) / 2
        low, high = low - more, high + more
    pad = (high - low) * 0.06
    ends = (low - pad, high + pad)
    label = "mean probability" if data.classes else f"mean {_short(facts.target, 2 * _LONGEST)}"
    told = f"{label} by {each.column}, from {means[0, 0]:.3g} to {means[-1, 0]:.3g}"
    if isinstance(each.values, np.ndarray):
        return _lines(each.values, means, ends, (_short(each.column, 2 * _LONGEST), label), told, each.dates)
    return _dots(each.values, means, ends, label, told)


def _lines(
    values: Floats, means: Floats, ends: tuple[float, float], labels: tuple[str, str], told: str, dates: bool
) -> str:
    height = 220
    x = Axis(float(values[0]), float(values[-1]), LEFT + 4, WIDTH - RIGHT - 4)
    x.ticks = date_ticks(x.low, x.high) if dates else x.ticks
    y = Axis(*ends, height - BOTTOM, 26)
    parts = [axes(x, y, height, *labels)]
    for j in range(means.shape[1]):
        points = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in zip(values.tolist(), means[:, j].tolist(), strict=True))
        color = _color(j, means.shape[1])
        parts.append(f'<path class="layer" style="stroke:{color}" d="M{points}"/>')
        if len(values) == 1:
            at = f'cx="{x(float(values[0])):.1f}" cy="{y(float(means[0, j])):.1f}"'
            parts.append(f'<circle style="fill:{color}" {at} r="3.5"/>')
    return svg(height, told, parts)


def _dots(levels: Sequence[str], means: Floats, ends: tuple[float, float], label: str, told: str) -> str:
    height = TOP + _BAR * len(levels) + BOTTOM
    x = Axis(*ends, _LEVELS, WIDTH - RIGHT)
    parts = [f'<path class="grid" d="{"".join(f"M{x(v):.1f} {TOP}V{height - BOTTOM}" for v, _ in x.ticks)}"/>']
    parts += [
        f'<text class="middle" x="{x(v):.1f}" y="{height - BOTTOM + 14}">{tick}</text>' for v, tick in x.ticks[::2]
    ]
    for i, level in enumerate(levels):
        y = TOP + _BAR * i + _BAR / 2
        parts.append(f'<text class="end" x="{_LEVELS - 6}" y="{y + 4}">{text(_short(level, _LONGEST_LEVEL))}</text>')
        parts += [
            f'<circle style="fill:{_color(j, means.shape[1])}" cx="{x(float(mean)):.1f}" cy="{y}" r="3.5"/>'
            for j, mean in enumerate(means[i])
        ]
    parts.append(f'<path class="axis" d="M{_LEVELS} {height - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = (_LEVELS + WIDTH - RIGHT) / 2
    parts.append(f'<text class="middle" x="{middle:.1f}" y="{height - 5}">{text(label)}</text>')
    return svg(height, told, parts)


def _key(classes: Sequence[str]) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 28 10" aria-hidden="true"><path class="layer" style="stroke:{_color(j, len(classes))}"'
        f' d="M0 5H28"/></svg>{name(c)}</li>'
        for j, c in enumerate(classes)
    )
    return f'<ul class="key">{items}</ul>'


def _color(j: int, n: int) -> str:
    """Return the colour of a class: from that of the first to that of the last."""
    share = round(100 * j / (n - 1)) if n > 1 else 0
    return f"color-mix(in oklab, var(--accent), var(--second) {share}%)"


def date_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return at most 4 round dates in a range of days since 1970, in days, with their labels."""
    ends = (np.array([low, high]) * 86_400e6).astype("datetime64[us]")
    for unit, step in _STEPS:
        origin = 1970 if unit == "Y" else 0
        first, last = (ends.astype(f"datetime64[{unit}]").astype(np.int64) + origin).tolist()
        numbers = range(first - first % step, last + 1, step)
        if len(numbers) <= _MOST_DATES + 1:  # the first may lie before the range
            break
    dates = (np.array(numbers, np.int64) - origin).astype(f"datetime64[{unit}]")
    labels = [str(date)[5:].replace("T", " ") for date in dates.astype("datetime64[m]")] if unit in "mh" else dates
    days = dates.astype("datetime64[us]").astype(np.float64) / 86_400e6
    return [(day, str(label)) for day, label in zip(days.tolist(), labels, strict=True) if low <= day <= high]


def _short(words: str, most: int = _LONGEST) -> str:
    """Return a name for a figure, cut if it is wide; letters count as wide as they are in most fonts."""
    widths = (
        2.0 if unicodedata.east_asian_width(c) in "WF" else 1.7 if c in "mwMW@%" else 1.3 if c.isupper() else 1.0
        for c in words
    )
    ends = list(accumulate(widths))
    return words if not ends or ends[-1] <= most else words[: bisect(ends, most - 1)] + "…"
