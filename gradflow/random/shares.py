"""A rank's share of a batch, whose dropout masks and statistics are those of the whole batch.

Where several ranks train one model, each computes some samples of a batch. A mask is drawn for all of them, by their
places in the batch, so it does not depend on the number of ranks: each rank computes its part, and the generators of
all ranks advance by the whole. Statistics of a batch are summed over the ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

from gradflow.random.generator import Generator

_BLOCK = 8
"""The elements of a mask that one block of the generator gives."""


class Share(NamedTuple):
    """The samples `first` to `first + rows` of a batch of `total`.

    counted: how many of them count: all, or 0. A rank without a sample of its own computes the first one of the batch,
    which does not count, so that no operation gets an empty batch.
    communicator: the `Communicator` of the ranks (default None: there is no exchange).
    """

    first: int
    rows: int
    total: int
    counted: int
    communicator: Any = None

    def draw(self, generator: Generator, shape: tuple[int, ...], size: int) -> dict[str, Any]:
        """Reserve the numbers of a mask of the whole batch; the arguments of `Backend.dropout` for that of the share.

        shape, size: of the tensor of the share. Raises ValueError unless its elements are those of the samples.
        """
        elements, rest = divmod(size, self.rows)
        if rest:
            raise ValueError(
                f"dropout by the place in a batch of {self.total} samples, of which this rank has {self.rows}, needs a "
                f"tensor whose first axis is the batch; got shape {shape}"
            )
        blocks, skip = divmod(self.first * elements, _BLOCK)
        key, counter = generator.draw((self.total * elements + 1) // 2, blocks)
        return {"key": key, "counter": counter, **({"skip": skip} if skip else {})}


def share_of(total: int, rank: int, size: int) -> Share:
    """The share of one of `size` ranks in a batch of `total` samples."""
    start, stop = rank * total // size, (rank + 1) * total // size
    return Share(start, stop - start, total, stop - start) if stop > start else Share(0, 1, total, 0)


current_share: ContextVar[Share | None] = ContextVar("gradflow_share", default=None)
"""The share that the operations of this context compute, or None for whole batches."""


@contextlib.contextmanager
def sharing(share: Share) -> Iterator[None]:
    """Compute a share of a batch inside a `with`."""
    token = current_share.set(share)
    try:
        yield
    finally:
        current_share.reset(token)
