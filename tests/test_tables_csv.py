"""Each file of `tests/csv/` gives what `expected.toml` says, and other files that CSV readers often read wrong."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradflow.data import DataError
from gradflow.tables import Column, Table, read_table

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
