"""`gradflow train`: parse the settings, show the progress, print the result."""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from gradflow.backend import ACTIVATIONS
from gradflow.cli.options import add_no_header
from gradflow.cli.output import FAILED, UsageError, print_error, print_note, print_warning, warnings_logged
from gradflow.cli.ranks import together
from gradflow.cli.train_progress import Progress
from gradflow.data.built_in import DATASETS
from gradflow.tables.choices import ENCODINGS, TARGETS, TASKS
from gradflow.text import printable
from gradflow.training.precision import AUTOCASTS
from gradflow.training.runs.folder import refuse_used, unfinished_config
from gradflow.training.runs.settings import (
    OPTIMIZERS,
    PLACES,
    SCHEDULES,
    SETTING_NAMES,
    Settings,
    check_places,
    read_config,
)

if TYPE_CHECKING:
    from gradflow.distributed import Communicator
    from gradflow.training.runs.results import Result
    from gradflow.training.runs.run import Run

_HELP = """\
Train a multilayer perceptron on a dataset that comes with scikit-learn, or on
data of your own. Nothing is downloaded.

{datasets}
  PATH           a table: CSV, TSV, perhaps compressed by gzip, or Parquet;
                 or an .npz file of arrays, a folder of IDX files such as
                 MNIST's, or CIFAR-10's binary files

A fifth of the samples, the same share of each class, is held out for testing;
a fifth of the others chooses the best epoch, whose weights are kept. The run
writes a folder with model.safetensors (all that predicting needs), metrics.csv
(one row per epoch), curves.png, report.html and config.toml. Equal settings
give equal metrics, bit for bit, if everything that config.toml records is equal
too: data, versions, device, kernels, BLAS, threads.

From time to time, the state is saved as checkpoint.safetensors. Ctrl-C, SIGTERM
and SIGHUP stop the run and save; --resume goes on with the same bits, also
after a crash.

Defaults are in parentheses. For a table, those of --validation, --batch-size,
--epochs, --lr, --weight-decay, --dropout and --average depend on its rows;
config.toml has those of a run.
"""
_EXAMPLES = """\
examples:
  gradflow train digits
  gradflow train digits --device cuda --batch-size 256 --seed 3
  gradflow train arrays.npz --hidden 64 --optimizer sgd --lr 0.1 --patience 20
  gradflow train diabetes --hidden 32 --ensemble 5 --out runs/regression
  gradflow train adult.csv --target income --weight-column fnlwgt
  gradflow train sales.csv --target sold --ignore id --test-file sales-2026.csv

  go on with a run; repeat it; repeat it with another seed:
  gradflow train --resume runs/digits-1
  gradflow train --config runs/digits-1
  gradflow train --config runs/digits-1 --seed 1

exit status: 0 done; 1 training or writing failed; 2 invalid input; 130 Ctrl-C,
143 SIGTERM, 129 SIGHUP
"""
_OFF = {"autocast": None, "average": 0.0, "class_weight": None, "clip_norm": None, "patience": None}
"""The values of settings that "none" turns off: for an average, None would be the default, which a table has."""


def _widths(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"widths are integers separated by commas, such as 256,128; got {text!r}"
        ) from None


def _column_list(text: str) -> list[str]:
    """Return names that are separated by commas; a name with a comma, or blanks around it, is in quotes, as in CSV."""
    names = next(csv.reader([text], skipinitialspace=True), [])
    return [name for name in (names if '"' in text else map(str.strip, names)) if name]


def add_parser(commands: Any) -> None:
    """Add the command to the parser of the command line."""
    datasets = "\n".join(f"  {name:15}{what}" for name, what in DATASETS.items())
    parser = commands.add_parser(
        "train",
        help="train a multilayer perceptron",
        usage="gradflow train DATA [options]\n"
        "       gradflow train --config FOLDER [options]\n"
        "       gradflow train --resume FOLDER [DATA]",
        description=_HELP.format(datasets=datasets),
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run)
    default = Settings("digits")
    widths = ",".join(map(str, default.hidden))

    add = parser.add_argument
    add("dataset", nargs="?", metavar="DATA", help="one of the names above, or a path")
    add("--config", metavar="FOLDER", help="repeat a run, or its config.toml; other options override it")
    add("--resume", metavar="FOLDER", help="go on with a run that was stopped; DATA if its data was moved")
    add("--out", metavar="FOLDER", help="new or empty folder for the results (runs/<name>-1, -2, ...)")
    add(
        "--save-every",
        type=_seconds,
        metavar="SECONDS",
        help="between saves (1 before the first; then 1%% of the time goes to saving)",
    )
    add("--keep", action="store_true", help="keep checkpoint.safetensors at the end")
    add(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help="with mpiexec: without a sign of life from a process, after which all end (30)",
    )
    add("--quiet", action="store_true", help="print only the last line, notes and errors")

    data = parser.add_argument_group("data").add_argument
    data("--test", type=float, metavar="SHARE", help="held out for testing (the data's own test set, or 0.2)")
    data(
        "--validation",
        type=float,
        metavar="SHARE",
        help=f"of the rest, to choose the best epoch ({default.validation})",
    )
    data("--test-file", metavar="PATH", help="data to test on, instead of a share")
    data("--validation-file", metavar="PATH", help="data to choose the best epoch by, instead of a share")
    data(
        "--class-weight",
        metavar="RULE",
        help="balanced: all classes weigh the same in the loss; none: all samples do (none)",
    )

    tables = parser.add_argument_group("tables")
    table = tables.add_argument
    table("--target", metavar="NAME", help=f"column to predict ({', '.join(TARGETS)}, or else the last one)")
    table("--task", metavar="TASK", help=f"{_names(TASKS)} to predict (by the values of the target)")
    table("--ignore", type=_column_list, action="extend", metavar="NAME,NAME", help="columns to leave out (none)")
    table(
        "--categorical",
        type=_column_list,
        action="extend",
        metavar="NAME,NAME",
        help="columns of numbers that are names of categories (none)",
    )
    table(
        "--numeric",
        type=_column_list,
        action="extend",
        metavar="NAME,NAME",
        help="columns of numbers to use even if they seem to number the rows (none)",
    )
    table("--weight-column", metavar="NAME", help="column with the weights of the rows (equal weights)")
    add_no_header(tables)
    table("--encoding", metavar="NAME", help=f"of numbers: {_names(ENCODINGS)} ({default.encoding}: by the rows)")

    model = parser.add_argument_group("model").add_argument
    model("--hidden", type=_widths, metavar="N,N", help=f"widths of the hidden layers, or none ({widths})")
    model("--activation", metavar="NAME", help=f"{_names(ACTIVATIONS)} ({default.activation})")
    model("--dropout", type=float, metavar="P", help=f"share of hidden values dropped in training ({default.dropout})")
    model("--ensemble", type=int, metavar="K", help=f"models to train and average ({default.ensemble})")

    course = parser.add_argument_group("training").add_argument
    course("--optimizer", metavar="NAME", help=f"{_names(OPTIMIZERS)} ({default.optimizer})")
    course("--lr", type=float, metavar="RATE", help=f"initial learning rate ({_own_defaults('lr')})")
    course("--schedule", metavar="NAME", help=f"{_names(SCHEDULES)}: how the rate falls ({default.schedule})")
    course("--momentum", type=float, metavar="M", help=f"at least 0, below 1 ({_own_defaults('momentum')})")
    course("--weight-decay", type=float, metavar="W", help=f"at least 0 ({_own_defaults('weight_decay')})")
    course("--batch-size", type=int, metavar="N", help=f"samples per batch, at most all of them ({default.batch_size})")
    course("--accumulate", type=int, metavar="N", help=f"batches per step ({default.accumulate})")
    course("--clip-norm", type=_or_none(float), metavar="X", help="largest norm of the gradient, or none (none)")
    course(
        "--average",
        type=_or_none(float),
        metavar="D",
        help="decay of a moving average of the weights, as 0.999, or none (none)",
    )
    course("--autocast", metavar="DTYPE", help=f"mixed precision: products in {_names(AUTOCASTS)}, or none (none)")
    course("--epochs", type=int, metavar="N", help=f"passes over the training samples ({default.epochs})")
    course(
        "--patience",
        type=_or_none(int),
        metavar="N",
        help="stop after N epochs without an improvement, or none: never (none)",
    )
    course("--seed", type=int, metavar="N", help=f"of split, weights, shuffles and dropout ({default.seed})")
    course("--device", metavar="NAME", help="cpu, cuda, cuda:N or auto: cuda if usable, else cpu (auto)")


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a function that makes a value of a text, and leaves "none", which `_settings` takes for no value."""

    def parse(text: str) -> Any:
        return text if text == "none" else kind(text)

    parse.__name__ = kind.__name__  # in the message of argparse
    return parse


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"a number of seconds, at least 0; got {text!r}")
    return seconds


def _names(known: Iterable[str]) -> str:
    *most, last = known
    return f"{', '.join(most)} or {last}"


def _own_defaults(setting: str) -> str:
    """Return the default of a setting for each optimizer that has it, as text."""
    return ", ".join(f"{name} {own[setting]:g}" for name, own in OPTIMIZERS.items() if setting in own)


def _settings(arguments: argparse.Namespace) -> tuple[Settings, dict[str, Any]]:
    """Return the settings, and the environment recorded in the config file, if one is given."""
    given = _given(arguments)
    settings: dict[str, Any] = {}
    recorded: dict[str, Any] = {}
    if arguments.config is not None:
        content = read_config(arguments.config)
        settings, recorded = dict(content["settings"]), content.get("environment", {})
        if given.get("optimizer", settings.get("optimizer")) != settings.get("optimizer"):
            for name in ("lr", "momentum", "weight_decay"):  # they were set for the other optimizer
                settings.pop(name, None)
        for part in ("test", "validation"):
            for name, other in ((part, f"{part}_file"), (f"{part}_file", part)):  # one replaces the other
                if name in given:
                    settings.pop(other, None)
    settings.update(given)
    settings = {name: _OFF.get(name, value) if value == "none" else value for name, value in settings.items()}
    if "dataset" not in settings:
        raise UsageError("train needs data, such as gradflow train digits (see gradflow train --help)")
    made = Settings(**settings)
    if arguments.config is not None:
        check_places(made, given, f"gradflow train --config {arguments.config}")
    return made, recorded


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name in SETTING_NAMES if (value := getattr(arguments, name)) is not None}


def _check_resume(arguments: argparse.Namespace) -> None:
    """Raise UsageError for arguments that contradict --resume."""
    given = [name for name in ("config", "out") if getattr(arguments, name) is not None]
    contradicting = [*given, *(name for name in _given(arguments) if name not in PLACES)]
    if contradicting:
        name = contradicting[0]
        what = f"--{name.replace('_', '-')}"
        again = f"; to repeat it with another: --config {arguments.resume} {what} ..." if name in SETTING_NAMES else ""
        raise UsageError(f"--resume goes on with the settings of its run, and takes no {what}{again}")


def run(arguments: argparse.Namespace) -> int:
    """Train a model, print its progress, and return the exit status."""
    from gradflow.training.runs.stopping import Stopping, reason

    with contextlib.ExitStack() as stack:
        communicator = stack.enter_context(together(arguments.timeout))
        if communicator is None or not communicator.rank:
            stack.enter_context(warnings_logged())
        else:
            arguments.quiet = True
        run = _prepared(arguments, communicator)
        stopping = Stopping(restore=not arguments.whole_process)
        if not run.is_first:
            with stopping, run:
                for _ in run.steps(arguments.save_every, stopping):
                    pass
                run.leave(reason(run.stop), arguments.keep)
            return 0
        progress = Progress(run, arguments)
        stack.enter_context(stopping)
        stack.enter_context(run)
        stack.callback(progress.close)
        progress.start()
        for step in run.steps(arguments.save_every, stopping):
            progress.step(step)
        progress.close()
        stop = run.stop
        result = run.finish(reason(stop), arguments.keep)
        if result.failed:
            print_error(_outcome(result))
            return FAILED
        try:
            print(_outcome(result), flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk
            raise OSError(f"{error}; the run is saved in {result.folder}") from None
        if result.omitted:
            print_note(f"not written: {result.omitted}")
        if skipped := sum(epoch.skipped for history in result.histories for epoch in history):
            print_note(f"{skipped} step{'s' * (skipped > 1)} changed nothing, because gradients overflowed float16")
        if dead := _dead(run):
            print_warning(f"all units of {dead} are dead, so no gradient passes: try a lower learning rate")
        return 0 if stop is None else 128 + stop


def _prepared(arguments: argparse.Namespace, communicator: Communicator | None) -> Run:
    """Return the run that the arguments ask for. What can be wrong is told first, then that it starts.

    The line comes before slow imports, such as that of scikit-learn.
    """
    for name in ("out", "config", "resume"):
        if getattr(arguments, name) == "":
            raise UsageError(f"--{name} is empty; it must name a folder")
    if arguments.resume is not None:
        _check_resume(arguments)
        unfinished_config(arguments.resume)
        line = f"resuming {arguments.resume}"
    else:
        settings, recorded = _settings(arguments)
        if arguments.out is not None and (communicator is None or not communicator.rank):
            refuse_used(arguments.out)
        for path in (settings.dataset, settings.test_file, settings.validation_file):
            if path is not None and path not in DATASETS and not os.path.exists(path):
                from gradflow.data import load

                load(path)  # which says what is wrong
        line = f"training on {settings.dataset}: {_goal(settings)}, seed {settings.seed}"
    if not arguments.quiet:
        print(printable(line), flush=True)

    from gradflow.training.runs.preparation import DeviceError
    from gradflow.training.runs.run import Run

    try:
        if arguments.resume is not None:
            return Run.resumed(arguments.resume, communicator, **_given(arguments))
        run = Run.new(settings, arguments.out, communicator)
    except DeviceError as error:
        if arguments.device is None and (arguments.resume or arguments.config):
            raise UsageError(f"{error}; on a device of this machine: --device auto") from None
        raise
    run.recorded = recorded
    return run


def _goal(settings: Settings) -> str:
    """Return the column that is predicted, for a table, and else the number of epochs."""
    epochs = f"{settings.epochs} epoch{'s' * (settings.epochs > 1)}"
    if settings.dataset in DATASETS:  # without slow imports
        return epochs
    from gradflow.tables.dataset import target_in
    from gradflow.training.runs.sources import is_table

    if not is_table(settings.dataset):
        return epochs
    target, why = target_in(
        settings.dataset, settings.target, [*settings.ignore, settings.weight_column], settings.header
    )
    return f"predicting {target}{f', {why} (another: --target NAME)' * bool(why)}"


def _outcome(result: Result) -> str:
    """Return the result of a run in one line."""
    from gradflow.training.runs.results import describe

    done, wanted = sum(map(len, result.histories)), result.settings.epochs * result.settings.ensemble
    where, score = f"saved in {result.folder}", describe(result)
    if result.failed:
        return f"{result.stopped}; the best epoch before is {where}"
    if result.stopped:
        until = f"{result.stopped} after {done} of {wanted} epochs"
        return f"{until}{score and f': {score}'}; {where}; to go on: gradflow train --resume {result.folder}"
    best = f" (best: {result.best[0].epoch})" if result.settings.ensemble == 1 else " in all"
    return f"{score or 'trained'} after {done} epoch{'s' * (done > 1)}{best} in {result.seconds:.1f} s; {where}"


def _dead(run: Run) -> str:
    """Return the layers whose units were all dead when they were last watched, in words; "" if there are none."""
    from gradflow.training.report.layers import dead_layers
    from gradflow.training.report.markup import listed

    lost = dead_layers(run.members.snapshots)
    model = " of the first model" if run.plan.settings.ensemble > 1 else ""
    return f"layer{'s' * (len(lost) > 1)} {listed(lost)}{model}" if lost else ""
