"""The devices, streams, events and hooks of the emulated CuPy, and what is counted. EMULATED: no GPU.

A GPU may do the work of two streams in any order, unless one has waited for an event of the other. Here, a copy from
page-locked memory is made as late as that allows, so work of a stream that has not waited reads what was there before.
"""

from __future__ import annotations

import time
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from emulated_graphs import Capture, Graph, Graphs


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int, why: str = "") -> None:
        self.status = status
        super().__init__(f"CUDA error {status}" + (f": {why}" if why else ""))


class Copy:
    """An asynchronous copy from page-locked memory in a stream, which the GPU makes later."""

    def __init__(self, source: Any, target: Any, stream: Stream) -> None:
        self.source, self.target, self.promised, self.made = source, target, source.copy(), False
        self.moment = stream.queue()

    def make(self) -> None:
        if not self.made:
            self.target[...] = self.source
            self.made = True


class State:
    """The current device and stream, and the counts."""

    device = 0
    devices = 1
    transfers = 0
    synchronizations = 0
    hooks: dict[str, Any] = {}  # noqa: RUF012
    pinned: list[Any] = []  # noqa: RUF012  # the page-locked arrays
    pinned_pool_freed = 0
    in_flight: list[Copy] = []  # noqa: RUF012
    streams: dict[int, list[Any]] = {}  # noqa: RUF012  # of each device, the current one last
    made_streams = 0
    by_pointer: WeakValueDictionary[int, Any] = WeakValueDictionary()  # noqa: RUF012  # all streams

    @classmethod
    def is_pinned(cls, address: int) -> bool:
        return any(x.ctypes.data <= address < x.ctypes.data + x.nbytes for x in cls.pinned)

    @classmethod
    def reach(cls, before: dict[Any, int] | None = None) -> list[Copy]:
        """Let the GPU make the copies before some moments of streams (default: all), which are returned."""
        found = [c for c in cls.in_flight if before is None or before.get(c.moment[0], 0) >= c.moment[1]]
        for copy in found:
            copy.make()
        return found

    @classmethod
    def wait(cls, before: dict[Any, int] | None = None) -> None:
        """Wait for the GPU. The sources of its copies must be unchanged, since it may read them at any time."""
        Graphs.refuse("a wait")
        cls.synchronizations += 1
        copies = cls.reach(before)
        cls.in_flight = [copy for copy in cls.in_flight if copy not in copies]
        for copy in copies:
            assert copy.source.tobytes() == copy.promised.tobytes(), (
                "page-locked memory was changed while the GPU copied from it"
            )


class Device:
    def __init__(self, device: Any = None) -> None:
        self.id = State.device if device is None else device
        self.outer: list[int] = []

    def __enter__(self) -> Device:
        self.outer.append(State.device)
        State.device = self.id
        return self

    def __exit__(self, *_: Any) -> None:
        State.device = self.outer.pop()

    def synchronize(self) -> None:
        State.wait()

    compute_capability = "90"


class Event:
    """An event of the device that is current at its creation, for streams of that device only."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.device = State.device
        self.time: float | None = None
        self.complete = False
        self.before: dict[Any, int] = {}
        self.capture: Any = None

    @property
    def done(self) -> bool:
        return not State.in_flight

    def record(self, stream: Any = None) -> None:
        stream = get_current_stream() if stream is None else stream
        if stream.device_id != self.device:
            raise CUDARuntimeError(400, f"an event of device {self.device}, a stream of device {stream.device_id}")
        self.time, self.complete = time.perf_counter(), False
        self.before = dict(stream.before)
        capture = Graphs.capture
        self.capture = capture if capture is not None and stream in capture.streams else None

    def synchronize(self) -> None:
        State.wait(self.before)
        self.complete = True


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    if start_event.time is None or end_event.time is None:
        raise CUDARuntimeError(400, "an event that was not recorded")
    if not (start_event.complete and end_event.complete):
        raise CUDARuntimeError(600, "an event that is still to come")
    if start_event.device != end_event.device:
        raise CUDARuntimeError(400, "events of two devices")
    return (end_event.time - start_event.time) * 1000


class Stream:
    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int = 0) -> None:
        self.device_id = State.device
        self.waited_for: list[Event] = []
        self.before: dict[Any, int] = {self: 0}  # how much of the work of each stream its next work comes after
        self.ptr = State.made_streams
        State.made_streams += 1
        State.by_pointer[self.ptr] = self

    def is_capturing(self) -> bool:
        return Graphs.capture is not None and self in Graphs.capture.streams

    def queue(self) -> tuple[Stream, int]:
        """Queue some work; returns its moment."""
        self.before[self] += 1
        return self, self.before[self]

    def __enter__(self) -> Stream:
        if self.device_id != State.device:
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id}) does not match with the current device "
                f"({State.device})"
            )
        get_current_stream()
        State.streams[self.device_id].append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        State.streams[self.device_id].pop()

    def record(self, event: Any = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event  # type: ignore[no-any-return]

    def wait_event(self, event: Event) -> None:
        if event.time is None:
            raise CUDARuntimeError(400, "an event that was not recorded")
        self.waited_for.append(event)
        capture = Graphs.capture
        if event.capture is not None and self not in event.capture.streams:
            assert event.capture is capture
            capture.streams.append(self)
        elif capture is not None and self in capture.streams:
            assert event.capture is capture, "a captured stream waits for work that is not captured"
        self.before |= {s: max(n, self.before.get(s, 0)) for s, n in event.before.items()}

    def synchronize(self) -> None:
        State.wait(self.before)

    def begin_capture(self, mode: Any = None) -> None:
        if self is State.streams[self.device_id][0]:
            raise CUDARuntimeError(900, "the null stream")
        assert Graphs.capture is None
        Graphs.capture = Capture(self)

    def end_capture(self) -> Graph:
        capture, Graphs.capture = Graphs.capture, None
        assert capture is not None
        assert capture.stream is self
        for other in capture.streams:
            if self.before.get(other, 0) < other.before[other]:
                raise CUDARuntimeError(904, "work of another stream that was not waited for")
        return Graph(capture.nodes)


def get_current_stream(device_id: int = -1) -> Stream:
    device = State.device if device_id == -1 else device_id
    if device not in State.streams:
        with Device(device):
            State.streams[device] = [Stream(null=True)]
    return State.streams[device][-1]  # type: ignore[no-any-return]


class MemoryHook:
    name = "MemoryHook"

    def __enter__(self) -> Any:
        if self.name in State.hooks:
            raise KeyError(f"memory hook {self.name} already exists")
        State.hooks[self.name] = self
        return self

    def __exit__(self, *_: Any) -> None:
        del State.hooks[self.name]

    def malloc_postprocess(self, **_: Any) -> None: ...
    def free_postprocess(self, **_: Any) -> None: ...


class Pool:
    """A memory pool with 1000 bytes in use and 3096 to spare."""

    def __init__(self) -> None:
        self.spare = 3096

    def used_bytes(self) -> int:
        return 1000

    def total_bytes(self) -> int:
        return 1000 + self.spare

    def free_all_blocks(self, stream: Any = None) -> None:
        self.spare = 0


class PinnedPool:
    """The pool of page-locked memory, which does not report how many bytes it has."""

    def free_all_blocks(self) -> None:
        State.pinned_pool_freed += 1


def empty_pinned(shape: Any, dtype: Any = float, order: str = "C") -> Any:
    out = np.empty(shape, dtype, order)
    State.pinned.append(out)
    return out
