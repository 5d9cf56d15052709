"""Finds the backend class of a device prefix: gradflow's own, a registered one, or one of an installed package.

The prefixes `cpu` and `cuda` always belong to gradflow's own backends. Any other belongs to the class registered with
`register_backend`, or else to the installed package that claims it in the entry-point group `gradflow.backends` (name =
prefix, value = `module:Class`). If two packages claim a prefix, neither gets it. `GRADFLOW_BACKEND_BLOCK` (prefixes
separated by commas) prevents backends from being loaded.

Packages are scanned, and backends loaded, once, at the first use. A failure becomes a `Diagnosis`, never a crash.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from functools import cache, reduce
from pathlib import Path
from typing import Any, NamedTuple

from gradflow.backend.contract import Backend
from gradflow.backend.device import DeviceUnavailableError, Diagnosis
from gradflow.environment import VariableError, delayed_interrupts, switch
from gradflow.text import one_line

ENTRY_POINT_GROUP = "gradflow.backends"
BLOCK_VARIABLE = "GRADFLOW_BACKEND_BLOCK"
_FIRST_PARTY = {"cpu": "gradflow_numpy:CpuBackend", "cuda": "gradflow_cupy:CupyBackend"}
_OWN_FIX = {
    "cpu": "type: pip install --force-reinstall numpy",
    "cuda": "reinstall gradflow-autograd",
}


class Claim(NamedTuple):
    """An entry point of the group `gradflow.backends`: the prefix it claims, its value, its package and version."""

    prefix: str
    value: str
    package: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.package} {self.version} ({self.value})".replace("  ", " ")


_registered: dict[str, type[Backend]] = {}
_loaded: dict[str, type[Backend] | Diagnosis] = {}


def register(prefix: str, backend: type[Backend]) -> None:
    """Make `backend` the class of `prefix`. Raises ValueError and TypeError like `gradflow.register_backend`."""
    if not _may_be_claimed(prefix):
        raise ValueError(f"a backend's prefix is an identifier other than auto, cpu and cuda; got {prefix!r}")
    _registered[prefix] = _checked(prefix, backend)


def unregister(prefix: str) -> None:
    """Undo `register`; KeyError if the prefix is not registered."""
    del _registered[prefix]


def _checked(prefix: str, found: Any) -> type[Backend]:
    """Return `found`: a class with all required services (else TypeError), named like its prefix (else ValueError)."""
    if not (inspect.isclass(found) and issubclass(found, Backend)):
        kind = f"the class {found.__name__}" if inspect.isclass(found) else f"of type {type(found).__name__}"
        raise TypeError(f"a backend must be a class derived from gradflow.backend.Backend; it is {kind}")
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise TypeError(f"the backend {found.__name__} lacks required services: {', '.join(missing)}")
    check_name(prefix, found)
    checked: type[Backend] = found
    return checked


def check_name(prefix: str, backend: Any) -> None:
    """Raise ValueError if the attribute `name` of a backend is not the prefix of its devices."""
    name = getattr(backend, "name", None)
    if name != prefix:
        raise ValueError(
            f"the attribute `name` of a backend must be the prefix of its devices, {prefix!r}; it is "
            f'{"missing" if name is None else repr(name)}: set name = "{prefix}"'
        )


def _may_be_claimed(prefix: str) -> bool:
    return prefix.isidentifier() and prefix != "auto" and prefix not in _FIRST_PARTY


@cache
def _scan() -> tuple[list[Claim], list[str]]:
    """The claims of all installed packages except gradflow's own, and a sentence for each package that is unreadable.

    Packages are read one by one, so that malformed entry points of one do not hide the others.
    """
    from importlib.metadata import distributions

    claims, unreadable, seen = [], [], set()
    try:
        for distribution in distributions():
            name = "?"
            try:
                name = getattr(distribution, "_normalized_name", "") or distribution.name  # `name` reads a file
                if name in seen:  # another copy, later on sys.path
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
    """The prefixes of all known backends, whether loaded and usable or not."""
    claimed = [claim.prefix for claim in _scan()[0] if _may_be_claimed(claim.prefix)]
    return list(dict.fromkeys([*_FIRST_PARTY, *_registered, *claimed]))


def backend_source(prefix: str) -> str:
    """Where the backend of `prefix` comes from: "gradflow-autograd", "this program", or the packages that claim it."""
    if prefix in _FIRST_PARTY:
        return "gradflow-autograd"
    return "this program" if prefix in _registered else " and ".join(map(str, _claims(prefix)))


def discovery_notes() -> list[str]:
    """Sentences about claims that are ignored and names that are unknown, which `gradflow devices` prints."""
    claims, unreadable = _scan()
    notes = list(unreadable)
    for claim in claims:
        if not _may_be_claimed(claim.prefix):
            why = "which is gradflow's own" if claim.prefix in _FIRST_PARTY else "which is not a valid prefix"
            notes.append(
                f"the package {claim} claims the device {claim.prefix!r}, {why}: ignored; "
                f"type: pip uninstall {claim.package}"
            )
    known = backend_prefixes()
    notes += [
        f"{BLOCK_VARIABLE} names {word!r}, but there is no such backend; there are {', '.join(known)}"
        for word in _blocked() if word not in known
    ]  # fmt: skip
    return notes


def check_variables() -> None:
    """Raise VariableError if an environment variable of gradflow has an invalid value."""
    for variable in ("GRADFLOW_FAST", "GRADFLOW_FUSED"):
        switch(variable)
    for word in _blocked():
        if not word.isidentifier():
            raise VariableError(
                f"{BLOCK_VARIABLE} holds backend prefixes separated by commas; {word!r} is not a prefix; "
                f"type: unset {BLOCK_VARIABLE}"
            )


def find(prefix: str) -> type[Backend] | Diagnosis:
    """The backend class of `prefix`, or why it cannot be loaded. ValueError if the prefix is unknown."""
    known = prefix in _FIRST_PARTY or prefix in _registered
    claims = [] if known else _claims(prefix) if _may_be_claimed(prefix) else []
    if not known and not claims:
        advice = "type gradflow devices to see which can be used"
        if prefix == "fake":
            advice = "in Python, import gradflow.testing defines it"
        raise ValueError(f"unknown device {prefix!r}; there are {', '.join(backend_prefixes())} (and auto); {advice}")
    blocked = _blocked()
    if prefix in blocked:
        return Diagnosis(
            False,
            f"the backend of {prefix!r} is not loaded, because {BLOCK_VARIABLE} names it",
            f"remove {prefix} from {BLOCK_VARIABLE}, or type: unset {BLOCK_VARIABLE}",
            "blocked",
        )
    if prefix in _registered:
        return _registered[prefix]
    if len(claims) > 1:
        fixes = ", or: ".join(f"pip uninstall {claim.package}" for claim in claims)
        return Diagnosis(
            False,
            f"{len(claims)} packages claim the device {prefix!r}, so none gets it: {backend_source(prefix)}",
            f"keep only one of them; type: {fixes}",
            "claimed-twice",
        )
    if prefix not in _loaded:
        _loaded[prefix] = _load(prefix, claims[0].value if claims else _FIRST_PARTY[prefix])
    return _loaded[prefix]


def _load(prefix: str, target: str) -> type[Backend] | Diagnosis:
    try:
        with delayed_interrupts():
            found = _import(target)
        return _checked(prefix, found)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # no error of a package, not even its sys.exit(), ends the program
        return failed(prefix, "loaded", error)


def _import(target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        folder = Path(__file__).resolve().parents[2] / "backends" / module_name
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


def failed(prefix: str, what: str, error: BaseException) -> Diagnosis:
    """The diagnosis of a backend that cannot be `what`: "loaded", "asked" (for its devices) or "started"."""
    named = isinstance(error, VariableError)  # its message already says what to type
    fix = "" if named else _OWN_FIX.get(prefix, "")
    if not fix and not named and prefix not in _registered:
        package = _claims(prefix)[0].package
        fix = (
            f"type: pip install --upgrade {package}, or: pip uninstall {package}, or disable it: "
            f"export {BLOCK_VARIABLE}={','.join([*_blocked(), prefix])}"
        )
    source = (
        "" if prefix in _registered else f" ({_FIRST_PARTY.get(prefix) or 'of the package ' + backend_source(prefix)})"
    )
    return Diagnosis(
        False, f"the backend of {prefix!r}{source} cannot be {what}: {one_line(error)}", fix, f"cannot-be-{what}"
    )


def backend_class(prefix: str) -> type[Backend]:
    """The backend class of the devices with this prefix.

    Raises ValueError if the prefix is unknown, DeviceUnavailableError if its backend cannot be loaded.
    """
    found = find(prefix)
    if isinstance(found, Diagnosis):
        raise DeviceUnavailableError(str(found))
    return found
