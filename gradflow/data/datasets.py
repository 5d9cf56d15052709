"""The datasets that come with scikit-learn, ready to train on; nothing is downloaded.

Everything learned from data, including the scale of the features, is learned from the training split only, so the score
on the test split is that of unseen data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.ops.host import array_from_host

Floats = npt.NDArray[np.float32]
Targets = npt.NDArray[np.float32] | npt.NDArray[np.int64]

DATASETS: dict[str, str] = {
    "digits": "1797 handwritten digits of 8x8 pixels, 10 classes",
    "breast-cancer": "569 tumours by 30 measurements, 2 classes",
    "wine": "178 wines by 13 measurements, 3 classes",
    "iris": "150 flowers by 4 measurements, 3 classes",
    "diabetes": "442 patients by 10 measurements, regression",
}
"""The names that `load` knows, each with a short description."""

TEST_SHARE = 0.2
"""The share of the samples that `Dataset.split` holds out."""

_FARTHEST = 3.0  # standard deviations


@dataclass(frozen=True, repr=False)
class Split:
    """A training split and a held-out test split, as host arrays, standardised by the training split.

    Inputs are float32 (samples, features), clipped to 3 standard deviations from the mean: otherwise a pixel that
    hardly varies in training could be huge elsewhere. Targets are int64 labels (samples,), or float32 (samples, 1),
    standardised too.
    """

    train_inputs: Floats
    train_targets: Targets
    test_inputs: Floats
    test_targets: Targets

    def __repr__(self) -> str:
        return (
            f"Split({len(self.train_inputs)} samples to train on, {len(self.test_inputs)} to test, "
            f"{self.train_inputs.shape[1]} features, targets {self.train_targets.shape[1:]} {self.train_targets.dtype})"
        )


@dataclass(frozen=True, repr=False)
class Dataset:
    """Samples on the host: `inputs` float32 (samples, features), `targets` int64 (samples,) or float32 (samples, 1).

    Integer targets are labels in [0, len(classes)); float targets are for regression, with empty `classes`.
    Raises TypeError or ValueError for other arrays and for non-finite numbers.
    """

    name: str
    inputs: Floats
    targets: Targets
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        kind = f"{len(self.classes)} classes" if self.classes else f"targets {self.targets.shape[1:]} for regression"
        return f"Dataset({self.name!r}, {len(self.inputs)} samples of {self.inputs.shape[1]} features, {kind})"

    def __post_init__(self) -> None:
        inputs, targets = array_from_host(self.inputs), array_from_host(self.targets)
        object.__setattr__(self, "inputs", inputs)  # now in this machine's byte order
        object.__setattr__(self, "targets", targets)
        if inputs.dtype != np.float32 or inputs.ndim != 2:
            raise TypeError(f"inputs must be float32 (samples, features); got {inputs.dtype} of shape {inputs.shape}")
        if len(inputs) != len(targets):
            raise ValueError(f"each input needs one target; got {len(inputs)} inputs and {len(targets)} targets")
        if not np.isfinite(inputs).all() or not np.isfinite(targets).all():
            raise ValueError(f"the dataset {self.name} contains a non-finite number")
        if self.is_classification:
            check_labels(targets, len(self.classes))
        elif targets.dtype != np.float32 or targets.ndim != 2:
            raise TypeError(
                f"targets must be int64 (samples,) or float32 (samples, 1); got {targets.dtype} {targets.shape}"
            )

    @property
    def is_classification(self) -> bool:
        """Whether the targets are class labels."""
        return bool(np.issubdtype(self.targets.dtype, np.integer))

    @property
    def outputs(self) -> int:
        """The width of the output layer for this dataset: the number of classes or of target columns."""
        return len(self.classes) if self.is_classification else int(self.targets.shape[1])

    def split(self, seed: int, test_share: float = TEST_SHARE) -> Split:
        """Return a split with `test_share` of the samples, and of each class, held out. The seed determines the split.

        Raises ValueError for a seed outside [0, 2^32), or if a split, or a class in it, would be empty.
        """
        from sklearn.model_selection import train_test_split

        train_x, test_x, train_y, test_y = train_test_split(
            self.inputs,
            self.targets,
            test_size=test_share,
            stratify=self.targets if self.is_classification else None,
            random_state=seed,
        )
        if not self.is_classification:
            train_y, test_y = _standardised(train_y, train_y), _standardised(test_y, train_y)
        near_train, near_test = (np.clip(_standardised(x, train_x), -_FARTHEST, _FARTHEST) for x in (train_x, test_x))
        return Split(near_train, train_y, near_test, test_y)


def check_labels(labels: npt.NDArray[Any], classes: int) -> None:
    """Raise TypeError for labels that are not int64 (samples,), ValueError for one outside [0, classes).

    This runs on the host before training, because CUDA kernels do not check labels: they read past the end of a row.
    """
    if labels.dtype != np.int64 or labels.ndim != 1:
        raise TypeError(f"labels must be int64 (samples,); got {labels.dtype} of shape {labels.shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels of {classes} classes must be in [0, {classes}); got {labels.min()} to {labels.max()}")


def load(name: str) -> Dataset:
    """Return the dataset of this name. Raises ValueError if unknown, ModuleNotFoundError without scikit-learn."""
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}; there are {', '.join(DATASETS)}")
    from sklearn import datasets

    if name == "diabetes":  # scikit-learn's default scale is computed from all samples, held-out ones too
        bunch = datasets.load_diabetes(scaled=False)
        return Dataset(name, bunch.data.astype(np.float32), bunch.target.astype(np.float32)[:, None])
    bunch = getattr(datasets, f"load_{name.replace('-', '_')}")()
    classes = tuple(str(c) for c in bunch.target_names)
    return Dataset(name, bunch.data.astype(np.float32), bunch.target.astype(np.int64), classes)


def _standardised(values: Floats, reference: Floats) -> Floats:
    """Return (values - mean) / standard deviation, both of `reference`; constant columns are only shifted."""
    mean = reference.mean(axis=0, dtype=np.float64)
    deviation = reference.std(axis=0, dtype=np.float64)
    deviation[deviation == 0] = 1.0
    standardised: Floats = ((values - mean) / deviation).astype(np.float32)
    return standardised
