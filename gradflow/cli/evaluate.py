"""`gradflow evaluate`: the figures of a run on samples whose labels or values are known."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from gradflow.cli.options import add_device, add_folder, add_json, add_no_header
from gradflow.cli.output import UsageError, print_note
from gradflow.cli.predict import Told, check_order, load, load_model, usage_errors, warnings_on_a_line
from gradflow.text import printable

if TYPE_CHECKING:
    from gradflow.training import Predictor

_HELP = """\
Evaluate the model of a run on samples whose labels or values are known, and
print the figures, with 95 % bootstrap intervals where they have one.

FOLDER is the folder of a run, or its model.safetensors. DATA is an npz file
with arrays X and y (or inputs and labels), a folder of IDX files or of
CIFAR-10's binary files, or the name of a dataset; for a run that was trained on
a table, it is a table with the same columns. Where there is a test part, that
part is evaluated. Labels are as in the data that the run was trained on,
or the names of its classes.
"""
_EXAMPLES = """\
examples:
  gradflow evaluate runs/digits-1 held_out.npz
  gradflow evaluate runs/digits-1 held_out.npz --json
  gradflow evaluate runs/adult-1 held_out.csv

exit status: 0 done; 2 invalid input; 130 Ctrl-C
"""
_SAME = {
    "accuracy": "accuracy", "balanced accuracy": "balanced_accuracy", "F1": "f1", "AUROC": "auroc",
    "log loss": "log_loss", "calibration error": "calibration_error", "R²": "r2", "RMSE": "rmse", "MAE": "mae",
}  # fmt: skip
"""The names of figures with intervals in a report, and those that they have as metrics."""
_PERCENT = ("accuracy", "balanced_accuracy")
_LABELS = {"r2": "R²", "rmse": "RMSE", "mae": "MAE", "f1": "F1", "auroc": "AUROC"}
_WIDEST = 20  # characters of the name of a class in a label
_FEW = 20
"""With up to so many classes, the table has a row for each."""


def add_parser(commands: Any) -> None:
    """Add the command to the parser of the command line."""
    parser = commands.add_parser(
        "evaluate",
        help="figures of a trained model on other data",
        usage="gradflow evaluate FOLDER DATA [--json] [--no-header] [--device DEVICE]",
        description=_HELP,
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run)
    add_folder(parser)
    parser.add_argument("data", metavar="DATA", help="a file or folder with inputs and targets, or a dataset's name")
    add_json(parser)
    add_no_header(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print the figures, and return the exit status."""
    check_order(arguments.command, arguments.folder, arguments.data)
    predictor = load_model(arguments.folder, arguments.device)
    told = Told(predictor)
    source, outputs, targets = _compared(predictor, arguments.data, arguments.header, told)
    with usage_errors(arguments.data):
        figures = list(_figures(predictor, outputs, targets))
    classes = _classes(predictor, outputs, targets) if predictor.classes else []
    if arguments.json:
        document = {
            "folder": arguments.folder,
            "data": arguments.data,
            "samples": len(targets),
            "figures": {name: {"value": value, "low": low, "high": high} for name, value, low, high in figures},
            "classes": classes,
        }
        print(json.dumps(finite(document), indent=2, allow_nan=False))
    else:
        samples_of = f"{len(targets)} sample{'s' * (len(targets) != 1)} of {source}"
        print(printable(f"{arguments.folder} ({predictor.describe()}) on {samples_of}"))
        for line in _table(predictor, figures, classes):
            print(line)
    told.print(arguments.data, arguments.header)
    if _trained_on(arguments.folder, arguments.data, len(targets)):
        note = f"{arguments.folder} was trained on a part of {arguments.data}, so these are not figures of unseen data"
        print_note(note)
    return 0


def _compared(predictor: Predictor, data: str, header: bool | None, told: Told) -> tuple[str, Any, Any]:
    """Return what the samples are called, the outputs for them, and their targets. A table goes through in parts."""
    import numpy as np

    from gradflow.tables import Columns, read_chunks
    from gradflow.tables.task import rows_with_target

    columns = predictor.inputs
    with warnings_on_a_line():
        if isinstance(columns, Columns):
            with usage_errors():
                parts = read_chunks(data, columns.kinds | columns.target_kind, header=header is None)
                known = [predictor.with_targets(part) for part in told.of(rows_with_target(parts, columns.target))]
            outputs, targets = (np.concatenate(each) for each in zip(*known, strict=True))
            return data, outputs, targets
        samples = load(predictor, data, header)
        if samples.targets is None:
            raise UsageError(f"{data} has no labels or values to compare with: it needs an array y or labels")
        with usage_errors(data):
            return samples.source, *predictor.with_targets(samples.inputs, samples.targets)


def finite(x: Any) -> Any:
    """Return a document with None for numbers that are not finite, which JSON lacks."""
    if isinstance(x, dict):
        return {key: finite(value) for key, value in x.items()}
    if isinstance(x, list):
        return [finite(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _figures(predictor: Predictor, outputs: Any, targets: Any) -> Iterator[tuple[str, float, float, float]]:
    """Yield the name and the value of each figure, and the ends of its interval: NaN where it has none."""
    from gradflow.training.report.numbers import classification_figures, regression_figures

    if predictor.classes:
        drawn = classification_figures(targets, outputs)
    else:
        drawn = regression_figures(targets, outputs, [""]) if targets.shape[1] == 1 else []
    intervals = {_SAME.get(figure.name): (figure.low, figure.high) for figure in drawn}
    for name, value in predictor.figures(outputs, targets).items():
        yield name, value, *intervals.get(name, (math.nan, math.nan))


def _classes(predictor: Predictor, outputs: Any, targets: Any) -> list[dict[str, Any]]:
    """Return the samples, precision, recall and F1 of each class; NaN where a share is of nothing."""
    from gradflow.training.report.numbers import class_scores, confusion

    columns = class_scores(confusion(targets, outputs.argmax(axis=1), len(predictor.classes)))
    rows = zip(predictor.classes, *(column.tolist() for column in columns), strict=True)
    return [dict(zip(("class", "samples", "precision", "recall", "f1"), row, strict=True)) for row in rows]


def _table(predictor: Predictor, figures: Iterable[tuple[str, float, float, float]], classes: Any) -> Iterator[str]:
    from gradflow.training.report.numbers import error_bound

    for name, value, low, high in figures:
        label = _LABELS.get(name, name.replace("_", " "))
        if name == "f1":
            two = len(predictor.classes) == 2
            label += f" of {printable(predictor.classes[1])[:_WIDEST]}" if two else ", mean of the classes"
        interval = "" if math.isnan(low) else f"   ({_text(name, low)} to {_text(name, high)})"
        if name == "accuracy" and value == 1.0:
            bound = 1 - error_bound(sum(row["samples"] for row in classes))
            interval = f"   (with 95 % confidence, above {_text(name, bound)})"
        yield f"{label:26}{_text(name, value):>10}{interval}"
    if 0 < len(classes) <= _FEW:
        names = [printable(row["class"]) for row in classes]
        width = max(map(len, ["class", *names]))
        yield ""
        yield f"{'class':{width}}   samples   precision    recall        F1"
        for name, row in zip(names, classes, strict=True):
            shares = "".join(
                f"{_text('', row[share]):>{n}}" for share, n in (("precision", 12), ("recall", 10), ("f1", 10))
            )
            yield f"{name:{width}}{row['samples']:10}{shares}"


def _text(name: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{100 * value:.2f} %" if name in _PERCENT else f"{value:.4f}" if abs(value) < 1e4 else f"{value:.6g}"


def _trained_on(folder: str, data: str, samples: int) -> bool:
    """Return whether this is the data that the run was trained on, which is read again if it has as many samples."""
    import os

    from gradflow.training import Settings, read_config
    from gradflow.training.runs.sources import load_data

    with contextlib.suppress(ValueError, OSError):  # also if it is no folder of a run, or the data has no labels
        content = read_config(os.path.join(folder, "config.toml"))
        recorded = content.get("data", {})
        if sum(count for count in recorded.values() if isinstance(count, int)) not in (0, samples):
            return False
        own = dict.fromkeys(("test_file", "validation_file"))
        _, dataset, _ = load_data(Settings(**content["settings"] | own | {"dataset": data}))
        return dataset.test is None and dataset.fingerprint == recorded.get("hash")
    return False
