"""Devices and what a backend reports about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gradflow.backend.contract import Backend


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """A place for tensors: the `type` is the prefix of a backend ("cpu", "cuda"), `index` counts its devices.

    The type may carry the index, as in "cuda:1". A device equals each of its names, and has the hash of `str(device)`:
    that is the name to look it up by. Raises ValueError for an index that is not a number >= 0.

    >>> Device("cuda:1") == Device("cuda", 1), str(Device("cuda")), str(Device("cpu"))
    (True, 'cuda:0', 'cpu')
    >>> Device("cuda") == "cuda" == Device("cuda:0"), Device("cuda") == "cpu"
    (True, False)
    """

    type: str
    index: int = 0

    def __post_init__(self) -> None:
        prefix, colon, number = self.type.partition(":")
        if not prefix or (colon and (self.index or not number.isdecimal())) or self.index < 0:
            given = f"{self.type!r} with the index {self.index}" if self.index else repr(self.type)
            raise ValueError(f"a device is a name like 'cpu', 'cuda' or 'cuda:0'; got {given}")
        if colon:
            object.__setattr__(self, "type", prefix)
            object.__setattr__(self, "index", int(number))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            try:
                other = Device(other)
            except ValueError:
                return False
        if not isinstance(other, Device):
            return NotImplemented
        return self.type == other.type and self.index == other.index

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return self.type if self.type == "cpu" else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        return f"Device('{self}')"


class Diagnosis(NamedTuple):
    """Whether a device can be used (`usable`), the state it is in, in one sentence, and the `fix` to type if not.

    `code` names the state for programs, as in "driver-too-old"; it stays the same where the words change.
    """

    usable: bool
    state: str
    fix: str = ""
    code: str = ""

    def __str__(self) -> str:
        return self.state if not self.fix else f"{self.state}; {self.fix}"


class MemoryStats(NamedTuple):
    """Bytes in use now, the most since the start (None where not counted), and held from the system by the pool."""

    current: int
    peak: int | None
    reserved: int


class Event:
    """A point in the stream of work of a device that runs in step with the host: the time at `record`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.time: float | None = None

    def record(self) -> None:
        """Mark this point."""
        import time

        self.backend.synchronize()
        self.time = time.perf_counter()

    def seconds_since(self, earlier: Event) -> float:
        """Seconds between `earlier` and this event; RuntimeError where one was not recorded."""
        if self.time is None or earlier.time is None:
            raise RuntimeError("both events must be recorded before the time between them is asked for")
        return self.time - earlier.time
