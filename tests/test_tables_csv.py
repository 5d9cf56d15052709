"""Each file of `tests/csv/` gives what `expected.toml` says, and other files that CSV readers often read wrong."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from table_files import refusal, written

from gradflow.data import DataError
from gradflow.tables import Column, Table, read_chunks, read_table

FOLDER = Path(__file__).parent / "csv"
EXPECTED = tomllib.loads((FOLDER / "expected.toml").read_text("utf-8"))
GENERATED = next(name for name in EXPECTED if name.startswith("generated"))


def values_in(expected: str) -> list[float | str]:
    """The values in a text of `expected.toml`, such as "number 1, 3" and "text 'a', 'b'"."""
    kind, _, values = expected.partition(" ")
    if kind == "number":
        return [float(value) for value in values.split(", ")]
    return re.findall("'(.*?)'", values, re.DOTALL) if "'" in values else list(values.split(", "))


def values_of(column: Column) -> list[Any]:
    return column.texts() if column.kind == "text" else column.values.tolist()


def equal(table: Table, other: Table) -> bool:
    return table.names == other.names and all(
        a.kind == b.kind and a.levels == b.levels and np.array_equal(a.values, b.values, equal_nan=a.kind != "text")
        for a, b in zip(table.columns, other.columns, strict=True)
    )


@pytest.mark.parametrize("name", [name for name in EXPECTED if name != GENERATED])
def test_a_file_gives_what_is_expected(name: str) -> None:
    expected: dict[str, Any] = EXPECTED[name]
    if "refused" in expected:
        with pytest.raises(DataError) as error:
            read_table(FOLDER / name)
        message = str(error.value)
        assert "\n" not in message
        assert [words for words in [name, *expected["refused"]] if words not in message] == []
        return
    table = read_table(FOLDER / name)
    if "same_as" in expected:
        assert equal(table, read_table(FOLDER / expected["same_as"]))
    for column, text in expected.get("columns", {}).items():
        values = values_in(text)
        assert table[column].kind == text.partition(" ")[0]
        np.testing.assert_equal(values_of(table[column])[: len(values)], values)
    assert [note for note in expected.get("notes", []) if note not in "\n".join(table.notes)] == []


def test_all_files_are_in_the_list() -> None:
    assert {path.name for path in FOLDER.glob("[!.]*")} - {"expected.toml"} == set(EXPECTED) - {GENERATED}


def test_one_bad_cell_late_in_a_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "late.csv"
    path.write_text("a\n" + "1\n" * 200_000 + "oops\n")
    message = refusal(path)
    assert [words for words in EXPECTED[GENERATED]["refused"] if words not in message] == []


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Write a CSV file."""
    return partial(written, tmp_path)


# ---------------------------------------------------------------------- numbers

NUMBERS = {
    "thousands and points": ('a,b\n"1,234.5",x\n12,y\n', [1234.5, 12]),
    "thousands and commas": ("a;b\n1.234,5;x\n1.234;y\n", [1234.5, 1234]),
    "decimal commas between tabs": ("a\tb\n2,5\tx\n3\ty\n", [2.5, 3]),
    "decimal commas in quotes": ('a,b\n"2,5",x\n"1,234",y\n', [2.5, 1.234]),
    "three decimals after a comma": ("a;b\n1,234;x\n2,345;y\n", [1.234, 2.345]),
    "three decimals after a point": ("a;b\n1.234;x\n2.345;y\n", [1.234, 2.345]),
    "spaces": ("a,b\n1 234,x\n1\u202f234\u202f567,y\n1\xa0000,z\n", [1234, 1234567, 1000]),
    "apostrophes": ("a,b\n1'234'567,x\n0,y\n", [1234567, 0]),
    "exponents and signs": ("a,b\n+1e3,x\n-2.5E-1,y\n.5,z\n5.,z\n", [1000, -0.25, 0.5, 5]),
    "percent": ("a,b\n12%,x\n,y\n5.5 %,z\n", [12, np.nan, 5.5]),
    "currency": ('a,b\n$12,x\n-$3,y\n"$1,200.50",z\n', [12, -3, 1200.5]),
    "white space": ("a, b\n 1,  x\n2 ,y\n", [1, 2]),
    "marks of missing values": ("a,b\n1,x\nNaN,y\n#N/A,y\nNone,y\n--,y\n.,y\nnULL,z\n", [1, *[np.nan] * 6]),
    "whole numbers that float64 holds": ("a,b\n9007199254740992,x\n1000000000000000000,y\n", [2.0**53, 1e18]),
    "minus signs": ("a,b\n\u22121.5,x\n2,y\n\u22120,z\n", [-1.5, 2, 0]),
    "decimal commas and a sign": ('a,b\n"0,5 \u20ac",x\n"1.234,5 \u20ac",y\n', [0.5, 1234.5]),
    "dots and dashes": ("a,b\n1,x\n..,y\n\u2013,y\n\u2014,y\n\\N,y\n", [1, *[np.nan] * 4]),
    "a separator that the file tells": ("sep=;\na;b\n1,5;x,y,z\n2;v,w,u\n", [1.5, 2]),
    "zeros": ("a,b\n0,x\n-0,x\n0.50,x\n00.5,y\n", [0, 0, 0.5, 0.5]),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers(case: str, write: Callable[[str], Path]) -> None:
    content, expected = NUMBERS[case]
    table = read_table(write(content))
    assert table.names == ("a", "b")
    assert table["a"].kind == "number"
    np.testing.assert_array_equal(table["a"].values, np.array(expected, np.float64))


def test_the_sign_that_is_left_out_is_told(write: Callable[[str], Path]) -> None:
    assert read_table(write("a,b\n12%,x\n3%,y\n")).notes == ("a is read without the sign %",)


@pytest.mark.parametrize(
    ("content", "note"),
    [("a;b\n2,5;x\n", "2,5 is read with a decimal comma"), ('a,b\n"2,5",x\n', "2,5 is read with a decimal comma"),
     ("a;b\n1.234;x\n", "1.234 is read with a decimal point"), ("a;b\n2.5;x\n", ""), ("a,b\n1.234,x\n", "")],
)  # fmt: skip
def test_a_decimal_mark_that_is_not_usual_is_told(content: str, note: str, write: Callable[[str], Path]) -> None:
    assert read_table(write(content)).notes == ((note,) if note else ())


REFUSED = {
    "some numbers have another sign": ("p,y\n12%,a\n5.5,b\n3%,a\n", ["line 3", "'p'", "'5.5'", "2 of 3"]),
    "infinite": ("p,y\n1,a\ninf,b\n2,a\n", ["line 3", "'inf' is not a finite number", "ignore=['p']"]),
    "too large": ("p,y\n1,a\n1e400,b\n2,a\n", ["line 3", "'1e400' is not a finite number"]),
    "underscores": ("p,y\n1,a\n1_000,b\n2,a\n", ["line 3", "'1_000' is not a number"]),
    "other digits": ("p,y\n1,a\n\u0661,b\n2,a\n", ["line 3", "is not a number"]),
    "thousands in threes": ('p,y\n1,a\n"1,23",b\n2.5,a\n', ["line 3", "'1,23' is not a number"]),
    "texts that are numbers later": ("p\n" + "x\n" * 200 + "1\n" * 300, ["line 2", "'x'", "300 of 500"]),
    "dates but for one": ("d\n2024-01-01\n2024-02-30\n2024-02-03\n", ["line 3", "not a date", "2 of 3"]),
    "minus signs as in accounts": (
        "p,y\n(1.50),a\n2-,b\n3,c\n",
        ["line 2", "'(1.50)' seems to be a number", "-1234.5"],
    ),
    "both decimal marks": ("p;y\n1,5;2.5\n2,5;7.5\n", ["line 2, column 'y'", "'2.5' seems to be a number", "-1234,5"]),
    "both decimal marks, with a sign": (
        "p;y\n1,5;$2.5\n2,5;$7.5\n",
        ["line 2, column 'y'", "'$2.5' seems to be a number"],
    ),
    "fields separated by spaces": ("a b c\n1  2 x\n3 4  y\n", ["separated by spaces"]),
    "lines above the names": ("My report\n\na,b\n1,2\n", ["line 3", "2 fields, and 1 is expected, as in line 1"]),
    "white space behind a quote": ('a,b\n1,"x"\n2,"y" \n', ["line 3", "a separator must follow"]),
    "day and month in any order": ("d\n3/4/2023\n1/2/2024\n", ["line 2", "'3/4/2023'", "day and month"]),
    "day and month in both orders": ("d\n13/4/2023\n1/22/2024\n", ["line 3", "'1/22/2024'", "line 2", "two forms"]),
    "dates with and without time zones": ("d\n2024-01-31T10:00Z\n2024-01-31T10:00\n", ["line 3", "two forms"]),
    "years of two digits": (
        "d\n31.12.23\n01.01.24\n",
        ["line 2", "'31.12.23' seems to be a date", "categorical=['d']"],
    ),
    "months as words": ("d\n31-Dec-2023\nJanuary 1 2024\n", ["line 2", "seems to be a date"]),
    "dates in two forms, far apart": (
        "d\n" + "2024-01-31\n" * 20_000 + "31.12.2023\n",
        ["line 20002", "line 2,", "two forms"],
    ),
    "the year 0": ("d\n0000-01-01\n2024-02-01\n2024-02-03\n", ["line 2", "not a date", "2 of 3"]),
    "times": ("d\n10:30\n11:30:05\n", ["line 2", "'10:30' seems to be a date or a time"]),
    "names of time zones": ("d\n2024-01-31 10:00 CET\n2024-01-31 11:00 CET\n", ["line 2", "seems to be a date"]),
    "quarters and weeks": ("d\n2024-Q1\n2024-W01\nQ1 2024\n", ["line 2", "'2024-Q1' seems to be a date"]),
    "dates of mail": ('d\n"Mon, 01 Jan 2024 10:00:00 GMT"\n"Tue, 2 Jan 2024"\n', ["line 2", "seems to be a date"]),
    "months": ("d\n2024-01\n2024-02\n", ["line 2", "seems to be a date"]),
    "an empty name": ("a,,c\n1,2,3\n", ["line 1", "the column after 'a' has no name"]),
    "a quote within quotes": ('a,b\n1,2\n"x"y,3\n', ["line 3", "must be doubled"]),
    "an unclosed quote in the names": ('"a,b\n1,2\n', ["line 1", "never closes"]),
    "lines counted in quotes": ('a,b\n"x\n\ny",2\n\n3\n', ["line 6", "1 field,"]),
    "only one row ends in a separator": ("a,b\n1,2,\n3,4\n", ["line 3", "2 fields", "3 are expected"]),
    "more fields after a trailing separator": ("a,b\n1,2,\n3,4,5\n", ["line 3", "the last one empty"]),
    "no names but dates": ("2024-01-01,x\n2024-01-02,y\n", ["line 1", "--no-header, in Python header=False"]),
    "no values": ("a,b\n,NA\n,\n", ["all columns are empty"]),
    "names in a comment": ("# x\n#a,b\nx,y\nz,y\n", ["line 2", "remove the #"]),
    "comments alone": ("# nothing\n\n", ["is empty"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_a_guess_is_refused(case: str, write: Callable[[str | bytes], Path]) -> None:
    content, expected = REFUSED[case]
    path = write(content)
    message = refusal(path)
    assert [words for words in [str(path), *expected] if words not in message] == []


def test_categorical_and_ignore_are_the_way_out(write: Callable[[str], Path]) -> None:
    path = write("a,b,c\n1,9007199254740993,2024-01-01\nabc,1,1/1/2024\n3,inf,x\n")
    table = read_table(path, categorical=["a", "b"], ignore=["c"])
    assert table.names == ("a", "b")
    assert table["a"].texts() == ["1", "abc", "3"]
    assert table["b"].levels == ("1", "9007199254740993", "inf")
    assert "did you mean b?" in refusal(path, ignore=["bb"])
    assert "all columns are left out" in refusal(path, ignore=["a", "b", "c"])
    assert "all columns are left out" in refusal(path, kinds={})


# ---------------------------------------------------------------------- texts, dates, names, lines


def test_among_texts_only_the_empty_cell_is_missing(write: Callable[[str], Path]) -> None:
    table = read_table(write("a,b\n?,x\nNA,\nPrivate, \n-,true\n"))
    assert table["a"].texts() == ["?", "NA", "Private", "-"]
    assert table["b"].texts() == ["x", None, None, "true"]
    assert table.notes == ("2 missing in b",)


def test_a_column_of_numbers_becomes_texts_by_its_first_leading_zero(write: Callable[[str], Path]) -> None:
    table = read_table(write("a,b\n" + "17,x\n?,x\n" * 20_000 + "007,y\n"))
    assert table["a"].levels == ("007", "17", "?")
    assert table.notes == ("a has leading zeros (007 in line 40002): it is text",)


@pytest.mark.parametrize("others", ["n.a.", "1e5", "1.5", "10000", "-5", "  +12 ", "$3"])
def test_a_leading_zero_is_found_among_numbers_in_other_forms(others: str, write: Callable[[str], Path]) -> None:
    sign = "$" if "$" in others else ""
    for zeros in (f"{sign}0001", f"  +{sign}0001"):
        table = read_table(write(f"a,b\n{others},x\n{zeros},y\n"))
        assert table["a"].kind == "text"
        assert "leading zeros" in table.notes[0]


def test_a_column_is_what_its_values_are_however_late_they_come(write: Callable[[str], Path]) -> None:
    table = read_table(write("a,b,c\n" + ",1,1\n" * 9_000 + "2024-01-31,x,2\n" * 10_000))
    assert (table["a"].kind, table["b"].kind, table["c"].kind) == ("date", "text", "number")
    assert np.isnat(table["a"].values).sum() == 9_000
    assert table["b"].texts()[8_999:9_001] == ["1", "x"]


DATES = {
    "ISO": ("2024-01-31\n2024-2-1\n", ["2024-01-31", "2024-02-01"], "Y-m-d"),
    "with a time": (
        "2024-01-31 10:30\n2024-02-01T00:00:01.25\n",
        ["2024-01-31T10:30", "2024-02-01T00:00:01.25"],
        "Y-m-d",
    ),
    "in a zone": ("2024-01-31T10:30:00Z\n2024-02-01T01:00+02:00\n", ["2024-01-31T10:30", "2024-01-31T23:00"], "Y-m-d"),
    "in a zone of whole hours": (
        "2024-01-31 10:30+00\n2024-02-01 01:00-05\n",
        ["2024-01-31T10:30", "2024-02-01T06:00"],
        "Y-m-d",
    ),
    "year first": ("2024.01.31\n2024/02/01\n", ["2024-01-31", "2024-02-01"], "Y-m-d"),
    "with points": ("31.12.2023\n1.1.2024 10:30\n", ["2023-12-31", "2024-01-01T10:30"], "d.m.Y"),
    "day first": ("31/12/2023\n1/2/2024\n", ["2023-12-31", "2024-02-01"], "d/m/Y"),
    "month first": ("12/31/2023 1:05 PM\n1/2/2024 12:00 AM\n", ["2023-12-31T13:05", "2024-01-02"], "m/d/Y"),
    "the same in both orders": ("3/3/2023\n4/4/2024\n", ["2023-03-03", "2024-04-04"], "d/m/Y"),
}


@pytest.mark.parametrize("case", DATES)
def test_dates(case: str, write: Callable[[str], Path]) -> None:
    rows, expected, layout = DATES[case]
    column = read_table(write(f"d\n{rows}NA\n"))["d"]
    np.testing.assert_array_equal(column.values, np.array([*expected, "NaT"], "datetime64[us]"))
    assert (column.kind, column.layout) == ("date", layout)


def test_a_layout_of_dates_reads_those_that_could_be_in_either_order(write: Callable[[str], Path]) -> None:
    learned = read_table(write("d\n12/31/2023\n"))["d"].reads_as
    table = read_table(write("d\n3/4/2024\n"), kinds={"d": learned})
    assert str(table["d"].values[0]).startswith("2024-03-04")
    message = refusal(write("d\n3/4/2024\n31/12/2023\n"), kinds={"d": learned})
    assert "line 3" in message
    assert "'31/12/2023' is not a date m/d/Y" in message


def test_white_space_and_blank_lines_around_names_and_rows(write: Callable[[str], Path]) -> None:
    table = read_table(write('\n# a, b\n\n a ,"b, c"\n\n1, "x, y"\n   \n2 , z \n\n'))
    assert table.names == ("a", "b, c")
    assert table["b, c"].texts() == ["x, y", "z"]


def test_a_single_column_has_empty_cells_in_quotes_and_blank_lines_beside_them(write: Callable[[str], Path]) -> None:
    assert read_table(write('a\nx\n""\n\ny\n'))["a"].texts() == ["x", None, "y"]


def test_names_that_are_numbers_are_names_if_the_columns_differ_from_them(write: Callable[[str], Path]) -> None:
    assert read_table(write("id,2019,2020\n1,2,3\n")).names == ("id", "2019", "2020")
    assert read_table(write("0,1,2,kind\n1,2,3,x\n")).names == ("0", "1", "2", "kind")
    assert read_table(write("a,1999,2000,2001\nx,1,2,3\n")).names == ("a", "1999", "2000", "2001")
    assert "--no-header" in refusal(write("1,2,3\n4,5,6\n"))
    assert "begin one with a letter" in refusal(write("a,1999,2005\nx,1,2\n"))


def test_without_a_header_columns_are_numbered(write: Callable[[str], Path]) -> None:
    table = read_table(write("0,5;1,5\n2,5;3,5\n"), header=False)
    np.testing.assert_array_equal(table["column2"].values, [1.5, 3.5])
    table = read_table(write("1;2,5;cat\n3;4,5;dog\n"), header=False)
    assert table.names == ("column1", "column2", "column3")
    np.testing.assert_array_equal(table["column2"].values, [2.5, 4.5])


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_a_first_column_of_row_numbers_is_left_out(name: str, write: Callable[[str], Path]) -> None:
    table = read_table(write(f"{name},a\n0,5\n1,6\n"))
    assert table.names == ("a",)
    assert "the first column has no name" in table.notes[0]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_line_ends_and_encodings(ending: str, encoding: str, write: Callable[[bytes], Path]) -> None:
    text = 'größe;name\n1,5;"Bär\nWal"\n2;字\n'.replace("\n", ending)
    table = read_table(write((b"\xfe\xff" if encoding == "utf-16-be" else b"") + text.encode(encoding)))
    np.testing.assert_array_equal(table["größe"].values, [1.5, 2])
    assert table["name"].texts() == ["Bär\nWal", "字"]


@pytest.mark.parametrize(
    ("cells", "unit"), [("2 kg\n3.5 kg", "kg"), ("EUR 2\nEUR 3", "EUR"), ("2 kg\n3 m", ""), ("A2\nA3", "")]
)
def test_the_unit_of_numbers_that_are_read_as_text_is_told(cells: str, unit: str, write: Callable[[str], Path]) -> None:
    table = read_table(write(f"a\n{cells}\n\n"))
    assert table["a"].texts() == cells.split("\n")
    assert [f"the unit {unit}:" in note for note in table.notes] == [True] * bool(unit)


# ---------------------------------------------------------------------- given kinds


def test_given_kinds_choose_and_order_the_columns(write: Callable[[str], Path]) -> None:
    path = write("a,b,c,unused\n1,2,x,oops\n,3,4,1\n")
    table = read_table(path, kinds={"c": "text", "b": "text", "a": "number"})
    assert table.names == ("c", "b", "a")
    assert table["b"].texts() == ["2", "3"]
    assert table.notes == ("1 missing in a",)
    assert read_table(write("a\n007\n"), kinds={"a": "number"})["a"].values.tolist() == [7]
    assert np.isnan(read_table(write("a,b\n,1\n"), kinds={"a": "number"})["a"].values).all()


@pytest.mark.parametrize(
    ("cell", "kind", "words"),
    [("x", "number", "'x' is not a number"), ("inf", "number", "finite"), ("9007199254740993", "number", "float64"),
     ("0" * 5_000 + "9007199254740993", "number", "float64"), ("5", "date", "'5' is not a date"),
     ("31.12.2024", "date", "two forms")],
)  # fmt: skip
def test_a_cell_that_is_not_of_the_given_kind_is_named(
    cell: str, kind: str, words: str, write: Callable[[str], Path]
) -> None:
    first = "1" if kind == "number" else "2024-01-01"
    path = write(f"a,b\n{first},\n{cell},\n")
    for read in (refusal(path, kinds={"a": kind}), chunk_refusal(path, {"a": kind})):
        assert "line 3, column 'a'" in read
        assert words in read
        assert "ignore" not in read or kind == "date"


def chunk_refusal(path: Path, kinds: dict[str, str]) -> str:
    with pytest.raises(DataError) as error:
        list(read_chunks(path, kinds))
    return str(error.value)


def test_a_column_that_is_not_there_and_a_kind_that_is_none(write: Callable[[str], Path]) -> None:
    path = write("age,b\n1,2\n")
    assert "has no column 'agee'; it has age, b; did you mean age?" in refusal(path, kinds={"agee": "number"})
    with pytest.raises(ValueError, match="number, text, date; got 'float'"):
        read_table(path, kinds={"age": "float"})


def test_chunks_are_the_table_in_parts(write: Callable[[str], Path]) -> None:
    path = write("a,b\n" + "".join(f"{i},level {i % 7}\n" for i in range(50_000)))
    parts = list(read_chunks(path, {"b": "text", "a": "number"}, rows=10_000))
    assert [len(part) >= 10_000 for part in parts[:-1]] == [True] * (len(parts) - 1)
    assert len(parts) > 2
    np.testing.assert_array_equal(np.concatenate([part["a"].values for part in parts]), np.arange(50_000))
    assert [text for part in parts for text in part["b"].texts()] == [f"level {i % 7}" for i in range(50_000)]
    bad = write("a,b\n" + "1,x\n" * 30_000 + "oops,x\n")
    chunks = read_chunks(bad, {"a": "number"}, rows=1_000)
    assert len(next(chunks)) >= 1_000
    with pytest.raises(DataError, match="line 30002, column 'a': 'oops' is not a number"):
        list(chunks)
