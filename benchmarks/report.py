"""Turn a result of `pytest benchmarks --benchmark-json=results.json` into a Markdown table and a plot.

    python -m benchmarks.report results.json [--out DIR]

The table goes to standard output, the plot (training samples per second by batch size) to DIR. All rows of a group did
the same work; the speed-up is the time of gradflow on the CPU divided by the time of the row.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from gradflow.text import three_digits
from gradflow.training.curves import own_settings

BASE = ("gradflow", "cpu")
# by row: a colour-blind safe colour and a marker; the lines of gradflow are solid, those of peers dashed
_STYLES = {
    ("gradflow", "cpu"): ("#0072b2", "o"),
    ("gradflow", "cuda"): ("#d55e00", "s"),
    ("PyTorch", "cpu"): ("#56b4e9", "o"),
    ("PyTorch", "cuda"): ("#e69f00", "s"),
}


class ReportError(Exception):
    """The input is invalid; the message says why, on one line."""


@dataclass(frozen=True)
class Row:
    """One measured row; times are seconds of one step, or of one epoch."""

    workload: str
    size: str
    batch: int
    library: str
    device: str
    median: float
    iqr: float
    samples_per_s: float

    @property
    def group(self) -> tuple[str, str, int]:
        """The workload, size and batch, which rows of the same work have in common."""
        return self.workload, self.size, self.batch

    @property
    def disturbed(self) -> bool:
        """Whether the times vary so much that something else must have used the machine."""
        return self.iqr > 0.5 * self.median

    @property
    def backend(self) -> tuple[str, str]:
        """The library and the device."""
        return self.library, self.device


def load(path: Path) -> dict[str, Any]:
    """Return the result in a file. Raises ReportError if it is not one."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ReportError(f"{path} is not JSON: {error}") from error
    if not isinstance(result, dict) or not isinstance(result.get("benchmarks"), list) or not result["benchmarks"]:
        raise ReportError(f"{path} contains no benchmarks; create it with pytest benchmarks --benchmark-json={path}")
    return result


def rows_of(result: dict[str, Any]) -> list[Row]:
    """Return the rows of a result, sorted by group. Raises ReportError for benchmarks from elsewhere."""
    rows = []
    for benchmark in result["benchmarks"]:
        try:
            info, stats = benchmark["extra_info"], benchmark["stats"]
            median, iqr = stats["median"], stats["iqr"]
            described = {key: info[key] for key in ("workload", "size", "batch", "library", "device")}
            rows.append(Row(**described, median=median, iqr=iqr, samples_per_s=info["samples_per_s"]))
        except (KeyError, TypeError) as error:
            raise ReportError(f"it contains a benchmark that is not from the folder benchmarks/: no {error}") from error
    order = {model: i for i, model in enumerate(dict.fromkeys((row.workload, row.size) for row in rows))}
    return sorted(
        rows, key=lambda r: (order[r.workload, r.size], r.batch, r.backend != BASE, r.library, r.device)
    )  # fmt: skip


def head(result: dict[str, Any]) -> str:
    """Return where and with what the result was measured, as a list in Markdown."""
    machine, commit = result.get("machine_info") or {}, result.get("commit_info") or {}
    infos = [benchmark["extra_info"] for benchmark in result["benchmarks"]]
    cpu = machine.get("cpu") or {}
    versions = {name: number for info in infos for name, number in (info.get("versions") or {}).items()}
    facts = {
        "machine": f"{cpu.get('brand_raw', 'unknown processor')}, {cpu.get('count', '?')} cores",
        "GPU": machine.get("gpu"),
        "date": str(result.get("datetime", "unknown"))[:10],
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "dtype": ", ".join(sorted({str(info.get("dtype")) for info in infos})),
        "threads": ", ".join(sorted({str(info.get("threads")) for info in infos})),
        "commit": str(commit.get("id", "unknown"))[:10] + (" and changes to it" if commit.get("dirty") else ""),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| workload | size | batch | row | median | IQR | samples/s | speed-up |",
        "|---|---|--:|---|--:|--:|--:|--:|",
    ]
    for group, members in groupby(rows, key=lambda row: row.group):
        found = list(members)
        base = next((row.median for row in found if row.backend == BASE), None)
        for row in found:
            speed_up = f"{base / row.median:.2f}" if base else ""
            cells = [*group, " ".join(row.backend), _seconds(row.median), _seconds(row.iqr) + "*" * row.disturbed]
            lines.append("| " + " | ".join(map(str, [*cells, three_digits(row.samples_per_s), speed_up])) + " |")
    if any(row.disturbed for row in rows):
        lines += [
            "",
            "\\* The interquartile range is more than half the median: measure on an idle machine.",
        ]
    return "\n".join(lines)


def sweep(rows: list[Row]) -> list[Row]:
    """Return the rows of the model trained at the most batch sizes; none if all have only one."""
    models: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.workload == "train step":
            models[row.size].append(row)
    found = max(models.values(), key=lambda members: len({row.batch for row in members}), default=[])
    return found if len({row.batch for row in found}) > 1 else []


def plot(rows: list[Row], path: Path) -> None:
    """Draw samples per second by batch size, one line per backend. Raises ImportError without matplotlib."""
    with own_settings():
        _draw(rows, path)


def _draw(rows: list[Row], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    ends = []
    for backend in dict.fromkeys(row.backend for row in rows):
        points = sorted((row.batch, row.samples_per_s) for row in rows if row.backend == backend)
        colour, marker = _STYLES.get(backend, ("#666666", "^"))
        line = "-" if backend[0] == BASE[0] else "--"
        batches, speeds = zip(*points, strict=True)
        axes.plot(batches, speeds, line, color=colour, marker=marker, linewidth=2, label=" ".join(backend))
        ends.append((speeds[-1], backend))
    ticks = sorted({row.batch for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(batch) for batch in ticks])
    axes.minorticks_off()
    axes.set_xlabel("batch size")
    axes.set_ylabel("training samples per second")
    axes.set_title(f"Training step of a {rows[0].size} perceptron", loc="left")
    axes.grid(which="major", color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    order = [" ".join(backend) for _, backend in sorted(ends, reverse=True)]  # the lines from the top, at their ends
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend([handles[label] for label in order], order, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 2 for invalid input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Report a result of benchmarks/.")
    parser.add_argument("results", type=Path, help="the file that pytest benchmarks --benchmark-json=FILE wrote")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the plot (default: that of the results)")
    options = parser.parse_args(arguments)
    try:
        result = load(options.results)
        rows = rows_of(result)
        print(f"{head(result)}\n\n{table(rows)}")
        drawn = sweep(rows)
        if not drawn:
            print("no plot: no model was trained at more than one batch size", file=sys.stderr)
            return 0
        path = (options.out or options.results.parent) / f"{options.results.stem}.png"
        plot(drawn, path)
        print(f"plot: {path}", file=sys.stderr)
    except ReportError as error:
        print(error, file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"no plot: it needs matplotlib, from the extra 'train' ({error})", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"no plot: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
