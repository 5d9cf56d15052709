"""The command `python -m benchmarks.peers`; its `--help` says what it takes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from benchmarks.machine import about, versions
from benchmarks.peers.rows import REFERENCE, ROWS
from benchmarks.peers.run import Run
from benchmarks.peers.tables import figures, text
from benchmarks.workloads import LARGE, OPTIMIZERS, WORKLOADS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message} (see {self.prog} --help)\n")


def cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """A type of argument: names with commas between, each of them known; they come back in the order of `known`."""
    names = list(known)

    def parse(argument: str) -> list[str]:
        given = argument.split(",")
        for name in given:
            if name not in names:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {','.join(names)}")
        return [name for name in names if name in given]

    return parse


def count(argument: str) -> int:
    """A type of argument: a whole number from 1 on."""
    if not argument.isdecimal() or int(argument) < 1:
        raise argparse.ArgumentTypeError(f"{argument!r} is not a whole number above 0")
    return int(argument)


def duration(argument: str) -> float:
    """A type of argument: seconds, at most a minute."""
    try:
        seconds = float(argument)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 60:
        raise argparse.ArgumentTypeError(f"{argument!r} is no number of seconds, above 0 and up to 60")
    return seconds


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = _Parser(prog="python -m benchmarks.peers", description="Time training steps of gradflow and its peers.")
    letters = [workload.letter for workload in (*WORKLOADS, LARGE)]
    usable = len(cores())
    for name, known in (("workloads", letters), ("optimizers", sorted(OPTIMIZERS)), ("rows", list(ROWS))):
        parser.add_argument(
            f"--{name}", type=some_of(known), default=known, metavar="A,B", help=f"some of {','.join(known)}"
        )
    parser.add_argument("--rounds", type=count, default=9, metavar="N", help="turns of each row (default: 9)")
    parser.add_argument("--turn", type=duration, default=0.2, metavar="S", help="seconds a turn (default: 0.2)")
    parser.add_argument(
        "--threads", type=count, default=usable, metavar="N", help="cores, and threads, of each row (default: all)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures, too")
    options = parser.parse_args(arguments)
    if options.threads > usable:
        parser.error(f"argument --threads: {options.threads} is more than the {usable} cores that can be used")
    if options.json and (options.json.is_dir() or not options.json.parent.is_dir()):
        parser.error(f"argument --json: {options.json} is no file in a folder that exists")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; status 1 where a row crashed or does other work than gradflow."""
    options = parse(arguments)
    rows = {name: row for name, row in ROWS.items() if name in (REFERENCE, *options.rows)}
    workloads = [workload for workload in (*WORKLOADS, LARGE) if workload.letter in options.workloads]
    run = Run(rows, cores()[: options.threads], options.rounds, options.turn, lambda line: print(line, file=sys.stderr))
    run.measure(workloads, options.optimizers)
    described = ", ".join(f"{name} {version}" for name, version in versions().items())
    print(f"{described} - threads {options.threads}, float32, median of {options.rounds} rounds\n\n{text(run)}")
    if options.json:
        content = {**about(), "versions": versions(), **figures(run)}
        options.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for line in run.failed:
        print(line, file=sys.stderr)
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
