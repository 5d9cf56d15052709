"""The device `torch`: PyTorch's tensors as arrays, on the CPU: a library with its own memory, names and scalars.

It adapts PyTorch where it differs from the Array API: names of functions and arguments, numbers as operands, reductions
over several axes or none, keys. NumPy computes unsigned integers and exact square roots, in the same memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gradflow.backend import AccurateSums, Array, Diagnosis, MemoryStats

_BINARY = {
    name: getattr(torch, {"equal": "eq"}.get(name, name))
    for name in (
        "add", "subtract", "multiply", "divide", "floor_divide", "remainder", "pow", "atan2", "maximum",
        "minimum", "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and",
        "logical_or", "bitwise_and", "bitwise_xor", "bitwise_right_shift",
    )
}  # fmt: skip
_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def _by_numpy(name: str, *arrays: Array) -> Array:
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.asarray(getattr(np, name)(*(x.numpy() for x in arrays))))


def _binary(name: str, function: Callable[..., Array]) -> Callable[..., Array]:
    def call(a: Any, b: Any) -> Array:
        dtype = a.dtype if isinstance(a, torch.Tensor) else b.dtype
        a, b = (torch.as_tensor(x, dtype=None if isinstance(x, torch.Tensor) else dtype) for x in (a, b))
        if dtype in _UNSIGNED:
            return _by_numpy(name, a, b)
        return function(a, b)

    return call


def _reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    def call(x: Array, axis: Any = None, keepdims: bool = False, **options: Any) -> Array:
        if axis == ():  # PyTorch takes () for all axes
            x, axis, keepdims = x[..., None], -1, False
        return function(x, dim=axis, keepdim=keepdims, **options)

    return call


def _sum(x: Array, **options: Any) -> Array:
    total = torch.sum(x, **options)
    return total.to(torch.uint64) if x.dtype in _UNSIGNED else total


class TorchBackend(AccurateSums):
    name = "torch"
    unsupported = {  # noqa: RUF012
        "test_uniform_numbers[float16]": "float64 becomes float16 by way of float32, rounded twice",
        "test_normal_numbers[float16]": "float64 becomes float16 by way of float32, rounded twice",
        "test_python_numbers[large integer]": "an integer of 64 bits needs a dtype",
    }

    def __init__(self, index: int = 0) -> None:
        for name, function in _BINARY.items():
            setattr(self, name, _binary(name, function))
        for name in ("any", "all", "max", "min"):
            setattr(self, name, _reduction(getattr(torch, {"max": "amax", "min": "amin"}.get(name, name))))
        super().__init__(torch, index)

    def find_dtypes(self, namespace: Any) -> dict[str, Any]:
        found = super().find_dtypes(namespace)
        del found["bfloat16"]  # NumPy computes square roots, and has no bfloat16
        return found

    own_sum = staticmethod(_reduction(_sum))
    sign = staticmethod(lambda x: torch.where(torch.isnan(x), x, torch.sign(x)))
    sqrt = staticmethod(functools.partial(_by_numpy, "sqrt"))  # correctly rounded, which PyTorch's is not
    astype = staticmethod(lambda x, dtype, copy=True: x.to(dtype, copy=copy))
    clip = staticmethod(lambda x, min=None, max=None: x if min is None and max is None else torch.clip(x, min, max))
    own_cumulative_sum = staticmethod(lambda x, axis=None: torch.cumsum(x, 0 if axis is None else axis))
    broadcast_to = staticmethod(lambda x, shape: torch.broadcast_to(x, shape))
    permute_dims = staticmethod(lambda x, axes: torch.permute(x, axes))
    matrix_transpose = staticmethod(lambda x: x.mT)
    expand_dims = staticmethod(lambda x, axis: torch.unsqueeze(x, axis))
    flip = staticmethod(lambda x, axis=None: torch.flip(x, _axes(x, axis)))
    take_along_axis = staticmethod(lambda x, indices, axis=-1: torch.take_along_dim(x, indices, axis))

    def asarray(self, obj: Any, dtype: Any = None) -> Array:
        if not isinstance(obj, torch.Tensor):
            obj = self.from_host(np.asarray(obj))  # Python's numbers with all their digits
        return torch.asarray(obj, dtype=dtype)

    @staticmethod
    def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> Array:
        start, stop = (0, start) if stop is None else (start, stop)
        return torch.arange(start, stop, step, dtype=torch.int64 if dtype in _UNSIGNED else dtype).to(dtype)

    @staticmethod
    def prod(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
        for a in sorted(_axes(x, axis), reverse=True):
            x = torch.prod(x, a, keepdim=keepdims)
        return x

    @staticmethod
    def squeeze(x: Array, axis: Any) -> Array:
        if any(x.shape[a] != 1 for a in _axes(x, axis)):
            raise ValueError(f"cannot squeeze the axes {axis} of the shape {tuple(x.shape)}")
        return torch.squeeze(x, axis)

    def getitem(self, x: Array, key: Any) -> Array:
        return x[_key(x, key)]

    def setitem(self, x: Array, key: Any, values: Any) -> None:
        x[_key(x, key)] = values

    @classmethod
    def device_count(cls) -> int:
        return 1

    @classmethod
    def diagnose(cls) -> Diagnosis:
        return Diagnosis(True, f"PyTorch {torch.__version__}")

    def to_host(self, array: Array) -> Any:
        return array.numpy().copy()

    def from_host(self, values: Any) -> Array:
        return torch.from_numpy(np.array(values, order="C"))

    def synchronize(self) -> None: ...

    def memory_stats(self) -> MemoryStats:
        return MemoryStats(0, None, 0)


def _axes(x: Array, axis: Any) -> list[int]:
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return [a % x.ndim for a in axes]


def _key(x: Array, key: Any) -> tuple[Any, ...]:
    """A key for PyTorch, where uint8 is a mask; slices with a negative step, which it lacks, become integer arrays."""
    parts = key if isinstance(key, tuple) else (key,)
    parts = tuple(k.long() if isinstance(k, torch.Tensor) and k.dtype != torch.bool else k for k in parts)
    if not any(isinstance(k, slice) and (k.step or 1) < 0 for k in parts):
        return parts
    numbers = np.arange(x.numel()).reshape(x.shape)
    chosen = numbers[tuple(k.numpy() if isinstance(k, torch.Tensor) else k for k in parts)]
    return tuple(torch.from_numpy(i) for i in np.unravel_index(chosen, x.shape))
