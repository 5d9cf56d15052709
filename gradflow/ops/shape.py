"""Operations on shapes and the order of elements: reshape, permute, join, split, repeat, pad."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from gradflow.autograd.grad_mode import FAST, grad_enabled
from gradflow.autograd.graph import Node, Operation
from gradflow.dtypes import promote, weak_number
from gradflow.ops.checks import check_tensors, kind_of
from gradflow.ops.indexing import parts
from gradflow.ops.table import apply, cast, defop
from gradflow.pytorch_names import refuse, refuses_keywords
from gradflow.shapes import Axis, broadcasts, integers, is_sequence, normalize_axes, one_axis, shape_from
from gradflow.tensor import Tensor

__all__ = [
    "broadcast_to", "concat", "expand_dims", "flip", "matrix_transpose", "moveaxis", "pad", "permute_dims",
    "repeat", "reshape", "split", "squeeze", "stack", "swapaxes", "tile", "unbind",
]  # fmt: skip

_RESHAPE = defop("reshape", lambda F, g, _out, _x, shape: F.reshape(g, _x.shape), view=True)
_BROADCAST = defop("broadcast_to", lambda F, g, _out, _x, shape: g, view=True)  # the walk sums g to the shape of x
_PERMUTE = defop(
    "permute_dims",
    lambda F, g, _out, _x, axes: F.permute_dims(g, tuple(sorted(range(len(axes)), key=axes.__getitem__))),
    view=True,
)
_TRANSPOSE = defop("matrix_transpose", lambda F, g, _out, _x: F.matrix_transpose(g), view=True)
_FLIP = defop("flip", lambda F, g, _out, _x, axis: F.flip(g, axis=axis), view=True)


def reshape(x: Tensor, /, shape: Sequence[int] | int) -> Tensor:
    """x in another shape. One length may be -1: it is computed. Raises ValueError if the number of elements differs.

    >>> import gradflow as gf
    >>> x = gf.arange(6)
    >>> gf.reshape(x, (2, -1)).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    check_tensors("reshape", x)
    lengths = integers("reshape", shape)
    known = math.prod(n for n in lengths if n != -1)
    unknown = lengths.count(-1)
    size = x.size
    fits = size == known if not unknown else known and size % known == 0
    if unknown > 1 or any(n < -1 for n in lengths) or not fits:
        raise ValueError(f"a tensor of shape {x.shape} cannot be reshaped to {lengths}")
    return apply(_RESHAPE, (x,), {"shape": tuple(size // known if n == -1 else n for n in lengths)})


def broadcast_to(x: Tensor, /, shape: Sequence[int] | int) -> Tensor:
    """x broadcast to `shape`. Raises ValueError if it does not broadcast.

    >>> import gradflow as gf
    >>> bias = gf.tensor([1.0, 2.0], requires_grad=True)
    >>> gf.broadcast_to(bias, (3, 2)).sum().backward()
    >>> bias.grad.tolist()
    [3.0, 3.0]
    """
    check_tensors("broadcast_to", x)
    shape = shape_from(shape)
    if not broadcasts(x.shape, shape):
        raise ValueError(f"a tensor of shape {x.shape} does not broadcast to {shape}")
    return apply(_BROADCAST, (x,), {"shape": shape})


def permute_dims(x: Tensor, /, axes: Sequence[int]) -> Tensor:
    """x with its axes in another order: axis i of the result is axis axes[i] of x.

    Raises ValueError unless `axes` names each axis once.

    >>> import gradflow as gf
    >>> images = gf.zeros((10, 32, 24, 3))
    >>> gf.permute_dims(images, (0, 3, 1, 2)).shape
    (10, 3, 32, 24)
    """
    check_tensors("permute_dims", x)
    order = normalize_axes(integers("permute_dims", axes), x.ndim)
    if len(order) != x.ndim:
        raise ValueError(f"permute_dims needs all {x.ndim} axes; got {axes!r}")
    return apply(_PERMUTE, (x,), {"axes": order})


def matrix_transpose(x: Tensor, /) -> Tensor:
    """x with its last two axes exchanged. Raises ValueError for fewer than two axes.

    >>> import gradflow as gf
    >>> gf.matrix_transpose(gf.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).tolist()
    [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
    """
    check_tensors("matrix_transpose", x)
    if x.ndim < 2:
        raise ValueError(f"matrix_transpose needs at least two axes; the shape is {x.shape}")
    return apply(_TRANSPOSE, (x,))


@refuses_keywords
def squeeze(x: Tensor, /, axis: Axis = None, dim: None = None) -> Tensor:
    """x without the axes of length 1 that `axis` names (default: all). Raises ValueError for one of another length.

    >>> import gradflow as gf
    >>> x = gf.zeros((1, 3, 1))
    >>> gf.squeeze(x).shape, gf.squeeze(x, axis=0).shape
    ((3,), (3, 1))
    """
    if dim is not None:
        refuse("squeeze", dim=dim)
    check_tensors("squeeze", x)
    if axis is None:
        axes = tuple(i for i, n in enumerate(x.shape) if n == 1)
    else:
        axes = normalize_axes(axis, x.ndim)
        if any(x.shape[a] != 1 for a in axes):
            raise ValueError(f"squeeze takes axes of length 1; the shape is {x.shape}, the axis {axis}")
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in axes))


@refuses_keywords
def expand_dims(x: Tensor, /, axis: int | tuple[int, ...], dim: None = None) -> Tensor:
    """x with new axes of length 1 at `axis`, counted in the result. Raises ValueError for one out of range.

    >>> import gradflow as gf
    >>> x = gf.zeros((3, 4))
    >>> gf.expand_dims(x, 0).shape, gf.expand_dims(x, -1).shape
    ((1, 3, 4), (3, 4, 1))
    """
    if dim is not None:
        refuse("expand_dims", dim=dim)
    check_tensors("expand_dims", x)
    ndim = x.ndim + (len(axis) if isinstance(axis, (tuple, list)) else 1)
    axes = normalize_axes(axis, ndim)
    lengths = iter(x.shape)
    return reshape(x, tuple(1 if i in axes else next(lengths) for i in range(ndim)))


def moveaxis(x: Tensor, source: int | tuple[int, ...], destination: int | tuple[int, ...], /) -> Tensor:
    """x with the axes `source` moved to the positions `destination`; the others keep their order.

    Raises ValueError if they are not equally many.

    >>> import gradflow as gf
    >>> gf.moveaxis(gf.zeros((10, 32, 24, 3)), -1, 1).shape
    (10, 3, 32, 24)
    """
    check_tensors("moveaxis", x)
    sources, places = normalize_axes(source, x.ndim), normalize_axes(destination, x.ndim)
    if len(sources) != len(places):
        raise ValueError(f"moveaxis needs a destination for each source; got {source} and {destination}")
    order = [a for a in range(x.ndim) if a not in sources]
    for place, a in sorted(zip(places, sources, strict=True)):
        order.insert(place, a)
    return apply(_PERMUTE, (x,), {"axes": tuple(order)})


def swapaxes(x: Tensor, axis1: int, axis2: int, /) -> Tensor:
    """x with two axes, axis1 and axis2, exchanged.

    >>> import gradflow as gf
    >>> gf.swapaxes(gf.zeros((2, 3, 4)), 0, 2).shape
    (4, 3, 2)
    """
    check_tensors("swapaxes", x)
    a, b = one_axis("swapaxes", axis1, x.ndim), one_axis("swapaxes", axis2, x.ndim)
    order = list(range(x.ndim))
    order[a], order[b] = b, a
    return apply(_PERMUTE, (x,), {"axes": tuple(order)})


@refuses_keywords
def repeat(x: Tensor, repeats: int, /, axis: int | None = None, dim: None = None) -> Tensor:
    """x with each element repeated `repeats` times along `axis` (default: of x flattened), as `repeat_interleave`.

    >>> import gradflow as gf
    >>> x = gf.tensor([[1, 2], [3, 4]])
    >>> gf.repeat(x, 2).tolist(), gf.repeat(x, 2, axis=1).tolist()
    ([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0], [[1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 4.0, 4.0]])
    """
    if dim is not None:
        refuse("repeat", dim=dim)
    check_tensors("repeat", x)
    if axis is None:
        x, axis = reshape(x, -1), 0
    axis = one_axis("repeat", axis, x.ndim)
    (n,) = shape_from((repeats,), "repeats of repeat")
    before, after = x.shape[: axis + 1], x.shape[axis + 1 :]
    out = broadcast_to(reshape(x, (*before, 1, *after)), (*before, n, *after))
    return reshape(out, (*before[:-1], before[-1] * n, *after))


def tile(x: Tensor, repetitions: int | Sequence[int], /) -> Tensor:
    """x repeated as a whole, `repetitions` times along each axis (the last axes, if there are fewer numbers).

    >>> import gradflow as gf
    >>> gf.tile(gf.tensor([1.0, 2.0]), (2, 2)).tolist()
    [[1.0, 2.0, 1.0, 2.0], [1.0, 2.0, 1.0, 2.0]]
    """
    check_tensors("tile", x)
    times = shape_from(repetitions, "repetitions of tile")
    ndim = max(x.ndim, len(times))
    times, shape = (1,) * (ndim - len(times)) + times, (1,) * (ndim - x.ndim) + x.shape
    single, whole = [], []
    for t, n in zip(times, shape, strict=True):
        single += [1, n]
        whole += [t, n]
    out = broadcast_to(reshape(x, single), whole)
    return reshape(out, tuple(t * n for t, n in zip(times, shape, strict=True)))


@refuses_keywords
def flip(x: Tensor, /, axis: Axis = None, dims: None = None) -> Tensor:
    """x with its elements in reverse order along `axis` (default: along all axes).

    >>> import gradflow as gf
    >>> x = gf.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> gf.flip(x).tolist(), gf.flip(x, axis=0).tolist()
    ([[4.0, 3.0], [2.0, 1.0]], [[3.0, 4.0], [1.0, 2.0]])
    """
    if dims is not None:
        refuse("flip", dims=dims)
    check_tensors("flip", x)
    return apply(_FLIP, (x,), {"axis": normalize_axes(axis, x.ndim)})


def _concat_rule(
    F: Any, g: Any, out: Any, *xs: Any, needs: Sequence[bool], axis: int, lengths: tuple[int, ...]
) -> list[Any]:
    gradients, start = [], 0
    for need, length in zip(needs, lengths, strict=True):
        key = (slice(None),) * axis + (slice(start, start + length), ...)
        gradients.append(F.getitem(g, key) if need else None)
        start += length
    return gradients


_CONCAT = defop(
    "concat",
    forward=lambda F, *xs, axis, lengths: F.concat(list(xs), axis=axis),
    joint=_concat_rule,
    joint_reads_inputs=False,
    exact=True,
)


def _stack_rule(F: Any, g: Any, out: Any, *xs: Any, needs: Sequence[bool], axis: int) -> list[Any]:
    before = (slice(None),) * axis
    return [F.getitem(g, (*before, i, ...)) if need else None for i, need in enumerate(needs)]


_STACK = defop(
    "stack",
    forward=lambda F, *xs, axis: F.stack(list(xs), axis=axis),
    joint=_stack_rule,
    joint_reads_inputs=False,
)


@refuses_keywords
def concat(arrays: Sequence[Tensor], /, axis: int = 0, dim: None = None) -> Tensor:
    """The tensors joined along `axis`. Raises ValueError unless their shapes are equal except along it.

    >>> import gradflow as gf
    >>> x, y = gf.ones((2, 2), requires_grad=True), gf.zeros((2, 1))
    >>> gf.concat([x, y], axis=1).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]]
    """
    if dim is not None:
        refuse("concat", dim=dim)
    arrays = _same_dtype("concat", arrays)
    axis = one_axis("concat", axis, arrays[0].ndim)
    shapes = [x.array.shape for x in arrays]
    several = set(shapes)
    if len({(len(shape), *shape[:axis], *shape[axis + 1 :]) for shape in several}) > 1:
        raise ValueError(f"concat along axis {axis} needs equal shapes except along that axis; got {_listed(several)}")
    return _joined(_CONCAT, arrays, {"axis": axis, "lengths": tuple([shape[axis] for shape in shapes])})


@refuses_keywords
def stack(arrays: Sequence[Tensor], /, axis: int = 0, dim: None = None) -> Tensor:
    """The tensors joined along a new axis, at `axis` of the result. Raises ValueError unless their shapes are equal.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0, 2.0])
    >>> gf.stack([x, 10 * x]).tolist(), gf.stack([x, 10 * x], axis=1).tolist()
    ([[1.0, 2.0], [10.0, 20.0]], [[1.0, 10.0], [2.0, 20.0]])
    """
    if dim is not None:
        refuse("stack", dim=dim)
    arrays = _same_dtype("stack", arrays)
    shapes = {x.array.shape for x in arrays}
    if len(shapes) > 1:
        raise ValueError(f"stack needs equal shapes; got {_listed(shapes)}")
    return _joined(_STACK, arrays, {"axis": one_axis("stack", axis, arrays[0].ndim + 1)})


def _same_dtype(name: str, arrays: Sequence[Tensor]) -> list[Tensor]:
    if not isinstance(arrays, Iterable):
        raise TypeError(f"{name} takes a sequence of tensors; got {kind_of(arrays)}")
    arrays = list(arrays)
    if not arrays:
        raise ValueError(f"{name} needs at least one tensor")
    check_tensors(name, *arrays)
    if len({x.array.dtype for x in arrays}) == 1:
        return arrays
    dtype = functools.reduce(promote, [x.dtype for x in arrays])
    return [cast(x, dtype) for x in arrays]


def _listed(shapes: Iterable[Any]) -> str:
    return ", ".join(sorted(str(tuple(shape)) for shape in shapes))


def _joined(op: Operation, tensors: list[Tensor], parameters: dict[str, Any]) -> Tensor:
    """`apply`, faster for thousands of tensors: for an operation that saves none of them."""
    if grad_enabled.get() is not FAST or any(x.backend is not tensors[0].backend for x in tensors):
        return apply(op, tensors, parameters)
    backend, parents = tensors[0].backend, tuple([x._node for x in tensors])
    result = op.forward(backend, *[x.array for x in tensors], **parameters)
    node = Node(op, backend, parents, None, None, result, parameters) if any(parents) else None
    return Tensor(result, backend, node)


@refuses_keywords
def split(x: Tensor, /, indices_or_sections: int | Sequence[int], axis: int = 0, dim: None = None) -> list[Tensor]:
    """The pieces of x along `axis`, as views, as in `numpy.split`.

    indices_or_sections: the number of equal pieces, or the indices at which the later pieces start.

    Raises ValueError if the number of pieces does not divide the length of the axis.

    >>> import gradflow as gf
    >>> x = gf.arange(6)
    >>> [piece.tolist() for piece in gf.split(x, 3)], [piece.tolist() for piece in gf.split(x, [1, 4])]
    ([[0, 1], [2, 3], [4, 5]], [[0], [1, 2, 3], [4, 5]])
    """
    if dim is not None:
        refuse("split", dim=dim)
    check_tensors("split", x)
    axis = one_axis("split", axis, x.ndim)
    n = x.shape[axis]
    cuts = integers("split", indices_or_sections)
    if not is_sequence(indices_or_sections):
        (pieces,) = cuts
        if pieces < 1 or n % pieces:
            raise ValueError(f"an axis of length {n} does not split into {pieces} equal pieces")
        cuts = tuple(range(n // pieces, n, n // pieces)) if n else (0,) * (pieces - 1)
    return parts(x, axis, zip([0, *cuts], [*cuts, n], strict=True))


@refuses_keywords
def unbind(x: Tensor, /, axis: int = 0, dim: None = None) -> list[Tensor]:
    """The slices of x along `axis`, as views without that axis: the inverse of `stack` (Array API: `unstack`).

    >>> import gradflow as gf
    >>> rows = gf.unbind(gf.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> [row.tolist() for row in rows]
    [[1.0, 2.0], [3.0, 4.0]]
    """
    if dim is not None:
        refuse("unbind", dim=dim)
    check_tensors("unbind", x)
    axis = one_axis("unbind", axis, x.ndim)
    return parts(x, axis, zip(range(x.shape[axis]), itertools.repeat(None)))


def _interior(pad_width: Sequence[tuple[int, int]], shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(before, before + n) for (before, _), n in zip(pad_width, shape, strict=True))


def _pad_forward(F: Any, x: Any, pad_width: tuple[tuple[int, int], ...], value: float) -> Any:
    out = F.full(tuple(n + a + b for n, (a, b) in zip(x.shape, pad_width, strict=True)), value, dtype=x.dtype)
    return F.put(out, _interior(pad_width, x.shape), x)


_PAD = defop(
    "pad",
    lambda F, g, _out, _x, pad_width, value: F.getitem(g, _interior(pad_width, _x.shape)),
    forward=_pad_forward,
    exact=True,
)


def pad(x: Tensor, /, pad_width: int | Sequence[Any], constant_values: float = 0.0) -> Tensor:
    """x with a border of `constant_values`.

    pad_width: as in NumPy, the number of elements on both sides, or (before, after), or a sequence of such pairs or
    (width,), one for each axis or one for all.

    Raises ValueError for a negative width, or if there is not a pair for each axis.

    >>> import gradflow as gf
    >>> gf.pad(gf.tensor([[1.0, 2.0]]), ((0, 1), (1, 0))).tolist()
    [[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]
    """
    check_tensors("pad", x)
    nested = isinstance(pad_width, Iterable) and is_sequence(pad_width) and any(map(is_sequence, pad_width))
    given = [integers("pad", p) for p in pad_width] if nested else [integers("pad", pad_width)]  # type: ignore[union-attr]
    pairs = [p * 2 if len(p) == 1 else p for p in (given * x.ndim if len(given) == 1 else given)]
    if len(pairs) != x.ndim or any(len(p) != 2 or min(p) < 0 for p in pairs):
        raise ValueError(
            f"pad_width is an integer >= 0, (before, after), or {x.ndim} such pairs for this tensor of {x.ndim} axes; "
            f"got {pad_width!r}"
        )
    value = weak_number("pad", constant_values, x.dtype)
    return apply(_PAD, (x,), {"pad_width": tuple(pairs), "value": value})
