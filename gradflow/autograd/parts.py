"""Gradients of indexing: parts of a tensor's gradient, collected and put together by as few calls as possible."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradflow.autograd.graph import Node
    from gradflow.autograd.leaf import Leaf


class Part:
    """The result of the rule of an indexing operation: a gradient that is `values` at `key` (as in `getitem`), else 0.

    Instead of a `key`, it may have a range along an `axis`: from `start` to `stop`, or where that is None, at `start`.
    """

    __slots__ = ("axis", "key", "start", "stop", "values")

    def __init__(self, values: Any, key: Any, axis: int = 0, start: int = 0, stop: int | None = None) -> None:
        self.values = values
        self.key = key
        self.axis = axis
        self.start = start
        self.stop = stop

    shape = dtype = None  # unequal to those of any array

    def whole(self, F: Any, shape: tuple[int, ...], into: Any = None) -> Any:
        """All of the gradient; or `into`, to which it is added."""
        key = key_of_range(self.axis, self.start, self.stop) if self.key is None else self.key
        return F.scatter_add(self.values, key, shape) if into is None else F.scatter_add(self.values, key, shape, into)


def key_of_range(axis: int, start: int, stop: int | None) -> Any:
    """The key, as of `getitem`, of a range along an axis, see `Part`."""
    return (slice(None),) * axis + (start if stop is None else slice(start, stop), ...)


_start: Callable[[Part], int] = attrgetter("start")


class Parts:
    """The gradient of a tensor of which parts were taken.

    Each `Part` is kept until there are as many elements as in the tensor, or the gradient is needed. Ranges along one
    axis that make up the tensor are then joined by one call; others are added to zeros, in place.
    """

    __slots__ = ("found", "room", "shape", "sum")

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.sum: Any = None
        self.found: list[Part] = []
        self.room = math.prod(shape)

    def add(self, part: Part, F: Any) -> None:
        """Note a part."""
        self.found.append(part)
        self.room -= math.prod(part.values.shape)
        if self.room <= 0:
            self.put_together(F)

    def put_together(self, F: Any) -> Any:
        """The gradient of all parts so far: an array, or tensor, that nobody else has."""
        found, self.found = self.found, []
        self.room = math.prod(self.shape)
        if self.sum is None and found[0].key is None:
            self.sum = self._joined(F, found)
            if self.sum is not None:
                return self.sum
        for part in found:
            self.sum = part.whole(F, self.shape, self.sum)
        return self.sum

    def _joined(self, F: Any, found: list[Part]) -> Any:
        """The parts one after another, if they are ranges along one axis that make up the tensor; else None."""
        found = sorted(found, key=_start)
        axis, single, end = found[0].axis, found[0].stop is None, 0
        for part in found:
            if part.key is not None or part.axis != axis or part.start != end or (part.stop is None) != single:
                return None
            end = part.start + 1 if part.stop is None else part.stop
        if end != self.shape[axis]:
            return None
        return (F.stack if single else F.concat)([part.values for part in found], axis=axis)


class PartsOf(dict[Any, Parts]):
    """For each node or leaf the parts of its gradient."""

    def __missing__(self, parent: Node | Leaf) -> Parts:
        found = self[parent] = Parts(parent.shape)
        return found


def with_parts(g: Any, found: Parts, F: Any) -> Any:
    """A gradient, or None, and that of parts."""
    total = found.put_together(F)
    return total if g is None else F.add(g, total)
