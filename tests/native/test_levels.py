"""Levels of launches: what may run at the same time, and what must wait."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
from gradflow_numpy.native.kernels import Kernel, Launch
from gradflow_numpy.native.levels import accesses, divide, levels


def launch(access: str, items: int, *arguments: Any, flat: bool = False) -> Launch:
    """A launch of a kernel that is never compiled."""
    return Launch(Kernel("none", "none", access, lambda *_: None, flat=flat), np.float32, items, 1.0, arguments)


def test_a_step_of_a_perceptron_has_three_levels() -> None:
    rows, widths = 8, [4, 5, 3]
    made: list[Launch] = []
    weights = [np.empty((n, m)) for m, n in itertools.pairwise(widths)]
    packed = [np.empty(w.size) for w in weights]
    gradients = np.empty(sum(w.size for w in weights))
    at = [0, weights[0].size, gradients.size]
    x = [np.empty((rows, n)) for n in widths]
    g = [np.empty((rows, n)) for n in widths]
    total, losses = np.empty(()), np.empty(rows)
    for i, w in enumerate(weights):
        made.append(launch("RW", 3, w, packed[i]))
        made.append(launch("rRw", rows, x[i], packed[i], x[i + 1]))
    made.append(launch("rww", rows, x[2], losses, g[2]))
    made.append(launch("RW", 1, losses, total))
    for i, w in reversed([*enumerate(weights)]):
        made.append(launch("RRw", w.shape[0], g[i + 1], x[i], gradients[at[i] : at[i + 1]]))
        made.append(launch("rRw", rows, g[i + 1], w, g[i]))
    made.append(launch("uuri", gradients.size, *[np.empty(gradients.size)] * 2, gradients, 1, flat=True))
    assert levels(made) == [[[0], [2]], [[1, 3, 4, 7, 9]], [[5], [6], [8]], [[10]]]
    divided = divide(made)
    assert [each.items for each in divided[10:]] == [5, 3]
    assert levels(divided) == [[[0], [2]], [[1, 3, 4, 7, 9]], [[5], [6, 11], [8, 10]]]


x, y = np.empty((6, 4)), np.empty((6, 4))
BY_ITEMS = [
    (launch("w", 6, x), launch("r", 6, x)),
    (launch("r", 6, x), launch("w", 6, x)),
    (launch("u", 6, x), launch("u", 6, x)),
    (launch("w", 6, x), launch("r", 6, x.reshape(-1))),
]
APART = [
    (launch("R", 6, x), launch("R", 6, x)),
    (launch("r", 6, x), launch("r", 6, x)),
    (launch("w", 6, x), launch("w", 6, y)),
    (launch("w", 6, x[:0]), launch("w", 6, x)),
    (launch("wi", 6, x, 3), launch("wr", 6, y, None)),
]
LATER = [
    (launch("w", 6, x), launch("r", 3, x)),
    (launch("w", 6, x), launch("R", 6, x)),
    (launch("W", 6, x), launch("r", 6, x)),
    (launch("R", 6, x), launch("u", 6, x)),
    (launch("w", 6, x), launch("w", 6, x[::-1])),
    (launch("w", 3, x[:3]), launch("r", 3, x[1:4])),
    (launch("w", 6, x[:, :2]), launch("r", 6, x.reshape(-1)[:22])),
    (launch("w", 1, x), launch("R", 1, x[5, 3:])),
]


@pytest.mark.parametrize(("one", "other"), BY_ITEMS)
def test_launches_that_conflict_by_items_share_a_group(one: Launch, other: Launch) -> None:
    assert levels([one, other]) == [[[0, 1]]]


@pytest.mark.parametrize(("one", "other"), APART)
def test_launches_without_a_conflict_share_a_level_but_no_group(one: Launch, other: Launch) -> None:
    assert levels([one, other]) == [[[0], [1]]]


@pytest.mark.parametrize(("one", "other"), LATER)
def test_a_launch_that_conflicts_otherwise_comes_later(one: Launch, other: Launch) -> None:
    assert levels([one, other]) == [[[0]], [[1]]]


def test_launches_of_other_items_share_a_level_but_no_group() -> None:
    assert levels([launch("w", 6, x), launch("w", 4, y), launch("r", 6, x)]) == [[[0, 2], [1]]]


def test_launches_that_are_held_wait_for_the_checks() -> None:
    z = np.empty(1)
    given = [launch("U", 1, z), launch("U", 1, z), launch("w", 6, x), launch("w", 6, y)]
    assert levels(given, 2, [3]) == [[[0], [2]], [[1]], [[3]]]


def conflict(a: Launch, b: Launch) -> str:
    """How two launches conflict, by brute force over bytes: "", "items" or "other"."""
    found = ""
    for p in accesses(a):
        for q in accesses(b):
            if (p.writes or q.writes) and p.start < q.stop and q.start < p.stop:
                by_items = a.items == b.items and p.by_items is not None and p[:2] == q[:2] and p.by_items == q.by_items
                if not by_items:
                    return "other"
                found = "items"
    return found


@pytest.mark.parametrize("seed", range(20))
def test_no_two_launches_that_conflict_run_at_the_same_time(seed: int) -> None:
    rng = random.Random(seed)
    memory = np.empty(48)
    given = []
    for _ in range(60):
        access = "".join(rng.choice("rrRwuWU") for _ in range(rng.randint(1, 3)))
        arrays = []
        for _ in access:
            start = rng.randrange(0, 48, 4)
            arrays.append(memory[start : rng.randrange(start, 48, 4) + 4].reshape(-1, rng.choice([1, 2, 4])))
        given.append(launch(access, rng.choice([1, 2, 4]), *arrays))
    found = levels(given)
    place = {i: (n, k, group.index(i)) for n, level in enumerate(found) for k, group in enumerate(level) for i in group}
    assert sorted(place) == list(range(60))
    for i, j in itertools.combinations(range(60), 2):
        how, (a, b) = conflict(given[i], given[j]), (place[i], place[j])
        assert how == "" or a[0] < b[0] or (how == "items" and a[:2] == b[:2] and a[2] < b[2])
        if a[:2] == b[:2]:
            assert given[i].items == given[j].items


@pytest.mark.parametrize("seed", range(20))
def test_the_parts_of_a_flat_launch_are_all_of_it_and_follow_what_writes_them(seed: int) -> None:
    rng = random.Random(seed)
    g, p = np.empty(64, np.float32), np.empty(64, np.float32)
    given = []
    for _ in range(rng.randint(0, 8)):
        start = rng.randrange(0, 60, 4)
        written = g[start : rng.randrange(start, 60, 4) + 4]
        given.append(launch(rng.choice("wuW"), rng.choice([1, 2, 4]), written))
    *others, last = [*given, launch("urRi", 64, p, g, np.empty(3), 1, flat=True)]
    parts = divide([*others, last])[len(others) :]
    covered = []
    for each in parts:
        own, gradient, numbers, inner = each.arguments
        assert own.size == gradient.size == each.items * inner
        assert numbers is last.arguments[2]
        assert each.cost == inner
        first = (gradient.ctypes.data - g.ctypes.data) // 4
        assert (own.ctypes.data - p.ctypes.data) // 4 == first
        covered += range(first, first + own.size)
    assert covered == list(range(64))
    if others and others[-1].kernel.access != "W":
        assert any(
            each.items == others[-1].items and others[-1].arguments[0].size == each.arguments[0].size for each in parts
        )


def test_a_flat_launch_whose_parts_would_conflict_stays_whole() -> None:
    g, p, flag = np.empty(8), np.empty(8), np.empty(1)
    writer, step = launch("w", 2, g), launch("urWi", 8, p, g, flag, 1, flat=True)
    assert divide([writer, step]) == [writer, step]
    assert len(divide([writer, step._replace(arguments=(p, g, None, 1))])) == 2
