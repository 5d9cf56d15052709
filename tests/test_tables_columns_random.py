"""`Columns` of random tables: they encode what they learned from, and what they never saw, as finite numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.data import DataError
from gradflow.tables import Column, Columns, Table

pytest.importorskip("hypothesis", reason="hypothesis, of the extra test, is not installed")
from hypothesis import assume, given
from hypothesis import strategies as st

Draw = Callable[..., Any]

LEVELS = ("", "a", "b", "c", "d", "ö", "\n")
SMALL = st.integers(-3, 3)
FLOATS = st.floats(allow_infinity=False) | SMALL.map(float) | st.just(float("nan"))
MICROSECONDS = st.integers(-(10**16), 10**16) | SMALL | st.just(np.iinfo(np.int64).min)


def a_column(draw: Draw, name: str, rows: int) -> Column:
    """A column of any kind, with or without gaps."""
    kind = draw(st.sampled_from(["number", "number", "text", "date"]))
    if kind == "text":
        codes = st.lists(st.integers(-1, len(LEVELS) - 1), min_size=rows, max_size=rows)
        return Column(name, kind, np.array(draw(codes), np.int32), levels=LEVELS)
    values = draw(st.lists(FLOATS if kind == "number" else MICROSECONDS, min_size=rows, max_size=rows))
    if kind == "number":
        return Column(name, kind, np.array(values))
    return Column(name, kind, np.array(values, np.int64).view("datetime64[us]"), layout="Y-m-d")


@st.composite
def tables(draw: Draw) -> Table:
    """A table with a target y, of texts or numbers."""
    rows = draw(st.integers(3, 40))
    columns = [a_column(draw, f"x{i}", rows) for i in range(draw(st.integers(1, 4)))]
    if draw(st.booleans()):
        values = draw(st.lists(st.floats(-1e6, 1e6) | SMALL.map(float), min_size=rows, max_size=rows))
        columns.append(Column("y", "number", np.array(values)))
    else:
        codes = draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows))
        columns.append(Column("y", "text", np.array(codes, np.int32), levels=("p", "q", "r")))
    return Table(columns, "here")


def learned(table: Table, **options: Any) -> Columns:
    """The columns of a table, if there is something to learn."""
    try:
        return Columns.learn(table, "y", **options)
    except DataError:
        assume(False)
        raise


ENCODINGS = st.sampled_from(["standard", "piecewise"])
DTYPES = st.sampled_from(["float32", "float64"])


def test_the_table_learned_from_is_encoded_as_finite_numbers(random_examples: Draw) -> None:
    @random_examples(25)
    @given(tables(), ENCODINGS, DTYPES)
    def holds(table: Table, encoding: str, dtype: str) -> None:
        columns = learned(table, encoding=encoding, dtype=dtype)
        raw = columns.encode(table)
        assert (raw.shape, raw.dtype) == ((len(table), columns.width), dtype)
        assert np.isfinite(raw).all()
        assert sorted(place for places in columns.places.values() for place in places) == list(range(columns.width))
        assert all(what.endswith("was rare or absent in training") for what in columns.told(table))
        module = columns.module()
        with gf.no_grad():
            features = module(gf.tensor(raw))
        assert features.shape == (len(table), module.out_features) == (len(table), columns.out_features)
        assert {name: p.shape for name, p in module.named_parameters()} == columns.module_shapes()
        assert np.isfinite(features.numpy()).all()
        targets = columns.targets(table)
        assert len(targets) == len(table)
        assert (targets.ndim, targets.dtype) == ((1, np.int64) if columns.task == "classes" else (2, np.float64))

    holds()


def test_columns_come_back_from_json_and_encode_any_table_alike(random_examples: Draw) -> None:
    @random_examples(25)
    @given(tables(), ENCODINGS, DTYPES, st.data())
    def holds(table: Table, encoding: str, dtype: str, data: Any) -> None:
        columns = learned(table, encoding=encoding, dtype=dtype)
        back = Columns.from_dict(json.loads(json.dumps(columns.to_dict(), allow_nan=False)))
        new = data.draw(tables())
        names = {column.name: column.kind for column in new.columns}
        others = [new[name] if names.get(name) == kind.partition(" ")[0] else table[name].take([0] * len(new))
                  for name, kind in columns.kinds.items()]  # fmt: skip
        order = data.draw(st.permutations([*others, Column("more", "number", np.zeros(len(new)))]))
        for one in (table, Table(others, "there")):
            raw = back.encode(one)
            assert np.isfinite(raw).all()
            with gf.no_grad():
                assert np.isfinite(back.module()(gf.tensor(raw)).numpy()).all()
            assert raw.tobytes() == columns.encode(one).tobytes()
            assert back.told(one) == columns.told(one)
        assert columns.encode(Table(order, "there")).tobytes() == raw.tobytes()
        for name in (
            "notes",
            "kinds",
            "target_kind",
            "places",
            "classes",
            "labels",
            "encoding",
            "task",
            "target",
            "outputs",
        ):
            assert getattr(back, name) == getattr(columns, name)
        assert back.describe() == columns.describe()

    holds()


def test_rows_are_all_that_is_learned_from(random_examples: Draw) -> None:
    @random_examples(25)
    @given(tables(), ENCODINGS, st.data())
    def holds(table: Table, encoding: str, data: Any) -> None:
        rows = data.draw(st.lists(st.integers(0, len(table) - 1), min_size=2, unique=True))
        columns = learned(table, encoding=encoding, rows=rows)
        assert columns.to_dict() == learned(table.take(rows), encoding=encoding).to_dict()
        assert columns.encode(table)[rows].tobytes() == columns.encode(table.take(rows)).tobytes()

    holds()


def test_a_column_that_is_missing_is_named(random_examples: Draw) -> None:
    @random_examples(25)
    @given(tables(), ENCODINGS)
    def holds(table: Table, encoding: str) -> None:
        columns = learned(table, encoding=encoding)
        for name in columns.kinds:
            with pytest.raises(DataError, match=f"here has no column '{name}'"):
                columns.encode(Table([column for column in table.columns if column.name != name], "here"))

    holds()


def test_equal_weights_and_rows_of_weight_0_do_not_matter(random_examples: Draw) -> None:
    @random_examples(25)
    @given(tables(), st.data())
    def holds(table: Table, data: Any) -> None:
        weights = np.array(data.draw(st.lists(st.sampled_from([0.0, 2.0]), min_size=len(table), max_size=len(table))))
        assume(weights.any())
        weighted, plain = learned(table, weights=weights), learned(table.take(weights > 0))
        raw, expected = weighted.encode(table), plain.encode(table)
        np.testing.assert_allclose(raw, expected, rtol=1e-5, atol=1e-5)

    holds()
