"""Devices by name, and the registry that finds the backend of each.

A device is a prefix and an index, `cpu` or `cuda:1`. A prefix belongs to a backend class: `cpu` and `cuda` to
gradflow's own, another to whoever registers it, through `register_backend` or the entry-point group
`gradflow.backends` (name = prefix, value = `module:Class`). Nothing is scanned or loaded before it is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from gradflow.backend import Backend, Device, Diagnosis

logger = logging.getLogger("gradflow")

ENTRY_POINT_GROUP = "gradflow.backends"
_FIRST_PARTY = {"cpu": "gradflow_numpy:NumpyBackend", "cuda": "gradflow_cupy:CupyBackend"}


class DeviceUnavailableError(RuntimeError):
    """A device was asked for that cannot be used here; the message says why and what to type."""


class DeviceMismatchError(RuntimeError):
    """Tensors of different devices met in one operation; the message names each, and the fix."""


DeviceLike = str | Device

_registered: dict[str, Callable[[], type[Backend]]] = {}
_backends: dict[Device, Backend] = {}
_current: ContextVar[Device] = ContextVar("gradflow_device", default=Device("cpu"))  # noqa: B039 (it is frozen)


def register_backend(prefix: str, backend: type[Backend]) -> None:
    """Make `backend` the one of devices called `prefix`, before any entry point.

    Raises ValueError for a prefix that is not a plain name or is gradflow's own.
    """
    if not prefix.isidentifier() or prefix == "auto" or prefix in _FIRST_PARTY:
        raise ValueError(f"a backend's prefix is a plain name other than auto, cpu and cuda; got {prefix!r}")
    _registered[prefix] = lambda: backend
    for device in [d for d in _backends if d.type == prefix]:
        del _backends[device]


@cache
def _entry_points() -> dict[str, str]:
    from importlib.metadata import entry_points

    return {e.name: e.value for e in entry_points(group=ENTRY_POINT_GROUP) if e.name not in _FIRST_PARTY}


def _load(target: str) -> type[Backend]:
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        folder = Path(__file__).resolve().parent.parent / "backends" / module_name
        if error.name != module_name or not (folder / "__init__.py").exists():
            raise
        spec = importlib.util.spec_from_file_location(module_name, folder / "__init__.py")  # an uninstalled checkout
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    loaded: type[Backend] = getattr(module, attribute)
    return loaded


def backend_prefixes() -> list[str]:
    """The prefixes of all backends that are known, loaded or not."""
    return list(dict.fromkeys([*_FIRST_PARTY, *_registered, *_entry_points()]))


def backend_class(prefix: str) -> type[Backend]:
    """The backend class for devices called `prefix`.

    Raises ValueError where none is known, DeviceUnavailableError where it is known but cannot be loaded.
    """
    if prefix in _registered:
        return _registered[prefix]()
    target = _FIRST_PARTY.get(prefix) or _entry_points().get(prefix)
    if target is None:
        raise ValueError(f"unknown device {prefix!r}; there are {', '.join(backend_prefixes())} (and auto)")
    try:
        return _load(target)
    except Exception as error:
        raise DeviceUnavailableError(f"the backend of {prefix!r} ({target}) cannot be loaded: {error}") from error


def diagnose(prefix: str) -> Diagnosis:
    """Whether devices called `prefix` can be used here, and if not, why and what to type. Never raises.

    >>> diagnose("cpu").usable
    True
    """
    try:
        return backend_class(prefix).diagnose()
    except (ValueError, DeviceUnavailableError) as error:
        return Diagnosis(False, str(error))


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

    `GRADFLOW_DEVICE` if that is set; else CUDA if it can be used; else the CPU. Also logged, at level INFO.
    """
    named = os.environ.get("GRADFLOW_DEVICE", "")
    if named and named != "auto":
        device, reason = parse_device(named), "GRADFLOW_DEVICE is set"
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
        diagnosis = cls.diagnose()
        if not diagnosis.usable:
            raise DeviceUnavailableError(f"device '{device}' cannot be used: {diagnosis}")
        count = cls.device_count()
        if device.index >= count:
            there = f"there is one; use '{device.type}'" if count == 1 else f"there are {count} of type {device.type!r}"
            raise DeviceUnavailableError(f"device '{device.type}:{device.index}' does not exist: {there}")
        backend = _backends[device] = cls(device.index)
    return backend


def devices() -> list[Device]:
    """All devices that can be used here, the CPU first."""
    found = []
    for prefix in backend_prefixes():
        if diagnose(prefix).usable:
            found += [Device(prefix, i) for i in range(backend_class(prefix).device_count())]
    return found


def current_device() -> Device:
    """The device on which new tensors are made where none is named: the CPU, or that of `use_device`."""
    return _current.get()


@contextlib.contextmanager
def use_device(device: DeviceLike) -> Iterator[Device]:
    """Make new tensors on `device` inside a `with`; existing tensors stay where they are.

    >>> with use_device("cpu") as device:
    ...     print(device)
    cpu
    """
    chosen = parse_device(device)
    get_backend(chosen)
    token = _current.set(chosen)
    try:
        yield chosen
    finally:
        _current.reset(token)


def synchronize(device: DeviceLike | None = None) -> None:
    """Wait until all work of a device is done: what a measurement of time needs on both its sides."""
    get_backend(device).synchronize()


def memory_stats(device: DeviceLike | None = None) -> dict[str, int | None]:
    """Bytes of memory of a device: `current`, `peak` and `reserved`; None where the library does not count them."""
    return get_backend(device).memory_stats()._asdict()
