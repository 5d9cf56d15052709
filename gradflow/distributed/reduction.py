"""Sums of gradients over the ranks, in buckets of an optimizer's flat buffers, begun during the backward pass.

A backward pass reaches the last layers first, so the first bucket has their parameters. As soon as all gradients of a
bucket are in the buffer, its sum is started, and the pass goes on meanwhile. All ranks start the buckets in the same
order, whatever the order in which they are filled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gradflow.autograd.leaf import ELSEWHERE, IN_BUFFER, Leaf, arrivals
from gradflow.distributed.communicator import Communicator, Pending
from gradflow.interception import opaque_call
from gradflow.optim import Optimizer
from gradflow.optim.flat import FlatBlock, Slice

BUCKET = 1 << 22
"""The bytes from which on a bucket takes no further parameter."""


class Bucket(NamedTuple):
    """Adjacent parameters of a block: their gradients, a part of the flat buffer, and their leaves."""

    gradients: Any
    leaves: frozenset[Leaf]


class GradientReduction:
    """Replaces the gradients of an optimizer's parameters by their sums over the ranks of a communicator.

    `during_backward()` is a `with` around a backward pass that writes new gradients: sums are started in it. `finish()`
    starts the others, and waits for all. Without the `with`, `finish` does everything.
    """

    def __init__(self, communicator: Communicator, optimizer: Optimizer) -> None:
        self.communicator, self.optimizer = communicator, optimizer
        self.buckets: list[Bucket] = []
        self._trained: list[Leaf] = []  # of which the buckets were made
        self._blocks: list[FlatBlock] = []
        self._agreed: list[bool | None] | None = None  # which of them had a gradient in the first step; None: on some
        self._started: list[Pending] = []
        self._missing: list[set[Leaf]] = []

    @contextlib.contextmanager
    def during_backward(self) -> Iterator[None]:
        """Start sums during the backward pass inside a `with`."""
        self._begin()
        token = arrivals.set(self._arrived)
        try:
            yield
        finally:
            arrivals.reset(token)

    @opaque_call
    def _begin(self) -> None:
        """Make the buckets of the present parameters."""
        self.optimizer._follow_edits()
        blocks = self.optimizer._blocks
        trained: list[Any] = [s.tensor._node for block in blocks for s in block.slices if s.tensor._node is not None]
        if blocks is not self._blocks or trained != self._trained:
            self._trained, self._blocks, self._agreed = trained, blocks, None
            self.buckets = [bucket for block in reversed(blocks) for bucket in _buckets(block)]
            for block in blocks:
                for s in block.slices:
                    if s.tensor._node is None:  # it lies between others, and would grow from sum to sum
                        block.backend.setitem(s.gradient, ..., 0.0)
        self._missing = [set(bucket.leaves) for bucket in self.buckets]

    def _arrived(self, leaf: Leaf) -> None:
        """Start the sums of buckets whose gradients are there now."""
        for missing in self._missing:
            missing.discard(leaf)
        while self._missing and not self._missing[0]:
            del self._missing[0]
            self._start(len(self.buckets) - len(self._missing) - 1)

    @opaque_call
    def _start(self, number: int) -> None:
        """Start the sum of a bucket."""
        self._started.append(self.communicator.start_sum(self.buckets[number].gradients))

    @opaque_call
    def finish(self) -> None:
        """Make all gradients their sums over the ranks.

        Raises RuntimeError unless the same parameters have a gradient on all ranks, and in each step.
        """
        if not self._started:
            self._begin()
        present: list[bool] = []
        for block in self._blocks:
            ready = set(block.collect_ready())
            for s in block.slices:
                if s.tensor._node is not None:
                    present.append(s in ready)
                    self._place(block, s, s in ready)
        for number in range(len(self._started), len(self.buckets)):
            self._start(number)
        for pending in self._started:
            pending.wait()
        self._started = []
        for leaf in self._trained:
            leaf.mark_gradient_changed()
        self._check(present)

    def _place(self, block: FlatBlock, s: Slice, is_ready: bool) -> None:
        """Make a gradient lie in the buffer; where there is none, zeros."""
        leaf: Any = s.tensor._node
        if not is_ready:
            block.backend.setitem(s.gradient, ..., 0.0)
        elif leaf.state is ELSEWHERE:  # `collect_ready` has copied it
            leaf.mark_filled()
        else:
            assert leaf.state is IN_BUFFER

    def _check(self, present: list[bool]) -> None:
        """Compare which parameters have a gradient with the first step, and that one with the other ranks."""
        where = "in the first step"
        if self._agreed is None:
            where = "on all ranks"
            counts = np.array(present, np.int64)
            self.communicator.sum_on_host(counts)
            self._agreed = [n > 0 if n in (0, self.communicator.size) else None for n in counts.tolist()]
        differing = [leaf for leaf, a, b in zip(self._trained, self._agreed, present, strict=True) if a is not b]
        if differing:
            raise RuntimeError(
                f"a parameter of shape {tuple(differing[0].shape)} has a gradient here and not {where}, or the other "
                "way round: ranks train together only if each step gives the same parameters a gradient on all of them"
            )


def _buckets(block: FlatBlock) -> Iterator[Bucket]:
    """The buckets of a block, those of its last parameters first."""
    itemsize = block.gradients.dtype.itemsize
    slices: list[Slice] = []
    trained = [s for s in block.slices if s.tensor._node is not None]
    for s in reversed(trained):
        slices.append(s)
        if (slices[0].stop - s.start) * itemsize >= BUCKET or s is trained[0]:
            leaves: Any = frozenset(each.tensor._node for each in slices)
            yield Bucket(block.gradients[s.start : slices[0].stop], leaves)
            slices = []
