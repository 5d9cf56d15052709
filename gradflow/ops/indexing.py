"""Selecting elements: `x[key]`, take, take_along_axis, and their VJPs, which add back where elements were taken."""

from __future__ import annotations

from typing import Any

from gradflow.ops.host import array_from_host
from gradflow.ops.reductions import one_axis
from gradflow.ops.table import apply, check_tensors, defop, mismatch
from gradflow.tensor import Tensor

_GETITEM = defop(
    "take",
    lambda F, g, _out, _x, key: F.scatter_add(g, key, _x.shape),
    forward=lambda F, x, key: F.getitem(x, key),
)
_GETITEM_VIEW = defop(
    "getitem",
    lambda F, g, _out, _x, key: F.scatter_add(g, key, _x.shape),
    forward=lambda F, x, key: F.getitem(x, key),
    view=True,
)
_SCATTER_ADD = defop("scatter_add", lambda F, g, _out, _x, key, shape: F.getitem(g, key))
_TAKE_ALONG = defop(
    "take_along_axis",
    lambda F, g, _out, _x, indices, axis: F.scatter_add_along_axis(g, indices, _x.shape, axis),
    None,
)
_SCATTER_ALONG = defop(
    "scatter_add_along_axis",
    lambda F, g, _out, _x, indices, shape, axis: F.take_along_axis(g, indices, axis=axis),
    None,
)


def raw_key(x: Tensor, key: Any) -> Any:
    """An index as a backend takes it: a mask, or a tuple with an Ellipsis, with arrays for tensors and lists.

    The Ellipsis makes NumPy give a view, as other libraries do, also where only one element is left.

    Raises IndexError for what is no index or is out of range, DeviceMismatchError for a tensor of another device.
    """
    parts = key if isinstance(key, tuple) else (key,)
    raw = tuple([_raw_part(x, part) for part in parts])
    if any(_is_mask(x, p) for p in raw):
        if len(raw) > 1:
            raise IndexError("a boolean tensor must be the only index; combine conditions with & before indexing")
        return raw[0]
    used = sum(1 for p in raw if p is not None and p is not Ellipsis)
    if used > x.ndim:
        raise IndexError(f"too many indices for a tensor of {x.ndim} axes: {used}")
    ellipses = sum(1 for p in raw if p is Ellipsis)
    if ellipses > 1:
        raise IndexError("an index can have only one ellipsis")
    axis = 0
    for i, p in enumerate(raw):
        if p is Ellipsis:
            axis = x.ndim - sum(1 for q in raw[i + 1 :] if q is not None)
        elif p is not None:
            if isinstance(p, int) and not -x.shape[axis] <= p < x.shape[axis]:
                raise IndexError(f"index {p} is out of range for axis {axis} of a tensor of shape {x.shape}")
            axis += 1
    return raw if ellipses else (*raw, Ellipsis)


def _is_mask(x: Tensor, part: Any) -> bool:
    return hasattr(part, "dtype") and x.backend.dtype_name(part.dtype) == "bool"


def _raw_part(x: Tensor, part: Any) -> Any:
    if part is None or part is Ellipsis or isinstance(part, slice):
        return part
    if isinstance(part, bool):
        raise IndexError("True and False are no indices")
    if isinstance(part, int):
        return part
    if isinstance(part, Tensor):
        if part.backend is not x.backend:
            raise mismatch("indexing", (x, part))
        if part.dtype.is_floating:
            raise IndexError(
                f"an index tensor holds integers or bools; this one is {part.dtype}: make it with dtype='int64' "
                "(Python integers become float32), or convert it with astype('int64')"
            )
        if part.dtype.kind == "bool" and part.shape != x.shape[: part.ndim]:
            raise IndexError(f"a boolean index of shape {part.shape} does not fit a tensor of shape {x.shape}")
        return x.backend.copy(part.array)  # a copy: the backward pass reads it again
    if isinstance(part, list):
        array = x.backend.asarray(part)
    elif hasattr(part, "__index__") and not getattr(part, "shape", ()):
        return part.__index__()
    elif hasattr(part, "__array__") and hasattr(part, "shape"):
        if x.device.type != "cpu":
            raise IndexError(
                f"a tensor on {x.device} takes index tensors of its device, not NumPy arrays: "
                f"make one with gradflow.tensor(index, device='{x.device}')"
            )
        array = x.backend.from_host(array_from_host(part))
    else:
        raise IndexError(f"an index is made of integers, slices, None, ... and integer arrays; got {part!r}")
    if 0 in array.shape:
        array = x.backend.astype(array, x.backend.dtypes["int64"])
    return _raw_part(x, Tensor(array, x.backend))


def _is_basic(key: Any) -> bool:
    return not any(hasattr(p, "dtype") for p in (key if isinstance(key, tuple) else (key,)))


def index(x: Tensor, key: Any, /) -> Tensor:
    """x[key], with NumPy's meaning: integers, slices, None, Ellipsis, integer arrays, or one bool array.

    A basic index (no arrays) gives a view. Raises IndexError for an index that does not fit.
    """
    check_tensors("indexing", x)
    return getitem(x, raw_key(x, key))


def getitem(x: Tensor, key: Any, /) -> Tensor:
    """x[key] for a key made by `raw_key`."""
    return apply(_GETITEM_VIEW if _is_basic(key) else _GETITEM, (x,), {"key": key})


def scatter_add(values: Tensor, key: Any, /, shape: tuple[int, ...]) -> Tensor:
    """Zeros of `shape` with `values` added at `[key]`, a key as of `getitem`: its VJP."""
    return apply(_SCATTER_ADD, (values,), {"key": key, "shape": tuple(shape)})


def scatter_add_along_axis(values: Tensor, indices: Tensor, /, shape: tuple[int, ...], axis: int) -> Tensor:
    """Zeros of `shape` with `values` added at `indices` along `axis`: the VJP of `take_along_axis`."""
    return apply(_SCATTER_ALONG, (values, indices), {"shape": tuple(shape), "axis": axis})


def take(x: Tensor, indices: Any, /, axis: int | None = None) -> Tensor:
    """The elements at `indices` (integers, of any shape) along `axis`, which may be left out for one axis.

    Raises IndexError for indices that are no integers, ValueError for a missing axis.
    """
    check_tensors("take", x)
    if axis is None:
        if x.ndim != 1:
            raise ValueError(f"take needs an axis for a tensor of {x.ndim} axes")
        axis = 0
    if isinstance(indices, (slice, tuple)) or indices is None or indices is Ellipsis:
        raise IndexError(f"take needs integers; got {indices!r}")
    key = raw_key(x, (slice(None),) * one_axis("take", axis, x.ndim) + (indices,))
    if not isinstance(key, tuple):
        raise IndexError("take needs integers; got bools: select with x[mask] instead")
    return getitem(x, key)


def take_along_axis(x: Tensor, indices: Tensor, /, axis: int = -1) -> Tensor:
    """The element of x at each of `indices` along `axis`; all other lengths are those of x.

    Raises IndexError for indices that are no integers, ValueError for a shape that does not fit.
    """
    check_tensors("take_along_axis", x, indices)
    axis = one_axis("take_along_axis", axis, x.ndim)
    if indices.dtype.kind not in ("int", "uint"):
        raise IndexError(f"take_along_axis needs integer indices; got {indices.dtype}")
    if indices.ndim != x.ndim or any(
        n != m for i, (n, m) in enumerate(zip(x.shape, indices.shape, strict=True)) if i != axis
    ):
        raise ValueError(f"indices of shape {indices.shape} do not fit a tensor of shape {x.shape} along axis {axis}")
    return apply(_TAKE_ALONG, (x, indices), {"axis": axis})
