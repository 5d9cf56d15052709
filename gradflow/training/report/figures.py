"""The figures of a report as inline SVG in the colours of the page's theme, and pictures of samples as PNG."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.training.curves import Curve, Panel
from gradflow.training.host_metrics import BINS
from gradflow.training.report.markup import text
from gradflow.training.report.numbers import Bins, Floats

MOST_POINTS = 2000
"""How many points a scatter plot has at most; of more samples it shows some, evenly spaced in their order."""

CHANNELS = {1: 0, 3: 2, 4: 6}
"""PNG's type of colour for grey, for red, green and blue, and for these with an opacity."""

_MOST_EPOCHS = 400  # points on a curve
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 360, 54, 8, 8, 34
"""The width of a figure, and the margins around its axes."""
_BELOW_TITLE = 26  # where a vertical axis with a title above it begins


class Axis:
    """A linear or logarithmic scale from numbers to positions in a figure, with ticks at round numbers.

    low, high: the range of the numbers. start, end: the positions of the range's ends.
    """

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False, whole: bool = False):
        self.log = log
        if log:
            low, high = math.log10(low), math.log10(high)
        elif low == high:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        self.low, self.high, self.start, self.end = low, high, start, end
        self.ticks = self._log_ticks() if log else self._linear_ticks(whole)

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def _linear_ticks(self, whole: bool) -> list[tuple[float, str]]:
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        if whole:
            step = max(1.0, step)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(i * step, tick_label(i * step, decimals)) for i in range(first, last + 1)]

    def _log_ticks(self) -> list[tuple[float, str]]:
        exponents = range(math.floor(self.low), math.ceil(self.high) + 1)
        if self.high - self.low < 3.5:
            values = [float(f"{m}e{e}") for e in exponents for m in (1, 2, 5)]
            ticks = [(v, f"{v:g}") for v in values]
        else:
            ticks = [(float(f"1e{e}"), f"1e{e}") for e in exponents[:: -(-len(exponents) // 8)]]
        return [(v, label) for v, label in ticks if v and self.low - 1e-9 <= math.log10(v) <= self.high + 1e-9]


def tick_label(value: float, decimals: int) -> str:
    """Return a number with that many decimals, or as a power of ten if it is very large or very small."""
    if decimals > 5 or abs(value) >= 1e6:
        return f"{value:g}".replace("-", "\N{MINUS SIGN}")
    return f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def line_chart(panel: Panel) -> str:
    """Return the curves of one figure by epoch, training dashed, validation solid, the best epochs marked."""
    values = [v for c in panel.curves for v in (*c.training, *c.validation) if math.isfinite(v)]
    epochs = [e for c in panel.curves for e in c.epochs]
    if not values:
        return ""
    low, high = min(values), max(values)
    pad = (high - low) * 0.04
    bounds = (low / 1.1, high * 1.1) if panel.log() else (low - pad, high + pad)
    height = 220
    y = Axis(*bounds, height - BOTTOM, TOP, log=panel.log())
    ends = (min(epochs), max(epochs)) if min(epochs) < max(epochs) else (epochs[0] - 1, epochs[0] + 1)
    x = Axis(*ends, LEFT + 4, WIDTH - RIGHT - 4, whole=True)
    x.ticks = [tick for tick in x.ticks if min(epochs) <= tick[0] <= max(epochs)]
    many = " many" if len(panel.curves) > 1 else ""
    parts = [axes(x, y, height, "epoch", "")]
    for curve in panel.curves:
        for course, kind in ((curve.training, "training"), (curve.validation, "validation")):
            path = line(x, y, curve.epochs, course)
            if path:
                parts.append(f'<path class="curve {kind}{many}" d="{path}"/>')
            if len(curve.epochs) == 1 and math.isfinite(course[0]):
                parts.append(
                    f'<circle class="dot {kind}" cx="{x(curve.epochs[0]):.1f}" cy="{y(course[0]):.1f}" r="3"/>'
                )
        value = curve.watched[curve.epochs.index(curve.best)] if curve.best is not None else math.nan
        if curve.best is not None and math.isfinite(value):
            parts.append(f'<circle class="best" cx="{x(curve.best):.1f}" cy="{y(value):.1f}" r="4.5"/>')
    return svg(height, _describe(panel), parts)


def reliability(bins: Bins) -> str:
    """Return how often the prediction was right against its probability, and how many samples each bin has."""
    height, split = 308, 218
    x = Axis(0, 1, LEFT, WIDTH - RIGHT)
    y, counts = Axis(0, 1, split, _BELOW_TITLE), Axis(0, max(1, bins.counts.max()), height - BOTTOM, split + 28)
    parts = [axes(x, y, height, "probability of the prediction", "share that is right")]
    parts.append(f'<path class="ideal" d="M{x(0):.1f} {y(0):.1f}L{x(1):.1f} {y(1):.1f}"/>')
    parts.append(f'<text class="end" x="{LEFT - 6}" y="{height - BOTTOM:.1f}">samples</text>')
    for b, n in enumerate(bins.counts.tolist()):
        left, top = x(b / BINS) + 1, counts(n)
        width = x(1 / BINS) - x(0) - 2
        middle = left + width / 2
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{counts(0) - top:.1f}"/>'
        )
        parts.append(f'<text class="small middle" x="{middle:.1f}" y="{top - 3:.1f}">{_short_count(n)}</text>')
        if n:
            low, high = wilson(float(bins.accuracy[b]), n)
            at, share = x(bins.confidence[b]), y(bins.accuracy[b])
            parts.append(f'<path class="whisker" d="M{at:.1f} {y(low):.1f}V{y(high):.1f}"/>')
            parts.append(f'<circle class="dot validation" cx="{at:.1f}" cy="{share:.1f}" r="3.5"/>')
    told = [
        f"{b / BINS:.0%} to {(b + 1) / BINS:.0%}: {n} samples, {bins.accuracy[b]:.0%} right"
        for b, n in enumerate(bins.counts.tolist())
        if n
    ]
    return svg(height, f"Reliability by the probability of the prediction. {'; '.join(told)}.", parts)


def scatter(xs: Floats, ys: Floats, x_label: str, y_label: str, diagonal: bool) -> str:
    """Return a scatter plot with the line y = x, both axes alike, or the line y = 0."""
    points = np.stack([xs, ys], axis=1)[:: -(-len(xs) // MOST_POINTS)]
    low, high = points.min(axis=0), points.max(axis=0)
    if diagonal:
        low, high = np.full(2, low.min()), np.full(2, high.max())
    pad = (high - low) * 0.04
    (x_low, y_low), (x_high, y_high) = (low - pad).tolist(), (high + pad).tolist()
    height = 318
    x, y = Axis(x_low, x_high, LEFT, WIDTH - RIGHT), Axis(y_low, y_high, height - BOTTOM, _BELOW_TITLE)
    parts = [axes(x, y, height, x_label, y_label)]
    parts.append(f'<path class="points" d="{"".join(f"M{x(a):.1f} {y(b):.1f}h0" for a, b in points.tolist())}"/>')
    start, end = (x_low, x_high)
    line = (
        f"M{x(start):.1f} {y(start):.1f}L{x(end):.1f} {y(end):.1f}" if diagonal else f"M{LEFT} {y(0):.1f}H{x(end):.1f}"
    )
    if diagonal or y_low <= 0 <= y_high:
        parts.append(f'<path class="ideal" d="{line}"/>')
    return svg(height, f"Scatter plot of {len(points)} samples: {y_label} against {x_label}", parts)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of Wilson (1927) for a share of n samples."""
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def picture(pixels: npt.NDArray[Any], shape: Sequence[int], low: float, high: float) -> str:
    """Return a PNG image as a data URI, whose values from `low` to `high` go from dark to bright.

    pixels: the inputs of one sample. shape: (height, width) or (height, width, channels) of a number in `CHANNELS`.
    """
    image = np.reshape(pixels, (*shape, 1)[:3]).astype(np.float64)
    scaled = np.clip((image - low) / ((high - low) or 1.0) * 255, 0, 255).round().astype(np.uint8)
    height, width, channels = scaled.shape
    rows = b"".join(b"\0" + row.tobytes() for row in scaled)
    head = struct.pack(">IIBBBBB", width, height, 8, CHANNELS[channels], 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def svg(height: int, description: str, parts: Iterable[str]) -> str:
    """Return a figure of the usual width. description: what it shows, for screen readers."""
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{text(description)}">{"".join(parts)}</svg>'


def axes(x: Axis, y: Axis, height: int, x_label: str, y_label: str) -> str:
    """Return the grid, the numbers at the ticks, and the titles of both axes, that of the vertical one above it."""
    bottom = height - BOTTOM
    parts = [f'<path class="grid" d="{"".join(f"M{LEFT} {y(v):.1f}H{WIDTH - RIGHT}" for v, _ in y.ticks)}"/>']
    parts += [f'<text class="end" x="{LEFT - 6}" y="{y(v) + 3.5:.1f}">{label}</text>' for v, label in y.ticks]
    parts += [f'<text class="middle" x="{x(v):.1f}" y="{bottom + 14}">{label}</text>' for v, label in x.ticks]
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text class="middle" x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{height - 5}">{text(x_label)}</text>')
    if y_label:
        parts.append(f'<text x="0" y="10">{text(y_label)}</text>')  # above the numbers, however wide they are
    return "".join(parts)


def line(x: Axis, y: Axis, epochs: Sequence[int], values: Sequence[float]) -> str:
    """Return the line through the finite values, broken where one is not; of very many epochs, through some."""
    step = -(-len(epochs) // _MOST_EPOCHS)
    shown = [i for i in range(len(epochs)) if i % step == 0 or i == len(epochs) - 1]
    path, command = [], "M"
    for i in shown:
        if math.isfinite(values[i]):
            path.append(f"{command}{x(epochs[i]):.1f} {y(values[i]):.1f}")
            command = "L"
        else:
            command = "M"
    return "".join(path)


def _describe(panel: Panel) -> str:
    """Return the figure in words."""

    def course(curve: Curve) -> str:
        told = []
        for values, kind in ((curve.training, "training"), (curve.validation, "validation")):
            finite = [v for v in values if math.isfinite(v)]
            if finite:
                told.append(f"{kind} from {finite[0]:.4g} to {finite[-1]:.4g}")
        return ", ".join(told) + (f"; best epoch {curve.best}" if curve.best is not None else "")

    return f"{panel.label} by epoch: {'. '.join(course(curve) for curve in panel.curves[:10])}"


def _short_count(n: int) -> str:
    return f"{n}" if n < 10_000 else f"{n / 1000:.0f}k"
