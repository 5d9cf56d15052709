"""Checks of a backend, for pytest; `gradflow.testing.plugin` says how to run them.

A check has a `subject` (an array function, a service or a kernel) and mostly a dtype. `about` names the subjects of a
test that is not parametrized by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Test = TypeVar("_Test", bound=Callable[..., None])

SERVICES = (
    "device_count", "diagnose", "to_host", "from_host", "synchronize", "memory_stats", "describe", "supports",
    "dtype_name", "stream", "event", "kernels", "getitem", "setitem", "copy", "host_values", "pin", "from_host_later",
    "from_host_ahead", "available_memory", "free_memory", "prepare", "named_ranges", "to_dlpack", "from_dlpack",
)  # fmt: skip
"""The methods of a backend that are neither array functions nor kernels."""

REALS = ("float16", "float32", "float64")
"""The floating dtypes of the checks."""


def about(*subjects: str) -> Callable[[_Test], _Test]:
    """Return a decorator that marks a test as a check of these functions, services or kernels."""

    def mark(test: _Test) -> _Test:
        test.__dict__["subjects"] = subjects
        return test

    return mark
