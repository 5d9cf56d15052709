"""The results of a run on a GPU: a table to print, figures for a file."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gradflow as gf
from benchmarks.gpu.paper import precision_of, work
from benchmarks.gpu.rows import AIMS, CAPTURED, RATIOS, STEPS
from benchmarks.gpu.run import GpuRun, tolerance, without_paths
from benchmarks.machine import about, versions
from benchmarks.peers.rows import REFERENCE
from benchmarks.peers.run import Cell
from benchmarks.peers.tables import markdown, microseconds
from gradflow.benchmarking.results import summary
from gradflow.files import write_file

PRECISION = {
    "float32": "float32 products in float32 in every row (JAX at precision 'highest', since its default is TF32)",
    "tf32": "float32 products in TF32 in every row",
    "bfloat16": "weights, activations, gradients and moments in bfloat16 in every row; no automatic mixed precision",
    "autocast": "products in bfloat16, weights and moments in float32 in every row (PyTorch and gradflow by autocast)",
}


def ratios(cell: Cell, ours: str) -> dict[str, dict[str, Any]]:
    """Return the time of the fastest peer of each kind divided by that of gradflow's row, round by round."""
    found = {}
    for label, names in RATIOS.items():
        present = [name for name in names if cell.turns.get(name)]
        if present and cell.turns.get(ours):
            best = min(present, key=lambda name: summary(cell.turns[name])["median"])
            values = [theirs / own for theirs, own in zip(cell.turns[best], cell.turns[ours], strict=False)]
            found[label] = {**summary(values), "row": best}
    return found


def shares(cell: Cell, ceilings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the least times of products and bytes, at the measured ceilings, as shares of each row's time."""
    least = work(cell.workload).least_seconds(ceilings, precision_of(cell.workload))
    medians = {name: summary(turns)["median"] for name, turns in cell.turns.items() if turns}
    return {name: {what: seconds / median for what, seconds in least.items()} for name, median in medians.items()}


def text(run: GpuRun, ceilings: dict[str, Any]) -> str:
    """Return the times, the ratios with their aims, the shares of the ceilings, and what failed or was left out."""
    cells = [cell for cell in run.cells if any(cell.turns.values())]
    head = [
        f"{cell.workload.letter}: {cell.workload.size}, batch {cell.workload.batch}, {cell.workload.loss}, "
        f"{cell.workload.optimizer}; {_precision(cell)}"
        for cell in cells
    ]
    letters = [cell.workload.letter for cell in cells]
    times = {
        row.title: [microseconds(cell, name) if cell.turns.get(name) else "" for cell in cells]
        for name, row in run.rows.items()
    }
    parts = ["\n".join(head), markdown("µs per step, median", letters, times)]
    for ours in (STEPS, CAPTURED, REFERENCE):
        if ours in run.rows:
            found = [ratios(cell, ours) for cell in cells]
            lines = {
                label: [_ratio(cell, each, label) for cell, each in zip(cells, found, strict=True)] for label in RATIOS
            }
            if any(map(any, lines.values())):
                title = f"time of the peer / time of {run.rows[ours].title} (aim)"
                parts.append(markdown(title, letters, lines))
    share = [shares(cell, ceilings) for cell in cells]
    lines = {
        f"{run.rows[name].title}, {what}": [
            f"{each[name][what]:.2f}" if what in each.get(name, {}) else "" for each in share
        ]
        for name in run.rows
        for what in ("products", "bytes")
    }
    if any(map(any, lines.values())):
        parts.append(markdown("least time at the measured ceilings / time", letters, lines))
    facts = [
        f"{cell.workload.letter}, {run.rows[name].title}: {', '.join(f'{key} {value}' for key, value in shown.items())}"
        for cell in cells
        for name, known in cell.facts.items()
        if (shown := {key: value for key, value in known.items() if key != "kernels"})
    ]
    parts += ["\n".join(["a step:", *facts])] if facts else []
    parts += [f"left out: {what}: {why}" for what, why in run.left_out.items()]
    parts += [f"failed: {line}" for line in run.failed]
    return "\n\n".join(parts)


def _precision(cell: Cell) -> str:
    return PRECISION[cell.workload.precision or cell.workload.dtype]


def _ratio(cell: Cell, found: dict[str, dict[str, Any]], label: str) -> str:
    aim = AIMS.get(cell.workload.letter, {}).get(label)
    if label not in found:
        return ""
    return f"{found[label]['median']:.2f}" + (f" ({aim:g})" if aim else "")


def figures(run: GpuRun, ceilings: dict[str, Any]) -> dict[str, Any]:
    """Return the run for a JSON file; times are seconds per step."""
    return {
        "threads": len(run.cores),
        "rounds": run.rounds,
        "turn_seconds": run.seconds,
        "clock": "turns: seconds a step by the host's clock, around many queued steps and one wait; "
        "events: the same by the device's, of the same steps",
        "ceilings": ceilings,
        "rows": {name: row.title for name, row in run.rows.items()},
        "left_out": run.left_out,
        "failed": run.failed,
        "traces": run.traces,
        "cells": [
            {
                "workload": {
                    key: getattr(cell.workload, key)
                    for key in ("name", "letter", "size", "batch", "batches", "loss", "optimizer", "dtype", "precision")
                },
                "precision": _precision(cell),
                "losses": cell.losses,
                "losses_may_differ_by": tolerance(cell.workload),
                "turns": cell.turns,
                "events": cell.events,
                "facts": cell.facts,
                "on_paper": vars(work(cell.workload)),
                "share_of_the_ceilings": shares(cell, ceilings),
                "rows": {name: summary(values) for name, values in cell.turns.items() if values},
                "peer_to_steps": ratios(cell, STEPS),
                "peer_to_captured": ratios(cell, CAPTURED),
                "peer_to_plain": ratios(cell, REFERENCE),
            }
            for cell in run.cells
        ],
    }


def machine(commit: str | None) -> dict[str, Any]:
    """Return the GPU, driver, CUDA, versions, commit and date, as far as they can be found."""
    found: dict[str, Any] = {}
    try:
        found |= about()
    except Exception as error:  # py-cpuinfo or git is missing; the measurement goes on
        found |= {"date": datetime.date.today().isoformat(), "about": without_paths(repr(error))}
    found["versions"] = versions()
    if commit:
        found["commit_info"] = {"id": commit}
    diagnosis = gf.diagnose("cuda")
    found["cuda"] = without_paths(str(diagnosis))
    if diagnosis.usable:
        found["gpu"] = gf.get_backend("cuda").describe()
    tool = shutil.which("nvidia-smi")
    if tool:
        query = "--query-gpu=name,driver_version,clocks.max.sm,clocks.sm,power.limit,temperature.gpu"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run([tool, query, "--format=csv"], capture_output=True, text=True, timeout=20)
            found["nvidia_smi"] = done.stdout.splitlines()
    return found


def new_path(folder: Path, facts: dict[str, Any], dry: bool) -> Path:
    """Return a path for the figures, with the device and the date, where no file is yet."""
    device = "dry-run" if dry else facts.get("gpu", "gpu").split(",")[0]
    name = f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}-{facts['date']}"
    names = itertools.chain([name], (f"{name}-{i}" for i in itertools.count(2)))
    return next(path for path in (folder / f"{each}.json" for each in names) if not path.exists())


def write(path: Path, facts: dict[str, Any], checks: dict[str, Any], run: GpuRun, ceilings: dict[str, Any]) -> None:
    """Write all that is known so far; whenever the program ends, the file is whole."""
    content = {**facts, "checks": checks, **figures(run, ceilings)}
    write_file(path, (json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n").encode())
