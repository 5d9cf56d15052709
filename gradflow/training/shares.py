"""What one of several ranks computes of each batch, and the exchange of its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import gradflow as gf
from gradflow.data import Batches
from gradflow.distributed import Communicator
from gradflow.random.shares import Share


class Shares:
    """The shares of this rank in the batches of an epoch.

    communicator: of the ranks. batches: those of all ranks together.
    summed: for each tensor of a partial (see `Metrics.partial`), whether it has the sums over a batch: one row; else
        it has a row for each sample.
    """

    def __init__(self, communicator: Communicator, batches: Batches, summed: Sequence[bool]) -> None:
        self.communicator = communicator
        self.batches = batches.shared(communicator.rank, communicator.size)
        """The batches of this rank."""
        self._summed = summed

    def of(self, number: int) -> Share:
        """The share in batch `number` of an epoch."""
        return self.batches.share(number)._replace(communicator=self.communicator)

    def joined(self, first: int, losses: gf.Tensor, partial: Sequence[gf.Tensor]) -> tuple[gf.Tensor, ...]:
        """The losses of whole batches, from batch `first` on, and their partials, from those of all ranks.

        losses: the mean losses of the shares, (batches,). Rows of samples are in the order of the epoch.
        """
        shares = [self.of(first + i) for i in range(len(losses))]
        counted = np.array([share.counted for share in shares])
        values = [self._summed_over_ranks(losses, counted / [share.total for share in shares])]
        for x, summed in zip(partial, self._summed, strict=True):
            values.append(self._summed_over_ranks(x, (counted > 0) * 1.0) if summed else self._placed(x, shares))
        return tuple(values)

    def _summed_over_ranks(self, x: gf.Tensor, factors: Any) -> gf.Tensor:
        """The sums over the ranks of rows times factors. What is not finite does not count in a row times 0."""
        own = x.backend.to_host(x.array)
        factors = factors.reshape(-1, *[1] * (own.ndim - 1))
        with np.errstate(all="ignore"):
            total = np.where(factors > 0, own.astype(np.float64) * factors, 0.0)
            self.communicator.sum_on_host(total)
            return gf.Tensor(x.backend.from_host(total.astype(own.dtype)), x.backend)

    def _placed(self, x: gf.Tensor, shares: Sequence[Share]) -> gf.Tensor:
        """The rows of all ranks, each at its place in the batches.

        The bytes of the rows are summed, each with zeros, so that any dtype keeps its bits.
        """
        own = x.backend.to_host(x.array)
        whole = np.zeros((sum(share.total for share in shares), *own.shape[1:]), own.dtype)
        row = start = 0
        for share in shares:
            place = start + share.first
            whole[place : place + share.counted] = own[row : row + share.counted]
            row, start = row + share.rows, start + share.total
        self.communicator.sum_on_host(whole.reshape(-1).view(np.uint8))
        return gf.Tensor(x.backend.from_host(whole), x.backend)

    def loss(self, loss: gf.Tensor) -> gf.Tensor:
        """The loss of whole batches, from the part of it that this rank has."""
        return self.communicator.all_reduce(loss)
