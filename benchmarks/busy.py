"""Training steps beside a busy process on one core: `python -m benchmarks.busy`; `--help` lists the options.

Each row has all cores, one thread for each, and takes turns: alone, and while another process computes without end on
the last of the cores. Steps are not pinned to cores. A thread that waits for another, whose core the busy process has,
loses the time that the system gives to that process, unless others can do its work.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.machine import about, versions
from benchmarks.peers.options import Parser, cores
from benchmarks.peers.rows import BEFORE, ROWS, chosen
from benchmarks.peers.run import Cell, Run
from benchmarks.peers.tables import figures, head, left_out, markdown
from benchmarks.workloads import LARGE, WORKLOADS
from gradflow.text import three_digits

OPTIMIZER = "Adam"
DEFAULT_ROWS = ("captured-fast", "captured-fast-before", "gradflow-fast", "torch-fused")
BATCHES = 8
_BUSY = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[1])})
print(flush=True)
while True:
    pass
"""


@contextmanager
def busy(core: int) -> Iterator[None]:
    """Inside a `with`, another process computes on this core, or on any where processes cannot be pinned."""
    with subprocess.Popen([sys.executable, "-c", _BUSY, str(core)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()


@dataclass
class BusyRun(Run):
    """A run whose rows are also measured beside a busy process.

    steps: by cell and row, the seconds of all steps of all rounds, alone and beside it.
    """

    steps: dict[tuple[str, str], tuple[list[float], list[float]]] = field(default_factory=dict)

    def _measure(self, cell: Cell) -> None:
        prepared = self._prepare(cell)
        for _ in range(self.rounds):
            self._order.shuffle(prepared)
            self._turns(cell, prepared, 0)
            with busy(self.cores[-1]):
                self._turns(cell, prepared, 1)

    def _turns(self, cell: Cell, names: list[str], which: int) -> None:
        for name in names:
            found = self._ask(name, cell, "times", self.seconds)
            if found is not None:
                if not which:
                    cell.turns.setdefault(name, []).append(statistics.median(found))
                self.steps.setdefault((str(cell), name), ([], []))[which].extend(found)

    def found(self, cell: Cell) -> dict[str, dict[str, float]]:
        """The figures of a cell, by row."""
        steps = {name: self.steps[str(cell), name] for name in self.rows if (str(cell), name) in self.steps}
        return {name: compared(*times) for name, times in steps.items() if all(times)}


def compared(quiet: list[float], busy: list[float]) -> dict[str, float]:
    """The median of the quiet steps, the median and the 90th percentile of the busy ones, and these two as ratios."""
    alone, middle = statistics.median(quiet), statistics.median(busy)
    high = statistics.quantiles(busy, n=10, method="inclusive")[-1] if len(busy) > 1 else middle
    return {"quiet": alone, "busy": middle, "busy_90": high, "ratio": middle / alone, "ratio_90": high / alone}


def table(run: BusyRun) -> str:
    """Return a table for each workload."""
    columns = ["alone, µs", "busy, µs", "busy, 90 %, µs", "busy / alone", "90 % / alone"]
    parts = []
    for cell in run.cells:
        lines = {}
        for name, found in run.found(cell).items():
            times = [three_digits(1e6 * found[key]) for key in ("quiet", "busy", "busy_90")]
            lines[run.rows[name].title] = [*times, *(f"{found[key]:.2f}" for key in ("ratio", "ratio_90"))]
        parts.append(markdown(f"{cell.optimizer}, {cell.workload.letter}: {cell.workload.size}", columns, lines))
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return status 1 if a row crashed or did different work than gradflow."""
    parser = Parser(prog="python -m benchmarks.busy", description="Time training steps beside a busy process.")
    known = {workload.letter: replace(workload, batches=BATCHES) for workload in (*WORKLOADS, LARGE)}
    parser.add_choice("workloads", known, default=["S", "M"])
    parser.add_choice("rows", [*ROWS, *BEFORE], default=list(DEFAULT_ROWS))
    parser.add_before()
    parser.add_run(rounds=5, turn=1.0)
    options = parser.parse_args(arguments)
    run = BusyRun(chosen(options.rows, options.before), cores()[: options.threads], options.rounds, options.turn)
    run.measure([known[letter] for letter in options.workloads], [OPTIMIZER])
    print("\n\n".join(filter(None, [head(run), table(run), left_out(run)])))
    if options.json:
        content: dict[str, Any] = {**about(), "versions": versions(), **figures(run)}
        for cell, written in zip(run.cells, content["cells"], strict=True):
            written["beside_a_busy_process"] = run.found(cell)
        options.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for line in run.failed:
        print(line, file=sys.stderr)
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
