"""The command `gradflow`: train multilayer perceptrons and use them, draw graphs, list and compare devices.

Invalid input prints one line to stderr and exits with status 2, before anything is written. The checks are in
`gradflow.training.Settings` and in what the commands call; the files here parse arguments and print results.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import gradflow as gf
from gradflow.backend.discovery import check_variables
from gradflow.cli import agree, bench, compare, devices, evaluate, export, graph, predict, ranks, summary, train
from gradflow.cli.output import (
    FAILED,
    INTERRUPTED,
    INVALID,
    PIPE_CLOSED,
    Unclosable,
    UsageError,
    harden_streams,
    print_error,
)
from gradflow.environment import VariableError
from gradflow.tables.options import options_as
from gradflow.text import did_you_mean
from gradflow.training.epoch import NonFiniteLossError
from gradflow.training.runs.settings import SETTING_NAMES, SettingsError

_HELP = """\
Train multilayer perceptrons with the same code on the CPU and on a GPU.

  gradflow train digits                learn to read handwritten digits
  gradflow train iris --hidden 16,16   a smaller dataset, a smaller model
  gradflow train --help                all datasets and settings
  gradflow predict FOLDER new.npz      what a trained model predicts
  gradflow evaluate FOLDER test.npz    how good it is on other samples
  gradflow compare FOLDER FOLDER       what differs between two runs
  gradflow export FOLDER --onnx FILE   the model, for programs without gradflow
  gradflow summary FOLDER              its layers, and the memory of training it
  gradflow graph "(x+y)*z" x=1 y=2 z=3 an expression, its values and gradients
  gradflow devices                     which devices can be used, and why not
  gradflow agree                       whether two devices give the same results
  gradflow bench 784-512-10            how fast each device trains
"""


_COMMANDS = {
    "train": train,
    "predict": predict,
    "evaluate": evaluate,
    "compare": compare,
    "export": export,
    "summary": summary,
    "graph": graph,
    "devices": devices,
    "agree": agree,
    "bench": bench,
}


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line. It raises UsageError for invalid arguments."""
    parser = _Parser(prog="gradflow", usage="gradflow COMMAND [options]", description=_HELP)
    parser.add_argument("--version", action="version", version=f"gradflow {gf.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", prog="gradflow")
    for command in _COMMANDS.values():
        command.add_parser(commands)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed arguments of a command line. Raises UsageError for invalid ones."""
    words = sys.argv[1:] if argv is None else argv
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in _COMMANDS:
        hint = did_you_mean(command, _COMMANDS) or f"; there are {', '.join(_COMMANDS)}"
        raise UsageError(f"unknown command {command!r}{hint} (see gradflow --help)")
    if command == "graph":
        start = words.index(command) + 1
        words = [*words[:start], *graph.options_first(words[start:])]
    arguments, rest = build_parser().parse_known_args(words)
    if rest:
        unknown = next((word for word in rest if word.startswith("-")), rest[0])
        own = ["config", "resume", "out", "save-every", "keep", "timeout", "quiet"]
        options = [f"--{name.replace('_', '-')}" for name in (*own, *SETTING_NAMES[1:])]
        hint = _did_you_mean_option(unknown, options) if command == "train" else ""
        if command == "train" and unknown in options:
            raise UsageError(f"{unknown} goes after the command: gradflow train DATASET {unknown} ...")
        if command == "train" and not unknown.startswith("-"):
            hint = _joined_by_commas(words, words.index(unknown))
            raise UsageError(f"train takes one dataset; got {arguments.dataset} and {unknown}{hint}")
        prog = f"gradflow {command}" if command else "gradflow"
        raise UsageError(f"{prog} does not know {unknown!r}{hint} (see {prog} --help)")
    if command is None:
        raise UsageError("no command given; try gradflow train digits, or gradflow --help")
    return arguments


def _joined_by_commas(words: Sequence[str], place: int) -> str:
    """Return the hint for a word that seems to go on with the list of an option; "" if it does not."""
    start = max((i for i, word in enumerate(words[:place]) if word.startswith("-")), default=place)
    if words[start] in ("--ignore", "--categorical", "--numeric"):
        names = itertools.takewhile(lambda word: not (word.startswith("-") or os.path.exists(word)), words[start + 1 :])
        return f"; names are joined by commas: {words[start]} {shlex.quote(','.join(names))}"
    return "; widths are separated by commas: --hidden 32,16" if words[place].isdecimal() else ""


def _did_you_mean_option(word: str, options: Sequence[str]) -> str:
    """Return the suggestion of an option. The dashes do not count: they make short words similar."""
    if word.startswith("--early"):
        return "; did you mean --patience?"
    return did_you_mean(word.lstrip("-"), [option.lstrip("-") for option in options]).replace("mean ", "mean --")


def _run(argv: Sequence[str] | None) -> int:
    """Run a command, print its errors on one line, and return the exit status."""
    try:
        arguments = parse(argv)
        arguments.whole_process = argv is None  # which has nothing left to do afterwards
        check_variables()
        with options_as("flags"):
            status: int = arguments.run(arguments)
        return status
    except SystemExit as stop:  # of --help and --version
        return int(stop.code or 0)
    except (UsageError, SettingsError, VariableError, ImportError, gf.DeviceUnavailableError) as error:
        return _failed(str(error), INVALID)
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED)
    except NonFiniteLossError as error:
        return _failed(str(error))
    except ValueError as error:
        from gradflow.data import DataError  # which imports NumPy

        if not isinstance(error, DataError):
            raise
        return _failed(str(error), INVALID)
    except MemoryError:
        return _failed("out of memory; a narrower model or a smaller batch needs less")
    except BrokenPipeError:
        raise
    except OSError as error:
        return _failed(str(error))


def _failed(message: str, status: int = FAILED) -> int:
    print_error(ranks.named(message))
    ranks.end(status)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: `sys.argv[1:]`) and return its exit status. Never raises."""
    harden_streams()
    stdout: Any = Unclosable(sys.stdout)
    stderr: Any = Unclosable(sys.stderr)
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            status = _run(argv)
            stdout.flush()
        except BrokenPipeError:  # the reader has closed the pipe
            status = PIPE_CLOSED
            _discard(stdout)
        except OSError as error:  # of the last flush
            status = status or _failed(str(error))
            _discard(stdout)
    return status


def _discard(stream: Any) -> None:
    """Drop what is left to print, also when the interpreter flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
