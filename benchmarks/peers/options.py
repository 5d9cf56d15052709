"""The options of the commands that measure rows; a mistake is one line and exit status 2."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn


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


def threads(argument: str) -> int:
    """A type of argument: a number of threads, one for a core."""
    if count(argument) > len(cores()):
        raise argparse.ArgumentTypeError(f"{argument} is more than the {len(cores())} cores that can be used")
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


def file(argument: str) -> Path:
    """A type of argument: a file that can be written."""
    path = Path(argument)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{argument} is no file in a folder that exists")
    return path


class Parser(argparse.ArgumentParser):
    """A parser of such options."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message} (see {self.prog} --help)\n")

    def add_choice(self, name: str, known: Iterable[str]) -> None:
        """The option of this name: some of the known names, by default all."""
        known = list(known)
        self.add_argument(
            f"--{name}", type=some_of(known), default=known, metavar="A,B", help=f"some of {','.join(known)}"
        )

    def add_run(self, rounds: int, turn: float) -> None:
        """How to run, by default with these rounds and seconds a turn, and where the figures go."""
        self.add_argument(
            "--rounds", type=count, default=rounds, metavar="N", help=f"turns of each row (default: {rounds})"
        )
        self.add_argument("--turn", type=duration, default=turn, metavar="S", help=f"seconds a turn (default: {turn})")
        self.add_argument(
            "--threads", type=threads, default=len(cores()), metavar="N", help="cores, and threads, of each row (all)"
        )
        self.add_argument("--json", type=file, metavar="FILE", help="where to write the figures, too")
