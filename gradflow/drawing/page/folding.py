"""How a large graph folds: into its modules, and where there are none, into groups of consecutive steps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from gradflow.drawing.graph import Graph, Value

MOST_OPEN = 150
"""The nodes of the largest graph that is drawn unfolded."""
_MOST_CHILDREN = 24
"""The parts of a group of a larger graph; more are put into groups of their own."""
_FIRST_VIEW = 40
"""How many nodes a folded graph shows at first, at most."""


@dataclass
class Group:
    """A box of a drawing that folds: consecutive steps of a graph.

    kind: "graph" (all of it), "order" (steps that a backward pass recorded), "module", or "steps".
    parent: the index of the group around it; None for the whole graph.
    first, last: its first and last step.
    open: whether it is unfolded at first.
    """

    name: str
    kind: str
    parent: int | None
    first: int
    last: int
    open: bool = True


@dataclass(frozen=True)
class Folding:
    """The groups of a graph, the whole graph first; the group of each step; and of each value that no step computed."""

    groups: list[Group]
    of_steps: list[int]
    of_values: dict[int, int]


def fold(graph: Graph) -> Folding:
    """The groups of a graph, nested. At most 150 nodes are all unfolded; a larger graph shows about 40 at first."""
    orders = _orders(graph)
    nodes = len(graph.steps) + sum(value.step is None for value in graph.values)
    builder = _Builder(graph, orders, nodes > MOST_OPEN)
    groups, of_steps = builder.groups, builder.of_steps
    users: list[list[int]] = [[] for _ in graph.values]
    for step in graph.steps:
        for i in step.inputs:
            users[i].append(step.index)
    of_values = {
        value.index: _around(value, users[value.index], builder, orders) for value in graph.values if value.step is None
    }
    if nodes > MOST_OPEN:
        _open_some(groups, [*of_steps, *of_values.values()])
    return Folding(groups, of_steps, of_values)


def _orders(graph: Graph) -> list[int]:
    """For each step 0, or how many backward passes lie between it and the forward pass, if one recorded it."""
    orders: list[int] = []
    for step in graph.steps:
        orders.append(0 if step.recorded_by is None else 1 + orders[step.recorded_by])
    return orders


class _Builder:
    """Makes the groups of a graph and finds the group of each step."""

    def __init__(self, graph: Graph, orders: Sequence[int], large: bool) -> None:
        self.graph = graph
        self.large = large
        self.of_steps = [0] * len(graph.steps)
        self.groups = [Group(graph.title, "graph", None, 0, len(graph.steps) - 1)]
        names = ("", "second", "third")
        self._paths = [
            (*(("order", f"{names[o] if o < 3 else o + 1} order: a recorded backward pass") for _ in range(o > 0)),
             *(("module", name) for name in step.module))
            for step, o in zip(graph.steps, orders, strict=True)
        ]  # fmt: skip
        self._divide(range(len(graph.steps)), 0, 0)

    def _divide(self, steps: Sequence[int], depth: int, parent: int) -> None:
        """Puts consecutive steps, which share their path down to a depth, into a group, and its parts into groups."""
        children: list[list[int]] = []
        for key, run in groupby(steps, lambda i: self._paths[i][depth : depth + 1]):
            members = list(run)
            children += [members] if key else [[i] for i in members]
        self._place(children, depth, parent)

    def _place(self, children: Sequence[list[int]], depth: int, parent: int) -> None:
        if self.large and len(children) > _MOST_CHILDREN:
            levels = math.ceil(math.log(len(children), _MOST_CHILDREN))
            size = math.ceil(len(children) ** ((levels - 1) / levels))
            for start in range(0, len(children), size):
                part = children[start : start + size]
                name = self._summary([child[0] for child in part], depth)
                self._place(part, depth, self._group(name, "steps", parent, part[0][0], part[-1][-1]))
            return
        for child in children:
            if path := self._paths[child[0]][depth : depth + 1]:
                kind, name = path[0]
                self._divide(child, depth + 1, self._group(name, kind, parent, child[0], child[-1]))
            else:
                self.of_steps[child[0]] = parent

    def _group(self, name: str, kind: str, parent: int, first: int, last: int) -> int:
        self.groups.append(Group(name, kind, parent, first, last))
        return len(self.groups) - 1

    def _summary(self, firsts: Sequence[int], depth: int) -> str:
        """A name for a group by what it holds: its modules, from the first to the last, or its commonest operations."""
        modules = [path[depth][1] for path in map(self._paths.__getitem__, firsts) if len(path) > depth]
        if modules:
            return modules[0] if len(modules) == 1 else f"{modules[0]} to {modules[-1]}"
        counts = Counter(self.graph.steps[i].operation for i in firsts)
        return ", ".join(name for name, _ in counts.most_common(3)) + (", ..." if len(counts) > 3 else "")


def _around(value: Value, users: Sequence[int], builder: _Builder, orders: Sequence[int]) -> int:
    """The smallest group around all steps that use a value; of named inputs, it lies outside of modules."""
    groups = builder.groups
    lowest = min((orders[s] for s in users), default=0)
    paths = [_ancestors(builder.of_steps[s], groups) for s in users if orders[s] == lowest]
    if not paths:
        return 0
    common = paths[0]
    for path in paths[1:]:
        common = [a for a, b in zip(common, path, strict=False) if a == b]
    if value.kind != "parameter" and value.name is not None:
        modules = [depth for depth, group in enumerate(common) if groups[group].kind == "module"]
        common = common[: modules[0]] if modules else common
    return common[-1]


def _ancestors(group: int, groups: Sequence[Group]) -> list[int]:
    """The groups around a group, and itself, the outermost first."""
    path = [group]
    while (parent := groups[path[-1]].parent) is not None:
        path.append(parent)
    return path[::-1]


def _open_some(groups: Sequence[Group], places: Sequence[int]) -> None:
    """Leaves the outer groups unfolded, level by level, as long as all parts of a level fit into the first view.

    places: the groups of all nodes.
    """
    sizes = Counter([*places, *(group.parent for group in groups[1:] if group.parent is not None)])
    shown, level = sizes[0], [0]
    for group in groups[1:]:
        group.open = False
    while True:
        level = [i for i, group in enumerate(groups) if group.parent in level and i]
        shown += sum(sizes[i] - 1 for i in level)
        if not level or shown > _FIRST_VIEW:
            return
        for i in level:
            groups[i].open = True
