"""Functions on a batch at once: the same rules, and the same operations, run with another `F`.

A `Batch` is an array or a tensor with an additional first axis, which rules do not see. `Batching` has the functions of
a namespace `F` (a backend, or `gradflow.ops.namespace`) for batches: each shifts its axes by one and calls the function
of `F`. Non-batch arguments (saved inputs, numbers) are passed on unchanged and are shared by the whole batch.

Backward passes run the rules on a batch of gradients, for `jacobian`. `gradflow.autograd.mapping` runs operations on
batches of their inputs, for `vmap`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from gradflow.backend import KERNELS, Backend
from gradflow.backend.array_functions import ELEMENTWISE, FUNCTION_GROUPS

_ALONG_AXES = frozenset({*FUNCTION_GROUPS["Reductions"], "flip"})
_ALONG_ONE_AXIS = frozenset(FUNCTION_GROUPS["Along one axis"])


class Elements:
    """An array or tensor whose first axis runs over a batch. `shape` and `ndim` describe one element."""

    __slots__ = ("dtype", "ndim", "shape", "values")

    def __init__(self, values: Any) -> None:
        self.values = values
        self.shape = tuple(values.shape[1:])
        self.ndim = len(self.shape)
        self.dtype = getattr(values, "array", values).dtype

    caller = "a gradient rule"
    """What calls functions on it, for the error of arithmetic operators."""

    def _refuse(self, *_: Any) -> Any:
        raise TypeError(f"{self.caller} calls functions of F only: F.multiply(g, x) rather than g * x")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __neg__ = __abs__ = __getitem__ = _refuse
    __array_ufunc__ = None


class Batch(Elements):
    """A batch of gradients."""

    __slots__ = ()


@functools.lru_cache(maxsize=64)
def batched(F: Any) -> Batching:
    """Return the functions of `F` for batches (cached)."""
    return Batching(F)


class Batching:
    """The functions of the namespace `F`, for arguments that may be batches."""

    half_dtypes = ()  # the walk converts half floats before a rule runs

    def __init__(self, F: Any) -> None:
        self.F = F

    def is_batch(self, x: Any) -> bool:
        """Whether x is one of the batches that these functions are for."""
        return isinstance(x, Batch)

    def batch(self, values: Any) -> Any:
        """A batch of these values."""
        return Batch(values)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the function `name` of `F` for batches, created at its first use."""
        if name in ELEMENTWISE:
            function = functools.partial(self._elementwise, getattr(self.F, name))
        elif name in _ALONG_AXES:
            function = functools.partial(self._along_axes, getattr(self.F, name))
        elif name in _ALONG_ONE_AXIS:
            function = functools.partial(self._along_one_axis, getattr(self.F, name))
        elif name in KERNELS:
            function = functools.partial(self._kernel, getattr(self.F, name, None), getattr(Backend, name))
        else:
            function = functools.partial(self._one_by_one, getattr(self.F, name))
        setattr(self, name, function)
        return function

    def _elementwise(self, function: Callable[..., Any], *inputs: Any) -> Any:
        batches = [x for x in inputs if self.is_batch(x)]
        if not batches:
            return function(*inputs)
        ndim = max(x.ndim for x in inputs if hasattr(x, "ndim"))
        return self.batch(function(*[self._with_axes(x, ndim) if self.is_batch(x) else x for x in inputs]))

    def _with_axes(self, x: Any, ndim: int) -> Any:
        """Return the values with axes of length 1 after the batch axis, so that elements broadcast to `ndim` axes."""
        if x.ndim >= ndim:
            return x.values
        return self.F.reshape(x.values, (x.values.shape[0], *(1,) * (ndim - x.ndim), *x.shape))

    def _along_axes(self, function: Callable[..., Any], x: Any, axis: Any = None, **options: Any) -> Any:
        if not self.is_batch(x):
            return function(x, axis=axis, **options)
        if axis is None:
            axis = tuple(range(x.ndim))
        if axis == () and not x.ndim:  # of a number: the number itself
            return self.batch(function(self.F.reshape(x.values, (-1, 1)), axis=1, **options | {"keepdims": False}))
        return self.batch(function(x.values, axis=_shift(axis), **options))

    def _along_one_axis(self, function: Callable[..., Any], x: Any, axis: Any = None, **options: Any) -> Any:
        if axis is None or not self.is_batch(x):
            return self._one_by_one(function, x, axis=axis, **options)
        return self.batch(function(x.values, axis=_shift(axis), **options))

    def _kernel(self, function: Any, default: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        if any(self.is_batch(x) for x in (*inputs, *options.values())):
            return default(self, *inputs, **options)
        return function(*inputs, **options)

    def _one_by_one(self, function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        """Call a function that has no batched form for each element of the batch."""
        length = self._length((inputs, options))
        if length is None:
            return function(*inputs, **options)
        each = [function(*self._element(inputs, i), **self._element(options, i)) for i in range(length)]
        return self.batch(self.F.stack(each, axis=0))

    def _length(self, x: Any) -> int | None:
        """The length of the first batch among the arguments of a function, or None."""
        if self.is_batch(x):
            return int(x.values.shape[0])
        parts = x.values() if isinstance(x, dict) else x if isinstance(x, (tuple, list)) else ()
        return next((n for n in map(self._length, parts) if n is not None), None)

    def _element(self, x: Any, i: int) -> Any:
        """Arguments of a function with element i in place of each batch."""
        if self.is_batch(x):
            return self.F.getitem(x.values, (i, ...))
        if isinstance(x, dict):
            return {name: self._element(part, i) for name, part in x.items()}
        return type(x)(self._element(part, i) for part in x) if type(x) in (tuple, list) else x

    # ------------------------------------------------------------------ shapes

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        if not self.is_batch(x):
            return self.F.reshape(x, shape)
        if x.shape == tuple(shape):
            return x
        return self.batch(self.F.reshape(x.values, (x.values.shape[0], *shape)))

    def broadcast_to(self, x: Any, shape: Sequence[int]) -> Any:
        if not self.is_batch(x):
            return self.F.broadcast_to(x, shape)
        return self.batch(self.F.broadcast_to(self._with_axes(x, len(shape)), (x.values.shape[0], *shape)))

    def permute_dims(self, x: Any, axes: Sequence[int]) -> Any:
        if not self.is_batch(x):
            return self.F.permute_dims(x, axes)
        return self.batch(self.F.permute_dims(x.values, (0, *(a % x.ndim + 1 for a in axes))))

    def expand_dims(self, x: Any, axis: Any) -> Any:
        if not self.is_batch(x):
            return self.F.expand_dims(x, axis=axis)
        return self.batch(self.F.expand_dims(x.values, axis=_shift(axis)))

    def squeeze(self, x: Any, axis: Any) -> Any:
        if not self.is_batch(x):
            return self.F.squeeze(x, axis=axis)
        return self.batch(self.F.squeeze(x.values, axis=_shift(axis)))

    def concat(self, arrays: Sequence[Any], axis: int = 0) -> Any:
        lengths = [x.values.shape[0] for x in arrays if self.is_batch(x)]
        if not lengths:
            return self.F.concat(arrays, axis=axis)
        values = [x.values if self.is_batch(x) else self.F.broadcast_to(x, (lengths[0], *x.shape)) for x in arrays]
        return self.batch(self.F.concat(values, axis=_shift(axis)))

    def stack(self, arrays: Sequence[Any], axis: int = 0) -> Any:
        return self.concat([self.expand_dims(x, axis) for x in arrays], axis)

    # ------------------------------------------------------------------ values

    def astype(self, x: Any, dtype: Any, **options: Any) -> Any:
        if not self.is_batch(x):
            return self.F.astype(x, dtype, **options)
        return self.batch(self.F.astype(x.values, dtype, **options))

    def zeros_like(self, x: Any) -> Any:
        return self.batch(self.F.zeros_like(x.values)) if self.is_batch(x) else self.F.zeros_like(x)

    def ones_like(self, x: Any) -> Any:
        return self.batch(self.F.ones_like(x.values)) if self.is_batch(x) else self.F.ones_like(x)

    # ------------------------------------------------------------------ products and selection

    def matrix_transpose(self, x: Any) -> Any:
        return self.batch(self.F.matrix_transpose(x.values)) if self.is_batch(x) else self.F.matrix_transpose(x)

    def matmul(self, a: Any, b: Any) -> Any:
        if self.is_batch(a) and a.ndim == b.ndim == 2 and not self.is_batch(b):
            count, rows, inner = a.values.shape  # one large product instead of many
            product = self.F.matmul(self.F.reshape(a.values, (count * rows, inner)), b)
            return self.batch(self.F.reshape(product, (count, rows, b.shape[1])))
        if not self.is_batch(a) and not self.is_batch(b):
            return self.F.matmul(a, b)
        if a.ndim == 1:
            out = self.matmul(self.reshape(a, (1, *a.shape)), b)
            return self.reshape(out, (*out.shape[:-2], *out.shape[-1:]))
        if b.ndim == 1:
            out = self.matmul(a, self.reshape(b, (*b.shape, 1)))
            return self.reshape(out, out.shape[:-1])
        if a.shape[-1] == 1:  # the gradient of a weight for one sample: cheaper than a product for each
            return self.multiply(a, b)
        ndim = max(a.ndim, b.ndim)
        left, right = (self._with_axes(x, ndim) if self.is_batch(x) else x for x in (a, b))
        return self.batch(self.F.matmul(left, right))

    def getitem(self, x: Any, key: Any) -> Any:
        if self._length(key) is not None:
            places = self._places(x, key)
            return self._one_by_one(self.F.getitem, x, key) if places is None else self.batch(self.F.getitem(*places))
        if not self.is_batch(x):
            return self.F.getitem(x, key)
        if not _keeps_place(key):
            return self._one_by_one(self.F.getitem, x, key)
        return self.batch(self.F.getitem(x.values, (slice(None), *key)))

    def _places(self, x: Any, key: Any) -> tuple[Any, Any] | None:
        """All values of x and one key for all elements, for a key that begins with batches of integers; or None."""
        if not isinstance(key, tuple) or not _keeps_place(key) or not hasattr(key[0], "shape"):
            return None
        arrays = [k for k in key if hasattr(k, "shape")]
        ndim = max(k.ndim for k in arrays)
        key = tuple(self._with_axes(k, ndim) if self.is_batch(k) else k for k in key)
        if not self.is_batch(x):
            return x, key
        count = x.values.shape[0]
        steps = self.F.reshape(self.F.arange(count, dtype=self.F.dtypes["int64"]), (count, *(1,) * ndim))
        return x.values, (steps, *key)

    def put(self, x: Any, key: Any, values: Any) -> Any:
        if self._length(key) is not None or not _keeps_place(key):
            return self._one_by_one(self.F.put, x, key, values)
        if not self.is_batch(x) and not self.is_batch(values):
            return self.F.put(x, key, values)
        x = self._repeated(x, self._length((x, values)))
        if self.is_batch(values):
            values = self._with_axes(values, len(self.F.getitem(x.values, (0, *key)).shape))
        return self.batch(self.F.put(x.values, (slice(None), *key), values))

    def scatter_add(self, values: Any, key: Any, shape: tuple[int, ...], into: Any = None) -> Any:
        batches = self.is_batch(values) or self.is_batch(into)
        if self._length(key) is not None or (batches and not _keeps_place(key)):
            whole = self._one_by_one(self.F.scatter_add, values, key, shape)
            return whole if into is None else self.add(into, whole)
        if not batches:
            return self.F.scatter_add(values, key, shape, into)
        count = self._length((values, into))
        values = self._repeated(values, count)
        if into is not None and not self.is_batch(into):
            return self.add(into, self.scatter_add(values, key, shape))
        whole = self.F.scatter_add(
            values.values, (slice(None), *key), (count, *shape), None if into is None else into.values
        )
        return self.batch(whole)

    def take_along_axis(self, x: Any, indices: Any, axis: int) -> Any:
        count = self._length((x, indices))
        if count is None:
            return self.F.take_along_axis(x, indices, axis=axis)
        x, indices = self._repeated(x, count), self._repeated(indices, count)
        return self.batch(self.F.take_along_axis(x.values, indices.values, axis=_shift(axis)))

    def scatter_add_along_axis(self, values: Any, indices: Any, shape: tuple[int, ...], axis: int) -> Any:
        count = self._length((values, indices))
        if count is None:
            return self.F.scatter_add_along_axis(values, indices, shape, axis)
        values, indices = self._repeated(values, count), self._repeated(indices, count)
        whole = self.F.scatter_add_along_axis(values.values, indices.values, (count, *shape), _shift(axis))
        return self.batch(whole)

    def _repeated(self, x: Any, count: int | None) -> Any:
        """x itself, if it is a batch; else one that repeats it."""
        return x if self.is_batch(x) else self.batch(self.F.broadcast_to(x, (count, *x.shape)))


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
