"""Checks of hyperparameters."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any


def checked_number(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> float:
    """`value` as a float. Raises ValueError unless it is a finite number in [low, high)."""
    if isinstance(value, bool) or not isinstance(value, (float, int, Real)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number; got {value!r}")
    result = float(value)
    if not low <= result < high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}); got {value!r}")
    return result


def check_numbers(group: dict[str, Any], *names: str, low: float = 0.0, high: float = math.inf) -> None:
    """Convert these hyperparameters of a parameter group to floats, in place.

    names: those of the hyperparameters.

    Raises ValueError unless each is a finite number in [low, high) (default: any nonnegative number).

    >>> import gradflow as gf
    >>> gf.optim.check_numbers({"momentum": 1.5}, "momentum", high=1.0)
    Traceback (most recent call last):
        ...
    ValueError: momentum must be in [0, 1); got 1.5
    """
    for name in names:
        group[name] = checked_number(name, group[name], low, high)
