"""A table on the host: columns of numbers, texts and dates, each in one compact array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.data.inputs import DataError, listed
from gradflow.text import did_you_mean

Array = npt.NDArray[Any]

Kinds = Mapping[str, str | None]
"""What columns are, by name, as `Column.reads_as` tells it; None where the values tell."""

KINDS = ("number", "text", "date")
"""The kinds of columns."""


@dataclass(frozen=True, eq=False)
class Column:
    """A column of a table.

    name: as in the file.
    kind: "number", "text" or "date".
    values: (rows,); numbers as float64, NaN where they are missing; texts as int32, the place of each in `levels`,
        -1 where they are missing; dates as datetime64[us], in UTC if the file names a time zone, NaT where missing.
    levels: the distinct texts, sorted; () for other kinds. A part of a table keeps the levels of the whole.
    layout: for dates, how they are written: "Y-m-d", "d.m.Y", "d/m/Y" or "m/d/Y"; else "".

    >>> import numpy as np
    >>> from gradflow.tables import Column
    >>> color = Column("color", "text", np.array([1, 0, -1], np.int32), levels=("blue", "red"))
    >>> color.texts(), color.missing.tolist()
    (['red', 'blue', None], [False, False, True])
    """

    name: str
    kind: str
    values: Array
    levels: tuple[str, ...] = ()
    layout: str = ""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def missing(self) -> Array:
        """(rows,) of bools: whether the value is missing."""
        return self.values < 0 if self.kind == "text" else np.isnan(self.values)

    @property
    def whole(self) -> bool:
        """Whether this is a column of numbers, of which all that are not missing are whole."""
        if self.kind != "number":
            return False
        there = self.values[~np.isnan(self.values)]
        return bool((there == np.floor(there)).all())

    @property
    def reads_as(self) -> str:
        """What `kinds` of `read_table` takes, to read another file in the same way: the kind, for dates with layout."""
        return f"{self.kind} {self.layout}".rstrip()

    def texts(self) -> list[str | None]:
        """Return the texts of a column of texts, None where they are missing."""
        return [self.levels[code] if code >= 0 else None for code in self.values.tolist()]

    def take(self, rows: Any) -> Column:
        """Return the column of some rows.

        rows: their indices, a slice, or a bool for each row.
        """
        return Column(self.name, self.kind, self.values[rows], self.levels, self.layout)


def text_column(name: str, codes: Array, levels: Sequence[str]) -> Column:
    """Return a column of texts, whose levels are sorted.

    codes: (rows,); the place of each text in `levels`, which are distinct and in any order; -1 where it is missing.
    """
    order = sorted(range(len(levels)), key=levels.__getitem__)
    place = np.empty(len(levels) + 1, np.int32)
    place[order] = np.arange(len(levels))
    place[-1] = -1
    return Column(name, "text", place[codes], levels=tuple(levels[i] for i in order))


def no_column(name: str, names: Sequence[str], source: str) -> DataError:
    """Return the error of a column that is asked for, and not one of `names`."""
    return DataError(f"{source} has no column {name!r}; it has {listed(names)}{did_you_mean(name, names)}")


def check_names(names: Sequence[str], source: str) -> None:
    """Raise DataError if two columns have the same name, or one has none."""
    for place, name in enumerate(names):
        if not name:
            which = f"column after {names[place - 1]!r}" if place else "first column"
            raise DataError(f"{source}: the {which} has no name")
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise DataError(f"{source}: two columns are called {twice!r}: rename one")


class Table:
    """A table of named columns.

    columns: of the same length, at least one; their names differ.
    source: where they come from, for messages.
    notes: what the user should know about how they were read, each one sentence.

    >>> import numpy as np
    >>> from gradflow.tables import Column, Table
    >>> table = Table([Column("a", "number", np.array([1.0, np.nan]))], "here")
    >>> len(table), table.names, table["a"].whole, table.take([0])["a"].values
    (2, ('a',), True, array([1.]))
    """

    def __init__(self, columns: Sequence[Column], source: str, notes: Sequence[str] = ()) -> None:
        self.columns, self.source, self.notes = tuple(columns), source, tuple(notes)
        self._by_name = {column.name: column for column in self.columns}

    def __len__(self) -> int:
        return len(self.columns[0])

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Column:
        """Return a column. Raises DataError, with the names of the columns there are, if there is none of this name."""
        try:
            return self._by_name[name]
        except KeyError:
            raise no_column(name, self.names, self.source) from None

    def __repr__(self) -> str:
        return f"<Table {self.source!r}: {len(self)} rows, {len(self.columns)} columns>"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, in the order of the file."""
        return tuple(self._by_name)

    def take(self, rows: Any) -> Table:
        """Return the table of some rows, with the same source and notes.

        rows: their indices, a slice, or a bool for each row.
        """
        if not isinstance(rows, slice) and len(rows):
            rows = np.asarray(rows)
        return Table([column.take(rows) for column in self.columns], self.source, self.notes)
