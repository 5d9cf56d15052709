"""`MPICommunicator`: ranks that `mpiexec` has started, which exchange arrays on the host by MPI.

Everything is started without blocking and then asked for, with short sleeps in between. So ranks that share cores do
not take them from each other, and a rank that waits too long for the others can end the job.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gradflow.distributed.communicator import Communicator, Pending

_EAGER = 200e-6
"""The seconds for which a rank that waits does not sleep."""
_SLEEP = 50e-6


class MPICommunicator(Communicator):
    """The processes of an MPI communicator.

    mpi: the module `mpi4py.MPI`. timeout: the seconds that a rank waits for the others before `on_timeout(what)` is
    called, which does not return. alive: called when an exchange begins.
    """

    def __init__(
        self, mpi: Any, timeout: float, on_timeout: Callable[[Any, str], None], alive: Callable[[bool], None]
    ) -> None:
        self._mpi, self._timeout, self._on_timeout, self._alive = mpi, timeout, on_timeout, alive
        self._world = mpi.COMM_WORLD.Dup()  # so that what a user exchanges does not mix with this
        self.rank, self.size = self._world.Get_rank(), self._world.Get_size()

    def start_sum(self, array: Any) -> Pending:
        if array.dtype.kind not in "fiu" or (array.dtype.kind == "f" and array.dtype.itemsize < 4):
            return _HalfSum(self, array)  # MPI has no half floats
        return _Request(self, self._world.Iallreduce(self._mpi.IN_PLACE, array), "the sum of an array")

    def broadcast(self, array: Any, root: int = 0) -> None:
        _Request(self, self._world.Ibcast([_bytes(array), self._mpi.BYTE], root), "an array of another rank").wait()

    def barrier(self) -> None:
        _Request(self, self._world.Ibarrier(), "all ranks").wait()

    def wait(self, request: Any, what: str) -> None:
        """Wait for a request of MPI."""
        if request.Test():
            self._alive(False)
            return
        self._alive(True)
        began = time.monotonic()
        while not request.Test():
            waited = time.monotonic() - began
            if waited > self._timeout:
                self._on_timeout(self._world, f"waited {self._timeout:g} s for {what}")
            time.sleep(0 if waited < _EAGER else _SLEEP)
        self._alive(False)


class _Request:
    """A request of MPI."""

    def __init__(self, communicator: MPICommunicator, request: Any, what: str) -> None:
        self._communicator, self._request, self._what = communicator, request, what

    def wait(self) -> None:
        self._communicator.wait(self._request, self._what)


class _HalfSum:
    """A sum of half floats, in float32."""

    def __init__(self, communicator: MPICommunicator, array: Any) -> None:
        self._array, self._wide = array, array.astype(np.float32)
        self._sum = communicator.start_sum(self._wide)

    def wait(self) -> None:
        self._sum.wait()
        self._array[...] = self._wide


def _bytes(array: Any) -> Any:
    return array.reshape(-1).view(np.uint8)
