"""`gradflow bench`: a training step timed on several devices and batch sizes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gradflow.backend import ACTIVATIONS
from gradflow.benchmarking import DTYPES
from gradflow.cli.options import add_json, add_module, check_out, import_module, write_out
from gradflow.cli.output import FAILED, INTERRUPTED, UsageError, nothing_on_stdout, print_error, print_note
from gradflow.environment import imported_extra
from gradflow.text import did_you_mean, printable, three_digits
from gradflow.training.runs.settings import MOST_LAYERS, MOST_UNITS, OPTIMIZERS

if TYPE_CHECKING:
    from gradflow.benchmarking.measuring import Cell, Measurement
    from gradflow.benchmarking.training import Task

_MOST_SAMPLES = 1 << 24
_ALIASES = {
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "float": "float32",
    "fp32": "float32",
    "double": "float64",
    "fp64": "float64",
    "swish": "silu",
}
_TIME = "median (quartiles)   "
_HELP = """\
Time the training step of a multilayer perceptron on several devices and batch
sizes: a step as written (plain), and the same captured by gradflow.capture.
Print the times, samples per second and memory, and the batch size from which
a device is faster than the first one.

LAYERS are the widths from the inputs to the outputs. The loss is squared error
for one output, else cross-entropy; the data is random. --dtype is that of all
arrays, or tf32 for float32 with products in TF32 on NVIDIA GPUs, or autocast-X
for float32 with products in X. On a CPU, half floats are slower than float32,
and tf32 is float32.

A time is the median of several rounds, with the quartiles. In each round, the
devices take turns. A device counts as faster or slower where there are three
rounds and the quartiles do not overlap; else it is unclear: measure longer.
Samples per second are those of the faster of both ways.
The memory is what model, optimizer and steps take on the device at their peak,
without the data, and with the recording of a captured step. On the CPU, it is
what Python and NumPy allocate.

Defaults are in parentheses.
"""
_EXAMPLES = """\
examples:
  gradflow bench
  gradflow bench 784-512-10 --batch 64,256,1024 --devices cpu,cuda
  gradflow bench 64-64-10 --dtype bfloat16 --out bench.png --out bench.json
  gradflow bench 64-64-10 --devices cpu,fake     without a GPU

A size with steps too slow for --seconds is left out. Ctrl-C ends the
measurement, and prints and writes what is known so far. A file of --out
replaces an empty one or one that this command wrote, and no other.

exit status: 0 done; 1 a measurement failed; 2 invalid input; 130 Ctrl-C
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser of the command line."""
    parser = commands.add_parser(
        "bench",
        help="how fast each device trains, and from which batch size a GPU pays",
        usage="gradflow bench [LAYERS] [options]",
        description=_HELP,
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("layers", nargs="?", type=_layers, default="784-512-10", metavar="LAYERS", help="widths (784-512-10)")
    add("--batch", type=_batches, default="16,64,256,1024,4096", metavar="N,N", help="batch sizes (%(default)s)")
    add("--devices", type=_names, metavar="A,B", help="cpu, cuda, cuda:N, fake or a plug-in's (cpu and all others)")
    for option, names, default in (
        ("--dtype", DTYPES, "float32"),
        ("--optimizer", OPTIMIZERS, "adam"),
        ("--activation", ACTIVATIONS, "relu"),
    ):
        *most, last = names
        among = f"{', '.join(most)} or {last} ({default})"
        add(option, type=partial(_one_of, names), default=default, metavar="NAME", help=among)
    add("--seconds", type=_seconds, default=30.0, metavar="S", help="to measure, about (30)")
    add("--out", action="append", default=[], metavar="FILE", help="write a .json file, or draw a .png or .svg picture")
    add_module(parser)
    add_json(parser)


def _one_of(names: Iterable[str], text: str) -> str:
    if text not in names:
        meant = _ALIASES.get(text.lower(), "")
        hint = f"; did you mean {meant}?" if meant in names else did_you_mean(text.lower(), names)
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(names)}{hint}")
    return text


def _integers(text: str, between: str, most: int) -> list[int]:
    parts = text.split(between)
    if not all(part.isascii() and part.isdecimal() and 1 <= int(part) <= most for part in parts):
        raise argparse.ArgumentTypeError(f"integers from 1 to {most}, separated by {between!r}; got {text!r}")
    return [int(part) for part in parts]


def _layers(text: str) -> tuple[int, ...]:
    widths = _integers(text, "-", MOST_UNITS)
    if not 2 <= len(widths) <= MOST_LAYERS:
        raise argparse.ArgumentTypeError(f"a perceptron has at least two widths, such as 784-512-10; got {text!r}")
    return tuple(widths)


def _batches(text: str) -> list[int]:
    return _integers(text, ",", _MOST_SAMPLES)


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"a number of seconds above 0, at most 3600; got {text!r}")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table or the document, write the files, and return the exit status."""
    for path in dict.fromkeys(arguments.out):
        _check_out(path)
    with nothing_on_stdout():
        import_module(arguments.module)
        from gradflow.benchmarking.measuring import Measurement
        from gradflow.benchmarking.training import Task

        task = Task(arguments.layers, arguments.dtype, arguments.optimizer, arguments.activation)
        devices, unusable = _devices(arguments.devices, task)
        progress = _Progress()
        measurement = Measurement(task, devices, arguments.batch, arguments.seconds, progress.show)
    for why in unusable.values():
        print_note(f"left out: {why}")
    interrupted = _measure(measurement, progress, quiet=arguments.json)
    _report(measurement, unusable, interrupted, arguments)
    if interrupted:
        print_error("interrupted")
        return INTERRUPTED
    return FAILED if any(cell.failed for cell in measurement.cells) else 0


def _check_out(path: str) -> None:
    from gradflow.benchmarking import picture

    suffix = os.path.splitext(path)[1].lower()
    if suffix not in (".json", ".png", ".svg"):
        raise UsageError(f"--out {path}: the name must end in .json, .png or .svg")
    if suffix != ".json":
        imported_extra("matplotlib", "matplotlib", "train", "a picture")
    check_out(path, picture.is_ours if suffix != ".json" else lambda start: b'"gradflow bench"' in start)


def _devices(named: list[str] | None, task: Task) -> tuple[list[str], dict[str, str]]:
    """Return the devices to measure, and for each that cannot be used, why. Raises UsageError if none can."""
    import gradflow as gf
    import gradflow.testing  # registers the device fake
    from gradflow.backend.discovery import backend_prefixes

    found, unusable = [], {}
    known = ["cpu", *sorted({*backend_prefixes()} - {"cpu", "fake"})]
    for name in known if named is None else named:
        try:
            backend = gf.get_backend(gf.choose_device()[0] if name == "auto" else name)
        except ValueError as error:
            if named is not None:
                raise UsageError(f"--devices: {error}") from None
            unusable[name] = printable(str(error))
            continue
        except gf.DeviceUnavailableError as error:
            unusable[name] = printable(str(error))
            continue
        try:
            backend.native_dtype(task.product)
        except TypeError as error:
            unusable[name] = printable(str(error))
            continue
        if str(backend.device) not in found:
            found.append(str(backend.device))
    if not found:
        raise UsageError("no device can be measured: " + "; ".join(unusable.values()))
    return found, unusable


class _Progress:
    """A line at a terminal's stderr that says what is measured now."""

    def show(self, text: str) -> None:
        """Write a line in place of the one before."""
        if sys.stderr.isatty():
            print(f"\r\x1b[Kgradflow: {text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Remove the line."""
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _measure(measurement: Measurement, progress: _Progress, quiet: bool) -> bool:
    """Measure, and print the table line by line unless `quiet`. Return whether Ctrl-C ended it."""
    width = max(len("device"), *map(len, measurement.devices))
    if not quiet:
        for line in _head(measurement, width):
            print(line, flush=True)
    sizes = measurement.run()
    printed = 0
    try:
        with _raising_ctrl_c():
            for cells in sizes:
                printed += len(cells)
                progress.clear()
                if not quiet:
                    _print_cells(cells, width)
    except KeyboardInterrupt:
        progress.clear()
        if not quiet:
            _print_cells([cell for cell in measurement.cells[printed:] if cell.times], width)
        return True
    return False


@contextlib.contextmanager
def _raising_ctrl_c() -> Iterator[None]:
    """Inside a `with`, Ctrl-C raises KeyboardInterrupt also in the command, which it would end at once."""
    known = signal.getsignal(signal.SIGINT)
    if known is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, known)


def _head(measurement: Measurement, width: int) -> Iterator[str]:
    import gradflow as gf

    task = measurement.task
    yield f"{task}, {task.parameters:,} parameters"
    for name in measurement.devices:
        threads = f", {gf.get_num_threads()} thread{'s' * (gf.get_num_threads() > 1)}" if name == "cpu" else ""
        yield f"{name:{width}}  {printable(gf.get_backend(name).describe())}{threads}"
    yield ""
    yield f"{'':6}  {'':{width}}  {'plain, ms a step':<21}  captured, ms a step"
    yield f"{'batch':>6}  {'device':{width}}  {_TIME}  {_TIME}  {'samples/s':>9}  {'memory':>7}"


def _print_cells(cells: Sequence[Cell], width: int) -> None:
    from gradflow.benchmarking.measuring import MODES
    from gradflow.benchmarking.results import best
    from gradflow.nn.summaries import size

    for cell in cells:
        times = "  ".join(f"{_time(cell.times.get(mode)):21}" for mode in MODES)
        seconds = best(cell)
        rate = "-" if seconds is None else three_digits(cell.batch / seconds)
        memory = "-" if cell.memory is None else size(cell.memory)
        print(f"{cell.batch:>6}  {cell.device:{width}}  {times}  {rate:>9}  {memory:>7}", flush=True)


def _time(times: Sequence[float] | None) -> str:
    from gradflow.benchmarking.measuring import LEAST_ROUNDS
    from gradflow.benchmarking.results import summary

    if not times:
        return "-"
    median, low, high = (three_digits(1e3 * seconds) for seconds in summary(times).values())
    if len(times) < LEAST_ROUNDS:
        return f"{median} ({len(times)} round{'s' * (len(times) > 1)})"
    return f"{median} ({low}-{high})"


def _report(
    measurement: Measurement, unusable: dict[str, str], interrupted: bool, arguments: argparse.Namespace
) -> None:
    """Print what the figures say, or the document, and write the files."""
    from gradflow.benchmarking.picture import picture
    from gradflow.benchmarking.results import crossovers, document, remarks

    content = json.dumps(document(measurement, unusable, interrupted), indent=2, allow_nan=False) + "\n"
    if arguments.json:
        print(content, end="", flush=True)
    elif found := crossovers(measurement.cells):
        print("", *found, sep="\n", flush=True)
    for line in remarks(measurement):
        print_note(line)
    for path in dict.fromkeys(arguments.out):
        kind = os.path.splitext(path)[1].lower().removeprefix(".")
        if kind != "json" and not any(cell.times for cell in measurement.cells):
            print_note(f"{path}: no picture is drawn, since nothing was measured")
            continue
        write_out(path, content.encode() if kind == "json" else picture(measurement, kind))
        print(
            f"gradflow: the {'figures are' if kind == 'json' else 'picture is'} in {printable(path)}", file=sys.stderr
        )
