"""What makes a method of a backend a kernel, and kernels of half floats computed in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])
KERNELS: list[str] = []
"""The names of the kernels, in the order of their definition. A residual goes to the same backend's own backward."""


def kernel(function: _Kernel) -> _Kernel:
    """Mark a method of `Backend` as a kernel: optional, with this composed default."""
    KERNELS.append(function.__name__)
    return function


def in_float32(kernel: _Kernel, changes: tuple[int, ...] = ()) -> _Kernel:
    """The kernel with half floats computed in float32, by the backend's own, and rounded at the end.

    A residual stays in float32. `changes`: the positions of the arguments that it changes in place.
    """
    name = kernel.__name__

    @functools.wraps(kernel)
    def wide(self: Any, *arguments: Any, **options: Any) -> Any:
        first = arguments[0][0] if isinstance(arguments[0], (list, tuple)) else arguments[0]
        half = first.dtype
        if half not in self.half_dtypes:
            return kernel(self, *arguments, **options)
        given = _converted(self, arguments, half, self.single)
        results = getattr(self, name)(*given, **_converted(self, options, half, self.single))
        for i in changes:
            for array, value in zip(*map(_leaves, (arguments[i], given[i])), strict=True):
                self.setitem(array, ..., self.astype(value, half))
        if isinstance(results, tuple) and not name.endswith("_backward"):
            return self.astype(results[0], half), results[1]
        return _converted(self, results, self.single, half)

    return wide  # type: ignore[return-value]


def _converted(F: Any, x: Any, source: Any, target: Any) -> Any:
    """x, with the arrays of one dtype in it in another."""
    if isinstance(x, (tuple, list)):
        return type(x)([_converted(F, part, source, target) for part in x])
    if isinstance(x, dict):
        return {name: _converted(F, part, source, target) for name, part in x.items()}
    return F.astype(x, target) if hasattr(x, "shape") and x.dtype == source else x


def _leaves(x: Any) -> Sequence[Any]:
    return x if isinstance(x, (list, tuple)) else () if x is None else (x,)


class KernelBase:
    """What composed kernels use of a backend: its array functions, as attributes, and its dtypes."""

    dtypes: dict[str, Any]
    single: Any
    double: Any
    half_dtypes: tuple[Any, ...]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"backend {getattr(type(self), 'name', '')!r} has no function {name!r}")
