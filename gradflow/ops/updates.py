"""Elements chosen along an axis or by a mask: gather, scatter, masked_fill. All compose other operations."""

from __future__ import annotations

from typing import Any

from gradflow.ops.checks import check_tensors
from gradflow.ops.creation import arange
from gradflow.ops.elementwise import where
from gradflow.ops.indexing import parts, take_along_axis
from gradflow.ops.places import Place, values_for
from gradflow.ops.shape import reshape
from gradflow.pytorch_names import refuse, refuses_keywords
from gradflow.shapes import one_axis
from gradflow.tensor import Tensor

__all__ = ["gather", "masked_fill", "scatter"]


@refuses_keywords
def gather(x: Tensor, indices: Tensor, /, axis: int = -1, dim: None = None) -> Tensor:
    """The element of x at each of `indices` along `axis`, as `take_along_axis`; along others, indices may be shorter.

    indices: integers, with as many axes as x, and at most its lengths except along `axis`: the result has their shape.

    Raises IndexError for indices that are not integers, ValueError for a shape that does not fit.

    >>> import gradflow as gf
    >>> x = gf.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    >>> gf.gather(x, gf.tensor([[2, 0]], dtype="int64")).tolist()
    [[3.0, 1.0]]
    """
    if dim is not None:
        refuse("gather", dim=dim)
    check_tensors("gather", x, indices)
    axis = one_axis("gather", axis, x.ndim)
    _check_lengths("gather", x, indices, axis)
    for a, n in enumerate(indices.shape):
        if a != axis and n != x.shape[a]:
            x = parts(x, a, [(0, n)])[0]
    return take_along_axis(x, indices, axis)


@refuses_keywords
def scatter(x: Tensor, indices: Tensor, values: Any, /, axis: int = -1, add: bool = False, dim: None = None) -> Tensor:
    """A copy of x with each of `values` at its index along `axis`, or added there: the inverse of `gather`.

    out[i, indices[i, j]] = values[i, j] for the last axis of two. Recorded: both x and the values get gradients.

    indices: integers, with as many axes as x, and at most its lengths except along `axis`.
    values: a tensor or a number, broadcast to the shape of the indices.
    add: whether values are added to those of x (default False). Values for one element are added in a fixed order; if
        they are not added, one of them stays, as with `x.at[...].set`.

    Raises IndexError for indices that are not integers, ValueError for shapes that do not fit.

    >>> import gradflow as gf
    >>> x, indices = gf.zeros((2, 3)), gf.tensor([[2], [0]], dtype="int64")
    >>> gf.scatter(x, indices, 1.0).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if dim is not None:
        refuse("scatter", dim=dim)
    check_tensors("scatter", x, indices)
    axis = one_axis("scatter", axis, x.ndim)
    _check_lengths("scatter", x, indices, axis)
    key = tuple(
        indices if a == axis else reshape(arange(n, device=x.device), tuple(n if b == a else 1 for b in range(x.ndim)))
        for a, n in enumerate(indices.shape)
    )
    place = Place(x, key)
    return place.add(values) if add else place.set(values)


def _check_lengths(name: str, x: Tensor, indices: Tensor, axis: int) -> None:
    if indices.dtype.kind not in ("int", "uint"):
        raise IndexError(f"{name} needs integer indices; got {indices.dtype}")
    fits = indices.ndim == x.ndim
    if not fits or any(n > m for a, (n, m) in enumerate(zip(indices.shape, x.shape, strict=True)) if a != axis):
        raise ValueError(
            f"{name}: indices of shape {indices.shape} do not fit a tensor of shape {x.shape} along axis {axis}"
        )


def masked_fill(x: Tensor, mask: Tensor, value: Any, /) -> Tensor:
    """x with `value` where `mask`, a bool tensor that broadcasts with x, is true; there, its gradient is 0.

    value: a number, or a tensor without axes, which gets the sum of the gradients there. The result has the dtype of x.

    Raises TypeError for a mask that is not bool, ValueError for a value with axes or one that the dtype cannot hold.

    >>> import gradflow as gf
    >>> scores = gf.tensor([1.0, 2.0, 3.0])
    >>> gf.softmax(gf.masked_fill(scores, scores > 2, float("-inf"))).tolist()[2]
    0.0
    """
    check_tensors("masked_fill", x, mask)
    if mask.dtype.kind != "bool":
        raise TypeError(f"masked_fill takes a bool mask; got {mask.dtype}: make one with a comparison")
    value = values_for("masked_fill", x, value)
    if isinstance(value, Tensor) and value.ndim:
        raise ValueError(f"masked_fill takes a number, or a tensor without axes; got the shape {value.shape}")
    return where(mask, value, x)
