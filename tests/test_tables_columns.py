"""`Columns`: numbers, indicators, codes of categories and parts of dates, learned from the training rows."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.data import DataError
from gradflow.tables import Column, Columns, Table, learning, read_table
from gradflow.tables.columns import sentences
from gradflow.tables.date_parts import PARTS, day_text, parts_of_dates
from gradflow.tables.inputs import InputSettings
from gradflow.tables.options import options_as

N = 60


def table_of(**columns: Any) -> Table:
    """A table with a target y of values, of the length of the other columns."""
    rows = len(next(iter(columns.values())))
    return read_table({**columns, "y": np.arange(rows) + 0.5})


def learned(**columns: Any) -> Columns:
    return Columns.learn(table_of(**columns), "y")


def treatment(columns: Columns, name: str) -> dict[str, str]:
    return next(row for row in columns.describe() if row["column"] == name)


def test_numbers_are_centered_in_float64() -> None:
    times = 1.7e9 + np.arange(1000) / 8
    columns = learned(time=times)
    raw = columns.encode(table_of(time=times))[:, 0]
    assert len(np.unique(times.astype(np.float32))) < 100 < len(np.unique(raw)) == 1000
    np.testing.assert_allclose(raw, (times - times.mean()) / times.std(), rtol=1e-6)


def test_float64_keeps_what_float32_cannot_tell_apart() -> None:
    times = 1.7e9 + np.arange(2000) % 2 * 1e-6 + np.arange(2000) * 1e6
    table = read_table({"time": times, "y": np.where(times < times[1000], 1.5, 9.5)})
    columns = Columns.learn(table, "y", encoding="standard", dtype="float64")
    raw = columns.encode(table)
    assert raw.dtype == np.float64
    np.testing.assert_allclose(raw[:, 0] * times.std() + times.mean(), times, rtol=1e-15)
    with_bins = Columns.learn(table, "y", dtype="float64")
    np.testing.assert_allclose(cuts_of(with_bins), [(times[999] + times[1000]) / 2], rtol=1e-15)
    assert with_bins.module(device="cpu").encode.starts.dtype == "float64"  # type: ignore[union-attr]
    back = Columns.from_dict(json.loads(json.dumps(with_bins.to_dict())))
    assert back.encode(table).tobytes() == with_bins.encode(table).tobytes()
    near = read_table(
        {"a": np.where(np.arange(2000) > 900, 1.0, 1.0 + 1e-12) + (np.arange(2000) == 5), "y": table["y"].values}
    )
    bins = [
        len(Columns.learn(near, "y", dtype=dtype).to_dict()["columns"][0]["parts"][0]["edges"]) - 1
        for dtype in ("float32", "float64")
    ]
    assert bins[0] < bins[1]


@pytest.mark.parametrize("unit", [1e-320, 1e-200, 1.0, 1e200, 5e305])
def test_numbers_are_scaled_however_large_they_are(unit: float) -> None:
    values = np.array([-100.0, 20, 30, 40, 50]) * unit
    for encoding in ("standard", "piecewise"):
        columns = Columns.learn(table_of(a=[*values, None]), "y", encoding=encoding)
        raw = columns.encode(table_of(a=[*values, None]))[:, 0]
        expected = (np.array([-100, 20, 30, 40, 50, 30]) - 8) / np.array([-100, 20, 30, 40, 50]).std()
        np.testing.assert_allclose(raw, expected, rtol=1e-3 if unit < 1e-300 else 1e-6)


def test_weights_may_be_of_any_size() -> None:
    rng = np.random.default_rng(0)
    a, weights = rng.normal(size=2000), rng.random(2000)
    table = read_table({"a": a, "b": rng.choice(["r", "g"], 2000), "y": np.sin(3 * a)})
    expected = Columns.learn(table, "y", weights=weights).to_dict()
    for power in (-1000, 1020):
        assert Columns.learn(table, "y", weights=np.ldexp(weights, power)).to_dict() == expected


def test_columns_are_encoded_in_groups_like_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    gaps = np.where(rng.random((N, 9)) < 0.3, np.nan, rng.normal(size=(N, 9)))
    days = [f"1{i % 10}69-0{1 + i % 9}-11 0{i % 7}:30" for i in range(N)]
    same = [None, *[1.0] * (N - 1)]
    table = table_of(**{f"x{i}": gaps[:, i] for i in range(9)}, day=days, color=["r", "g", "b"] * 20, same=same)
    columns = Columns.learn(table, "y")
    raw, told = columns.encode(table), columns.told(table)
    for rows in (table, table.take(slice(0, 1)), table.take([])):
        for at_once in (1, 3 * N, 10**9):
            monkeypatch.setattr("gradflow.tables.columns._AT_ONCE", at_once)
            assert columns.encode(rows).tobytes() == raw[: len(rows)].tobytes()
            assert columns.told(table) == told
    for i in range(9):
        alone = Columns.learn(table_of(a=gaps[:, i]), "y").encode(table_of(a=gaps[:, i]))
        assert alone.tobytes() == raw[:, columns.places[f"x{i}"]].tobytes()


def test_missing_numbers_are_the_median_with_an_indicator() -> None:
    columns = learned(a=[1.0, None, 2.0, 30.0, None], b=[1, 2, 3, 4, 6])
    raw = columns.encode(table_of(a=[2.0, None], b=[3, 3]))
    assert columns.places == {"a": (0, 2), "b": (1,)}
    assert raw[0, 0] == raw[1, 0]
    assert raw[:, 2].tolist() == [0, 1]
    present = np.array([1, 2, 30])
    assert raw[0, 0] == np.float32((2 - present.mean()) / present.std())


def test_a_number_with_gaps_that_is_otherwise_constant_is_an_indicator() -> None:
    columns = learned(a=[1, None, 1, 1], b=[1, 2, 3, 5])
    assert columns.encode(table_of(a=[1, None], b=[1, 1]))[:, columns.places["a"]].tolist() == [[0], [1]]
    assert treatment(columns, "a")["treatment"] == "indicator of missing values"


def test_columns_that_tell_nothing_are_left_out_and_told() -> None:
    rng = np.random.default_rng(0)
    table = table_of(
        same=[0.1] * N, word=["x"] * N, row=np.arange(1, N + 1), shuffled=rng.permutation(N), used=rng.normal(size=N),
        late=[None] * (N - 1) + [1.0], words=[None] * (N - 1) + ["a"],
        day=["2024-01-01"] * N,
    )  # fmt: skip
    columns = Columns.learn(table, "y", ignore=["late"], rows=np.arange(N - 1))
    assert set(columns.kinds) == {"used"}
    assert columns.notes == (
        "y is predicted as a number",
        "same is left out: it is the same in all rows",
        "word is left out: it is the same in all rows",
        "row is left out: it seems to number the rows (numeric=['row'] keeps it)",
        "shuffled is left out: it seems to number the rows (numeric=['shuffled'] keeps it)",
        "late is left out: it is ignored",
        "words is left out: it is empty",
        "day is left out: it is the same in all rows",
    )
    assert columns.encode(read_table({"used": [0.0]})).shape == (1, 1)  # others are not asked for
    told = [(row["column"], row["treatment"]) for row in columns.describe()]
    assert told == [(name, "standardized" if name == "used" else "left out") for name in table.names[:-1]]


@pytest.mark.parametrize(
    "values", [np.arange(1950, 1950 + N), np.arange(N) * 3, np.arange(N) // 2, np.arange(49), np.arange(N) - 1]
)
def test_numbers_that_do_not_number_the_rows_are_used(values: Any) -> None:
    assert "a" in learned(a=values, b=values / 7).kinds


def test_numbers_of_rows_have_no_gaps() -> None:
    assert "a" in learned(a=[None, *range(N)], b=np.arange(N + 1) / 7).kinds


def test_numbers_of_rows_are_used_if_there_is_nothing_else() -> None:
    assert set(learned(a=np.arange(N)).kinds) == {"a"}
    table = table_of(a=np.arange(N), b=np.arange(N) / 2)
    assert set(Columns.learn(table, "y", ignore=["b"]).kinds) == {"a"}
    with pytest.raises(DataError, match="in column 'a', all 60 texts of the training rows differ"):
        Columns.learn(table, "y", categorical=["a"])


def test_no_columns_left_is_an_error_that_says_why() -> None:
    with pytest.raises(DataError, match="the dict: there are no columns to learn from: a is left out: it is the same"):
        learned(a=[1, 1, 1])
    with pytest.raises(DataError, match=r"the dict: there are no columns to learn from$"):
        Columns.learn(read_table({"y": [1.5, 2, 3]}), "y")


def test_texts_that_all_differ_identify_rows() -> None:
    names = [f"name {i}" for i in range(N)]
    with pytest.raises(
        DataError, match=r"in column 'id', all 60 texts of the training rows differ: .* \(ignore=\['id'\]\)$"
    ):
        learned(id=names, a=range(N))
    assert set(Columns.learn(table_of(id=names, a=np.arange(N) / 2), "y", ignore=["id"]).kinds) == {"a"}
    with pytest.raises(DataError, match="all 50 texts"):
        learned(id=names[:50] + [None] * 9, a=np.arange(59) / 2)
    with pytest.raises(DataError, match="59 of the 60 texts"):
        learned(id=[*names[:59], names[0]], a=np.arange(60) / 2)
    columns = learned(id=names[:49], a=np.arange(49) / 2)
    assert "id is left out: nearly all of its texts differ" in columns.notes
    assert "id" in learned(id=names[:50] + names[:10], a=np.arange(N) / 2).kinds  # 50 of 60


CODES = [8001, 10115, 20095, 50667, 60311, 80331, 90210]


def test_whole_numbers_that_may_be_names_are_told() -> None:
    table = table_of(zip=[*(CODES * 9)[:59], None], a=np.arange(60) / 7)
    note = "zip has 7 different whole numbers, from 8001 to 90210, in 59 rows: if they are names, take them as text"
    assert Columns.learn(table, "y").notes[1:] == (f"{note} (categorical=['zip'])",)
    with options_as("flags"):
        assert Columns.learn(table, "y").notes[1:] == (f"{note} (--categorical zip)",)
    for options in ({"categorical": ["zip"]}, {"numeric": ["zip"]}, {"ignore": ["zip"]}):
        assert "whole numbers" not in "".join(Columns.learn(table, "y", **options).notes)


@pytest.mark.parametrize(
    "values",
    [
        (CODES * 7)[:49],  # few rows
        [c + 0.5 for c in CODES] * 9,
        [1200, 5017] * 30,
        [*range(20), 0] * 3,
        [1900, 1931, 1960, 1999, 2024] * 12,
        [18, 25, 33, 47, 90] * 12,
        [1, 2, 3, 4, 5] * 12,
        [9, 19, 49, 199, 999] * 12,  # prices
        [20_000, 35_000, 50_000, 120_000] * 15,  # salaries
        [1001 + 997 * i for i in range(21)] * 3,
    ],
)
def test_other_numbers_are_no_names(values: list[float]) -> None:
    assert learned(a=values).notes[1:] == ()


def test_rare_and_unknown_levels_share_a_code_and_missing_is_a_level() -> None:
    texts = ["red"] * 30 + ["blue"] * 20 + ["mauve", "pink"] + [None] * 3
    columns = learned(color=texts)
    raw = columns.encode(table_of(color=["blue", "red", None, "mauve", "pink", "lilac"]))
    assert raw[:, 0].tolist() == [1, 2, 3, 0, 0, 0]
    assert treatment(columns, "color") == {
        "column": "color", "kind": "text", "treatment": "one-hot", "missing": "3",
        "values": "4 levels: blue, red, rare ones, missing",
    }  # fmt: skip


def test_without_rare_levels_what_is_unknown_counts_as_the_most_frequent_level() -> None:
    columns = learned(color=["red"] * 30 + ["blue"] * 20)
    raw = columns.encode(table_of(color=["blue", "red", None, "lilac"]))
    assert raw[:, 0].tolist() == [1, 0, 0, 0]
    assert columns.module().out_features == 2


@pytest.mark.parametrize(("rows", "count", "kept"), [(100, 1, 0), (100, 2, 1), (300, 2, 0), (300, 3, 1), (9000, 5, 1)])
def test_levels_are_rare_below_5_rows_and_1_percent(rows: int, count: int, kept: int) -> None:
    texts = ["a", "b"] * ((rows - count) // 2) + ["rare"] * count
    columns = learned(color=texts)
    assert ("rare," in treatment(columns, "color")["values"] + ",") == kept


def test_many_levels_are_an_embedding() -> None:
    texts = [f"level {i % 40}" for i in range(400)]
    columns = Columns.learn(table_of(code=texts), "y", settings=InputSettings(embedding_dim=7))
    assert treatment(columns, "code")["treatment"] == "embedding"
    assert columns.module().out_features == columns.out_features == 7
    columns = Columns.learn(table_of(code=texts), "y", settings=InputSettings(most_one_hot=40))
    assert treatment(columns, "code")["treatment"] == "one-hot"
    assert columns.module().out_features == columns.out_features == 40


def test_bools_are_two_levels() -> None:
    columns = learned(old=[True, False, True, True, False])
    assert columns.kinds == {"old": "text"}
    assert columns.encode(table_of(old=[False, True]))[:, 0].tolist() == [1, 0]


def test_numbers_may_be_categories() -> None:
    table = table_of(code=[10, 20, 10, None, 20, 10, 1.5, 1.5], a=range(8))
    columns = Columns.learn(table, "y", categorical=["code"])
    assert columns.kinds["code"] == "number"
    assert treatment(columns, "code")["values"] == "4 levels: 1.5, 10, 20, missing"
    assert columns.encode(table)[:, 1].tolist() == [0, 2, 0, 3, 2, 0, 1, 1]


def test_dates_become_parts_and_constant_parts_are_left_out() -> None:
    days = [f"2024-{1 + i % 6:02d}-{1 + i:02d}" for i in range(20)]
    columns = learned(day=[*days, None])
    assert columns.notes[1] == "day is taken apart: days, month, weekday"
    assert len(columns.places["day"]) == 1 + 2 + 2 + 1
    assert treatment(columns, "day")["values"] == "2024-01-01 to 2024-06-18"
    raw = columns.encode(table_of(day=["2024-01-08", "2024-06-03", None]))
    np.testing.assert_allclose(raw[0, 3:5], raw[1, 3:5])  # Mondays
    assert raw[:, 5].tolist() == [0, 0, 1]
    halves = learned(day=["2024-01-01", "2024-07-01", "2024-07-08"]).to_dict()["columns"][0]["parts"]
    assert [part["name"] for part in halves] == ["days", "month (cosine)"]


def test_parts_of_dates_are_those_of_the_calendar() -> None:
    dates = np.array(["1969-12-31T18:00", "2000-02-29", "2024-07-01T06:30:15.5", "NaT"], "datetime64[us]")
    parts = parts_of_dates(dates)
    assert tuple(parts) == PARTS
    np.testing.assert_array_equal(parts["days"], [-0.25, 11016, 19905 + (6.5 * 3600 + 15.5) / 86400, np.nan])
    np.testing.assert_array_equal(parts["year"], [1969, 2000, 2024, np.nan])
    turns = {
        "month": (11 / 12, 1 / 12, 6 / 12),
        "weekday": (2 / 7, 1 / 7, 0),
        "hour": (18 / 24, 0, (6.5 + 15.5 / 3600) / 24),
    }
    for cycle, places in turns.items():
        for of, function in (("sine", math.sin), ("cosine", math.cos)):
            expected = [function(2 * math.pi * place) for place in places]
            np.testing.assert_allclose(parts[f"{cycle} ({of})"], [*expected, np.nan], atol=1e-12)
    assert [day_text(day) for day in parts["days"][:3]] == ["1969-12-31 18:00:00", "2000-02-29", "2024-07-01 06:30:15"]


def test_the_earliest_and_the_latest_dates_are_encoded_and_shown() -> None:
    dates = np.array(
        ["0001-01-01", "1582-10-15T00:00:01", "1969-12-31T23:59:59.999999", "9999-12-31"], "datetime64[us]"
    )
    ends = np.array([np.iinfo(np.int64).min + 1, np.iinfo(np.int64).max, -1, 0], np.int64).view("datetime64[us]")
    for values, shown in (
        (dates, "0001-01-01 to 9999-12-31"),
        (ends, "-289567-08-09 12:26:40 to 293506-05-25 11:33:20"),
    ):
        table = Table([Column("day", "date", np.tile(values, 9)), Column("y", "number", np.arange(36.0))], "here")
        for encoding in ("standard", "piecewise"):
            columns = Columns.learn(table, "y", encoding=encoding)
            raw = columns.encode(table)
            assert np.isfinite(raw).all()
            assert len(np.unique(raw[:, 0])) >= 3
            assert (np.diff(raw[np.argsort(values), 0]) >= 0).all()
            assert treatment(columns, "day")["values"] == shown
            assert not columns.told(table)


def test_a_part_of_a_table_of_many_levels_is_encoded_like_the_whole() -> None:
    rng = np.random.default_rng(0)
    table = Table([
        Column("c", "text", rng.integers(-1, 100_000, 5000).astype(np.int32), tuple(f"{i:06}" for i in range(100_000))),
        Column("y", "number", rng.normal(size=5000)),
    ], "here")  # fmt: skip
    repeated = table.take(np.repeat(np.arange(800), 6))
    columns = Columns.learn(repeated, "y")
    codes = columns.encode(table)[:, 0]
    assert len(np.unique(codes)) > 700
    assert [columns.encode(table.take([i])).item() for i in range(0, 5000, 100)] == codes[::100].tolist()
    told = columns.told(table)
    assert told == {"c has a level that was rare or absent in training": told.total()}
    assert told == sum((columns.told(table.take(slice(i, i + 1000))) for i in range(0, 5000, 1000)), type(told)())


def test_what_differs_from_training_is_counted() -> None:
    columns = learned(
        age=[20, 30, 41], color=["red", "red", "blue"], gap=[1, None, 3],
        day=["2024-01-01", "2024-01-03", "2024-05-01"],
    )  # fmt: skip
    new = table_of(
        age=[19, 20, 42, None], color=["red", "pink", None, None], gap=[1, None, None, 3],
        day=["2024-01-01", "2023-12-31", "2024-05-01", "2025-01-01"],
    )  # fmt: skip
    expected = {
        "age is outside of the training range, 20 to 41": 2,
        "age is missing, which it never was in training, and counts as 30": 1,
        "color has a level that was rare or absent in training": 1,
        "color is missing, which it never was in training, and counts as a rare level": 2,
        "day is outside of the training range, 2024-01-01 to 2024-05-01": 2,
    }
    found = columns.told(new)
    assert found == expected
    assert columns.told(new.take([0, 1])) + columns.told(new.take([2, 3])) == expected
    assert sentences(found, 4)[0] == "age is outside of the training range, 20 to 41: 2 of 4 rows"


@pytest.mark.parametrize(
    ("rows", "encoding", "expected"),
    [
        (999, "auto", "standard"), (1000, "auto", "piecewise"), (1000, "standard", "standard"),
        (20, "piecewise", "piecewise"),
    ],
)  # fmt: skip
def test_bins_are_for_many_rows(rows: int, encoding: str, expected: str) -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=rows)
    table = read_table({"a": a, "b": rng.integers(0, 2, rows), "y": np.sin(3 * a)})
    columns = Columns.learn(table, "y", encoding=encoding, settings=InputSettings(width=5))
    assert columns.encoding == expected
    assert columns.module().out_features == columns.out_features == (10 if expected == "piecewise" else 2)
    bins = treatment(columns, "a")["treatment"]
    assert bins == ("64 bins" if rows == 1000 and expected == "piecewise" else bins)
    assert (bins == "standardized") == (expected == "standard")


def test_bins_need_100_rows_for_each_column_of_numbers() -> None:
    rng = np.random.default_rng(0)
    table = {f"n{i}": rng.normal(size=1000) for i in range(10)} | {f"t{i}": ["a", "b"] * 500 for i in range(9)}
    read = read_table(table | {"more": rng.normal(size=1000), "y": rng.normal(size=1000)})
    assert Columns.learn(read, "y").encoding == "standard"
    assert Columns.learn(read, "y", ignore=["more"]).encoding == "piecewise"
    codes = read_table(table | {"more": rng.integers(0, 3, 1000), "y": rng.normal(size=1000)})
    assert Columns.learn(codes, "y", categorical=["more"]).encoding == "piecewise"


def test_bins_are_those_of_the_targets() -> None:
    a = np.arange(2000) / 7
    for y in ((a > 100) * 5.5, np.where(a > 100, "high", "low"), np.array(["x", "y", "z"])[1 * (a > 50) + (a > 100)]):
        columns = Columns.learn(read_table({"a": a, "y": y}), "y")
        cuts = cuts_of(columns)
        np.testing.assert_allclose(cuts, [50, 100][-len(cuts) :], atol=1 / 7)


def cuts_of(columns: Columns) -> Any:
    """The inner edges of the bins of the first column, in its own units."""
    part = columns.to_dict()["columns"][0]["parts"][0]
    return np.array(part["edges"][1:-1]) * part["deviation"] + part["mean"]


def test_bins_of_three_classes_are_not_those_of_their_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "MOST_BINS", 2)
    a = np.arange(2000) / 7
    y = np.where(a > 100, "b", np.random.default_rng(0).choice(["a", "c"], 2000))
    np.testing.assert_allclose(cuts_of(Columns.learn(read_table({"a": a, "y": y}), "y")), [100], atol=1 / 7)


def test_bins_are_learned_from_rows_without_gaps() -> None:
    a = np.where(np.arange(2000) % 3 > 0, np.arange(2000) / 7, np.nan)
    weights = np.where(np.isnan(a), 100, 1)
    table = read_table({"a": a, "y": np.where(np.arange(2000) < 700, 1.5, 9.5)})
    for options in ({}, {"weights": weights}):
        np.testing.assert_allclose(cuts_of(Columns.learn(table, "y", **options)), [100], atol=2 / 7)


def test_bins_have_at_least_a_thousandth_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    columns = Columns.learn(read_table({"a": rng.normal(size=5000), "y": rng.normal(size=5000)}), "y")
    part = columns.to_dict()["columns"][0]["parts"][0]
    rng = np.random.default_rng(0)
    counts, _ = np.histogram((rng.normal(size=5000) - part["mean"]) / part["deviation"], part["edges"])
    assert 5 <= counts.min() < 20


def test_numbers_beyond_the_training_range_stay_at_its_ends_in_bins() -> None:
    a = np.arange(2000) / 7
    columns = Columns.learn(read_table({"a": a, "y": np.sin(a)}), "y")
    raw = columns.encode(read_table({"a": [-1e300, 0, a[-1], 1e300]}))[:, 0]
    assert raw[0] == raw[1] < raw[2] == raw[3]
    features = columns.module()(gf.tensor(raw[:, None])).detach().numpy()
    assert (features[0] == features[1]).all()
    assert (features[2] == features[3]).all()


def test_weights_count_as_rows() -> None:
    rng = np.random.default_rng(0)
    a, weights = rng.normal(size=N), rng.integers(0, 4, N)
    table = table_of(a=a, b=np.where(rng.random(N) < 0.3, np.nan, a), color=rng.choice(["r", "g", "b"], N))
    weighted = Columns.learn(table, "y", weights=weights).to_dict()["columns"]
    repeated = Columns.learn(table.take(np.repeat(np.arange(N), weights)), "y").to_dict()["columns"]
    for one, other in zip(weighted[:2], repeated[:2], strict=True):
        one, other = one["parts"][0], other["parts"][0]
        assert (one["median"], one["low"], one["high"]) == (other["median"], other["low"], other["high"])
        np.testing.assert_allclose([one["mean"], one["deviation"]], [other["mean"], other["deviation"]], rtol=1e-12)
    assert weighted[2] == repeated[2]


def test_weights_decide_on_rare_levels_and_bins() -> None:
    a = np.arange(2000) / 7
    table = read_table({"a": a, "c": ["x", "y"] * 997 + ["z"] * 6, "y": np.where(a > 250, 1.001, 1.0 * (a > 100))})
    light = np.where(a > 250, 1e-6, 7.0)
    plain, weighted = Columns.learn(table, "y"), Columns.learn(table, "y", weights=light)
    assert "z" in treatment(plain, "c")["values"]
    assert "z" not in treatment(weighted, "c")["values"]
    assert (treatment(plain, "a")["treatment"], treatment(weighted, "a")["treatment"]) == ("3 bins", "2 bins")
    with pytest.raises(ValueError, match="weights are 2000 finite numbers of at least 0, not all 0"):
        Columns.learn(table, "y", weights=light - 1)


def test_rows_of_negligible_weight_do_not_count() -> None:
    a = np.arange(2000) / 7
    table, weights = read_table({"a": a, "y": np.sin(a)}), np.exp(-a)
    used = np.where(weights > 1e-8 * weights.mean(), weights, 0)
    weighted = Columns.learn(table, "y", encoding="piecewise", weights=weights)
    assert 100 < np.count_nonzero(used) < 200
    assert weighted.to_dict() == Columns.learn(table, "y", encoding="piecewise", weights=used).to_dict()


def test_wrong_arguments_are_refused_by_name() -> None:
    table = table_of(age=[1, 2, 4], size=[1, 5, 2])
    for arguments in ({"target": "z"}, {"target": "y", "ignore": ["z"]}, {"target": "y", "categorical": ["z"]}):
        with pytest.raises(DataError, match="the dict has no column 'z'; it has age, size, y"):
            Columns.learn(table, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="encoding must be 'auto', 'piecewise', 'standard'; got 'bins'"):
        Columns.learn(table, "y", encoding="bins")
    with pytest.raises(DataError, match="the dict: there are no rows to learn from"):
        Columns.learn(table, "y", rows=[])
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'float64'; got 'float16'"):
        Columns.learn(table, "y", dtype="float16")
    with pytest.raises(
        DataError, match=r"column 'age' go from -1e\+308 to 1\.7e\+308, too far for float64: divide them"
    ):
        learned(age=[1.7e308, -1e308, 0])


def test_another_table_needs_the_columns_and_kinds() -> None:
    columns = learned(age=[1, 2, 4], color=["r", "r", "b"])
    with pytest.raises(DataError, match="the dict has no column 'age'"):
        columns.encode(read_table({"color": ["r"]}))
    with pytest.raises(DataError, match=r"column 'color' holds numbers, and texts are expected: .*kinds=columns.kinds"):
        columns.encode(read_table({"color": [1], "age": [2]}))


def test_another_file_is_read_with_the_kinds(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "zip,day,size,y\n" + "01,2024-01-01,1.5,a\n02,2024-01-05,,b\n02,2024-03-02,3,b\n"
    )
    (tmp_path / "new.csv").write_text("size,more,day,zip\n,?,2024-01-03,1\n2,?,2024-01-05,02\n")
    train = read_table(tmp_path / "train.csv")
    columns = Columns.learn(train, "y")
    assert columns.kinds == {"zip": "text", "day": "date Y-m-d", "size": "number"}
    assert columns.kinds | columns.target_kind == {name: train[name].reads_as for name in train.names}
    new = read_table(tmp_path / "new.csv", kinds=columns.kinds)
    raw = columns.encode(new)
    assert raw.shape == (2, columns.width)
    assert raw[:, columns.places["zip"]].tolist() == [[0], [1]]


def rich() -> Columns:
    rng = np.random.default_rng(0)
    return learned(
        a=rng.normal(size=30), b=[None, *rng.normal(size=29)], color=["r", "g", None] * 10, same=[1] * 30,
        day=[f"2024-01-{day:02d} 10:00" for day in range(1, 31)],
    )  # fmt: skip


def places_of(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places_of(value, (*path, key))


def changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    tree = copy.deepcopy(tree)
    at = tree
    for key in path[:-1]:
        at = at[key]
    if value is KeyError:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return tree


def test_from_dict_takes_what_to_dict_gave_and_refuses_other_types() -> None:
    tree = json.loads(json.dumps(rich().to_dict()))
    assert Columns.from_dict(tree).to_dict() == rich().to_dict()
    raw = table_of(a=[1.0, None], b=[None, 2.0], color=["r", "x"], day=["2024-01-01", None])
    refused, values = 0, (None, "?", -1, 1.5, True, [], {}, [[]], float("nan"), float("inf"), 10**400, KeyError)
    for path, value in itertools.product(list(places_of(tree))[1:], values):
        try:
            columns = Columns.from_dict(changed(tree, path, value))
        except ValueError:
            refused += 1
            continue
        columns.module()
        columns.describe()
        if set(columns.kinds) <= set(raw.names):
            assert np.isfinite(columns.encode(raw)).all()
            columns.told(raw)
    assert refused > 500


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("kind",), "standardizer", "of the kind 'standardizer'"),
        (("columns", 0, "treatment"), "other", "there is no treatment 'other'"),
        (("columns", 0, "parts", 0, "deviation"), 0.0, "deviations are above 0"),
        (("columns", 0, "parts", 0, "edges"), [0.0, 1.0], "either all columns of numbers have bins, or none has"),
        (("dtype",), "float16", "there are no columns of the dtype 'float16'"),
        (("settings", "width"), 0, "widths are at least 1, and the limit is above 0"),
        (("settings", "limit"), 0.0, "widths are at least 1, and the limit is above 0"),
        (("settings",), {}, "the entry 'width' is missing"),
        (("columns", 0, "parts", 0, "name"), "days", "the numbers of a column of the kind 'number' do not fit it"),
        (("columns", 4, "parts", 0, "name"), "year", "the numbers of a column of the kind 'date Y-m-d' do not fit it"),
        (("columns", 4, "parts", 2, "name"), "weekday (sine)", "the numbers of a column of the kind 'date Y-m-d' do"),
        (("columns", 0, "missing"), True, "the entry 'missing' is of the type bool, not int"),
        (("columns", 2, "missing"), -1, "a category has at least two levels, and no fewer than 0 missing values"),
        (("columns", 0, "name"), "b", "two columns have the same name"),
        (("columns", 0, "name"), "y", "two columns have the same name"),
        (("columns", 2, "levels"), ["r", "r"], "the levels of a category are texts that differ"),
        (("columns", 2, "levels"), ["r"], "a category has at least two levels"),
        (("columns",), [], "there are no columns to learn from"),
        (("target", "labels"), [1], "the labels of the target are at least two, and differ"),
        (("target", "kind"), "date", "targets are numbers or texts, not 'date'"),
    ],
)
def test_from_dict_says_what_is_wrong(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^these are not the columns of a table: .*{message}"):
        Columns.from_dict(changed(rich().to_dict(), path, value))
