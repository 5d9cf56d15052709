"""Entries of plain trees that come from files, checked."""

from __future__ import annotations

import math
from typing import Any


def entry(tree: Any, name: str, kind: type) -> Any:
    """Return an entry of a dict: a value of this kind. Whole numbers are floats, too, if these are expected.

    Raises ValueError for anything else, and for floats that are not finite.

    >>> from gradflow.tables.entries import entry
    >>> entry({"mean": 2}, "mean", float)
    2.0
    """
    if not isinstance(tree, dict) or name not in tree:
        raise ValueError(f"the entry {name!r} is missing")
    return _checked(tree[name], f"the entry {name!r}", kind)


def entries(tree: Any, name: str, kind: type) -> tuple[Any, ...]:
    """Return an entry of a dict: a list of values of this kind, as a tuple. Raises ValueError like `entry`.

    >>> from gradflow.tables.entries import entries
    >>> entries({"levels": ["a", "b"]}, "levels", str)
    ('a', 'b')
    """
    return tuple(_checked(value, f"a value of {name!r}", kind) for value in entry(tree, name, list))


def _checked(value: Any, what: str, kind: type) -> Any:
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{what} is of the type {type(value).__name__}, not {kind.__name__}")
    if type(value) is float and not math.isfinite(value):
        raise ValueError(f"{what} is {value}, and not finite")
    return value
