"""The process around gradflow: environment variables, Ctrl-C, and how gradflow was installed. Backends use it, too."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

DISTRIBUTION = "gradflow-autograd"
"""The name of gradflow's distribution, as pip takes it."""


class VariableError(ValueError):
    """An environment variable of gradflow has an invalid value; the message names it and says what to type."""


def switch(variable: str) -> bool | None:
    """The value of an environment variable that is 1 or 0, or None if it is unset or empty.

    Raises VariableError for any other value.
    """
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise VariableError(f"{variable} must be 0, 1 or unset; it is {value!r}; type: unset {variable}")
    return None if value == "" else value == "1"


class Interrupts:
    """What `delayed_interrupts` yields. `delayed`: Ctrl-C is not raised at once. `pending`: it was pressed since."""

    __slots__ = ("delayed", "pending")

    def __init__(self) -> None:
        self.delayed = True
        self.pending = False

    def end(self) -> bool:
        """Stop delaying, and return whether Ctrl-C was pressed, which then is no longer pending."""
        self.delayed = False
        pressed, self.pending = self.pending, False
        return pressed


_interrupts: list[Interrupts] = []
"""Those of each `with delayed_interrupts()` that has not ended, also in a generator that is suspended."""


def _remember(number: int, frame: Any) -> None:
    """The handler of SIGINT during `delayed_interrupts`: the outermost that delays remembers the first Ctrl-C."""
    delaying = [each for each in _interrupts if each.delayed]
    if not delaying or delaying[0].pending:
        signal.default_int_handler(number, frame)
    delaying[0].pending = True


@contextlib.contextmanager
def delayed_interrupts() -> Iterator[Interrupts]:
    """Delay Ctrl-C to the end of a `with`, or of the outermost; a second Ctrl-C raises KeyboardInterrupt at once.

    After an error, KeyboardInterrupt comes with the error as its `__context__`. Does nothing outside the main thread or
    where the program handles SIGINT itself.

    It is for changes that must not be left half done, and for imports: a library whose import is interrupted stays half
    imported for the rest of the process, and many then blame their own installation.
    """
    interrupts = Interrupts()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, _remember):
        yield interrupts
        return
    _interrupts.append(interrupts)
    signal.signal(signal.SIGINT, _remember)
    try:
        yield interrupts
    finally:
        _interrupts.remove(interrupts)
        if not _interrupts and signal.getsignal(signal.SIGINT) is _remember:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupts.end():
            raise KeyboardInterrupt


def offering(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package that imports what it offers, its module `public`, when a name is used first.

    The settings of a run, for example, are then at hand in a command line that has not imported NumPy.
    """
    import importlib
    import importlib.util
    import sys

    def offered(name: str) -> Any:
        if importlib.util.find_spec(f"{package}.{name}"):  # a module, which `from package import module` imports
            raise AttributeError(f"module {package!r} has no attribute {name!r} before it is imported")
        value = getattr(importlib.import_module(f"{package}.public"), name)
        setattr(sys.modules[package], name, value)
        return value

    return offered


def to_install(extra: str) -> str:
    """Instructions for installing an extra: in a clone, gradflow with the extra; otherwise the packages of the extra.

    >>> to_install("cuda12").startswith("type")
    True
    """
    import json
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        installed = distribution(DISTRIBUTION)
        origin = json.loads(installed.read_text("direct_url.json") or "{}")  # written by pip, see PEP 610
    except PackageNotFoundError:  # a clone on Python's path
        installed = None
    if installed is None or origin.get("dir_info", {}).get("editable"):
        return f'type, in the clone of gradflow: pip install -e ".[{extra}]"'
    needs = [need.partition(";") for need in installed.requires or []]
    names = [f'"{name.strip()}"' for name, _, marker in needs if f"extra == '{extra}'" in marker.replace('"', "'")]
    return f"type: pip install {' '.join(names)}"


def imported_extra(module: str, package: str, extra: str, what: str = "this") -> Any:
    """The module of an optional package, imported. Raises ModuleNotFoundError, which says what to type, without it.

    package: its name as pip takes it. extra: of gradflow's distribution, to which it belongs. what: what needs it, for
    the message.
    """
    import importlib

    try:
        with delayed_interrupts():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the package is there, but broken
        needed = f'{what} needs {package} from the extra "{extra}" of {DISTRIBUTION}'
        raise ModuleNotFoundError(f"{needed}; {to_install(extra)}", name=error.name) from None


def launched_processes() -> int:
    """How many processes a launcher such as `mpiexec` has started together, this one included; 1 without a launcher."""
    told = [os.environ.get(name, "") for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")]  # MPICH, Intel MPI; Open MPI
    return max([int(n) for n in told if n.isdigit()], default=1)


def physical_memory() -> float:
    """The bytes of memory of this machine, infinity if unknown.

    For checks in advance: systems grant more memory than they have and kill the process that uses it.
    """
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # on Windows, which grants only what it has
        return float("inf")
