"""The results of a run: tables to print, figures for a file."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.machine import about, commit_of, versions
from benchmarks.peers.rows import RATIOS, ROWS, before_name
from benchmarks.peers.run import Cell, Run
from gradflow.benchmarking.results import summary
from gradflow.text import three_digits

_OURS = ("gradflow", "gradflow-fast", "captured-fast")


def ratios(cell: Cell) -> dict[str, dict[str, Any]]:
    """Return gradflow's rows divided by their peers, round by round: summaries, and the name of the peer's row."""
    found = {}
    for label, ours in _ratios():
        present = [name for name in RATIOS.get(label, (before_name(ours),)) if name in cell.turns]
        if present and ours in cell.turns:
            best = min(present, key=lambda name: statistics.median(cell.turns[name]))
            values = [a / b for a, b in zip(cell.turns[ours], cell.turns[best], strict=True)]
            found[f"{ROWS[ours].title} / {label}"] = {**summary(values), "row": best}
    return found


def _ratios() -> list[tuple[str, str]]:
    """The labels of ratios with gradflow's row of each, in the order of the table."""
    return [(label, ours) for label in ("before", *RATIOS) for ours in _OURS]


def markdown(title: str, columns: list[str], lines: dict[str, list[str]]) -> str:
    """Return a Markdown table of the lines that have a value."""
    rows = [[title, *columns], ["---", *("--:" for _ in columns)]]
    rows += [[name, *values] for name, values in lines.items() if any(values)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def head(run: Run) -> str:
    """Return versions, BLAS, threads and rounds on one line."""
    described = ", ".join(f"{name} {version}" for name, version in versions().items())
    described += f", {run.blas}" if run.blas else ""
    return f"{described} - threads {len(run.cores)}, float32, median of {run.rounds} rounds"


def text(run: Run) -> str:
    """Return the workloads, the tables of each optimizer, and what was left out, as text."""
    seen = {cell.workload.letter: cell.workload for cell in run.cells}
    parts = ["\n".join(f"{w.letter}: {w.size}, batch {w.batch}, {w.loss}" for w in seen.values())]
    for optimizer in dict.fromkeys(cell.optimizer for cell in run.cells):
        cells = [cell for cell in run.cells if cell.optimizer == optimizer]
        letters = [cell.workload.letter for cell in cells]
        times = {row.title: [microseconds(cell, name) for cell in cells] for name, row in run.rows.items()}
        parts.append(markdown(f"{optimizer}, µs per step", letters, times))
        found = [ratios(cell) for cell in cells]
        labels = [f"{ROWS[ours].title} / {label}" for label, ours in _ratios()]
        lines = {label: [f"{each[label]['median']:.2f}" if label in each else "" for each in found] for label in labels}
        if any(map(any, lines.values())):
            parts.append(markdown(f"{optimizer}, ratio", letters, lines))
    if run.left_out:
        parts.append(left_out(run))
    return "\n\n".join(parts)


def microseconds(cell: Cell, name: str) -> str:
    """Return a row's time of a step, as text; "" if it was not timed."""
    return three_digits(1e6 * statistics.median(cell.turns[name])) if name in cell.turns else ""


def left_out(run: Run) -> str:
    """Return what was not measured, and why, as text."""
    return "\n".join(f"left out: {title}: {why}" for title, why in run.left_out.items())


def figures(run: Run) -> dict[str, Any]:
    """Return the run for a JSON file; times are seconds per step."""
    return {
        "dtype": "float32",
        "threads": len(run.cores),
        "blas": run.blas,
        "rounds": run.rounds,
        "turn_seconds": run.seconds,
        "rows": {name: row.title for name, row in run.rows.items()},
        "before": next((commit_of(row.checkout) for row in run.rows.values() if row.checkout), None),
        "left_out": run.left_out,
        "cells": [
            {
                "workload": {
                    "name": cell.workload.name,
                    "letter": cell.workload.letter,
                    "size": cell.workload.size,
                    "batch": cell.workload.batch,
                    "loss": cell.workload.loss,
                },
                "optimizer": cell.optimizer,
                "rows": {name: summary(values) for name, values in cell.turns.items()},
                "ratios": ratios(cell),
                "memory": cell.memory,
            }
            for cell in run.cells
        ],
    }


def write(run: Run, path: Path) -> None:
    """Write the figures as a JSON file, with the public facts about the machine."""
    content = {**about(), "versions": versions(), **figures(run)}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
