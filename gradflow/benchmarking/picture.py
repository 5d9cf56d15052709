"""Samples per second by batch size, drawn: a color for each device.

Captured steps have filled markers and solid lines, plain ones open markers and dashed lines. Bars are the quartiles.
"""

from __future__ import annotations

import io
import math
from typing import Any

from gradflow.benchmarking.measuring import MODES, Cell, Measurement
from gradflow.benchmarking.results import crossovers, summary
from gradflow.text import printable
from gradflow.training.curves import own_settings

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "osD^v*"
_MARK = b"<!-- gradflow bench -->"


def is_ours(start: bytes) -> bool:
    """Whether a file begins like a picture that `picture` returned."""
    return _MARK in start or (start.startswith(b"\x89PNG") and b"Matplotlib" in start)


def picture(measurement: Measurement, kind: str) -> bytes:
    """Return the picture, as an image of this kind: "png" or "svg". Equal figures give equal bytes."""
    with own_settings():
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "gradflow"}):
            figure = Figure(figsize=(7, 4.5), layout="constrained")
            axes = figure.add_subplot()
            _draw(axes, measurement)
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_minor_locator(LogLocator(subs=(3.0, 4.0, 6.0, 7.0, 8.0, 9.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:,.0f}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            figure.savefig(buffer, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue().replace(b"?>\n", b"?>\n" + _MARK + b"\n", 1) if kind == "svg" else buffer.getvalue()


def _draw(axes: Any, measurement: Measurement) -> None:
    batches = sorted({cell.batch for cell in measurement.cells})
    for i, device in enumerate(measurement.devices):
        color = _COLORS[i % len(_COLORS)]
        for mode, dash, face in zip(MODES, ("--", "-"), ("white", color), strict=True):
            timed = [cell for cell in measurement.cells if cell.device == device and cell.times.get(mode)]
            if not timed:
                continue
            rates = [_rates(cell, mode) for cell in timed]
            axes.errorbar(
                [cell.batch for cell in timed],
                [middle for _, middle, _ in rates],
                [[middle - low for low, middle, _ in rates], [high - middle for _, middle, high in rates]],
                label=f"{printable(device)}, {mode}",
                color=color,
                marker=_MARKERS[i % len(_MARKERS)],
                markerfacecolor=face,
                linestyle=dash,
                capsize=3,
                elinewidth=1,
            )
    for found in crossovers(measurement.cells):
        if found.batch is not None:
            color = _COLORS[measurement.devices.index(found.device) % len(_COLORS)]
            axes.axvline(found.batch, color=color, linestyle=":", linewidth=1)
            text = f" {found.device} pays from {found.batch} on"
            axes.annotate(text, (found.batch, 0.02), xycoords=axes.get_xaxis_transform(), fontsize=8, color=color)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(batches, [f"{batch:,}" for batch in batches])
    axes.xaxis.minorticks_off()
    axes.set_xlabel("batch size (logarithmic)")
    axes.set_ylabel("training samples per second (logarithmic)")
    axes.set_title(f"{measurement.task}; bars: quartiles", loc="left", fontsize="medium", parse_math=False)
    axes.grid(which="major", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.get_ylim()
    if high < 10 * low:  # so that more than one or two numbers stand at the axis
        middle = math.sqrt(low * high)
        axes.set_ylim(middle / math.sqrt(10), middle * math.sqrt(10))
    axes.legend(frameon=False)


def _rates(cell: Cell, mode: str) -> tuple[float, float, float]:
    """Return the samples per second at the lower quartile, the median and the upper quartile."""
    times = summary(cell.times[mode])
    return cell.batch / times["upper_quartile"], cell.batch / times["median"], cell.batch / times["lower_quartile"]
