"""What makes a method of a backend a kernel, and what kernels use of a backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])
KERNELS: list[str] = []
"""The names of the kernels, in the order of their definition.

A residual is only ever passed to the same backend's matching `*_backward`.
"""


def kernel(function: _Kernel) -> _Kernel:
    """Mark a method of `Backend` as a kernel: optional for a backend, with this composed default."""
    KERNELS.append(function.__name__)
    return function


class KernelBase:
    """What composed kernels use of a backend: its array functions, as attributes, and its dtypes."""

    dtypes: dict[str, Any]
    single: Any
    double: Any
    half_dtypes: tuple[Any, ...]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"backend {getattr(type(self), 'name', '')!r} has no function {name!r}")
