"""A table to learn from: rows with a target, and perhaps with weights, which can be split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from gradflow.data import splits
from gradflow.data.checks import hash_values
from gradflow.data.inputs import DataError
from gradflow.data.labels import Label
from gradflow.files import FilePath
from gradflow.tables.choices import TARGETS
from gradflow.tables.columns import Columns
from gradflow.tables.reading import column_names, read_table
from gradflow.tables.table import Table, no_column
from gradflow.tables.task import Target, with_target

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class TableDataset:
    """A table with a target, with what a `Dataset` has: it can be split, and a run trains on it.

    table: the rows that have a target. target: the column to predict. weight_column: the name of that with the weights
        of the rows, or None.
    categorical, numeric, encoding: see `Columns.learn`. header: whether its file has the names of the columns.

    >>> import numpy as np
    >>> from gradflow.tables.dataset import load_table
    >>> data = load_table({"size": np.arange(40.0), "kind": ["small"] * 20 + ["large"] * 20}, "kind")
    >>> data, len(data.split(seed=0).test)
    (TableDataset('the dict', 40 rows of 1 column, 2 classes), 8)
    """

    table: Table
    target: Target
    weight_column: str | None = None
    categorical: tuple[str, ...] = ()
    encoding: str = "auto"
    header: bool = True
    numeric: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"TableDataset({self.name!r}, {self.describe()})"

    def describe(self) -> str:
        """Return what the rows are, in a few words."""
        kind = f"{len(self.classes)} classes" if self.classes else "regression"
        count = f"{len(self.features)} column{'s' * (len(self.features) != 1)}"
        return f"{len(self.table)} rows of {count}, {kind}"

    @property
    def name(self) -> str:
        """Where the table comes from."""
        return self.table.source

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, () for regression."""
        return self.target.classes

    @property
    def labels(self) -> tuple[Label, ...]:
        """The label of each class."""
        return self.target.labels

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the columns but the target and those that are ignored."""
        return tuple(name for name in self.table.names if name not in (self.target.name, self.weight_column))

    @property
    def columns(self) -> tuple[str, ...]:
        """The name of the target in a regression, else ()."""
        return () if self.classes else (self.target.name,)

    @property
    def image_shape(self) -> None:
        """None: rows are no images."""
        return None

    @property
    def is_classification(self) -> bool:
        """Whether the target is one of classes."""
        return bool(self.classes)

    @property
    def outputs(self) -> int:
        """The width of the output layer: the number of classes, or 1."""
        return len(self.classes) or 1

    @property
    def notes(self) -> list[str]:
        """What was found when the table was read, each in one sentence."""
        return [f"{self.name}: {note}" for note in self.table.notes]

    @property
    def test(self) -> None:
        """None: a table has no test set of its own."""
        return None

    @cached_property
    def targets(self) -> Array:
        """The codes of the classes, int64 (rows,), or values, float64 (rows, 1)."""
        found: Array = self.target.targets(self.table)
        return found

    @cached_property
    def weights(self) -> Array | None:
        """The weights of the rows, (rows,), or None. Raises DataError unless they are numbers of at least 0."""
        if self.weight_column is None or self.weight_column not in self.table:
            return None
        column, name = self.table[self.weight_column], f"{self.name}: the weights in {self.weight_column}"
        if column.kind != "number":
            raise DataError(f"{name} must be numbers; the column holds {column.kind}s")
        wrong = ~((column.values >= 0) & np.isfinite(column.values))
        if wrong.any():
            value = column.values[int(wrong.argmax())]
            found = "is missing" if np.isnan(value) else f"is {value:g}"
            raise DataError(f"{name} must be finite and at least 0; one {found}")
        if not column.values.any():
            raise DataError(f"{name} are all 0: there is nothing to train on")
        return column.values

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the table and of what its target is. SHA-256 as hex digits."""
        hashed = hashlib.sha256(repr((self.target.name, self.classes, self.labels)).encode())
        for column in self.table.columns:
            hashed.update(repr((column.name, column.reads_as, column.levels)).encode())
            hash_values(hashed, column.values.view(np.int64) if column.kind == "date" else column.values)
        return hashed.hexdigest()

    def rows(self, indices: splits.Rows) -> Table:
        """Return some rows, as a table."""
        return self.table.take(indices)

    def learn_inputs(self, train: splits.Rows) -> Columns:
        """Return what is learned from some rows."""
        used = [column for column in self.table.columns if column.name != self.weight_column]
        return Columns.learn(
            Table(used, self.table.source),
            self.target.name,
            self.target.task,
            self.categorical,
            encoding=self.encoding,
            rows=train,
            weights=None if self.weights is None else self.weights[train],
            numeric=self.numeric,
        )

    def encode(self, learned: Columns, indices: splits.Rows) -> npt.NDArray[np.float32]:
        """Return some rows as the inputs of the network."""
        return learned.encode(self.table.take(indices))

    def like(self, other: Self) -> Self:
        """Return this table, whose target is that of `other`."""
        if self.target is not other.target:
            raise DataError(f"{self.name} was not read for the target of {other.name}: use read_like")
        return self

    def read_like(self, source: Any) -> TableDataset:
        """Return the table in another file or frame, read as this one. Raises DataError for one that does not fit."""
        there = column_names(source, self.header)
        if self.target.name not in there:
            raise no_column(self.target.name, there, str(source))
        kinds = {column.name: column.reads_as for column in self.table.columns if column.name in there}
        table = with_target(read_table(source, kinds=kinds, header=self.header), self.target.name)
        return replace(self, table=table)

    def split(
        self,
        seed: int,
        test: float | None = None,
        validation: float = splits.VALIDATION_SHARE,
        test_set: TableDataset | None = None,
        validation_set: TableDataset | None = None,
    ) -> splits.Split:
        """Return a split into training, validation and test rows; arguments and errors as for `Dataset.split`."""
        return splits.split(self, seed, test, validation, test_set, validation_set)


def load_table(
    source: FilePath | Any,
    target: str | None = None,
    task: str | None = None,
    ignore: Sequence[str] = (),
    categorical: Sequence[str] = (),
    weight_column: str | None = None,
    header: bool = True,
    encoding: str = "auto",
    numeric: Sequence[str] = (),
) -> TableDataset:
    """Return the table in a file or a frame, with its target.

    source, ignore, categorical, header: as for `read_table`.
    target: the name of the column to predict (default: see `target_in`).
    task, numeric, encoding: as for `Columns.learn`.
    weight_column: the name of a column of numbers that weigh the rows, at least 0 (default: all rows weigh the same).

    Raises DataError for a table that cannot be used.
    """
    name, _ = target_in(source, target, (*ignore, weight_column), header)
    read = read_table(source, ignore=ignore, categorical=categorical, header=header)
    for needed in (name, weight_column):
        if needed is not None and needed not in read:
            _why_not_there(needed, column_names(source, header), ignore, read.source)
    table = with_target(read, name)
    learned = Target.learn(table, name, task)
    categories = tuple(column for column in categorical if column in table)  # empty ones are left out
    return TableDataset(table, learned, weight_column, categories, encoding, header, tuple(numeric))


def _why_not_there(name: str, names: Sequence[str], ignore: Sequence[str], source: str) -> None:
    """Raise DataError for a target or weights that are not in a table, of which the names of all columns are given."""
    if name not in names:
        raise no_column(name, names, source)
    if name in ignore:
        raise DataError(f"{source}: {name} weighs the rows, so it cannot be ignored, too")
    raise DataError(f"{source}: column {name!r} is empty")


def target_in(
    source: Any, target: str | None = None, unused: Sequence[str | None] = (), header: bool = True
) -> tuple[str, str]:
    """Return the name of the target in a file or a frame, and how it was chosen: "" if it is given.

    target: a name (default: one of `TARGETS`, or else the last column). unused: names of columns that are not the
    target. header: as for `read_table`. Raises DataError for a name that is not there.

    >>> from gradflow.tables.dataset import target_in
    >>> target_in({"a": [1], "Class": [2], "b": [3]}), target_in({"a": [1], "b": [3], "w": [1]}, None, ["w"])
    (('Class', 'by its name'), ('b', 'the last column'))
    """
    names, place = column_names(source, header), source if isinstance(source, str) else "the table"
    if target is not None:
        if target not in names:
            raise no_column(target, names, place)
        if target in unused:
            raise DataError(f"{place}: {target} is to be predicted, so it cannot be left out, or weigh the rows")
        return target, ""
    used = [name for name in names if name not in unused]
    if not used:
        raise DataError(f"{place}: all columns are left out")
    named = [name for known in TARGETS for name in used if name.lower() == known]
    return (named[0], "by its name") if named else (used[-1], "the last column")
