"""The device `torch`: PyTorch's tensors as arrays, on the CPU: a library with its own memory, names and scalars.

What follows is where PyTorch is not the Array API: names of functions and arguments, numbers as operands, reductions
over several axes, and arithmetic of unsigned integers, which NumPy does in the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gradflow.backend import Array, Backend, Diagnosis, MemoryStats

_BINARY = {
    name: getattr(torch, {"equal": "eq"}.get(name, name))
    for name in (
        "add", "subtract", "multiply", "divide", "pow", "maximum", "minimum", "equal", "not_equal", "less",
        "less_equal", "greater", "greater_equal", "logical_and", "logical_or", "bitwise_and", "bitwise_xor",
        "bitwise_left_shift", "bitwise_right_shift",
    )
}  # fmt: skip
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def _binary(name: str, function: Callable[..., Array]) -> Callable[..., Array]:
    def call(a: Any, b: Any) -> Array:
        dtype = a.dtype if isinstance(a, torch.Tensor) else b.dtype
        a, b = (torch.as_tensor(x, dtype=None if isinstance(x, torch.Tensor) else dtype) for x in (a, b))
        if dtype in _UNSIGNED:
            return torch.from_numpy(np.asarray(getattr(np, name)(a.numpy(), b.numpy())))
        return function(a, b)

    return call


def _reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    def call(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
        return x if axis == () else function(x, dim=axis, keepdim=keepdims)  # PyTorch takes () for all axes

    return call


class TorchBackend(Backend):
    name = "torch"

    def __init__(self, index: int = 0) -> None:
        for name, function in _BINARY.items():
            setattr(self, name, _binary(name, function))
        for name in ("sum", "mean", "any", "all", "max", "min"):
            setattr(self, name, _reduction(getattr(torch, {"max": "amax", "min": "amin"}.get(name, name))))
        super().__init__(torch, index)

    astype = staticmethod(lambda x, dtype, copy=True: x.to(dtype, copy=copy))
    clip = staticmethod(lambda x, min=None, max=None: x if min is None and max is None else torch.clip(x, min, max))
    cumulative_sum = staticmethod(lambda x, axis=None: torch.cumsum(x, 0 if axis is None else axis))
    broadcast_to = staticmethod(lambda x, shape: torch.broadcast_to(x, shape))
    permute_dims = staticmethod(lambda x, axes: torch.permute(x, axes))
    matrix_transpose = staticmethod(lambda x: x.mT)
    expand_dims = staticmethod(lambda x, axis: torch.unsqueeze(x, axis))
    flip = staticmethod(lambda x, axis=None: torch.flip(x, _axes(x, axis)))
    take_along_axis = staticmethod(lambda x, indices, axis=-1: torch.take_along_dim(x, indices, axis))

    @staticmethod
    def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> Array:
        start, stop = (0, start) if stop is None else (start, stop)
        return torch.arange(start, stop, step, dtype=torch.int64 if dtype in _UNSIGNED else dtype).to(dtype)

    @staticmethod
    def prod(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
        for a in sorted(_axes(x, axis), reverse=True):
            x = torch.prod(x, a, keepdim=keepdims)
        return x

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
