"""`Settings`: everything that determines what a run computes, in one checked, immutable record.

The command line, a config.toml and Python code all create `Settings(...)`, so each rule is stated once.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from gradflow.backend import ACTIVATIONS
from gradflow.data import DATASETS
from gradflow.text import did_you_mean

OPTIMIZERS: dict[str, dict[str, float]] = {
    "adamw": {"lr": 0.002, "weight_decay": 0.01},
    "adam": {"lr": 0.002, "weight_decay": 0.0},
    "sgd": {"lr": 0.05, "weight_decay": 0.0, "momentum": 0.9},
    "rmsprop": {"lr": 0.0005, "weight_decay": 0.0, "momentum": 0.0},
}
"""The optimizers by name, with their defaults; those without a default momentum have no such setting."""

SCHEDULES = ("cosine", "constant")
"""The schedules of the learning rate: down to 0 along half a cosine over the whole run, or constant."""


class SettingsError(ValueError):
    """Invalid settings; the message says, on one line, which and why."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run. If `lr`, `momentum` or `weight_decay` is None, it becomes the optimizer's default.

    dataset: a name in `gradflow.data.DATASETS`. device: a name, or "auto" (default).
    hidden: the widths of the hidden layers, () for none (default (256, 128)). activation: its name (default "relu").
    dropout: the probability of dropping an element, at least 0 and below 1 (default 0.2).
    optimizer: a name in `OPTIMIZERS` (default "adamw"). lr, momentum, weight_decay: its hyperparameters.
    schedule: a name in `SCHEDULES` (default "cosine"). batch_size: samples per batch (default 64).
    epochs: passes through the training split (default 40).
    seed: in [0, 2^32) (default 0); it determines the split, the initial weights, the shuffles and the dropout masks.

    Raises SettingsError, which names the setting, for an invalid value.
    """

    dataset: str
    device: str = "auto"
    hidden: tuple[int, ...] = (256, 128)
    activation: str = "relu"
    dropout: float = 0.2
    optimizer: str = "adamw"
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: str = "cosine"
    batch_size: int = 64
    epochs: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("dataset", self.dataset, DATASETS)
        _one_of("activation", self.activation, ACTIVATIONS)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        if not isinstance(self.device, str):
            raise SettingsError(f"device must be a name like cpu or cuda:0; got {self.device!r}")
        if not isinstance(self.hidden, (tuple, list)):
            raise SettingsError(f"hidden must be a list of widths; got {self.hidden!r}")
        hidden = tuple(_integer("each width in hidden", width, 1, 1 << 20) for width in self.hidden)
        object.__setattr__(self, "hidden", hidden)
        for name, value in OPTIMIZERS[self.optimizer].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.momentum is not None and "momentum" not in OPTIMIZERS[self.optimizer]:
            takers = " and ".join(name for name, own in OPTIMIZERS.items() if "momentum" in own)
            raise SettingsError(f"{self.optimizer} has no momentum; {takers} have")
        for name in ("lr", "weight_decay", "dropout", "momentum"):  # as Python numbers, which can be written to files
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name, most in (("batch_size", None), ("epochs", None), ("seed", (1 << 32) - 1)):
            low = 0 if name == "seed" else 1
            object.__setattr__(self, name, _integer(name, getattr(self, name), low, most))
        if not _number("lr", self.lr) > 0:
            raise SettingsError(f"lr must be above 0; got {self.lr}")
        if _number("weight_decay", self.weight_decay) < 0:
            raise SettingsError(f"weight_decay must be 0 or more; got {self.weight_decay}")
        for name in ("dropout", "momentum"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise SettingsError(f"{name} must be at least 0 and below 1; got {value}")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dict for TOML, without those that are None."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["hidden"] = list(self.hidden)
        return {name: value for name, value in values.items() if value is not None}


SETTING_NAMES = tuple(f.name for f in fields(Settings))


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the content of a run's config.toml: the "settings", and what else the run recorded.

    Raises SettingsError if the file cannot be read or is not the config of a run.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not text in UTF-8: save it in this encoding") from None
    except (ValueError, RecursionError) as error:  # also for numbers or nesting beyond the parser's limits
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    unknown = set(content) - {"settings", "environment", "result"}
    if unknown:
        raise SettingsError(f"{path} has an unknown key {sorted(unknown)[0]!r}; settings belong under [settings]")
    settings = content.get("settings")
    if not isinstance(settings, Mapping):
        raise SettingsError(f"{path} has no table [settings]")
    if not isinstance(content.get("environment", {}), Mapping):
        raise SettingsError(f"{path} has an environment that is not a table")
    for name in settings:
        if name not in SETTING_NAMES:
            raise SettingsError(f"{path} has an unknown setting {name!r}{_hint(name, SETTING_NAMES)}")
    return content


def _hint(name: str, known: Iterable[str]) -> str:
    known = list(known)
    return did_you_mean(name, known) or f"; there are {', '.join(known)}"


def _one_of(name: str, value: Any, known: Iterable[str]) -> None:
    if value not in list(known):
        raise SettingsError(f"unknown {name} {value!r}; there are {', '.join(known)}")


def _integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise SettingsError(f"{name} must be an integer {bounds}; got {value!r}")
    return int(value)


def _number(name: str, value: Any) -> float:
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not abs(value) <= sys.float_info.max:
        raise SettingsError(f"{name} must be a finite number; got {value!r}")
    return float(value)
