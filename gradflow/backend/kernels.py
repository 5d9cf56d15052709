"""The decorator that declares kernels, and the base class of kernel mixins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])
KERNELS: list[str] = []
"""The names of the kernels, in the order of their definition.

A residual is only ever passed to the same backend's matching `*_backward`.
"""


def kernel(function: _Kernel) -> _Kernel:
    """Declare a method of `Backend` as the composed default of a kernel."""
    KERNELS.append(function.__name__)
    return function


class KernelBase:
    """The base of the mixins of composed kernels: the attributes of a backend that kernels use.

    `Backend.__init__` sets the array functions as attributes of the object; `__getattr__` declares them for type
    checkers, and raises AttributeError for other names.
    """

    dtypes: dict[str, Any]
    """The dtype objects of the library by gradflow name."""
    single: Any
    """The library's float32."""
    double: Any
    """The library's float64, or None."""
    half_dtypes: tuple[Any, ...]
    """The library's float16 and bfloat16, if it has them."""
    nonfinite: Any = None
    """None, or a 0-d int32 array on the device that losses and optimizer steps set to 1 for non-finite numbers.

    Whoever wants to know makes it, with a 0, and reads it later, so that nothing waits in between.
    """

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"backend {getattr(type(self), 'name', '')!r} has no function {name!r} "
            "(gradflow.backend.ARRAY_FUNCTIONS and KERNELS list the functions of a backend)"
        )
