"""The results of a run on a GPU: a table to print, figures for a file."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gradflow as gf
from benchmarks.gpu.rows import CAPTURED, RATIOS
from benchmarks.gpu.run import GpuRun, without_paths
from benchmarks.machine import about, versions
from benchmarks.peers.rows import REFERENCE
from benchmarks.peers.run import RTOL, Cell
from benchmarks.peers.tables import markdown, microseconds, summary

PRECISION = {
    "float32": "float32 products in float32 in every row (JAX at precision 'highest', since its default is TF32)",
    "bfloat16": "weights, activations, gradients and moments in bfloat16 in every row; no automatic mixed precision",
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


def text(run: GpuRun) -> str:
    """Return the times, the ratios, and what failed or was left out."""
    cells = [cell for cell in run.cells if any(cell.turns.values())]
    head = [
        f"{cell.workload.letter}: {cell.workload.size}, batch {cell.workload.batch}, {cell.workload.loss}, "
        f"{cell.workload.optimizer}, {cell.workload.dtype}"
        for cell in cells
    ]
    letters = [cell.workload.letter for cell in cells]
    times = {
        row.title: [microseconds(cell, name) if cell.turns.get(name) else "" for cell in cells]
        for name, row in run.rows.items()
    }
    parts = ["\n".join(head), markdown("µs per step", letters, times)]
    for ours, title in ((CAPTURED, "gradflow, captured"), (REFERENCE, "gradflow")):
        found = [ratios(cell, ours) for cell in cells]
        lines = {label: [f"{each[label]['median']:.2f}" if label in each else "" for each in found] for label in RATIOS}
        if any(map(any, lines.values())):
            parts.append(markdown(f"time of the peer / time of {title}", letters, lines))
    parts += [f"left out: {what}: {why}" for what, why in run.left_out.items()]
    parts += [f"failed: {line}" for line in run.failed]
    return "\n\n".join(parts)


def figures(run: GpuRun) -> dict[str, Any]:
    """Return the run for a JSON file; times are seconds per step."""
    return {
        "threads": len(run.cores),
        "rounds": run.rounds,
        "turn_seconds": run.seconds,
        "clock": "the host's, around many queued steps and one wait for the device; median of each turn",
        "rows": {name: row.title for name, row in run.rows.items()},
        "left_out": run.left_out,
        "failed": run.failed,
        "traces": run.traces,
        "cells": [
            {
                "workload": {
                    key: getattr(cell.workload, key)
                    for key in ("name", "letter", "size", "batch", "batches", "loss", "optimizer", "dtype")
                },
                "precision": PRECISION[cell.workload.dtype],
                "losses": cell.losses,
                "losses_may_differ_by": RTOL[cell.workload.dtype],
                "turns": cell.turns,
                "rows": {name: summary(values) for name, values in cell.turns.items() if values},
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


def name_of(facts: dict[str, Any], dry: bool) -> str:
    """The name of the file: the device and the date."""
    device = "dry-run" if dry else facts.get("gpu", "gpu").split(",")[0]
    return f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}-{facts['date']}.json"


def write(path: Path, facts: dict[str, Any], checks: dict[str, Any], run: GpuRun) -> None:
    """Write all that is known so far."""
    content = {**facts, "checks": checks, **figures(run)}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
