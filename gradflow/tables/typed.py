"""Columns of values that have types already: those of frames, Parquet files and sequences."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.data.inputs import DataError
from gradflow.tables.cells import EXACT, Cells, NumberCells, TextCells, shown
from gradflow.tables.date_cells import DateCells
from gradflow.tables.options import option
from gradflow.tables.table import Column, text_column

Array = npt.NDArray[Any]

NAT = int(np.iinfo(np.int64).min)
"""The microseconds of a missing date."""

_TYPES: dict[str, Any] = {
    "": np.timedelta64,  # a number, for Python
    "bool": (bool, np.bool_),
    "number": (numbers.Real, Decimal),
    "text": str,
    "date": (date, np.datetime64),
}
"""The types of the Python objects of each kind, in the order in which they are tried; "" is for those of none."""


class TypedColumn:
    """Makes one column; what it holds is told by its type, and for texts whether all are dates.

    name: of the column. kind: what the column must be, None if its type tells. source: for messages.
    start: the number of the first row, for messages. notes: where to say what the user should know.
    """

    def __init__(self, name: str, kind: str | None, source: str, start: int, notes: list[str]) -> None:
        self.name, self.source, self.start, self.notes = name, source, start, notes
        self.kind, _, self.layout = (kind or "").partition(" ")

    def where(self, row: int) -> str:
        return f"row {self.start + row} (counted from 0)"

    def error(self, row: int, what: str) -> DataError:
        ignored, as_text = option("ignore", self.name), option("categorical", self.name)
        remedies = f": leave the column out{ignored}, or take it as text{as_text}"
        return DataError(
            f"{self.source}, {self.where(row)}, column {self.name!r}: {what}{'' if self.kind else remedies}"
        )

    def refused(self, type_name: str) -> DataError:
        """Return the error of a column whose values have a type that cannot be used."""
        what = f"column {self.name!r} holds values of the type {type_name}, which are neither numbers, texts nor dates"
        return DataError(f"{self.source}: {what}: leave it out{option('ignore', self.name)}")

    def empty(self, rows: int) -> Column:
        """Return a column without values."""
        if self.kind == "text":
            return Column(self.name, "text", np.full(rows, -1, np.int32))
        if self.kind == "date":
            return Column(self.name, "date", np.full(rows, np.datetime64("NaT", "us")), layout=self.layout)
        return Column(self.name, "number", np.full(rows, np.nan))

    def numbers(self, values: Array, missing: Array) -> Column:
        """Return a column of numbers.

        values: (rows,) of any dtype of integers or floats. missing: (rows,) of bools; NaN is missing, too.
        """
        if values.dtype.kind == "f":
            missing = missing | np.isnan(values)
        if missing.all():
            return self.empty(len(values))
        if self.kind == "text":
            levels, places = np.unique(values[~missing], return_inverse=True)
            codes = np.full(len(values), -1, np.int32)
            codes[~missing] = places
            return self.texts(codes, [_as_text(level) for level in levels.tolist()])
        self._check_kind("number")
        for row in np.flatnonzero(~missing & ~(np.abs(values.astype(np.float64)) < EXACT)).tolist():
            self._check_number(row, values[row].item())
        return Column(self.name, "number", np.where(missing, np.nan, values.astype(np.float64)))

    def bools(self, values: Array, missing: Array) -> Column:
        """Return a column of the texts False and True; of 0 and 1 if it must be numbers."""
        if self.kind == "number":
            return self.numbers(values.astype(np.float64), missing)
        return self.texts(np.where(missing, -1, values).astype(np.int32), ["False", "True"])

    def dates(self, microseconds: Array) -> Column:
        """Return a column of dates, of microseconds since 1970 (rows,) as int64, NAT where they are missing."""
        values = microseconds.view("datetime64[us]").copy()  # not the memory of a frame
        if np.isnat(values).all():
            return self.empty(len(values))
        if self.kind == "text":
            levels, codes = np.unique(values, return_inverse=True)  # NaT is the last one
            return self.texts(codes, [_as_text(level) for level in levels])
        self._check_kind("date")
        return Column(self.name, "date", values, layout="Y-m-d")

    def texts(self, codes: Array, levels: Sequence[str | None]) -> Column:
        """Return a column of texts; of dates if all of them are.

        codes: (rows,); the place of each text in `levels`, -1 where it is missing. levels: in any order, perhaps
        repeated; white space at both ends is left out, and None and the empty text are missing.
        """
        places: dict[str, int] = {}
        place = [places.setdefault(text, len(places)) if (text := (level or "").strip()) else -1 for level in levels]
        codes = np.array([*place, -1], np.int32)[codes]
        if (codes < 0).all():
            return self.empty(len(codes))
        texts = list(places)
        if self.kind == "text":
            return text_column(self.name, codes, texts)
        if self.kind:
            return self._read(NumberCells if self.kind == "number" else DateCells, codes, texts)
        cells = TextCells(self.name, self.source, self.where, False, False)
        cells.count(codes, texts)
        if cells.tally["date"] == cells.tally.total():
            return self._read(DateCells, codes, texts)
        if 2 * cells.tally["number"] > cells.tally.total():
            self.notes.append(f"{self.name} is text, by its type, but most of its values are numbers")
            cells.tally["text"] += cells.tally.pop("number")
        cells.judged()
        cells.refuse_unreadable_dates(codes, texts)
        return text_column(self.name, codes, texts)

    def objects(self, values: Sequence[Any]) -> Column:
        """Return a column of Python objects of one kind. Raises DataError for several kinds, and other objects."""
        kinds = [None if _is_missing(value) else _kind_of(value) for value in values]
        first = next((kind for kind in kinds if kind is not None), None)
        if first is None:
            return self.empty(len(values))
        for row, (kind, value) in enumerate(zip(kinds, values, strict=True)):
            if kind == "":
                raise self.refused(type(value).__name__)
            if kind not in (None, first) and self.kind != "text":
                raise self.error(row, f"{shown(str(value))} is a {kind}, and values above are {first}s")
        missing = np.array([kind is None for kind in kinds])
        if first == "bool" and self.kind != "text":
            return self.bools(
                np.array([kind is not None and bool(v) for kind, v in zip(kinds, values, strict=True)]), missing
            )
        if first == "number" and self.kind != "text":
            return self.numbers(np.array([self._number(row, v) for row, v in enumerate(values)], np.float64), missing)
        if set(kinds) <= {None, "date"}:
            return self.dates(np.array([NAT if _is_missing(value) else _microseconds(value) for value in values]))
        levels: dict[str, int] = {}
        codes = [-1 if _is_missing(value) else levels.setdefault(_as_text(value), len(levels)) for value in values]
        return self.texts(np.array(codes, np.int32), list(levels))

    def _check_kind(self, kind: str) -> None:
        if self.kind not in ("", kind):
            raise DataError(f"{self.source}: column {self.name!r} holds {kind}s, and {self.kind}s are expected")

    def _check_number(self, row: int, value: Any) -> None:
        """Raise DataError for an infinite number, and for a whole one that float64 does not hold."""
        if not math.isfinite(value):
            raise self.error(row, f"{value} is not a finite number")
        if not isinstance(value, float) and int(float(value)) != value:
            raise self.error(row, f"{value} is a number that float64 does not hold")

    def _number(self, row: int, value: Any) -> float:
        try:
            number = np.nan if _is_missing(value) else float(value)
        except OverflowError:
            raise self.error(row, "a number that float64 does not hold") from None
        if abs(number) >= EXACT:
            self._check_number(row, value if isinstance(value, (numbers.Integral, Decimal)) else number)
        return number

    def _read(self, reader: type[Cells], codes: Array, levels: list[str]) -> Column:
        """Return texts as numbers or dates, as the cells of a CSV file are read."""

        def where(level: int) -> str:
            return self.where(int((codes == level).argmax()))

        options: dict[str, Any] = {"layout": self.layout} if reader is DateCells else {}
        cells = reader(self.name, self.source, where, False, bool(self.kind), **options)
        cells.add(levels)
        column = cells.column()
        gap: Any = np.nan if column.kind == "number" else np.datetime64("NaT", "us")
        return Column(self.name, column.kind, np.append(column.values, gap)[codes], layout=column.layout)


def _is_missing(value: Any) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, np.datetime64):
        return bool(np.isnat(value))
    return isinstance(value, (float, np.floating, Decimal)) and value != value


def _kind_of(value: Any) -> str:
    """Return the kind of a Python object, "" for one that cannot be used."""
    return next((kind for kind, types in _TYPES.items() if isinstance(value, types)), "")


def _as_text(value: Any) -> str:
    """Return a value as a text: whole numbers without a fraction, dates at midnight without a time, "" for NaT."""
    if isinstance(value, (float, np.floating)) and value == np.floor(value) and np.isfinite(value):
        return str(int(value))
    if isinstance(value, np.datetime64):
        return "" if np.isnat(value) else str(value).removesuffix(".000000").removesuffix("T00:00:00")
    return str(value)


def _microseconds(value: date | np.datetime64) -> int:
    """Return the microseconds since 1970 of a date, in UTC if it has a time zone."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC).replace(tzinfo=None)
    return int(np.array(value, "datetime64[us]").astype(np.int64))
