"""The figures of the roofline as a picture: products on the left, whole steps on the right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.roofline.tables import GIGA
from gradflow.training.curves import own_settings

STYLES = {
    "gradflow fast": ("#d55e00", "s", "gradflow fast"),
    "NumPy's BLAS": ("#777777", "^", "NumPy's BLAS"),
    "gradflow fast, captured": ("#d55e00", "s", None),
    "GEMMs alone, NumPy's BLAS": ("#777777", "^", None),
    "gradflow fast, captured, before": ("#0072b2", "o", "gradflow fast, before"),
}
"""By row: a colour-blind safe colour, a marker, and a label in the legend if no other row has it."""


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw the figures as an SVG or PNG file, by its name; equal figures give equal bytes."""
    with own_settings():
        _draw(figures, path)


def _draw(figures: dict[str, Any], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "gradflow"}):
        figure = Figure(figsize=(11, 5), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        for axes in (left, right):
            axes.set(xscale="log", yscale="log", xlim=(0.3, 400), ylim=(0.1, 400))
            _draw_roofs(axes, figures)
            axes.set_xlabel("operations per byte, each array moved once [flop/byte]")
            axes.set_xticks([1, 10, 100], ["1", "10", "100"])
            axes.set_yticks([1, 10, 100], ["1", "10", "100"])
            axes.grid(which="major", color="#eeeeee")
            axes.set_axisbelow(True)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
        left.set_ylabel("float32 operations per second [GFLOP/s]")
        left.set_title("products of linear layers", fontsize=10, loc="left")
        right.set_title("whole training steps, and their products alone", fontsize=10, loc="left")
        _draw_points(left, figures["products"])
        _draw_points(right, figures["steps"])
        labels = {}
        for axes in (left, right):
            handles, names = axes.get_legend_handles_labels()
            labels.update(zip(names, handles, strict=True))
        figure.legend(labels.values(), labels.keys(), loc="outside upper center", ncols=len(labels), frameon=False)
        options = {"metadata": {"Date": None}} if path.suffix == ".svg" else {"dpi": 100}
        figure.savefig(path, **options)


def _draw_roofs(axes: Any, figures: dict[str, Any]) -> None:
    """Draw the ceilings: level lines for arithmetic, sloping ones for bandwidths, which end at the peak."""
    low, high = axes.get_xlim()
    rates = figures["ceilings"]["operations_per_second"]
    peak = max(rates.values()) / GIGA
    for count, rate in rates.items():
        level = rate / GIGA
        axes.plot([low, high], [level, level], color="black", linewidth=1.2 if level == peak else 0.8)
        label = f"{level:.0f}: {count} thread{'s' if count != '1' else ''}"
        axes.text(1.01 * high, level, label, va="center", fontsize=7)
    for name, rate in figures["ceilings"]["read_bytes_per_second"].items():
        bandwidth = rate / GIGA
        axes.plot([low, peak / bandwidth], [low * bandwidth, peak], color="black", linewidth=0.8, linestyle="--")
        label = f"{name} {bandwidth:.0f} GB/s"
        axes.text(
            low * 1.1, low * 1.1 * bandwidth * 1.1, label, fontsize=7, rotation=_angle(axes), rotation_mode="anchor"
        )


def _angle(axes: Any) -> float:
    """The angle of a line of slope 1 between logarithmic axes, once the figure is laid out about as it will be."""
    box = axes.get_position()
    width, height = box.width * axes.figure.get_figwidth(), box.height * axes.figure.get_figheight()
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    return math.degrees(math.atan(height / math.log(y1 / y0) * math.log(x1 / x0) / width))


def _draw_points(axes: Any, found: list[dict[str, Any]]) -> None:
    """Draw the rates; those of one row and shape are joined. Above are the letters of the workloads."""
    letters: dict[int, tuple[float, float, list[str]]] = {}
    for each in found:
        x, highest = each["operations"] / each["bytes"], 0.0
        for title in (title for title in STYLES if title in each["seconds"]):
            color, marker, label = STYLES[title]
            seconds = each["seconds"][title]
            rates = [each["operations"] / time / GIGA for time in _list(seconds)]
            highest = max(highest, *rates)
            known = axes.get_legend_handles_labels()[1]
            axes.plot(
                [x] * len(rates), rates, color=color, marker=marker, markersize=5, linewidth=0.8,
                label=None if label in known else label,
            )  # fmt: skip
        place = round(5 * math.log(x))  # so near that their letters would overlap
        _, level, names = letters.get(place, (x, 0.0, []))
        letters[place] = x, max(level, highest), list(dict.fromkeys([*names, each["letter"]]))
    for x, level, names in letters.values():
        axes.annotate(", ".join(names), (x, level), (0, 5), textcoords="offset points", ha="center", fontsize=8)


def _list(seconds: Any) -> list[float]:
    """The times of the products of a shape, or the time of a step."""
    return list(seconds.values()) if isinstance(seconds, dict) else [seconds]
