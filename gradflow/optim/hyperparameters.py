"""Checks of hyperparameters."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from gradflow.dtypes import float64

_SMALLEST32, _SMALLEST64 = 2.0**-126, 2.0**-1022
"""The smallest normal numbers of float32 and float64. Steps of half floats are computed in float32."""


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


def check_eps(group: dict[str, Any], factor: float = 1.0) -> None:
    """Raise ValueError if eps times a factor rounds to 0 in the dtype of a parameter: a step would divide 0 by 0."""
    check_numbers(group, "eps")
    least = group["eps"] * factor
    if least < _SMALLEST64 or (least < _SMALLEST32 and any(t.dtype != float64 for t in group["params"])):
        raise ValueError(f"eps must be above 0, also in the dtype of the parameters; got {group['eps']!r}")


def check_betas(group: dict[str, Any]) -> None:
    """Convert betas to two floats, in place. Raises TypeError or ValueError unless they are two numbers in [0, 1)."""
    try:
        betas = tuple(group["betas"])
    except TypeError:
        raise TypeError(f"betas are two numbers, such as (0.9, 0.999); got {group['betas']!r}") from None
    if len(betas) != 2:
        raise ValueError(f"betas are two numbers, such as (0.9, 0.999); got {betas}")
    group["betas"] = tuple(checked_number("each of betas", beta, 0.0, 1.0) for beta in betas)
