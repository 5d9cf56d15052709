"""Gradient rules on a batch of gradients at once: the same rules, run with another `F`.

A `Batch` is an array or a tensor with an additional first axis, which rules do not see. `Batching` has the functions of
a namespace `F` (a backend, or `gradflow.ops.namespace`) for batches: each shifts its axes by one and calls the function
of `F`. Non-batch arguments (saved inputs, numbers) are passed on unchanged and are shared by the whole batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from gradflow.backend import KERNELS, Backend
from gradflow.backend.array_functions import ELEMENTWISE, FUNCTION_GROUPS

_ALONG_AXES = frozenset({*FUNCTION_GROUPS["Reductions"], "cumulative_sum", "flip"})


class Batch:
    """An array or tensor whose first axis runs over the batch. `shape` and `ndim` describe one element."""

    __slots__ = ("dtype", "ndim", "shape", "values")

    def __init__(self, values: Any) -> None:
        self.values = values
        self.shape = tuple(values.shape[1:])
        self.ndim = len(self.shape)
        self.dtype = getattr(values, "array", values).dtype

    def _refuse(self, *_: Any) -> Any:
        raise TypeError("a gradient rule calls functions of F only: F.multiply(g, x) rather than g * x")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __neg__ = __abs__ = __getitem__ = _refuse
    __array_ufunc__ = None


@functools.lru_cache(maxsize=64)
def batched(F: Any) -> Batching:
    """Return the functions of `F` for batches (cached)."""
    return Batching(F)


class Batching:
    """The functions of the namespace `F`, for arguments that may be batches."""

    half_dtypes = ()  # the walk converts half floats before a rule runs

    def __init__(self, F: Any) -> None:
        self.F = F

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the function `name` of `F` for batches, created at its first use."""
        if name in ELEMENTWISE:
            function = functools.partial(self._elementwise, getattr(self.F, name))
        elif name in _ALONG_AXES:
            function = functools.partial(self._along_axes, getattr(self.F, name))
        elif name in KERNELS:
            function = functools.partial(self._kernel, getattr(self.F, name, None), getattr(Backend, name))
        else:
            function = functools.partial(self._one_by_one, getattr(self.F, name))
        setattr(self, name, function)
        return function

    def _elementwise(self, function: Callable[..., Any], *inputs: Any) -> Any:
        batches = [x for x in inputs if isinstance(x, Batch)]
        if not batches:
            return function(*inputs)
        ndim = max(x.ndim for x in inputs if hasattr(x, "ndim"))
        return Batch(function(*[self._with_axes(x, ndim) if isinstance(x, Batch) else x for x in inputs]))

    def _with_axes(self, x: Batch, ndim: int) -> Any:
        """Return the values with axes of length 1 after the batch axis, so that elements broadcast to `ndim` axes."""
        if x.ndim >= ndim:
            return x.values
        return self.F.reshape(x.values, (x.values.shape[0], *(1,) * (ndim - x.ndim), *x.shape))

    def _along_axes(self, function: Callable[..., Any], x: Any, axis: Any = None, **options: Any) -> Any:
        if not isinstance(x, Batch):
            return function(x, axis=axis, **options)
        if axis is None:
            axis = tuple(range(x.ndim))
        if axis == () and not x.ndim:  # of a number: the number itself
            return Batch(function(self.F.reshape(x.values, (-1, 1)), axis=1, **options | {"keepdims": False}))
        return Batch(function(x.values, axis=_shift(axis), **options))

    def _kernel(self, function: Any, default: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        if any(isinstance(x, Batch) for x in inputs):
            return default(self, *inputs, **options)
        return function(*inputs, **options)

    def _one_by_one(self, function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        """Call a function that has no batched form for each element of the batch."""
        lengths = [x.values.shape[0] for x in inputs if isinstance(x, Batch)]
        if not lengths:
            return function(*inputs, **options)
        each = [
            function(*[x.values[i, ...] if isinstance(x, Batch) else x for x in inputs], **options)
            for i in range(lengths[0])
        ]
        return Batch(self.F.stack(each, axis=0))

    # ------------------------------------------------------------------ shapes

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        if not isinstance(x, Batch):
            return self.F.reshape(x, shape)
        if x.shape == tuple(shape):
            return x
        return Batch(self.F.reshape(x.values, (x.values.shape[0], *shape)))

    def broadcast_to(self, x: Any, shape: Sequence[int]) -> Any:
        if not isinstance(x, Batch):
            return self.F.broadcast_to(x, shape)
        return Batch(self.F.broadcast_to(self._with_axes(x, len(shape)), (x.values.shape[0], *shape)))

    def permute_dims(self, x: Any, axes: Sequence[int]) -> Any:
        if not isinstance(x, Batch):
            return self.F.permute_dims(x, axes)
        return Batch(self.F.permute_dims(x.values, (0, *(a % x.ndim + 1 for a in axes))))

    def expand_dims(self, x: Any, axis: Any) -> Any:
        if not isinstance(x, Batch):
            return self.F.expand_dims(x, axis=axis)
        return Batch(self.F.expand_dims(x.values, axis=_shift(axis)))

    def squeeze(self, x: Any, axis: Any) -> Any:
        if not isinstance(x, Batch):
            return self.F.squeeze(x, axis=axis)
        return Batch(self.F.squeeze(x.values, axis=_shift(axis)))

    def concat(self, arrays: Sequence[Any], axis: int = 0) -> Any:
        lengths = [x.values.shape[0] for x in arrays if isinstance(x, Batch)]
        if not lengths:
            return self.F.concat(arrays, axis=axis)
        values = [x.values if isinstance(x, Batch) else self.F.broadcast_to(x, (lengths[0], *x.shape)) for x in arrays]
        return Batch(self.F.concat(values, axis=_shift(axis)))

    def stack(self, arrays: Sequence[Any], axis: int = 0) -> Any:
        return self.concat([self.expand_dims(x, axis) for x in arrays], axis)

    # ------------------------------------------------------------------ values

    def astype(self, x: Any, dtype: Any) -> Any:
        return Batch(self.F.astype(x.values, dtype)) if isinstance(x, Batch) else self.F.astype(x, dtype)

    def zeros_like(self, x: Any) -> Any:
        return Batch(self.F.zeros_like(x.values)) if isinstance(x, Batch) else self.F.zeros_like(x)

    def ones_like(self, x: Any) -> Any:
        return Batch(self.F.ones_like(x.values)) if isinstance(x, Batch) else self.F.ones_like(x)

    # ------------------------------------------------------------------ products and selection

    def matrix_transpose(self, x: Any) -> Any:
        return Batch(self.F.matrix_transpose(x.values)) if isinstance(x, Batch) else self.F.matrix_transpose(x)

    def matmul(self, a: Any, b: Any) -> Any:
        if isinstance(a, Batch) and a.ndim == b.ndim == 2 and not isinstance(b, Batch):
            count, rows, inner = a.values.shape  # one large product instead of many
            product = self.F.matmul(self.F.reshape(a.values, (count * rows, inner)), b)
            return Batch(self.F.reshape(product, (count, rows, b.shape[1])))
        if not isinstance(a, Batch) and not isinstance(b, Batch):
            return self.F.matmul(a, b)
        if a.ndim == 1:
            out = self.matmul(self.reshape(a, (1, *a.shape)), b)
            return self.reshape(out, (*out.shape[:-2], *out.shape[-1:]))
        if b.ndim == 1:
            out = self.matmul(a, self.reshape(b, (*b.shape, 1)))
            return self.reshape(out, out.shape[:-1])
        ndim = max(a.ndim, b.ndim)
        left, right = (self._with_axes(x, ndim) if isinstance(x, Batch) else x for x in (a, b))
        return Batch(self.F.matmul(left, right))

    def getitem(self, x: Any, key: Any) -> Any:
        if not isinstance(x, Batch):
            return self.F.getitem(x, key)
        if not _keeps_place(key):
            return self._one_by_one(self.F.getitem, x, key)
        return Batch(self.F.getitem(x.values, (slice(None), *key)))

    def put(self, x: Any, key: Any, values: Any) -> Any:
        if not isinstance(x, Batch):
            return self.F.put(x, key, values)
        if not _keeps_place(key):
            return self._one_by_one(self.F.put, x, key=key, values=values)
        return Batch(self.F.put(x.values, (slice(None), *key), values))

    def scatter_add(self, values: Any, key: Any, shape: tuple[int, ...], into: Any = None) -> Any:
        if not isinstance(values, Batch):
            return self.F.scatter_add(values, key, shape, into)
        if not _keeps_place(key):
            whole = self._one_by_one(self.F.scatter_add, values, key, shape)
            return whole if into is None else self.add(into, whole)
        shape, into = (values.values.shape[0], *shape), None if into is None else into.values
        return Batch(self.F.scatter_add(values.values, (slice(None), *key), shape, into))

    def take_along_axis(self, x: Any, indices: Any, axis: int) -> Any:
        if not isinstance(x, Batch):
            return self.F.take_along_axis(x, indices, axis=axis)
        count = x.values.shape[0]
        return Batch(self.F.take_along_axis(x.values, self._repeated(indices, count), axis=_shift(axis)))

    def scatter_add_along_axis(self, values: Any, indices: Any, shape: tuple[int, ...], axis: int) -> Any:
        if not isinstance(values, Batch):
            return self.F.scatter_add_along_axis(values, indices, shape, axis)
        count = values.values.shape[0]
        indices = self._repeated(indices, count)
        return Batch(self.F.scatter_add_along_axis(values.values, indices, (count, *shape), _shift(axis)))

    def _repeated(self, indices: Any, count: int) -> Any:
        return self.F.broadcast_to(indices, (count, *indices.shape))


def _shift(axis: Any) -> Any:
    """Convert an axis of an element, or a tuple of axes, to axes of the batch. Negative axes stay the same."""
    if isinstance(axis, tuple):
        return tuple(map(_shift, axis))
    return axis + 1 if axis >= 0 else axis


def _keeps_place(key: Any) -> bool:
    """Return whether a key can index a whole batch, after a slice for the batch axis.

    A mask does not, nor do arrays and integers with a slice between them: their axes would come before the batch's.
    """
    if not isinstance(key, tuple):
        return False
    if not any(hasattr(k, "shape") for k in key):
        return True
    advanced = [i for i, k in enumerate(key) if hasattr(k, "shape") or isinstance(k, int)]
    return advanced == list(range(advanced[0], advanced[-1] + 1))
