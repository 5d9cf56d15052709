"""What the report of a run tells, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gradflow.training.curves import History
from gradflow.training.layers import Snapshot


@dataclass(frozen=True, eq=False)
class Importance:
    """How much worse the predictions are if the values of a column are shuffled.

    column: its name. losses: for each shuffle, the log loss or the RMSE, less that without a shuffle.
    """

    column: str
    losses: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Dependence:
    """The mean prediction if a column has the same value in all rows.

    column: its name. values: (points,), numbers, or days since 1970, increasing; or the names of levels. dates: whether
    they are days. means: (points, outputs), probabilities or values in their units.
    """

    column: str
    values: npt.NDArray[np.float64] | Sequence[str]
    means: npt.NDArray[np.float64]
    dates: bool = False


@dataclass(frozen=True, eq=False)
class TableFacts:
    """What a report tells of a table.

    target: the name of the column that is predicted. task: one sentence on it.
    columns: the others, as `gradflow.tables.Columns.describe` tells them. parameters: how many the model has.
    rows: how many of the assessed ones these are computed from; importance: of each column, the largest first;
    dependence: on the most important columns.
    """

    target: str
    task: str
    columns: Sequence[Mapping[str, str]]
    parameters: int
    rows: int = 0
    importance: Sequence[Importance] = ()
    dependence: Sequence[Dependence] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """What the report of a run tells. All arrays are on the host.

    name: the run, such as "digits-1". dataset: the name of the data.
    settings: every setting of the run by its name. environment: versions, device, kernels, data hash.
    sizes: the widths of the layers, from the inputs to the outputs.
    counts: how many samples trained the model, how many validated it, and how many were set aside to test it.
    histories: for each member of the ensemble (one without), its finished epochs.
    snapshots: what is known of the layers of the first member, in the order of its epochs.
    assessed: which samples `inputs`, `targets`, `outputs` and `rows` are: "test", or "validation" without a test set.
    inputs: (samples, features), raw: as they were in the data. targets: labels (samples,), or values (samples, columns)
    in their units. outputs: probabilities (samples, classes), or values (samples, columns) in their units, of the
    weights that are kept; None if there is nothing to assess. rows: (samples,), the row of each sample in the data.
    features: their names, () if unknown. means, deviations: (features,), of the training samples.
    image_shape: (height, width) or (height, width, channels) if the inputs are images.
    classes: the names of the classes, () for regression. columns: those of the target values, () if they have none.
    table: what more there is to tell of a table, None for arrays.
    seconds: how long the training took. stopped: why it ended before its last epoch, "" if it did not.
    command: what repeats the run in a shell.
    """

    name: str
    dataset: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    sizes: Sequence[int]
    counts: tuple[int, int, int]
    histories: Sequence[History]
    snapshots: Sequence[Snapshot] = ()
    assessed: Literal["test", "validation"] = "test"
    inputs: npt.NDArray[Any] | None = None
    targets: npt.NDArray[Any] | None = None
    outputs: npt.NDArray[Any] | None = None
    rows: npt.NDArray[Any] | None = None
    features: Sequence[str] = ()
    means: npt.NDArray[Any] | None = None
    deviations: npt.NDArray[Any] | None = None
    image_shape: tuple[int, ...] | None = None
    classes: Sequence[str] = ()
    columns: Sequence[str] = ()
    table: TableFacts | None = None
    seconds: float = 0.0
    stopped: str = ""
    command: str = ""
