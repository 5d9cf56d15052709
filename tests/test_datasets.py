"""Datasets and their splits: the test samples stay unseen, and data that cannot be used is told in one line."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from gradflow.data import DATASETS, DataError, Dataset, Part, load
from gradflow.data.labels import encode_as

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


X = np.random.default_rng(1).normal(size=(12, 3))
FLOATS = np.linspace(0, 1, 12)


@pytest.mark.parametrize(
    ("targets", "names", "labels", "classes", "codes"),
    [
        ([3, 10, 3] * 4, (), (3, 10), ("3", "10"), [0, 1, 0]),  # sorted as numbers
        ([-1, 1, 1] * 4, (), (-1, 1), ("-1", "1"), [0, 1, 1]),
        (np.array([2, 0, 1] * 4, np.uint8), ("a", "b", "c", "d"), (0, 1, 2, 3), ("a", "b", "c", "d"), [2, 0, 1]),
        ([1, 3, 2] * 4, ("a", "b", "c"), (1, 2, 3), ("a", "b", "c"), [0, 2, 1]),
        ([7, 5, 5] * 4, ("5", "6", "7"), (5, 6, 7), ("5", "6", "7"), [2, 0, 0]),
        (["b", "a", "b"] * 4, (), ("a", "b"), ("a", "b"), [1, 0, 1]),
        (["b", "a", "b"] * 4, ("c", "b", "a"), ("c", "b", "a"), ("c", "b", "a"), [1, 2, 1]),
        (np.array([b"\xc3\xa9", b"a", b"a"] * 4), (), ("a", "é"), ("a", "é"), [1, 0, 0]),
        (np.array(["b", "a", "b"] * 4, object), (), ("a", "b"), ("a", "b"), [1, 0, 1]),
        ([True, False, True] * 4, (), (False, True), ("False", "True"), [1, 0, 1]),
        ([True, False, True] * 4, ("ill", "well"), (False, True), ("ill", "well"), [1, 0, 1]),
        (np.array([[1], [2], [2]] * 4), (), (1, 2), ("1", "2"), [0, 1, 1]),
        (np.eye(3)[[2, 0, 1] * 4], ("a", "b", "c"), (0, 1, 2), ("a", "b", "c"), [2, 0, 1]),
        (np.eye(3, dtype=bool)[[2, 0, 1] * 4], (), (0, 1, 2), ("0", "1", "2"), [2, 0, 1]),
        (range(12), (), tuple(range(12)), tuple(map(str, range(12))), [0, 1, 2]),  # as many as 20 are classes
    ],
)
def test_labels_are_encoded(
    targets: Any, names: tuple[str, ...], labels: tuple[Any, ...], classes: tuple[str, ...], codes: list[int]
) -> None:
    data = Dataset.from_arrays(X, targets, names=names)
    assert data.labels == labels
    assert [type(label) for label in data.labels] == [type(label) for label in labels]
    assert data.classes == classes
    assert data.targets.dtype == np.int64
    assert data.targets[:3].tolist() == codes
    assert encode_as(targets, data.labels, data.classes, "again").tolist() == data.targets.tolist()
    assert encode_as(data.classes, data.labels, data.classes, "names").tolist() == list(range(len(classes)))


@pytest.mark.parametrize("targets", [FLOATS, FLOATS[:, None], np.stack([FLOATS, FLOATS], 1), np.round(FLOATS)])
def test_floats_are_for_regression_even_whole_ones(targets: np.ndarray) -> None:
    names = ["a", "b"][: np.ndim(targets) and targets.reshape(12, -1).shape[1]]
    data = Dataset.from_arrays(X, targets, names=names)
    assert not data.is_classification
    assert data.targets.shape == (12, data.outputs)
    assert data.columns == tuple(names)
    assert data.classes == data.labels == ()
    split = data.split(0)
    assert split.train.targets.dtype == np.float32
    assert split.target_scale is not None
    np.testing.assert_allclose(split.target_scale.undo(split.test.targets), split.test.raw_targets, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "image"),
    [
        ((12,), None), ((12, 4), None), ((12, 2, 2), (2, 2)), ((12, 2, 2, 3), (2, 2, 3)), ((12, 3, 2, 2), None),
        ((12, 2, 2, 2, 2), None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["uint8", "bool", "float16", "float64", "int64", ">f4"])
def test_inputs_keep_their_dtype_and_are_flattened(shape: tuple[int, ...], image: Any, dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    data = Dataset.from_arrays(values, ["a", "b", "b"] * 4)
    assert data.inputs.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(data.inputs, values.reshape(12, -1))
    assert data.image_shape == image
    assert data.split(0).train.inputs.dtype == np.float32


NAN = X.copy()
NAN[7, 2] = np.nan
LABELS = np.array(["a", "b", "b"] * 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"inputs": NAN, "features": ["u", "v", "w"]},
            "f: the input in row 7, column 2 ('w'), both counted from 0, is nan: leave out such rows, or fill the gaps",
        ),
        ({"inputs": -NAN.astype("float16") * np.inf}, "f: the input in row 0, column 0, .* is -?inf:"),
        ({"inputs": X.astype(str)}, "f: the inputs are no numbers: got text"),
        ({"inputs": X.astype(complex)}, "f: the inputs are no numbers: got complex numbers"),
        ({"inputs": X.astype(object)}, "f: the inputs are no numbers: got Python objects"),
        ({"inputs": np.ma.masked_array(X)}, "f: the inputs are no numbers: a masked array"),
        ({"inputs": X[:0], "targets": LABELS[:0]}, r"f: inputs are an array \(samples, features\); got .* \(0, 3\)"),
        ({"inputs": X[:, :0]}, r"f: inputs are an array .* got one of shape \(12, 0\)"),
        ({"inputs": np.float64(3)}, r"f: inputs are an array .* got one of shape \(\)"),
        ({"inputs": X[:9]}, "f: each input needs one target; got 9 and 12"),
        ({"targets": np.array(["a", None] * 6)}, "f: the targets are Python objects, among them None: save"),
        ({"targets": np.arange(12) + 1j}, "f: the targets cannot be used: got complex"),
        ({"targets": np.array([b"\xff"] * 12)}, "f: the labels are bytes that are not UTF-8"),
        ({"targets": NAN[:, 1:]}, "f: the target in row 7, column 1, .* is nan"),
        ({"targets": np.ones((12, 2), int)}, "f: int64 targets of shape .* neither labels .* nor one-hot"),
        ({"targets": np.full((12, 2), "a")}, "f: <U1 targets of shape .* neither labels"),
        ({"targets": np.ones((12, 2, 2))}, r"f: targets are an array .*; got shape \(12, 2, 2\)"),
        ({"targets": np.ma.masked_array(LABELS, [True] + [False] * 11)}, "f: the targets are a masked array"),
        ({"targets": [[1, 0], [1]]}, "f: the targets are nested lists of unequal lengths"),
        ({"inputs": [[1, 0], [1]]}, "f: the inputs are nested lists of unequal lengths"),
        ({"targets": 3}, r"f: targets are an array .*; got shape \(\)"),
        (
            {"names": ["one", "two", "three"]},
            "f: 3 names of classes do not fit the 2 labels a, b",
        ),
        ({"names": ["one", "one"]}, "f: the names of the classes are not all different"),
        ({"features": ["u", "v"]}, "f: 3 features need as many names; got 2"),
        ({"targets": FLOATS, "names": ["u", "v"]}, "f: 1 columns need as many names; got 2"),
        ({"image_shape": (2, 2)}, r"f: images of shape \(2, 2\) have not 3 features"),
    ],
)
def test_data_that_cannot_be_used_is_told_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message.replace("('w')", r"\('w'\)")) as caught:
        Dataset.from_arrays(**{"inputs": X, "targets": LABELS, "name": "f", **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.arange(30), "different integers in 30 samples are hardly classes: for regression, .*astype"),
        ([f"name {i}" for i in range(30)], "different texts in 30 samples are no classes"),
    ],
)
def test_labels_that_hardly_repeat_are_no_classes(targets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset.from_arrays(np.zeros((30, 2)), targets)


def test_names_from_files_cannot_write_to_the_terminal() -> None:
    with pytest.raises(DataError) as caught:
        Dataset.from_arrays(NAN, LABELS, "evil\x1b[31m\n", features=["u", "v", "\x1b]0;title\n"])
    assert str(caught.value).isprintable()


# ---------------------------------------------------------------------- splits that cannot be made


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (labelled({"a": 9, "b": 1}), {}, "made: the class 'b' has 1 sample, and 1 is left for training and test"),
        (labelled({"a": 9, "b": 1}), {"test": 0}, "'b' has 1 sample, and 1 is left for training and validation"),
        (labelled({"a": 9, "b": 3}), {"test": 0.6}, "'b' has 3 samples, and 1 is left for training and validation"),
        (labelled({"a": 9, "b": 9, "c": 9}), {"test": 0.05}, "share of 0.05 splits 27 samples into 25 and 2, .* 3"),
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
        (Dataset.from_arrays(X, ["a", "b", "new"] * 4, "t"), "t has the class 'new', which .*: its classes are a, b"),
        (Dataset.from_arrays(X, [0, 1, 2] * 4, "t"), "t has the class 0, which"),
    ],
)
@pytest.mark.parametrize("which", ["test_set", "validation_set"])
def test_sets_of_their_own_must_be_like_the_training_data(other: Dataset, message: str, which: str) -> None:
    with pytest.raises(DataError, match=message):
        TRAINING.split(0, **{which: other})


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


# ---------------------------------------------------------------------- hashes


def test_a_fingerprint_tells_whether_data_is_the_same() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(6, 4)
    labels = np.array([0, 1, 0, 1, 0, 2])

    def fingerprint(inputs: Any = images, targets: Any = labels, **options: Any) -> str:
        return Dataset.from_arrays(inputs, targets, **options).fingerprint

    same = fingerprint()
    assert len(same) == 64
    for equal in (
        fingerprint(images.reshape(6, 2, 2)),
        fingerprint(np.asfortranarray(images)),
        fingerprint(targets=labels.astype(np.int8)),
        fingerprint(name="other", features=["a", "b", "c", "d"]),
    ):
        assert equal == same
    changed = images.copy()
    changed[5, 3] += 1
    different = [
        fingerprint(changed), fingerprint(images.astype(np.float32)), fingerprint(images[::-1]),
        fingerprint(targets=labels[::-1]), fingerprint(targets=labels + 1), fingerprint(targets=labels.astype(float)),
        fingerprint(names=["a", "b", "c"]), fingerprint(test=(images, labels)), fingerprint(test=(changed, labels)),
    ]  # fmt: skip
    assert len({same, *different}) == 10
