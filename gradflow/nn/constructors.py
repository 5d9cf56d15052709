"""What the constructors of gradflow's own modules share: checks of sizes, read-only settings."""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import Any

from gradflow.nn.module import Module


def read_only(name: str, value: Callable[[Any], Any], doc: str) -> Any:
    """A property that cannot be set: a setting that is fixed when the module is created."""

    def refuse(module: Module, _: Any) -> None:
        raise AttributeError(f"{name} of a {type(module).__name__} is read-only: create a new module")

    return property(value, refuse, doc=doc)


def positive(what: str, value: Any) -> int:
    """A size as a Python int. Raises ValueError unless it is an integer of any library, at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or index(value) < 1:
        raise ValueError(f"{what} must be an integer of at least 1; got {value!r}")
    return index(value)
