"""Devices, what a backend reports about them, and the errors about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gradflow.backend.contract import Backend


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """A device for tensors.

    type: the prefix of a backend, such as "cpu" or "cuda", or prefix and index, such as "cuda:1". index: the number of
    the device (default 0). A device equals each of its names; its hash is that of `str(device)`. Raises ValueError for
    an empty prefix, or an index that is not an integer >= 0.

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


class DeviceUnavailableError(RuntimeError):
    """The requested device cannot be used; the message says why and what to type.

    >>> import gradflow as gf
    >>> gf.zeros(1, device="cpu:1")
    Traceback (most recent call last):
        ...
    gradflow.DeviceUnavailableError: device 'cpu:1' does not exist: there is one; use 'cpu'
    """

    __module__ = "gradflow"


class DeviceMismatchError(RuntimeError):
    """An operation got tensors on different devices; the message names each tensor, and the fix.

    >>> import gradflow as gf
    >>> import gradflow.testing  # the device "fake"
    >>> try:
    ...     gf.ones(2, device="cpu") + gf.ones(2, device="fake")
    ... except gf.DeviceMismatchError as error:
    ...     print(str(error).partition("; ")[2])
    move one with .to('cpu')
    """

    __module__ = "gradflow"


class Diagnosis(NamedTuple):
    """Whether a device can be used (`usable`), its `state` in one sentence, and if not usable, the `fix` to type.

    `code` identifies the state for programs, such as "driver-too-old"; it is stable, while the words may change.

    >>> import gradflow as gf
    >>> gf.diagnose("cpu").usable
    True
    """

    usable: bool
    state: str
    fix: str = ""
    code: str = ""

    def __str__(self) -> str:
        return self.state if not self.fix else f"{self.state}; {self.fix}"


class MemoryStats(NamedTuple):
    """Bytes in use now, the peak since the start (None if not counted), and bytes reserved from the system."""

    current: int
    peak: int | None
    reserved: int


class Event:
    """A point in the stream of work of a device.

    This base class waits for the device when it is recorded, so later nothing is left to wait for, and reads the clock
    of the host.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.time: float | None = None

    def record(self) -> None:
        """Mark this point."""
        import time

        self.backend.synchronize()
        self.time = time.perf_counter()

    def wait(self) -> None:
        """Let work queued from now on begin after this point; the host does not wait."""

    def synchronize(self) -> None:
        """Wait on the host until the device has reached this point."""

    def seconds_since(self, earlier: Event) -> float:
        """Seconds from `earlier` to this event. RuntimeError if either is not recorded."""
        if self.time is None or earlier.time is None:
            raise RuntimeError("both events must be recorded before the time between them can be measured")
        return self.time - earlier.time
