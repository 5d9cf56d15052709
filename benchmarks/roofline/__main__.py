"""The command `python -m benchmarks.roofline`; `--help` lists its options."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.paper import work
from benchmarks.machine import about, commit_of, versions
from benchmarks.peers.options import Parser, cores, file
from benchmarks.peers.rows import BEFORE, chosen
from benchmarks.peers.run import Run
from benchmarks.peers.tables import head, left_out
from benchmarks.roofline import ceilings, products
from benchmarks.roofline.tables import text
from benchmarks.workloads import LARGE, WORKLOADS, Workload

OPTIMIZER = "Adam"
BATCHES = 8
STEPS = ("captured-fast", *BEFORE, "gemms")


def measure_products(run: Run, workloads: list[Workload]) -> list[dict[str, Any]]:
    """Return, for each shape of a linear layer, the seconds of its products in each row."""
    run.measure(products.layers(workloads), [OPTIMIZER])
    found = []
    for cell in run.cells:
        (n, m), batch = cell.workload.layers, cell.workload.batch
        described = {"letter": cell.workload.letter, "rows": batch, "inputs": n, "outputs": m}
        amount = {"operations": 2 * batch * n * m, "bytes": 4 * (batch * n + n * m + batch * m)}
        times = {}
        for name, turns in cell.turns.items():
            medians = [statistics.median(each) for each in zip(*turns, strict=True)]
            times[run.rows[name].title] = dict(zip(products.PRODUCTS, medians, strict=True))
        found.append({**described, **amount, "seconds": times})
    return found


def measure_steps(run: Run, workloads: list[Workload]) -> list[dict[str, Any]]:
    """Return, for each workload, the seconds of its steps in each row."""
    run.measure(workloads, [OPTIMIZER])
    found = []
    for cell in run.cells:
        amount = work(replace(cell.workload, optimizer=OPTIMIZER))
        described = {"letter": cell.workload.letter, "size": cell.workload.size, "batch": cell.workload.batch}
        times = {run.rows[name].title: statistics.median(turns) for name, turns in cell.turns.items()}
        found.append({**described, "operations": amount.operations, "bytes": amount.bytes, "seconds": times})
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, draw; return status 1 if a row crashed or did different work than gradflow."""
    parser = Parser(prog="python -m benchmarks.roofline", description="Training on the CPU and the CPU's limits.")
    known = {workload.letter: replace(workload, batches=BATCHES) for workload in (*WORKLOADS, LARGE)}
    parser.add_choice("workloads", known)
    parser.add_before()
    parser.add_run(rounds=5, turn=0.2)
    parser.add_argument("--plot", type=file, metavar="FILE.svg", help="also draw the figures there")
    parser.add_argument("--read", type=Path, metavar="FILE", help="measure nothing; the figures are in this file")
    options = parser.parse_args(arguments)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("argument --plot: matplotlib is not installed; it is in the extra 'train'")
    failed: list[str] = []
    if options.read:
        try:
            figures = json.loads(options.read.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            parser.error(f"argument --read: {error}")
    else:
        if importlib.util.find_spec("llvmlite") is None:
            parser.error("llvmlite is not installed; it is in the extra 'fast'")
        figures, failed = measure(options, [known[letter] for letter in options.workloads])
    print(text(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.plot:
        from benchmarks.roofline.plot import plot

        plot(figures, options.plot)
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


def measure(options: Any, workloads: list[Workload]) -> tuple[dict[str, Any], list[str]]:
    """Return the figures for a file, and what failed."""
    used = cores()[: options.threads]
    steps = Run(chosen(STEPS, options.before), used, options.rounds, options.turn)
    layers = Run(products.rows(), used, options.rounds, options.turn)
    figures = {
        **about(),
        "versions": versions(),
        "dtype": "float32",
        "threads": len(used),
        "before": commit_of(options.before) if options.before else None,
        "ceilings": ceilings.measure(len(used)),
        "products": measure_products(layers, workloads),
        "steps": measure_steps(steps, workloads),
    }
    figures["head"] = head(steps)
    figures["left_out"] = list(filter(None, [left_out(layers), left_out(steps)]))
    return figures, [*layers.failed, *steps.failed]


if __name__ == "__main__":
    sys.exit(main())
