"""Which launches of a step may run at the same time: `levels` puts them into groups, in levels.

Two launches conflict if they touch the same bytes and one of them writes there. All of a level is done before the next
one begins. In a group, all launches have the same number of items; for each range of items they run one after another.
So launches that conflict are in different levels, or in one group if each item of the later one conflicts only with the
same item of the earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradflow_numpy.native.kernels import Launch


class Access(NamedTuple):
    """What a launch does with the memory of an array.

    start, stop: addresses. by_items: None, or what tells arrays apart whose items have other parts of the same memory.
    """

    start: int
    stop: int
    writes: bool
    by_items: Any


def levels(launches: Sequence[Launch], after_first: Iterable[int] = ()) -> list[list[list[int]]]:
    """The launches by their numbers, in groups, in levels. Launches of a group are in the given order.

    after_first: the launches that must not be in the first level.
    """
    touched = [accesses(each) for each in launches]
    edges = sorted({edge for each in touched for access in each for edge in access[:2]})
    part_at = {edge: i for i, edge in enumerate(edges)}
    writers: list[tuple[int, Access] | None] = [None] * len(edges)  # of each part of memory between two edges
    readers: list[list[tuple[int, Access]]] = [[] for _ in edges]
    held = set(after_first)
    level_of: list[int] = []
    for i, (launch, own) in enumerate(zip(launches, touched, strict=True)):
        level = 1 if i in held else 0
        for access in own:
            for part in range(part_at[access.start], part_at[access.stop]):
                writer = writers[part]
                before = [] if writer is None else [writer]
                for j, other in before + readers[part] if access.writes else before:
                    same = other.by_items is not None and other[:2] == access[:2] and other.by_items == access.by_items
                    joins = same and launches[j].items == launch.items
                    level = max(level, level_of[j] + (0 if joins else 1))
        for access in own:
            for part in range(part_at[access.start], part_at[access.stop]):
                if access.writes:
                    writers[part] = i, access
                    readers[part] = []
                else:
                    readers[part].append((i, access))
        level_of.append(level)
    found: list[dict[int, list[int]]] = [{} for _ in range(max(level_of, default=-1) + 1)]
    for i, level in enumerate(level_of):
        found[level].setdefault(launches[i].items, []).append(i)
    return [list(groups.values()) for groups in found]


def accesses(launch: Launch) -> list[Access]:
    """What a launch does with its arrays."""
    found = []
    for letter, x in zip(launch.kernel.access, launch.arguments, strict=True):
        if letter not in "if" and x is not None and x.size:
            start, stop = bounds(x)
            by_items = x.strides[0] * x.shape[0] // launch.items if letter in "rwu" and x.ndim and launch.items else None
            found.append(Access(start, stop, letter not in "rR", by_items))
    return found


def bounds(x: Any) -> tuple[int, int]:
    """The first address of the memory of an array, and the one after the last."""
    start = x.__array_interface__["data"][0]
    if x.flags.c_contiguous:
        return start, start + x.nbytes
    ends = [(n - 1) * stride for n, stride in zip(x.shape, x.strides, strict=True)]
    return start + sum(min(e, 0) for e in ends), start + sum(max(e, 0) for e in ends) + x.itemsize


def root(x: np.ndarray[Any, Any]) -> Any:
    """What owns the memory of an array: an array, or an object of another kind."""
    found: Any = x
    while (base := getattr(found, "base", None)) is not None:
        found = base
    return found
