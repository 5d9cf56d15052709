"""Batches on the device: the whole dataset moves there once, and batches never pass through the host.

The order of an epoch is a permutation drawn on the device by a counter-based generator, so the batches are the same on
every device, and the host never waits for a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import index
from typing import Any

import gradflow as gf
from gradflow.backend.registry import DeviceLike

_GATHERED = 1 << 18
"""The largest number of input elements that are gathered at once, for several batches."""


class Batches:
    """An iterable of batches, pairs of input and target tensors; each iteration is one epoch.

    inputs, targets: arrays or tensors with the samples along their first axis.
    batch_size: samples per batch. The last batch of an epoch may be smaller.
    generator: draws the order of each epoch (default: gradflow's global generator).
    shuffle: whether each epoch has a new order (default True).
    drop_last: whether to leave out a smaller last batch (default False).
    device: where the samples are kept (default: the current device).

    Raises ValueError for no samples, unequal numbers of samples, no complete batch with `drop_last`, or a batch size
    below 1.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        batch_size: int,
        generator: gf.Generator | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        device: DeviceLike | None = None,
    ) -> None:
        if len(inputs) != len(targets):
            raise ValueError(f"each input needs one target; got {len(inputs)} inputs and {len(targets)} targets")
        if not len(inputs):
            raise ValueError("Batches needs at least one sample; got none")
        if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1; got {batch_size!r}")
        if drop_last and batch_size > len(inputs):
            raise ValueError(
                f"with drop_last, {len(inputs)} samples give no batch of {batch_size}: choose a smaller batch_size"
            )
        where = gf.get_backend(device).device
        self.inputs = gf.tensor(inputs, device=where)
        self.targets = gf.tensor(targets, device=where)
        self.batch_size = index(batch_size)
        self.generator = generator
        self.shuffle = shuffle
        self.drop_last = drop_last

    def __repr__(self) -> str:
        each = [f"{name} {x.shape[1:]} {x.dtype}" for name, x in (("inputs", self.inputs), ("targets", self.targets))]
        return (
            f"Batches({len(self.inputs)} samples of {' and '.join(each)}, batch_size={self.batch_size}, "
            f"shuffle={self.shuffle}, drop_last={self.drop_last}, device={self.inputs.device})"
        )

    @property
    def samples(self) -> int:
        """The number of samples in an epoch."""
        n = len(self.inputs)
        return n - n % self.batch_size if self.drop_last else n

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[gf.Tensor, gf.Tensor]]:
        if not self.shuffle:
            for start in range(0, self.samples, self.batch_size):
                part = slice(start, start + self.batch_size)
                yield self.inputs[part], self.targets[part]
            return
        order = gf.random.permutation(len(self.inputs), device=self.inputs.device, generator=self.generator)
        batch_elements = self.batch_size * self.inputs.size // len(self.inputs)
        step = self.batch_size * max(1, _GATHERED // max(1, batch_elements))
        for first in range(0, self.samples, step):  # gather small batches together: slicing is cheaper
            chosen = order[first : min(first + step, self.samples)]
            inputs, targets = self.inputs.take(chosen, axis=0), self.targets.take(chosen, axis=0)
            for start in range(0, len(chosen), self.batch_size):
                part = slice(start, start + self.batch_size)
                yield inputs[part], targets[part]
