"""The columns of a CSV file: its cells read as numbers, texts or dates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gradflow.data.inputs import DataError
from gradflow.environment import physical_memory
from gradflow.files import FilePath
from gradflow.tables.cells import Cells, NumberCells, OtherKind, TextCells, guessed
from gradflow.tables.csv_rows import CsvFile
from gradflow.tables.date_cells import DateCells
from gradflow.tables.table import Column, Kinds

_CELLS: dict[str, type[Cells]] = {"number": NumberCells, "text": TextCells}
_GUESSED_BY = 100
"""How many cells suggest what a column is."""


class CsvSource:
    """A CSV file as a source of columns. Arguments as for `CsvFile`."""

    def __init__(self, path: FilePath, header: bool = True) -> None:
        self._file = CsvFile(path, header)
        self.source, self.names, self.notes = self._file.path, self._file.names, self._file.notes

    def read(self, kinds: Kinds) -> list[Column]:
        """Return these columns. Those that turn out to be of another kind than it seemed are read again."""
        columns: dict[str, Column] = {}
        unread, given = dict(kinds), True
        while unread:
            again: dict[str, str | None] = {}
            for name, cells in self._filled(unread, given):
                try:
                    columns[name] = cells.column()
                    self.notes += cells.notes
                except OtherKind as other:
                    again[name] = other.kind
                    self.notes += other.notes
            unread, given = again, False
        return [columns[name] for name in kinds]

    def chunks(self, kinds: Kinds, rows: int) -> Iterator[list[Column]]:
        """Yield these columns for at least so many rows, then for the next ones; their kinds are given."""
        start, cells = 0, list[Cells]()
        for chunk in self._file.chunks(kinds):
            cells = cells or self._empty(kinds, chunk, True, start)
            for each, part in zip(cells, chunk, strict=True):
                each.add(part)
            if cells[0].rows >= start + rows:
                yield [each.column() for each in cells]
                start, cells = cells[0].rows, []
        if cells:
            yield [each.column() for each in cells]

    def _filled(self, kinds: Kinds, given: bool) -> Iterator[tuple[str, Cells]]:
        """Yield the cells of each column, after all rows were read; no reference to them is kept."""
        cells = list[Cells]()
        most = physical_memory() / 2
        for chunk in self._file.chunks(kinds):
            cells = cells or self._empty(kinds, chunk, given, 0)
            for each, part in zip(cells, chunk, strict=True):
                each.add(part)
            if 8 * len(cells) * cells[0].rows > most:
                raise DataError(f"{self.source} needs more memory than there is")
        for name in kinds:
            yield name, cells.pop(0)

    def _empty(self, kinds: Kinds, chunk: Sequence[Sequence[str]], given: bool, start: int) -> list[Cells]:
        """Return what will hold the cells from a row on; the first ones suggest kinds that are not known."""
        made: list[Cells] = []
        for (name, known), part in zip(kinds.items(), chunk, strict=True):
            kind, _, layout = (known or guessed(part[:_GUESSED_BY], self._file.comma)).partition(" ")
            options = name, self.source, self._file.where, self._file.comma, given and known is not None, start
            made.append(DateCells(*options, layout=layout) if kind == "date" else _CELLS[kind](*options))
        return made
