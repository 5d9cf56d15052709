"""Tables from files and frames."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from gradflow.data.inputs import DataError, listed
from gradflow.data.reading import reading
from gradflow.files import open_file
from gradflow.tables.csv_reading import CsvSource
from gradflow.tables.frames import FrameSource
from gradflow.tables.parquet import PARQUET, ParquetSource
from gradflow.tables.table import KINDS, Column, Kinds, Table, no_column


class Source(Protocol):
    """What tables are read from. `notes` grows while it is read."""

    source: str
    names: tuple[str, ...]
    notes: list[str]

    def read(self, kinds: Kinds) -> list[Column]:
        """Return these columns."""

    def chunks(self, kinds: Kinds, rows: int) -> Iterator[list[Column]]:
        """Yield these columns for about so many rows, then for the next ones; all kinds are given."""


def read_table(
    source: Any,
    *,
    kinds: Mapping[str, str] | None = None,
    ignore: Iterable[str] = (),
    categorical: Iterable[str] = (),
    header: bool = True,
) -> Table:
    """Return the table in a file or a frame.

    source: the path of a CSV or TSV file, perhaps compressed by gzip, or of a Parquet file, which needs the extra
        `data`; a frame of pandas or polars; or a dict from names to sequences.
    kinds: what the columns are, by name, as `Column.reads_as` of an earlier table tells; other columns are not read. By
        default, all are read, and their values tell what they are.
    ignore: names of columns that are not read.
    categorical: names of columns that are texts, even if they look like numbers or dates.
    header: whether the first line of a CSV file has the names of the columns; if not, these are column1, column2, ...

    The separator of a CSV file (comma, semicolon, tab or bar) and its decimal mark are recognized. A column holds
    numbers or dates if all its values are; if most of them are, but not all, the first that is not is an error. White
    space around values is left out. Numbers may have separators of thousands, and a percent or currency sign if all of
    the column have it. Columns of whole numbers with leading zeros are texts. In numbers and dates, the empty cell, NA,
    ?, - and the like are missing values; among texts, only the empty cell is. Dates are written as 2023-12-31,
    31.12.2023, or with slashes in one order that the column tells, perhaps with a time; those in other forms, and times
    without a date, are an error. Columns of frames and Parquet files have the types that they have there; bools become
    the texts False and True, and texts that are all dates become dates. Columns without values are left out.

    Raises DataError, with the file, the line and the cell, for what can only be read by guessing.

    >>> import os, tempfile
    >>> from gradflow.tables import read_table
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "animals.csv")
    ...     with open(path, "w") as file:
    ...         _ = file.write("height;animal\\n0,25;cat\\n?;dog\\n")
    ...     table = read_table(path)
    >>> table["height"].values, table["animal"].texts(), table.notes
    (array([0.25,  nan]), ['cat', 'dog'], ('0,25 is read with a decimal comma', '1 missing in height'))
    """
    opened = _opened(source, header)
    columns = opened.read(_chosen(opened, kinds, ignore, categorical))
    notes = opened.notes
    if kinds is None:
        empty = [column.name for column in columns if column.missing.all()]
        columns = [column for column in columns if column.name not in empty]
        if not columns:
            raise DataError(f"{opened.source}: all columns are empty")
        notes += [f"{listed(empty)} {'is' if len(empty) == 1 else 'are'} empty and left out"] if empty else []
    missing = [(int(column.missing.sum()), column.name) for column in columns]
    gaps = [f"{count:,} missing in {name}" for count, name in missing if count]
    return Table(columns, opened.source, [*notes, listed(gaps)] if gaps else notes)


def read_chunks(source: Any, kinds: Mapping[str, str], *, rows: int = 65_536, header: bool = True) -> Iterator[Table]:
    """Yield the table in a file or a frame in parts, in memory for one of them.

    rows: about how many rows a part has; the last one has fewer.

    Other arguments, and what it raises, as for `read_table`.

    >>> from gradflow.tables import read_chunks
    >>> [len(part) for part in read_chunks({"a": range(5)}, {"a": "number"}, rows=2)]
    [2, 2, 1]
    """
    opened = _opened(source, header)
    for columns in opened.chunks(_chosen(opened, kinds), rows):
        yield Table(columns, opened.source, opened.notes)


def column_names(source: Any, header: bool = True) -> tuple[str, ...]:
    """Return the names of the columns in a file or a frame; arguments, and what it raises, as for `read_table`.

    >>> from gradflow.tables.reading import column_names
    >>> column_names({"height": [0.25], "animal": ["cat"]})
    ('height', 'animal')
    """
    return _opened(source, header).names


def _opened(source: Any, header: bool) -> Source:
    """Return a file or a frame as a source of columns."""
    if not isinstance(source, (str, os.PathLike)):
        return FrameSource(source)
    with reading(source), open_file(source) as file:
        parquet = file.read(len(PARQUET)) == PARQUET
    return ParquetSource(source) if parquet else CsvSource(source, header)


def _chosen(
    source: Source, kinds: Mapping[str, str] | None, ignore: Iterable[str] = (), categorical: Iterable[str] = ()
) -> Kinds:
    """Return the columns to read, with their kinds. Raises DataError for names that the source does not have."""
    ignore, categorical, known = tuple(ignore), tuple(categorical), set(source.names)
    for name in [*(kinds or ()), *ignore, *categorical]:
        if name not in known:
            raise no_column(name, source.names, source.source)
    for kind in (kinds or {}).values():
        if kind.partition(" ")[0] not in KINDS:
            raise ValueError(f"columns are read as {listed(KINDS)}; got {kind!r}")
    chosen: Kinds = {name: "text" if name in categorical else None for name in source.names if name not in ignore}
    chosen = chosen if kinds is None else kinds
    if not chosen:
        raise DataError(f"{source.source}: all columns are left out")
    return chosen
