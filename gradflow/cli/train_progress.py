"""What `gradflow train` shows of a run: its setup, then a progress bar."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradflow as gf
from gradflow.backend.registry import describe_device
from gradflow.cli.output import print_note
from gradflow.text import printable
from gradflow.training.epoch import Epoch, Step

if TYPE_CHECKING:
    from gradflow.training.runs.run import Run


class Progress:
    """The output of a run: lines on the setup, then a progress bar; nothing at all without `show`."""

    def __init__(self, run: Run, arguments: argparse.Namespace) -> None:
        """Import what the bar and the kernels need."""
        from tqdm import tqdm

        self._run, self._arguments, self._show = run, arguments, not arguments.quiet
        self._members, self._settings = run.members, run.plan.settings
        self._batch = self._settings.batch_size * self._settings.accumulate
        self._make_bar = tqdm
        self._bar: Any = None
        gf.get_backend(self._settings.device).prepare()

    def start(self) -> None:
        """Print the setup and what differs from the recorded environment, and start the bar where the run stands."""
        run = self._run
        for line in _setup_lines(run, self._arguments):
            self._print(line)
        for note in run.plan.notes:
            print_note(note)
        different = _differences(run.recorded, run.environment) if run.recorded else ""
        if different:
            self._print(f"note: the last bits may differ from the recorded run's: {different}")
        wide = shutil.get_terminal_size().columns >= 100
        self._bar = self._make_bar(
            desc=self._description(),
            total=self._members.trainer.train.samples * self._settings.epochs * self._settings.ensemble,
            initial=self._done(),
            unit=" samples",
            unit_scale=True,
            mininterval=0.1 if sys.stderr.isatty() else 2.0,  # fewer lines in a log file
            dynamic_ncols=True,
            bar_format="{desc} |{bar}| " + "{rate_fmt} " * wide + "[{elapsed}<{remaining}]",
            disable=not self._show,
        )

    def step(self, step: Step) -> None:
        """Advance the bar by a step."""
        if step.finished is None:
            self._bar.update(self._batch)
        else:
            self._bar.set_description_str(self._description(), refresh=False)
            self._bar.update(self._done() - self._bar.n)

    def close(self) -> None:
        """Close the bar where it is."""
        if self._bar is not None:
            self._bar.close()

    def _print(self, line: str) -> None:
        if self._show:
            print(line, flush=True)

    def _done(self) -> int:
        """Return the samples that were trained on, with those of the epochs that patience saved."""
        from gradflow.training.runs.preparation import steps_per_epoch

        trainer, settings = self._members.trainer, self._settings
        epochs = len(self._members.finished) * settings.epochs + trainer.epoch
        steps = trainer.step - trainer.epoch * steps_per_epoch(settings, trainer.train)
        return trainer.train.samples * epochs + self._batch * steps

    def _description(self) -> str:
        trainer, settings = self._members.trainer, self._settings
        text = f"epoch {trainer.epoch}/{settings.epochs}"
        if settings.ensemble > 1:
            text = f"model {self._members.number}/{settings.ensemble}, {text}"
        if not trainer.history:
            return text
        score = _score(trainer.history[-1])
        return f"{text}, {score if shutil.get_terminal_size().columns >= 60 else score.split(', ')[1]}"


def _score(epoch: Epoch) -> str:
    """Return the loss of an epoch and its score on the samples that choose the best epoch."""
    from gradflow.training.runs.results import describe_figure

    validated = epoch.validation_loss is not None
    kind = "validation" if validated else "training"
    ((name, value),) = (epoch.validation_metrics if validated else epoch.train_metrics).items()
    return f"loss {epoch.train_loss:.4f}, {kind} {describe_figure(name, value).removeprefix('accuracy ')}"


def _setup_lines(run: Run, arguments: argparse.Namespace) -> Iterator[str]:
    plan = run.plan
    backend = gf.get_backend(plan.settings.device)
    reason = "as in the run" if arguments.device is None and plan.reason == "as requested" else plan.reason
    yield f"device: {backend.device}, {describe_device(backend.device)[0]} ({printable(reason)})"
    data, split = plan.dataset, plan.split
    uses = {"train": split.train, "validate": split.validation, "test": split.test}
    parts = ", ".join(f"{len(part)} {'samples ' * (use == 'train')}to {use} on" for use, part in uses.items() if part)
    name = os.path.relpath(data.name) if Path(data.name).is_relative_to(Path.cwd()) else data.name
    yield f"data: {printable(name)}, {printable(data.describe())}"
    yield from map(printable, plan.inputs.describe())
    yield f"parts: {parts}"
    sizes = "-".join(map(str, plan.sizes))
    parameters = sum(p.size for p in run.members.trainer.model.parameters())
    model = f"models: {plan.settings.ensemble}, each " if plan.settings.ensemble > 1 else "model: "
    half = f", products in {plan.settings.autocast}" if plan.settings.autocast else ""
    yield f"{model}{plan.inputs.prelude}{sizes}, {plan.settings.activation}, {parameters} parameters{half}"
    if plan.communicator is not None:
        yield f"processes: {plan.communicator.size}; each computes its share of a batch"
    yield f"folder: {run.folder}; Ctrl-C stops and saves"
    if arguments.resume is not None:
        yield f"from: {run.start}"


def _differences(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return how this run's environment differs from the recorded one, in words; "" if it does not."""
    found = [f"{k} {v} then, {here.get(k, 'none')} now" for k, v in recorded.items() if here.get(k) != v]
    return printable("; ".join(found))
