"""Runs kernels on several threads: a single launch, or a `Program` of many.

The threads are Python's. They stay in native code without the lock of the interpreter (see `sharing`), look for work
until there has been none for about a millisecond, and then sleep. The calling thread takes every chunk that nobody
has begun, so work is also done without them: before they have started in a forked child, after they have ended with the
interpreter, or while another thread has them.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gradflow_numpy.native import llvm
from gradflow_numpy.threads import count

if TYPE_CHECKING:
    from gradflow_numpy.native.kernels import Kernel, Launch

SCRATCH = 1 << 20
"""The size in bytes of the memory that each thread has for kernels."""
SMALL = 20_000
"""Work of less than so many nanoseconds is done by the calling thread: another one costs about 4000 to have."""
SHORT = 30_000
"""Work of one thread of less than so many nanoseconds is done with the lock of the interpreter."""
_CHUNK = 4_000
"""The nanoseconds of a chunk, at least."""
_CHUNKS = 3
"""The chunks for each thread, so that a slower thread takes fewer."""


# ---------------------------------------------------------------------- the threads


class Pool:
    """The threads that help the calling thread, and what they share.

    launch, run: native functions, see `sharing.module_text`.
    """

    def __init__(self) -> None:
        from gradflow_numpy.native import sharing

        self._control = _memory(sharing.CONTROL)
        scratch = _memory(SCRATCH)
        for memory in (self._control, scratch):  # kept: threads may be at work until the process ends
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))
        for place, word in (
            (sharing.SCRATCH, scratch.ctypes.data),
            (sharing.NONE, id(None)),
            (sharing.NDARRAY, id(np.ndarray)),
        ):
            self._control[place // 8] = word
        self._active = self._control[sharing.ACTIVE // 8 :]
        self._slots = self._control[sharing.WORKERS // 8 :].reshape(sharing.MOST_WORKERS, -1)
        self.launch = _python_function("launch", self._control)
        self.run = _python_function("run", self._control)
        self._workers: list[threading.Thread] = []
        self._resizing = threading.Lock()
        self._count = 1
        self._ended = False

    def ready(self) -> None:
        """Have the threads that `count` says."""
        if self._count != count():
            self._resize(count())

    def end(self) -> None:
        """End all workers; there will be no others."""
        self._ended = True
        self._resize(1)

    def _resize(self, n: int) -> None:
        with self._resizing:
            self._count = n
            workers = 0 if self._ended else min(n - 1, len(self._slots))
            self._active[0] = workers
            _native("wake", 2)(self._control.ctypes.data, len(self._workers))
            surplus = self._workers[workers:]
            del self._workers[workers:]
            for worker in surplus:
                worker.join(timeout=10)
            for number in range(len(self._workers), workers):
                if not self._slots[number, 1]:
                    self._slots[number, 1] = _held_lock()
                worker = threading.Thread(target=self._work, args=(number,), name="gradflow", daemon=True)
                try:
                    worker.start()
                except RuntimeError:  # no more threads can be started, or the interpreter is ending
                    break
                self._workers.append(worker)

    def _work(self, number: int) -> None:
        scratch = _memory(SCRATCH)
        _native("serve", 3)(self._control.ctypes.data, scratch.ctypes.data, number)


def _held_lock() -> int:
    """A lock of the interpreter's library, which this thread holds."""
    allocate, acquire = ctypes.pythonapi.PyThread_allocate_lock, ctypes.pythonapi.PyThread_acquire_lock
    allocate.restype, acquire.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int)
    lock = int(allocate())
    acquire(lock, 1)
    return lock


def _native(name: str, parameters: int) -> Callable[..., None]:
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * parameters)(_library().address(name))


def _memory(size: int) -> Any:
    """Words of 64 bits, 0 at first, at the beginning of a line of the cache."""
    words = np.zeros(size // 8 + 8, np.int64)
    return words[-(words.ctypes.data // 8) % 8 :][: size // 8]


current: Pool | None = None
"""The pool of this process, once there is one: see `pool`."""
_making = threading.Lock()


def pool() -> Pool:
    """The pool of this process."""
    global current
    if current is None:
        with _making:
            if current is None:
                current = Pool()
    return current


def _forked() -> None:
    """In a forked child there are no workers, and the old pool may be in use for ever."""
    global current, _making
    current, _making = None, threading.Lock()


@atexit.register
def _end() -> None:
    if current is not None:
        current.end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


# ---------------------------------------------------------------------- native functions


@functools.cache
def _library() -> llvm.Library:
    from gradflow_numpy.native import kernels, sharing

    for name in sharing.API:
        _add_symbol(name, getattr(ctypes.pythonapi, name))
    if sys.platform == "win32":
        _add_symbol("sched_yield", ctypes.WinDLL("kernel32").SwitchToThread)
    else:
        _add_symbol("sched_yield", ctypes.CDLL(None).sched_yield)
    head = object.__basicsize__
    return llvm.compiled(f"threads-{head}", lambda: sharing.module_text(kernels.target(), SCRATCH, head))


def _add_symbol(name: str, function: Any) -> None:
    import llvmlite.binding

    llvmlite.binding.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)


class _Method(ctypes.Structure):
    """PyMethodDef of CPython."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_FASTCALL = 0x80


@functools.cache
def _method(name: str) -> _Method:
    return _Method(name.encode(), _library().address(name), _FASTCALL, None)


def _python_function(name: str, owner: Any) -> Callable[..., int]:
    """A native function `f(self, arguments, count)` as a function for Python; owner: its `self`."""
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.argtypes = (ctypes.POINTER(_Method), ctypes.py_object, ctypes.c_void_p)
    new.restype = ctypes.py_object
    return new(ctypes.byref(_method(name)), owner, None)  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- launches and programs


def chunk_size(items: int, work: float, kernel: Kernel) -> int:
    """The items of a chunk, for `work` nanoseconds in all; 0 for work that is done at once."""
    n = count()
    if n == 1:
        return 0 if work < SHORT else items
    pool().ready()
    parts = min(int(work) // _CHUNK, _CHUNKS * n, max(items // kernel.enough, n))
    size = -(-items // max(parts, 1))
    return -(-size // kernel.multiple) * kernel.multiple


class Input(NamedTuple):
    """Stands among the arguments of a launch for an array that a program is given when it runs.

    number: which of the arguments of `Program.run`. offset: bytes from its beginning.
    """

    number: int
    offset: int = 0


class Program:
    """Groups of launches in levels: all of a level is done before the next level begins.

    levels: the groups of each level, which may run at the same time and in any order. The launches of a group have
    equally many items, and are done one after another for each range of items. Their arguments may be `Input`s.
    status: an array of one int64, which launches may set: no level begins when it is not 0.
    One thread at a time may run a program.
    """

    def __init__(self, levels: Sequence[Sequence[Sequence[Launch]]], status: Any = None) -> None:
        from gradflow_numpy.native import sharing

        self._levels = [list(level) for level in levels]
        self._status = status
        launches = [launch for level in levels for group in level for launch in group]
        starts = np.cumsum([0, *(len(launch.arguments) for launch in launches)])
        self._words = np.zeros(starts[-1], np.int64)
        operations, patches = [], []
        for launch, start in zip(launches, starts[:-1], strict=True):
            place = self._words.ctypes.data + 8 * int(start)
            operations.append((launch.kernel.address(launch.dtype), place))
            fixed = []
            for i, x in enumerate(launch.arguments):
                if isinstance(x, Input):
                    patches.append((place + 8 * i, x.number, x.offset))
                fixed.append(None if isinstance(x, Input) else x)
            self._words[start : start + len(fixed)] = launch._replace(arguments=tuple(fixed)).words()
        self._inputs = 1 + max((number for _, number, _ in patches), default=-1)
        self._operations, self._patches = _table(operations), _table(patches)
        self._image = _memory(8 * 8)
        self._image[sharing.OPERATION_TABLE // 8] = self._operations.ctypes.data
        self._image[sharing.PATCHES // 8] = len(patches)
        self._image[sharing.PATCH_TABLE // 8] = self._patches.ctypes.data
        self._image[sharing.STATUS // 8] = 0 if status is None else status.ctypes.data
        self._count = 0  # the number of threads that it is divided for

    def run(self, *inputs: Any) -> int:
        """Do all work, and return the status (0 without one).

        inputs: arrays, None, or addresses, by the numbers of `Input`; those that no launch takes are ignored.
        """
        if len(inputs) < self._inputs:
            raise TypeError(f"the program takes {self._inputs} inputs, not {len(inputs)}")
        threads, workers = count(), current or pool()
        if self._count != threads:
            self._divide(threads)
        if self._shared:
            workers.ready()
        return workers.run(self._image, inputs)

    def _divide(self, threads: int) -> None:
        """Lay out the chunks."""
        from gradflow_numpy.native import sharing

        work = sum(_work(group) for level in self._levels for group in level)
        self._shared = threads > 1 and work >= SMALL
        pieces: list[tuple[int, int, int, int]] = []
        chunks: list[tuple[int, int, int]] = []
        operation = 0
        for level in self._levels:
            least = math.inf
            if self._shared:
                least = max(sum(map(_work, level)) / (_CHUNKS * threads), _CHUNK)
            before, first, filled = len(chunks), len(pieces), 0.0
            for group in level:
                end = operation + len(group)
                for start, stop, cost in _ranges(group, least, threads):
                    if filled and filled + cost > least:
                        chunks.append((first, len(pieces), before))
                        first, filled = len(pieces), 0.0
                    pieces.append((operation, end, start, stop))
                    filled += cost
                operation = end
            if first < len(pieces):
                chunks.append((first, len(pieces), before))
        self._pieces, self._chunks, self._count = _table(pieces), _table(chunks), threads
        self._image[sharing.CHUNKS // 8] = len(chunks)
        self._image[sharing.CHUNK_TABLE // 8] = self._chunks.ctypes.data
        self._image[sharing.PIECE_TABLE // 8] = self._pieces.ctypes.data
        self._image[sharing.MODE // 8] = (
            sharing.SHARED if self._shared else sharing.AT_ONCE if work < SHORT else sharing.ALONE
        )


def _work(group: Sequence[Launch]) -> float:
    return sum(launch.items * launch.cost for launch in group)


def _ranges(group: Sequence[Launch], work: float, threads: int) -> list[tuple[int, int, float]]:
    """Start, stop, and work of ranges of a group's items, of about as much work each, the larger ones first."""
    items, total = group[0].items, _work(group)
    multiple = math.lcm(*(launch.kernel.multiple for launch in group))
    enough = max(launch.kernel.enough for launch in group)
    units = -(-items // multiple)
    parts = max(min(round(total / work), max(items // enough, threads), units), 1)
    size, larger = divmod(units, parts)
    starts = [min((i * size + min(i, larger)) * multiple, items) for i in range(parts + 1)]
    return [(start, stop, total * (stop - start) / items) for start, stop in pairwise(starts) if start < stop]


def _table(rows: list[Any]) -> Any:
    return np.array(rows, np.int64).reshape(-1)
