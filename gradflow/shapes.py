"""Shapes, axes and indices as tuples of integers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether an array of `shape` can be repeated along new axes and axes of length 1 to the shape `to`."""
    aligned = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(n in (1, m) for n, m in aligned)


def unravel(place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index of the element at a place in C order."""
    found = []
    for n in reversed(shape):
        place, i = divmod(place, n)
        found.append(i)
    return tuple(reversed(found))


def integers(name: str, given: Any) -> tuple[int, ...]:
    """An integer, or a sequence of integers, as Python ints, whatever library they are of. TypeError for others."""
    try:
        return tuple(map(index, given)) if is_sequence(given) else (index(given),)
    except TypeError:
        raise TypeError(f"{name} takes integers; got {given!r}") from None


def shape_from(given: Any, name: str = "a shape") -> tuple[int, ...]:
    """A shape, from an integer or a sequence of integers. ValueError for anything else."""
    try:
        shape = integers(name, given)
    except TypeError:
        shape = (-1,)
    if any(n < 0 for n in shape):
        raise ValueError(f"{name} is made of integers >= 0; got {given!r}")
    return shape


def is_sequence(x: Any) -> bool:
    """Whether x is something to go through: not so arrays and tensors without axes."""
    return isinstance(x, Iterable) and getattr(x, "shape", None) != ()


def axes_of(axis: int | tuple[int, ...] | None, ndim: int) -> tuple[int, ...]:
    """The axes that `axis` stands for, each in [0, ndim). IndexError where there is no such axis."""
    axes = range(ndim)
    return tuple(axes) if axis is None else tuple(axes[a] for a in (axis if isinstance(axis, tuple) else (axis,)))
