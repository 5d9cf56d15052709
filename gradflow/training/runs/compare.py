"""What differs between runs, from their folders: settings, data and environment, and what each reached."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradflow.files import read_file
from gradflow.training.epoch import Epoch, best_of
from gradflow.training.metrics import METRICS, better
from gradflow.training.runs.settings import SettingsError, read_config

TABLES = ("settings", "data", "environment")
"""The tables of a config.toml that say how a result came about."""

_LONGEST = 1 << 28  # bytes of a metrics.csv
_SPLIT = ("seed", "test", "validation", "test_file", "validation_file")


@dataclass(frozen=True)
class Record:
    """What the folder of a run says about it.

    folder: as it was given. tables: of its config.toml, by name: those in `TABLES`, and "result", each {} if it is
    absent. histories: the epochs of each of its models, [] if none are written yet.
    """

    folder: str
    tables: Mapping[str, Mapping[str, Any]]
    histories: list[list[Epoch]]

    @property
    def state(self) -> str:
        """Return "finished", "not finished", or why it stopped."""
        result = self.tables["result"]
        return str(result.get("stopped", "finished")) if result else "not finished"

    @property
    def numbers(self) -> dict[str, list[float]]:
        """What the run reached, or has reached so far, by name: one number, or one for each model of an ensemble."""
        if not self.tables["result"]:
            return _so_far(self.histories)
        found = {}
        for name, value in self.tables["result"].items():
            numbers = value if isinstance(value, list) else [value]
            plain = all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers)
            if numbers and plain and not name.startswith("members_"):
                found[name] = numbers
        return found


def read_record(folder: str | Path) -> Record:
    """Return what the folder of a run says about it.

    Raises SettingsError, which names the file, if it is not the folder of a run or is damaged.
    """
    path = Path(folder)
    if not path.is_dir():
        raise SettingsError(f"{folder} {'is a file' if path.exists() else 'does not exist'}; give the folder of a run")
    if not (path / "config.toml").exists():
        raise SettingsError(f"{folder} is not the folder of a run: it has no config.toml")
    config = read_config(path / "config.toml")
    tables = {name: config.get(name, {}) for name in (*TABLES, "result")}
    return Record(os.fspath(folder), tables, _histories(path / "metrics.csv"))


def differences(records: Sequence[Record], table: str) -> dict[str, list[Any]]:
    """Return the entries of a table that are not equal in all runs: the value in each run, None where it is absent."""
    names = dict.fromkeys(name for record in records for name in record.tables[table])
    rows = {name: [record.tables[table].get(name) for record in records] for name in names}
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}


def figures(records: Sequence[Record]) -> dict[str, list[float | None]]:
    """Return each figure in each run, None where it is absent; those of the test first.

    Where a run has a number for each of several models, its figure is their mean; see `averaged`.
    """
    numbers = [record.numbers for record in records]
    names = dict.fromkeys(name for each in numbers for name in each)
    kinds = ("test_", "validation_", "train_", "")
    ordered = sorted(names, key=lambda name: next(i for i, kind in enumerate(kinds) if name.startswith(kind)))
    return {name: [sum(n[name]) / len(n[name]) if name in n else None for n in numbers] for name in ordered}


def averaged(records: Sequence[Record]) -> set[str]:
    """Return the names of the figures that are means over the models of an ensemble in one of the runs."""
    return {name for record in records for name, numbers in record.numbers.items() if len(numbers) > 1}


def marks(records: Sequence[Record], name: str, values: Sequence[float | None]) -> list[int]:
    """Return which of the values of a figure are the best, as `best`; [] where the values cannot be compared.

    That is: of any figure of runs on different data, and of losses with other class weights.
    """
    weighted = name in ("train_loss", "validation_loss") and "class_weight" in differences(records, "settings")
    return best(name, values) if same_data(records) and not weighted else []


def best(name: str, values: Sequence[float | None]) -> list[int]:
    """Return which of the values of a figure are the best; [] if it has no better and worse, or if all are equal."""
    metric = name.partition("_")[2]
    known = [value for value in values if value is not None and math.isfinite(value)]
    if metric not in (*METRICS, "loss") or len(set(known)) < 2:
        return []
    top = max(known) if better(metric) > 0 else min(known)
    return [i for i, value in enumerate(values) if value == top]


def same_data(records: Sequence[Record]) -> bool:
    """Return whether the runs are of one data set."""
    return len({record.tables["data"].get("hash", record.tables["settings"].get("dataset")) for record in records}) == 1


def comparable(records: Sequence[Record]) -> bool:
    """Return whether the figures are of the same samples: of one data set, split in the same way."""
    return same_data(records) and not set(differences(records, "settings")) & set(_SPLIT)


def _so_far(histories: Sequence[Sequence[Epoch]]) -> dict[str, list[float]]:
    """Return the numbers that a run would have as its result if it ended now, but for those of the test."""
    found: dict[str, list[float]] = {}
    for history in histories:
        best_yet = best_of(history) or history[-1]
        reached: dict[str, float | None] = {"epochs": len(history), "best_epoch": best_yet.epoch}
        reached |= {"train_loss": best_yet.train_loss, "validation_loss": best_yet.validation_loss}
        reached |= {f"validation_{name}": value for name, value in best_yet.validation_metrics.items()}
        for name, number in reached.items():
            if number is not None:
                found.setdefault(name, []).append(number)
    return found


def _histories(path: Path) -> list[list[Epoch]]:
    """Return the epochs of each model in a metrics.csv; [] if there is no such file."""
    try:
        lines = read_file(path, _LONGEST).decode().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise SettingsError(f"{path} is damaged: {error}") from None
    found: dict[str, list[Epoch]] = {}
    try:
        for row in csv.DictReader(lines, strict=True):
            history = found.setdefault(row.get("member", ""), [])
            history.append(_epoch(row, history))
    except (ValueError, KeyError, TypeError, csv.Error):
        where = f"line {2 + sum(map(len, found.values()))}"
        raise SettingsError(f"{path} is damaged: {where} is not a row of figures") from None
    return list(found.values())


def _epoch(row: dict[Any, Any], before: Sequence[Epoch]) -> Epoch:
    """Return the epoch in a row. Raises ValueError, KeyError or TypeError for a row that has none."""
    if None in row:
        raise ValueError("more cells than the header has")
    metrics: dict[str, dict[str, float]] = {"train": {}, "validation": {}}
    for name, text in row.items():
        part, _, metric = name.partition("_")
        if part in metrics and metric != "loss":
            metrics[part][metric] = float(text)
    validation = float(row["validation_loss"]) if "validation_loss" in row else None
    loss = float(row["train_loss"])
    watched = [epoch.train_loss if epoch.validation_loss is None else epoch.validation_loss for epoch in before]
    improved = not watched or (loss if validation is None else validation) < min(watched)
    return Epoch(
        epoch=int(row["epoch"]),
        step=int(row["step"]),
        learning_rate=float(row["learning_rate"]),
        train_loss=loss,
        train_metrics=metrics["train"],
        validation_loss=validation,
        validation_metrics=metrics["validation"],
        stale=0 if improved else before[-1].stale + 1,
        seconds=math.nan,
        samples_per_second=math.nan,
        skipped=int(row.get("skipped_steps", 0)),
    )
