"""Devices by name: the backend object of each, the current device, and functions of a device's backend."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextvars import ContextVar
from numbers import Integral
from operator import index
from typing import Any

from gradflow.backend.contract import Backend
from gradflow.backend.device import Device, DeviceUnavailableError, Diagnosis, MemoryStats
from gradflow.backend.discovery import (
    backend_class,
    backend_prefixes,
    check_name,
    failed,
    find,
    register,
    unregister,
)
from gradflow.modes import Mode
from gradflow.text import one_line, printable

logger = logging.getLogger("gradflow")
MOST_DEVICES = 4096
"""A backend that counts more devices is considered faulty."""


DeviceLike = str | Device
_backends: dict[Device, Backend] = {}
on_start: list[Callable[[Backend], None]] = []
"""Functions to be called with each new backend object."""
_current: ContextVar[Device] = ContextVar("gradflow_device", default=Device("cpu"))  # noqa: B039 (it is frozen)


def register_backend(prefix: str, backend: type[Backend]) -> None:
    """Register a backend class for the devices with this prefix. It takes precedence over installed packages.

    prefix: an identifier other than "auto", "cpu" and "cuda", equal to the attribute `name` of the class.

    Raises ValueError for another prefix, TypeError unless `backend` is derived from `gradflow.backend.Backend` and
    defines all required services.

    >>> import gradflow as gf
    >>> gf.register_backend("cpu", type(gf.get_backend("cpu")))
    Traceback (most recent call last):
        ...
    ValueError: a backend's prefix is an identifier other than auto, cpu and cuda; got 'cpu'
    """
    register(prefix, backend)
    _forget_objects(prefix)


def unregister_backend(prefix: str) -> None:
    """Undo `register_backend`, for tests; KeyError if the prefix is not registered."""
    unregister(prefix)
    _forget_objects(prefix)


def _forget_objects(prefix: str) -> None:
    for device in [d for d in _backends if d.type == prefix]:
        del _backends[device]


def _ask(prefix: str, cls: type[Backend]) -> tuple[Diagnosis, int]:
    """The backend's diagnosis, and the number of its devices. Never raises."""
    try:
        diagnosis = cls.diagnose()
        if not isinstance(diagnosis, Diagnosis):
            raise TypeError(f"diagnose() must return a gradflow.Diagnosis; it returns {diagnosis!r}")
        if not all(isinstance(words, str) for words in diagnosis[1:]):
            raise TypeError(f"diagnose() must return strings as state, fix and code; it returns {diagnosis!r}")
        diagnosis = Diagnosis(bool(diagnosis.usable), *map(printable, diagnosis[1:]))
        count = cls.device_count() if diagnosis.usable else 0
        if not isinstance(count, Integral) or count > MOST_DEVICES:
            raise TypeError(f"device_count() must return an integer of at most {MOST_DEVICES}; it returns {count!r}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return failed(prefix, "asked", error), 0
    if diagnosis.usable and count < 1:
        return diagnosis._replace(usable=False, state=f"{diagnosis.state}; but there is no device", code="no-device"), 0
    return diagnosis, int(count)


def _start(device: Device, cls: type[Backend]) -> Backend:
    """The backend object of a device, created at the first call; DeviceUnavailableError if that fails."""
    if device not in _backends:
        try:
            backend = cls(device.index)
            check_name(device.type, backend)
            if vars(backend).get("device") != device:
                raise TypeError("its __init__(self, index) must call super().__init__(namespace, index)")
            if _backends.setdefault(device, backend) is backend:  # unless another thread was faster
                for watch in list(on_start):
                    watch(backend)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise DeviceUnavailableError(str(failed(device.type, "started", error))) from error
    return _backends[device]


def diagnose(prefix: str) -> Diagnosis:
    """Whether the devices with this prefix can be used, and if not, why and what to type. Never raises.

    A device can be used if the backend says so and the backend object of its first device can be created.

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
    """The device with this name; "auto" is that of `choose_device`. ValueError for an invalid name.

    >>> parse_device("cuda:1")
    Device('cuda:1')
    """
    if isinstance(device, Device):
        return device
    if not isinstance(device, str):
        raise TypeError(f"a device is a name like 'cpu' or 'cuda:0', or a gradflow.Device; got {device!r}")
    return choose_device()[0] if device == "auto" else Device(device)


def choose_device() -> tuple[Device, str]:
    """The device that "auto" selects, and one line that says why, which is also logged at level INFO.

    It is `GRADFLOW_DEVICE` if that is set, else CUDA if it can be used, else the CPU. If the device of
    `GRADFLOW_DEVICE` cannot be used, raises like `get_backend`.

    >>> import gradflow as gf
    >>> device, reason = gf.choose_device()
    >>> isinstance(device, gf.Device), len(reason) > 0
    (True, True)
    """
    named = os.environ.get("GRADFLOW_DEVICE", "")
    if named and named != "auto":
        try:
            device, reason = get_backend(named).device, "GRADFLOW_DEVICE is set"
        except (ValueError, DeviceUnavailableError) as error:
            raise type(error)(f"auto selects the device of GRADFLOW_DEVICE: {error}") from None
    else:
        diagnosis = diagnose("cuda")
        device = Device("cuda" if diagnosis.usable else "cpu")
        reason = diagnosis.state if diagnosis.usable else f"no CUDA device: {diagnosis.state}"
    logger.info("device %s (%s)", device, reason)
    return device, reason


def get_backend(device: DeviceLike | None = None) -> Backend:
    """The backend object of a device (default: the current device).

    Raises ValueError for an unknown name, DeviceUnavailableError, with the diagnosis, if the device cannot be used.

    >>> import gradflow as gf
    >>> backend = gf.get_backend("cpu")
    >>> backend.device, backend.supports("float64")
    (Device('cpu'), True)
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


def started_backends() -> list[Backend]:
    """The backend objects that exist: those of the devices used so far."""
    return list(_backends.values())


def devices() -> list[Device]:
    """All usable devices, the CPU first.

    >>> import gradflow as gf
    >>> gf.devices()[0]
    Device('cpu')
    """
    return [device for prefix in backend_prefixes() for device in devices_of(prefix)]


def devices_of(prefix: str) -> list[Device]:
    """All usable devices with this prefix."""
    if not diagnose(prefix).usable:
        return []
    return [Device(prefix, i) for i in range(_ask(prefix, backend_class(prefix))[1])]


def describe_device(device: Device) -> tuple[str, dict[str, int | None]]:
    """The backend's description of a device, on one line, and its memory in bytes.

    Raises DeviceUnavailableError if the backend fails or returns anything else.
    """
    try:
        backend = get_backend(device)
        words, memory = backend.describe(), backend.memory_stats()
        if not isinstance(words, str):
            raise TypeError(f"describe() must return a string; it returns {words!r}")
        numbers = isinstance(memory, MemoryStats) and all(n is None or isinstance(n, Integral) for n in memory)
        if not numbers:
            raise TypeError(
                f"memory_stats() must return gradflow.backend.MemoryStats of integers; it returns {memory!r}"
            )
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise DeviceUnavailableError(f"device '{device}' cannot be described: {one_line(error)}") from error
    return printable(words), {name: None if n is None else int(n) for name, n in memory._asdict().items()}


def current_device() -> Device:
    """The device of new tensors created without `device=`: that of `use_device`, otherwise the CPU.

    >>> import gradflow as gf
    >>> import gradflow.testing  # the device "fake"
    >>> with gf.use_device("fake"):
    ...     gf.current_device(), gf.zeros(1).device
    (Device('fake:0'), Device('fake:0'))
    """
    return _current.get()


class use_device(Mode):  # noqa: N801 (used like a function)
    """Create new tensors on `device` inside a `with`, or while a decorated function, generator or coroutine runs.

    Existing tensors stay on their devices. Entering raises like `get_backend`.

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
    """Wait until all work queued on a device (default: the current one) is done. Call it before reading a clock.

    >>> import gradflow as gf
    >>> loss = gf.ones(1000).sum()
    >>> gf.synchronize(loss.device)
    """
    get_backend(device).synchronize()


def get_num_threads() -> int:
    """The number of threads for computations on the CPU, by BLAS and by gradflow itself.

    >>> import gradflow as gf
    >>> gf.get_num_threads() >= 1
    True
    """
    return get_backend("cpu").num_threads()


def set_num_threads(n: int) -> None:
    """Set the number of threads for computations on the CPU: of BLAS and OpenMP (by threadpoolctl), and gradflow's own.

    The default is OMP_NUM_THREADS, or else the number of cores available to the process. Raises ValueError unless n is
    an integer from 1 to 1024, ImportError if threadpoolctl, of the extra `fast`, is not installed.

    >>> import gradflow as gf
    >>> before = gf.get_num_threads()
    >>> gf.set_num_threads(1)
    >>> gf.get_num_threads()
    1
    >>> gf.set_num_threads(before)
    """
    try:
        threads = 0 if isinstance(n, bool) else index(n)
    except TypeError:
        threads = 0
    if not 1 <= threads <= 1024:
        raise ValueError(f"set_num_threads takes an integer of at least 1 and at most 1024; got {n!r}")
    get_backend("cpu").set_num_threads(threads)


def memory_stats(device: DeviceLike | None = None) -> dict[str, int | None]:
    """The memory of a device in bytes: `current`, `peak` and `reserved`; None for what the library does not count.

    >>> import gradflow as gf
    >>> sorted(gf.memory_stats("cpu"))
    ['current', 'peak', 'reserved']
    """
    return get_backend(device).memory_stats()._asdict()


def free_memory(device: DeviceLike | None = None) -> int:
    """Release the unused memory of a device's pool to the system; returns the bytes released.

    Useful if other processes share the device, or after a much larger model. The next allocations take longer.

    >>> import gradflow as gf
    >>> gf.free_memory("cpu") >= 0
    True
    """
    return get_backend(device).free_memory()
