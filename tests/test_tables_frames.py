"""Frames of pandas and polars, dicts of sequences and Parquet files are read by the types of their columns."""

from __future__ import annotations

import datetime
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import mutants
from table_files import refusal

from gradflow.data import DataError
from gradflow.tables import Table, read_chunks, read_table
from gradflow.tables.parquet import ParquetSource
from gradflow.tables.typed import TypedColumn

NOON = datetime.datetime(2024, 1, 31, 12)
DAY = datetime.date(2024, 1, 31)


@pytest.fixture(scope="module")
def pd() -> Any:
    return pytest.importorskip("pandas", reason="pandas is not installed")


@pytest.fixture(scope="module")
def pl() -> Any:
    return pytest.importorskip("polars", reason="polars is not installed")


@pytest.fixture(scope="module")
def pa() -> Any:
    return pytest.importorskip("pyarrow", reason="pyarrow, of the extra data, is not installed")


@pytest.fixture
def parquet(pa: Any, tmp_path: Path) -> Callable[..., Path]:
    """Write columns as a Parquet file with row groups of two rows."""

    def written(columns: Any, **options: Any) -> Path:
        import pyarrow.parquet as pq

        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(table, tmp_path / "table.parquet", **{"row_group_size": 2, **options})
        return tmp_path / "table.parquet"

    return written


def check(table: Table, expected: dict[str, list[Any]]) -> None:
    """Compare a table with columns of numbers, texts, and dates in ISO form; None is missing."""
    assert table.names == tuple(expected)
    for name, values in expected.items():
        column = table[name]
        first = next(value for value in values if value is not None)
        if isinstance(first, str) and column.kind == "date":
            np.testing.assert_array_equal(column.values, np.array([v or "NaT" for v in values], "datetime64[us]"), name)
        elif isinstance(first, str):
            assert (column.kind, column.texts()) == ("text", values), name
        else:
            assert column.kind == "number", name
            np.testing.assert_array_equal(column.values, np.array(values, np.float64), name)


# ---------------------------------------------------------------------- dicts


def test_a_dict_of_sequences() -> None:
    columns = {
        "range": range(3),
        "floats": np.array([1, np.nan, 2], np.float32),
        "texts": np.array([" x", "", "y"]),
        "bools": np.array([True, False, True]),
        "dates": np.array(["2024-01-31", "NaT", "2024-02-01T10"], "datetime64[s]"),
        "mixed numbers": [np.int8(1), 2.5, None],
        "decimals": (Decimal("0.5"), Decimal("NaN"), Decimal(2)),
        "days": [DAY, None, NOON.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=2)))],
        "dates as texts": ["2024-01-31", "", "2024-02-01"],
        "numbers as texts": ["1", "2", "x"],
        "masked": np.ma.array([1, 2, 3], mask=[False, True, False]),
        "nothing": [None, float("nan"), None],
    }
    table = read_table(columns)
    check(table, {
        "range": [0, 1, 2], "floats": [1, None, 2], "texts": ["x", None, "y"], "bools": ["True", "False", "True"],
        "dates": ["2024-01-31", None, "2024-02-01T10"], "mixed numbers": [1, 2.5, None], "decimals": [0.5, None, 2],
        "days": ["2024-01-31", None, "2024-01-31T10"], "dates as texts": ["2024-01-31", None, "2024-02-01"],
        "numbers as texts": ["1", "2", "x"], "masked": [1, None, 3],
    })  # fmt: skip
    assert "numbers as texts is text, by its type, but most of its values are numbers" in table.notes
    assert "nothing is empty and left out" in table.notes
    assert table.notes[-1].startswith("1 missing in floats, 1 missing in texts")


def test_given_kinds_convert_what_can_be_converted() -> None:
    columns = {
        "whole": [1, 2.0, None],
        "flag": [True, False, True],
        "day": [DAY, None, NOON],
    }
    check(read_table(columns, categorical=["whole", "flag", "day"]), {
        "whole": ["1", "2", None], "flag": ["True", "False", "True"],
        "day": ["2024-01-31", None, "2024-01-31T12:00:00"],
    })  # fmt: skip
    check(read_table(columns, kinds={"flag": "number"}), {"flag": [1, 0, 1]})
    check(read_table({"text": ["1,500", "NA", ""]}, kinds={"text": "number"}), {"text": [1500, None, None]})
    check(read_table({"d": ["3/4/2024"]}, kinds={"d": "date m/d/Y"}), {"d": ["2024-03-04"]})
    assert read_table({"a": [None]}, kinds={"a": "date"})["a"].kind == "date"
    assert "column 'whole' holds numbers, and dates are expected" in refusal(columns, kinds={"whole": "date"})
    message = refusal({"a": ["1", "x"]}, kinds={"a": "number"})
    assert "row 1 (counted from 0), column 'a': 'x' is not a number" in message


REFUSED = {
    "a whole number beyond 2**53": ([1, 2**53 + 1], ["row 1", "9007199254740993", "float64", "categorical=['a']"]),
    "a number beyond floats": ([1, 10**400], ["row 1", "float64"]),
    "NumPy's whole number beyond 2**53": ([np.int64(1), np.int64(2**53 + 1)], ["row 1", "float64"]),
    "a decimal beyond 2**53": ([Decimal(1), Decimal(2**53 + 1)], ["row 1", "float64"]),
    "an infinite decimal": ([Decimal(1), Decimal("inf")], ["row 1", "finite"]),
    "an infinite number": ([1.0, -np.inf], ["row 1", "-inf is not a finite number"]),
    "numbers and a text": ([1, None, "x"], ["row 2", "'x' is a text, and values above are numbers"]),
    "a number and bools": ([True, 1], ["row 1", "'1' is a number, and values above are bools"]),
    "lists": ([[1], [2]], ["type list", "ignore=['a']"]),
    "bytes": ([b"x"], ["type bytes"]),
    "complex numbers": (np.array([1j]), ["complex128"]),
    "durations": ([datetime.timedelta(1)], ["timedelta"]),
    "NumPy's durations": ([np.timedelta64(1, "s")], ["timedelta64"]),
    "a matrix": (np.ones((2, 2)), ["shape (2, 2)"]),
    "texts that are dates but for one": (["2024-01-01", "2024-01-02", "x"], ["row 2", "'x' is not a date", "2 of 3"]),
    "dates in two forms": (["2024-01-01", "31.12.2023"], ["row 1", "row 0", "two forms"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_are_refused(case: str) -> None:
    values, expected = REFUSED[case]
    message = refusal({"a": values})
    assert [words for words in ["the dict", "'a'", *expected] if words not in message] == []


def test_whole_numbers_beyond_2_53_are_categories_of_their_own() -> None:
    table = read_table({"a": np.array([2**53 + 1, 2**53, 2**53 + 1])}, categorical=["a"])
    check(table, {"a": ["9007199254740993", "9007199254740992", "9007199254740993"]})


def test_frames_that_are_none() -> None:
    assert "different lengths: 1 and 2 rows" in refusal({"a": [1], "b": [1, 2]})
    assert "no rows" in refusal({"a": []})
    assert "no columns" in refusal({})
    assert "two columns are called 'a'" in refusal({"a": [1], "a ": [1]})
    for values in ("abc", 1, {1, 2}, {"x": 1}):
        with pytest.raises(TypeError, match="column 'a' of the dict is expected to be a sequence; got"):
            read_table({"a": values, "b": [1, 2]})
    for source in (None, [1, 2], 3):
        with pytest.raises(TypeError, match="a path, a frame of pandas or polars, or a dict"):
            read_table(source)


# ---------------------------------------------------------------------- pandas and polars


def test_neither_pandas_nor_polars_nor_pyarrow_is_imported() -> None:
    code = """
import sys
from gradflow.tables import read_table
read_table({"a": [1, 2], "b": ["x", "2024-01-31"]})
print([name for name in ("pandas", "polars", "pyarrow") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_frame_of_pandas(pd: Any) -> None:
    days = pd.to_datetime(["2024-01-31", None])
    frame = pd.DataFrame({
        "i": [1, 2], "f": [1.5, np.nan], "u": np.array([1, 2**63], np.uint64), "I": pd.array([1, None], "Int64"),
        "F": pd.array([None, 1.5], "Float64"), "b": [True, False], "B": pd.array([None, True], "boolean"),
        "s": ["a", None], "S": pd.array([" a", ""], "string"), "o": pd.Series([1, None], dtype=object),
        "c": pd.Categorical(["y", None], ["x", "y"]), "ci": pd.Categorical([2, 1]), "d": days,
        "z": days.tz_localize("Europe/Berlin"), "t": ["2024-01-31", "2024-02-01"], "e": [None, None],
        "py": pd.Series([DAY, None], dtype=object), "ob": pd.Series([pd.NA, True], dtype=object),
        "ot": pd.Series([pd.Timestamp("2024-01-31T12Z"), pd.NaT], dtype=object), 7: pd.arrays.SparseArray([0.0, 1.0]),
    })  # fmt: skip
    frame.index = pd.Index(["p", "q"], name="index")
    table = read_table(frame)
    check(table, {
        "i": [1, 2], "f": [1.5, None], "u": [1, 2**63], "I": [1, None], "F": [None, 1.5], "b": ["True", "False"],
        "B": [None, "True"], "s": ["a", None], "S": ["a", None], "o": [1, None], "c": ["y", None], "ci": ["2", "1"],
        "d": ["2024-01-31", None], "z": ["2024-01-30T23", None], "t": ["2024-01-31", "2024-02-01"],
        "py": ["2024-01-31", None], "ob": [None, "True"], "ot": ["2024-01-31T12", None], "7": [0, 1],
    })  # fmt: skip
    assert table.source == "the frame of pandas"
    assert table.notes[0] == "e is empty and left out"
    parts = list(read_chunks(frame, {"f": "number", "c": "text"}, rows=1))
    check(parts[0], {"f": [1.5], "c": ["y"]})
    assert len(parts) == 2


def test_a_table_shares_no_memory_with_a_frame(pd: Any) -> None:
    arrays = [np.array(["2024-01-31"], "datetime64[us]"), np.ones(1), np.ones(1, np.int32)]
    frame = pd.DataFrame({str(i): array for i, array in enumerate(arrays)}, copy=False)
    for source in (frame, dict(zip("abc", arrays, strict=True))):
        table = read_table(source)
        assert not any(np.shares_memory(column.values, array) for column in table.columns for array in arrays)


def test_a_frame_of_pandas_that_is_refused(pd: Any) -> None:
    assert "two columns are called 'a'" in refusal(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    assert "row 1" in refusal(pd.DataFrame({"a": [1, "x"]}))
    assert "9007199254740993" in refusal(pd.DataFrame({"a": [2**53 + 1, 1]}))
    assert "Period" in refusal(pd.DataFrame({"a": pd.period_range("2024", periods=2)}))
    assert "timedelta" in refusal(pd.DataFrame({"a": pd.to_timedelta([1, 2])}))


@pytest.mark.parametrize("dtype", ["int64", "double", "bool", "string", "timestamp", "date32", "dictionary"])
def test_columns_of_pandas_that_pyarrow_holds(dtype: str, pd: Any, pa: Any) -> None:
    kinds: dict[str, tuple[Any, list[Any], list[Any]]] = {
        "int64": (pa.int64(), [1, None], [1, None]), "double": (pa.float64(), [1.5, None], [1.5, None]),
        "bool": (pa.bool_(), [True, None], ["True", None]), "string": (pa.string(), ["a", None], ["a", None]),
        "timestamp": (pa.timestamp("ns"), [NOON, None], ["2024-01-31T12", None]),
        "date32": (pa.date32(), [DAY, None], ["2024-01-31", None]),
        "dictionary": (pa.dictionary(pa.int32(), pa.string()), ["a", None], ["a", None]),
    }  # fmt: skip
    kind, values, expected = kinds[dtype]
    frame = pd.DataFrame({"a": pd.array(values, dtype=pd.ArrowDtype(kind))})
    check(read_table(frame), {"a": expected})


def test_a_frame_of_polars(pl: Any) -> None:
    frame = pl.DataFrame({
        "i": pl.Series([1, None], dtype=pl.Int8), "big": pl.Series([1, None], dtype=pl.Int128),
        "f": [1.5, float("nan")], "s": [" a", None], "b": [True, None], "d": [DAY, None], "t": [None, NOON],
        "dec": [Decimal("0.5"), None], "c": pl.Series(["1", None], dtype=pl.Categorical),
        "en": pl.Series([None, "x"], dtype=pl.Enum(["y", "x"])),
        "z": pl.Series([NOON, NOON]).dt.replace_time_zone("Europe/Berlin"), "e": [None, None],
    })  # fmt: skip
    table = read_table(frame)
    check(table, {
        "i": [1, None], "big": [1, None], "f": [1.5, None], "s": ["a", None], "b": ["True", None],
        "d": ["2024-01-31", None], "t": [None, "2024-01-31T12"], "dec": [0.5, None], "c": ["1", None],
        "en": [None, "x"], "z": ["2024-01-31T11", "2024-01-31T11"],
    })  # fmt: skip
    assert table.notes[0] == "e is empty and left out"
    check(next(read_chunks(frame, {"s": "text"}, rows=1)), {"s": ["a"]})
    for values in ([[1]], [{"a": 1}], [b"a"], [datetime.time(1)], [datetime.timedelta(1)]):
        assert "ignore=['a']" in refusal(pl.DataFrame({"a": values}))
    assert "9007199254740993" in refusal(pl.DataFrame({"a": [2**53 + 1]}))
    with pytest.raises(TypeError, match="LazyFrame"):
        read_table(frame.lazy())


# ---------------------------------------------------------------------- Parquet


def test_a_parquet_file(pa: Any, parquet: Callable[..., Path]) -> None:
    path = parquet({
        "i": pa.array([1, None, 3], pa.int8()), "u": pa.array([1, 2, 2**63], pa.uint64()),
        "f": [1.5, None, float("nan")], "h": pa.array(np.array([1, 2, 3], np.float16)), "s": [" a", None, ""],
        "ls": pa.array(["a"] * 3, pa.large_string()),
        "b": [True, None, False], "d": pa.array([DAY, None, DAY]), "ns": pa.array([NOON] * 3, pa.timestamp("ns")),
        "tz": pa.array([NOON] * 3, pa.timestamp("ms", "Europe/Berlin")), "dec": [Decimal("1.50"), None, Decimal(2)],
        "dict": pa.array(["x", None, "y"]).dictionary_encode(), "codes": pa.array([5, None, 7]).dictionary_encode(),
        "t": ["2024-01-31", None, "2024-02-01"], "null": pa.nulls(3), "with.point": [1, 2, 3],
    })  # fmt: skip
    table = read_table(path)
    check(table, {
        "i": [1, None, 3], "u": [1, 2, 2**63], "f": [1.5, None, None], "h": [1, 2, 3], "s": ["a", None, None],
        "ls": ["a"] * 3, "b": ["True", None, "False"], "d": ["2024-01-31", None, "2024-01-31"],
        "ns": ["2024-01-31T12"] * 3, "tz": ["2024-01-31T12"] * 3, "dec": [1.5, None, 2], "dict": ["x", None, "y"],
        "codes": [5, None, 7], "t": ["2024-01-31", None, "2024-02-01"], "with.point": [1, 2, 3],
    })  # fmt: skip
    assert table.notes[0] == "null is empty and left out"


def test_a_parquet_file_goes_through_in_row_groups(parquet: Callable[..., Path]) -> None:
    path = parquet({"a": list(range(100)), "b": [f"x{i % 3}" for i in range(100)], "c": [[1]] * 100}, row_group_size=32)
    parts = list(read_chunks(path, {"b": "text", "a": "number"}, rows=10))
    assert max(len(part) for part in parts) == 10
    assert parts[0].names == ("b", "a")
    np.testing.assert_array_equal(np.concatenate([part["a"].values for part in parts]), np.arange(100))
    assert [text for part in parts for text in part["b"].texts()] == [f"x{i % 3}" for i in range(100)]
    message = refusal(parquet({"a": [1, 2, 3, 2**53 + 1]}), kinds={"a": "number"})
    assert "row 3" in message
    assert "9007199254740993" in message


@pytest.mark.parametrize("row_group_size", [10_000, 500_000])
def test_parts_of_a_parquet_file_take_little_memory(row_group_size: int, pa: Any, parquet: Callable[..., Path]) -> None:
    """However large the file and its row groups are."""
    numbers = np.random.default_rng(0).normal(size=500_000)
    path = parquet({"a": numbers, "b": numbers}, row_group_size=row_group_size, use_dictionary=False)
    before, taken = pa.total_allocated_bytes(), list[int]()
    for part in read_chunks(path, {"a": "number", "b": "number"}, rows=10_000):
        assert len(part) == 10_000
        taken.append(pa.total_allocated_bytes() - before)
    assert len(taken) == 50
    assert path.stat().st_size > 8_000_000
    assert max(taken) < 4_000_000


def test_a_date_that_microseconds_do_not_hold_is_refused(pa: Any, parquet: Callable[..., Path]) -> None:
    assert "out of bounds timestamp" in refusal(parquet({"a": pa.array([2**62], pa.timestamp("ms"))}))


def test_an_index_that_pandas_wrote_is_left_out(parquet: Callable[..., Path]) -> None:
    table = read_table(parquet({"a": [1, 2], "__index_level_0__": [7, 3]}))
    assert table.names == ("a",)
    assert table.notes == ("the index that pandas wrote is left out",)


def test_chunks_of_texts_have_dictionaries_of_their_own(pa: Any, parquet: Callable[..., Path]) -> None:
    source = ParquetSource(parquet({"a": ["x"]}))
    plain = pa.chunked_array([["x", None], ["y", "x"]])
    encoded = pa.chunked_array([pa.array(["x", None]).dictionary_encode(), pa.array(["y", "x"]).dictionary_encode()])
    for values in (plain, encoded):
        column = source._column(values, TypedColumn("a", None, "file", 0, []))
        assert column.texts() == ["x", None, "y", "x"]


def test_a_parquet_file_that_is_refused(pa: Any, parquet: Callable[..., Path]) -> None:
    for values in ([[1]], [{"x": 1}], [b"a"], [datetime.time(1)], pa.array([1], pa.duration("s"))):
        path = parquet({"a": values, "b": [1]})
        assert "neither numbers, texts nor dates: leave it out (ignore=['a'])" in refusal(path)
        assert read_table(path, ignore=["a"]).names == ("b",)
    assert "no rows" in refusal(parquet({"a": pa.array([], pa.int64())}))
    assert "two columns are called 'a'" in refusal(parquet(pa.table([[1], [2]], names=["a", "a"])))
    assert "did you mean first?" in refusal(parquet({"first": [1]}), kinds={"firsst": "number"})


def test_a_mutated_parquet_file_gives_our_error_or_values(
    parquet: Callable[..., Path], random_examples: Callable[[int], Any]
) -> None:
    path = parquet({"a": [1, None, 3], "b": ["x", "y", "x"], "c": [0.5, 1.5, None]})
    outcomes = {"values": 0, "refused": 0}
    for what, mutant in mutants(path.read_bytes(), random_examples(100).max_examples):
        path.write_bytes(b"PAR1" + mutant[4:])
        try:
            table, message = read_table(path), ""
        except DataError as error:
            table, message = None, str(error)
        outcomes["values" if table else "refused"] += 1
        assert table or str(path) in message, what
        assert message.isprintable(), what
    assert min(outcomes.values()) > 5, outcomes


def test_without_pyarrow_a_parquet_file_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "table.parquet").write_bytes(b"PAR1")
    with pytest.raises(ModuleNotFoundError, match='a Parquet file, needs pyarrow from the extra "data"'):
        read_table(tmp_path / "table.parquet")
