"""The command `python -m benchmarks.scaling`; `--help` lists its options."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace

from benchmarks.machine import available_memory
from benchmarks.peers.options import Parser, cores, count, file
from benchmarks.peers.rows import BEFORE, ROWS, chosen
from benchmarks.peers.run import Run
from benchmarks.peers.tables import head, left_out, write
from benchmarks.scaling import sweeps
from benchmarks.scaling.tables import memory_table, slower, time_table
from benchmarks.workloads import Workload


def fits(run: Run, workload: Workload, rows: int = 1) -> bool:
    """Return whether this many rows fit in the free memory; if not, note it in the run."""
    needed, free = rows * sweeps.needed(workload), available_memory()
    if free is None or needed <= free:
        return True
    run.left_out[workload.letter] = f"it needs about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free"
    return False


def measure(run: Run, names: list[str], values: range) -> None:
    """Measure the sweeps of these names at those of their numbers that are among the values."""
    workloads = [sweeps.SWEEPS[name].workloads for name in names if name != sweeps.MEMORY]
    points = [each for found in workloads for value, each in found.items() if value in values]
    rows = len(run.rows)
    together = [each for each in points if rows * sweeps.needed(each) <= sweeps.TOGETHER]
    run.measure([each for each in together if fits(run, each, rows)], [sweeps.OPTIMIZER])
    for each in points:
        if each not in together and fits(run, each):
            run.measure_apart(each, sweeps.OPTIMIZER)
    if sweeps.MEMORY in names:
        largest = [each.workloads[max(each.workloads)] for each in sweeps.SWEEPS.values()]
        for each in (*sweeps.USUAL, *largest):
            if fits(run, each):
                run.measure_memory(replace(each, batches=1), sweeps.OPTIMIZER)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write, draw; return status 1 if a row crashed or did different work than gradflow."""
    parser = Parser(prog="python -m benchmarks.scaling", description="Time and memory of training steps by size.")
    parser.add_choice("sweeps", [*sweeps.SWEEPS, sweeps.MEMORY])
    parser.add_choice("rows", [*ROWS, *BEFORE], default=[*sweeps.ROWS, *BEFORE])
    parser.add_argument("--from", type=count, default=1, dest="first", metavar="N", help="leave out numbers below N")
    parser.add_argument("--to", type=count, default=10**9, dest="last", metavar="N", help="and those above N")
    parser.add_before()
    parser.add_run(rounds=5, turn=0.1)
    parser.add_argument("--plot", type=file, metavar="FILE.svg", help="also draw the figures there")
    options = parser.parse_args(arguments)
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("argument --plot: matplotlib is not installed; it is in the extra 'train'")
    run = Run(chosen(options.rows, options.before), cores()[: options.threads], options.rounds, options.turn)
    measure(run, options.sweeps, range(options.first, options.last + 1))
    tables = [
        memory_table(run) if name == sweeps.MEMORY else time_table(run, sweeps.SWEEPS[name]) for name in options.sweeps
    ]
    print("\n\n".join(filter(None, [head(run), *tables, slower(run), left_out(run)])))
    if options.json:
        write(run, options.json)
    if options.plot:
        from benchmarks.scaling.plot import plot

        plot(run, options.sweeps, options.plot)
    for line in run.failed:
        print(line, file=sys.stderr)
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
