"""Count, or forbid, copies between host and devices and waits of the host: `count_transfers` and `forbid_sync`.

Both watch the services of every `Backend` (also of one created inside the `with`), through which gradflow copies values
and waits. They see the code inside the `with` only, not other threads. They do not see waits inside the array library,
such as those of a kernel that reads a number: to find these, run the same code on the `fake` device, whose arrays raise
an error.

Outside such a `with`, nothing is watched, so there is no cost.
"""

from __future__ import annotations

import contextlib
import inspect
import linecache
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any

from gradflow.backend import Backend
from gradflow.dtypes import DTYPES
from gradflow.modes import Mode

_FROM_HOST = ("from_host", "from_host_later", "from_host_ahead", "asarray")
_WATCHED = {"to_host", *_FROM_HOST, "synchronize", "event"}
_GRADFLOW = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class SyncError(RuntimeError):
    """Code inside `forbid_sync` copied to the host or waited; the message says what did, and on which line.

    >>> import gradflow as gf
    >>> from gradflow.testing import SyncError, forbid_sync
    >>> try:
    ...     with forbid_sync():
    ...         gf.ones(3).sum().item()
    ... except SyncError as error:
    ...     print(str(error).partition(":")[0])
    Tensor.item copies 4 bytes (shape (), float32) from cpu to the host
    """


@dataclass
class HostTraffic:
    """Copies between host and device, and waits of the host, counted one call at a time."""

    to_host: int = 0
    """Copies from a device to the host, such as by `.item()`, `.numpy()` or printing. Each waits for the device."""
    from_host: int = 0
    """Copies from the host to a device, such as by `gradflow.tensor([1, 2])`."""
    synchronizations: int = 0
    """How often the host waited: each copy to the host, each `gradflow.synchronize`, the time between two events."""

    def record(self, service: str) -> None:
        """Count a call of this service of a backend: `to_host`, `from_host` or `synchronize`."""
        self.to_host += service == "to_host"
        self.from_host += service == "from_host"
        self.synchronizations += service in ("to_host", "synchronize")


@dataclass
class Transfers(HostTraffic):
    """What `count_transfers` has counted so far.

    >>> import gradflow as gf
    >>> from gradflow.testing import count_transfers
    >>> with count_transfers() as count:
    ...     _ = gf.ones(2).tolist()
    >>> count.to_host, count.bytes_to_host
    (1, 8)
    """

    bytes_to_host: int = 0
    """The bytes of all copies to the host."""
    bytes_from_host: int = 0
    """The bytes of all copies from the host."""


_counters: ContextVar[tuple[Transfers, ...]] = ContextVar("gradflow_transfer_counters", default=())
_forbidden: ContextVar[bool] = ContextVar("gradflow_sync_forbidden", default=False)
_inside: ContextVar[bool] = ContextVar("gradflow_inside_a_service", default=False)
_lock = threading.Lock()
_users = 0


@contextlib.contextmanager
def count_transfers() -> Iterator[Transfers]:
    """Count the copies between host and devices, and how often the host waits, inside a `with`.

    Copies in memory on the CPU count too, so you can prepare code for a GPU without having one. Reads of the CPU's
    memory without a copy do not count, such as the check of labels or the move of a tensor to another device.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0, 2.0])
    >>> with count_transfers() as count:
    ...     total = (x * x).sum()
    >>> count.to_host, count.synchronizations
    (0, 0)
    >>> with count_transfers() as count:
    ...     print(total.item(), gf.tensor([1.0, 2.0]).tolist())
    5.0 [1.0, 2.0]
    >>> count
    Transfers(to_host=2, from_host=1, synchronizations=2, bytes_to_host=12, bytes_from_host=8)
    """
    counter = Transfers()
    token = _counters.set((*_counters.get(), counter))
    _watch()
    try:
        yield counter
    finally:
        _unwatch()
        _counters.reset(token)


class forbid_sync(Mode):  # noqa: N801 (it is called like a function)
    """Raise `SyncError` if code inside the `with` copies values to the host or waits for any device.

    forbidden: False to allow waiting again, for a part of the code inside (default True).

    It also decorates functions, generators and coroutines: `@forbid_sync`. Raises TypeError for other arguments.

    >>> import gradflow as gf
    >>> loss = gf.ones(3).sum()
    >>> with forbid_sync():
    ...     loss = loss * 2
    ...     with forbid_sync(False):
    ...         print(loss)
    ...     if loss > 3:
    ...         print("high")
    Traceback (most recent call last):
    ...
    gradflow.testing.counting.SyncError: Tensor.__bool__ copies 1 byte (shape (), bool) from cpu to the host: \
<doctest gradflow.testing.counting.forbid_sync[2]>, line 5: if loss > 3:
    """

    variables = (_forbidden,)

    def __new__(cls, forbidden: Any = True) -> Any:
        return super().__new__(cls) if not inspect.isroutine(forbidden) else cls(True)(forbidden)

    def __init__(self, forbidden: Any = True) -> None:
        if not isinstance(forbidden, bool):
            raise TypeError(
                f"forbid_sync takes True or False, for all devices: `with forbid_sync():`; got {forbidden!r}"
            )
        self._to = forbidden

    def _values(self) -> tuple[Any, ...]:
        return (self._to,)

    def _enter(self, values: tuple[Any, ...]) -> None:
        _watch()
        super()._enter(values)

    def _exited(self) -> None:
        _unwatch()


def _watch() -> None:
    """Route every attribute access of any backend through `_look`, until `_unwatch` was called as often."""
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            Backend.__getattribute__ = _look  # type: ignore[method-assign, assignment]


def _unwatch() -> None:
    global _users
    with _lock:
        _users -= 1
        if not _users:
            del Backend.__getattribute__


def _look(backend: Backend, name: str) -> Any:
    value = object.__getattribute__(backend, name)
    if name not in _WATCHED or _inside.get() or not (_counters.get() or _forbidden.get()):
        return value
    return _watched(backend, name, value)


def _watched(backend: Backend, name: str, service: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        if name == "event":
            return _watched_event(backend, service(*args, **options))
        given = [*args, *options.values()][:1]
        moves = name in _FROM_HOST
        if name == "asarray":  # neither an array nor, on the CPU, numbers are a transfer
            moves = backend.device.type != "cpu" and not any(hasattr(x, "shape") for x in given)
        if name not in _FROM_HOST:
            _refuse(backend, name, given)
        token = _inside.set(True)  # services that it calls are part of it
        try:
            result = service(*args, **options)
        finally:
            _inside.reset(token)
        for counter in _counters.get():
            counter.record("from_host" if moves else name)
            if name == "to_host":
                counter.bytes_to_host += result.nbytes
            elif moves:
                made = result[0] if name == "from_host_ahead" else [result]
                counter.bytes_from_host += sum(_bytes(backend, array) for array in made)
        return result

    return call


def _watched_event(backend: Backend, event: Any) -> Any:
    measure = event.seconds_since

    def seconds_since(earlier: Any) -> float:
        return float(_watched(backend, "synchronize", lambda: measure(earlier))())

    event.seconds_since = seconds_since
    return event


def _bytes(backend: Backend, array: Any) -> int:
    return int(math.prod(array.shape)) * DTYPES[backend.dtype_name(array.dtype)].itemsize


def _refuse(backend: Backend, service: str, given: list[Any]) -> None:
    if not _forbidden.get():
        return
    what = f"waits for {backend.device}"
    for array in given:
        size = _bytes(backend, array)
        name = backend.dtype_name(array.dtype)
        what = (
            f"copies {size} byte{'s' if size != 1 else ''} (shape {tuple(array.shape)}, {name}) "
            f"from {backend.device} to the host"
        )
    asked, user = _callers()
    text = linecache.getline(user.f_code.co_filename, user.f_lineno).strip()
    where = f"{user.f_code.co_filename}, line {user.f_lineno}{': ' * bool(text)}{text}"
    raise SyncError(f"{asked or f'{type(backend).__name__}.{service}'} {what}: {where}")


def _callers() -> tuple[str, FrameType]:
    """Return the gradflow function that user code called ("" if it called a service directly), and the user's frame."""
    frame = sys._getframe()
    asked = ""
    while frame.f_back is not None and _is_own(frame):
        asked, frame = "" if frame.f_code.co_filename == __file__ else frame.f_code.co_qualname, frame.f_back
    return asked, frame


def _is_own(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_GRADFLOW) or isinstance(frame.f_locals.get("self"), Backend)
