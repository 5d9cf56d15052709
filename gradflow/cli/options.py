"""Options that several commands have: how they are added to a parser, and what is done with them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable
from typing import Any

from gradflow.cli.output import UsageError
from gradflow.text import one_line


def add_folder(parser: Any) -> None:
    """Add the argument FOLDER, of a run."""
    parser.add_argument("folder", metavar="FOLDER", help="the folder of a run, or its model.safetensors")


def add_device(parser: Any) -> None:
    """Add the option --device."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N or a plug-in's device")


def add_json(parser: Any, instead_of: str = "the table") -> None:
    """Add the option --json. instead_of: what is printed without it."""
    parser.add_argument("--json", action="store_true", help=f"print one JSON document instead of {instead_of}")


def add_module(parser: Any) -> None:
    """Add the option --module, for `import_module`."""
    parser.add_argument("--module", metavar="NAME", help="import this module first: it registers a backend")


def import_module(name: str | None) -> None:
    """Import the module of --module, if one is given. Raises UsageError if that fails."""
    if name is not None:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise UsageError(f"--module {name}: {one_line(error)}") from error


def add_no_header(parser: Any) -> None:
    """Add the option --no-header."""
    what = "of a table: the first line is a row, and the columns are column1, ..."
    parser.add_argument("--no-header", dest="header", action="store_false", default=None, help=what)


def write_out(out: str, content: bytes | Iterable[bytes]) -> None:
    """Write the file of --out. Raises OSError, which says what could not be written, and why."""
    from gradflow.files import write_file

    try:
        write_file(out, content)
    except OSError as error:
        raise OSError(f"cannot write {out}: {error.strerror or error}") from None


def check_out(out: str, is_ours: Callable[[bytes], bool], option: str = "--out") -> None:
    """Raise UsageError for an `option` that cannot be written, or that is a file which must not be replaced.

    is_ours: tells from the first bytes of a file whether this command may have written it.
    """
    from gradflow.files import open_file

    if not out:
        raise UsageError(f"{option} is empty; it must name a file")
    folder = os.path.dirname(out) or os.curdir
    if not os.path.isdir(folder):
        raise UsageError(f"{option} {out}: there is no folder {folder}")
    if not os.path.lexists(out):
        return
    try:
        with open_file(out) as file:
            start = file.read(256)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not a regular file"
        raise UsageError(f"{option} {out} cannot be replaced: {why}") from None
    if start and not is_ours(start):
        raise UsageError(f"{option} {out} exists, and this command did not write it: remove it, or choose another file")
