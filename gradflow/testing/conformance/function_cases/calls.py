"""Calls of array functions, and the table that collects them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradflow.testing.conformance import REALS
from gradflow.testing.conformance.kernel_cases.inputs import name_of

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
WIDE_INTEGERS = ("int32", "int64")
ALL = ("bool", *INTEGERS, *REALS)


@dataclass(frozen=True)
class Native:
    """A dtype among arguments: the backend's object of this name; without a name, that of the dtype under test."""

    name: str = ""


@dataclass(frozen=True)
class Call:
    """A call of the array function `subject`; floating arrays among the arguments are cast to the dtype under test.

    bound: `bound(eps, *arguments, **options)` returns the error allowed, from the float64 value.
    ulp: the error allowed in units in the last place. With neither, the result must equal NumPy's bit for bit.
    reference: the function to call instead of NumPy's.
    """

    subject: str
    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = REALS
    ulp: float | None = None
    bound: Callable[..., Any] | None = None
    reference: Callable[..., Any] | None = None

    @property
    def needs(self) -> set[str]:
        """The dtypes that the call names, other than the one under test."""
        return {x.name for x in (*self.arguments, *self.options.values()) if isinstance(x, Native) and x.name}

    def __str__(self) -> str:
        return f"{self.subject}-{self.name}"


def values_for(dtypes: tuple[str, ...], x: Any) -> Any:
    """Return integers from 1 to 100 for integer dtypes, so that casts are exact; x itself for other dtypes."""
    return x if dtypes[0] in REALS else (np.abs(x * 20).astype(np.int64) % 100 + 1)


class Table:
    """Collects calls. A call without a name is named after its shapes and options."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def add(self, subject: str, *arguments: Any, name: str = "", dtypes: tuple[str, ...] = REALS, ulp: Any = None,
            bound: Any = None, reference: Any = None, **options: Any) -> None:  # fmt: skip
        parts = [name] if name else [_title(a) for a in arguments]
        parts += [f"{key}={_title(value)}" for key, value in options.items()]
        title = "-".join(parts)
        if dtypes[0] not in REALS:
            title += "-" + dtypes[0].rstrip("0123456789")
        self.calls.append(Call(subject, title, _arrays(arguments), options, dtypes, ulp, bound, reference))


def _arrays(x: Any) -> Any:
    """Return NumPy scalars as arrays, since backends take only those."""
    if isinstance(x, (tuple, list)):
        return type(x)(_arrays(part) for part in x)
    return np.asarray(x) if isinstance(x, np.generic) else x


def _title(x: Any) -> str:
    if isinstance(x, np.ndarray):
        return name_of(x.shape)
    if isinstance(x, Native):
        return x.name or "dtype"
    if isinstance(x, (list, tuple)):
        return "(" + ",".join(_title(part) for part in x) + ")"
    return str(x)


SHAPES: list[tuple[int, ...]] = [(3, 4), (), (0, 3), (5,), (2, 3, 4)]
