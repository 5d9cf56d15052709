"""`world`: all processes that `mpiexec` has started, as one communicator."""

from __future__ import annotations

import functools
import logging
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np

from gradflow.distributed.communicator import Array, Communicator, Pending
from gradflow.distributed.faults import Watch, end_for_missing, end_job, end_on_errors
from gradflow.distributed.mpi import MPICommunicator
from gradflow.environment import imported_extra, launched_processes, to_install

TIMEOUT = 30.0
"""The seconds without a sign of life after which a job ends."""


class World(Communicator):
    """All processes of a job: arrays on the host are exchanged by MPI, those on CUDA devices by NCCL. See `world`."""

    def __init__(self, mpi: Any, timeout: float) -> None:
        self._mpi, self._watch = mpi, Watch(timeout)
        self._host = MPICommunicator(mpi, timeout, functools.partial(end_for_missing, mpi), self._watch.alive)
        self.rank, self.size = self._host.rank, self._host.size
        machine = mpi.COMM_WORLD.Split_type(mpi.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = machine.Get_rank(), machine.Get_size()

    @cached_property
    def _device(self) -> Communicator:
        from gradflow.distributed.nccl import NCCLCommunicator

        return NCCLCommunicator(self._host)

    def _of(self, array: Array) -> Communicator:
        return self._host if isinstance(array, np.ndarray) else self._device

    def start_sum(self, array: Array) -> Pending:
        return self._of(array).start_sum(array)

    def broadcast(self, array: Array, root: int = 0) -> None:
        self._of(array).broadcast(array, root)

    def barrier(self) -> None:
        self._host.barrier()

    def watching(self) -> AbstractContextManager[None]:
        """Inside a `with`, print where this rank stands if it takes part in nothing for the timeout."""
        return self._watch.watching()

    def alive(self) -> None:
        self._watch.alive(waits=False)

    def end(self, status: int) -> None:
        """End all processes of the job with this exit status."""
        end_job(self._mpi, status)

    def __repr__(self) -> str:
        return f"World(rank={self.rank}, size={self.size})"


def world(timeout: float = TIMEOUT) -> World:
    """Return the communicator of all processes that `mpiexec` has started; without it, that of this process alone.

    timeout: the seconds that a rank waits for the others before it ends the job (default 30); at least as long as
        ranks may be apart, such as while rank 0 writes a large file.

    From here on, an exception that nothing catches ends all of several processes, after its traceback, and rank 0 alone
    logs warnings. Called again with the same timeout, it returns the same.

    Raises ModuleNotFoundError, which says what to type, without the extra `mpi`, ValueError unless the timeout is above
    0, and RuntimeError if there is no library of MPI, or the launcher belongs to another one.

    >>> import gradflow as gf
    >>> world = gf.distributed.world()  # doctest: +SKIP
    >>> world.rank, world.size  # doctest: +SKIP
    (0, 4)
    """
    if not timeout > 0:
        raise ValueError(f"the timeout is a number of seconds above 0; got {timeout!r}")
    try:
        mpi = imported_extra("mpi4py.MPI", "mpi4py", "mpi", "training by several processes")
    except RuntimeError as error:  # mpi4py does not bring a library of MPI
        raise RuntimeError(f"{str(error).splitlines()[0]}; the extra brings one: {to_install('mpi')}") from None
    if mpi.COMM_WORLD.Get_size() == 1 < launched_processes():
        raise RuntimeError(
            f"the launcher has started {launched_processes()} processes, of which mpi4py sees one: it uses the library "
            "of another MPI; start them with the mpiexec that belongs to it"
        )
    return _world(mpi, float(timeout))


@functools.cache
def _world(mpi: Any, timeout: float) -> World:
    found = World(mpi, timeout)
    if found.size > 1:
        end_on_errors(mpi)
    if found.rank:
        logging.getLogger("gradflow").setLevel(logging.ERROR)
    return found
