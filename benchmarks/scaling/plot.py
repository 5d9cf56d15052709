"""The results of a run as a figure: a panel for each sweep, and one for memory."""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.rows import Row
from benchmarks.peers.run import Run
from benchmarks.scaling import sweeps
from benchmarks.scaling.tables import MIB, timed, watched
from gradflow.training.curves import own_settings

STYLES = {
    "gradflow": {"color": "#0072b2", "marker": "o", "linestyle": "-"},
    "gradflow-fast": {"color": "#d55e00", "marker": "s", "linestyle": "-"},
    "captured-fast": {"color": "#009e73", "marker": "D", "linestyle": "-"},
    "torch-fused": {"color": "#777777", "marker": "^", "linestyle": "--"},
}
"""By row that is drawn: a colour-blind safe colour, and a marker for readers who see no colours."""


def plot(run: Run, names: list[str], path: Path) -> None:
    """Draw the sweeps that have figures as an SVG file; equal figures give equal bytes."""
    with own_settings():
        _draw(run, names, path)


def _draw(run: Run, names: list[str], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = [name for name in names if (watched(run) if name == sweeps.MEMORY else timed(run, sweeps.SWEEPS[name]))]
    if not names:
        print("no plot: there is nothing to draw", file=sys.stderr)
        return
    columns = min(2, len(names))
    lines = math.ceil(len(names) / columns)
    with rc_context({"svg.hashsalt": "gradflow"}):
        figure = Figure(figsize=(5.5 * columns, 0.5 + 3.5 * lines), layout="constrained")
        for i, name in enumerate(names):
            axes = figure.add_subplot(lines, columns, i + 1)
            if name == sweeps.MEMORY:
                draw_memory(axes, run)
            else:
                draw_times(axes, run, sweeps.SWEEPS[name])
            axes.set_yscale("log")
            axes.grid(which="major", color="#dddddd")
            axes.set_axisbelow(True)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _drawn(run: Run) -> dict[str, Row]:
    return {name: row for name, row in run.rows.items() if name in STYLES}


def draw_times(axes: Any, run: Run, sweep: sweeps.Sweep) -> None:
    """Draw the time of a step by the number of a sweep."""
    cells = timed(run, sweep)
    for row, described in _drawn(run).items():
        points = {value: statistics.median(cell.turns[row]) for value, cell in cells.items() if row in cell.turns}
        axes.plot(points.keys(), [1e6 * seconds for seconds in points.values()], label=described.title, **STYLES[row])
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(cells), [f"{value:,}" for value in cells])
    axes.minorticks_off()
    axes.set_xlabel(sweep.label)
    axes.set_ylabel("time of a step [µs]")


def draw_memory(axes: Any, run: Run) -> None:
    """Draw the peak memory of the workloads, at least a page of 4 KiB: memory freed before may be enough for a step."""
    cells = watched(run)
    rows = _drawn(run)
    for i, (row, described) in enumerate(rows.items()):
        shift = 0.2 * (i - (len(rows) - 1) / 2)
        points = {
            x + shift: cell.memory[row]["peak_bytes"] for x, cell in enumerate(cells.values()) if row in cell.memory
        }
        style = {**STYLES[row], "linestyle": ""}
        axes.plot(points.keys(), [max(peak, 4096) / MIB for peak in points.values()], label=described.title, **style)
    axes.set_xticks(range(len(cells)), [cell.workload.letter.replace(" ", "\n") for cell in cells.values()])
    axes.set_xlabel("workload")
    axes.set_ylabel("peak memory of training [MiB]")
