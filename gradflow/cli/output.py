"""Exit statuses, errors on one line, and the standard streams."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from gradflow.text import printable

FAILED, INVALID, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141
"""Exit statuses: training, writing or a comparison failed; invalid input; Ctrl-C; the reader closed the pipe."""


class UsageError(Exception):
    """The command line is invalid; the message says why."""


@contextlib.contextmanager
def nothing_on_stdout() -> Iterator[None]:
    """Inside a `with`, send to stderr what plug-ins and their libraries print: stdout is for the report."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
        os.dup2(2, 1)  # also for code that is not Python
    except OSError:  # one of them is closed
        kept = -1
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept >= 0:
            os.dup2(kept, 1)
            os.close(kept)


def print_error(message: str) -> None:
    """Print an error on one line of stderr."""
    print(f"gradflow: error: {printable(message)}", file=sys.stderr, flush=True)


def print_note(message: str) -> None:
    """Print on one line of stderr what the user may want to know."""
    print(f"gradflow: note: {printable(message)}", file=sys.stderr, flush=True)


def print_warning(message: str) -> None:
    """Print on one line of stderr what may be a mistake."""
    print(f"gradflow: warning: {printable(message)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def warnings_logged() -> Iterator[None]:
    """Inside a `with`, print each warning that gradflow logs as a note."""
    logger, handler = logging.getLogger("gradflow"), _Notes(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print_note(record.getMessage())


def harden_streams() -> None:
    """Make stdout and stderr accept any text, also if they are closed or their encoding lacks a character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="replace"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):  # C's locale
            stream.reconfigure(errors="backslashreplace")


class Unclosable:
    """A text stream that plug-ins cannot close."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; where a terminal was closed, drop it."""
        with self._writing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered; where a terminal was closed, drop it."""
        with self._writing():
            self._stream.flush()

    def close(self) -> None:
        """Flush the stream and leave it open."""
        self.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Inside a `with`, an error names the stream; that of a closed terminal is none: a run then saves and ends."""
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            if error.errno != errno.EIO:
                raise OSError(f"cannot write to {self._stream.name.strip('<>')}: {error.strerror or error}") from None
