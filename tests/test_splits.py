"""Splits: the test samples stay unseen, and splits that cannot be made are told."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from gradflow.data import DATASETS, DataError, Dataset, Part, load

pytest.importorskip("sklearn")

X = np.random.default_rng(1).normal(size=(12, 3))
FLOATS = np.linspace(0, 1, 12)
LABELS = np.array(["a", "b", "b"] * 4)


def labelled(counts: dict[str, int], features: int = 3, name: str = "made") -> Dataset:
    """A dataset of random inputs with so many samples of each class."""
    labels = np.repeat(list(counts), list(counts.values()))
    inputs = np.random.default_rng(0).normal(size=(len(labels), features))
    return Dataset.from_arrays(inputs, labels, name)


def rows(part: Part | None) -> list[int]:
    assert part is not None
    return sorted(part.indices.tolist())


# ---------------------------------------------------------------------- parts


@pytest.mark.parametrize("name", DATASETS)
def test_split_is_stratified_and_standardised_by_its_training_part(name: str) -> None:
    data = load(name)
    split = data.split(seed=3)
    parts = (split.train, split.validation, split.test)
    assert sorted(row for part in parts for row in rows(part)) == list(range(len(data.inputs)))
    for part, share in zip(parts, (0.64, 0.16, 0.2), strict=True):
        assert part is not None
        assert len(part) == pytest.approx(share * len(data.inputs), abs=2)
        assert part.inputs.dtype == np.float32
        assert np.abs(part.inputs).max() <= 3
        np.testing.assert_array_equal(part.raw_inputs, data.inputs[part.indices])
        if data.is_classification:
            whole, here = (np.bincount(t, minlength=data.outputs) for t in (data.targets, part.targets))
            np.testing.assert_allclose(here, share * whole, atol=1.5)
    if not data.is_classification:
        np.testing.assert_allclose(split.train.targets.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(split.train.targets.std(0), 1, atol=1e-5)


@pytest.mark.parametrize("labels", [["platinum", "gold"], [7, 3], [False, True]])
def test_raw_targets_are_the_labels_as_they_are_in_the_data(labels: list[Any]) -> None:
    targets = np.array(labels * 20)
    data = Dataset.from_arrays(np.arange(40.0)[:, None], targets)
    part = data.split(0).train
    assert part.raw_targets.dtype == targets.dtype
    np.testing.assert_array_equal(part.raw_targets, targets[part.indices])


@pytest.mark.parametrize("name", ["wine", "diabetes"])
def test_the_test_samples_of_a_seed_are_those_of_scikit_learn(name: str) -> None:
    from sklearn.model_selection import train_test_split

    data = load(name)
    stratify = data.targets if data.is_classification else None
    _, held_out = train_test_split(np.arange(len(data.inputs)), test_size=0.2, stratify=stratify, random_state=5)
    assert rows(data.split(5).test) == rows(data.split(5, validation=0).test) == sorted(held_out)


def test_held_out_samples_do_not_reach_the_training_part() -> None:
    data = load("iris")
    before = data.split(0)
    changed = data.inputs.copy()
    changed[rows(before.test) + rows(before.validation)] = 1000.0
    after = Dataset("changed", changed, data.targets, data.classes).split(0)
    np.testing.assert_array_equal(after.train.inputs, before.train.inputs)


def test_seed_decides_the_split() -> None:
    data = load("wine")
    assert rows(data.split(1).test) == rows(data.split(1).test) != rows(data.split(2).test)
    assert rows(data.split(1).validation) == rows(data.split(1).validation) != rows(data.split(2).validation)


def test_a_share_of_zero_holds_nothing_out() -> None:
    data = load("iris")
    split = data.split(0, test=0, validation=0)
    assert split.test is split.validation is None
    assert len(split.train) == 150
    split = data.split(0, test=0)
    assert split.test is None
    assert len(split.validation) == 30


def test_sets_of_their_own_take_the_place_of_shares() -> None:
    train = labelled({"a": 10, "b": 10, "c": 10})
    test = labelled({"c": 4}, name="test.npz")  # one class is enough to test on
    validation = labelled({"b": 2, "c": 3}, name="validation.npz")
    split = train.split(0, test_set=test, validation_set=validation)
    assert len(split.train) == 30
    assert split.test.targets.tolist() == [2] * 4
    assert split.validation.targets.tolist() == [1, 1, 2, 2, 2]
    assert split.test.dataset.classes == train.classes
    np.testing.assert_array_equal(split.test.inputs, split.input_scale.apply(test.inputs))
    with_own = Dataset.from_arrays(
        train.inputs, train.targets.astype(str), "own", test=(test.inputs, np.array(["2"] * 4))
    )
    assert with_own.split(0).test.targets.tolist() == [2] * 4
    assert len(with_own.split(0).train) == 24
    assert with_own.split(0, test=0).test is None
    assert len(with_own.split(0, test=0.5).test) == 15


def test_constant_feature_is_harmless() -> None:
    inputs = np.full((20, 2), 0.1)
    inputs[:, 1] = np.arange(20)
    split = Dataset("flat", inputs, np.arange(20, dtype=np.int64) % 2, ("even", "odd")).split(0)
    assert (split.train.inputs[:, 0] == 0).all()
    assert (split.test.inputs[:, 0] == 0).all()
    assert split.input_scale.apply(np.array([[2.1, 0.0]]))[0, 0] == 2


# ---------------------------------------------------------------------- splits that cannot be made


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (labelled({"a": 9, "b": 1}), {}, "made: the class 'b' has 1 sample, and 1 is left for training and test"),
        (labelled({"a": 9, "b": 1}), {"test": 0}, "'b' has 1 sample, and 1 is left for training and validation"),
        (labelled({"a": 9, "b": 3}), {"test": 0.6}, "'b' has 3 samples, and 1 is left for training and validation"),
        (labelled({"a": 9, "b": 9, "c": 9}), {"test": 0.05}, "share of 0.05 splits 27 samples into 25 and 2, .* 3"),
        (labelled({"a": 98, "b": 98, "c": 2}), {"test": 0.95}, "share of 0.95 leaves no sample of the class 'c': take"),
        (labelled({"a": 9}), {}, "made: all training samples are of the class 'a'; at least two are needed"),
        (labelled({"a": 9}), {"test": 0, "validation": 0}, "all training samples are of the class 'a'"),
        (Dataset.from_arrays(X[:1], FLOATS[:1], "one"), {}, "one: a test share of 0.2 of 1 samples leaves none"),
        (Dataset.from_arrays(X, FLOATS * 1e200, "big"), {}, "big: the numbers of column 0 are too large"),
        (Dataset.from_arrays(X * 1e200, FLOATS, "big"), {}, "big: the numbers of column 0 are too large"),
    ],
)  # fmt: skip
def test_splits_that_cannot_be_made_are_told(data: Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.split(0, **options)


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
@pytest.mark.parametrize("name", ["test", "validation"])
def test_shares_are_below_one(name: str, share: float) -> None:
    with pytest.raises(ValueError, match=f"the {name} share must be at least 0 and below 1; got {share}"):
        load("iris").split(0, **{name: share})


TRAINING = Dataset.from_arrays(X, LABELS, "train.npz", features=["u", "v", "w"])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            Dataset.from_arrays(X[:, :2], LABELS, "t"),
            "t: 3 features are expected; got 2; the first .* missing is 'w'",
        ),
        (Dataset.from_arrays(X[:, [0, 1, 2, 2]], LABELS, "t"), "t: 3 features are expected; got 4"),
        (Dataset.from_arrays(X, LABELS, "t", features="uwv"), "t: the feature 'w' stands where 'v' is expected"),
        (Dataset.from_arrays(X, FLOATS, "t"), "t: the targets are values for regression; labels .* as in train.npz"),
        (
            Dataset.from_arrays(X, ["a", "b", "new"] * 4, "t"),
            "t: there is no class 'new' in the training data; its classes are a, b",
        ),
        (Dataset.from_arrays(X, [0, 1, 2] * 4, "t"), "t: there is no class 0 in the training data"),
    ],
)
@pytest.mark.parametrize("which", ["test_set", "validation_set"])
def test_sets_of_their_own_must_be_like_the_training_data(other: Dataset, message: str, which: str) -> None:
    with pytest.raises(DataError, match=message):
        TRAINING.split(0, **{which: other})


def test_target_columns_must_be_those_of_the_training_data() -> None:
    train = Dataset.from_arrays(X, X[:, :2], "train", names=["u", "v"])
    assert train.split(0, test_set=Dataset.from_arrays(X, X[:, :2], "t")).test is not None
    with pytest.raises(DataError, match="t: the target column 'v' stands where 'u' is expected"):
        train.split(0, test_set=Dataset.from_arrays(X, X[:, :2], "t", names=["v", "u"]))
    with pytest.raises(DataError, match="t: 2 target columns are expected; got 3"):
        train.split(0, test_set=Dataset.from_arrays(X, X, "t"))


def test_classes_of_other_data_are_found_by_name_and_else_by_value() -> None:
    iris = load("iris")
    some = iris.targets > 0
    named = Dataset.from_arrays(iris.inputs[some], np.array(iris.classes)[iris.targets[some]], "by name")
    values = Dataset.from_arrays(iris.inputs[some], iris.targets[some], "by value")
    renamed = Dataset.from_arrays(iris.inputs[some], iris.targets[some] - 1, "renamed", names=iris.classes[1:])
    for other in (named, values, renamed):
        np.testing.assert_array_equal(iris.split(0, test_set=other).test.targets, iris.targets[some])


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("iris")
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(ModuleNotFoundError, match='needs scikit-learn from the extra "train" of gradflow-autograd'):
        data.split(0)
    assert len(data.split(0, test=0, validation=0).train) == 150
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="scikit-learn"):
        load("iris")
