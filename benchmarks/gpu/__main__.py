"""The command `python -m benchmarks.gpu`; `--help` lists its options."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import gradflow as gf
from benchmarks.gpu import rows as _rows
from benchmarks.gpu.checks import outcome, passed, run_agree, run_ceilings, run_kit, run_sanitizer, run_tests
from benchmarks.gpu.queued import to_cpu
from benchmarks.gpu.run import GpuRun, progress
from benchmarks.gpu.tables import machine, new_path, text, write
from benchmarks.peers.options import Parser, cores, count, duration
from benchmarks.peers.rows import REFERENCE

RESULTS = Path(__file__).parents[1] / "results"
CHECKS = {"tests": (run_tests, 150), "kit": (run_kit, 60), "agree": (run_agree, 30), "sanitizer": (run_sanitizer, 45)}
"""The checks, and the most seconds of each."""
CEILINGS = 40
"""The most seconds that measuring the ceilings takes."""


def parser(names: list[str]) -> Parser:
    """Return the parser of the options."""
    found = Parser(prog="python -m benchmarks.gpu", description="Test and time gradflow on a GPU, beside its peers.")
    found.add_argument("--dry-run", action="store_true", help="run every line without a GPU, on the CPU, in tiny sizes")
    found.add_choice("checks", CHECKS)
    found.add_argument("--no-checks", dest="checks", action="store_const", const=[], help="leave out all checks")
    found.add_choice("workloads", _rows.WORKLOADS)
    found.add_choice("rows", names)
    found.set_defaults(
        workloads=[name for name in _rows.WORKLOADS if name not in _rows.SLOW],
        rows=[name for name in names if name not in _rows.SLOW],
    )
    found.add_argument("--rounds", type=count, default=5, metavar="N", help="turns of each row (default: 5)")
    found.add_argument("--turn", type=duration, default=0.2, metavar="S", help="seconds a turn (default: 0.2)")
    found.add_argument("--limit", type=count, default=100, metavar="S", help="seconds to compile a row (default: 100)")
    found.add_argument("--budget", type=count, default=470, metavar="S", help="seconds in all (default: 470)")
    found.add_argument("--commit", metavar="ID", help="the commit measured (default: that of the checkout)")
    found.add_argument("--out", type=Path, metavar="DIR", help="folder of the figures (default: benchmarks/results)")
    return found


def emulated_or_cpu() -> str:
    """The device of gradflow in a dry run: an emulated GPU, if there is what it needs, else the CPU."""
    try:
        import ml_dtypes  # noqa: F401
        import pytest  # noqa: F401
    except ImportError:
        return "cpu"
    return "emulated" if shutil.which("g++") else "cpu"


def main(arguments: list[str] | None = None) -> int:
    """Check, measure, print, write; return status 1 if a check or a row failed, 2 without a GPU, 130 after Ctrl-C."""
    device = "cuda"
    options = parser(list(_rows.rows(device))).parse_args(arguments)
    workloads = [_rows.WORKLOADS[letter] for letter in options.workloads]
    if options.dry_run:
        device = emulated_or_cpu()
        workloads = [_rows.tiny(workload) for workload in workloads]
        out = options.out or Path(tempfile.mkdtemp(prefix="gradflow-dry-run-"))
    else:
        diagnosis = gf.diagnose("cuda")
        if not diagnosis.usable:
            print(f"no CUDA device: {diagnosis}; --dry-run needs none", file=sys.stderr)
            return 2
        out = options.out or RESULTS
    out.mkdir(parents=True, exist_ok=True)
    facts = {"dry_run": device, **machine(options.commit)} if options.dry_run else machine(options.commit)
    path = new_path(out, facts, options.dry_run)
    progress(f"{facts.get('gpu', device)}; figures go to {path}")

    chosen = {name: row for name, row in _rows.rows(device).items() if name in (REFERENCE, *options.rows)}
    run = GpuRun(chosen, cores(), options.rounds, options.turn, options.limit, options.budget)
    checks: dict[str, Any] = {}
    ceilings: dict[str, Any] = {}
    interrupted = False
    try:
        for name in options.checks:
            check, seconds = CHECKS[name]
            checks[name] = check(seconds, options.dry_run)
            write(path, facts, checks, run, ceilings)
        ceilings |= run_ceilings(CEILINGS, to_cpu(device))
        run.measure_each(workloads, lambda: write(path, facts, checks, run, ceilings))
    except KeyboardInterrupt:
        interrupted = True
    print(text(run, ceilings))
    for name, found in checks.items():
        print(f"{name}: {outcome(found)}")
    write(path, facts, checks, run, ceilings)
    progress(f"{'interrupted' if interrupted else 'done'}; the figures are in {path}")
    if interrupted:
        return 130
    return 1 if run.failed or not all(map(passed, checks.values())) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as after Ctrl-C, what is known is printed and written
    sys.exit(main())
