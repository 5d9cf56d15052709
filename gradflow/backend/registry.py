"""Devices by name, and the backend object of each."""

from __future__ import annotations

import logging
import os
from contextvars import ContextVar
from numbers import Integral
from operator import index
from typing import Any

from gradflow.backend.contract import Backend
from gradflow.backend.device import Device, Diagnosis, MemoryStats
from gradflow.backend.discovery import (
    DeviceUnavailableError,
    backend_class,
    backend_prefixes,
    check_name,
    failed,
    find,
    register,
)
from gradflow.modes import Mode
from gradflow.text import one_line, printable

logger = logging.getLogger("gradflow")
MOST_DEVICES = 4096
"""More than this many of one kind are taken for a fault of the backend that counts them."""


class DeviceMismatchError(RuntimeError):
    """Tensors of different devices met in one operation; the message names each, and the fix."""

    __module__ = "gradflow"


DeviceLike = str | Device
_backends: dict[Device, Backend] = {}
_current: ContextVar[Device] = ContextVar("gradflow_device", default=Device("cpu"))  # noqa: B039 (it is frozen)


def register_backend(prefix: str, backend: type[Backend]) -> None:
    """Make `backend` the one of devices called `prefix`, before any entry point.

    Raises ValueError for a prefix that is not a plain name, is gradflow's own, or is not the backend's `name`.
    """
    register(prefix, backend)
    for device in [d for d in _backends if d.type == prefix]:
        del _backends[device]


def _ask(prefix: str, cls: type[Backend]) -> tuple[Diagnosis, int]:
    """What the backend says of its devices, and their number. Never raises."""
    try:
        diagnosis = cls.diagnose()
        if not isinstance(diagnosis, Diagnosis):
            raise TypeError(f"diagnose() must give a gradflow.Diagnosis; it gives {diagnosis!r}")
        if not all(isinstance(words, str) for words in diagnosis[1:]):
            raise TypeError(f"diagnose() must tell state, fix and code in strings; it gives {diagnosis!r}")
        diagnosis = Diagnosis(bool(diagnosis.usable), *map(printable, diagnosis[1:]))
        count = cls.device_count() if diagnosis.usable else 0
        if not isinstance(count, Integral) or count > MOST_DEVICES:
            raise TypeError(f"device_count() must give a number, of at most {MOST_DEVICES}; it gives {count!r}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return failed(prefix, "asked", error), 0
    if diagnosis.usable and count < 1:
        return diagnosis._replace(usable=False, state=f"{diagnosis.state}; and there is no device", code="no-device"), 0
    return diagnosis, int(count)


def _start(device: Device, cls: type[Backend]) -> Backend:
    """The backend object of a device, made once; DeviceUnavailableError where that fails."""
    if device not in _backends:
        try:
            backend = cls(device.index)
            check_name(device.type, backend)
            if vars(backend).get("device") != device:
                raise TypeError("its __init__(self, index) must call super().__init__(namespace, index)")
            _backends.setdefault(device, backend)  # another thread may have been the first
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise DeviceUnavailableError(str(failed(device.type, "started", error))) from error
    return _backends[device]


def diagnose(prefix: str) -> Diagnosis:
    """Whether devices called `prefix` can be used here, and if not, why and what to type. Never raises.

    "Can be used" means more than what the backend says of itself: the object for its first device was made.

    >>> diagnose("cpu").usable
    True
    """
    try:
        cls = find(prefix)
    except ValueError as error:
        return Diagnosis(False, str(error), code="unknown")
    if isinstance(cls, Diagnosis):
        return cls
    diagnosis, _ = _ask(prefix, cls)
    if diagnosis.usable:
        try:
            _start(Device(prefix), cls)
        except DeviceUnavailableError as error:
            return failed(prefix, "started", error.__cause__ or error)
    return diagnosis


def parse_device(device: DeviceLike) -> Device:
    """The device that a name stands for, `auto` included; ValueError for a name that is none.

    >>> parse_device("cuda:1")
    Device('cuda:1')
    """
    if isinstance(device, Device):
        return device
    if not isinstance(device, str):
        raise TypeError(f"a device is a name like 'cpu' or 'cuda:0', or a gradflow.Device; got {device!r}")
    return choose_device()[0] if device == "auto" else Device(device)


def choose_device() -> tuple[Device, str]:
    """The device that `auto` stands for, and one line that says why.

    `GRADFLOW_DEVICE` if that is set; else CUDA if it can be used; else the CPU. Also logged, at level INFO. Where
    `GRADFLOW_DEVICE` names what cannot be used, raises as `get_backend` does.
    """
    named = os.environ.get("GRADFLOW_DEVICE", "")
    if named and named != "auto":
        try:
            device, reason = get_backend(named).device, "GRADFLOW_DEVICE is set"
        except (ValueError, DeviceUnavailableError) as error:
            raise type(error)(f"auto stands for GRADFLOW_DEVICE: {error}") from None
    else:
        diagnosis = diagnose("cuda")
        device = Device("cuda" if diagnosis.usable else "cpu")
        reason = diagnosis.state if diagnosis.usable else f"no CUDA device: {diagnosis.state}"
    logger.info("device %s (%s)", device, reason)
    return device, reason


def get_backend(device: DeviceLike | None = None) -> Backend:
    """The backend object of a device, or of the current one.

    Raises ValueError for an unknown name, DeviceUnavailableError, with the diagnosis, for one that cannot be used.
    """
    device = _current.get() if device is None else parse_device(device)
    backend = _backends.get(device)
    if backend is None:
        cls = backend_class(device.type)
        diagnosis, count = _ask(device.type, cls)
        if not diagnosis.usable:
            raise DeviceUnavailableError(f"device '{device}' cannot be used: {diagnosis}")
        if device.index >= count:
            there = f"there is one; use '{device.type}'" if count == 1 else f"there are {count} of type {device.type!r}"
            raise DeviceUnavailableError(f"device '{device.type}:{device.index}' does not exist: {there}")
        backend = _start(device, cls)
    return backend


def devices() -> list[Device]:
    """All devices that can be used here, the CPU first."""
    return [device for prefix in backend_prefixes() for device in devices_of(prefix)]


def devices_of(prefix: str) -> list[Device]:
    """All devices called `prefix` that can be used here."""
    if not diagnose(prefix).usable:
        return []
    return [Device(prefix, i) for i in range(_ask(prefix, backend_class(prefix))[1])]


def describe_device(device: Device) -> tuple[str, dict[str, int | None]]:
    """What the backend of a device says that it is, on one line, and its memory in bytes.

    Raises DeviceUnavailableError for whatever else the backend does.
    """
    try:
        backend = get_backend(device)
        words, memory = backend.describe(), backend.memory_stats()
        if not isinstance(words, str):
            raise TypeError(f"describe() must give a string; it gives {words!r}")
        numbers = isinstance(memory, MemoryStats) and all(n is None or isinstance(n, Integral) for n in memory)
        if not numbers:
            raise TypeError(f"memory_stats() must give a gradflow.backend.MemoryStats of numbers; it gives {memory!r}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # as where it is loaded
        raise DeviceUnavailableError(f"its device cannot be described: {one_line(error)}") from error
    return printable(words), {name: None if n is None else int(n) for name, n in memory._asdict().items()}


def current_device() -> Device:
    """The device on which new tensors are made where none is named: the CPU, or that of `use_device`."""
    return _current.get()


class use_device(Mode):  # noqa: N801 (as a function, which it was called like)
    """Make new tensors on `device` inside a `with`, or while a decorated function, generator or coroutine runs.

    Existing tensors stay where they are. Entering raises as `get_backend` does.

    >>> with use_device("cpu") as device:
    ...     print(device)
    cpu
    """

    variables = (_current,)

    def __init__(self, device: DeviceLike) -> None:
        if not isinstance(device, (str, Device)):
            raise TypeError(
                f"use_device takes a device, also as a decorator: @gradflow.use_device('cpu'); got {device!r}"
            )
        self.device = device

    def _values(self) -> tuple[Any, ...]:
        chosen = parse_device(self.device)
        get_backend(chosen)
        return (chosen,)

    def __enter__(self) -> Device:
        super().__enter__()
        return _current.get()

    def __repr__(self) -> str:
        return f"use_device({str(self.device)!r})"


def synchronize(device: DeviceLike | None = None) -> None:
    """Wait until all work of a device is done: what a measurement of time needs on both its sides."""
    get_backend(device).synchronize()


def get_num_threads() -> int:
    """The threads that computations on the CPU use: those of BLAS, and gradflow's own."""
    return get_backend("cpu").num_threads()


def set_num_threads(n: int) -> None:
    """Have computations on the CPU use n threads: those of BLAS and OpenMP (through threadpoolctl), and gradflow's own.

    At first there are as many as the process may use cores, or as OMP_NUM_THREADS says. Raises ValueError for what is
    no integer from 1 to 1024, ImportError where threadpoolctl, of the extra `fast`, is not installed.
    """
    try:
        threads = 0 if isinstance(n, bool) else index(n)
    except TypeError:
        threads = 0
    if not 1 <= threads <= 1024:
        raise ValueError(f"set_num_threads takes an integer of at least 1 and at most 1024; got {n!r}")
    get_backend("cpu").set_num_threads(threads)


def memory_stats(device: DeviceLike | None = None) -> dict[str, int | None]:
    """Bytes of memory of a device: `current`, `peak` and `reserved`; None where the library does not count them."""
    return get_backend(device).memory_stats()._asdict()


def free_memory(device: DeviceLike | None = None) -> int:
    """Give memory that a device's pool keeps for later, and no array uses, back to the system; the bytes given back.

    For a process that shares the device with others, or after a far larger model. The next arrays cost more.
    """
    return get_backend(device).free_memory()
