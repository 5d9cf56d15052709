"""`Settings`: everything that determines what a run computes, in one checked, immutable record.

The command line, a config.toml and Python code all create `Settings(...)`, so each rule is stated once.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from gradflow import optim
from gradflow.backend import ACTIVATIONS
from gradflow.data.built_in import DATASETS
from gradflow.files import read_file
from gradflow.tables.choices import ENCODINGS, TASKS
from gradflow.text import did_you_mean
from gradflow.training.precision import AUTOCASTS

OPTIMIZERS: dict[str, dict[str, float]] = {
    "adamw": {"lr": 0.002, "weight_decay": 0.01},
    "adam": {"lr": 0.002, "weight_decay": 0.0},
    "sgd": {"lr": 0.05, "weight_decay": 0.0, "momentum": 0.9},
    "rmsprop": {"lr": 0.0005, "weight_decay": 0.0, "momentum": 0.0},
    "adagrad": {"lr": 0.02, "weight_decay": 0.0},
    "nadam": {"lr": 0.002, "weight_decay": 0.0},
    "radam": {"lr": 0.005, "weight_decay": 0.0},
    "lion": {"lr": 0.0003, "weight_decay": 0.01},
}
"""The optimizers by name, with their defaults; those without a default momentum have no such setting."""

OPTIMIZER_CLASSES: dict[str, Callable[..., optim.Optimizer]] = {
    name.lower(): getattr(optim, name) for name in optim.__all__ if name.lower() in OPTIMIZERS
}
"""Their classes in `gradflow.optim`."""

SCHEDULES = ("cosine", "constant", "plateau")
"""The schedules of the learning rate: down to 0 along half a cosine over the whole run; constant; or a half of it after
each 5 epochs without a better validation loss (training loss without validation)."""


CLASS_WEIGHTS = ("balanced",)
"""The rules for the weights of classes."""

TABLE_SETTINGS = ("target", "task", "ignore", "categorical", "numeric", "weight_column", "header", "encoding")
"""The settings that only tables have."""

_OPEN: Any = None  # the default of settings that `Settings.left_open` names

VALIDATION_SHARE = 0.2
"""The share of the samples, without those for testing, that is held out for validation by default."""


class SettingsError(ValueError):
    """Invalid settings; the message says, on one line, which and why.

    >>> from gradflow.training import Settings
    >>> Settings("digits", dropout=1.0)
    Traceback (most recent call last):
        ...
    gradflow.training.runs.settings.SettingsError: dropout must be at least 0 and below 1; got 1.0
    """


MOST_EPOCHS, MOST_UNITS, MOST_LAYERS, MOST_MEMBERS = 1_000_000, 65_536, 1_000, 1_000
"""The limits of `epochs`, of each width in `hidden`, of the number of these widths, and of `ensemble`."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run. If `lr`, `momentum` or `weight_decay` is None, it becomes the optimizer's default.

    dataset: a name in `gradflow.data.DATASETS`, or the path of a file or folder that `gradflow.data.load` reads.
    device: a name, or "auto" (default).
    test: the share of the samples that is held out for testing, in [0, 1) (default None: the test set of the data, or
        0.2 if it has none).
    validation: the share of the rest that chooses the best epoch, in [0, 1) (default 0.2). With 0, the training loss
        chooses it.
    test_file, validation_file: paths of data to use for this instead of a share (default None).
    hidden: the widths of the hidden layers, () for none (default (256, 128)). activation: its name (default "relu").
    dropout: the probability of dropping an element, at least 0 and below 1 (default 0.2).
    optimizer: a name in `OPTIMIZERS` (default "adamw"). lr, momentum, weight_decay: its hyperparameters.
    schedule: a name in `SCHEDULES` (default "cosine"). batch_size: samples per batch (default 64).
    accumulate: batches per step (default 1). clip_norm: the largest norm of the gradient (default None: any).
    average: the decay of a moving average of the weights, which is then what is kept (default None, or 0: no average).
    class_weight: "balanced" to weight each class by the inverse of its frequency (default None: equal weights).
    autocast: "bfloat16" or "float16" for the products of training (default None: float32); see `Trainer`.
    epochs: passes through the training samples (default 40). patience: how many epochs without an improvement end
        training (default None: train for all epochs).
    ensemble: how many models to train, whose predictions are averaged (default 1).
    seed: in [0, 2^32) (default 0); it determines the split, the initial weights, the shuffles and the dropout masks.

    For a table, the defaults of those in `left_open` are others: see `gradflow.training.runs.sources`. And it has:
    target: the name of the column to predict (default: target, label, class or y if there is one, else the last).
    task: a name in `TASKS` (default: what the values of the target suggest).
    ignore, categorical: the names of columns to leave out, and of numbers that are names of categories (default none).
    numeric: the names of columns of numbers to use as such, even if they seem to number the rows (default none).
    weight_column: the name of the column with the weights of the rows (default None: equal weights).
    header: whether the first line has the names of the columns (default True).
    encoding: how numbers enter the model, a name in `ENCODINGS` (default "auto").

    Raises SettingsError, which names the setting, for an invalid value.

    >>> from gradflow.training import Settings
    >>> settings = Settings("digits", hidden=(32,), optimizer="sgd", epochs=5)
    >>> settings.lr, settings.momentum, settings.batch_size
    (0.05, 0.9, 64)
    """

    dataset: str
    device: str = "auto"
    test: float | None = None
    validation: float | None = None
    test_file: str | None = None
    validation_file: str | None = None
    hidden: tuple[int, ...] = _OPEN
    activation: str = "relu"
    dropout: float = _OPEN
    optimizer: str = "adamw"
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: str = "cosine"
    batch_size: int = _OPEN
    accumulate: int = 1
    clip_norm: float | None = None
    average: float | None = None
    class_weight: str | None = None
    autocast: str | None = None
    epochs: int = _OPEN
    patience: int | None = None
    ensemble: int = 1
    seed: int = 0
    target: str | None = None
    task: str | None = None
    ignore: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    weight_column: str | None = None
    header: bool = True
    encoding: str = "auto"
    left_open: frozenset[str] = field(init=False, repr=False, compare=False)
    """The names of the settings that were not given, whose defaults depend on the data."""

    def __post_init__(self) -> None:
        by_data = (*_DEFAULTS, "lr", "weight_decay", "average", "validation")
        object.__setattr__(self, "left_open", frozenset(name for name in by_data if getattr(self, name) is None))
        for name in PLACES:
            value = getattr(self, name)
            if value is None and name.endswith("_file"):
                continue
            if not isinstance(value, str) or not value or "\0" in value:
                what = "a name like cpu or cuda:0" if name == "device" else "a name or a path"
                raise SettingsError(f"{name} must be {what}; got {value!r}")
            check_unicode(value, name)
        _one_of("activation", self.activation, ACTIVATIONS)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        if self.class_weight is not None:
            _one_of("class_weight", self.class_weight, CLASS_WEIGHTS)
        if self.autocast is not None:
            _one_of("autocast", self.autocast, AUTOCASTS)
        for name, default in _DEFAULTS.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        self._check_hidden()
        self._check_table()
        self._choose_defaults()
        for name, low, high in _INTEGERS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _integer(name, getattr(self, name), low, high))
        for name, fits, bounds in _NUMBERS:
            if getattr(self, name) is not None:
                value = _number(name, getattr(self, name))
                if not fits(value):
                    raise SettingsError(f"{name} must be {bounds}; got {value}")
                object.__setattr__(self, name, value)  # a Python number, which can be written to files

    def _check_hidden(self) -> None:
        if not isinstance(self.hidden, (tuple, list)) or len(self.hidden) > MOST_LAYERS:
            got = repr(self.hidden) if not isinstance(self.hidden, (tuple, list)) else f"{len(self.hidden)} widths"
            raise SettingsError(f"hidden must be a list of at most {MOST_LAYERS} widths; got {got}")
        hidden = tuple(_integer("each width in hidden", width, 1, MOST_UNITS) for width in self.hidden)
        object.__setattr__(self, "hidden", hidden)

    def _check_table(self) -> None:
        """Check what only tables have."""
        for name in ("ignore", "categorical", "numeric"):
            names = getattr(self, name)
            if not isinstance(names, (tuple, list)) or not all(isinstance(column, str) for column in names):
                raise SettingsError(f"{name} must be a list of names of columns; got {names!r}")
            object.__setattr__(self, name, tuple(names))
        for name in ("target", "weight_column"):
            column = getattr(self, name)
            if column is not None and not isinstance(column, str):
                raise SettingsError(f"{name} must be the name of a column; got {column!r}")
        if self.task is not None:
            _one_of("task", self.task, TASKS)
        _one_of("encoding", self.encoding, ENCODINGS)
        if not isinstance(self.header, bool):
            raise SettingsError(f"header must be true or false; got {self.header!r}")

    def _choose_defaults(self) -> None:
        for part in ("test", "validation"):
            share, file = getattr(self, part), getattr(self, f"{part}_file")
            if share and file is not None:
                raise SettingsError(f"{part} and {part}_file exclude each other; got {share!r} and {file!r}")
        if self.validation is None:
            object.__setattr__(self, "validation", VALIDATION_SHARE if self.validation_file is None else 0.0)
        own = OPTIMIZERS[self.optimizer]
        for name, value in own.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.momentum is not None and "momentum" not in own:
            takers = " and ".join(name for name, theirs in OPTIMIZERS.items() if "momentum" in theirs)
            raise SettingsError(f"{self.optimizer} has no momentum; {takers} have")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dict for TOML, without those that are None, or that are for tables and not used."""
        values = {name: getattr(self, name) for name in SETTING_NAMES}
        left_out = {*TABLE_SETTINGS} - {*self.of_tables}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None and name not in left_out
        }

    @property
    def of_tables(self) -> list[str]:
        """The names of the settings that only tables have and that are not their defaults."""
        return [name for name in TABLE_SETTINGS if getattr(self, name) != _FIELDS[name].default]


_DEFAULTS: dict[str, Any] = {"hidden": (256, 128), "dropout": 0.2, "batch_size": 64, "epochs": 40}
_INTEGERS = (
    ("batch_size", 1, None),
    ("accumulate", 1, None),
    ("epochs", 1, MOST_EPOCHS),
    ("patience", 1, None),
    ("ensemble", 1, MOST_MEMBERS),
    ("seed", 0, (1 << 32) - 1),
)
_NUMBERS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("lr", lambda x: x > 0, "above 0"),
    ("weight_decay", lambda x: x >= 0, "0 or more"),
    ("clip_norm", lambda x: x > 0, "above 0"),
    *(
        (name, lambda x: 0 <= x < 1, "at least 0 and below 1")
        for name in ("average", "dropout", "momentum", "test", "validation")
    ),
)

_FIELDS = {f.name: f for f in fields(Settings) if f.init}
SETTING_NAMES = tuple(_FIELDS)
PLACES = ("dataset", "device", "test_file", "validation_file")
"""The settings that may change when a run goes on: where, and where its data lies."""
_TABLES = ("data", "environment", "result")
_LONGEST_CONFIG = 1 << 20  # bytes


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the content of a run's config.toml: the "settings", and what else the run recorded.

    path: the file, or the folder of a run.

    Raises SettingsError if the file cannot be read or is not the config of a run.

    >>> import tempfile
    >>> import numpy as np
    >>> from gradflow.training import Run, Settings, read_config
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/data.npz", X=np.eye(10), y=np.arange(10) % 2)
    ...     with Run.new(Settings(f"{folder}/data.npz", test=0, hidden=(32, 16)), out=f"{folder}/run"):
    ...         read_config(f"{folder}/run")["settings"]["hidden"]
    [32, 16]
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.toml"
    try:
        text = read_file(path, _LONGEST_CONFIG).decode("utf-8-sig")  # some editors write a byte order mark
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not text in UTF-8: save it in this encoding") from None
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return parse_config(text, str(path))


def parse_config(text: str, path: str) -> dict[str, Any]:
    """Return the content of a config.toml like `read_config`, from its text; `path` is for error messages."""
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also for numbers or nesting beyond the parser's limits
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    unknown = set(content) - {"settings", *_TABLES}
    if unknown:
        raise SettingsError(f"{path} has an unknown key {sorted(unknown)[0]!r}; settings belong under [settings]")
    settings = content.get("settings")
    if not isinstance(settings, dict):
        raise SettingsError(f"{path} has no table [settings]")
    for name in _TABLES:
        if not isinstance(content.get(name, {}), dict):
            raise SettingsError(f"{path} has {'an' if name[0] in 'ae' else 'a'} {name} that is not a table")
    for name in settings:
        if name not in SETTING_NAMES:
            raise SettingsError(f"{path} has an unknown setting {name!r}{_hint(name, SETTING_NAMES)}")
    if "environment" in content and "data" not in content:  # of a version that had no validation
        settings.setdefault("validation", 0.0)
    return content


def _hint(name: str, known: Iterable[str]) -> str:
    known = list(known)
    return did_you_mean(name, known) or f"; there are {', '.join(known)}"


def check_places(settings: Settings, given: Container[str], again: str) -> None:
    """Raise SettingsError if the data of a run that is repeated or resumed is not where it was.

    given: the names of the settings that are not of that run. again: the command, which takes another place.
    """
    options = {"dataset": "DATA", "test_file": "--test-file PATH", "validation_file": "--validation-file PATH"}
    for name, option in options.items():
        place = getattr(settings, name)
        if name not in given and place not in (None, *DATASETS) and not os.path.exists(place):
            raise SettingsError(f"the data of this run was at {place}; give its path: {again} {option}")


def check_unicode(path: str, what: str) -> None:
    """Raise SettingsError for a path that is not text, as Linux allows: files in UTF-8 cannot name it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise SettingsError(f"{what}: the path {path} is not UTF-8, so config.toml cannot name it: rename it") from None


_MEANT = {"classification": "classes", "regression": "values"}
"""The tasks by other names, for messages."""


def _one_of(name: str, value: Any, known: Iterable[str]) -> None:
    names = list(known)
    if value not in names:
        meant = _MEANT.get(str(value))
        there_are = f"the only one is {names[0]}" if len(names) == 1 else f"there are {', '.join(names)}"
        raise SettingsError(f"unknown {name} {value!r}; {f'did you mean {meant}?' if meant in names else there_are}")


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
