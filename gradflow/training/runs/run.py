"""A whole run from its settings: device, data, models, loop, and the folder with its results.

A run is a function of its `Settings`. The seed determines everything random, and each part has its own stream of random
numbers, so equal settings give equal results, bit for bit, if the data and `records.environment` are equal too. While
it trains, a run saves its state in its folder, from which it goes on with the same bits.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

import gradflow as gf
from gradflow.data import DATASETS
from gradflow.distributed import Communicator
from gradflow.saving import load, to_bytes
from gradflow.text import one_line, printable
from gradflow.training.curves import run_png
from gradflow.training.epoch import NonFiniteLossError, Step
from gradflow.training.progress import part
from gradflow.training.report import report_html
from gradflow.training.runs.folder import (
    CHECKPOINT,
    CONFIG,
    CURVES,
    METRICS,
    MODEL,
    REPORT,
    RunFolder,
    refuse_used,
    unfinished_config,
)
from gradflow.training.runs.members import Members
from gradflow.training.runs.preparation import plan, require_extra
from gradflow.training.runs.records import config_toml, environment, metrics_csv
from gradflow.training.runs.results import Result, describe, report_data, result_of, result_table
from gradflow.training.runs.settings import PLACES, Settings, SettingsError, check_places
from gradflow.training.runs.stopping import Stopping, reason
from gradflow.training.runs.turns import Turns
from gradflow.training.threads import cores_divided, thread_limit

_SHARE = 100
"""Saving takes at most one part in so many of the time."""
_FIRST, _SOONEST = 1.0, 5.0
"""The seconds before the first save, whatever it takes, and the least seconds between two saves."""
_NOTHING = "nothing is saved"


class Run:
    """A run: `new` starts one, `resumed` goes on with one. Inside a `with`, its folder belongs to it.

    members: its models. plan: what they are trained on.
    environment: what else determines the result; recorded: the same of the run that this one repeats or goes on with.

        with run:
            for step in run.steps():
                ...
            result = run.finish()

    >>> import tempfile
    >>> import numpy as np
    >>> from gradflow.training import Run, Settings
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/data.npz", X=np.eye(10), y=np.arange(10) % 2)
    ...     settings = Settings(f"{folder}/data.npz", test=0, validation=0, epochs=3, batch_size=5)
    ...     with Run.new(settings, out=f"{folder}/run") as run:
    ...         steps = [step.step for step in run.steps()]
    >>> steps
    [1, 2, 3, 4, 5, 6]
    """

    def __init__(self, members: Members, out: str | Path | None, folder: RunFolder | None = None) -> None:
        self.members = members
        self.plan = members.plan
        self.environment: Mapping[str, Any] = {}
        self.recorded: Mapping[str, Any] = {}
        self._out, self._folder = out, folder
        self._earlier_seconds, self._failure, self._saved = 0.0, "", _NOTHING
        communicator = self.plan.communicator
        self.is_first = communicator is None or not communicator.rank
        """Whether this process writes the folder: the only one, or rank 0 of several."""
        self.stop: signal.Signals | None = None
        """The signal that ended `steps`, or None."""
        self._turns = None if communicator is None else Turns(communicator)
        self._contexts = contextlib.ExitStack()

    @classmethod
    def new(cls, settings: Settings, out: str | Path | None = None, communicator: Communicator | None = None) -> Self:
        """Return a run of these settings, ready to start.

        out: a new or empty folder (default: the first of runs/<dataset>-1, -2, ... that does not exist).
        communicator: of the processes that train together (default None: this one alone). Rank 0 has the folder.

        Raises SettingsError for settings that cannot be used here, DataError for data that cannot, and
        ModuleNotFoundError without the extra `train`.
        """
        if out is not None and (communicator is None or not communicator.rank):
            refuse_used(out)
        require_extra()
        return cls(Members(plan(settings, communicator)), out)

    @classmethod
    def resumed(cls, path: str | Path, communicator: Communicator | None = None, **places: str) -> Self:
        """Return the run in a folder, ready to go on from its last saved state.

        communicator: as for `new`; there may be another number of processes than before. All read the folder.
        places: the `device` where to go on, and the `dataset`, `test_file` and `validation_file` if the data lies
            elsewhere now (default: those of the run).

        Raises SettingsError if the run is finished or is going on elsewhere, or for other data; and like `new`.
        """
        require_extra()
        folder = RunFolder.reopen(path) if communicator is None or not communicator.rank else None
        try:
            content = unfinished_config(path)
            settings = Settings(**content["settings"] | places)
            check_places(settings, places, f"gradflow train --resume {path}")
            members = Members(plan(settings, communicator))
            if members.plan.data_hash != content["data"].get("hash"):
                files = filter(None, (settings.dataset, settings.test_file, settings.validation_file))
                raise SettingsError(
                    f"{' with '.join(files)} is not the data that {path} was trained on: its hash differs"
                )
            run = cls(members, None, folder)
            run.recorded = content.get("environment", {})
            checkpoint = Path(path) / CHECKPOINT
            if checkpoint.exists():
                run._load(checkpoint)
        except BaseException:
            if folder is not None:
                folder.__exit__(None, None, None)
            raise
        return run

    def _load(self, checkpoint: Path) -> None:
        try:
            state = load(checkpoint, self.plan.settings.device)
            if not isinstance(state, dict):
                raise ValueError("it is not the state of a run")
            saved, own = part(state, "settings"), self._fixed_settings()
            changed = [name for name in {**saved, **own} if saved.get(name) != own.get(name)]
            if not changed:
                self.members.load_state_dict(part(state, "members"))
                self._earlier_seconds = float(state["seconds"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise SettingsError(
                f"cannot go on from {checkpoint}: {one_line(error)}; without this file, the run goes on from its start"
            ) from None
        if changed:
            was = printable(", ".join(f"{name} was {saved.get(name, 'not set')}" for name in changed))
            raise SettingsError(
                f"cannot go on from {checkpoint}: {CONFIG} was changed since it was saved: {was}; "
                f"to train with other settings: gradflow train --config {checkpoint.parent}"
            )
        if self.is_first:
            self._saved = self._saved_state()

    def _fixed_settings(self) -> dict[str, Any]:
        """Return the settings without those that may change when a run goes on."""
        return {name: value for name, value in self.plan.settings.to_dict().items() if name not in PLACES}

    @property
    def folder(self) -> Path:
        """The folder of the run. It exists inside the `with`."""
        assert self._folder is not None
        return self._folder.path

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            settings = self.plan.settings
            communicator = self.plan.communicator
            if communicator is not None:
                stack.enter_context(cores_divided(communicator.local_size))
            stack.enter_context(thread_limit(settings.device, self.plan.sizes, settings.batch_size))
            stack.enter_context(np.errstate(all="ignore"))  # a non-finite loss reports divergence
            self.environment = environment(
                gf.get_backend(self.plan.settings.device).device, 1 if communicator is None else communicator.size
            )
            if not self.is_first:
                pass
            elif self._folder is None:
                self._folder = RunFolder.claim(self._out, Path("runs") / run_name(self.plan.settings))
                stack.enter_context(self._folder)
                self._write(CONFIG, config_toml(self.plan, self.environment, {}))
            else:
                stack.enter_context(self._folder)
            self._contexts = stack.pop_all()
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._contexts.close()

    @property
    def seconds(self) -> float:
        """How long the run has been training, with its earlier parts as far as they were saved."""
        return self._earlier_seconds + time.monotonic() - self._began

    def steps(self, save_every: float | None = None, stopping: Stopping | None = None) -> Iterator[Step]:
        """Train, and yield each step; between two steps, save the state from time to time.

        save_every: the seconds between two saves, and before the first (default: 1 before the first; then at least 5,
            and 100 times what the last one took).
        stopping: a signal that it has noted ends the training after the step (default None). `stop` is the signal.

        A non-finite loss ends training, and is told in the result. Raises NonFiniteLossError if there is none because
        the loss is not finite in the first epoch, and OSError, which says what is saved, if the state cannot be saved.
        """
        due = time.monotonic() + (_FIRST if save_every is None else save_every)
        try:
            for step in self.members.steps():
                yield step
                began = time.monotonic()
                is_due, self.stop = began >= due, None if stopping is None else stopping.signal
                if self._turns is not None:
                    is_due, self.stop = self._turns.decide(is_due, self.stop)
                if self.stop is not None:
                    return
                if is_due:
                    self._save_state()
                    now = time.monotonic()
                    due = now + (max(_SOONEST, _SHARE * (now - began)) if save_every is None else save_every)
        except NonFiniteLossError as error:
            if not self.members.histories:
                raise NonFiniteLossError(f"{error}; {self._saved}") from None
            self._failure = str(error)

    def leave(self, stopped: str = "", keep: bool = False) -> None:
        """Do what another process than the first does instead of `finish`, with equal arguments."""
        if stopped or keep:
            self._save_state()

    def finish(self, stopped: str = "", keep: bool = False) -> Result:
        """Write what the run reached, and return it.

        stopped: why training was stopped early, such as "interrupted"; its state is saved, too, so that it can go on.
        keep: whether to keep the saved state of a finished run (default False).

        Raises OSError, which says what is saved, if a file cannot be written.
        """
        assert self._folder is not None
        if stopped or keep:
            self._save_state()
        result, outputs = result_of(
            self.members, self.folder, self.seconds, stopped or self._failure, failed=bool(self._failure)
        )
        self._write(MODEL, to_bytes(result.predictor.tree()))
        self._write(METRICS, metrics_csv(self.plan, result.histories))
        omitted = self._write_for_people(result, outputs)
        self._write(CONFIG, config_toml(self.plan, self.environment, result_table(result)))
        if not (stopped or keep):
            self._folder.remove(CHECKPOINT)
        return replace(result, omitted=omitted)

    def _write_for_people(self, result: Result, outputs: Any) -> str:
        """Write the picture and the report; return why they are missing, "" if they are not."""
        omitted = []
        command = f"gradflow train --config {shlex.quote(str(self.folder))}"
        score = describe(result)
        makers: dict[str, Callable[[], bytes]] = {
            CURVES: lambda: run_png(result.histories, f"{self.folder.name}: {score}"),
            REPORT: lambda: report_html(report_data(self.members, result, outputs, self.environment, command)).encode(),
        }
        for name, make in makers.items() if result.histories else ():
            try:
                content = make()
            except Exception as error:  # such as from a broken matplotlibrc: the run matters more than its plot
                omitted.append(f"{name}: {one_line(error)}")
            else:
                self._write(name, content)
        return "; ".join(omitted)

    def _save_state(self) -> None:
        state: dict[str, Any] = {
            "settings": self._fixed_settings(),
            "members": self.members.state_dict(),
            "seconds": self.seconds,
        }
        if not self.is_first:
            return
        self._write(CHECKPOINT, to_bytes(state))
        self._saved = self._saved_state()
        self._write(METRICS, metrics_csv(self.plan, self.members.histories))
        weights = self.members.best_weights()
        if weights:  # so that a run that is killed can predict
            self._write(MODEL, to_bytes(self.members.predictor(weights).tree()))

    def _saved_state(self) -> str:
        n, trainer = self.members.number, self.members.trainer
        member = f" of model {n}" if self.plan.settings.ensemble > 1 else ""
        return f"the state after step {trainer.step}{member} is saved in {self.folder}"

    @property
    def start(self) -> str:
        """Where a resumed run stands before it goes on, in words."""
        n, trainer = self.members.number, self.members.trainer
        if self._saved == _NOTHING:
            return "the beginning, since no state was saved"
        member = f" of model {n}" if self.plan.settings.ensemble > 1 else ""
        return f"epoch {trainer.epoch}, step {trainer.step}{member}"

    def _write(self, name: str, content: bytes) -> None:
        assert self._folder is not None
        try:
            self._folder.write(name, content)
        except OSError as error:
            lost = self._saved != _NOTHING and not self._folder.is_at_its_path()
            raise OSError(f"{error}; {'what was saved went with it' if lost else self._saved}") from None
        if name != CONFIG:
            self._folder.kept = True


def run_name(settings: Settings) -> str:
    """Return the name of a run's folder, without its number: that of the dataset, or of the file or folder of data."""
    if settings.dataset in DATASETS:
        return settings.dataset
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(settings.dataset).stem).strip(".") or "data"


def train(settings: Settings, out: str | Path | None = None) -> Result:
    """Train an MLP, or an ensemble, and save it in a folder with all that repeats, resumes, describes and uses it.

    settings: what to train.
    out: a new or empty folder (default: the first of runs/<dataset>-1, -2, ... that does not exist).

    Ctrl-C ends training after the step; what was reached is saved and returned, and `resume` goes on. SIGTERM and
    SIGHUP do the same, and then have their usual effect. A non-finite loss ends training; the best epoch before it is
    kept.

    Raises SettingsError for settings that cannot be used here, DataError for data that cannot, ModuleNotFoundError
    without the extra `train`, NonFiniteLossError for a non-finite loss in the first epoch, and OSError, which says what
    is saved, if a file cannot be written.

    >>> import tempfile
    >>> import numpy as np
    >>> from gradflow.training import Settings, train
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/data.npz", X=x, y=x[:, 0] > 0)
    ...     result = train(Settings(f"{folder}/data.npz", epochs=40, lr=0.1, hidden=(8,)), out=f"{folder}/run")
    >>> result.assessed, "accuracy" in result.figures, result.predictor.predict([[-2.0, 0.0], [2.0, 0.0]])
    ('test', True, array([False,  True]))
    """
    return _trained(Run.new(settings, out))


def resume(folder: str | Path, **places: str) -> Result:
    """Go on with the run in a folder, like `train`: with the bits of a run that was never stopped.

    places: another `device`, or where its data lies now, if it was moved: `dataset`, `test_file`, `validation_file`.

    Raises SettingsError if the run is finished or is going on elsewhere, or for other data; and like `train`.

    >>> import tempfile
    >>> import numpy as np
    >>> from gradflow.training import SettingsError, Settings, resume, train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/data.npz", X=np.eye(10), y=np.arange(10) % 2)
    ...     train(Settings(f"{folder}/data.npz", test=0, epochs=1), out=f"{folder}/run").stopped
    ...     try:
    ...         resume(f"{folder}/run")
    ...     except SettingsError as error:
    ...         print(str(error).partition(" is ")[2].partition(";")[0])
    ''
    finished
    """
    return _trained(Run.resumed(folder, None, **places))


def _trained(run: Run) -> Result:
    with Stopping() as stopping, run:
        for _ in run.steps(stopping=stopping):
            pass
        result = run.finish(reason(run.stop))
    if run.stop is not None and run.stop != signal.SIGINT:
        signal.raise_signal(run.stop)
    return result
