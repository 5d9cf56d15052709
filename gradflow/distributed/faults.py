"""The end of a job: a rank that raises, stands still or is missed ends all of them, and none waits for ever.

- A rank that raises prints its traceback and ends the job. If one dies, `mpiexec` notices it and ends the others.
- A rank that takes part in nothing for `timeout` seconds prints where it stands, see `Watch`.
- A rank that has waited for the others for as long ends the job, and says which of them are missing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import time
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np

FAILED = 1
"""The exit status of a job that a rank has ended."""
_STANDARD_ERROR = 2  # a descriptor, which a thread in C can write to
_TAG = 7116
"""Of the messages by which ranks that wait know each other."""


def end_job(mpi: Any, status: int = FAILED) -> None:
    """End all ranks with this exit status, after what this one has printed."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    mpi.COMM_WORLD.Abort(status)


def end_on_errors(mpi: Any) -> None:
    """Make an exception that nothing catches end the job, after its traceback."""
    rank = mpi.COMM_WORLD.Get_rank()

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        lines = "".join(traceback.format_exception(kind, error, trace))
        print(f"rank {rank} ends the job:\n{lines}", end="", file=sys.stderr, flush=True)
        end_job(mpi)

    sys.excepthook = hook


def end_for_missing(mpi: Any, world: Any, what: str) -> None:
    """End the job because this rank has waited too long, and say for which ranks.

    The ranks that wait tell each other; those that say nothing are missing.
    """
    rank, others = world.Get_rank(), [r for r in range(world.Get_size()) if r != world.Get_rank()]
    word = np.zeros(1, np.uint8)
    sent = [world.Isend([word, mpi.BYTE], r, _TAG) for r in others]
    missing, until = set(others), time.monotonic() + 1.0
    while missing and time.monotonic() < until:
        missing -= {r for r in missing if world.Iprobe(r, _TAG)}
        time.sleep(0.01)
    del sent
    if missing:
        lost = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, sorted(missing)))} gave no sign of life"
    else:
        lost = "all wait, for different things: all ranks call the same functions in the same order, as Trainer.save"
    if rank == min({rank, *others} - missing):
        print(f"rank {rank} {what}, and ends the job: {lost}", file=sys.stderr, flush=True)
    else:
        time.sleep(1.0)  # the first one prints it, and ends the job
    end_job(mpi)


class Watch:
    """Prints where this rank stands if it takes part in nothing for `timeout` seconds within `watching()`.

    The thread that prints it belongs to `faulthandler`: it also runs while a library in C does not return.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout, self._until, self._active = timeout, 0.0, False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch this rank inside a `with`."""
        self._active = True
        self.alive(False)
        try:
            yield
        finally:
            self._active, self._until = False, 0.0
            faulthandler.cancel_dump_traceback_later()

    def alive(self, waits: bool) -> None:
        """Note that this rank takes part in an exchange. waits: whether it waits for others from now on."""
        if not self._active:
            return
        if waits:
            faulthandler.cancel_dump_traceback_later()
            self._until = 0.0
        elif time.monotonic() > self._until:
            self._until = time.monotonic() + self._timeout / 10  # starting the thread takes time
            faulthandler.dump_traceback_later(self._timeout, file=_STANDARD_ERROR)
