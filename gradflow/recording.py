"""What `gradflow.capture` needs of the rest: calls that it sees as one, and a count of changes that no call shows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from threading import get_ident
from typing import Any, ParamSpec, TypeVar

_Result = TypeVar("_Result")
_P = ParamSpec("_P")


class Recorder:
    """Sees the calls of `as_one_call` of one thread. `refused`: whether something was done that no replay can do."""

    refused = False

    def refuse(self) -> None:
        """Note that something is done, perhaps within such a call, that no replay can do."""
        raise NotImplementedError

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Do the call and return its result."""
        raise NotImplementedError


recorders: dict[int, Recorder] = {}
"""The recorder of each thread that has one."""

_changes = 0


def refuse() -> None:
    """Note that this thread does something that no replay can do."""
    recorder = recorders.get(get_ident()) if recorders else None
    if recorder is not None:
        recorder.refuse()


def changes() -> int:
    """How often `note_change` was called."""
    return _changes


def note_change() -> None:
    """Note a change of what decides on the calls of a step: of a module, a hook, the array of a tensor."""
    global _changes
    _changes += 1


def as_one_call(function: Callable[_P, _Result]) -> Callable[_P, _Result]:
    """Mark a function that a recorder sees as a whole, and repeats as a whole: it reads or changes Python's objects."""

    @functools.wraps(function)
    def call(*arguments: _P.args, **options: _P.kwargs) -> _Result:
        if recorders:
            recorder = recorders.get(get_ident())
            if recorder is not None:
                result: _Result = recorder.call(function, arguments, options)
                return result
        return function(*arguments, **options)

    return call
