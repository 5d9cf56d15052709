"""What surrounds gradflow: environment variables, Ctrl-C, and how it was installed. For backends, too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

DISTRIBUTION = "gradflow-autograd"


class VariableError(ValueError):
    """An environment variable of gradflow has a value that means nothing; the message says which and what to type."""


def switch(variable: str) -> bool | None:
    """What an environment variable says, which is 1 or 0, or None where it says nothing. Raises VariableError."""
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise VariableError(f"{variable} is 0, 1 or not set; it is {value!r}; type: unset {variable}")
    return None if value == "" else value == "1"


@contextlib.contextmanager
def delayed_interrupts() -> Iterator[None]:
    """Raise the KeyboardInterrupt of a Ctrl-C at the end of a `with` that imports a library; a second one, at once.

    For what an import that is broken off leaves behind is broken for good, and many libraries take it for a fault of
    their own installation.
    """
    import signal
    import threading

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def note(number: int, frame: Any) -> None:
        nonlocal came
        if came:
            signal.default_int_handler(number, frame)
        came = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if came:
            raise KeyboardInterrupt


def to_install(extra: str) -> str:
    """What to type for the packages of an extra: in a clone, gradflow with the extra; otherwise those packages.

    >>> to_install("cuda12").startswith("type")
    True
    """
    import json
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        installed = distribution(DISTRIBUTION)
        origin = json.loads(installed.read_text("direct_url.json") or "{}")  # the file of PEP 610, written by pip
    except PackageNotFoundError:  # a clone that is on the path
        installed = None
    if installed is None or origin.get("dir_info", {}).get("editable"):
        return f'type, in the clone of gradflow: pip install -e ".[{extra}]"'
    needs = [need.partition(";") for need in installed.requires or []]
    names = [f'"{name.strip()}"' for name, _, marker in needs if f"extra == '{extra}'" in marker.replace('"', "'")]
    return f"type: pip install {' '.join(names)}"
