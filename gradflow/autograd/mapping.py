"""The backend of tensors inside `vmap`: operations, and their gradient rules, on batches of arrays.

Inside `vmap`, a tensor has the shape of one example. Its array is a `Mapped`, the arrays of all examples, or an
ordinary array that all examples share; its backend is a `Level`, which has the functions of a backend for both. So each
operation runs once for all examples, and so does each gradient rule of a backward pass inside `vmap`.

Levels nest: the backend below a level is that of a device, or the level of the `vmap` around it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from gradflow.autograd.batching import Batching, Elements


class Mapped(Elements):
    """The arrays of all examples of a `vmap`, along the first axis of `values`, which belongs to the backend below."""

    __slots__ = ("level",)
    caller = "inside vmap, an operation"

    def __init__(self, values: Any, level: Level) -> None:
        super().__init__(values)
        self.level = level

    def __setitem__(self, key: Any, value: Any) -> None:
        raise _no_change()


class Level(Batching):
    """The functions of the backend `below`, for the `count` examples of one `vmap`."""

    def __init__(self, below: Any, count: int) -> None:
        super().__init__(below)
        self.count = count
        self.depth: int = getattr(below, "depth", 0) + 1
        for name in ("device", "dtypes", "single", "double", "half_dtypes"):
            setattr(self, name, getattr(below, name))

    def is_batch(self, x: Any) -> bool:
        return isinstance(x, Mapped) and x.level is self

    def batch(self, values: Any) -> Mapped:
        return Mapped(values, self)

    def _kernel(self, function: Any, default: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        return default(self, *inputs, **options)  # in any case: a residual must come from the same kernel

    def copy(self, x: Any) -> Any:
        return self.batch(self.F.copy(x.values)) if self.is_batch(x) else self.F.copy(x)

    def asarray(self, x: Any, **options: Any) -> Any:
        return x if self.is_batch(x) else self.F.asarray(x, **options)

    def getitem(self, x: Any, key: Any) -> Any:
        if self.is_batch(key):
            raise RuntimeError(
                "inside vmap, x[mask] would have another shape for each example: use gradflow.where(mask, x, 0)"
            )
        return super().getitem(x, key)

    def setitem(self, x: Any, key: Any, values: Any) -> None:
        raise _no_change()

    def to_host(self, array: Any) -> Any:
        if self.is_batch(array):
            raise _no_values()
        return self.F.to_host(array)

    @property
    def dlpack_type(self) -> int:
        raise _no_values()

    def host_values(self, array: Any) -> Any:
        """The values of all examples, to check them."""
        return self.F.host_values(array.values if self.is_batch(array) else array)

    def total(self, x: Any) -> Any:
        """The sum over all examples, on the backend below."""
        return self.F.sum(self.stacked(x), axis=0)

    def stacked(self, x: Any) -> Any:
        """The arrays of all examples along a first axis, on the backend below."""
        return x.values if self.is_batch(x) else self.F.broadcast_to(x, (self.count, *x.shape))


current_level: ContextVar[Level | None] = ContextVar("gradflow_vmap", default=None)
"""The level of the innermost `vmap` of this context, or None."""


@contextlib.contextmanager
def at_level(level: Level | None) -> Iterator[None]:
    """Be inside the `vmap` of this level, or inside none, within a `with`."""
    token = current_level.set(level)
    try:
        yield
    finally:
        current_level.reset(token)


def device_backend(backend: Any) -> Any:
    """The backend of the device below all levels."""
    while isinstance(backend, Level):
        backend = backend.F
    return backend


def device_array(array: Any) -> Any:
    """An array of a device: with the axes of all levels, for a `Mapped`."""
    while isinstance(array, Mapped):
        array = array.values
    return array


def _no_change() -> RuntimeError:
    return RuntimeError(
        "inside vmap, tensors cannot be changed in place: x.at[index].set(values) makes a changed copy, and batch norm "
        "leaves its running statistics alone after model.eval() or with track_running_stats=False"
    )


def _no_values() -> RuntimeError:
    return RuntimeError(
        "inside vmap, a tensor has other values for each example, so they cannot be read (item, tolist, numpy, float, "
        "bool, if): use gradflow.where in place of if, and read values outside of vmap"
    )
