"""`gradflow predict`: the predictions of a run for inputs in a file."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gradflow.cli.options import add_device, add_folder, add_no_header, check_out, write_out
from gradflow.cli.output import UsageError, nothing_on_stdout, print_note, print_warning
from gradflow.text import printable

if TYPE_CHECKING:
    from gradflow.data.reading import Samples
    from gradflow.training import Predictor

_HELP = """\
Predict with the model of a run, and print CSV with one row for each input:
the prediction, and for classes the probability of each.

FOLDER is the folder of a run, or its model.safetensors. INPUTS are as in the
data that the run was trained on, not scaled: a file of NumPy's (.npy, or .npz
with an array X or inputs; labels in it are ignored), an IDX file, a folder of
IDX files or of CIFAR-10's binary files, or the name of a dataset. Where there
is a test part, that part is predicted.

For a run that was trained on a table, INPUTS is a file of any kind that
`gradflow train` takes as a table, of any length. Its columns are found by
their names, in any order; there may be more, and the target may be missing.
What training never saw is counted, and told at the end.
"""
_EXAMPLES = """\
examples:
  gradflow predict runs/digits-1 new.npz
  gradflow predict runs/digits-1 new.npy --out predictions.csv
  gradflow predict runs/mnist-1 t10k-images-idx3-ubyte --device cpu
  gradflow predict runs/adult-1 new.csv --out predictions.csv

The file of --out appears when it is complete. It replaces a file that an
earlier `gradflow predict` wrote, and no other. A class whose name a
spreadsheet would run as a formula (it starts with =, +, - or @) is written
with an apostrophe before it.

exit status: 0 done; 1 the file cannot be written; 2 invalid input;
130 Ctrl-C
"""
_OTHER_FILES = (".parquet", ".gz", ".xlsx", ".npy", ".npz", ".json")
_ROWS = 4096  # that become text at once


def add_parser(commands: Any) -> None:
    """Add the command to the parser of the command line."""
    parser = commands.add_parser(
        "predict",
        help="predict with a trained model",
        usage="gradflow predict FOLDER INPUTS [--out FILE.csv] [--no-header]\n"
        "                        [--device DEVICE]",
        description=_HELP,
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run)
    add_folder(parser)
    parser.add_argument("inputs", metavar="INPUTS", help="a file or folder with inputs")
    parser.add_argument("--out", metavar="FILE", help="write the CSV to this file (default: print it)")
    add_no_header(parser)
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    """Predict, print or write the predictions, and return the exit status."""
    if arguments.out is not None:
        if arguments.out.lower().endswith(_OTHER_FILES):
            raise UsageError(f"--out {arguments.out}: predictions are written as CSV, such as predictions.csv")
        check_out(arguments.out, lambda start: start.lstrip(b'"').startswith(b"prediction"))
    check_order(arguments.command, arguments.folder, arguments.inputs)
    predictor = load_model(arguments.folder, arguments.device)
    source, parts = _parts(predictor, arguments.inputs, arguments.header)
    told = Told(predictor)
    lines = table(predictor, told.of(parts))
    if arguments.out is None:
        for text in lines:
            sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_out(arguments.out, (text.encode("utf-8", "surrogatepass") for text in lines))
    told.print(arguments.inputs, arguments.header)
    where = "" if arguments.out is None else f"; written to {arguments.out}"
    n = told.rows
    part = "" if source == arguments.inputs else f" for {source}"
    what = f"{n} prediction{'s' * (n != 1)}{part} of {arguments.folder} ({predictor.describe()})"
    print(f"gradflow: {printable(what + where)}", file=sys.stderr, flush=True)
    return 0


class Told:
    """Counts the samples that pass, and what is in the rows of tables that was not in those of the training."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._found: Counter[str] = Counter()
        self._notes: tuple[str, ...] = ()
        self.rows = 0

    def of(self, parts: Iterable[Any]) -> Iterator[Any]:
        """Yield the parts of the inputs."""
        for part in parts:
            yield part
            self.rows += len(part)
            self._found += self._predictor.told(part)
            self._notes = getattr(part, "notes", ())

    def print(self, data: str, header: bool | None) -> None:
        """Print the notes on the rows of a table, also which of the columns in its file are not used."""
        from gradflow.data.inputs import listed
        from gradflow.tables import Columns
        from gradflow.tables.columns import sentences
        from gradflow.tables.reading import column_names

        columns = self._predictor.inputs
        if not isinstance(columns, Columns):
            return
        known = {columns.target, *(column["column"] for column in columns.describe())}
        unused = [name for name in column_names(data, header is None) if name not in known]
        notes = [f"not used: {listed(unused)}"] if unused else []
        for note in (*notes, *self._notes, *sentences(self._found, self.rows)):
            print_note(f"{data}: {note}")


def _parts(predictor: Predictor, data: str, header: bool | None) -> tuple[str, Iterable[Any]]:
    """Return what the inputs are called, and their parts, of a table one after another."""
    from gradflow.tables import Columns, read_chunks

    if not isinstance(predictor.inputs, Columns):
        samples = load(predictor, data, header)
        return samples.source, [samples.inputs]
    return data, read_chunks(data, predictor.inputs.kinds, header=header is None)


def check_order(command: str, folder: str, data: str) -> None:
    """Raise UsageError if the data of a command comes before its run."""
    from gradflow.data import DATASETS
    from gradflow.training.runs.folder import MODEL

    def is_run(path: str) -> bool:
        return path.endswith(".safetensors") or os.path.exists(os.path.join(path, MODEL))

    if is_run(data) and not is_run(folder) and (folder in DATASETS or os.path.exists(folder)):
        right = shlex.join(["gradflow", command, data, folder])
        raise UsageError(f"{folder} is data, not a run; the run comes first: {right}")


def load_model(folder: str, device: str) -> Predictor:
    """Return the model of a run on a device. Raises UsageError if one of them cannot be used."""
    import gradflow as gf
    from gradflow.training import load_run
    from gradflow.training.runs.folder import going_on

    with nothing_on_stdout(), usage_errors():
        if device == "auto":
            device = str(gf.choose_device()[0])
        gf.get_backend(device)
        predictor = load_run(folder, device)
    with contextlib.suppress(ValueError, OSError):  # a model file, or a folder without the rest of its run
        why = going_on(folder)
        if why:
            print_note(f"{folder} has not ended: {why}; this is its best epoch so far")
    return predictor


def load(predictor: Predictor, data: str, header: bool | None) -> Samples:
    """Return samples that a model of arrays takes. Raises UsageError for others."""
    from gradflow.data.inputs import check_names, checked_inputs, listed

    with nothing_on_stdout(), usage_errors():
        if header is not None:
            raise UsageError("--no-header is for tables; this run was trained on arrays")
        samples = _samples(data)
        inputs = checked_inputs(samples.inputs, data, predictor.features, predictor.sizes[0])
        check_names(samples.features, predictor.features, data)
    if samples.unused:
        print_note(f"{data}: not used: {listed(samples.unused)}")
    return replace(samples, inputs=inputs)


def _samples(data: str) -> Samples:
    """Return the samples in a file or folder, or a dataset by its name, with the names of the classes as targets."""
    import numpy as np

    from gradflow.data import DATASETS, load, load_inputs
    from gradflow.data.reading import Samples

    if data not in DATASETS:
        return load_inputs(data)
    dataset = load(data)
    targets = np.array(dataset.classes)[dataset.targets] if dataset.classes else dataset.targets
    return Samples(data, dataset.inputs, targets, dataset.features)


@contextlib.contextmanager
def usage_errors(what: str = "") -> Iterator[None]:
    """Inside a `with`, turn errors about files, data and devices into UsageError, which begins with `what`."""
    import gradflow as gf

    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(str(error) if error.filename is None else f"{error.filename} does not exist") from None
    except OSError as error:
        raise UsageError(f"cannot read {error.filename}: {error.strerror}") from None
    except (ValueError, gf.DeviceUnavailableError) as error:
        raise UsageError(f"{what}: {error}" if what else str(error)) from None


@contextlib.contextmanager
def warnings_on_a_line() -> Iterator[None]:
    """Inside a `with`, print each warning for users as one line of stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: print_warning(str(message))
        yield


def table(predictor: Predictor, parts: Iterable[Any]) -> Iterator[str]:
    """Yield the lines of a CSV table of the predictions, many at once. A header comes with those of the first part."""
    import numpy as np

    names = np.array([_cell(without_formula(name)) for name in predictor.classes], object)
    if predictor.classes:
        header = ["prediction", *(f"p({without_formula(name)})" for name in predictor.classes)]
    else:
        outputs = predictor.columns or range(predictor.sizes[-1])
        header = [f"prediction({name})" for name in outputs] if len(outputs) > 1 else ["prediction"]
    text = ",".join(map(_cell, header)) + "\n"
    with usage_errors(), warnings_on_a_line():
        for part in parts:
            if predictor.classes:
                numbers = predictor.predict_proba(part)
                first = names[numbers.argmax(axis=1)]
            else:
                numbers, first = predictor.predict(part).reshape(len(part), -1), None
            for lines in _lines(numbers, first):
                yield text + lines
                text = ""


def _lines(numbers: Any, first: Any = None) -> Iterator[str]:
    for start in range(0, len(numbers), _ROWS):
        part = slice(start, start + _ROWS)
        rows = numbers[part].astype(str).tolist()  # the fewest digits that give the same float32
        if first is not None:
            rows = [[name, *row] for name, row in zip(first[part], rows, strict=True)]
        yield "".join(",".join(row) + "\n" for row in rows)


def _cell(text: str) -> str:
    """A cell of a CSV file (RFC 4180), in quotes where it needs them."""
    special = any(c in text for c in '",\r\n') or text != text.strip()
    return '"' + text.replace('"', '""') + '"' if special else text


def without_formula(text: str) -> str:
    """A text with an apostrophe before it if a spreadsheet would take it for a formula, which may run programs.

    >>> [without_formula(t) for t in ("=1+1", "-1.5", "+", "a=b")]
    ["'=1+1", '-1.5', '+', 'a=b']
    """
    if text[:1] not in ("=", "+", "-", "@", "\t", "\r") or len(text) == 1:
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
