"""The data of a run, by its settings: arrays or a table."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any, TypeAlias

from gradflow.data import Dataset, load
from gradflow.data.datasets import holds_arrays
from gradflow.data.splits import TEST_SHARE
from gradflow.tables.dataset import TableDataset, load_table
from gradflow.training.runs.settings import Settings, SettingsError

Data: TypeAlias = Dataset | TableDataset

VALIDATION_SHARE = 0.1
"""The share of a table's rows, without those for testing, that is held out for validation by default."""

FEW_ROWS, SAMPLES = 2_000, 800_000
"""Up to how many training rows a table is small, and how many samples a model is trained on if there are more."""


def table_defaults(rows: int, classes: bool) -> dict[str, Any]:
    """Return the defaults of the settings that are others for a table than for arrays.

    rows: those that a model is trained on. classes: whether these are predicted.

    Measured on Adult, California housing and diamonds, and on four tables of 178 to 1,797 rows.
    """
    common = {"validation": VALIDATION_SHARE, "average": 0.995}
    if rows <= FEW_ROWS:
        return common | {"batch_size": 32, "epochs": 60, "lr": 0.001, "weight_decay": 0.3, "dropout": 0.5}
    batch_size = 2 ** min(8, max(5, round(math.log2(rows / 100))))
    epochs = min(60, max(10, round(SAMPLES / rows)))
    dropout = 0.3 if classes else 0.1
    return common | {"batch_size": batch_size, "epochs": epochs, "lr": 0.003, "weight_decay": 0.1, "dropout": dropout}


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
    validation = VALIDATION_SHARE if "validation" in settings.left_open else settings.validation or 0.0
    defaults = table_defaults(round(len(data.table) * (1 - test) * (1 - validation)), data.is_classification)
    if settings.optimizer != "adamw":
        defaults = {name: value for name, value in defaults.items() if name not in ("lr", "weight_decay")}
    if settings.validation_file is not None:
        defaults.pop("validation")
    chosen = {name: value for name, value in defaults.items() if name in settings.left_open}
    return replace(settings, target=data.target.name, task=data.target.task, **chosen)
