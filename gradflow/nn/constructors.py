"""What the constructors of gradflow's own modules share: checks of sizes, error messages, read-only settings."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from operator import index
from typing import Any, TypeVar

from gradflow.nn.module import Module

_ModuleClass = TypeVar("_ModuleClass", bound=type[Module])

_ADVICE = {
    "inplace": "operations make new tensors, so leave it out",
    "dim": "call it axis",
    "start_dim": "call it start_axis",
    "end_dim": "call it end_axis",
    "size_average": "use reduction=",
    "reduce": "use reduction=",
}
"""Arguments of modules in other libraries, and what to do instead."""


def explains_arguments(cls: _ModuleClass) -> _ModuleClass:
    """Decorate a class: a TypeError for unexpected arguments names the class, its arguments, and what to do."""
    init = cls.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self: Module, *arguments: Any, **options: Any) -> None:  # noqa: N807
        try:
            init(self, *arguments, **options)
        except TypeError:
            try:
                signature.bind(self, *arguments, **options)
            except TypeError as error:
                own = list(signature.parameters)[1:]
                advice = "".join(f"; {name}: {_ADVICE[name]}" for name in options if name in _ADVICE)
                takes = f"takes {', '.join(own)}" if own else "takes no arguments"
                raise TypeError(f"{cls.__name__} {takes}: {error}{advice}") from None
            raise

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


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
