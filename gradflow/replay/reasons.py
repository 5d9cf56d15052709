"""Why a step runs normally instead of being replayed, in words for `status` and the log."""

from __future__ import annotations

from typing import Any, NamedTuple

from gradflow.autograd.leaf import Leaf


class Reason(NamedTuple):
    """A reason for not replaying a step. Each `kind` is logged once per step; `details` name the call and the line.

    An `expected` reason calls for no change of the step and is not logged.
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
