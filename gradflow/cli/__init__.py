"""The command `gradflow`: train a multilayer perceptron, say which devices can be used, compare their results.

The one idea: whatever the user gets wrong is one line on stderr and exit status 2, before anything is written; so all
checks sit where the settings are made, and this file only turns words into settings and results into words.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import gradflow as gf
from gradflow.backend.discovery import check_variables
from gradflow.cli import agree, devices, train
from gradflow.cli.output import (
    FAILED,
    INTERRUPTED,
    MISUSED,
    PIPE_CLOSED,
    Unclosable,
    UsageError,
    harden_streams,
    print_error,
)
from gradflow.environment import VariableError
from gradflow.training import NonFiniteLossError, SettingsError
from gradflow.training.settings import SETTING_NAMES

_GENERAL_HELP = """\
Train multilayer perceptrons, on CPU and GPU with the same code.

  gradflow train digits                learn to read handwritten digits
  gradflow train iris --hidden 16,16   a smaller dataset, a smaller model
  gradflow train --help                all datasets and settings
  gradflow devices                     what can be used here, and why not the rest
  gradflow agree                       whether two devices compute the same
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; it raises UsageError for words that make no sense."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="gradflow",
        usage="gradflow COMMAND [options]",
        description=_GENERAL_HELP,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gradflow {gf.__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", prog="gradflow", parser_class=_Parser
    )
    train.add_parser(commands, formatter)
    devices.add_parser(commands, formatter)
    agree.add_parser(commands, formatter)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command line, taken apart. Raises UsageError for words that make no sense."""
    arguments, rest = build_parser().parse_known_args(argv)
    if rest:
        unknown = next((word for word in rest if word.startswith("-")), rest[0])
        options = ["--config", "--out", "--quiet", *(f"--{name.replace('_', '-')}" for name in SETTING_NAMES[1:])]
        close = difflib.get_close_matches(unknown, options, 1) if arguments.command == "train" else []
        hint = f"; did you mean {close[0]}?" if close else ""
        if close == [unknown]:
            raise UsageError(f"{unknown} belongs behind the command: gradflow train DATASET {unknown} ...")
        prog = f"gradflow {arguments.command}" if arguments.command else "gradflow"
        raise UsageError(f"{prog} does not know {unknown!r}{hint} (see {prog} --help)")
    return arguments


def _run(argv: Sequence[str] | None) -> int:
    """Carry out a command; the exit status."""
    try:
        arguments = parse(argv)
        check_variables()
        if arguments.command == "train":
            return train.run(arguments)
        if arguments.command == "devices":
            return devices.run(arguments.json)
        if arguments.command == "agree":
            return agree.run(arguments)
        raise UsageError("there is no command; try gradflow train digits, or gradflow --help")
    except SystemExit as stop:  # of --help and --version
        return int(stop.code or 0)
    except (UsageError, SettingsError, VariableError, ImportError, gf.DeviceUnavailableError) as error:
        print_error(str(error))
        return MISUSED
    except train.InterruptedEarly:
        print_error("interrupted before the first epoch was over; nothing is saved")
        return INTERRUPTED
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPTED
    except NonFiniteLossError as error:
        print_error(f"{error}; nothing is saved")
        return FAILED
    except MemoryError:
        print_error("out of memory; a narrower model or a smaller batch needs less")
        return FAILED
    except BrokenPipeError:
        raise
    except OSError as error:
        print_error(str(error))
        return FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these words (default: those of the command line); the exit status. Prints, never raises."""
    harden_streams()
    stdout: Any = Unclosable(sys.stdout)
    stderr: Any = Unclosable(sys.stderr)
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            status = _run(argv)
            stdout.flush()
        except BrokenPipeError:  # nobody reads: say nothing, and let the interpreter's last flush go nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
            return PIPE_CLOSED
    return status
