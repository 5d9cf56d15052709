"""`gradflow predict`: the predictions of a run for inputs in a file."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gradflow.cli.options import add_device, add_folder, check_out, write_out
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
"""
_EXAMPLES = """\
examples:
  gradflow predict runs/digits-1 new.npz
  gradflow predict runs/digits-1 new.npy --out predictions.csv
  gradflow predict runs/mnist-1 t10k-images-idx3-ubyte --device cpu

The file of --out appears when it is complete. It replaces a file that an
earlier `gradflow predict` wrote, and no other. A class whose name a
spreadsheet would run as a formula (it starts with =, +, - or @) is written
with an apostrophe before it.

exit status: 0 done; 1 the file cannot be written; 2 invalid input;
130 Ctrl-C
"""
_ROWS = 4096  # that become text at once


def add_parser(commands: Any) -> None:
    """Add the command to the parser of the command line."""
    parser = commands.add_parser(
        "predict",
        help="predict with a trained model",
        usage="gradflow predict FOLDER INPUTS [--out FILE.csv] [--device DEVICE]",
        description=_HELP,
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run)
    add_folder(parser)
    parser.add_argument("inputs", metavar="INPUTS", help="a file or folder with inputs")
    parser.add_argument("--out", metavar="FILE", help="write the CSV to this file (default: print it)")
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    """Predict, print or write the predictions, and return the exit status."""
    if arguments.out is not None:
        check_out(arguments.out, lambda start: start.lstrip(b'"').startswith(b"prediction"))
    predictor, samples = load(arguments.folder, arguments.inputs, arguments.device)
    with usage_errors(), warnings_on_a_line():
        rows = table(predictor, samples.inputs)
    if arguments.out is None:
        for text in rows:
            sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_out(arguments.out, "".join(rows).encode("utf-8", "surrogatepass"))
    where = "" if arguments.out is None else f"; written to {arguments.out}"
    n = len(samples.inputs)
    part = "" if samples.source == arguments.inputs else f" for {samples.source}"
    what = f"{n} prediction{'s' * (n != 1)}{part} of {arguments.folder} ({predictor.describe()})"
    print(f"gradflow: {printable(what + where)}", file=sys.stderr, flush=True)
    return 0


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


def load(folder: str, data: str, device: str) -> tuple[Predictor, Samples]:
    """Return the model of a run, and samples that it takes. Raises UsageError if one of them cannot be used."""
    from gradflow.data.inputs import check_names, checked_inputs, listed

    predictor = load_model(folder, device)
    with nothing_on_stdout(), usage_errors():
        samples = _samples(data)
        inputs = checked_inputs(samples.inputs, data, predictor.features, predictor.sizes[0])
        check_names(samples.features, predictor.features, data)
    if samples.unused:
        print_note(f"{data}: not used: {listed(samples.unused)}")
    return predictor, replace(samples, inputs=inputs)


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


def table(predictor: Predictor, inputs: Any) -> Iterator[str]:
    """Yield the lines of a CSV table of the predictions, a header first, many at once. Predicts when called."""
    import numpy as np

    if predictor.classes:
        numbers = predictor.predict_proba(inputs)
        names = np.array([_cell(without_formula(name)) for name in predictor.classes], object)
        header = ["prediction", *(f"p({without_formula(name)})" for name in predictor.classes)]
        return _lines(header, numbers, names[numbers.argmax(axis=1)])
    numbers = predictor.predict(inputs).reshape(len(inputs), -1)
    outputs = range(numbers.shape[1])
    header = [f"prediction({name})" for name in predictor.columns or outputs] if len(outputs) > 1 else ["prediction"]
    return _lines(header, numbers)


def _lines(header: Sequence[str], numbers: Any, first: Any = None) -> Iterator[str]:
    yield ",".join(map(_cell, header)) + "\n"
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
