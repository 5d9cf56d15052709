"""The rows of a CSV file in chunks of cells, its separator and the names of its columns; errors name the line."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from gradflow.data.inputs import DataError
from gradflow.files import FilePath
from gradflow.tables.cells import kind_of, shown
from gradflow.tables.lines import Lines, open_lines
from gradflow.tables.numbers import decimal_comma
from gradflow.tables.table import check_names

SEPARATORS = ",;\t|"
_TOLD = re.compile(rf'"?sep=([{SEPARATORS}])"?[{SEPARATORS}]*\n?', re.IGNORECASE).fullmatch
"""A first line of Excel's that tells the separator."""

_SAMPLE_LINES, _SAMPLE_CHARACTERS = 100, 1 << 18
_CHUNK_CELLS, _CHUNK_ROWS, _CHUNK_CHARACTERS, _STEP = 1 << 14, 256, 1 << 22, 64
"""A chunk has about so many cells, which then stay in the cache, but some rows, and not many more characters."""

_INDEX = ("", "Unnamed: 0")
"""Names of a first column of row numbers: as pandas writes them, and as it reads and writes them again."""

Rows = list[list[str]]


class CsvFile:
    """A CSV file. Each pass over its rows opens the file again.

    path: the file. header: whether its first line has the names of the columns.

    `names` are those of the columns, `notes` what the user should know, `comma` is whether the decimal mark is a comma.

    Raises DataError, which names the file and the line, for a file that is no table.
    """

    def __init__(self, path: FilePath, header: bool = True) -> None:
        self.path, self._header, self._skipped, self._fields = os.fspath(path), header, 0, 0
        self.notes: list[str] = []
        self._separator = ""
        with open_lines(path) as lines:
            comment, sample = self._sample(lines)
        self._separator = self._separator or separator_of(sample)
        rows = parsed(sample, self._separator)
        if _has_spaces(rows):
            raise DataError(f"{path}: its fields seem to be separated by spaces: separate them by commas")
        if rows and 1 < len(rows[0]) == len((parsed([comment], self._separator) or [[]])[0]):
            advice = f"remove the # if these are the names of the columns, and the {self._separator!r} if they are not"
            raise DataError(
                f"{path}, line {self._skipped}: a comment has as many fields as the line below it: {advice}"
            )
        if len(rows) < 1 + header:
            with open_lines(path) as lines:
                rows += [row for _, row in itertools.islice(self._rows(lines), 1)]  # raises if a quote is not closed
            if len(rows) < 1 + header:
                raise DataError(f"{path} has no rows below the names of its columns, in line {self._skipped + 1}")
        names = [name.strip() for name in rows[0]] if header else [f"column{i + 1}" for i in range(len(rows[0]))]
        data = rows[header:]
        self.comma, shows = decimal_comma(itertools.chain.from_iterable(data), self._separator == ";")
        self.notes += [f"{shows} is read with a decimal {'comma' if self.comma else 'point'}"] if shows else []
        self._trailing = not data[0][-1].strip() and (
            len(data[0]) == len(names) + 1 or (len(data[0]) == len(names) > 1 and not names[-1])
        )
        if self._trailing:
            names = names[: len(data[0]) - 1]
            self.notes.append("every row ends in a separator")
        self._fields = len(names) + self._trailing
        if header and _is_data(names, data, self.comma):
            cells = ", ".join(shown(name) for name in names[:3])
            advice = "add a line with the names of the columns, say that there is none (--no-header, in Python"
            advice += " header=False), or, if these are names, begin one with a letter"
            raise DataError(f"{path}, line {self._skipped + 1}: {cells} seem to be values, not names: {advice}")
        self._places = {name: place for place, name in enumerate(names)}
        if len(names) > 1 and names[0] in _INDEX:
            del self._places[names.pop(0)]
            self.notes.append("the first column has no name: it is left out, as row numbers are")
        check_names(names, f"{path}, line {self._skipped + 1}")

    def _sample(self, lines: Lines) -> tuple[str, list[str]]:
        """Return the line above the names, if it is a comment, and the first ones from the names on."""
        above, sample = "#", list[str]()
        for line in lines:
            told = None if sample else _TOLD(line)
            if told:
                self._separator = told[1]
            if told or (not sample and (not line.strip() or line[0] == "#")):
                self._skipped += 1
                above = line if line[0] == "#" else "#"
                continue
            sample.append(line)
            if len(sample) == _SAMPLE_LINES or lines.characters > _SAMPLE_CHARACTERS:
                break
        if not sample:
            raise DataError(f"{self.path} is empty")
        return above, sample

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._places)

    def where(self, row: int) -> str:
        """Return the place of a row for messages, such as "line 3"."""
        with open_lines(self.path) as lines:
            return f"line {next(itertools.islice(self._rows(lines), row, None))[0]}"

    def chunks(self, names: Iterable[str]) -> Iterator[list[Sequence[str]]]:
        """Yield the cells of these columns in some rows, then in the next ones.

        Raises DataError, with the line, for rows with fewer or more fields, and quotes that do not close.
        """
        places = [self._places[name] for name in names]
        most = max(_CHUNK_ROWS, _CHUNK_CELLS // self._fields)
        with open_lines(self.path) as lines:
            reader = self._reader(lines)
            if self._header:
                self._next(reader, lines, 1)
            while rows := self._next(reader, lines, most):
                columns = self._columns(rows)
                yield [columns[place] for place in places]

    def _reader(self, lines: Lines) -> Any:
        return _reader(itertools.islice(lines, self._skipped, None), self._separator, strict=True)

    def _next(self, reader: Any, lines: Lines, most: int) -> Rows:
        """Return the next rows, but for empty lines; none at the end of the file."""
        rows, start = list[list[str]](), lines.characters
        try:
            while not rows or (len(rows) < most and lines.characters - start < _CHUNK_CHARACTERS):
                some = list(itertools.islice(reader, min(_STEP, most - len(rows))))
                if not some:
                    break
                rows += some if all(some) else [row for row in some if row]
        except csv.Error:
            self._find_error()
        return rows

    def _columns(self, rows: Rows) -> list[Sequence[str]]:
        """Return the cells of each column."""
        if set(map(len, rows)) != {self._fields}:
            rows = [row for row in rows if not self._is_blank(row)]
        columns: list[Sequence[str]] = list(zip(*rows, strict=False)) or [()] * self._fields
        if set(map(len, rows)) - {self._fields} or (self._trailing and any(map(str.strip, columns[-1]))):
            self._find_error()
        return columns

    def _rows(self, lines: Lines) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows below the names, and the line in which each begins. It is slow, and for errors."""
        reader = self._reader(lines)
        line, in_header = self._skipped + 1, self._header
        try:
            for row in reader:
                if not self._is_blank(row):
                    if not in_header:
                        yield line, row
                    in_header = False
                line = self._skipped + reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{self.path}, line {line}: {_explained(str(error))}") from None

    def _find_error(self) -> NoReturn:
        """Raise DataError for the first row that is wrong."""
        with open_lines(self.path) as lines:
            for line, row in self._rows(lines):
                if len(row) != self._fields or (self._trailing and row[-1].strip()):
                    had = f"{len(row)} field{'s' * (len(row) != 1)}"
                    which = "the last one empty" if self._trailing else f"as in line {self._skipped + 1}"
                    expected = f"{self._fields} {'is' if self._fields == 1 else 'are'} expected, {which}"
                    what = f"{had}, and {expected}: is a separator missing, or one in a text not quoted?"
                    raise DataError(f"{self.path}, line {line}: {what}")
        raise DataError(f"{self.path} was changed while it was read")

    def _is_blank(self, row: list[str]) -> bool:
        return not row or (len(row) == 1 < self._fields and not row[0].strip())


def separator_of(lines: Sequence[str]) -> str:
    """Return the separator by which most rows have as many fields as there are names.

    lines: the first ones of a file.

    Of several, it is one that leaves no other separator in the names, but decimal commas in a file without names; of
    several again, that of most names.
    """
    best, most = SEPARATORS[0], (0.0, False, 1)
    for separator in SEPARATORS:
        names, *rows = parsed(lines, separator) or [[]]
        fit = sum(len(row) - (not row[-1]) <= len(names) <= len(row) for row in rows) / max(1, len(rows))
        clean = not any(set(name) & set(SEPARATORS) and kind_of(name, True) != "number" for name in names)
        if len(names) > 1 and (fit, clean, len(names)) > most:
            best, most = separator, (fit, clean, len(names))
    return best


def parsed(lines: Sequence[str], separator: str) -> Rows:
    """Return the rows in the first lines of a file, up to one that cannot be read; the last one may be cut off."""
    rows: Rows = []
    with contextlib.suppress(csv.Error):
        rows.extend(row for row in _reader(lines, separator, strict=False) if row)
    return rows


def _has_spaces(rows: Rows) -> bool:
    """Return whether each row is one field of as many words as there are names, of which most are numbers."""
    names, *words = [row[0].split() for row in rows if len(row) == 1] or [[]]
    return (
        len(names) > 1
        and 1 < len(rows) == 1 + len(words)
        and all(
            len(row) == len(names)
            and 2 * sum(kind_of(word, False) == "number" for word in row) > len(row)
            and kind_of(" ".join(row), False) != "number"
            for row in words
        )
    )


def _reader(lines: Iterable[str], separator: str, strict: bool) -> Any:
    return csv.reader(lines, delimiter=separator, strict=strict, skipinitialspace=True)


def _is_data(names: Sequence[str], rows: Rows, comma: bool) -> bool:
    """Return whether the first row has values like those of the other rows, with a number or a date among them.

    0, 1, 2 and so on are names, which pandas gives to the columns of an array, and so are years in a row.
    """
    kinds = [kind_of(name, comma) for name in names]
    numbers = [name for name, kind in zip(names, kinds, strict=True) if kind == "number"]
    first = int(numbers[0]) if len(numbers) > 2 and numbers[0].isdecimal() else -1
    if (first == 0 or 1800 <= first < 2100) and numbers == [str(first + i) for i in range(len(numbers))]:
        return False
    if not {"number", "date"} & set(kinds):
        return False
    for place, kind in enumerate(kinds):
        below = {kind_of(row[place], comma) for row in rows if place < len(row)} - {"missing"}
        if kind != "missing" and not (below == {kind} or (kind == "text" and kind in below)):
            return False
    return True


def _explained(error: str) -> str:
    """Return what an error of Python's `csv` means."""
    if "unexpected end" in error:
        return "a quote opens here that never closes"
    if "field larger" in error:
        return f"a cell has more than {csv.field_size_limit():,} characters: is a quote not closed?"
    return f"a quote inside quotes must be doubled, and a separator must follow the last one ({error})"
