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


def levels(launches: Sequence[Launch], checks: int = 0, held: Iterable[int] = ()) -> list[list[list[int]]]:
    """The launches by their numbers, in groups, in levels. Launches of a group are in the given order.

    held: the launches that must be in later levels than the first `checks` ones.
    """
    touched = [accesses(each) for each in launches]
    edges = sorted({edge for each in touched for access in each for edge in access[:2]})
    part_at = {edge: i for i, edge in enumerate(edges)}
    # of each part of memory between two edges: what the last launch that writes there does, and later ones that read
    writer: list[list[tuple[int, Access]]] = [[] for _ in edges]
    readers: list[list[tuple[int, Access]]] = [[] for _ in edges]
    held = set(held)
    level_of: list[int] = []
    group_of: list[list[int]] = []
    for i, (launch, own) in enumerate(zip(launches, touched, strict=True)):
        level = 1 + max(level_of[:checks]) if checks and i in held else 0
        joined: set[int] = set()
        parts: dict[int, list[Access]] = {}
        for access in own:
            for part in range(part_at[access.start], part_at[access.stop]):
                parts.setdefault(part, []).append(access)
                for j, other in [*writer[part], *readers[part]] if access.writes else writer[part]:
                    if access.writes or other.writes:
                        if launches[j].items == launch.items and _is_by_items(access, other):
                            joined.add(j)
                            level = max(level, level_of[j])
                        else:
                            level = max(level, level_of[j] + 1)
        for part, here in parts.items():
            now = [(i, access) for access in here]
            if any(access.writes for access in here):
                writer[part], readers[part] = now, []
            else:
                readers[part] += now
        level_of.append(level)
        group = [i]
        for j in joined:
            if level_of[j] == level and group_of[j] is not group:
                group[:0] = group_of[j]
                for k in group_of[j]:
                    group_of[k] = group
        group.sort()
        group_of.append(group)
    found: list[list[list[int]]] = [[] for _ in range(max(level_of, default=-1) + 1)]
    for i, group in enumerate(group_of):
        if group[0] == i:
            found[level_of[i]].append(group)
    return found


def divide(launches: Sequence[Launch]) -> list[Launch]:
    """Launches of flat kernels in parts, each of which can be in a group with what writes it."""
    found: list[Launch] = []
    for launch in launches:
        found += _parts(launch, found) if launch.kernel.flat else [launch]
    return found


def _parts(launch: Launch, earlier: Sequence[Launch]) -> list[Launch]:
    """A launch of a flat kernel, divided by the arrays that earlier launches write by items."""
    flat = {i for i, letter in enumerate(launch.kernel.access) if letter in "rwu" and launch.arguments[i] is not None}
    others = [x for x, letter in zip(launch.arguments, launch.kernel.access, strict=True) if letter in "WU"]
    if any(x is not None for x in others):  # parts would conflict
        return [launch]
    spans = [(i, *bounds(launch.arguments[i])) for i in flat]
    cuts: list[tuple[int, int, int]] = []  # first element, end, items
    for other in reversed(earlier):
        for access in accesses(other):
            for i, start, stop in spans:
                if access.writes and access.by_items and start <= access.start and access.stop <= stop:
                    size = launch.arguments[i].itemsize
                    a, b = (access.start - start) // size, (access.stop - start) // size
                    if not (b - a) % other.items and all(b <= first or end <= a for first, end, _ in cuts):
                        cuts.append((a, b, other.items))
    if not cuts:
        return [launch]
    found, done = [], 0
    for a, b, items in [*sorted(cuts), (launch.items, launch.items, 0)]:
        for first, end, n in ((done, a, a - done), (a, b, items)):
            if n:
                inner = (end - first) // n
                arguments = [x[first:end] if i in flat else x for i, x in enumerate(launch.arguments[:-1])]
                found.append(launch._replace(items=n, cost=launch.cost * inner, arguments=(*arguments, inner)))
        done = b
    return found


def _is_by_items(a: Access, b: Access) -> bool:
    """Whether of two launches of equally many items, each item uses the same memory of the array in both."""
    return a.by_items is not None and (a.start, a.stop, a.by_items) == (b.start, b.stop, b.by_items)


def accesses(launch: Launch) -> list[Access]:
    """What a launch does with its arrays."""
    found = []
    for letter, x in zip(launch.kernel.access, launch.arguments, strict=True):
        if letter not in "if" and x is not None and x.size:
            start, stop = bounds(x)
            by_items = (
                x.strides[0] * x.shape[0] // launch.items if letter in "rwu" and x.ndim and launch.items else None
            )
            found.append(Access(start, stop, letter not in "rR", by_items))
    return found


def bounds(x: Any) -> tuple[int, int]:
    """The first address of the memory of an array, and the one after the last."""
    start = address(x)
    if x.flags.c_contiguous:
        return start, start + x.nbytes
    ends = [(n - 1) * stride for n, stride in zip(x.shape, x.strides, strict=True)]
    return start + sum(min(e, 0) for e in ends), start + sum(max(e, 0) for e in ends) + x.itemsize


def address(x: Any) -> int:
    """The address of the first element of an array."""
    return int(x.__array_interface__["data"][0])


def root(x: np.ndarray[Any, Any]) -> Any:
    """What owns the memory of an array: an array, or an object of another kind."""
    found: Any = x
    while (base := getattr(found, "base", None)) is not None:
        found = base
    return found
