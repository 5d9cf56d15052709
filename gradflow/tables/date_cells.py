"""A column of dates of a CSV file, all in one layout, which may leave open whether the day or the month comes first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.tables.cells import Cells, OtherKind, shown
from gradflow.tables.dates import iso_dates, read_date
from gradflow.tables.numbers import MARKERS
from gradflow.tables.table import Column

Array = npt.NDArray[Any]

_NAT = int(np.iinfo(np.int64).min)
_REMEMBERED = 1 << 16
"""The most distinct dates that are not read again."""

_SLASHED = ("d/m/Y", "m/d/Y")


class DateCells(Cells):
    """A column of dates, all in one layout."""

    kind = "date"

    def __init__(self, *options: Any, layout: str = "") -> None:
        super().__init__(*options)
        self.layout = layout
        self.read: dict[str, tuple[int, int]] = {}
        self.strange: set[str] = set()
        self.layouts: dict[str, tuple[int, str]] = {}
        self.impossible: dict[int, tuple[int, str]] = {}
        self.ambiguous: tuple[int, str] | None = None

    def add(self, cells: Sequence[str]) -> None:
        dates = iso_dates(cells)
        if dates is None:
            values = self._careful(cells)
        else:
            values = np.broadcast_to(dates.view(np.int64), (2, len(cells)))
        there = (values != _NAT).any(axis=0)
        if dates is not None and "Y-m-d" not in self.layouts and there.any():
            first = int(there.argmax())
            self.layouts["Y-m-d"] = self.rows + first, cells[first]
        self.tally["date"] += int(np.count_nonzero(there))
        self.parts.append(values)
        self.rows += len(cells)

    def _careful(self, cells: Sequence[str]) -> Array:
        """Return the dates with the day first and with the month first, in microseconds; other cells are counted."""
        if len(self.read) > _REMEMBERED:
            self.read.clear()
        for cell in dict.fromkeys(cells):
            if cell not in self.read:
                self.read[cell] = self._read(cell, cells)
        self.odd(cells, self.strange)
        return np.array([self.read[cell] for cell in cells], np.int64).reshape(-1, 2).T

    def _read(self, cell: str, cells: Sequence[str]) -> tuple[int, int]:
        """Return the microseconds of a date with the day first and with the month first; note what it tells."""
        date = read_date(cell.strip())
        if date is None:
            self.strange |= {cell} if cell.strip().lower() not in MARKERS else set()
            return _NAT, _NAT
        orders = date.day_first, date.month_first
        impossible = [order for order, value in enumerate(orders) if value is None and order not in self.impossible]
        ambiguous = None not in orders and orders[0] != orders[1] and self.ambiguous is None
        if date.layout not in self.layouts or impossible or ambiguous:
            place = self.rows + cells.index(cell), cell
            self.layouts.setdefault(date.layout, place)
            self.impossible |= dict.fromkeys(impossible, place)
            self.ambiguous = place if ambiguous else self.ambiguous
        return tuple(_NAT if value is None else value for value in orders)  # type: ignore[return-value]

    def column(self) -> Column:
        if not self.given and (kind := self.judged()) != "date":
            raise OtherKind(kind)
        if len(self.layouts) > 1:
            self._refuse_two(*list(self.layouts.values())[:2])
        values, order = self.joined(), self._order()
        layout = next(iter(self.layouts), "").split(" ")[0]
        layout = _SLASHED[order] if layout == "/" else layout
        return Column(self.name, "date", values[order].view("datetime64[us]"), layout=layout)

    def _order(self) -> int:
        """Return 0 if the day comes before the month in dates with slashes, 1 if it comes after it."""
        if self.layout in _SLASHED:
            order = _SLASHED.index(self.layout)
            if order in self.impossible:
                row, cell = self.impossible[order]
                raise self.error(
                    row, f"{shown(cell)} is not a date {self.layout}, as all values of this column must be"
                )
            return order
        if len(self.impossible) == 2:
            self._refuse_two(*sorted(self.impossible.values()))
        if self.ambiguous and not self.impossible:
            row, cell = self.ambiguous
            what = f"in {shown(cell)}, day and month may be in either order, and no other of these dates tells in which"
            raise self.error(row, what, "write dates as 2023-12-31, ")
        return int(0 in self.impossible)

    def _refuse_two(self, first: tuple[int, str], second: tuple[int, str]) -> None:
        what = f"{shown(second[1])} and, in {self.where(first[0])}, {shown(first[1])} are dates in two forms"
        raise self.error(second[0], what, "write all as 2023-12-31, ")
