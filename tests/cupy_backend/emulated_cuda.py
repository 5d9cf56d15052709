"""The devices, streams, events and hooks of the emulated CuPy, and what is counted. EMULATED: no GPU."""

from __future__ import annotations

import time
from typing import Any


class State:
    """What is current, and what has been counted."""

    device = 0
    devices = 1
    transfers = 0
    synchronizations = 0
    hooks: list[Any] = []  # noqa: RUF012
    events_done = True
    pinned: list[Any] = []  # noqa: RUF012


class Device:
    def __init__(self, device: Any = None) -> None:
        self.id = device
        self.outer: list[int] = []

    def __enter__(self) -> Device:
        self.outer.append(State.device)
        State.device = self.id
        return self

    def __exit__(self, *_: Any) -> None:
        State.device = self.outer.pop()

    def synchronize(self) -> None:
        State.synchronizations += 1


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.time = 0.0

    @property
    def done(self) -> bool:
        return State.events_done

    def record(self, stream: Any = None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        State.synchronizations += 1


class Stream:
    current: Any = None

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int = 0) -> None:
        self.waited_for: list[Event] = []

    def __enter__(self) -> Stream:
        self.outer, Stream.current = get_current_stream(), self
        return self

    def __exit__(self, *_: Any) -> None:
        Stream.current = self.outer

    def record(self, event: Any = None) -> Event:
        return Event()

    def wait_event(self, event: Event) -> None:
        self.waited_for.append(event)


def get_current_stream(device_id: int = -1) -> Stream:
    if Stream.current is None:
        Stream.current = Stream(null=True)
    return Stream.current


class MemoryHook:
    def __enter__(self) -> Any:
        State.hooks.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        State.hooks.remove(self)

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
    """The pool of page-locked memory, which does not tell how many bytes it has."""

    def free_all_blocks(self) -> None:
        State.pinned.append("freed")


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"CUDA error {status}")
