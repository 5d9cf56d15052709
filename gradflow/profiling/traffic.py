"""The bytes that a call of a backend moves, from the sizes of its arrays."""

from __future__ import annotations

import math
from typing import Any

from gradflow.backend import Backend
from gradflow.dtypes import DTYPES

_OUTPUTS = {"gemm": 2, "linear_backward": 9, "scatter_add": 3}
"""The functions with a positional argument that is written and not read, and its position."""
_ONLY_READ = {"sgd_step": 1, "adam_step": 1, "rmsprop_step": 1, "moment_step": 1, "clip_global_norm": None}
"""The functions that change their arguments in place, and the position of the one that they only read."""


_PLAIN = frozenset({bool, float, int, slice, str, type(None)})


def moved_bytes(backend: Backend, name: str, arguments: Any, options: dict[str, Any], result: Any) -> tuple[int, int]:
    """The bytes that a call reads and writes: the sizes of its arguments and of its results."""
    if name == "setitem":
        x, _, values = arguments
        part = values if hasattr(values, "dtype") else x  # a number fills x, or a part of unknown size
        return _size(backend, arguments[1:]), _size(backend, (part,))
    unread = _OUTPUTS.get(name)
    given = arguments if unread is None else (*arguments[:unread], *arguments[unread + 1 :])
    if options:
        given = (*given, [x for key, x in options.items() if key != "out" and key != "into"])
    read, written = _size(backend, given), _size(backend, (result,))
    if name in _ONLY_READ:
        position = _ONLY_READ[name]
        written += read - (0 if position is None else _size(backend, (arguments[position],)))
    return read, written


def _size(backend: Backend, values: Any) -> int:
    """The bytes of the arrays in a tuple or list, at any depth. An array that follows itself, as in x * x, counts once.

    This runs twice in each call that is profiled.
    """
    total = 0
    previous = None
    for x in values:
        kind = x.__class__
        if kind in _PLAIN or x is previous:
            continue
        if kind is tuple or kind is list:
            total += _size(backend, x)
        elif hasattr(x, "nbytes"):
            total += x.nbytes
        elif hasattr(x, "dtype"):
            total += math.prod(x.shape) * DTYPES[backend.dtype_name(x.dtype)].itemsize
        previous = x
    return total
