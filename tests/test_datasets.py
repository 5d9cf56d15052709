"""Datasets and their splits: the test samples stay unseen, and data that cannot be used is told in one line."""

from __future__ import annotations

import numpy as np
import pytest

from gradflow.data import DATASETS, Dataset, Part, load

pytest.importorskip("sklearn")

SHAPES = {
    "digits": (1797, 64, 10),
    "breast-cancer": (569, 30, 2),
    "wine": (178, 13, 3),
    "iris": (150, 4, 3),
    "diabetes": (442, 10, 1),
}


def labelled(counts: dict[str, int], features: int = 3, name: str = "made") -> Dataset:
    """A dataset of random inputs with so many samples of each class."""
    labels = np.repeat(list(counts), list(counts.values()))
    inputs = np.random.default_rng(0).normal(size=(len(labels), features))
    return Dataset.from_arrays(inputs, labels, name)


def rows(part: Part | None) -> list[int]:
    assert part is not None
    return sorted(part.indices.tolist())


# ---------------------------------------------------------------------- datasets that are there


@pytest.mark.parametrize("name", DATASETS)
def test_each_dataset_is_whole(name: str) -> None:
    data = load(name)
    assert (*data.inputs.shape, data.outputs) == SHAPES[name]
    assert data.is_classification == (name != "diabetes")
    assert len(data.features) == data.inputs.shape[1]
    assert data.labels == tuple(range(len(data.classes)))
    assert data.image_shape == ((8, 8) if name == "digits" else None)


def test_unknown_dataset_names_the_known() -> None:
    with pytest.raises(ValueError, match=r"'mnist'.*digits"):
        load("mnist")


def test_each_has_a_line_that_tells_what_it_is() -> None:
    data = load("iris")
    assert repr(data) == "Dataset('iris', 150 samples of 4 features, 3 classes)"
    assert repr(load("diabetes")) == "Dataset('diabetes', 442 samples of 10 features, targets (1,) for regression)"
    split = data.split(0)
    assert repr(split) == ("Split(96 samples to train on, 24 to validate, 30 to test, 4 features, targets () int64)")
    assert repr(data.split(0, test=0, validation=0)) == "Split(150 samples to train on, 4 features, targets () int64)"
    assert repr(split.test) == "Part(30 samples of 'iris')"
    assert repr(split.input_scale) == "Standardizer(4 columns, limit=3.0)"


# ---------------------------------------------------------------------- splits


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


# ---------------------------------------------------------------------- arrays of users


@pytest.mark.parametrize(
    ("targets", "error"),
    [
        (np.array([0, 1, 2]), ValueError),
        (np.array([0, 1, -1]), ValueError),
        (np.array([0, 1, 1], np.int32), TypeError),
        (np.array([0, 1]), ValueError),
        (np.array([0.0, 1.0, np.nan], np.float32)[:, None], ValueError),
        (np.array([0.0, 1.0, 2.0], np.float32), TypeError),
    ],
)
def test_bad_targets_are_refused_on_the_host(targets: np.ndarray, error: type[Exception]) -> None:
    with pytest.raises(error):
        Dataset("bad", np.zeros((3, 2), np.float32), targets, ("a", "b"))
