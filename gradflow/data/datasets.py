"""Datasets on the host: those that come with scikit-learn, and those made of arrays or read from files."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.data import arrays, images, splits
from gradflow.data.built_in import DATASETS
from gradflow.data.checks import hash_values
from gradflow.data.inputs import DataError, as_rows, check_finite, check_names, checked_inputs, image_shape_of, listed
from gradflow.data.labels import FEW_LABELS, Label, checked_targets, codes_among, encode
from gradflow.data.reading import Samples, reading
from gradflow.data.scaling import Standardizer
from gradflow.environment import imported_extra
from gradflow.files import FilePath, open_file
from gradflow.ops.host import array_from_host
from gradflow.text import did_you_mean

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Samples on the host, as they were measured: `split` gives them the scale that a model is trained on.

    name: what to call it in messages and run folders.
    inputs: real numbers (samples, features), in the dtype that they have in the file, such as uint8 for images.
    targets: codes in [0, len(classes)), int64 (samples,), or floats (samples, columns) for regression.
    classes: the names of the classes as text; () for regression.
    labels: the label of each class as it was in the data (default: 0, 1, ...).
    features: the names of the features; () if they have none.
    columns: the names of the target columns in regression; () if they have none.
    image_shape: (height, width) or (height, width, channels) if inputs are images, row by row; otherwise None.
    test: the dataset's own test set, or None.
    unused: the names of the arrays in its file that are not used.

    `Dataset.from_arrays` makes one of arrays in other forms. Raises TypeError or ValueError for other arrays, lengths
    that differ, and non-finite numbers.

    >>> from gradflow.data import Dataset
    >>> data = Dataset.from_arrays([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]], [0.5, 1.0, 2.0], name="masses")
    >>> data
    Dataset('masses', 3 samples of 2 features, targets (1,) for regression)
    >>> data.is_classification
    False
    """

    name: str
    inputs: Array
    targets: Array
    classes: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    features: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    image_shape: tuple[int, ...] | None = None
    test: Dataset | None = None
    unused: tuple[str, ...] = ()

    def __repr__(self) -> str:
        kind = f"{len(self.classes)} classes" if self.classes else f"targets {self.targets.shape[1:]} for regression"
        return f"Dataset({self.name!r}, {len(self.inputs)} samples of {self.inputs.shape[1]} features, {kind})"

    def __post_init__(self) -> None:
        inputs, targets = array_from_host(self.inputs), array_from_host(self.targets)
        inputs = checked_inputs(inputs, self.name, self.features)
        object.__setattr__(self, "inputs", inputs)  # now in this machine's byte order
        object.__setattr__(self, "targets", targets)
        if len(inputs) != len(targets):
            raise DataError(f"{self.name}: each input needs one target; got {len(inputs)} and {len(targets)}")
        if self.is_classification:
            check_labels(targets, len(self.classes))
            if not self.labels:
                object.__setattr__(self, "labels", tuple(range(len(self.classes))))
        elif targets.dtype.kind != "f" or targets.ndim != 2:
            raise TypeError(
                f"targets must be int64 (samples,) or float (samples, n); got {targets.dtype} {targets.shape}"
            )
        else:
            check_finite(targets, f"{self.name}: the target", self.columns)
        named = {"features": self.features, "columns": self.columns, "labels": self.labels}
        expected = {"features": inputs.shape[1], "columns": self.outputs, "labels": len(self.classes)}
        for what, names in named.items():
            if names and len(names) != expected[what]:
                raise DataError(f"{self.name}: {expected[what]} {what} need as many names; got {len(names)}")
        if self.image_shape is not None and np.prod(self.image_shape) != inputs.shape[1]:
            raise DataError(
                f"{self.name}: images of shape {self.image_shape} are expected; got {inputs.shape[1]} numbers each"
            )

    @classmethod
    def from_arrays(
        cls,
        inputs: Any,
        targets: Any,
        name: str = "arrays",
        *,
        features: Sequence[str] = (),
        names: Sequence[str] = (),
        image_shape: tuple[int, ...] | None = None,
        test: tuple[Any, Any] | None = None,
    ) -> Dataset:
        """Return a dataset of arrays, checked; classes are encoded.

        inputs: real numbers (samples, features), (samples,) for one feature, or images (samples, height, width) or
        (samples, height, width, channels).
        targets: for classes, integers, bools or text (samples,), or one-hot rows of any dtype; for regression, floats
        (samples,) or (samples, columns), whole numbers too.
        name: what to call the data in messages.
        features: the names of the features (default: the columns of a data frame).
        names: of the classes, in the order of the sorted labels (default: the labels as text); of the target columns.
        image_shape: for images that are already flattened.
        test: the inputs and targets of a test set of its own.

        Raises DataError for data that cannot be used.

        >>> flowers = Dataset.from_arrays([[5.1, 3.5], [6.2, 2.9], [5.8, 2.7]], ["setosa", "virginica", "virginica"])
        >>> flowers
        Dataset('arrays', 3 samples of 2 features, 2 classes)
        >>> flowers.classes, flowers.targets.tolist()
        (('setosa', 'virginica'), [0, 1, 1])
        """
        rows, found = as_rows(inputs, name), checked_targets(targets, name)
        shape = image_shape or image_shape_of(np.shape(inputs))
        features = tuple(features) or _column_names(inputs)
        if found.dtype.kind in "biuU":
            codes, labels, classes = encode(found, name, names)
            made = cls(name, rows, codes, classes, labels, features, image_shape=shape)
        else:
            made = cls(name, rows, found, (), (), features, tuple(names) or _column_names(targets), shape)
        if test is not None:
            own = cls.from_arrays(*test, f"the test part of {name}", image_shape=shape)
            object.__setattr__(made, "test", own.like(made))
        return made

    @property
    def is_classification(self) -> bool:
        """Whether the targets are codes of classes."""
        return bool(np.issubdtype(self.targets.dtype, np.integer))

    @property
    def outputs(self) -> int:
        """The width of the output layer for this dataset: the number of classes or of target columns."""
        return len(self.classes) if self.is_classification else int(self.targets.shape[1])

    def describe(self) -> str:
        """Return what the samples are, in a few words."""
        kind = f"{len(self.classes)} classes" if self.classes else "regression"
        return f"{len(self.inputs)} samples of {self.inputs.shape[1]} features, {kind}"

    @property
    def weights(self) -> Array | None:
        """The weights of the samples: None, since all count the same."""
        return None

    def rows(self, indices: splits.Rows) -> Array:
        """Return the inputs of some samples."""
        return self.inputs[indices]

    def learn_inputs(self, train: splits.Rows) -> Standardizer:
        """Return the scale of the inputs of some samples."""
        return Standardizer.fit(self.inputs, train, splits.LIMIT)

    def encode(self, learned: Standardizer, indices: splits.Rows) -> npt.NDArray[np.float32]:
        """Return the inputs of some samples on a scale."""
        return learned.apply(self.inputs, indices)

    @property
    def notes(self) -> list[str]:
        """What is in the data and may be meant otherwise than it is taken, each in one sentence."""
        notes = [f"{self.name}: not used: {listed(self.unused)}"] if self.unused else []
        if not self.is_classification and self.outputs == 1:
            values = np.unique(self.targets)
            if len(values) <= min(FEW_LABELS, len(self.targets) / 2) and (values == np.rint(values)).all():
                count = f"{len(values)} distinct whole value{'s' * (len(values) > 1)}"
                notes.append(f"{self.name}: regression on floats with {count}; for classes, save integers")
        return notes

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all samples, classes and labels, and of those of the test set; not of names or of the file.

        SHA-256 as hex digits. The dtype counts: the same numbers as float32 and as float64 are different data.
        """
        hashed = hashlib.sha256(repr((self.classes, self.labels)).encode())
        for array in (self.inputs, self.targets):
            hashed.update(f"{array.dtype.name}{array.shape}".encode())
            hash_values(hashed, array)
        if self.test is not None:
            hashed.update(self.test.fingerprint.encode())
        return hashed.hexdigest()

    def split(
        self,
        seed: int,
        test: float | None = None,
        validation: float = splits.VALIDATION_SHARE,
        test_set: Dataset | None = None,
        validation_set: Dataset | None = None,
    ) -> splits.Split:
        """Return a split into training, validation and test samples, on the scale of the training samples.

        seed: in [0, 2^32); it determines the split. It has no default: who compares two models by their test samples
        must know that they are the same.
        test: the share of all samples, and of each class, that is held out for the test, 0 for no test (default: the
        dataset's own test set, or 0.2 if it has none).
        validation: the share of the other samples that is held out for validation, 0 for none (default 0.2).
        test_set, validation_set: samples of other data instead of shares, with the same features and classes.

        Raises DataError if a part would be empty, if the training samples would lack a class or are all of one, and for
        other data that does not fit; ValueError for a share or a seed out of range; ModuleNotFoundError without
        scikit-learn, where a share is held out.
        """
        return splits.split(self, seed, test, validation, test_set, validation_set)

    def like(self, other: Dataset) -> Dataset:
        """Return this dataset with its classes encoded as in `other`.

        Raises DataError, which names the difference, for other features, target columns or classes.
        """
        checked_inputs(self.inputs[:1], self.name, other.features, other.inputs.shape[1])
        check_names(self.features, other.features, self.name)
        check_names(self.columns, other.columns, self.name, "target column")
        if self.is_classification != other.is_classification:
            kinds = ["values for regression", "labels of classes"]
            got, expected = kinds[self.is_classification], kinds[other.is_classification]
            raise DataError(f"{self.name}: the targets are {got}; {expected} are expected, as in {other.name}")
        if not self.is_classification:
            if self.outputs != other.outputs:
                raise DataError(f"{self.name}: {other.outputs} target columns are expected; got {self.outputs}")
            return self
        used, codes = np.unique(self.targets, return_inverse=True)
        labels, names = [self.labels[i] for i in used], [self.classes[i] for i in used]
        codes = codes_among(labels, names, other.labels, other.classes, self.name)[codes]
        return replace(self, targets=codes, classes=other.classes, labels=other.labels)


def _column_names(table: Any) -> tuple[str, ...]:
    """Return the names of the columns of a data frame; () for an array, and for columns with numbers only."""
    columns = tuple(getattr(table, "columns", ()))
    return columns if all(isinstance(column, str) for column in columns) else ()


def check_labels(labels: Array, classes: int) -> None:
    """Raise TypeError for labels that are not int64 (samples,), ValueError for one outside [0, classes).

    This runs on the host before training, because CUDA kernels do not check labels: they read past the end of a row.
    """
    if labels.dtype != np.int64 or labels.ndim != 1:
        raise TypeError(f"labels must be int64 (samples,); got {labels.dtype} of shape {labels.shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels of {classes} classes must be in [0, {classes}); got {labels.min()} to {labels.max()}")


def load(name: FilePath) -> Dataset:
    """Return the dataset of this name, or the one in this file or folder.

    name: a name in `DATASETS`; an npz file (see `gradflow.data.arrays`); a folder with MNIST's IDX files or with those
    of CIFAR-10's binary version (see `gradflow.data.images`). A test part becomes the `test` of the dataset.

    Raises DataError, which names the file, if it cannot be used; ModuleNotFoundError for a name without scikit-learn.

    >>> import os, tempfile
    >>> import numpy as np
    >>> from gradflow.data import load
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "flowers.npz")
    ...     np.savez(path, X=np.ones((4, 2)), y=["iris", "rose", "rose", "iris"])
    ...     load(path).classes
    ('iris', 'rose')
    """
    if isinstance(name, str) and name in DATASETS:
        return _built_in(name)
    main, test = _parts(name)
    if main is None:
        raise DataError(f"{os.fspath(name)} has test images only: the files with training images are missing")
    for part in (main, test):
        if part is not None and part.targets is None:
            what = "no targets" if part is main else "no targets for its test part"
            raise DataError(f"{os.fspath(name)} has {what}: a dataset needs inputs and targets, such as X and y")
    made = Dataset.from_arrays(
        main.inputs,
        main.targets,
        os.fspath(name),
        features=main.features,
        names=main.names,
        test=None if test is None else (test.inputs, test.targets),
    )
    return replace(made, unused=tuple(main.unused))


def holds_arrays(name: FilePath) -> bool:
    """Return whether `load` takes what this names: a dataset, a folder, or a file of arrays. Raises DataError.

    >>> from gradflow.data.datasets import holds_arrays
    >>> holds_arrays("digits")
    True
    """
    if name in DATASETS or os.path.isdir(name) or os.fspath(name).endswith(".bin"):
        return True
    with reading(name), open_file(name) as file:
        start = file.read(8)
        if start.startswith(images.GZIP_MAGIC):
            file.seek(0)
            start = gzip.GzipFile(fileobj=file).read(8)
        elif start.startswith(arrays.NPZ_MAGIC):
            return arrays.is_npz(file)
    return start.startswith((arrays.NPY_MAGIC, b"\0\0"))


def load_inputs(path: FilePath) -> Samples:
    """Return the inputs in a file or folder to predict or to evaluate on, not yet checked; targets are optional.

    path: as for `load`; or an npy file, one IDX file of images, or one of CIFAR-10's binary files. Where there is a
    test part, that is what is returned.

    Raises DataError, which names the file, if it cannot be read.

    >>> import os, tempfile
    >>> import numpy as np
    >>> from gradflow.data import load_inputs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "new.npy")
    ...     np.save(path, np.zeros((5, 64)))
    ...     load_inputs(path).inputs.shape
    (5, 64)
    """
    main, test = _parts(path)
    if main is not None and test is not None:
        return replace(test, source=f"the test part of {os.fspath(path)}")
    found = test or main
    assert found is not None  # one of the two, or else DataError
    return found


def _parts(path: FilePath) -> tuple[Samples | None, Samples | None]:
    """Return the samples in a file or folder, and those of its test part."""
    name = os.fspath(path)
    if not os.path.exists(name):
        if os.path.dirname(name) or os.path.splitext(name)[1]:
            raise DataError(f"{name} does not exist")
        known = did_you_mean(name, DATASETS) or f"; there are {listed(list(DATASETS))}"
        raise DataError(f"unknown dataset {name!r}: no file or folder, and no dataset that comes with gradflow{known}")
    if os.path.isdir(name):
        return images.read_image_folder(name)
    if name.endswith(".bin"):
        return images.read_cifar([name], name), None
    with reading(name), open_file(name) as file:
        start = file.read(8)
    if start.startswith(arrays.NPZ_MAGIC):
        return arrays.read_npz(name)
    if start.startswith(arrays.NPY_MAGIC):
        return arrays.read_npy(name), None
    if start.startswith((images.GZIP_MAGIC, b"\0\0")):
        return Samples(name, images.read_idx(name)), None
    kinds = "an npz or npy file of NumPy's, an IDX file, or one of CIFAR-10's binary files"
    raise DataError(f"{name} is {'empty' if not start else 'of an unknown kind'}; give {kinds}")


def _built_in(name: str) -> Dataset:
    datasets = imported_extra("sklearn.datasets", "scikit-learn", "train")
    if name == "diabetes":  # scikit-learn's default scale is computed from all samples, held-out ones too
        bunch = datasets.load_diabetes(scaled=False)
        return Dataset.from_arrays(bunch.data, bunch.target, name, features=bunch.feature_names)
    bunch = getattr(datasets, f"load_{name.replace('-', '_')}")()
    return Dataset.from_arrays(
        bunch.data,
        bunch.target,
        name,
        features=[str(feature) for feature in bunch.feature_names],
        names=[str(c) for c in bunch.target_names],
        image_shape=(8, 8) if name == "digits" else None,
    )
