"""`Communicator`: what the ranks of a training exchange, and how; a third party can bring one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np

from gradflow.tensor import Tensor

Array = Any
"""A contiguous array of numbers: NumPy's on the host, that of its own library on a device."""


class Pending(Protocol):
    """An exchange that has been started."""

    def wait(self) -> None:
        """Return when the result is there: for the host, or for what is queued on the device from now on."""


class Communicator(ABC):
    """A group of processes that train together: each is a rank, from 0 to `size - 1`.

    All ranks call the same functions in the same order, with arrays of equal shapes and dtypes.

    A subclass sets `rank` and `size` and defines `start_sum`, `broadcast` and `barrier`. Arrays on the host are needed
    always, those of a device if models are there. `all_reduce` and the exchange of texts are made of these.

    >>> import gradflow as gf
    >>> class Alone(gf.distributed.Communicator):
    ...     rank, size = 0, 1
    ...     def start_sum(self, array):
    ...         return self
    ...     def wait(self):
    ...         pass
    ...     def broadcast(self, array, root=0):
    ...         pass
    ...     def barrier(self):
    ...         pass
    >>> Alone().all_reduce(gf.tensor([1.0, 2.0]), mean=True).tolist()
    [1.0, 2.0]
    """

    rank: int
    """The number of this process."""
    size: int
    """The number of processes."""
    local_rank: int = 0
    """The number of this process among those on its machine (default: it is alone there)."""
    local_size: int = 1
    """The number of processes on this machine."""

    @abstractmethod
    def start_sum(self, array: Array) -> Pending:
        """Start to replace an array by the sum of those of all ranks, in place; the same bits on all ranks.

        The array must not be read or written until the result has been waited for.
        """

    @abstractmethod
    def broadcast(self, array: Array, root: int = 0) -> None:
        """Replace an array by that of the rank `root` (default 0), in place."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait until all ranks have called this."""

    def watching(self) -> AbstractContextManager[None]:
        """A `with` around training, in which this rank may be watched: see `gradflow.distributed.world`."""
        return nullcontext()

    def alive(self) -> None:  # noqa: B027
        """Note that this rank goes on; called in each step. The default does nothing."""

    # ------------------------------------------------------------------ made of these

    def all_reduce(self, x: Tensor, mean: bool = False) -> Tensor:
        """Return the sum of the tensors of all ranks, or their mean, without a graph.

        x: a tensor of the same shape, dtype and device type on all ranks. mean: whether to divide by `size`
        (default False).
        """
        F = x.backend
        flat = F.copy(F.reshape(x.array, (math.prod(x.shape),)))  # a 0-d array may be a scalar, which has no memory
        self.start_sum(flat).wait()
        if mean:
            flat = F.divide(flat, float(self.size))
        return Tensor(F.reshape(flat, x.shape), F)

    def sum_on_host(self, array: Any) -> None:
        """Replace a NumPy array by the sum of those of all ranks, in place."""
        if array.size:
            self.start_sum(array).wait()

    def text_of(self, text: str, root: int = 0) -> str:
        """Return the text of the rank `root` (default 0); that of the others is ignored."""
        content = np.frombuffer(text.encode(), np.uint8).copy()
        length = np.array([content.size], np.int64)
        self.broadcast(length, root)
        if self.rank != root:
            content = np.zeros(int(length[0]), np.uint8)
        if content.size:
            self.broadcast(content, root)
        return content.tobytes().decode()

    def first_error(self, error: str) -> str:
        """Return the error of the first rank that has one, "" if none has. error: that of this rank, or ""."""
        has = np.zeros(self.size, np.int64)
        has[self.rank] = bool(error)
        self.sum_on_host(has)
        return self.text_of(error, int(has.argmax())) if has.any() else ""
