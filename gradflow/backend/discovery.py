"""Devices by name, and the registry that finds the backend of each.

A device is a prefix and an index, `cpu` or `cuda:1`. A prefix belongs to a backend class. Who has a prefix, in this
order: `cpu` and `cuda` are gradflow's own, always; then what `register_backend` was given; then the one installed
package that claims it in the entry-point group `gradflow.backends` (name = prefix, value = `module:Class`). Two
packages that claim one prefix get it neither of them, and `GRADFLOW_BACKEND_BLOCK` (prefixes, with commas) keeps any
backend from being loaded.

Nothing is scanned or loaded before it is asked for, and then once. What fails is a `Diagnosis`, never a crash.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache, reduce
from numbers import Integral
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

from gradflow.backend import Backend, Device, Diagnosis, MemoryStats
from gradflow.environment import VariableError, delayed_interrupts, switch
from gradflow.modes import Mode

logger = logging.getLogger("gradflow")

ENTRY_POINT_GROUP = "gradflow.backends"
MOST_DEVICES = 4096
"""More than this many of one kind are taken for a fault of the backend that counts them."""
BLOCK_VARIABLE = "GRADFLOW_BACKEND_BLOCK"
_FIRST_PARTY = {"cpu": "gradflow_numpy:CpuBackend", "cuda": "gradflow_cupy:CupyBackend"}
_OWN_FIX = {
    "cpu": "type: pip install --force-reinstall numpy",
    "cuda": "install gradflow-autograd again, as it was installed",
}


class DeviceUnavailableError(RuntimeError):
    """A device was asked for that cannot be used here; the message says why and what to type."""


class DeviceMismatchError(RuntimeError):
    """Tensors of different devices met in one operation; the message names each, and the fix."""


DeviceLike = str | Device


class Claim(NamedTuple):
    """An entry point of the group `gradflow.backends`: the prefix it claims, its value, and whose it is."""

    prefix: str
    value: str
    package: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.package} {self.version} ({self.value})".replace("  ", " ")


_registered: dict[str, Callable[[], type[Backend]]] = {}
_loaded: dict[str, type[Backend] | Diagnosis] = {}
_backends: dict[Device, Backend] = {}
_current: ContextVar[Device] = ContextVar("gradflow_device", default=Device("cpu"))  # noqa: B039 (it is frozen)


def register_backend(prefix: str, backend: type[Backend]) -> None:
    """Make `backend` the one of devices called `prefix`, before any entry point.

    Raises ValueError for a prefix that is not a plain name, is gradflow's own, or is not the backend's `name`.
    """
    if not _may_be_claimed(prefix):
        raise ValueError(f"a backend's prefix is a plain name other than auto, cpu and cuda; got {prefix!r}")
    _check_name(prefix, backend)
    _registered[prefix] = lambda: backend
    for device in [d for d in _backends if d.type == prefix]:
        del _backends[device]


def _check_name(prefix: str, backend: Any) -> None:
    """Raise ValueError where a backend class is called otherwise than its devices."""
    name = getattr(backend, "name", None)
    if name != prefix:
        raise ValueError(
            f"the attribute `name` of a backend is the prefix of its devices; that of {prefix!r} has "
            f'{"none" if name is None else repr(name)}: give it name = "{prefix}"'
        )


def _may_be_claimed(prefix: str) -> bool:
    return prefix.isidentifier() and prefix != "auto" and prefix not in _FIRST_PARTY


# ---------------------------------------------------------------------- what is installed


@cache
def _scan() -> tuple[list[Claim], list[str]]:
    """All claims of installed packages but gradflow's own, and a sentence for each package that cannot be read.

    Package by package, since one with malformed entry points would else hide all the others.
    """
    from importlib.metadata import distributions

    claims, unreadable, seen = [], [], set()
    try:
        for distribution in distributions():
            name = "?"
            try:
                name = getattr(distribution, "_normalized_name", "") or distribution.name  # the latter reads a file
                if name in seen:  # a second copy, further down the path
                    continue
                seen.add(name)
                for entry in distribution.entry_points.select(group=ENTRY_POINT_GROUP):
                    if _FIRST_PARTY.get(entry.name) != entry.value:
                        claims.append(Claim(entry.name, entry.value, distribution.name, distribution.version))
            except Exception as error:
                unreadable.append(f"the entry points of the package {name} cannot be read: {one_line(error)}")
    except Exception as error:
        unreadable.append(f"the installed packages cannot be searched for backends: {one_line(error)}")
    return sorted(claims), unreadable


def _claims(prefix: str) -> list[Claim]:
    return [claim for claim in _scan()[0] if claim.prefix == prefix]


def _blocked() -> list[str]:
    return [word.strip() for word in os.environ.get(BLOCK_VARIABLE, "").split(",") if word.strip()]


def backend_prefixes() -> list[str]:
    """The prefixes of all backends that are known, loaded or not, and usable or not."""
    claimed = [claim.prefix for claim in _scan()[0] if _may_be_claimed(claim.prefix)]
    return list(dict.fromkeys([*_FIRST_PARTY, *_registered, *claimed]))


def backend_source(prefix: str) -> str:
    """Where the backend of `prefix` comes from: the packages that claim it, `gradflow-autograd`, or this program."""
    if prefix in _FIRST_PARTY:
        return "gradflow-autograd"
    return "this program" if prefix in _registered else " and ".join(map(str, _claims(prefix)))


def discovery_notes() -> list[str]:
    """A sentence for all that was found and is not used as it asks to be: what `gradflow devices` prints below."""
    claims, unreadable = _scan()
    notes = list(unreadable)
    for claim in claims:
        if not _may_be_claimed(claim.prefix):
            why = "which is gradflow's own" if claim.prefix in _FIRST_PARTY else "which is no plain name"
            notes.append(
                f"the package {claim} claims the device {claim.prefix!r}, {why}: ignored; "
                f"type: pip uninstall {claim.package}"
            )
    known = backend_prefixes()
    notes += [
        f"{BLOCK_VARIABLE} names {word!r}, and there is no such backend; there are {', '.join(known)}"
        for word in _blocked() if word not in known
    ]  # fmt: skip
    return notes


def plain(text: str) -> str:
    r"""The words of a text on one line, with every invisible character (such as control codes) written out.

    >>> print(plain("it is\n\x1b[31mred"))
    it is \x1b[31mred
    """
    words = " ".join(text.split())
    return words if words.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def one_line(error: BaseException) -> str:
    """An error as one line: its kind, and the beginning of what it says."""
    try:
        words = plain(str(error))
    except Exception as failure:  # of its own __str__
        words = f"an error that cannot be shown ({type(failure).__name__})"
    words = words if len(words) <= 400 else f"{words[:400]} ..."
    return f"{type(error).__name__}: {words}".rstrip(": ")


def check_variables() -> None:
    """Raise VariableError for a value of one of gradflow's environment variables that means nothing."""
    for variable in ("GRADFLOW_FAST", "GRADFLOW_FUSED"):
        switch(variable)
    for word in _blocked():
        if not word.isidentifier():
            raise VariableError(
                f"{BLOCK_VARIABLE} has names of backends with commas between them; {word!r} is none; "
                f"type: unset {BLOCK_VARIABLE}"
            )


# ---------------------------------------------------------------------- classes


def _find(prefix: str) -> type[Backend] | Diagnosis:
    """The class for `prefix`, or why there is none. ValueError where nobody offers one."""
    known = prefix in _FIRST_PARTY or prefix in _registered
    claims = [] if known else _claims(prefix) if _may_be_claimed(prefix) else []
    if not known and not claims:
        raise ValueError(f"unknown device {prefix!r}; there are {', '.join(backend_prefixes())} (and auto)")
    blocked = _blocked()
    if prefix in blocked:
        return Diagnosis(
            False,
            f"the backend of {prefix!r} is not loaded, since {BLOCK_VARIABLE} names it",
            f"take {prefix} out of {BLOCK_VARIABLE}, or type: unset {BLOCK_VARIABLE}",
            "blocked",
        )
    if prefix in _registered:
        return _registered[prefix]()
    if len(claims) > 1:
        fixes = ", or: ".join(f"pip uninstall {claim.package}" for claim in claims)
        return Diagnosis(
            False,
            f"{len(claims)} packages claim the device {prefix!r}, so none gets it: {backend_source(prefix)}",
            f"keep one; type: {fixes}",
            "claimed-twice",
        )
    if prefix not in _loaded:
        _loaded[prefix] = _load(prefix, claims[0].value if claims else _FIRST_PARTY[prefix])
    return _loaded[prefix]


def _load(prefix: str, target: str) -> type[Backend] | Diagnosis:
    try:
        with delayed_interrupts():
            found = _import(target)
        if not (inspect.isclass(found) and issubclass(found, Backend)):
            kind = f"the class {found.__name__}" if inspect.isclass(found) else f"of type {type(found).__name__}"
            raise TypeError(f"it must be a class derived from gradflow.backend.Backend; it is {kind}")
        if missing := sorted(getattr(found, "__abstractmethods__", ())):
            raise TypeError(f"it lacks required services: {', '.join(missing)}")
        _check_name(prefix, found)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a package may do anything, sys.exit() too: it shall not end the program
        return _failed(prefix, "loaded", error)
    return found


def _import(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        folder = Path(__file__).resolve().parent.parent / "backends" / module_name
        own = target in _FIRST_PARTY.values()
        if not own or error.name != module_name or not (folder / "__init__.py").exists():
            raise
        spec = importlib.util.spec_from_file_location(module_name, folder / "__init__.py")  # an uninstalled checkout
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    return reduce(getattr, attribute.split("."), module)


def _failed(prefix: str, what: str, error: BaseException) -> Diagnosis:
    """That the backend of `prefix` cannot be loaded, asked or started, and why."""
    named = isinstance(error, VariableError)  # it says what to type
    fix = "" if named else _OWN_FIX.get(prefix, "")
    if not fix and not named and prefix not in _registered:
        package = _claims(prefix)[0].package
        fix = (
            f"type: pip install --upgrade {package}, or: pip uninstall {package}, or leave it out: "
            f"export {BLOCK_VARIABLE}={','.join([*_blocked(), prefix])}"
        )
    source = (
        "" if prefix in _registered else f" ({_FIRST_PARTY.get(prefix) or 'of the package ' + backend_source(prefix)})"
    )
    return Diagnosis(
        False, f"the backend of {prefix!r}{source} cannot be {what}: {one_line(error)}", fix, f"cannot-be-{what}"
    )


def backend_class(prefix: str) -> type[Backend]:
    """The backend class for devices called `prefix`.

    Raises ValueError where none is known, DeviceUnavailableError where it is known but cannot be loaded.
    """
    found = _find(prefix)
    if isinstance(found, Diagnosis):
        raise DeviceUnavailableError(str(found))
    return found


def _ask(prefix: str, cls: type[Backend]) -> tuple[Diagnosis, int]:
    """What the backend says of its devices, and their number. Never raises."""
    try:
        diagnosis = cls.diagnose()
        if not isinstance(diagnosis, Diagnosis):
            raise TypeError(f"diagnose() must give a gradflow.Diagnosis; it gives {diagnosis!r}")
        if not all(isinstance(words, str) for words in diagnosis[1:]):
            raise TypeError(f"diagnose() must tell state, fix and code in strings; it gives {diagnosis!r}")
        diagnosis = Diagnosis(bool(diagnosis.usable), *map(plain, diagnosis[1:]))
        count = cls.device_count() if diagnosis.usable else 0
        if not isinstance(count, Integral) or count > MOST_DEVICES:
            raise TypeError(f"device_count() must give a number, of at most {MOST_DEVICES}; it gives {count!r}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return _failed(prefix, "asked", error), 0
    if diagnosis.usable and count < 1:
        return diagnosis._replace(usable=False, state=f"{diagnosis.state}; and there is no device", code="no-device"), 0
    return diagnosis, int(count)


def _start(device: Device, cls: type[Backend]) -> Backend:
    """The backend object of a device, made once; DeviceUnavailableError where that fails."""
    if device not in _backends:
        try:
            backend = cls(device.index)
            _check_name(device.type, backend)
            if vars(backend).get("device") != device:
                raise TypeError("its __init__(self, index) must call super().__init__(namespace, index)")
            _backends.setdefault(device, backend)  # another thread may have been the first
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise DeviceUnavailableError(str(_failed(device.type, "started", error))) from error
    return _backends[device]


def diagnose(prefix: str) -> Diagnosis:
    """Whether devices called `prefix` can be used here, and if not, why and what to type. Never raises.

    "Can be used" means more than what the backend says of itself: the object for its first device was made.

    >>> diagnose("cpu").usable
    True
    """
    try:
        cls = _find(prefix)
    except ValueError as error:
        return Diagnosis(False, str(error), code="unknown")
    if isinstance(cls, Diagnosis):
        return cls
    diagnosis, _ = _ask(prefix, cls)
    if diagnosis.usable:
        try:
            _start(Device(prefix), cls)
        except DeviceUnavailableError as error:
            return _failed(prefix, "started", error.__cause__ or error)
    return diagnosis


# ---------------------------------------------------------------------- devices


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
    return plain(words), {name: None if n is None else int(n) for name, n in memory._asdict().items()}


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
