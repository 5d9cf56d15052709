"""`gradflow train` by several processes, which `mpiexec` has started: the first one prints, and an error ends all."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gradflow.cli.output import UsageError
from gradflow.environment import launched_processes

if TYPE_CHECKING:
    from gradflow.distributed.world import World

_worlds: list[World] = []
"""The processes that train together, if this is one of several."""
_PATIENCE = 1.0
"""The seconds that others leave to the first one to print an error that all have, and to end all."""


@contextlib.contextmanager
def together(timeout: float | None) -> Iterator[World | None]:
    """Train with the other processes inside a `with`; None if there are none. Only the first prints on standard output.

    timeout: see `gradflow.distributed.world` (default None: its default).
    """
    if timeout == 0:
        raise UsageError("--timeout must be above 0")
    if launched_processes() == 1:
        yield None
        return
    from gradflow.distributed.world import TIMEOUT, world

    try:
        found = world(TIMEOUT if timeout is None else timeout)
    except RuntimeError as error:  # no library of MPI, or another one than the launcher's
        raise UsageError(str(error)) from None
    _worlds.append(found)
    with contextlib.ExitStack() as stack:
        if found.rank:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        yield found
    _worlds.clear()


def named(message: str) -> str:
    """Return an error as this process prints it, after the first one had time to do so."""
    if not _worlds or not _worlds[0].rank:
        return message
    time.sleep(_PATIENCE)
    return f"rank {_worlds[0].rank}: {message}"


def end(status: int) -> None:
    """End the other processes with this exit status, after an error."""
    if _worlds:
        _worlds[0].end(status)
