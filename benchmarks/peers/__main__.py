"""The command `python -m benchmarks.peers`; `--help` lists its options."""

from __future__ import annotations

import sys
from dataclasses import replace

from benchmarks.peers.options import Parser, cores
from benchmarks.peers.rows import BEFORE, ROWS, chosen
from benchmarks.peers.run import Run
from benchmarks.peers.tables import head, text, write
from benchmarks.workloads import LARGE, OPTIMIZERS, WORKLOADS

BATCHES = 8


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return status 1 if a row crashed or did different work than gradflow."""
    parser = Parser(prog="python -m benchmarks.peers", description="Time training steps of gradflow and its peers.")
    known = {workload.letter: replace(workload, batches=BATCHES) for workload in (*WORKLOADS, LARGE)}
    parser.add_choice("workloads", known)
    parser.add_choice("optimizers", sorted(OPTIMIZERS))
    parser.add_choice("rows", [*ROWS, *BEFORE])
    parser.add_before()
    parser.add_run(rounds=9, turn=0.2)
    options = parser.parse_args(arguments)
    run = Run(chosen(options.rows, options.before), cores()[: options.threads], options.rounds, options.turn)
    run.measure([known[letter] for letter in options.workloads], options.optimizers)
    print(f"{head(run)}\n\n{text(run)}")
    if options.json:
        write(run, options.json)
    for line in run.failed:
        print(line, file=sys.stderr)
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
