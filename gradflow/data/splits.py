"""Training, validation and test samples of a dataset, on the scale of the training samples.

Everything learned from data, the scale of the features too, is learned from the training samples only, so figures on
the others are those of unseen data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from gradflow.data.inputs import DataError
from gradflow.data.labels import Label
from gradflow.data.scaling import Standardizer
from gradflow.environment import imported_extra

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]

TEST_SHARE = 0.2
"""The share of the samples that is held out for the test where the dataset has no test set of its own."""

VALIDATION_SHARE = 0.2
"""The share of the other samples that is held out for validation."""

LIMIT = 3.0
"""The standard deviations to which inputs are clipped: a pixel that hardly varied in training may be huge elsewhere."""


class Splittable(Protocol):
    """What can be split: a `Dataset`, or a table with a target."""

    @property
    def name(self) -> str:
        """What to call it in messages."""

    @property
    def targets(self) -> Array:
        """The codes of the classes, int64 (samples,), or values, floats (samples, columns)."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, () for regression."""

    @property
    def labels(self) -> tuple[Label, ...]:
        """The label of each class."""

    @property
    def is_classification(self) -> bool:
        """Whether the targets are codes of classes."""

    @property
    def test(self) -> Self | None:
        """Its own test set, or None."""

    @property
    def weights(self) -> Array | None:
        """The weights of the samples, (samples,), or None."""

    def like(self, other: Self) -> Self:
        """Return it with its classes encoded as in `other`."""

    def rows(self, indices: Rows) -> Any:
        """Return the inputs of some samples as they are in the data."""

    def learn_inputs(self, train: Rows) -> Any:
        """Return what makes inputs of the network, learned from these samples."""

    def encode(self, learned: Any, indices: Rows) -> npt.NDArray[np.float32]:
        """Return the inputs of the network for some samples, by what `learn_inputs` of the training data returned."""


Data = TypeVar("Data", bound=Splittable)


@dataclass(frozen=True, eq=False, repr=False)
class Part:
    """Samples of a split, ready for `Batches`.

    inputs: float32 (samples, features), standardized and clipped to `LIMIT` deviations; of a table, its raw columns.
    targets: codes of classes, int64 (samples,), or float32 (samples, columns), standardized.
    dataset: where the samples come from, with the classes encoded as in the training set.
    indices: their rows in `dataset`, int64 (samples,).

    >>> from gradflow.data import Dataset
    >>> split = Dataset.from_arrays([[float(i)] for i in range(10)], [i % 2 for i in range(10)]).split(seed=0)
    >>> len(split.train), split.test.raw_inputs.shape, sorted({*split.train.indices} & {*split.test.indices})
    (6, (2, 1), [])
    """

    inputs: npt.NDArray[np.float32]
    targets: npt.NDArray[np.float32] | npt.NDArray[np.int64]
    dataset: Any
    indices: Rows

    def __repr__(self) -> str:
        return f"Part({len(self.indices)} samples of {self.dataset.name!r})"

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.indices)

    @property
    def raw_inputs(self) -> Any:
        """The inputs as they are in the dataset: an array, or a table."""
        return self.dataset.rows(self.indices)

    @property
    def weights(self) -> Array | None:
        """The weights of the samples, (samples,), or None."""
        weights = self.dataset.weights
        return None if weights is None else weights[self.indices]

    @property
    def raw_targets(self) -> Array:
        """The targets as they are in the data: the labels of the classes, or values in their own units."""
        targets: Array = self.dataset.targets[self.indices]
        return np.array(self.dataset.labels)[targets] if self.dataset.is_classification else targets


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """The parts of a dataset: `train`, and `validation` and `test` where there are any.

    input_scale: the `Standardizer` of the inputs; of a table, its `gradflow.tables.Columns`.
    target_scale: the `Standardizer` of the targets in regression, otherwise None.

    >>> from gradflow.data import Dataset
    >>> data = Dataset.from_arrays([[float(i)] for i in range(20)], [i % 2 for i in range(20)])
    >>> split = data.split(test=0.2, validation=0.25, seed=0)
    >>> [len(part) for part in (split.train, split.validation, split.test)]
    [12, 4, 4]
    """

    train: Part
    validation: Part | None
    test: Part | None
    input_scale: Any
    target_scale: Standardizer | None

    def __repr__(self) -> str:
        held_out = ((part, what) for part, what in ((self.validation, "to validate"), (self.test, "to test")) if part)
        counts = "".join(f", {len(part)} {what}" for part, what in held_out)
        x, y = self.train.inputs, self.train.targets
        return f"Split({len(x)} samples to train on{counts}, {x.shape[1]} features, targets {y.shape[1:]} {y.dtype})"


def split(
    dataset: Data,
    seed: int,
    test: float | None = None,
    validation: float = VALIDATION_SHARE,
    test_set: Data | None = None,
    validation_set: Data | None = None,
) -> Split:
    """Return a split of a dataset; see `Dataset.split`."""
    for name, share in (("test", test), ("validation", validation)):
        if share is not None and not 0 <= share < 1:
            raise ValueError(f"the {name} share must be at least 0 and below 1; got {share!r}")
    if test_set is None and test is None:
        test_set = dataset.test
    train = np.arange(len(dataset.targets))
    parts: dict[str, tuple[Splittable, Rows] | None] = {"validation": None, "test": None}
    shares = {"test": TEST_SHARE if test is None else test, "validation": validation}
    for name, own in (("test", test_set), ("validation", validation_set)):
        if own is not None:
            parts[name] = own.like(dataset), np.arange(len(own.targets))
        elif shares[name]:
            train, held_out = _hold_out(dataset, train, shares[name], seed, name)
            parts[name] = dataset, held_out
    if dataset.is_classification and (dataset.targets[train] == dataset.targets[train[0]]).all():
        only = dataset.classes[dataset.targets[train[0]]]
        raise DataError(f"{dataset.name}: all training samples are of the class {only!r}; at least two are needed")
    try:
        input_scale = dataset.learn_inputs(train)
        target_scale = None if dataset.is_classification else Standardizer.fit(dataset.targets, train)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{dataset.name}: {error}") from None

    def part(source: Splittable, rows: Rows) -> Part:
        targets = source.targets[rows] if target_scale is None else target_scale.apply(source.targets, rows)
        return Part(source.encode(input_scale, rows), targets, source, rows)

    held = {name: None if found is None else part(*found) for name, found in parts.items()}
    return Split(part(dataset, train), held["validation"], held["test"], input_scale, target_scale)


def _hold_out(dataset: Splittable, rows: Rows, share: float, seed: int, what: str) -> tuple[Rows, Rows]:
    """Return the rows that stay and those held out, a share of all and of each class."""
    labels = dataset.targets[rows] if dataset.is_classification else None
    n, taken = len(rows), math.ceil(share * len(rows))  # as scikit-learn rounds
    instead = f"take another share, or give a {what} set of its own"
    if labels is not None:
        classes, counts = np.unique(labels, return_counts=True)
        rarest = int(counts.argmin())
        if counts[rarest] < 2:
            name, of = dataset.classes[classes[rarest]], int((dataset.targets == classes[rarest]).sum())
            raise DataError(
                f"{dataset.name}: the class {name!r} has {of} sample{'s' * (of > 1)}, and 1 is left for training and "
                f"{what}, which need one each: leave this class out, or give a {what} set of its own"
            )
        if min(taken, n - taken) < len(classes):
            raise DataError(
                f"{dataset.name}: a {what} share of {share:g} splits {n} samples into {n - taken} and {taken}, and "
                f"each part needs the {len(classes)} classes: {instead}"
            )
    elif not taken or taken == n:
        raise DataError(
            f"{dataset.name}: a {what} share of {share:g} of {n} samples leaves none on one side: {instead}"
        )
    selection = imported_extra("sklearn.model_selection", "scikit-learn", "train")
    stay, held_out = selection.train_test_split(rows, test_size=share, stratify=labels, random_state=seed)
    if labels is not None and (lost := np.setdiff1d(labels, dataset.targets[stay])).size:
        name = dataset.classes[lost[0]]
        raise DataError(
            f"{dataset.name}: a {what} share of {share:g} leaves no sample of the class {name!r}: {instead}"
        )
    return stay, held_out
