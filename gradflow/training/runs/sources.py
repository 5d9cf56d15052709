"""The data of a run, by its settings: arrays or a table."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from gradflow.data import Dataset, load
from gradflow.data.datasets import holds_arrays
from gradflow.data.splits import TEST_SHARE
from gradflow.tables.dataset import TableDataset, load_table
from gradflow.training.runs.settings import Settings, SettingsError

Data: TypeAlias = Dataset | TableDataset

VALIDATION_SHARE, VALIDATED_ROWS = 0.1, 500
"""The share of a table's rows, without those for testing, that is held out for validation by default, and from how many
of these rows on: which epoch is the best on fewer than 50 rows is chance, and training on them is worth more."""

SAMPLES = 800_000
"""How many samples a model of a large table is trained on."""

ROWS_OF_DECAY, WIDTH_OF_DECAY = 1_400, 256
"""The default weight decay is the first by the number of rows, at most 4, and less in proportion to the widest layer if
that is narrower than the second, but at least 0.1.

Weights then forget over about as many epochs, however many steps an epoch has (Wang and Aitchison 2024, "How to set
AdamW's weight decay as you scale model and dataset size"). Those of a narrower layer have to be larger.
"""


def table_defaults(
    rows: int, classes: bool, hidden: Sequence[int] = (256, 128), validation: float | None = None
) -> dict[str, Any]:
    """Return the defaults of the settings that are others for a table than for arrays.

    rows: without those for testing. classes: whether these are predicted. hidden: the widths of the layers.
    validation: the share of `rows` that is held out (default None: as this function returns it).

    A table of few rows has few steps, so its rate is larger. Its classes have more dropout: no validation ends what is
    learned of wrong labels. The average of the weights remembers a tenth of the steps, 200 at most. Labels are not
    smoothed, which made the log loss larger.

    Measured on Adult, California housing and diamonds, whole and 200 to 4,000 of their rows; on digits, breast-cancer,
    wine, iris and diabetes; and on synthetic tables.
    """
    few = rows < VALIDATED_ROWS
    if validation is None:
        validation = 0.0 if few else VALIDATION_SHARE
    trained = max(1, round(rows * (1 - validation)))
    batch_size = 2 ** min(8, max(5, round(math.log2(trained / 100))))
    epochs = min(60, max(10, round(SAMPLES / trained)))
    steps = epochs * math.ceil(trained / batch_size)
    decay = min(4.0, ROWS_OF_DECAY / trained) * min(1.0, max(hidden, default=0) / WIDTH_OF_DECAY)
    return {
        "validation": validation,
        "batch_size": batch_size,
        "epochs": epochs,
        "lr": 0.01 if few else 0.003,
        "weight_decay": round(max(0.1, decay), 2),
        "dropout": (0.5 if few else 0.3) if classes else 0.1,
        "average": round(min(0.995, 1 - 10 / steps), 3),
    }


def load_data(settings: Settings) -> tuple[Settings, Data, dict[str, Data]]:
    """Return the settings, as the data completes them, the data, and those for testing and validation, if given.

    Raises SettingsError for settings of tables where the data is none, DataError for data that cannot be used.
    """
    files = {name: path for name in ("test", "validation") if (path := getattr(settings, f"{name}_file"))}
    if is_table(settings.dataset):
        data = load_table(
            settings.dataset,
            settings.target,
            settings.task,
            settings.ignore,
            settings.categorical,
            settings.weight_column,
            settings.header,
            settings.encoding,
            settings.numeric,
        )
        return _completed(settings, data), data, {name: data.read_like(path) for name, path in files.items()}
    if settings.of_tables:
        raise SettingsError(f"{settings.of_tables[0]} is a setting of tables, and {settings.dataset} holds arrays")
    return settings, load(settings.dataset), {name: load(path) for name, path in files.items()}


def is_table(dataset: str) -> bool:
    """Return whether this is neither the name of a dataset nor a file or folder of arrays."""
    return os.path.exists(dataset) and not holds_arrays(dataset)


def _completed(settings: Settings, data: TableDataset) -> Settings:
    """Return the settings with the target and the task of the data, and with the defaults of tables."""
    test = TEST_SHARE if settings.test is None and settings.test_file is None else settings.test or 0.0
    is_open = "validation" in settings.left_open and settings.validation_file is None
    validation = None if is_open else settings.validation
    rows = round(len(data.table) * (1 - test))
    defaults = table_defaults(rows, data.is_classification, settings.hidden, validation)
    if settings.optimizer != "adamw":
        defaults = {name: value for name, value in defaults.items() if name not in ("lr", "weight_decay")}
    chosen = {name: value for name, value in defaults.items() if name in settings.left_open}
    return replace(settings, target=data.target.name, task=data.target.task, **chosen)
