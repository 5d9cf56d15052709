"""All that decides what a run computes, in one checked, immutable record that can be written down and read back.

Every way in (the command line, a config.toml, Python) ends in `Settings(...)`, so each rule is stated once.
"""

from __future__ import annotations

import difflib
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from gradflow.backend import ACTIVATIONS
from gradflow.data import DATASETS

OPTIMIZERS: dict[str, dict[str, float]] = {
    "adamw": {"lr": 0.002, "weight_decay": 0.01},
    "adam": {"lr": 0.002, "weight_decay": 0.0},
    "sgd": {"lr": 0.05, "weight_decay": 0.0, "momentum": 0.9},
    "rmsprop": {"lr": 0.0005, "weight_decay": 0.0, "momentum": 0.0},
}
"""The optimizers by name, each with its own defaults; one without momentum takes none."""

SCHEDULES = ("cosine", "constant")
"""The courses of the learning rate: down to 0 in half a cosine over the whole run, or none."""


class SettingsError(ValueError):
    """Settings that cannot be carried out; the message says, in one line, which and why."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run. `lr`, `momentum` and `weight_decay` left None become the optimizer's own defaults.

    hidden: the widths of the hidden layers, () for none. device: a name, or "auto". seed: in [0, 2^32); it decides
    the split, the initial weights, the shuffles and the dropout masks. Raises SettingsError, which names the setting,
    for a value that cannot be.
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
            raise SettingsError(f"momentum does not apply to {self.optimizer}; it does to {takers}")
        for name in ("lr", "weight_decay", "dropout", "momentum"):  # as Python's numbers, which the files can hold
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
        """The settings as TOML can hold them; what does not apply is left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["hidden"] = list(self.hidden)
        return {name: value for name, value in values.items() if value is not None}


SETTING_NAMES = tuple(f.name for f in fields(Settings))


def read_config(path: str | Path) -> dict[str, Any]:
    """The content of a run's config.toml: "settings" to make `Settings` of, and what else a run wrote there.

    Raises SettingsError for a file that cannot be read or is no config of a run.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))  # editors on Windows write a mark first
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not text in UTF-8: save it in this encoding") from None
    except (ValueError, RecursionError) as error:  # of the parser's own, and numbers or nesting beyond its limits
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    unknown = set(content) - {"settings", "environment", "result"}
    if unknown:
        raise SettingsError(f"{path} has an unknown key {sorted(unknown)[0]!r}; settings stand under [settings]")
    settings = content.get("settings")
    if not isinstance(settings, Mapping):
        raise SettingsError(f"{path} has no table [settings]")
    if not isinstance(content.get("environment", {}), Mapping):
        raise SettingsError(f"{path} has an environment that is no table")
    for name in settings:
        if name not in SETTING_NAMES:
            raise SettingsError(f"{path} has an unknown setting {name!r}{_hint(name, SETTING_NAMES)}")
    return content


def _hint(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"


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
