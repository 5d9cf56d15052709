"""Datasets: labels are encoded, and data that cannot be used is told in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradflow.data import DATASETS, DataError, Dataset, load
from gradflow.data.labels import encode_as

pytest.importorskip("sklearn")

SHAPES = {
    "digits": (1797, 64, 10),
    "breast-cancer": (569, 30, 2),
    "wine": (178, 13, 3),
    "iris": (150, 4, 3),
    "diabetes": (442, 10, 1),
}


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


class Frame:
    """What a data frame of pandas or polars has, as far as a dataset uses it."""

    def __init__(self, values: Any, columns: list[Any]) -> None:
        self.values, self.columns = np.asarray(values), columns

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.values, dtype)


def test_the_columns_of_a_data_frame_name_the_features_and_the_values() -> None:
    data = Dataset.from_arrays(Frame(X, ["a", "b", "c"]), Frame(np.stack([FLOATS, FLOATS], 1), ["up", "down"]))
    assert data.features == ("a", "b", "c")
    assert data.columns == ("up", "down")
    assert Dataset.from_arrays(Frame(X, ["a", "b", "c"]), FLOATS, features=list("xyz")).features == tuple("xyz")
    assert Dataset.from_arrays(Frame(X, [0, 1, 2]), FLOATS).features == ()


def test_floats_that_may_be_classes_are_noted() -> None:
    (note,) = Dataset.from_arrays(X, [0.0, 1.0, 2.0] * 4, "codes").notes
    assert note == "codes: regression on floats with 3 distinct whole values; for classes, save integers"
    assert Dataset.from_arrays(X, [0.0, 1.5, 2.0] * 4).notes == []
    assert Dataset.from_arrays(X, [0, 1, 2] * 4).notes == []
    assert load("diabetes").notes == [], "it is whole numbers, but of many values"


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
        ({"image_shape": (2, 2)}, r"f: images of shape \(2, 2\) are expected; got 3 numbers each"),
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
