"""In-place changes: the number of the last change of memory that tensors share.

Nodes and in-place changes are numbered by one clock. A node is therefore newer than its inputs, and a tensor whose
memory has changed since a node saved it has a larger number than the node: its values are not those that the node saw.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable
from heapq import heappushpop
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradflow.autograd.graph import Node
    from gradflow.tensor import Tensor


class Clock:
    """Numbers nodes and in-place changes in the order in which they happen.

    `tick()` returns the next number; `last_change` is a list of one number, that of the last in-place change of
    any memory (0: none).
    """

    __slots__ = ("last_change", "tick")

    def __init__(self) -> None:
        self.tick: Callable[[], int] = itertools.count(1).__next__
        self.last_change = [0]

    def change(self) -> int:
        """Count an in-place change, and return its number. Threads may call this at the same time."""
        now = self.tick()
        heappushpop(self.last_change, now)  # the larger number stays: atomic, unlike a comparison and an assignment
        return now


clock = Clock()


class Memory:
    """Memory that tensors share: the number of its last in-place change (`changed`), and whose result it is.

    A tensor gets a `Memory` when it is first changed or shared. `node`: a weak reference to the node whose result lies
    in this memory, or None.
    """

    __slots__ = ("changed", "node")

    def __init__(self, changed: int = 0, node: Node | None = None) -> None:
        self.changed = changed
        self.node = None if node is None else weakref.ref(node)

    def add(self, tensor: Tensor) -> None:
        """Record that a tensor lies in this memory."""
        tensor._memory = self

    def change(self) -> None:
        """Record an in-place change. Threads must not change the same memory at the same time."""
        self.changed = clock.change()
        node = None if self.node is None else self.node()
        if node is not None and node.out is not None:
            node.out = Changed(self.changed)


class ForeignMemory(Memory):
    """Memory of an array of another library, which may change it without a record."""

    __slots__ = ()


class Changed:
    """Replaces a saved result that was changed in place; `version` is the number of that change."""

    __slots__ = ("version",)

    def __init__(self, version: int) -> None:
        self.version = version


class _Sample:
    __slots__ = ("attribute",)

    def __init__(self) -> None:
        self.attribute: Any = object()


_sample = _Sample()
ONE_REFERENCE = sys.getrefcount(_sample.attribute)
"""What `sys.getrefcount(x.attribute)`, written in this form, returns if nothing else refers to the object.

(For a local variable, the count depends on the version of Python.)
"""
