"""`gradflow train`: parse the settings, show the progress, print the result."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import gradflow as gf
from gradflow.backend import ACTIVATIONS
from gradflow.backend.registry import describe_device
from gradflow.cli.output import FAILED, INTERRUPTED, UsageError, print_error
from gradflow.data import DATASETS
from gradflow.text import printable
from gradflow.training import Epoch, Result, Settings, Setup, read_config, train
from gradflow.training.run_folder import environment, without_interrupts
from gradflow.training.settings import OPTIMIZERS, SCHEDULES, SETTING_NAMES
from gradflow.training.train import describe_score, require_extra

_HELP = """\
Train a multilayer perceptron on a dataset that comes with scikit-learn.
Nothing is downloaded.

{datasets}

A fifth of the samples, the same share of each class, is held out for testing.
The run writes a folder with weights.safetensors, metrics.csv (one row per
epoch), curves.png and config.toml. Equal settings give equal metrics, bit for
bit, if everything that config.toml records is equal too: versions, device,
kernels, BLAS, threads. Ctrl-C stops the run and saves the finished epochs.

Defaults are in parentheses.
"""
_EXAMPLES = """\
examples:
  gradflow train digits
  gradflow train digits --device cuda --batch-size 256 --seed 3
  gradflow train wine --hidden 64 --activation tanh --optimizer sgd --lr 0.1
  gradflow train diabetes --hidden 32 --epochs 20 --out runs/regression

  repeat a run, or repeat it with another seed:
  gradflow train --config runs/digits-seed0/config.toml
  gradflow train --config runs/digits-seed0/config.toml --seed 1

exit status: 0 done; 1 training or writing failed; 2 invalid input; 130 Ctrl-C
"""


class InterruptedEarly(KeyboardInterrupt):
    """Ctrl-C came before there was anything to save."""


def _widths(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"widths are integers separated by commas, such as 256,128; got {text!r}"
        ) from None


def add_parser(commands: Any) -> None:
    """Add the command to the parser of the command line."""
    datasets = "\n".join(f"  {name:15}{what}" for name, what in DATASETS.items())
    parser = commands.add_parser(
        "train",
        help="train a multilayer perceptron",
        usage="gradflow train DATASET [options]\n       gradflow train --config FILE [options]",
        description=_HELP.format(datasets=datasets),
        epilog=_EXAMPLES,
    )
    parser.set_defaults(run=run)
    default = Settings("digits")
    widths = ",".join(map(str, default.hidden))

    add = parser.add_argument
    add("dataset", nargs="?", metavar="DATASET", help="one of the names above")
    add("--config", metavar="FILE", help="repeat the run of a config.toml; other options override it")
    add("--out", metavar="FOLDER", help="new or empty folder for the results (runs/<dataset>-seed<seed>)")
    add("--quiet", action="store_true", help="print only the last line and errors")

    model = parser.add_argument_group("model").add_argument
    model("--hidden", type=_widths, metavar="N,N", help=f"widths of the hidden layers, or none ({widths})")
    model("--activation", metavar="NAME", help=f"{_names(ACTIVATIONS)} ({default.activation})")
    model("--dropout", type=float, metavar="P", help=f"share of hidden values dropped in training ({default.dropout})")

    course = parser.add_argument_group("training").add_argument
    course("--optimizer", metavar="NAME", help=f"{_names(OPTIMIZERS)} ({default.optimizer})")
    course("--lr", type=float, metavar="RATE", help=f"initial learning rate ({_own_defaults('lr')})")
    course("--schedule", metavar="NAME", help=f"{_names(SCHEDULES)}: whether the rate falls to 0 ({default.schedule})")
    course("--momentum", type=float, metavar="M", help=f"at least 0, below 1 ({_own_defaults('momentum')})")
    course("--weight-decay", type=float, metavar="W", help=f"at least 0 ({_own_defaults('weight_decay')})")
    course("--batch-size", type=int, metavar="N", help=f"samples per step, at most all of them ({default.batch_size})")
    course("--epochs", type=int, metavar="N", help=f"passes over the training samples ({default.epochs})")
    course("--seed", type=int, metavar="N", help=f"of split, weights, shuffles and dropout ({default.seed})")
    course("--device", metavar="NAME", help="cpu, cuda, cuda:N or auto: cuda if usable, else cpu (auto)")


def _names(known: Iterable[str]) -> str:
    *most, last = known
    return f"{', '.join(most)} or {last}"


def _own_defaults(setting: str) -> str:
    """Return the default of a setting for each optimizer that has it, as text."""
    return ", ".join(f"{name} {own[setting]:g}" for name, own in OPTIMIZERS.items() if setting in own)


def _settings(arguments: argparse.Namespace) -> tuple[Settings, dict[str, Any]]:
    """Return the settings, and the environment recorded in the config file, if one is given."""
    given = {n: v for n in SETTING_NAMES if (v := getattr(arguments, n)) is not None}
    settings: dict[str, Any] = {}
    recorded: dict[str, Any] = {}
    if arguments.config is not None:
        content = read_config(arguments.config)
        settings, recorded = dict(content["settings"]), content.get("environment", {})
        if given.get("optimizer", settings.get("optimizer")) != settings.get("optimizer"):
            for name in ("lr", "momentum", "weight_decay"):  # they were set for the other optimizer
                settings.pop(name, None)
    settings.update(given)
    if "dataset" not in settings:
        raise UsageError("train needs a dataset, such as gradflow train digits (see gradflow train --help)")
    return Settings(**settings), recorded


class _Progress:
    """The output of a run: lines on the setup, then a progress bar that moves once per epoch."""

    def __init__(self, recorded: dict[str, Any]) -> None:
        from tqdm import tqdm

        self.recorded = recorded
        self.make_bar = tqdm
        self.bar: Any = None

    def start(self, setup: Setup) -> None:
        """Print the setup, import what the kernels need, and start the bar."""
        for line in _setup_lines(setup):
            print(line, flush=True)
        backend = gf.get_backend(setup.settings.device)
        different = _differences(self.recorded, environment(backend.device)) if self.recorded else ""
        if different:
            print(f"note: the last bits may differ from the recorded run's: {different}", flush=True)
        backend.prepare()
        self.samples, self.epochs = setup.train_batches.samples, setup.settings.epochs
        self.classification = setup.dataset.is_classification
        self.bar = self.make_bar(
            total=self.samples * self.epochs,
            unit=" samples",
            unit_scale=True,
            desc=f"epoch 0/{self.epochs}",
            mininterval=0.1 if sys.stderr.isatty() else 2.0,  # fewer lines in a log file
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {rate_fmt}{postfix} [{elapsed}<{remaining}]",
        )

    def epoch(self, epoch: Epoch) -> None:
        """Advance the bar by one epoch."""
        self.bar.set_description_str(f"epoch {epoch.epoch}/{self.epochs}", refresh=False)
        score = describe_score(epoch.test_score, self.classification)
        self.bar.postfix = f"loss {epoch.train_loss:.4f}, test {score}"
        self.bar.update(self.samples)

    def close(self) -> None:
        """Close the bar where it is."""
        if self.bar is not None:
            self.bar.close()


def _setup_lines(setup: Setup) -> Iterator[str]:
    backend = gf.get_backend(setup.settings.device)
    yield f"device: {backend.device}, {describe_device(backend.device)[0]} ({printable(setup.reason)})"
    data, train_on, test_on = setup.dataset, setup.train_batches.samples, setup.test_batches.samples
    kind = f"{len(data.classes)} classes" if data.is_classification else "regression"
    samples, features = data.inputs.shape
    shares = f"{train_on} to train on, {test_on} to test on"
    yield f"data: {data.name}, {samples} samples of {features} features, {kind}; {shares}"
    sizes = "-".join(map(str, setup.model.sizes))
    parameters = sum(p.size for p in setup.model.parameters())
    yield f"model: {sizes}, {setup.settings.activation}, {parameters} parameters"


def _outcome(result: Result) -> str:
    """Return the result of a run in one line."""
    done, wanted = len(result.epochs), result.settings.epochs
    where = f"saved in {result.folder}"
    if result.interrupted:
        return f"interrupted after {done} of {wanted} epochs: test {result.score}; {where}"
    if result.failure:
        return f"{result.failure}; the state after epoch {done} is {where}"
    return f"test {result.score} after {done} epoch{'s' * (done > 1)} in {result.seconds:.1f} s; {where}"


def _differences(recorded: dict[str, Any], here: dict[str, Any]) -> str:
    """Return how this run's environment differs from the recorded one, in words; "" if it does not."""
    found = [f"{k} {v} then, {here.get(k, 'none')} now" for k, v in recorded.items() if here.get(k) != v]
    return printable("; ".join(found))


def run(arguments: argparse.Namespace) -> int:
    """Train a model, print its progress, and return the exit status."""
    settings, recorded = _settings(arguments)
    if arguments.out == "":
        raise UsageError("--out is empty; it must name a folder")
    require_extra()
    progress = None if arguments.quiet else _Progress(recorded)
    try:
        with _raised_interrupts():
            result = train(
                settings,
                arguments.out,
                on_start=progress.start if progress else None,
                on_epoch=progress.epoch if progress else None,
            )
    except KeyboardInterrupt:
        raise InterruptedEarly from None
    finally:
        with without_interrupts():
            if progress is not None:
                progress.close()
    with without_interrupts():  # Ctrl-C must not come between saving and the line that says so
        if result.failure:
            print_error(_outcome(result))
            return FAILED
        print(_outcome(result), flush=True)
        if result.no_picture:
            print(f"gradflow: note: curves.png could not be drawn: {result.no_picture}", file=sys.stderr, flush=True)
        return INTERRUPTED if result.interrupted else 0


@contextlib.contextmanager
def _raised_interrupts() -> Iterator[None]:
    """Inside a `with`, Ctrl-C raises KeyboardInterrupt and does not end the process, as set by `gradflow.__main__`."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or before is signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
