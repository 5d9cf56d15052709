"""The sections of a report on a table: its columns, how much each matters, and how predictions depend on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from gradflow.training.report.data import Dependence, Importance, ReportData, TableFacts
from gradflow.training.report.figures import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Axis, axes, svg
from gradflow.training.report.markup import Number, count, name, table, text
from gradflow.training.report.numbers import Floats

MOST_BARS = 30
"""How many columns the figure of their importance has at most."""

MOST_LINES = 4
"""How many classes a figure has lines for, at most: those that are predicted most."""

_BAR, _NAMES, _LEVELS = 18, 150, 110
_LONGEST = 22  # characters of a name in a figure


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
    notes = [
        f"By how much the {measure} grows if the values of one column are shuffled among {facts.rows:,} "
        f"{data.assessed} rows: the mean of {count(several, 'shuffle')}, with the least and the largest.",
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
        parts.append(f'<text class="end" x="{_NAMES - 6}" y="{y + 13}">{_cut(each.column)}</text>')
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
        "columns their own: for the columns that matter most, numbers from their 1st to their 99th percentile, and "
        "the most frequent levels. It tells what the model does, not what causes what."
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
    pad = (high - low) * 0.06
    ends = (low - pad, high + pad)
    label = "mean probability" if data.classes else f"mean {facts.target}"
    told = f"{label} by {each.column}, from {means[0, 0]:.3g} to {means[-1, 0]:.3g}"
    if isinstance(each.values, np.ndarray):
        return _lines(each.values, means, ends, (_cut(each.column) + ", year" * each.year, label), told)
    return _dots(each.values, means, ends, label, told)


def _lines(values: Floats, means: Floats, ends: tuple[float, float], labels: tuple[str, str], told: str) -> str:
    height = 220
    x = Axis(float(values[0]), float(values[-1]), LEFT + 4, WIDTH - RIGHT - 4)
    y = Axis(*ends, height - BOTTOM, 26)
    parts = [axes(x, y, height, *labels)]
    for j in range(means.shape[1]):
        points = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in zip(values.tolist(), means[:, j].tolist(), strict=True))
        parts.append(f'<path class="layer" style="stroke:{_color(j, means.shape[1])}" d="M{points}"/>')
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
        parts.append(f'<text class="end" x="{_LEVELS - 6}" y="{y + 4}">{_cut(level, 16)}</text>')
        parts += [
            f'<circle style="fill:{_color(j, means.shape[1])}" cx="{x(float(mean)):.1f}" cy="{y}" r="3.5"/>'
            for j, mean in enumerate(means[i])
        ]
    parts.append(f'<path class="axis" d="M{_LEVELS} {height - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = (_LEVELS + WIDTH - RIGHT) / 2
    parts.append(f'<text class="middle" x="{middle:.1f}" y="{height - 5}">{escape(label)}</text>')
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


def _cut(words: str, most: int = _LONGEST) -> str:
    """Return a name for a figure, cut if it is long."""
    return text(words if len(words) <= most else words[: most - 1] + "…")
