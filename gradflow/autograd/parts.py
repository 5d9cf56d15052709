"""Gradients of indexing: parts of the gradient of a tensor, collected and combined in as few calls as possible."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradflow.autograd.graph import Node
    from gradflow.autograd.leaf import Leaf


class Part:
    """What the rule of an indexing operation returns: a gradient that is `values` at some index and 0 elsewhere.

    The index is `key` (as in `getitem`). If that is None, it is the range from `start` to `stop` along `axis`, or if
    `stop` is also None, the position `start`.
    """

    __slots__ = ("axis", "key", "start", "stop", "values")

    def __init__(self, values: Any, key: Any, axis: int = 0, start: int = 0, stop: int | None = None) -> None:
        self.values = values
        self.key = key
        self.axis = axis
        self.start = start
        self.stop = stop

    shape = dtype = None  # unlike those of every array, so that the fast walk's test of both finds parts too

    def whole(self, F: Any, shape: tuple[int, ...], into: Any = None) -> Any:
        """Return the gradient as an array of `shape`; or add it to `into`, a gradient of this shape, in place."""
        key = key_of_range(self.axis, self.start, self.stop) if self.key is None else self.key
        return F.scatter_add(self.values, key, shape) if into is None else F.scatter_add(self.values, key, shape, into)


def key_of_range(axis: int, start: int, stop: int | None) -> Any:
    """Return the key (see `getitem`) of the range from `start` to `stop` along an axis, or of the position `start`."""
    return (slice(None),) * axis + (start if stop is None else slice(start, stop), ...)


_start: Callable[[Part], int] = attrgetter("start")


class Parts:
    """The sum of all parts of the gradient of one tensor.

    Parts are collected until they have as many elements as the tensor, or the sum is needed. If they are ranges along
    one axis that cover the tensor, one call then joins them; others are added to zeros in place.
    """

    __slots__ = ("collected", "room", "shape", "sum")

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.sum: Any = None
        self.collected: list[Part] = []
        self.room = math.prod(shape)  # elements that may still be collected

    def add(self, part: Part, F: Any) -> None:
        """Add a part. `F`: the namespace for its values."""
        self.collected.append(part)
        self.room -= math.prod(part.values.shape)
        if self.room <= 0:
            self.total(F)

    def total(self, F: Any) -> Any:
        """Return the sum of all parts so far, in memory that nothing else refers to."""
        parts, self.collected = self.collected, []
        self.room = math.prod(self.shape)
        if self.sum is None and parts[0].key is None:
            self.sum = self._joined(F, parts)
            if self.sum is not None:
                return self.sum
        for part in parts:
            self.sum = part.whole(F, self.shape, self.sum)
        return self.sum

    def _joined(self, F: Any, parts: list[Part]) -> Any:
        """Concatenate the parts, if they are ranges along one axis that cover the tensor; else return None."""
        parts = sorted(parts, key=_start)
        axis, single, end = parts[0].axis, parts[0].stop is None, 0
        for part in parts:
            if part.key is not None or part.axis != axis or part.start != end or (part.stop is None) != single:
                return None
            end = part.start + 1 if part.stop is None else part.stop
        if end != self.shape[axis]:
            return None
        return (F.stack if single else F.concat)([part.values for part in parts], axis=axis)


class PartsOf(dict[Any, Parts]):
    """For each node or leaf, the parts of its gradient."""

    def __missing__(self, node: Node | Leaf) -> Parts:
        parts = self[node] = Parts(node.shape)
        return parts


def with_parts(g: Any, parts: Parts, F: Any) -> Any:
    """Return the sum of a gradient (or None) and of parts."""
    total = parts.total(F)
    return total if g is None else F.add(g, total)
