"""Which backend class serves a device prefix: gradflow's own, a registered one, or an installed package's.

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
import os
import sys
from collections.abc import Callable
from functools import cache, reduce
from pathlib import Path
from typing import Any, NamedTuple

from gradflow.backend.contract import Backend
from gradflow.backend.device import Diagnosis
from gradflow.environment import VariableError, delayed_interrupts, switch
from gradflow.text import one_line

ENTRY_POINT_GROUP = "gradflow.backends"
BLOCK_VARIABLE = "GRADFLOW_BACKEND_BLOCK"
_FIRST_PARTY = {"cpu": "gradflow_numpy:CpuBackend", "cuda": "gradflow_cupy:CupyBackend"}
_OWN_FIX = {
    "cpu": "type: pip install --force-reinstall numpy",
    "cuda": "install gradflow-autograd again, as it was installed",
}


class DeviceUnavailableError(RuntimeError):
    """A device was asked for that cannot be used here; the message says why and what to type."""

    __module__ = "gradflow"


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


def register(prefix: str, backend: type[Backend]) -> None:
    """Make `backend` the class of `prefix`. ValueError as of `gradflow.register_backend`."""
    if not _may_be_claimed(prefix):
        raise ValueError(f"a backend's prefix is a plain name other than auto, cpu and cuda; got {prefix!r}")
    check_name(prefix, backend)
    _registered[prefix] = lambda: backend


def check_name(prefix: str, backend: Any) -> None:
    """Raise ValueError where a backend class is called otherwise than its devices."""
    name = getattr(backend, "name", None)
    if name != prefix:
        raise ValueError(
            f"the attribute `name` of a backend is the prefix of its devices; that of {prefix!r} has "
            f'{"none" if name is None else repr(name)}: give it name = "{prefix}"'
        )


def _may_be_claimed(prefix: str) -> bool:
    return prefix.isidentifier() and prefix != "auto" and prefix not in _FIRST_PARTY


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


def find(prefix: str) -> type[Backend] | Diagnosis:
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
        check_name(prefix, found)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a package may do anything, sys.exit() too: it shall not end the program
        return failed(prefix, "loaded", error)
    return found


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
    found = find(prefix)
    if isinstance(found, Diagnosis):
        raise DeviceUnavailableError(str(found))
    return found
