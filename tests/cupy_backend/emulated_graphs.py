"""Graphs and memory pools of the emulated CuPy: while a stream captures, work is listed, and done when the graph runs.

Captures are hostile. CuPy's own products, copies from and to the host and waits fail. Memory must come from a pool
other than CuPy's, which reuses it at once; it holds NaN until it is written, in each launch. Memory of CuPy's pool that
is freed is filled with NaN while there are graphs, which may still use it. Two streams that use the same memory in an
undefined order are an error.
"""

from __future__ import annotations

import functools
import itertools
import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import byte_bounds


class Graphs:
    """The present capture and allocator, the graphs, and what was queued since a test set `work` to a `Counter`."""

    capture: Capture | None = None
    allocator: MemoryPool | None = None
    alive: weakref.WeakSet[Graph] = weakref.WeakSet()  # noqa: RUF012
    memories: dict[int, weakref.ref[Memory]] = {}  # noqa: RUF012
    work: Counter[str] | None = None
    nested = launching = False
    numbers = itertools.count()

    @classmethod
    def recording(cls) -> Capture | None:
        """The capture that work of the current stream belongs to, or None."""
        capture = cls.capture
        return capture if capture is not None and not capture.paused and capture.has_current() else None

    @classmethod
    def count(cls, kind: str) -> None:
        if cls.work is not None and not cls.nested:
            cls.work[kind] += 1

    @classmethod
    def refuse(cls, what: str) -> None:
        """Raise what CUDA raises for something that a capture does not allow."""
        if cls.capture is not None and not cls.capture.paused:
            from emulated_cuda import CUDARuntimeError

            raise CUDARuntimeError(900, f"{what} while a stream is captured")


# ---------------------------------------------------------------------- memory


def root_of(values: Any) -> Any:
    while isinstance(values.base, np.ndarray):
        values = values.base
    return values


class Memory:
    """The memory of an array and its views; when the last of them is gone, it is freed."""

    def __init__(self, root: Any, pool: MemoryPool | None = None) -> None:
        self.root, self.pool, self.stream = root, pool, None if pool is None else current_stream()
        Graphs.memories[id(root)] = weakref.ref(self)

    @staticmethod
    def of(values: Any) -> Memory | None:
        """That of an array that is made now; None in a launch, which must free nothing."""
        if Graphs.launching:
            return None
        root = root_of(values)
        found = Graphs.memories.get(id(root))
        memory = None if found is None else found()
        return Memory(root) if memory is None or memory.root is not root else memory

    def __del__(self) -> None:
        if sys.is_finalizing():
            return
        Graphs.memories.pop(id(self.root), None)
        if self.pool is not None:
            self.pool.free.setdefault((self.stream, self.root.nbytes), []).append(self.root)
        elif Graphs.alive and self.root.flags.owndata and self.root.flags.writeable and self.root.dtype != object:
            self.root.reshape(-1).view(np.uint8)[...] = 0xFF


def current_stream() -> Any:
    from emulated_cuda import get_current_stream

    return get_current_stream()


class OutOfMemoryError(MemoryError):
    pass


class MemoryPool:
    """A pool that gives the memory that was freed last to the next array of that size.

    `left`: the number of allocations that are possible, None if there is no limit.
    """

    left: int | None = None
    made: weakref.WeakSet[MemoryPool] = weakref.WeakSet()  # noqa: RUF012

    def __init__(self, allocator: Any = None) -> None:
        self.free: dict[tuple[Any, int], list[Any]] = {}  # CuPy's pool, too, has an arena for each stream
        self.total = 0
        MemoryPool.made.add(self)

    def malloc(self, size: int) -> Any:
        if MemoryPool.left is not None:
            if not MemoryPool.left:
                raise OutOfMemoryError(f"Out of memory allocating {size} bytes (EMULATED)")
            MemoryPool.left -= 1
        found = self.free.get((current_stream(), size))
        if found:
            return found.pop()
        self.total += size
        return np.empty(size, np.uint8)

    def total_bytes(self) -> int:
        return self.total

    def free_all_blocks(self) -> None:
        """Free the memory that is not in use. CuPy's pool does not do it when it is deleted."""
        self.total -= sum(size * len(roots) for (_, size), roots in self.free.items())
        self.free.clear()


class using_allocator:  # noqa: N801
    def __init__(self, allocator: Any = None) -> None:
        self.pool = allocator.__self__

    def __enter__(self) -> None:
        self.outer, Graphs.allocator = Graphs.allocator, self.pool

    def __exit__(self, *_: Any) -> None:
        Graphs.allocator = self.outer


def allocate(size: int) -> Any:
    """Memory for an array of `empty`, filled with NaN."""
    pool = Graphs.allocator
    capture = Graphs.recording()
    assert capture is None or pool is not None, "memory of CuPy's pool is allocated while a stream is captured"
    root = np.empty(size, np.uint8) if pool is None else pool.malloc(size)
    root[...] = 0xFF
    memory = Memory(root, pool)
    if capture is not None:
        capture.add("", functools.partial(root.fill, 0xFF), [], [root])
    return root, memory


# ---------------------------------------------------------------------- captures


def overlap(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether any of these arrays lie in the same memory."""
    ends = [byte_bounds(x) for x in others if x.size]
    return any(
        low < stop and start < high for x in some if x.size for low, high in [byte_bounds(x)] for start, stop in ends
    )


class Node(NamedTuple):
    """Work in a graph. `name`: empty if CUDA makes no node of it. `before`: the work of streams that it waits for."""

    name: str
    run: Callable[[], Any]
    reads: Sequence[Any]
    writes: Sequence[Any]
    stream: Any
    number: int
    before: dict[Any, int]

    def follows(self, other: Node) -> bool:
        return self.before.get(other.stream, 0) >= other.number


class Capture:
    def __init__(self, stream: Any) -> None:
        self.stream, self.streams, self.nodes, self.paused = stream, [stream], [], False

    def has_current(self) -> bool:
        return current_stream() in self.streams

    def add(self, name: str, run: Callable[[], Any], reads: Sequence[Any], writes: Sequence[Any]) -> None:
        stream, number = current_stream().queue()
        node = Node(name, run, reads, writes, stream, number, dict(stream.before))
        for other in self.nodes:
            if other.stream is not stream and not node.follows(other):
                shared = overlap(other.writes, [*reads, *writes]) or overlap(other.reads, writes)
                assert not shared, f"{other.name or 'an allocation'} and {name or 'an allocation'} are in no order"
        self.nodes.append(node)

    def function(self, function: Callable[..., Any], arguments: Any, options: Any) -> Any:
        """List a function that computes a new array; one that returns a view does so at once."""
        from emulated_cupy import empty, ndarray

        self.paused = True
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                like = function(*arguments, **options)
        finally:
            self.paused = False
        given = arrays_in((arguments, options))
        if not isinstance(like, ndarray) or any(root_of(like._values) is root_of(x._values) for x in given):
            return like
        flags = like._values.flags
        out = empty(like.shape, like.dtype, order="F" if flags.f_contiguous and not flags.c_contiguous else "C")
        target, held, named = out._values, unowned(arguments), unowned(options)

        def run() -> None:
            target[...] = function(*held, **named)._values

        self.add(function.__name__, run, [x._values for x in given], [target])
        return out


def arrays_in(tree: Any) -> list[Any]:
    from emulated_cupy import ndarray

    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, (tuple, list)):
        return [x for part in tree for x in arrays_in(part)]
    return [tree] if isinstance(tree, ndarray) else []


def unowned(tree: Any) -> Any:
    """Arrays in the same memory that do not keep it from being freed: what a graph holds."""
    from emulated_cupy import ndarray

    if isinstance(tree, dict):
        return {key: unowned(part) for key, part in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(map(unowned, tree))
    if not isinstance(tree, ndarray):
        return tree
    made = object.__new__(ndarray)
    made.__dict__.update(tree.__dict__, _memory=None)
    return made


class Graph:
    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.number = next(Graphs.numbers)
        Graphs.alive.add(self)

    @property
    def names(self) -> list[str]:
        """What each of CUDA's nodes does."""
        return [node.name for node in self.nodes if node.name]

    def launch(self, stream: Any = None) -> None:
        from emulated_cuda import State

        Graphs.refuse("the launch of a graph")
        Graphs.count("graph")
        State.reach((current_stream() if stream is None else stream).before)
        Graphs.launching = Graphs.nested = True
        try:
            for node in self.nodes:
                node.run()
        finally:
            Graphs.launching = Graphs.nested = False


def queued(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function of CuPy that returns a new array or a view."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        capture = Graphs.recording()
        if capture is not None:
            return capture.function(function, arguments, options)
        if Graphs.work is None or Graphs.nested:
            return function(*arguments, **options)
        Graphs.nested = True
        try:
            out = function(*arguments, **options)
        finally:
            Graphs.nested = False
        if not any(root_of(out._values) is root_of(x._values) for x in arrays_in((arguments, options))):
            Graphs.count("function")
        return out

    return call


def queued_in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function of CuPy that changes its first argument and returns nothing."""

    @functools.wraps(function)
    def call(*arguments: Any) -> None:
        capture = Graphs.recording()
        if capture is None:
            Graphs.count("function")
            function(*arguments)
        else:
            run = functools.partial(function, *unowned(arguments))
            reads = [x._values for x in arrays_in(arguments)]
            capture.add(function.__name__, run, reads, [arguments[0]._values])

    return call


def queue(name: str, kind: str, run: Callable[[], Any], reads: Sequence[Any], writes: Sequence[Any]) -> Any:
    """Do some work and return its result, or list it. reads, writes: the arrays of NumPy that it uses."""
    capture = Graphs.recording()
    if capture is None:
        Graphs.count(kind)
        return run()
    capture.add(name, run, reads, writes)
    return None
