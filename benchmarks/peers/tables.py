"""What a run found: tables for people, figures for a file."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.peers.rows import RATIOS, ROWS
from benchmarks.peers.run import Cell, Run
from benchmarks.report import digits

_OURS = ("gradflow", "gradflow-fast")


def summary(values: list[float]) -> dict[str, float]:
    """The median and the quartiles of the rounds."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def ratios(cell: Cell) -> dict[str, dict[str, Any]]:
    """gradflow's rows divided by their peers, round by round: the summaries, and the row that is divided by."""
    found = {}
    for label, names in RATIOS.items():
        present = [name for name in names if name in cell.turns]
        if not present:
            continue
        best = min(present, key=lambda name: statistics.median(cell.turns[name]))
        for ours in _OURS:
            if ours in cell.turns:
                values = [a / b for a, b in zip(cell.turns[ours], cell.turns[best], strict=True)]
                found[f"{ROWS[ours].title} / {label}"] = {**summary(values), "row": best}
    return found


def markdown(title: str, cells: list[Cell], lines: dict[str, list[str]]) -> str:
    """A table with a column for each workload."""
    rows = [[title, *(cell.workload.letter for cell in cells)], ["---", *("--:" for _ in cells)]]
    rows += [[name, *values] for name, values in lines.items() if any(values)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def text(run: Run) -> str:
    """The workloads, the tables of each optimizer, and what was left out."""
    seen = {cell.workload.letter: cell.workload for cell in run.cells}
    parts = ["\n".join(f"{w.letter}: {w.size}, batch {w.batch}, {w.loss}" for w in seen.values())]
    for optimizer in dict.fromkeys(cell.optimizer for cell in run.cells):
        cells = [cell for cell in run.cells if cell.optimizer == optimizer]
        times = {
            row.title: [digits(1e6 * statistics.median(c.turns[name])) if name in c.turns else "" for c in cells]
            for name, row in run.rows.items()
        }
        parts.append(markdown(f"{optimizer}, µs a step", cells, times))
        found = [ratios(cell) for cell in cells]
        labels = [f"{ROWS[ours].title} / {label}" for label in RATIOS for ours in _OURS]
        lines = {label: [f"{each[label]['median']:.2f}" if label in each else "" for each in found] for label in labels}
        if any(map(any, lines.values())):
            parts.append(markdown(f"{optimizer}, ratio", cells, lines))
    if run.left_out:
        parts.append("\n".join(f"left out: {run.rows[name].title}: {why}" for name, why in run.left_out.items()))
    return "\n\n".join(parts)


def figures(run: Run) -> dict[str, Any]:
    """The run for a JSON file; times are seconds a step."""
    return {
        "dtype": "float32",
        "threads": len(run.cores),
        "rounds": run.rounds,
        "turn_seconds": run.seconds,
        "rows": {name: row.title for name, row in run.rows.items()},
        "cells": [
            {
                "workload": {
                    "letter": cell.workload.letter,
                    "size": cell.workload.size,
                    "batch": cell.workload.batch,
                    "loss": cell.workload.loss,
                },
                "optimizer": cell.optimizer,
                "rows": {name: summary(values) for name, values in cell.turns.items()},
                "ratios": ratios(cell),
            }
            for cell in run.cells
        ],
    }
