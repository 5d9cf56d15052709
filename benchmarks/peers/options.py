"""The options of the benchmark commands. Invalid input prints one line to stderr and exits with status 2."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn


def cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return an argument type: known names separated by commas, returned in the order of `known`."""
    names = list(known)

    def parse(argument: str) -> list[str]:
        given = argument.split(",")
        for name in given:
            if name not in names:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {','.join(names)}")
        return [name for name in names if name in given]

    return parse


def count(argument: str) -> int:
    """Argument type: an integer of at least 1."""
    if not argument.isdecimal() or int(argument) < 1:
        raise argparse.ArgumentTypeError(f"{argument!r} is not an integer of at least 1")
    return int(argument)


def threads(argument: str) -> int:
    """Argument type: a number of threads, at most one per core."""
    if count(argument) > len(cores()):
        raise argparse.ArgumentTypeError(f"{argument} is more than the {len(cores())} usable cores")
    return int(argument)


def duration(argument: str) -> float:
    """Argument type: seconds, at most a minute."""
    try:
        seconds = float(argument)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 60:
        raise argparse.ArgumentTypeError(f"{argument!r} is not a number of seconds above 0 and at most 60")
    return seconds


def file(argument: str) -> Path:
    """Argument type: a file that can be written."""
    path = Path(argument)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{argument} is not a file in an existing folder")
    return path


def checkout(argument: str) -> Path:
    """Argument type: a folder that has a gradflow and its backends."""
    path = Path(argument)
    if not (path / "gradflow" / "__init__.py").is_file() or not (path / "backends").is_dir():
        raise argparse.ArgumentTypeError(f"{argument} is not a checkout of gradflow")
    return path


class Parser(argparse.ArgumentParser):
    """A parser with these options, which prints errors on one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message} (see {self.prog} --help)\n")

    def add_choice(self, name: str, known: Iterable[str], default: Iterable[str] | None = None) -> None:
        """Add an option for some of the known names (default: all)."""
        known = list(known)
        default = known if default is None else list(default)
        told = "" if default == known else f" (default: {','.join(default)})"
        self.add_argument(
            f"--{name}", type=some_of(known), default=default, metavar="A,B", help=f"some of {','.join(known)}{told}"
        )

    def add_before(self) -> None:
        """Add the option for a checkout of another commit, to compare with."""
        self.add_argument(
            "--before", type=checkout, metavar="CHECKOUT", help="also measure the gradflow of this checkout, in turn"
        )

    def add_run(self, rounds: int, turn: float) -> None:
        """Add the options of a run, with these defaults, and the file for the figures."""
        self.add_argument(
            "--rounds", type=count, default=rounds, metavar="N", help=f"turns of each row (default: {rounds})"
        )
        self.add_argument("--turn", type=duration, default=turn, metavar="S", help=f"seconds a turn (default: {turn})")
        self.add_argument(
            "--threads", type=threads, default=len(cores()), metavar="N", help="cores, and threads, of each row (all)"
        )
        self.add_argument("--json", type=file, metavar="FILE", help="also write the figures there")
