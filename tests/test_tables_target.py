"""The target of a table: classes or values, and what is told about it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradflow.data import DataError
from gradflow.tables import Columns, read_table
from gradflow.tables.task import Target, with_target

CLASSES, VALUES = "is predicted as one of", "is predicted as a number"


def learned(values: Any, task: str | None = None) -> Target:
    return Target.learn(read_table({"y": values}), "y", task)


@pytest.mark.parametrize(
    ("values", "task", "note"),
    [
        (["a", "b", "a"], None, f"y {CLASSES} 2 classes"),
        ([True, False, True], None, f"y {CLASSES} 2 classes"),
        ([0, 1, 0], None, f"y {CLASSES} 2 classes (task='values' predicts a number)"),
        ([0.0, 1.0, 0.0], None, f"y {CLASSES} 2 classes (task='values' predicts a number)"),
        ([3, 4, 5] * 5, None, f"y {CLASSES} 3 classes (task='values' predicts a number)"),
        ([3, 4, 5] * 4, None, f"y {VALUES} (task='classes' predicts classes)"),
        ([3, 4, 5] * 4, "classes", f"y {CLASSES} 3 classes (task='values' predicts a number)"),
        ([3, 4, 5] * 5, "values", f"y {VALUES} (task='classes' predicts classes)"),
        (list(range(20)) * 5, None, f"y {CLASSES} 20 classes (task='values' predicts a number)"),
        (list(range(21)) * 9, None, f"y {VALUES} (task='classes' predicts classes)"),
        ([0.5, 1.5, 0.5], None, f"y {VALUES}"),
    ],
)
def test_the_task_is_what_the_values_are(values: list[Any], task: str | None, note: str) -> None:
    target = learned(values, task)
    assert target.note == note
    assert target.task == ("classes" if CLASSES in note else "values")
    table = read_table({"y": values})
    found = target.targets(table)
    if target.task == "values":
        assert (found.dtype, found[:, 0].tolist(), target.outputs) == (np.float64, values, 1)
    else:
        assert found.dtype == np.int64
        assert [target.labels[code] for code in found] == [str(v) if isinstance(v, bool) else v for v in values]
        assert target.classes == tuple(map(str, target.labels))


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [
        (["2024-01-01", "2024-01-02"], None, "the target 'y' holds dates"),
        (["a", "b"], "values", "the target 'y' holds texts"),
        ([0.5, 1.5, 0.5], "classes", r"holds numbers with fractions: take them as text \(categorical=\['y'\]\)"),
        (
            [i / 7 for i in range(1, 91) for _ in (0, 1)],
            "classes",
            "has 90 different values with fractions in 180 rows: "
            r"these are no classes: predict a number \(task='values'\)$",
        ),
        (list(range(30)), "classes", r"has 30 different values in 30 rows: .*: predict a number \(task='values'\)$"),
        ([1.5, 1.5], "classes", "the target 'y' is '1.5' in all rows"),
        (["a", "a"], None, "the target 'y' is 'a' in all rows: at least two classes"),
        ([1, 1], "classes", "the target 'y' is 1 in all rows"),
        (
            [f"text {i}" for i in range(30)],
            None,
            "the target 'y' has 30 different values in 30 rows: these are no classes$",
        ),
        ([1.5, None, 2], None, "the target 'y' is missing in 1 of 3 rows: leave them out"),
    ],
)
def test_targets_that_do_not_fit_are_refused(values: list[Any], task: str | None, message: str) -> None:
    with pytest.raises(DataError, match=f"the dict: .*{message}"):
        learned(values, task)


def test_a_task_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="task must be 'classes' or 'values'; got 'regression'"):
        learned([1, 2], "regression")


def test_rows_without_a_target_are_left_out_and_told() -> None:
    table = read_table({"a": [1, 2, 3], "y": ["x", None, "z"]})
    kept = with_target(table, "y")
    assert kept["a"].values.tolist() == [1, 3]
    assert kept.notes == (*table.notes, "rows without y are left out: 1 of 3")
    assert with_target(kept, "y") is kept
    with pytest.raises(DataError, match="the dict: no row has a value in the column of targets, 'y'"):
        with_target(table.take([1]), "y")


@pytest.mark.parametrize(("known", "other"), [(["a", "b"], "c"), ([0, 1], 2), ([0, 1], 0.5)])
def test_a_class_that_training_did_not_have_is_refused(known: list[Any], other: Any) -> None:
    columns = Columns.learn(read_table({"x": [1.5, 2, 4], "y": [*known, known[1]]}), "y")
    assert columns.targets(read_table({"y": known[::-1]})).tolist() == [1, 0]
    with pytest.raises(DataError, match=f"there is no class '?{other}'? in the training data"):
        columns.targets(read_table({"y": [known[0], other]}))


def test_a_target_of_another_kind_is_refused() -> None:
    columns = Columns.learn(read_table({"x": [1.5, 2, 4], "y": ["a", "b", "a"]}), "y")
    with pytest.raises(DataError, match="the dict: column 'y' holds numbers, and texts are expected"):
        columns.targets(read_table({"y": [1, 2]}))


def test_outputs_are_decoded_as_labels() -> None:
    scores = np.array([[0.1, 2.0, 0.3], [9.0, 0.0, 0.0]])
    assert learned([3, 4, 5] * 5).decode(scores) == [4, 3]
    assert learned([0.5, 2.5]).decode(scores[:, :1]) == [0.1, 9.0]


def test_classes_are_learned_from_rows_of_weight_0_too() -> None:
    table = read_table({"x": [1.5, 2, 4], "y": ["a", "b", "c"]})
    assert Columns.learn(table, "y", weights=[1, 1, 0]).classes == ("a", "b", "c")
