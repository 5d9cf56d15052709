"""Shapes, axes and indices as tuples of integers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

Axis = int | tuple[int, ...] | None
"""One axis, several axes, or None for all."""


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether an array of `shape` broadcasts to the shape `to`."""
    aligned = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(n in (1, m) for n, m in aligned)


def check_broadcast(name: str, shapes: Sequence[Sequence[int]], error: type[Exception] = ValueError) -> None:
    """Raise an error that names the operation and the shapes if these do not broadcast together."""
    lengths: dict[int, int] = {}
    for shape in shapes:
        for axis, n in enumerate(reversed(shape)):
            if n != 1 and lengths.setdefault(axis, n) != n:
                listed = " and ".join(str(tuple(shape)) for shape in shapes)
                raise error(
                    f"{name}: the shapes {listed} do not broadcast; aligned at the last axis, lengths must be "
                    "equal or 1: reshape one"
                ) from None


def unravel(position: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index of an element from its position in C order."""
    found = []
    for n in reversed(shape):
        position, i = divmod(position, n)
        found.append(i)
    return tuple(reversed(found))


def integers(name: str, given: Any) -> tuple[int, ...]:
    """An integer or a sequence of integers, of any library, as Python ints. Raises TypeError for anything else."""
    try:
        return tuple(map(index, given)) if is_sequence(given) else (index(given),)
    except TypeError:
        raise TypeError(f"{name} takes integers; got {given!r}") from None


def integer(name: str, given: Any) -> int:
    """An integer of any library as a Python int. Raises TypeError for anything else."""
    try:
        return index(given)
    except TypeError:
        raise TypeError(f"{name} is an integer; got {given!r}") from None


def shape_from(given: Any, name: str = "a shape") -> tuple[int, ...]:
    """A shape from an integer or a sequence of integers. Raises ValueError if they are not integers >= 0."""
    try:
        shape = integers(name, given)
    except TypeError:
        shape = (-1,)
    if any(n < 0 for n in shape):
        raise ValueError(f"{name} is made of integers >= 0; got {given!r}")
    return shape


def is_sequence(x: Any) -> bool:
    """Whether x can be iterated over: arrays and tensors without axes cannot."""
    return isinstance(x, Iterable) and getattr(x, "shape", None) != ()


def axes_of(axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes that `axis` names, each in [0, ndim). Raises IndexError for an axis out of range."""
    axes = range(ndim)
    return tuple(axes) if axis is None else tuple(axes[a] for a in (axis if isinstance(axis, tuple) else (axis,)))


def normalize_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes that `axis` names, each in [0, ndim), with error messages for users.

    Raises ValueError for an axis that is out of range or named twice, TypeError for anything but integers.
    """
    if axis is None:
        return tuple(range(ndim))
    try:
        axes = tuple(map(index, axis)) if isinstance(axis, (tuple, list)) else (index(axis),)
    except TypeError:
        raise TypeError(f"an axis is an int or a tuple of int; got {axis!r}") from None
    for a in axes:
        if not -ndim <= a < ndim:
            raise ValueError(f"axis {a} is out of range for a tensor of {ndim} axes")
    normal = tuple(a % ndim for a in axes)
    if len(set(normal)) != len(normal):
        raise ValueError(f"an axis is named twice in {axis!r}")
    return normal


def one_axis(name: str, axis: Any, ndim: int) -> int:
    """The axis of the operation `name`, in [0, ndim).

    Raises ValueError for an axis out of range, TypeError for anything but an integer.
    """
    try:
        return normalize_axes(index(axis), ndim)[0]
    except TypeError:
        raise TypeError(f"{name} takes one axis, an integer; got {axis!r}") from None
