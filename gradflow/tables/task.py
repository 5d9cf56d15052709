"""The target of a table: whether its values are classes or numbers to be predicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.data.inputs import DataError
from gradflow.data.labels import FEW_LABELS, Label, codes_among
from gradflow.tables.choices import TASKS
from gradflow.tables.entries import entries, entry
from gradflow.tables.options import option
from gradflow.tables.table import Column, Table

ROWS_OF_A_CLASS = 5
"""More than two distinct whole numbers are classes, by default, if they have so many rows each, on average."""


def with_target(table: Table, name: str) -> Table:
    """Return the rows of a table that have a target. A note tells how many do not.

    name: of the column of targets.

    Raises DataError if no row has one.

    >>> from gradflow.tables import read_table
    >>> from gradflow.tables.task import with_target
    >>> table = with_target(read_table({"a": [1, 2, 3], "y": [5.5, None, 7.5]}), "y")
    >>> len(table), table.notes[-1]
    (2, 'rows without y are left out: 1 of 3')
    """
    return next(rows_with_target([table], name))


def rows_with_target(parts: Iterable[Table], name: str) -> Iterator[Table]:
    """Yield the rows that have a target, of the parts of a table. A note of the last part tells how many have none.

    name: of the column of targets. Raises DataError if no row of any part has one.
    """
    rows = without = 0
    for part in parts:
        missing = part[name].missing
        rows, without = rows + len(part), without + int(missing.sum())
        if not without:
            yield part
        elif without < rows:
            note = f"rows without {name} are left out: {without:,} of {rows:,}"
            yield Table(part.take(~missing).columns, part.source, [*part.notes, note])
    if rows and without == rows:
        raise DataError(f"{part.source}: no row has a value in the column of targets, {name!r}")


@dataclass(frozen=True)
class Target:
    """What is predicted.

    name: of the column. kind: as `Column.reads_as` tells.
    labels: of the classes, sorted: texts or whole numbers; () for values.
    note: one sentence that tells the task, and what changes it.

    >>> from gradflow.tables import read_table
    >>> from gradflow.tables.task import Target
    >>> table = read_table({"size": [1.5, 2.5, 3.5], "animal": ["cat", "dog", "cat"]})
    >>> animal = Target.learn(table, "animal")
    >>> animal.task, animal.classes, animal.targets(table).tolist(), animal.note
    ('classes', ('cat', 'dog'), [0, 1, 0], 'animal is predicted as one of 2 classes')
    """

    name: str
    kind: str
    labels: tuple[Label, ...]
    note: str

    @classmethod
    def learn(cls, table: Table, name: str, task: str | None = None) -> Target:
        """Return what is to be predicted in a table.

        name: of the column of targets.
        task: "classes" or "values". Default: texts are classes; whole numbers are classes if there are only two, or at
            most 20, each in five rows on average; all other numbers are values.

        Raises DataError for gaps, for dates, for a task that does not fit, for a single class, for classes of numbers
        with fractions, and for values that are hardly classes: more than 20, and more than half as many as the rows.
        """
        if task not in (None, *TASKS):
            raise ValueError(f"task must be {' or '.join(map(repr, TASKS))}; got {task!r}")
        column = table[name]
        what = f"{table.source}: the target {name!r}"
        if column.kind == "date":
            raise DataError(
                f"{what} holds dates: make numbers of them, or take them as text{option('categorical', name)}"
            )
        if column.kind == "text" and task == "values":
            raise DataError(f"{what} holds texts: values to be predicted are numbers")
        _check_no_gaps(column, what)
        distinct = np.unique(column.values)
        if column.kind == "number":
            few = column.whole and len(distinct) <= max(2, min(FEW_LABELS, len(table) // ROWS_OF_A_CLASS))
            if task == "values" or (task is None and not few):
                other = option("task", "classes", "predicts classes") * column.whole
                return cls(name, column.reads_as, (), f"{name} is predicted as a number{other}")
        labels = _labels(column, distinct)
        if len(labels) < 2:
            raise DataError(f"{what} is {labels[0]!r} in all rows: at least two classes are needed")
        fractions = column.kind == "number" and not column.whole
        if len(labels) > (FEW_LABELS if fractions else max(FEW_LABELS, len(table) / 2)):
            count = f"{len(labels):,} different values{' with fractions' * fractions} in {len(table):,} rows"
            advice = f": predict a number{option('task', 'values')}" if column.kind == "number" else ""
            raise DataError(f"{what} has {count}: these are no classes{advice}")
        if fractions:
            raise DataError(f"{what} holds numbers with fractions: take them as text{option('categorical', name)}")
        other = option("task", "values", "predicts a number") * (column.kind == "number")
        return cls(name, column.reads_as, labels, f"{name} is predicted as one of {len(labels)} classes{other}")

    @property
    def task(self) -> str:
        """ "classes" or "values"."""
        return "classes" if self.labels else "values"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes; () for values."""
        return tuple(map(str, self.labels))

    @property
    def outputs(self) -> int:
        """The number of classes, or 1."""
        return len(self.labels) or 1

    def targets(self, table: Table) -> npt.NDArray[Any]:
        """Return the targets of a table: codes of classes, int64 (rows,), or values, float64 (rows, 1).

        Raises DataError for classes that training did not have, for gaps, and for a column of another kind.
        """
        column = table[self.name]
        what = f"{table.source}: the target {self.name!r}"
        check_kind(column, self.kind, table.source)
        _check_no_gaps(column, what)
        if not self.labels:
            return column.values[:, None]
        distinct, places = np.unique(column.values, return_inverse=True)
        labels = _labels(column, distinct)
        return codes_among(labels, list(map(str, labels)), self.labels, self.classes, what)[places]

    def decode(self, outputs: npt.NDArray[Any]) -> list[Any]:
        """Return the labels of the largest outputs (rows, classes), or values, of (rows, 1), as they are.

        >>> import numpy as np
        >>> from gradflow.tables.task import Target
        >>> Target("animal", "text", ("cat", "dog"), "").decode(np.array([[0.5, 2.0]]))
        ['dog']
        """
        if not self.labels:
            return [float(value) for value in outputs[:, 0]]
        return [self.labels[code] for code in outputs.argmax(axis=1)]

    def to_dict(self) -> dict[str, Any]:
        """Return this as plain texts, numbers and lists."""
        return {"name": self.name, "kind": self.kind, "labels": list(self.labels), "note": self.note}

    @classmethod
    def from_dict(cls, tree: Any) -> Target:
        """Return the target of `to_dict`. Raises ValueError for anything else."""
        kind = entry(tree, "kind", str)
        if kind not in ("number", "text"):
            raise ValueError(f"targets are numbers or texts, not {kind!r}")
        labels = entries(tree, "labels", str if kind == "text" else int)
        if len(set(labels)) < len(labels) or len(labels) == 1 or (kind == "text" and not labels):
            raise ValueError("the labels of the target are at least two, and differ")
        return cls(entry(tree, "name", str), kind, labels, entry(tree, "note", str))


def check_kind(column: Column, kind: str, source: str) -> None:
    """Raise DataError if a column is not of the kind that it had in training."""
    kind = kind.partition(" ")[0]
    if column.kind != kind:
        raise DataError(
            f"{source}: column {column.name!r} holds {column.kind}s, and {kind}s are expected: read the table with the "
            "kinds of the training (kinds=columns.kinds)"
        )


def _check_no_gaps(column: Column, what: str) -> None:
    count = int(column.missing.sum())
    if count:
        raise DataError(f"{what} is missing in {count:,} of {len(column):,} rows: leave them out")


def _labels(column: Column, values: npt.NDArray[Any]) -> tuple[Label, ...]:
    """Return values of a column as labels: texts, or numbers, whole ones as int, others as text."""
    if column.kind == "text":
        return tuple(column.levels[code] for code in values)
    return tuple(int(value) if value == int(value) else str(value) for value in values.tolist())
