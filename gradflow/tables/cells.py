"""The cells of one column of a CSV file, read chunk by chunk as numbers, texts or dates.

The first cells suggest what a column holds; the whole column decides. A column of numbers in which a few cells are none
is an error that names the first of them: more often than a column of texts, it is a mistake in the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.data.inputs import DataError
from gradflow.tables.dates import is_unreadable_date, read_date
from gradflow.tables.numbers import (
    AS_NAN,
    NAN,
    digits_of,
    is_unreadable_number,
    read_number,
    split_sign,
    unit_of,
    with_points,
)
from gradflow.tables.options import option
from gradflow.tables.table import Column, text_column

Array = npt.NDArray[Any]
Where = Callable[[int], str]

EXACT = 2.0**53
"""float64 holds every whole number below this one."""

_POWERS = [10.0**k for k in range(1, 17)]


def shown(cell: str) -> str:
    """Return a cell for a message; a long one is cut."""
    return repr(cell if len(cell) <= 40 else f"{cell[:40]}...")


def kind_of(cell: str, comma: bool) -> str:
    """Return "number", "date", "text", or "missing" for a mark of a missing value.

    comma: whether the decimal mark is a comma.
    """
    value = read_number(cell, comma)
    if value is None and cell[:1].isalpha():
        return "text"
    if value is None:
        signed = read_number(split_sign(cell)[1], comma)
        if signed is None or signed != signed:
            return "date" if read_date(cell.strip()) else "text"
        return "number"
    return "number" if value == value else "missing"


def guessed(cells: Sequence[str], comma: bool) -> str:
    """Return what a column seems to hold, by some of its cells: "number", "date" or "text"."""
    tally = Counter(kind_of(cell, comma) for cell in cells)
    del tally["missing"]
    return next((kind for kind in ("date", "text") if 2 * tally[kind] >= max(1, tally.total())), "number")


class OtherKind(Exception):  # noqa: N818 - no error: the column is read again
    """A column turned out to be of another kind than it seemed, perhaps with a note for the user."""

    def __init__(self, kind: str, *notes: str) -> None:
        self.kind, self.notes = kind, notes


class Cells:
    """The cells of a column so far.

    name: of the column. source: of the file, for messages. where: returns the place of a row, such as "line 3".
    comma: whether the decimal mark is a comma. given: whether the kind was given, so that every cell must fit.
    start: the first row. `rows` is the next one.
    """

    kind = ""

    def __init__(self, name: str, source: str, where: Where, comma: bool, given: bool, start: int = 0) -> None:
        self.name, self.source, self.where, self.comma, self.given = name, source, where, comma, given
        self.rows = start
        self.parts: list[Array] = []
        self.tally: Counter[str] = Counter()
        self.first_odd: tuple[int, str] | None = None

    @property
    def notes(self) -> list[str]:
        """What the user should know about how the column was read."""
        return []

    def add(self, cells: Sequence[str]) -> None:
        """Read the cells of the next rows. Raises DataError for a cell that does not fit, if the kind was given."""
        raise NotImplementedError

    def column(self) -> Column:
        """Return the column of all cells.

        Raises DataError for cells that fit no kind, or not each other; OtherKind if the column must be read again.
        """
        raise NotImplementedError

    def error(self, row: int, what: str, remedy: str = "") -> DataError:
        """Return an error about a cell. remedy: what else the user can do than to leave the column out."""
        ignored, as_text = option("ignore", self.name), option("categorical", self.name)
        remedies = f": {remedy}leave the column out{ignored}, or take it as text{as_text}"
        return DataError(
            f"{self.source}, {self.where(row)}, column {self.name!r}: {what}{'' if self.given else remedies}"
        )

    def odd(self, cells: Sequence[str], strange: set[str]) -> None:
        """Count the cells of the next rows that are not of the kind of the column, which are the `strange` ones."""
        for row, cell in enumerate(cells, self.rows) if strange else ():
            if cell in strange:
                if self.given:
                    raise self.error(row, f"{shown(cell)} is not a {self.kind}, as all values of this column must be")
                self.first_odd = self.first_odd or (row, cell)
                kind = kind_of(cell, self.comma)
                self.tally["text" if kind == self.kind else kind] += 1  # a number with another sign

    def judged(self) -> str:
        """Return the kind of most cells, "text" if there is none.

        Raises DataError if most cells, but not all, are numbers or dates, unless a column of these will tell.
        """
        total = self.tally.total()
        if not total:
            return self.kind
        most = next((kind for kind in ("number", "date") if 2 * self.tally[kind] > total), "text")
        if most != "text" and self.kind in (most, "text") and self.tally[most] < total:
            assert self.first_odd
            row, cell = self.first_odd
            what = f"{shown(cell)} is not a {most}, and {self.tally[most]} of {total} values of the column are"
            raise self.error(row, what, "correct it, ")
        return most

    def joined(self) -> Array:
        """Return the values of all rows, of which no copy is kept."""
        parts, self.parts = self.parts, []
        return np.concatenate(parts, axis=-1)


class NumberCells(Cells):
    """A column of numbers."""

    kind = "number"

    def __init__(self, *options: Any) -> None:
        super().__init__(*options)
        self.sign: str | None = None
        self.unusable: tuple[int, str] | None = None
        self.leading_zero: tuple[int, str] | None = None

    @property
    def notes(self) -> list[str]:
        return [f"{self.name} is read without the sign {self.sign}"] if self.sign else []

    def add(self, cells: Sequence[str]) -> None:
        text = "".join(cells)
        values = None if self.sign else self._plain(cells, text)
        if values is None:
            values = self._careful(cells)
        there = values[~np.isnan(values)]
        self.tally["number"] += len(there)
        if len(there):
            self.sign = self.sign or ""
            self._check_huge(cells, values)
            self._check_zeros(cells, values, there, text)
        self.parts.append(values)
        self.rows += len(cells)

    def _plain(self, cells: Sequence[str], text: str) -> Array | None:
        """Return the numbers if Python's `float` reads all cells as `read_number` does, else None."""
        if "_" in text or not text.isascii():
            return None
        if self.comma or "," in text:
            plain = with_points(cells, self.comma)
            if plain is None:
                return None
            cells = plain
        try:
            return np.fromiter(map(float, cells), np.float64, len(cells))
        except ValueError:
            pass
        try:
            return np.fromiter(map(float, map(AS_NAN.get, cells, cells)), np.float64, len(cells))
        except ValueError:
            return None

    def _careful(self, cells: Sequence[str]) -> Array:
        """Return the numbers, NaN for missing ones and for other cells, which are counted."""
        if self.sign is None:
            signed = (split_sign(cell) for cell in cells)
            self.sign = next((sign for sign, rest in signed if kind_of(rest, self.comma) == "number"), None)
        read = {cell: self._read(cell) for cell in set(cells)}
        self.odd(cells, {cell for cell, value in read.items() if value is None})
        return np.array([NAN if (value := read[cell]) is None else value for cell in cells], np.float64)

    def _read(self, cell: str) -> float | None:
        value = read_number(cell, self.comma)
        if not self.sign or (value is not None and value != value):
            return value
        sign, rest = split_sign(cell)
        return read_number(rest, self.comma) if sign == self.sign and rest.strip() else None

    def _check_huge(self, cells: Sequence[str], values: Array) -> None:
        """Note the first infinite number, or whole one that float64 does not hold; a given kind allows none."""
        for i in [] if self.unusable else np.flatnonzero(np.abs(values) >= EXACT).tolist():
            digits = digits_of(cells[i], self.comma)
            if np.isinf(values[i]) or (digits and int(digits.lstrip("0")) != abs(int(values[i]))):
                self.unusable = self.rows + i, cells[i]
                if self.given:
                    self._refuse_unusable()
                return

    def _check_zeros(self, cells: Sequence[str], values: Array, there: Array, text: str) -> None:
        """Note the first whole number with a leading zero, such as 007; most columns show at a glance that none has."""
        whole = there == np.floor(there)
        if self.leading_zero or self.given or not whole.any():
            return
        others = "".join([cells[i] for i in np.flatnonzero(np.isnan(values)).tolist()])
        mark = "," if self.comma else "."
        if text.count(mark) - others.count(mark) == len(there):
            return  # all are written with a fraction
        if whole.all() and "e" not in text and "E" not in text:
            digits = len(there) + sum(np.count_nonzero(np.abs(there) >= power) for power in _POWERS)
            by = "." if self.comma else ","
            others += by * (text.count(by) - others.count(by))
            if digits + np.count_nonzero(there < 0) == len(text) - len(others):
                return  # all are written as briefly as possible
        for i in np.flatnonzero(values == np.floor(values)).tolist():
            number = split_sign(cells[i])[1].strip().lstrip("+-")
            if number[:1] == "0" and len(digits_of(number, self.comma) or "") > 1:
                self.leading_zero = self.rows + i, cells[i]
                return

    def _refuse_unusable(self) -> None:
        if self.unusable:
            row, cell = self.unusable
            what = "a number that float64 does not hold" if digits_of(cell, self.comma) else "not a finite number"
            raise self.error(row, f"{shown(cell)} is {what}")

    def column(self) -> Column:
        if not self.given:
            kind = self.judged()
            if kind != "number":
                raise OtherKind(kind)
            if self.leading_zero:
                row, cell = self.leading_zero
                raise OtherKind(
                    "text", f"{self.name} has leading zeros ({cell.strip()} in {self.where(row)}): it is text"
                )
        self._refuse_unusable()
        return Column(self.name, "number", self.joined())


class TextCells(Cells):
    """A column of texts, without the white space at both ends. Only the empty cell is missing."""

    kind = "text"

    def __init__(self, *options: Any) -> None:
        super().__init__(*options)
        self.unit = ""
        self.levels: dict[str, int] = {}
        self.codes: dict[str, int] = {}

    @property
    def notes(self) -> list[str]:
        what = f"{self.name} is text, as its numbers have the unit {self.unit}: without it they are read as numbers"
        return [what] if self.unit else []

    def add(self, cells: Sequence[str]) -> None:
        try:
            self.parts.append(np.fromiter(map(self.codes.__getitem__, cells), np.int32, len(cells)))
        except KeyError:
            for cell in set(cells).difference(self.codes):
                level = cell.strip()
                self.codes[cell] = self.levels.setdefault(level, len(self.levels)) if level else -1
            self.add(cells)
        else:
            self.rows += len(cells)

    def column(self) -> Column:
        codes, levels = self.joined(), list(self.levels)
        if not self.given:
            self.count(codes, levels)
            self.judged()
            self.refuse_unreadable_dates(codes, levels)
            self._refuse_unreadable_numbers(codes, levels)
            self.unit = next((unit_of(level, self.comma) for level in levels), "")
            self.unit *= bool(self.unit) and all(unit_of(level, self.comma) == self.unit for level in levels)
        return text_column(self.name, codes, levels)

    def count(self, codes: Array, levels: Sequence[str]) -> None:
        """Count how many of all cells are numbers, dates and texts, and find the first that differs from most of them.

        codes: (rows,); the place of each text in `levels`; -1 where it is missing.
        """
        kinds = [kind_of(level, self.comma) for level in levels]
        for kind, count in zip(kinds, np.bincount(codes[codes >= 0], minlength=len(levels)).tolist(), strict=True):
            self.tally[kind] += count
        del self.tally["missing"]
        most = max(("number", "date"), key=self.tally.__getitem__)
        self.first_odd = self._first(codes, levels, [kind not in (most, "missing") for kind in kinds])

    def refuse_unreadable_dates(self, codes: Array, levels: Sequence[str]) -> None:
        """Raise DataError if most texts are dates in a form that is not read. Arguments as for `count`."""
        unreadable = [is_unreadable_date(level) for level in levels]
        self._refuse(codes, levels, unreadable, 0, "a date or a time", "dates as 2023-12-31 and times as numbers")

    def _refuse_unreadable_numbers(self, codes: Array, levels: Sequence[str]) -> None:
        unreadable = [is_unreadable_number(level, self.comma) for level in levels]
        self._refuse(
            codes, levels, unreadable, self.tally["number"], "a number", f"it as -1234{',' if self.comma else '.'}5"
        )

    def _refuse(
        self, codes: Array, levels: Sequence[str], unreadable: Sequence[bool], others: int, what: str, form: str
    ) -> None:
        first = self._first(codes, levels, unreadable)
        if first and 2 * (others + np.array([*unreadable, False])[codes].sum()) > self.tally.total():
            raise self.error(first[0], f"{shown(first[1])} seems to be {what} that is not read", f"write {form}, ")

    @staticmethod
    def _first(codes: Array, levels: Sequence[str], chosen: Sequence[bool]) -> tuple[int, str] | None:
        """Return the first row with one of the chosen levels, and the level; None if there is none."""
        there = np.array([*chosen, False])[codes]
        row = int(there.argmax()) if len(there) else 0
        return (row, levels[codes[row]]) if there.any() else None
