"""The section of a report on the layers: histograms of weights and gradients, what a step changes, dead units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from gradflow.training.layers import EDGES, Array, Snapshot, Spread
from gradflow.training.report.figures import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Axis, axes, line, svg
from gradflow.training.report.markup import listed, text

_MOST_LAYERS = 8
_MOST_ROWS = 9
_ROW, _PEAK = 20, 38  # the distance between two histograms, and the height of the highest peak
_NAMES, _NAME, _MOST_LETTERS = 52, 11, 9  # the width of names beside lines, the height of one, and its letters
_BINS = 72  # of the histograms of weights
_USUAL = 1e-3  # update / weight

_RATIO = (
    "The RMS of what the last step of an epoch changed, divided by the RMS of the weights. About 0.001, the dashed "
    "line, is usual (Karpathy, CS231n: Ratio of weights:updates). Far below it, a layer hardly learns; far above it, "
    "the learning rate is too high."
)
_GRADIENT = (
    "The RMS of the gradient of the last step, which is of one batch. Gradients vanish where the first layers lie "
    "decades below the last ones, and explode where lines rise from epoch to epoch."
)
_DEAD = (
    "Units whose output is 0 for each of up to 1,024 samples. No gradient reaches their weights, so they rarely come "
    "back. A few do no harm; a growing share is width that is lost, often to a learning rate that is too high."
)
_RATE = "That of the last step of each epoch."
_WEIGHTS = "Histograms of the weights, the first epoch at the top; its number is at the left. All have the same area."
_GRADIENTS = (
    "Histograms of the absolute values of the gradient of the last step, on a logarithmic axis; at the right, the "
    "share that is 0, or below 1e-12. A layer whose histogram moves to the left learns less and less."
)


def layers_section(snapshots: Sequence[Snapshot], note: str = "") -> str:
    """Return the markup of the figures on the layers.

    snapshots: in the order of their epochs, at least one. note: a sentence on what they are from.
    """
    names = _shown_layers(snapshots[0])
    parts = [f'<p class="note">{" ".join(filter(None, [note, *_notes(snapshots, names)]))}</p>', _key(names)]
    epochs = [s.epoch for s in snapshots]
    charts = [
        ("Update / weight, logarithmic", _RATIO, _course(snapshots, names, lambda s, n: s.ratios[n]), True, _USUAL),
        ("RMS of the gradient, logarithmic", _GRADIENT, _course(snapshots, names, _gradient), True, None),
    ]
    dead = [name for name in snapshots[0].dead if f"{name}.weight" in names] or [*snapshots[0].dead][:_MOST_LAYERS]
    if dead:
        shares = {f"{n}.weight": [100 * s.dead.get(n, math.nan) for s in snapshots] for n in dead}
        charts.append(("Dead units (%)", _DEAD, shares, False, None))
    figures = [
        _figure(title, told, _chart(title, epochs, courses, names, log, usual))
        for title, told, courses, log, usual in charts
    ]
    rates = {"learning rate": [s.learning_rate for s in snapshots]}
    chart = _chart("Learning rate", epochs, rates, ["learning rate"], False, None)
    figures.append(_figure("Learning rate", _RATE, chart))
    parts.append(f'<div class="row">{"".join(figures)}</div>')
    full = [s for s in snapshots if s.weights[names[0]].counts is not None]
    full = [full[i] for i in _spaced(len(full), _MOST_ROWS)]
    for what, told, spreads in (("Weights", _WEIGHTS, _weights_of), ("Gradients", _GRADIENTS, _gradients_of)):
        ridges = "".join(
            _figure(text(name), "", _ridges(what, name, full, [spreads(s)[name] for s in full])) for name in names
        )
        parts.append(f'<h3>{what} by epoch</h3><p class="note">{told}</p><div class="row ridges">{ridges}</div>')
    return "".join(parts)


def _shown_layers(snapshot: Snapshot) -> list[str]:
    """Return the names of the weights to show, without biases where there are others."""
    names = [name for name in snapshot.weights if name.endswith("weight")] or [*snapshot.weights]
    return [names[i] for i in _spaced(len(names), _MOST_LAYERS)]


def _spaced(n: int, most: int) -> list[int]:
    """Return at most so many of the numbers below n, evenly spaced, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, most)).tolist()})


def _notes(snapshots: Sequence[Snapshot], names: Sequence[str]) -> Iterator[str]:
    total = sum(name.endswith("weight") for name in snapshots[0].weights)
    if total > len(names):
        yield f"Shown are {len(names)} of {total} layers."
    for what, spreads in (("Weights", _weights_of), ("Gradients", _gradients_of)):
        bad = [s for s in snapshots if any(_is_broken(spread, s) for spread in spreads(s).items())]
        if bad:
            where = [text(name) for name, spread in spreads(bad[0]).items() if _is_broken((name, spread), bad[0])]
            first = listed(where) if len(where) < 4 else f"{', '.join(where[:3])} and others"
            yield f"<strong>{what} are not finite from epoch {bad[0].epoch} on, first in {first}.</strong>"
    unreached: dict[int, list[str]] = {}  # by the place of the first snapshot from which on the gradient is 0
    for name in snapshots[-1].gradients:
        others = [i for i, s in enumerate(snapshots) if s.gradients[name].rms != 0]
        since = others[-1] + 1 if others else 0
        if name.endswith("weight") and since < len(snapshots):
            unreached.setdefault(since, []).append(text(name))
    for since, zeros in sorted(unreached.items()):
        when = f"from epoch {snapshots[since].epoch} on" if since else "in all epochs"
        yield f"<strong>The gradient is exactly 0 {when}: {_some(zeros)}.</strong>"
    lost = [text(name) for name in dead_layers(snapshots)]
    if lost:
        yield f"<strong>All units are dead, so that no gradient passes: {_some(lost)}.</strong>"


def dead_layers(snapshots: Sequence[Snapshot]) -> list[str]:
    """Return the names of the layers whose units were all dead at last."""
    return [name for snapshot in snapshots[-1:] for name, share in snapshot.dead.items() if share == 1]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_LAYERS
    return f"{', '.join(names[:_MOST_LAYERS])}, and {more} more" if more > 0 else listed(names)


def _is_broken(named: tuple[str, Spread], snapshot: Snapshot) -> bool:
    """Return whether there are numbers that are not finite. A parameter without a gradient changes by 0."""
    name, spread = named
    return not math.isfinite(spread.rms) and snapshot.ratios[name] != 0


def _weights_of(snapshot: Snapshot) -> Mapping[str, Spread]:
    return snapshot.weights


def _gradients_of(snapshot: Snapshot) -> Mapping[str, Spread]:
    return snapshot.gradients


def _gradient(snapshot: Snapshot, name: str) -> float:
    return snapshot.gradients[name].rms


def _course(
    snapshots: Sequence[Snapshot], names: Sequence[str], value: Callable[[Snapshot, str], float]
) -> dict[str, list[float]]:
    return {name: [value(s, name) for s in snapshots] for name in names}


def _color(i: int, n: int) -> str:
    """Return the colour of a layer: from that of the first to that of the last."""
    share = round(100 * i / (n - 1)) if n > 1 else 0
    return f"color-mix(in oklab, var(--accent), var(--second) {share}%)"


def _dashes(i: int) -> str:
    """Return the attribute that tells a layer from its neighbors, whose colors are much alike."""
    return ' stroke-dasharray="6 3"' if i % 2 else ""


def _key(names: Sequence[str]) -> str:
    items = (
        f'<li><svg viewBox="0 0 28 10" aria-hidden="true"><path class="layer" style="stroke:{_color(i, len(names))}"'
        f'{_dashes(i)} d="M0 5H28"/></svg>{text(name)}</li>'
        for i, name in enumerate(names)
    )
    return f'<ul class="key">{"".join(items)}</ul>'


def _figure(title: str, told: str, chart: str) -> str:
    caption = f"<figcaption>{told}</figcaption>" if told else ""
    return f"<figure><h3>{title}</h3>{chart}{caption}</figure>" if chart else ""


def _chart(
    title: str,
    epochs: Sequence[int],
    courses: Mapping[str, Sequence[float]],
    names: Sequence[str],
    log: bool,
    usual: float | None,
) -> str:
    """Return a figure with a line for each layer, "" if there is no number to show."""
    values = [v for course in courses.values() for v in course if math.isfinite(v)]
    if not values:
        return ""
    has_zeros = log and 0 in values
    shown = [v for v in [*values, *([usual] if usual else [])] if v or not log] or [1.0]
    low, high = min(shown), max(shown)
    if has_zeros:
        low /= 10 ** max(1.0, math.log10(high / low) / 8)  # where 0 is drawn, below all others
    if not log:
        low, high = min(0.0, low), max(high, 1.0 if "%" in title else low + 1e-12)
    height = 220
    y = Axis(*((low / 1.3, high * 1.3) if log else (low, high * 1.04)), height - BOTTOM, TOP, log=log)
    if has_zeros:
        y.ticks = [(low, "0"), *((v, label) for v, label in y.ticks if v > low * (high / low) ** 0.06)]
    ends = (epochs[0], epochs[-1]) if len(epochs) > 1 else (epochs[0] - 1, epochs[0] + 1)
    x = Axis(*ends, LEFT + 4, WIDTH - RIGHT - (_NAMES if len(courses) > 1 else 4), whole=True)
    x.ticks = [tick for tick in x.ticks if epochs[0] <= tick[0] <= epochs[-1]]
    parts = [axes(x, y, height, "epoch", "")]
    if usual is not None:
        parts.append(f'<path class="ideal" d="M{LEFT} {y(usual):.1f}H{WIDTH - RIGHT}"/>')
    told, ends_at = [], []
    for name, course in courses.items():
        i = names.index(name) if name in names else 0
        color = _color(i, len(names))
        course = [low if has_zeros and v == 0 else v for v in course]
        parts.append(f'<path class="layer" style="stroke:{color}"{_dashes(i)} d="{line(x, y, epochs, course)}"/>')
        last = [(x(e), y(v)) for e, v in zip(epochs, course, strict=True) if math.isfinite(v)][-1:]
        ends_at += [(*at, name) for at in last]
        if len(epochs) == 1 and math.isfinite(course[0]):
            parts.append(f'<circle style="fill:{color}" cx="{x(epochs[0]):.1f}" cy="{y(course[0]):.1f}" r="3"/>')
        finite = [v for v in courses[name] if math.isfinite(v)]
        if finite:
            told.append(f"{name} from {finite[0]:.3g} to {finite[-1]:.3g}")
    if len(courses) > 1:
        parts += _labels(ends_at, height)
    return svg(height, f"{title}, by epoch: {'; '.join(told)}", parts)


def _labels(ends: Sequence[tuple[float, float, str]], height: int) -> Iterator[str]:
    """Yield the names of layers beside the ends of their lines, moved apart where lines end together."""
    bottom = float(height - BOTTOM)
    places: list[float] = []
    for _, at, _ in (found := sorted(ends, key=lambda end: end[1])):
        places.append(max(at, places[-1] + _NAME if places else TOP))
    for i in reversed(range(len(places))):
        places[i] = min(places[i], places[i + 1] - _NAME if i + 1 < len(places) else bottom)
    for (across, at, name), place in zip(found, places, strict=True):
        label = name.removesuffix(".weight")
        label = label if len(label) <= _MOST_LETTERS else f"…{label[1 - _MOST_LETTERS :]}"
        right = WIDTH - RIGHT - _NAMES
        yield f'<path class="grid" d="M{across:.1f} {at:.1f}L{right + 9} {place:.1f}"/>'
        yield f'<text class="small label" x="{right + 11}" y="{place + 3:.1f}">{text(label)}</text>'


def _ridges(what: str, name: str, snapshots: Sequence[Snapshot], spreads: Sequence[Spread]) -> str:
    """Return the histograms of a layer below each other, the first epoch at the top; "" if there is nothing to show."""
    all_counts = [np.asarray(spread.counts, np.float64) for spread in spreads]
    zeros = [counts[len(counts) // 2] / max(1.0, counts.sum()) for counts in all_counts]
    log = what == "Gradients"
    edges, rows = _of_sizes(all_counts) if log else _linear(all_counts)
    if not rows:
        return ""
    height = TOP + _PEAK + _ROW * (len(rows) - 1) + BOTTOM
    right = WIDTH - RIGHT - (44 if log else 0)
    x = Axis(float(edges[0]), float(edges[-1]), LEFT, right)
    if log:  # the edges are powers of 10
        step = -(-(math.floor(x.high) - math.ceil(x.low)) // 4) or 1
        powers = range(math.ceil(x.low), math.floor(x.high) + 1, step)
        x.ticks = [(float(p), f"1e{p}".replace("-", "\N{MINUS SIGN}")) for p in powers]
    else:
        x.ticks = x.ticks[:: 2 if len(x.ticks) > 5 else 1]
    highest = max(float(row.max()) for row in rows) or 1.0
    bottom = height - BOTTOM
    parts = [f'<path class="grid" d="{"".join(f"M{x(v):.1f} {TOP}V{bottom}" for v, _ in x.ticks)}"/>']
    middles = [x(v) for v in ((edges[1:] + edges[:-1]) / 2).tolist()]
    for i, (row, snapshot, zero) in enumerate(zip(rows, snapshots, zeros, strict=True)):
        base = TOP + _PEAK + _ROW * i
        if row.any():
            points = "L".join(
                f"{at:.1f} {base - _PEAK * float(v) / highest:.1f}" for at, v in zip(middles, row, strict=True)
            )
            parts.append(f'<path class="ridge" d="M{middles[0]:.1f} {base}L{points}L{middles[-1]:.1f} {base}"/>')
        else:
            none = "all 0" if zero else "none is finite"
            parts.append(f'<text class="middle" x="{(LEFT + right) / 2:.1f}" y="{base:.1f}">{none}</text>')
        parts.append(f'<text class="end" x="{LEFT - 6}" y="{base:.1f}">{snapshot.epoch}</text>')
        if log and zero >= 0.005:
            parts.append(f'<text class="end" x="{WIDTH - RIGHT}" y="{base:.1f}">{zero:.0%}</text>')
    parts += [f'<text class="middle" x="{x(v):.1f}" y="{bottom + 14}">{label}</text>' for v, label in x.ticks]
    shown = [s.rms for s in spreads]
    return svg(height, f"{what} of {name}, histograms by epoch: RMS from {shown[0]:.3g} to {shown[-1]:.3g}", parts)


def _linear(all_counts: Sequence[Array]) -> tuple[Array, list[Array]]:
    """Return linear bins for what lies around 0, and the share of each histogram in each."""
    limits = [_quantile(_sizes(counts), 0.998) for counts in all_counts if counts.sum()]
    if not limits:
        return EDGES, []
    limit = max(limits)
    edges = np.linspace(-limit, limit, _BINS + 1)
    rows = []
    for counts in all_counts:
        below = np.concatenate([[0.0], np.cumsum(counts)]) / max(1.0, counts.sum())
        rows.append(_smooth(np.diff(np.interp(edges, EDGES, below))))
    return edges, rows


def _of_sizes(all_counts: Sequence[Array]) -> tuple[Array, list[Array]]:
    """Return the bins of sizes, as powers of 10, where there are any, and the share of each histogram in each."""
    sizes = [_sizes(counts) for counts in all_counts]
    total = np.sum(sizes, axis=0)
    if not total.any():
        return np.array([-12.0, 0.0]), [np.zeros(1) for _ in sizes]
    cumulated = np.cumsum(total) / total.sum()
    first, last = int((cumulated > 0.005).argmax()), int(np.flatnonzero(total)[-1]) + 1
    edges = np.log10(EDGES[len(EDGES) // 2 :])[first : last + 1]
    return edges, [_smooth(s[first:last] / max(1.0, counts.sum())) for s, counts in zip(sizes, all_counts, strict=True)]


def _sizes(counts: Array) -> Array:
    """Return how many numbers of both signs there are by size, without those next to 0."""
    middle = len(counts) // 2
    found: Array = counts[middle + 1 :] + counts[:middle][::-1]
    return found


def _quantile(sizes: Array, share: float) -> float:
    if not sizes.any():
        return 1.0
    at = int((np.cumsum(sizes) >= share * sizes.sum()).argmax())
    return float(EDGES[len(EDGES) // 2 + at + 1])


def _smooth(row: Array) -> Array:
    padded = np.concatenate([row[:1], row, row[-1:]])
    smooth: Array = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return smooth
