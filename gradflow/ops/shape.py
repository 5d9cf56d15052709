"""Operations that move elements without changing them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradflow.dtypes import promote
from gradflow.ops.reductions import normalize_axes
from gradflow.ops.table import apply, cast, check_tensors, defop
from gradflow.tensor import Tensor

_RESHAPE = defop("reshape", lambda F, g, _out, _x, shape: F.reshape(g, _x.shape), view=True)
_BROADCAST = defop("broadcast_to", lambda F, g, _out, _x, shape: g, view=True)  # the engine sums it back
_PERMUTE = defop(
    "permute_dims",
    lambda F, g, _out, _x, axes: F.permute_dims(g, tuple(sorted(range(len(axes)), key=axes.__getitem__))),
    view=True,
)
_TRANSPOSE = defop("matrix_transpose", lambda F, g, _out, _x: F.matrix_transpose(g), view=True)
_FLIP = defop("flip", lambda F, g, _out, _x, axis: F.flip(g, axis=axis), view=True)


def reshape(x: Tensor, /, shape: Sequence[int] | int) -> Tensor:
    """The same elements in another shape; one length may be -1. ValueError where the numbers of elements differ."""
    check_tensors("reshape", x)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    known = math.prod(n for n in shape if n != -1)
    unknown = shape.count(-1)
    fits = x.size == known if not unknown else known and x.size % known == 0
    if unknown > 1 or any(n < -1 for n in shape) or not fits:
        raise ValueError(f"a tensor of shape {x.shape} cannot be reshaped to {shape}")
    return apply(_RESHAPE, (x,), {"shape": tuple(x.size // known if n == -1 else n for n in shape)})


def broadcast_to(x: Tensor, /, shape: Sequence[int]) -> Tensor:
    """x repeated along new axes and axes of length 1 to `shape`. ValueError where that cannot be."""
    check_tensors("broadcast_to", x)
    shape = tuple(shape)
    tail = shape[len(shape) - x.ndim :]
    if len(shape) < x.ndim or any(n not in (1, m) for n, m in zip(x.shape, tail, strict=True)):
        raise ValueError(f"a tensor of shape {x.shape} does not broadcast to {shape}")
    return apply(_BROADCAST, (x,), {"shape": shape})


def permute_dims(x: Tensor, /, axes: Sequence[int]) -> Tensor:
    """The axes in another order: axis i of the result is axis axes[i] of x. ValueError where not all are named once."""
    check_tensors("permute_dims", x)
    order = normalize_axes(tuple(axes), x.ndim)
    if len(order) != x.ndim:
        raise ValueError(f"permute_dims needs all {x.ndim} axes; got {tuple(axes)}")
    return apply(_PERMUTE, (x,), {"axes": order})


def matrix_transpose(x: Tensor, /) -> Tensor:
    """The last two axes exchanged. ValueError for fewer than two."""
    check_tensors("matrix_transpose", x)
    if x.ndim < 2:
        raise ValueError(f"matrix_transpose needs at least two axes; the shape is {x.shape}")
    return apply(_TRANSPOSE, (x,))


def squeeze(x: Tensor, /, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """Without the axes of length 1 that `axis` names, or without all. ValueError for one of another length."""
    check_tensors("squeeze", x)
    if axis is None:
        axes = tuple(i for i, n in enumerate(x.shape) if n == 1)
    else:
        axes = normalize_axes(axis, x.ndim)
        if any(x.shape[a] != 1 for a in axes):
            raise ValueError(f"squeeze takes axes of length 1; the shape is {x.shape}, the axis {axis}")
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in axes))


def expand_dims(x: Tensor, /, axis: int | tuple[int, ...]) -> Tensor:
    """With new axes of length 1 where `axis` says, counted in the result. ValueError for one out of range."""
    check_tensors("expand_dims", x)
    ndim = x.ndim + (1 if isinstance(axis, int) else len(axis))
    axes = normalize_axes(axis, ndim)
    lengths = iter(x.shape)
    return reshape(x, tuple(1 if i in axes else next(lengths) for i in range(ndim)))


def flip(x: Tensor, /, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """The elements in reverse order along `axis`, or along all axes."""
    check_tensors("flip", x)
    return apply(_FLIP, (x,), {"axis": normalize_axes(axis, x.ndim)})


def _concat_rule(
    F: Any, g: Any, out: Any, *xs: Any, needs: Sequence[bool], into: Any, axis: int, lengths: tuple[int, ...]
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
)


def concat(arrays: Sequence[Tensor], /, axis: int = 0) -> Tensor:
    """The tensors one after another along `axis`; all other lengths are equal. ValueError where they are not."""
    arrays = _same_dtype("concat", arrays)
    axis = normalize_axes(axis, arrays[0].ndim)[0]
    others = {x.shape[:axis] + x.shape[axis + 1 :] for x in arrays}
    if len(others) > 1 or len({x.ndim for x in arrays}) > 1:
        shapes = ", ".join(str(x.shape) for x in arrays)
        raise ValueError(f"concat along axis {axis} needs equal shapes but for that axis; got {shapes}")
    return apply(_CONCAT, arrays, {"axis": axis, "lengths": tuple(x.shape[axis] for x in arrays)})


def stack(arrays: Sequence[Tensor], /, axis: int = 0) -> Tensor:
    """Tensors of one shape side by side on a new axis. ValueError where the shapes differ."""
    arrays = _same_dtype("stack", arrays)
    if len({x.shape for x in arrays}) > 1:
        raise ValueError(f"stack needs equal shapes; got {', '.join(str(x.shape) for x in arrays)}")
    axis = normalize_axes(axis, arrays[0].ndim + 1)[0]
    return concat([expand_dims(x, axis) for x in arrays], axis=axis)


def _same_dtype(name: str, arrays: Sequence[Tensor]) -> list[Tensor]:
    arrays = list(arrays)
    if not arrays:
        raise ValueError(f"{name} needs at least one tensor")
    check_tensors(name, *arrays)
    dtype = arrays[0].dtype
    for x in arrays[1:]:
        dtype = promote(dtype, x.dtype)
    return [cast(x, dtype) for x in arrays]


def split(x: Tensor, /, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """The pieces of x along `axis`: as many equal ones as a number says, or cut before each index of a sequence.

    As `numpy.split`. ValueError where a number does not divide the length.
    """
    check_tensors("split", x)
    axis = normalize_axes(axis, x.ndim)[0]
    n = x.shape[axis]
    if isinstance(indices_or_sections, int):
        if indices_or_sections < 1 or n % indices_or_sections:
            raise ValueError(f"an axis of length {n} does not split into {indices_or_sections} equal pieces")
        step = n // indices_or_sections
        cuts = [i * step for i in range(1, indices_or_sections)]
    else:
        cuts = list(indices_or_sections)
    bounds = zip([0, *cuts], [*cuts, n], strict=True)
    return [x[(slice(None),) * axis + (slice(start, stop),)] for start, stop in bounds]


def _interior(pad_width: Sequence[tuple[int, int]], shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(before, before + n) for (before, _), n in zip(pad_width, shape, strict=True))


def _pad_forward(F: Any, x: Any, pad_width: tuple[tuple[int, int], ...], value: float) -> Any:
    out = F.full(tuple(n + a + b for n, (a, b) in zip(x.shape, pad_width, strict=True)), value, dtype=x.dtype)
    F.setitem(out, _interior(pad_width, x.shape), x)
    return out


_PAD = defop(
    "pad",
    lambda F, g, _out, _x, pad_width, value: F.getitem(g, _interior(pad_width, _x.shape)),
    forward=_pad_forward,
)


def pad(x: Tensor, /, pad_width: int | Sequence[Any], constant_values: float = 0.0) -> Tensor:
    """x with a border of one value. `pad_width`: a number, (before, after), or such a pair for each axis, as in NumPy.

    Raises ValueError for a negative width or a number of pairs that is not that of the axes.
    """
    check_tensors("pad", x)
    if isinstance(pad_width, int):
        pairs: list[Any] = [(pad_width, pad_width)] * x.ndim
    elif len(pad_width) == 2 and all(isinstance(n, int) for n in pad_width):
        pairs = [tuple(pad_width)] * x.ndim
    else:
        pairs = [tuple(p) for p in pad_width]
    if len(pairs) != x.ndim or any(len(p) != 2 or min(p) < 0 for p in pairs):
        raise ValueError(f"pad_width must give (before, after) >= 0 for each of {x.ndim} axes; got {pad_width!r}")
    value = float(constant_values) if x.dtype.is_floating else int(constant_values)
    return apply(_PAD, (x,), {"pad_width": tuple(pairs), "value": value})
