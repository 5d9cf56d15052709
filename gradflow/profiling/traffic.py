"""The bytes that a call of a backend moves, from the sizes of its arrays."""

from __future__ import annotations

import math
from typing import Any

from gradflow.backend import Backend
from gradflow.dtypes import DTYPES

_OUTPUTS = {"gemm": 2, "linear_backward": 9, "scatter_add": 3}
"""The functions with a positional argument that is written and not read, and its position."""
_ONLY_READ = {"sgd_step": 1, "adam_step": 1, "rmsprop_step": 1, "clip_global_norm": None}
"""The functions that change their arguments in place, and the position of the one that they only read."""


def moved_bytes(backend: Backend, name: str, arguments: Any, options: dict[str, Any], result: Any) -> tuple[int, int]:
    """The bytes that a call reads and writes: the sizes of its arguments and of its results, each array once."""
    if name == "setitem":
        x, _, values = arguments
        part = values if hasattr(values, "dtype") else x  # a number fills x, or a part of unknown size
        return _size(backend, arguments[1:], set()), _size(backend, part, set())
    unread = _OUTPUTS.get(name)
    given = arguments if unread is None else (*arguments[:unread], *arguments[unread + 1 :])
    read = _size(backend, given, set())
    for key, x in options.items():
        if key != "out" and key != "into":
            read += _size(backend, x, set())
    written = 0 if result is None else _size(backend, result, set())
    if name in _ONLY_READ:
        position = _ONLY_READ[name]
        written += read - (0 if position is None else _size(backend, arguments[position], set()))
    return read, written


def _size(backend: Backend, x: Any, seen: set[int]) -> int:
    """The bytes of an array, or of the arrays in tuples and lists, without those that are `seen`; 0 for anything else.

    It runs for each argument of each call that is profiled.
    """
    if x.__class__ is tuple or x.__class__ is list:
        total = 0
        for part in x:
            total += _size(backend, part, seen)
        return total
    if not hasattr(x, "dtype") or id(x) in seen:
        return 0
    seen.add(id(x))
    try:
        n: int = x.nbytes
    except AttributeError:
        n = math.prod(x.shape) * DTYPES[backend.dtype_name(x.dtype)].itemsize
    return n
