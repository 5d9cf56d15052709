"""Why a step runs normally instead of being replayed, in words for `status` and the log."""

from __future__ import annotations

import re
import sys
from typing import Any, NamedTuple

from gradflow.autograd.leaf import Leaf

_SKIPPED = {"gradflow", "contextlib"}
"""The packages whose frames lie between the user's code and a call of the backend."""
_INTERNAL = {"__init__", "add_hook", "apply", "draw", "forward", "formatted", "function", "nodes_from", "tensor_text"}
"""Internal functions, which reasons do not name."""
_PUBLIC_NAMES = {"operate": "an operator such as +="}
"""The names that reasons use for functions that users call only as methods or operators."""


class Reason(NamedTuple):
    """A reason for not replaying a step. Each `kind` is logged once per step; `details` name the call and the line.

    An `expected` reason needs no change of the step and is not logged.
    """

    kind: str
    details: str = ""
    expected: bool = False

    def __str__(self) -> str:
        return self.kind + self.details


def describe(x: Any) -> str:
    """An object of a step in a few words, such as "a tensor of shape (3,)"; a function or class by its name."""
    if isinstance(x, Leaf):
        return f"a leaf of shape {tuple(x.shape)}"
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"a tensor of shape {tuple(x.shape)}"
    if callable(x) and hasattr(x, "__qualname__"):
        return str(x.__qualname__)
    return type(x).__name__


def user_call_site() -> tuple[str, str]:
    """The innermost public function of gradflow on the stack, or "", and the line outside gradflow that called it."""
    frame, name = sys._getframe(1), ""
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _SKIPPED:
        function, module = frame.f_code.co_name, frame.f_globals["__name__"]
        is_public = (
            not module.startswith(("gradflow.replay", "gradflow.profiling", "gradflow.interception"))
            and function not in _INTERNAL
            and not re.match("<|_[^_]", function)
        )
        if is_public and not name:
            name = _PUBLIC_NAMES.get(function, function)
        frame = frame.f_back
    return name, f"{frame.f_code.co_filename}, line {frame.f_lineno}"
