"""The command `gradflow`: train a multilayer perceptron, say which devices can be used, compare their results.

The one idea: whatever the user gets wrong is one line on stderr and exit status 2, before anything is written; so all
checks sit where the settings are made, and this file only turns words into settings and results into words.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import gradflow as gf
from gradflow.backend import ACTIVATIONS
from gradflow.data import DATASETS
from gradflow.device import (
    backend_prefixes,
    backend_source,
    check_variables,
    describe_device,
    devices_of,
    discovery_notes,
    plain,
)
from gradflow.environment import VariableError
from gradflow.training import Epoch, NonFiniteLossError, Result, Settings, SettingsError, Setup, read_config, train
from gradflow.training.run import environment, without_interrupts
from gradflow.training.settings import OPTIMIZERS, SCHEDULES, SETTING_NAMES
from gradflow.training.train import auto_device, describe_score, require_extra

FAILED, MISUSED, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141
"""Exit statuses: training, writing or agreement failed; bad input; Ctrl-C; nobody reads the output any more."""

_GENERAL_HELP = """\
Train multilayer perceptrons, on CPU and GPU with the same code.

  gradflow train digits                learn to read handwritten digits
  gradflow train iris --hidden 16,16   a smaller dataset, a smaller model
  gradflow train --help                all datasets and settings
  gradflow devices                     what can be used here, and why not the rest
  gradflow agree                       whether two devices compute the same
"""

_TRAIN_HELP = """\
Train a multilayer perceptron on a dataset that comes with scikit-learn; nothing is downloaded.

{datasets}

A fifth of the samples is held out to test on, each class in proportion. The run
leaves a folder with weights.safetensors, metrics.csv (a row for each epoch),
curves.png and config.toml. The same settings give the same metrics, bit for bit,
if all that config.toml records is the same: versions, device, kernels, BLAS, threads.
Ctrl-C stops the run and saves what the finished epochs reached.
"""

_DEVICES_HELP = """\
List the devices, and for each that cannot be used, the reason and what to type.

With --json, one object:
  gradflow   the version
  backends   a list of: prefix, source (the package), usable (true or false), code
             (the state in one word, like "driver-too-old"), state, fix (what to
             type), devices (a list of: device, description, memory in bytes)
  auto       device (null if GRADFLOW_DEVICE names what cannot be used), reason
  notes      sentences about plug-ins that are left out

environment:
  GRADFLOW_DEVICE          what auto stands for
  GRADFLOW_BACKEND_BLOCK   backends not to load, with commas between them
  GRADFLOW_FAST            0: no kernels compiled by numba; 1: with them
  GRADFLOW_FUSED           0: no kernels but those composed of array functions
"""

_TRAIN_EXAMPLES = """\
examples:
  gradflow train digits
  gradflow train digits --device cuda --batch-size 256 --seed 3
  gradflow train wine --hidden 64 --activation tanh --optimizer sgd --lr 0.1
  gradflow train diabetes --hidden 32 --epochs 20 --out runs/regression
  gradflow train --config runs/digits-seed0/config.toml            (repeats it)
  gradflow train --config runs/digits-seed0/config.toml --seed 1   (but its seed)

exit status: 0 done; 1 training or writing failed; 2 bad input; 130 Ctrl-C
"""

_AGREE_HELP = """\
Run operations, a model's forward and backward and short training runs on two
devices, and print for each result its error, also as a share of its bound.
Results that are rounded are compared with float64 on the CPU, in ulp or by the
bound of their error analysis; the others (copies, masks, comparisons, random
bits) must be equal bit for bit.

One DEVICE is compared with the CPU. Without any, the CPU is compared with CUDA
where that can be used, else with gradflow's own fake device.
"""

_AGREE_EXAMPLES = """\
examples:
  gradflow agree
  gradflow agree cpu cuda
  gradflow agree cuda:0 cuda:1 --json

exit status: 0 all agree; 1 something does not; 2 bad input; 130 Ctrl-C
"""


class UsageError(Exception):
    """What the user asked for cannot be; the message says why."""


class _InterruptedEarly(KeyboardInterrupt):
    """Ctrl-C came when there was nothing to save yet."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


# ---------------------------------------------------------------------- words into settings


def _widths(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"widths are integers with commas between them, like 256,128; got {text!r}"
        ) from None


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; it raises UsageError for words that make no sense."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="gradflow",
        usage="gradflow COMMAND [options]",
        description=_GENERAL_HELP,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gradflow {gf.__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", prog="gradflow", parser_class=_Parser
    )
    _add_train(commands, formatter)
    devices = commands.add_parser(
        "devices",
        help="list the devices, and for each that cannot be used, why",
        description=_DEVICES_HELP,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    devices.add_argument("--json", action="store_true", help="the same as one JSON object")
    _add_agree(commands, formatter)
    return parser


def _add_agree(commands: Any, formatter: Any) -> None:
    parser = commands.add_parser(
        "agree",
        help="compare the results of two devices",
        usage="gradflow agree [DEVICE [DEVICE]] [--json]",
        description=_AGREE_HELP,
        epilog=_AGREE_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help="cpu, cuda, cuda:N, fake or another backend's")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")


def _add_train(commands: Any, formatter: Any) -> None:
    datasets = "\n".join(f"  {name:15}{what}" for name, what in DATASETS.items())
    parser = commands.add_parser(
        "train",
        help="train a multilayer perceptron",
        usage="gradflow train DATASET [options]\n       gradflow train --config FILE [options]",
        description=_TRAIN_HELP.format(datasets=datasets),
        epilog=_TRAIN_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    default = Settings("digits")
    widths = ",".join(map(str, default.hidden))
    rates = _own_defaults("lr")

    add = parser.add_argument
    add("dataset", nargs="?", metavar="DATASET", help="one of the names above")
    add("--config", metavar="FILE", help="repeat the run of a config.toml; other options override it")
    add("--out", metavar="FOLDER", help="a new or empty folder for the results (runs/<dataset>-seed<seed>)")
    add("--quiet", action="store_true", help="print only the last line, and errors")

    model = parser.add_argument_group("the model").add_argument
    model("--hidden", type=_widths, metavar="N,N", help=f"widths of the hidden layers, or none ({widths})")
    model("--activation", metavar="NAME", help=f"{_names(ACTIVATIONS)} ({default.activation})")
    model("--dropout", type=float, metavar="P", help=f"share of hidden values dropped in training ({default.dropout})")

    course = parser.add_argument_group("its training").add_argument
    course("--optimizer", metavar="NAME", help=f"{_names(OPTIMIZERS)} ({default.optimizer})")
    course("--lr", type=float, metavar="RATE", help=f"learning rate at the start ({rates})")
    course("--schedule", metavar="NAME", help=f"{_names(SCHEDULES)}: whether the rate falls to 0 ({default.schedule})")
    course("--momentum", type=float, metavar="M", help=f"in [0, 1) ({_own_defaults('momentum')})")
    course("--weight-decay", type=float, metavar="W", help=f"0 or more ({_own_defaults('weight_decay')})")
    course("--batch-size", type=int, metavar="N", help=f"samples a step; more than all is all ({default.batch_size})")
    course("--epochs", type=int, metavar="N", help=f"times through the training split ({default.epochs})")
    course("--seed", type=int, metavar="N", help=f"of the split, weights, shuffles and dropout ({default.seed})")
    course("--device", metavar="NAME", help="cpu, cuda, cuda:N or auto: cuda where it works, else cpu (auto)")


def _names(known: Iterable[str]) -> str:
    *most, last = known
    return f"{', '.join(most)} or {last}"


def _own_defaults(setting: str) -> str:
    """The default of a setting that depends on the optimizer, for each that takes it."""
    return ", ".join(f"{name} {own[setting]:g}" for name, own in OPTIMIZERS.items() if setting in own)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command line, taken apart. Raises UsageError for words that make no sense."""
    arguments, rest = build_parser().parse_known_args(words)
    if rest:
        unknown = next((word for word in rest if word.startswith("-")), rest[0])
        options = ["--config", "--out", "--quiet", *(f"--{name.replace('_', '-')}" for name in SETTING_NAMES[1:])]
        close = difflib.get_close_matches(unknown, options, 1) if arguments.command == "train" else []
        hint = f"; did you mean {close[0]}?" if close else ""
        if close == [unknown]:
            raise UsageError(f"{unknown} belongs behind the command: gradflow train DATASET {unknown} ...")
        prog = f"gradflow {arguments.command}" if arguments.command else "gradflow"
        raise UsageError(f"{prog} does not know {unknown!r}{hint} (see {prog} --help)")
    return arguments


def _settings(arguments: argparse.Namespace) -> tuple[Settings, dict[str, Any]]:
    """The settings that the words stand for, and the environment that a config given was written in."""
    given = {n: v for n in SETTING_NAMES if (v := getattr(arguments, n)) is not None}
    settings: dict[str, Any] = {}
    recorded: dict[str, Any] = {}
    if arguments.config is not None:
        content = read_config(arguments.config)
        settings, recorded = dict(content["settings"]), content.get("environment", {})
        if given.get("optimizer", settings.get("optimizer")) != settings.get("optimizer"):
            for name in ("lr", "momentum", "weight_decay"):  # they were chosen for the other optimizer
                settings.pop(name, None)
    settings.update(given)
    if "dataset" not in settings:
        raise UsageError("train needs a dataset, like: gradflow train digits (see gradflow train --help)")
    return Settings(**settings), recorded


# ---------------------------------------------------------------------- results into words


class _Progress:
    """What a run prints while it goes: lines about it at the start, then a bar that moves once an epoch."""

    def __init__(self, recorded: dict[str, Any]) -> None:
        from tqdm import tqdm

        self.recorded = recorded
        self.make_bar = tqdm
        self.bar: Any = None

    def start(self, setup: Setup) -> None:
        """Print what the run is made of, import what its kernels need, and begin the bar."""
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
            mininterval=0.1 if sys.stderr.isatty() else 2.0,  # a log need not hold every step of the bar
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {rate_fmt}{postfix} [{elapsed}<{remaining}]",
        )

    def epoch(self, epoch: Epoch) -> None:
        """Move the bar by an epoch."""
        self.bar.set_description_str(f"epoch {epoch.epoch}/{self.epochs}", refresh=False)
        score = describe_score(epoch.test_score, self.classification)
        self.bar.postfix = f"loss {epoch.train_loss:.4f}, test {score}"
        self.bar.update(self.samples)

    def close(self) -> None:
        """End the bar, as it stands."""
        if self.bar is not None:
            self.bar.close()


def _setup_lines(setup: Setup) -> Iterator[str]:
    backend = gf.get_backend(setup.settings.device)
    yield f"device: {backend.device}, {describe_device(backend.device)[0]} ({plain(setup.reason)})"
    data, train_on, test_on = setup.dataset, setup.train_batches.samples, setup.test_batches.samples
    kind = f"{len(data.classes)} classes" if data.is_classification else "regression"
    samples, features = data.inputs.shape
    shares = f"{train_on} to train on, {test_on} to test on"
    yield f"data: {data.name}, {samples} samples of {features} features, {kind}; {shares}"
    sizes = "-".join(map(str, setup.model.sizes))
    parameters = sum(p.size for p in setup.model.parameters())
    yield f"model: {sizes}, {setup.settings.activation}, {parameters} parameters"


def _outcome(result: Result) -> str:
    """What a run reached, in one line."""
    done, wanted = len(result.epochs), result.settings.epochs
    where = f"saved in {result.folder}"
    if result.interrupted:
        return f"interrupted after {done} of {wanted} epochs: test {result.score}; {where}"
    if result.failure:
        return f"{result.failure}; the state after epoch {done} is {where}"
    return f"test {result.score} after {done} epoch{'s' * (done > 1)} in {result.seconds:.1f} s; {where}"


def _differences(recorded: dict[str, Any], here: dict[str, Any]) -> str:
    """Each thing in which this run's surroundings are not as those that a config was written in; empty if none is."""
    found = [f"{k} {v} then, {here.get(k, 'none')} now" for k, v in recorded.items() if here.get(k) != v]
    return plain("; ".join(found))


# ---------------------------------------------------------------------- the commands


def _train(arguments: argparse.Namespace) -> int:
    settings, recorded = _settings(arguments)
    if arguments.out == "":
        raise UsageError("--out is empty; it takes the name of a folder")
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
        raise _InterruptedEarly from None
    finally:
        with without_interrupts():
            if progress is not None:
                progress.close()
    with without_interrupts():  # a key held down must not part what is saved from the line that says so
        if result.failure:
            _complain(_outcome(result))
            return FAILED
        print(_outcome(result), flush=True)
        if result.no_picture:
            print(f"gradflow: note: there is no curves.png: {result.no_picture}", file=sys.stderr, flush=True)
        return INTERRUPTED if result.interrupted else 0


@contextlib.contextmanager
def _raised_interrupts() -> Iterator[None]:
    """Have Ctrl-C raise KeyboardInterrupt, where else it ends the process at once (see `gradflow.__main__`)."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or before is signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _nothing_on_stdout() -> Iterator[None]:
    """Send to stderr what plug-ins and their libraries print meanwhile: stdout is for the report."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
        os.dup2(2, 1)  # also for what is not written in Python
    except OSError:  # one of them is closed
        kept = -1
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept >= 0:
            os.dup2(kept, 1)
            os.close(kept)


def _device_report() -> dict[str, Any]:
    """What `gradflow devices --json` prints; its help says what is in it."""
    backends = []
    for prefix in backend_prefixes():
        diagnosis, found = gf.diagnose(prefix), []
        if diagnosis.usable:
            try:
                for device in devices_of(prefix):
                    description, memory = describe_device(device)
                    found.append({"device": str(device), "description": description, "memory": memory})
            except gf.DeviceUnavailableError as error:
                diagnosis = gf.Diagnosis(False, str(error))
        backends.append(
            {
                "prefix": prefix,
                "source": plain(backend_source(prefix)),
                "usable": diagnosis.usable,
                "code": diagnosis.code or ("fine" if diagnosis.usable else "unusable"),
                "state": plain(diagnosis.state),
                "fix": plain(diagnosis.fix),
                "devices": found if diagnosis.usable else [],
            }
        )
    auto: dict[str, str | None]
    try:
        chosen, reason = auto_device()
        auto = {"device": str(chosen), "reason": plain(reason)}
    except SettingsError as error:
        auto = {"device": None, "reason": plain(str(error))}
    notes = list(map(plain, discovery_notes()))
    return {"gradflow": gf.__version__, "backends": backends, "auto": auto, "notes": notes}


def _devices(as_json: bool) -> int:
    with _nothing_on_stdout():
        report = _device_report()
    auto = report["auto"]
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print_devices(report)
    if auto["device"] is None:
        _complain(auto["reason"])
        return MISUSED
    if not as_json:
        print(f"auto is {auto['device']} ({auto['reason']})")
    return 0


def _print_devices(report: dict[str, Any]) -> None:
    rows = []
    for backend in report["backends"]:
        rows += [(d["device"], "yes", d["description"]) for d in backend["devices"]]
        if not backend["usable"]:
            rows.append((backend["prefix"], "no", backend["state"]))
            if backend["fix"]:
                rows.append(("", "", backend["fix"]))
    width = max(len(name) for name, _, _ in rows) + 2
    print(f"{'device':{width}}  usable  what it is, or why not")
    for name, usable, words in rows:
        print(f"{name:{width}}  {usable:6}  {words}")
    for note in report["notes"]:
        print(f"note: {note}")


def _agree(arguments: argparse.Namespace) -> int:
    from gradflow.testing import agree

    with _nothing_on_stdout():
        try:
            pair = agree.choose(arguments.devices)
        except (ValueError, RuntimeError) as error:
            raise UsageError(str(error)) from None
    if arguments.json:
        with _nothing_on_stdout():
            rows = agree.compare(pair.first, pair.second)
            document = agree.as_json(pair, rows)
        print(document)
    else:
        print(agree.heading(pair), flush=True)
        rows = agree.compare(pair.first, pair.second, each=agree.Table(lambda line: print(line, flush=True)).add)
        print(f"\n{agree.verdict(rows)}")
    return 0 if all(row.passed for row in rows) else FAILED


def _complain(message: str) -> None:
    print(f"gradflow: error: {plain(message)}", file=sys.stderr, flush=True)


def _ready_streams() -> None:
    """Make stdout and stderr take every text: also where they are closed, or of an encoding that lacks a letter."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="replace"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):  # C's locale
            stream.reconfigure(errors="backslashreplace")


class _Unclosable:
    """A text stream that plug-ins cannot close."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        self._stream.flush()


def _run(words: Sequence[str] | None) -> int:
    """Carry out a command; the exit status."""
    try:
        arguments = parse(words)
        check_variables()
        if arguments.command == "train":
            return _train(arguments)
        if arguments.command == "devices":
            return _devices(arguments.json)
        if arguments.command == "agree":
            return _agree(arguments)
        raise UsageError("there is no command; try gradflow train digits, or gradflow --help")
    except SystemExit as stop:  # of --help and --version
        return int(stop.code or 0)
    except (UsageError, SettingsError, VariableError, ImportError, gf.DeviceUnavailableError) as error:
        _complain(str(error))
        return MISUSED
    except _InterruptedEarly:
        _complain("interrupted before the first epoch was over; nothing is saved")
        return INTERRUPTED
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except NonFiniteLossError as error:
        _complain(f"{error}; nothing is saved")
        return FAILED
    except MemoryError:
        _complain("out of memory; a narrower model or a smaller batch needs less")
        return FAILED
    except BrokenPipeError:
        raise
    except OSError as error:
        _complain(str(error))
        return FAILED


def main(words: Sequence[str] | None = None) -> int:
    """Run the command with these words (default: those of the command line); the exit status. Prints, never raises."""
    _ready_streams()
    stdout: Any = _Unclosable(sys.stdout)
    stderr: Any = _Unclosable(sys.stderr)
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            status = _run(words)
            stdout.flush()
        except BrokenPipeError:  # nobody reads: say nothing, and let the interpreter's last flush go nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
            return PIPE_CLOSED
    return status


if __name__ == "__main__":
    sys.exit(main())
