"""The data of a run, by its settings: arrays or a table."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, TypeAlias

from gradflow.data import Dataset, load
from gradflow.data.datasets import holds_arrays
from gradflow.tables.dataset import TableDataset, load_table
from gradflow.training.runs.settings import Settings, SettingsError

Data: TypeAlias = Dataset | TableDataset


FEW_ROWS, SAMPLES = 5_000, 1_000_000
"""Below how many rows the defaults are those of small tables, and how many samples larger ones are trained on."""


def table_defaults(rows: int) -> dict[str, Any]:
    """Return the defaults of the settings that are others for a table of so many rows than for arrays.

    Measured on Adult, California housing and diamonds, and on four tables of 178 to 1,797 rows.
    """
    common = {"validation": 0.1, "average": 0.995}
    if rows < FEW_ROWS:
        return common | {"batch_size": 32, "dropout": 0.4, "lr": 0.001, "weight_decay": 0.1, "epochs": 60}
    epochs = min(60, max(20, round(SAMPLES / rows)))
    return common | {"batch_size": 256, "dropout": 0.2, "lr": 0.003, "weight_decay": 0.01, "epochs": epochs}


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
        )
        return _completed(settings, data), data, {name: data.read_like(path) for name, path in files.items()}
    if settings.of_tables:
        raise SettingsError(f"{settings.of_tables[0]} is a setting of tables, and {settings.dataset} holds arrays")
    settings = replace(settings, average=settings.average or None)
    return settings, load(settings.dataset), {name: load(path) for name, path in files.items()}


def is_table(dataset: str) -> bool:
    """Return whether this is neither the name of a dataset nor a file or folder of arrays."""
    return os.path.exists(dataset) and not holds_arrays(dataset)


def _completed(settings: Settings, data: TableDataset) -> Settings:
    """Return the settings with the target and the task of the data, and with the defaults of tables."""
    defaults = table_defaults(len(data.table))
    if settings.optimizer != "adamw":
        defaults = {name: value for name, value in defaults.items() if name not in ("lr", "weight_decay")}
    if settings.validation_file is not None:
        defaults.pop("validation")
    chosen = {name: value for name, value in defaults.items() if name in settings.left_open}
    return replace(settings, target=data.target.name, task=data.target.task, **chosen)
