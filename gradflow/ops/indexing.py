"""Indexing: `x[key]`, take, take_along_axis, and their VJPs, which add to the elements that were taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index as index_of
from typing import Any

from gradflow.autograd.grad_mode import FAST, OFF, current_observer, grad_enabled
from gradflow.autograd.graph import Node, Operation
from gradflow.autograd.mapping import Level
from gradflow.autograd.parts import Part, key_of_range
from gradflow.ops.checks import check_tensors, on_one_backend
from gradflow.ops.host import array_from_host
from gradflow.ops.table import apply, defop
from gradflow.pytorch_names import refuse, refuses_keywords
from gradflow.shapes import broadcasts, check_broadcast, one_axis
from gradflow.tensor import Tensor

__all__ = ["take", "take_along_axis"]


def explain_index(F: Any, shape: Sequence[int], key: Any) -> None:
    """Raise a clear IndexError for a key of `raw_key` that failed on a backend, if its arrays are the reason."""
    parts = key if isinstance(key, tuple) else (key,)
    arrays = [p for p in parts if hasattr(p, "shape")]
    check_broadcast("indexing", [a.shape for a in arrays], IndexError)
    axis = 0
    for i, p in enumerate(parts):
        if p is Ellipsis:
            axis = len(shape) - sum(1 for q in parts[i + 1 :] if q is not None)
        elif p is not None:
            if hasattr(p, "shape") and F.device.type == "cpu":
                wrong = [n for n in F.host_values(p).reshape(-1).tolist() if not -shape[axis] <= n < shape[axis]]
                if wrong:
                    raise IndexError(
                        f"index {wrong[0]} is out of range for axis {axis} of a tensor of shape {tuple(shape)}"
                    ) from None
            axis += 1
    if arrays:
        raise IndexError(f"an index array has elements out of range for a tensor of shape {tuple(shape)}") from None


def explain_assignment(F: Any, x: Any, key: Any, values: Any) -> None:
    """Raise ValueError if `values` do not broadcast to the elements of the array x that a key of `raw_key` selects."""
    chosen = F.getitem(x, key)
    if hasattr(values, "shape") and not broadcasts(values.shape, chosen.shape):
        raise ValueError(
            f"item assignment: a value of shape {tuple(values.shape)} does not broadcast to the shape "
            f"{tuple(chosen.shape)} of the selected elements"
        ) from None


def _take(F: Any, x: Any, key: Any) -> Any:
    try:
        return F.getitem(x, key)
    except IndexError:
        explain_index(F, x.shape, key)
        raise


_GETITEM = defop("take", lambda F, g, _out, _x, key: Part(g, key), forward=_take, exact=True)
_GETITEM_VIEW = defop(
    "getitem", lambda F, g, _out, _x, key: Part(g, key), forward=lambda F, x, key: F.getitem(x, key), view=True
)
_PART = Operation(  # for the views of `parts`; errors call both of them getitem
    "getitem",
    lambda F, x, axis, start, stop: F.getitem(x, key_of_range(axis, start, stop)),
    [lambda F, g, _out, _x, axis, start, stop: Part(g, None, axis, start, stop)],
    view=True,
)
_SCATTER_ADD = defop("scatter_add", lambda F, g, _out, _x, key, shape: F.getitem(g, key), exact=True)
_SCATTER_INTO = Operation(  # not in the table: it changes its first input in place
    "scatter_add",
    lambda F, into, values, key, shape: F.scatter_add(values, key, shape, into),
    [
        lambda F, g, _out, _into, _values, key, shape: g,
        lambda F, g, _out, _into, _values, key, shape: F.getitem(g, key),
    ],
    exact=True,
)


def _take_along(F: Any, x: Any, indices: Any, axis: int) -> Any:
    try:
        return F.take_along_axis(x, indices, axis=axis)
    except IndexError:
        raise IndexError(
            f"take_along_axis: the indices for axis {axis} of a tensor of shape {tuple(x.shape)} must be in "
            f"[-{x.shape[axis]}, {x.shape[axis]})"
        ) from None


_TAKE_ALONG = defop(
    "take_along_axis",
    lambda F, g, _out, _x, indices, axis: F.scatter_add_along_axis(g, indices, _x.shape, axis),
    None,
    forward=_take_along,
    exact=True,
)
_SCATTER_ALONG = defop(
    "scatter_add_along_axis",
    lambda F, g, _out, _x, indices, shape, axis: F.take_along_axis(g, indices, axis=axis),
    None,
    exact=True,
)


def raw_key(x: Tensor, key: Any) -> Any:
    """An index as backends take it: one mask, or a tuple with an Ellipsis, with arrays in place of tensors and lists.

    Because of the Ellipsis, NumPy returns a view and not a number for a single element, as other libraries do. A mask
    that is not the only index is replaced by the indices of its true elements, as in NumPy.

    Raises IndexError for an invalid index or one out of range, DeviceMismatchError for a tensor on another device.
    """
    return _fitting(x, [_raw_part(x, part) for part in (key if isinstance(key, tuple) else (key,))])


def _fitting(x: Tensor, raw: list[Any]) -> Any:
    """An index of parts from `_raw_part`. Raises IndexError if they do not fit x."""
    counts = [0 if p is None or p is Ellipsis else p.ndim if _is_mask(x, p) else 1 for p in raw]
    used, ellipses = sum(counts), sum(1 for p in raw if p is Ellipsis)
    if used > x.ndim:
        raise IndexError(f"too many indices for a tensor of shape {x.shape}: {used}")
    if ellipses > 1:
        raise IndexError("an index can have only one ellipsis")
    axis, found = 0, []
    for p, n in zip(raw, counts, strict=True):
        if p is Ellipsis:
            axis += x.ndim - used
        elif isinstance(p, int) and not -x.shape[axis] <= p < x.shape[axis]:
            raise IndexError(f"index {p} is out of range for axis {axis} of a tensor of shape {x.shape}")
        elif _is_mask(x, p):
            if tuple(p.shape) != x.shape[axis : axis + n]:
                raise IndexError(
                    f"a boolean index of shape {tuple(p.shape)} does not fit a tensor of shape {x.shape} at axis {axis}"
                )
            if len(raw) == 1:
                return p
            if not n:
                raise IndexError("a boolean index without axes must be the only index")
            axis += n
            found += _indices_of(x.backend, p)
            continue
        axis += n
        found.append(p)
    return tuple(found) if ellipses else (*found, Ellipsis)


def _is_mask(x: Tensor, part: Any) -> bool:
    return hasattr(part, "dtype") and x.backend.dtype_name(part.dtype) == "bool"


def _indices_of(F: Any, mask: Any) -> list[Any]:
    """For each axis of a mask, the indices of its true elements."""
    found = []
    for axis, n in enumerate(mask.shape):
        steps = F.arange(n, dtype=F.dtypes["int64"])
        steps = F.reshape(steps, tuple(n if i == axis else 1 for i in range(mask.ndim)))
        found.append(F.getitem(F.broadcast_to(steps, mask.shape), mask))
    return found


def _raw_part(x: Tensor, part: Any) -> Any:
    if part is None or part is Ellipsis or part.__class__ is int:
        return part
    if isinstance(part, slice):
        return slice(*[None if n is None else _index(n) for n in (part.start, part.stop, part.step)])
    if type(part).__name__ == "bool":  # also NumPy's
        raise IndexError("True and False are not indices: use 0 or 1, or a tensor of bools as a mask")
    if isinstance(part, Tensor):
        if part.backend is not x.backend:
            x, part = on_one_backend("indexing", (x, part))
        if part.dtype.is_floating:
            raise IndexError(
                f"an index tensor holds integers or bools; this one is {part.dtype}: create it with dtype='int64' "
                "(Python integers become float32), or convert it with astype('int64')"
            )
        return x.backend.copy(part.array)  # a copy: the backward pass reads it again
    if isinstance(part, (list, tuple, range)):
        try:
            array = x.backend.asarray(_as_lists(part))
            x.backend.dtype_name(array.dtype)
        except (OverflowError, TypeError, ValueError):
            raise IndexError(
                "a list with rows of unequal lengths, or integers of more than 64 bits, is not an index"
            ) from None
    elif not getattr(part, "shape", ()):
        return _index(part)
    elif hasattr(part, "__array__"):
        if x.device.type != "cpu":
            raise IndexError(
                f"a tensor on {x.device} takes index tensors on its device, not NumPy arrays: "
                f"create one with gradflow.tensor(index, device='{x.device}')"
            )
        array = x.backend.from_host(array_from_host(part))
    else:
        raise _no_index(part)
    if 0 in array.shape and not _is_mask(x, array):
        array = x.backend.astype(array, x.backend.dtypes["int64"])
    return _raw_part(x, Tensor(array, x.backend))


def _index(part: Any) -> int:
    """An integer of any library, as a Python int."""
    try:
        return index_of(part)
    except TypeError:
        raise _no_index(part) from None


def _no_index(part: Any) -> IndexError:
    return IndexError(f"an index consists of integers, slices, None, ... and arrays of integers or bools; got {part!r}")


def _as_lists(part: Any) -> Any:
    """Nested sequences of integers or bools, of any library, as Python lists."""
    if isinstance(part, (list, tuple, range)):
        return [p if p.__class__ is int else _as_lists(p) for p in part]
    if isinstance(part, Tensor):
        raise IndexError("a list of tensors is not an index: join them with gradflow.stack")
    if hasattr(part, "tolist"):
        part = part.tolist()
    if isinstance(part, list):
        return _as_lists(part)
    return part if isinstance(part, bool) else _index(part)


def beside(x: Tensor, *others: Any) -> Tensor:
    """x, at the level of the innermost `vmap` that these other arguments, or parts of an index, come from."""
    for other in others:
        for part in other if isinstance(other, tuple) else (other,):
            if isinstance(part, Tensor) and isinstance(part.backend, Level) and part.backend is not x.backend:
                x, _ = on_one_backend("indexing", (x, part))
    return x


def _is_basic(key: Any) -> bool:
    return not any(hasattr(p, "dtype") for p in (key if isinstance(key, tuple) else (key,)))


def index(x: Tensor, key: Any, /) -> Tensor:
    """x[key], as in NumPy: integers, slices, None, Ellipsis, and arrays or lists of integers or bools.

    A basic index (without arrays) returns a view. Indexing with a mask waits for the device, since the values of the
    mask determine the shape. Raises IndexError for an index that does not fit.
    """
    if not isinstance(x, Tensor):
        check_tensors("indexing", x)
    if key.__class__ is int:  # the most frequent kind
        shape = x.array.shape
        if shape and -shape[0] <= key < shape[0]:
            return parts(x, 0, [(key, None)])[0]
    x = beside(x, key)
    return getitem(x, raw_key(x, key))


def getitem(x: Tensor, key: Any, /) -> Tensor:
    """x[key] for a key from `raw_key`."""
    return apply(_GETITEM_VIEW if _is_basic(key) else _GETITEM, (x,), {"key": key})


def parts(x: Tensor, axis: int, bounds: Iterable[tuple[int, int | None]]) -> list[Tensor]:
    """Views of x along `axis`: the slice of each (start, stop), or the element at start if stop is None.

    The nodes hold integers and no key, so that the garbage collector does not visit thousands of keys.
    """
    mode = grad_enabled.get()
    if mode is not FAST and current_observer.get() is not None:
        return [apply(_PART, (x,), {"axis": axis, "start": start, "stop": stop}) for start, stop in bounds]
    memory, backend, node = x._shared_memory(), x.backend, None if mode is OFF else x._node
    getitem, whole, parents, before = backend.getitem, x.array, (node,), (slice(None),) * axis
    found = []
    for start, stop in bounds:
        array = getitem(whole, (*before, start if stop is None else slice(start, stop), ...))
        if node is None:
            out = Tensor(array, backend)
        else:
            parameters = {"axis": axis, "start": start, "stop": stop}
            out = Tensor(array, backend, Node(_PART, backend, parents, None, None, array, parameters))
        memory.add(out)
        found.append(out)
    return found


def scatter_add(values: Tensor, key: Any, /, shape: tuple[int, ...], into: Tensor | None = None) -> Tensor:
    """Zeros of `shape` (or `into`, in place) with `values` added at a key from `raw_key`."""
    parameters = {"key": key, "shape": tuple(shape)}
    if into is None:
        return apply(_SCATTER_ADD, (values,), parameters)
    return apply(_SCATTER_INTO, (into, values), parameters)


def scatter_add_along_axis(values: Tensor, indices: Tensor, /, shape: tuple[int, ...], axis: int) -> Tensor:
    """Zeros of `shape` with `values` added at `indices` along `axis`: the VJP of `take_along_axis`."""
    return apply(_SCATTER_ALONG, (values, indices), {"shape": tuple(shape), "axis": axis})


@refuses_keywords
def take(x: Tensor, indices: Any, /, axis: int | None = None, dim: None = None) -> Tensor:
    """The elements of x at `indices` (integers, of any shape) along `axis`.

    Raises IndexError for indices that are not integers, ValueError without an axis unless x has only one.

    >>> import gradflow as gf
    >>> x = gf.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    >>> gf.take(x, [0, 0], axis=0).sum().backward()
    >>> x.grad.tolist()
    [[2.0, 2.0], [0.0, 0.0]]
    """
    if dim is not None:
        refuse("take", dim=dim)
    check_tensors("take", x)
    if axis is None:
        if x.ndim != 1:
            raise ValueError(f"take needs an axis for a tensor of {x.ndim} axes")
        axis = 0
    if isinstance(indices, (slice, tuple)) or indices is None or indices is Ellipsis:
        raise IndexError(f"take needs integers; got {indices!r}")
    x = beside(x, indices)
    part = _raw_part(x, indices)
    if _is_mask(x, part):
        raise IndexError("take needs integers; got bools: select with x[mask] instead")
    return getitem(x, _fitting(x, [slice(None)] * one_axis("take", axis, x.ndim) + [part]))


@refuses_keywords
def take_along_axis(x: Tensor, indices: Tensor, /, axis: int = -1, dim: None = None) -> Tensor:
    """The element of x at each of `indices` along `axis`: out[i, j] = x[i, indices[i, j]] for the last axis of two.

    indices: integers, of the shape of x except along `axis`.

    Raises IndexError for indices that are not integers, ValueError for a shape that does not fit.

    >>> import gradflow as gf
    >>> logits, labels = gf.tensor([[0.1, 2.0], [5.0, 1.0]]), gf.tensor([1, 0], dtype="int64")
    >>> gf.take_along_axis(logits, labels[:, None], axis=1).tolist()
    [[2.0], [5.0]]
    """
    if dim is not None:
        refuse("take_along_axis", dim=dim)
    check_tensors("take_along_axis", x, indices)
    axis = one_axis("take_along_axis", axis, x.ndim)
    if indices.dtype.kind not in ("int", "uint"):
        raise IndexError(f"take_along_axis needs integer indices; got {indices.dtype}")
    if indices.ndim != x.ndim or any(
        n != m for i, (n, m) in enumerate(zip(x.shape, indices.shape, strict=True)) if i != axis
    ):
        raise ValueError(f"indices of shape {indices.shape} do not fit a tensor of shape {x.shape} along axis {axis}")
    return apply(_TAKE_ALONG, (x, indices), {"axis": axis})
