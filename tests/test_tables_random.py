"""Random tables, written as CSV in random dialects, come back equal; mutated files give our error or values."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import mutants

from gradflow.data import DataError
from gradflow.tables import Table, read_chunks, read_table
from gradflow.tables.cells import NumberCells, OtherKind
from gradflow.tables.numbers import MARKERS, read_number

pytest.importorskip("hypothesis", reason="hypothesis, of the extra test, is not installed")
from hypothesis import given
from hypothesis import strategies as st

Draw = Callable[..., Any]

LETTER = st.characters(categories=("L",)).filter(lambda c: c not in "iInN")  # begin inf and NA
VISIBLE = st.characters(exclude_categories=("Cs", "Cc", "Z"))
LAYOUTS = (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S.%f", "%m/%d/%Y %I:%M %p",
)  # fmt: skip
ENCODINGS = ((b"", "utf-8"), (b"", "utf-8-sig"), (b"", "utf-16"), (b"\xfe\xff", "utf-16-be"))
SIGNS = ("", "", "${}", "{}%", "{} \u20ac")


@dataclass
class Written:
    """A file, and what is in it: whether it has names, and the kind and the values of each column by its name."""

    content: bytes
    header: bool
    columns: dict[str, tuple[str, list[Any]]]


def a_text(draw: Draw, first: str, separator: str, others: str = "") -> str:
    """A text that begins with these characters, with all that must be quoted, but without some separators."""
    visible = VISIBLE.filter(lambda c: c == separator or c not in others)
    return first + draw(st.text(visible | st.sampled_from([" ", "\n", '"', separator]), max_size=8)).rstrip()


def a_number(draw: Draw, mark: str) -> tuple[str, float]:
    """A number as text, and its value."""
    whole = st.integers(-(2**53), 2**53) | st.integers(-2000, 2000)
    value = draw(whole | st.floats(allow_nan=False, allow_infinity=False))
    text = f"{value:,}" if abs(value) < 1e15 and draw(st.booleans()) else str(value)
    by = draw(st.sampled_from([".", " ", "'", "\xa0"] if mark == "," else [",", " ", "'", "\u202f"]))
    text = text.replace(",", "by").replace(".", mark).replace("by", by)
    text = text.replace("-", draw(st.sampled_from(["-", "\u2212"])))
    return ("+" if value > 0 and draw(st.booleans()) else "") + text, float(value)


def a_column(draw: Draw, kind: str, rows: int, mark: str, separator: str) -> tuple[list[str], list[Any]]:
    """The cells and the values of a column, whose first row tells which mark and which layout is used."""
    layout, sign = draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(SIGNS))
    cells, values = list[str](), list[Any]()
    for row in range(rows):
        cell: str
        value: Any
        if row and draw(st.booleans()):
            cell, value = "" if kind == "text" else draw(st.sampled_from(sorted(MARKERS))), None
        elif kind == "number":
            cell, value = a_number(draw, mark) if row else (f"0{mark}5", 0.5)
            cell = sign.format(cell) if sign else cell
        elif kind == "text":
            cell = value = a_text(draw, draw(LETTER) if row else "x", separator)
        else:
            days = st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 31))
            cell = (draw(days) if row else datetime(2023, 12, 31)).strftime(layout)
            value = datetime.strptime(cell, layout)
        cells.append(cell)
        values.append(value)
    return cells, values


@st.composite
def written(draw: Draw) -> Written:
    """A random table as a CSV file in a random dialect."""
    width, rows = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    separator, mark = draw(st.sampled_from(",;\t|")) if width > 1 else ",", draw(st.sampled_from(".,"))
    names = [a_text(draw, f"n{i}", separator, others=",;\t|") for i in range(width)]
    kinds = ["number", *(draw(st.sampled_from(["number", "text", "date"])) for _ in names[1:])]
    made = [a_column(draw, kind, rows, mark, separator) for kind in kinds]
    ending = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    file = io.StringIO(newline="")
    file.write(draw(st.sampled_from(["", "# by a test" + ending, ending, f"sep={separator}{ending}"])))
    quoting = csv.QUOTE_ALL if ending == "\r" or draw(st.booleans()) else csv.QUOTE_MINIMAL
    writer = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator=ending)
    header, trailing, blank = draw(st.integers(0, 3)) > 0, draw(st.booleans()), draw(st.booleans())
    index = header and width > 1 and draw(st.booleans())
    names = names if header else [f"column{i + 1}" for i in range(width)]
    for row, fields in enumerate([*([names] if header else []), *zip(*(cells for cells, _ in made), strict=True)]):
        writer.writerow([*([str(row) if row else ""] if index else []), *fields, *([""] if trailing else [])])
        if blank and draw(st.booleans()):
            file.write(ending)
    mark_of_order, encoding = draw(st.sampled_from(ENCODINGS))
    content = mark_of_order + file.getvalue().encode(encoding)
    columns = {name: (kind, values) for name, kind, (_, values) in zip(names, kinds, made, strict=True)}
    return Written(gzip.compress(content) if draw(st.booleans()) else content, header, columns)


def check(table: Table, columns: dict[str, tuple[str, list[Any]]]) -> None:
    assert table.names == tuple(columns)
    for name, (kind, values) in columns.items():
        column = table[name]
        assert column.kind == kind, name
        if kind == "text":
            assert column.texts() == values
        elif kind == "number":
            np.testing.assert_array_equal(column.values, np.array(values, np.float64))
        else:
            np.testing.assert_array_equal(column.values, np.array(values, "datetime64[us]"))


@pytest.mark.slow
def test_a_random_table_in_a_random_dialect_comes_back_equal(
    random_examples: Callable[[int], Any], tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"

    @random_examples(150)
    @given(written())
    def run(file: Written) -> None:
        path.write_bytes(file.content)
        table = read_table(path, header=file.header)
        check(table, file.columns)
        kinds = {name: table[name].reads_as for name in reversed(table.names)}
        again = read_table(path, kinds=kinds, header=file.header)
        assert again.names == tuple(kinds)
        check(again, {name: file.columns[name] for name in kinds})
        (part,) = read_chunks(path, kinds, header=file.header)
        check(part, {name: file.columns[name] for name in kinds})

    run()


NUMBERS = st.one_of(
    st.text("0123456789.,eE+-_ '%$\u0661naif", max_size=4),
    st.from_regex("[+-]?[0-9]{1,3}([.,' ][0-9]{3}){0,2}([.,][0-9]{0,3})?", fullmatch=True),
    st.integers(2**53, 2**60).map(str),
    st.integers(0, 10**9).map("{:,}".format),
    st.floats().map(str),
    st.from_regex("[ +-]?0[0-9]{1,3}", fullmatch=True),
    st.sampled_from(sorted(MARKERS)),
)


@pytest.mark.slow
def test_columns_of_numbers_are_read_as_their_cells_are(random_examples: Callable[[int], Any]) -> None:
    """Also where all cells of a column are converted at once."""
    shown = {"same": 0, "refused": 0, "text": 0}

    @random_examples(400)
    @given(st.lists(NUMBERS, min_size=1, max_size=3), st.booleans())
    def run(cells: list[str], comma: bool) -> None:
        values = [read_number(cell, comma) for cell in cells]
        plain = [cell for cell, value in zip(cells, values, strict=True) if value is not None and not math.isnan(value)]
        column = NumberCells("a", "file", "row {}".format, comma, False)
        column.add(cells)
        if None in values or not plain or column.sign:
            return
        huge = [c for c, v in zip(cells, values, strict=True) if v is not None and _is_lost(c, v, comma)]
        zeros = [c for c in plain if re.fullmatch(r"\s*[+-]?0[0-9]+\s*", c)]
        outcome = "same"
        try:
            read = column.column()
        except DataError as error:
            outcome = str(error)
        except OtherKind as other:
            outcome = other.kind
        if zeros:
            assert outcome == "text"
        elif huge:
            assert repr(huge[0]) in outcome
        else:
            assert outcome == "same"
            np.testing.assert_array_equal(read.values, np.array(values, np.float64))
        shown["text" if zeros else "refused" if huge else "same"] += 1

    run()
    assert min(shown.values()) > 0, shown


def _is_lost(cell: str, value: float, comma: bool) -> bool:
    """Whether float64 does not hold a number, infinite or whole and written with digits alone."""
    if math.isinf(value):
        return True
    digits = re.sub(r"[ '.\xa0]" if comma else r"[ ',\xa0]", "", cell.strip())
    return re.fullmatch("[+-]?[0-9]+", digits) is not None and Fraction(digits) != Fraction(value)


TABLES = (
    b'id,size,price,day,kind,zip\n1,2.5,"1,234",2024-01-31,cat,01234\n2,,"2,345.5",2024-02-01,"d""og, \nold",00501\n'
    b"3,NA,12,,?,10001\n4,1e3,7,2024-02-03,,99999\n",
    "größe;preis;tag;art\n1,5;1.234,5 €;31.12.2023;Bär\n2;5 €;01.01.2024;Wal\n\n".encode(),
    "# exported\na\tb\td\n1\t12/31/2023\tx\n2\t1/2/2024\ty\n".encode("utf-16"),
    gzip.compress(b"a|b\n" + b"1|x\n2|y\n" * 300),
)


@pytest.mark.parametrize("content", TABLES, ids=["commas", "semicolons", "UTF-16", "gzip"])
def test_a_mutated_file_gives_our_error_or_values(
    content: bytes, random_examples: Callable[[int], Any], tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    valid = read_table(path)
    assert len(valid) > 1
    kinds = {column.name: column.reads_as for column in valid.columns}
    outcomes = {"values": 0, "refused": 0}
    for what, mutant in mutants(content, random_examples(100).max_examples):
        path.write_bytes(mutant)
        try:
            table, message = read_table(path), ""
        except DataError as error:
            table, message = None, str(error)
        with contextlib.suppress(DataError):
            assert sum(len(part) for part in read_chunks(path, kinds)) > 0, what
        outcomes["values" if table else "refused"] += 1
        if table:
            assert {len(column) for column in table.columns} == {len(table)}, what
            assert not any(np.isinf(column.values).any() for column in table.columns if column.kind == "number"), what
        else:
            assert message.startswith((str(path), f"cannot read {path}")), what
            assert message.isprintable(), what
    assert outcomes["refused"] > 20
    assert outcomes["values"] > 5, outcomes
