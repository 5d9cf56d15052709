"""Parquet files, read by pyarrow: a column at a time, or some rows at a time."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradflow.data.inputs import DataError
from gradflow.data.reading import reading
from gradflow.environment import imported_extra, physical_memory
from gradflow.files import FilePath
from gradflow.tables.table import Column, Kinds, check_names
from gradflow.tables.typed import NAT, TypedColumn

PARQUET = b"PAR1"
"""The first bytes of a Parquet file."""

_BUFFER = 1 << 16
"""How many bytes of a column are read from the file at once."""

_INDEX = re.compile(r"__index_level_\d+__").fullmatch


class ParquetSource:
    """A Parquet file as a source of columns.

    Raises DataError for a file that is damaged or has no rows, ModuleNotFoundError without pyarrow.
    """

    def __init__(self, path: FilePath) -> None:
        self.source, self.notes = os.fspath(path), list[str]()
        self._pyarrow = imported_extra("pyarrow", "pyarrow", "data", f"{self.source}, a Parquet file,")
        parquet = imported_extra("pyarrow.parquet", "pyarrow", "data")
        with self._reading():
            # read in small blocks when they are needed; by default, pyarrow reads all row groups at once
            self._file = parquet.ParquetFile(self.source, pre_buffer=False, buffer_size=_BUFFER)
            names = list(self._file.schema_arrow.names)
        self.names = tuple(name for name in names if not _INDEX(name))
        if len(self.names) < len(names):
            self.notes.append("the index that pandas wrote is left out")
        check_names(self.names, self.source)
        if not self._file.metadata.num_rows:
            raise DataError(f"{self.source} has no rows")

    def read(self, kinds: Kinds) -> list[Column]:
        """Return these columns, each read on its own, so that the file is never in memory as a whole."""
        if 8 * self._file.metadata.num_rows * len(kinds) > physical_memory():
            raise DataError(f"{self.source} needs more memory than there is")
        columns = []
        for name, kind in kinds.items():
            with self._reading():
                values = self._file.read(columns=[name]).column(name)
                columns.append(self._column(values, TypedColumn(name, kind, self.source, 0, self.notes)))
        return columns

    def chunks(self, kinds: Kinds, rows: int) -> Iterator[list[Column]]:
        """Yield these columns for so many rows of a row group, then for the next ones; their kinds are given."""
        start = 0
        with self._reading():
            for batch in self._file.iter_batches(batch_size=rows, columns=list(kinds)):
                yield [
                    self._column(batch.column(name), TypedColumn(name, kind, self.source, start, self.notes))
                    for name, kind in kinds.items()
                ]
                start += batch.num_rows

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Inside a `with`, pyarrow's errors become DataError."""
        try:
            with reading(self.source):
                yield
        except self._pyarrow.ArrowException as error:
            raise DataError(f"{self.source} cannot be read: {error}") from None

    def _column(self, values: Any, column: TypedColumn) -> Column:
        """Return an array of Arrow's, perhaps in chunks, as a column."""
        pa, is_ = self._pyarrow, self._pyarrow.types
        kind = values.type
        if is_.is_dictionary(kind) and not _is_text(is_, kind.value_type):
            return self._column(values.cast(kind.value_type), column)
        missing = np.asarray(values.is_null())
        if missing.all():
            return column.empty(len(values))
        if is_.is_boolean(kind):
            return column.bools(np.asarray(values.fill_null(False)), missing)
        if is_.is_integer(kind):
            return column.numbers(np.asarray(values.fill_null(0)), missing)
        if is_.is_floating(kind):
            return column.numbers(np.asarray(values.cast(pa.float64()).fill_null(0)), missing)
        if is_.is_timestamp(kind) or is_.is_date(kind):
            dates = values.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=getattr(kind, "unit", "") != "ns")
            return column.dates(np.asarray(dates.cast(pa.int64()).fill_null(NAT)))
        if is_.is_dictionary(kind) or _is_text(is_, kind):
            codes, levels = [], list[str | None]()
            for chunk in values.chunks if hasattr(values, "chunks") else [values]:
                encoded = chunk if is_.is_dictionary(kind) else chunk.dictionary_encode()
                places = np.asarray(encoded.indices.cast(pa.int64()).fill_null(-1))
                codes.append(np.where(places < 0, -1, places + len(levels)))
                levels += encoded.dictionary.to_pylist()
            return column.texts(np.concatenate(codes), levels)
        if is_.is_decimal(kind):
            return column.objects(values.to_pylist())
        raise column.refused(str(kind))


def _is_text(types: Any, kind: Any) -> bool:
    return any(getattr(types, f"is_{name}")(kind) for name in ("string", "large_string", "string_view"))
