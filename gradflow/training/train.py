"""A whole run from its settings: device, data, model, loop, and the folder with its results.

A run is a function of its `Settings`. The seed determines everything random, and each part has its own stream of random
numbers, so equal settings give equal results, bit for bit, if `run_folder.environment` is equal too.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import gradflow as gf
from gradflow.data import Batches, Dataset, load
from gradflow.environment import DISTRIBUTION, delayed_interrupts, to_install
from gradflow.text import one_line
from gradflow.training.curves import curves_png
from gradflow.training.loop import Epoch, NonFiniteLossError, fit
from gradflow.training.run_folder import (
    RunFolder,
    column_names,
    config_toml,
    environment,
    metrics_csv,
    weights_safetensors,
    without_interrupts,
)
from gradflow.training.settings import Settings, SettingsError

TEST_BATCH = 4096
"""The batch size for the test split."""

EXTRA_MODULES = {
    "matplotlib": "matplotlib",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "tomli_w": "tomli-w",
    "tqdm": "tqdm",
}
"""What the extra `train` installs: the names to import, each with the name of its package."""

_SMALL_PRODUCT = 1 << 25  # multiplications, about a millisecond of one core
_SHUFFLE_STREAM = 1 << 64  # added to the seed: shuffles use other keys than weights and masks


@dataclass(frozen=True)
class Setup:
    """A run about to start. `settings.device` is the device that was chosen, and `reason` says why."""

    settings: Settings
    reason: str
    dataset: Dataset
    train_batches: Batches
    test_batches: Batches
    model: gf.nn.MLP
    folder: Path


@dataclass(frozen=True)
class Result:
    """The result of a run: its epochs, the model after the last of them, and the folder where it is saved.

    `interrupted` is True after Ctrl-C. `failure` says why training stopped early, `no_picture` why there is no
    curves.png; otherwise they are empty.
    """

    settings: Settings
    epochs: list[Epoch]
    model: gf.nn.MLP
    folder: Path
    classification: bool
    seconds: float
    interrupted: bool
    failure: str
    no_picture: str = ""

    @property
    def score(self) -> str:
        """The last score on the test split, as text."""
        return describe_score(self.epochs[-1].test_score, self.classification)


def train(
    settings: Settings,
    out: str | Path | None = None,
    on_start: Callable[[Setup], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Result:
    """Train an MLP and save weights.safetensors, metrics.csv, curves.png and config.toml in a folder.

    settings: what to train.
    out: a new or empty folder (default: runs/<dataset>-seed<seed>, with a number added if that exists).
    on_start: called with the `Setup` before training.
    on_epoch: called with the figures of each epoch.

    Seeds gradflow's global generator. Ctrl-C or a non-finite loss ends training; the finished epochs are saved and
    returned. Raises SettingsError for settings that cannot be used here and ModuleNotFoundError without the extra
    `train`. Raises KeyboardInterrupt or NonFiniteLossError if training ends in its first epoch; then nothing is saved.
    """
    require_extra()
    settings, reason = resolve_device(settings)
    with RunFolder(out, Path("runs") / f"{settings.dataset}-seed{settings.seed}") as folder:
        setup, optimizer = _prepare(settings, reason, folder.path)
        with _thread_limit(setup):
            if on_start is not None:
                on_start(setup)
            result, weights = _run(setup, optimizer, on_epoch)
            with without_interrupts():
                setup.model.load_state_dict(weights)
                no_picture = _save(folder, result, weights)
    return replace(result, no_picture=no_picture)


def _run(
    setup: Setup, optimizer: gf.optim.Optimizer, on_epoch: Callable[[Epoch], None] | None
) -> tuple[Result, dict[str, gf.Tensor]]:
    """Train as far as possible; return the result, and the weights after the last complete epoch."""
    classification = setup.dataset.is_classification
    criterion = gf.cross_entropy if classification else gf.mse_loss
    epochs: list[Epoch] = []
    reached: tuple[int, dict[str, gf.Tensor]] = (0, {})  # set in one assignment: Ctrl-C cannot come in between
    interrupted, failure = False, ""
    began = time.perf_counter()
    course = fit(setup.model, criterion, optimizer, setup.train_batches, setup.test_batches, setup.settings.epochs)
    try:
        with np.errstate(all="ignore"):  # a non-finite loss reports divergence
            for epoch in course:
                epochs.append(epoch)
                reached = len(epochs), setup.model.state_dict()
                if on_epoch is not None:
                    on_epoch(epoch)
    except (KeyboardInterrupt, NonFiniteLossError) as error:
        if not reached[0]:
            raise
        interrupted, failure = isinstance(error, KeyboardInterrupt), str(error)
    seconds = time.perf_counter() - began
    done, weights = reached
    result = Result(
        setup.settings, epochs[:done], setup.model, setup.folder, classification, seconds, interrupted, failure
    )
    return result, weights


def describe_score(score: float, classification: bool) -> str:
    """Return a score as text."""
    return f"accuracy {100 * score:.2f} %" if classification else f"R² {score:.4f}"


def require_extra() -> None:
    """Import the packages that a run needs. Raises ModuleNotFoundError, which says what to type, if some are missing.

    Importing them now keeps imports out of the part of a run that Ctrl-C ends cleanly. matplotlib is not imported: a
    broken installation of it costs only the plot.
    """
    missing = [package for module, package in EXTRA_MODULES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f'training needs {", ".join(missing)} from the extra "train" of {DISTRIBUTION}; {to_install("train")}'
        )
    with delayed_interrupts():
        for module in ("safetensors.numpy", "sklearn.datasets", "threadpoolctl", "tomli_w"):
            importlib.import_module(module)


def resolve_device(settings: Settings) -> tuple[Settings, str]:
    """Return the settings with the full name of an existing device, and one line that says why it was chosen.

    Raises SettingsError, with the diagnosis, for a device that cannot be used.
    """
    if settings.device == "auto":
        device, reason = auto_device()
        return replace(settings, device=str(device)), reason
    try:
        return replace(settings, device=str(gf.get_backend(settings.device).device)), "as requested"
    except (ValueError, gf.DeviceUnavailableError) as error:
        raise SettingsError(str(error)) from None


def auto_device() -> tuple[gf.Device, str]:
    """Return the device that `gradflow.choose_device` chooses, and why. Raises SettingsError if it cannot be used."""
    try:
        device, reason = gf.choose_device()
        gf.get_backend(device)
    except (ValueError, gf.DeviceUnavailableError) as error:
        raise SettingsError(str(error)) from None
    return device, reason


def _prepare(settings: Settings, reason: str, folder: Path) -> tuple[Setup, gf.optim.Optimizer]:
    dataset = load(settings.dataset)
    split = dataset.split(settings.seed, validation=0)
    gf.manual_seed(settings.seed)
    shuffles = gf.Generator(settings.seed + _SHUFFLE_STREAM)
    device = settings.device
    assert split.test is not None
    train = Batches(split.train.inputs, split.train.targets, settings.batch_size, shuffles, device=device)
    test = Batches(split.test.inputs, split.test.targets, TEST_BATCH, shuffle=False, device=device)
    sizes = [dataset.inputs.shape[1], *settings.hidden, dataset.outputs]
    try:
        if device == "cpu" and _least_memory(sizes, min(settings.batch_size, train.samples)) > _physical_memory():
            raise MemoryError
        model = gf.nn.MLP(sizes, settings.activation, settings.dropout, device=device)
        optimizer = _make_optimizer(settings, model, steps=settings.epochs * len(train))
    except MemoryError:
        widths = ", ".join(map(str, settings.hidden))
        raise SettingsError(f"there is not enough memory on {device} for hidden layers of {widths}") from None
    return Setup(settings, reason, dataset, train, test, model, folder), optimizer


def _least_memory(sizes: Sequence[int], batch: int) -> int:
    """Return a lower bound on the bytes that training takes: weights, gradients, moments, a batch's hidden values."""
    return 4 * (3 * sum(n * m for n, m in itertools.pairwise(sizes)) + batch * sum(sizes))


def _physical_memory() -> float:
    """Return the bytes of memory of this machine, infinity if unknown.

    This is checked in advance, because systems grant more memory than they have and kill the process that uses it.
    """
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # on Windows, which grants only what it has
        return math.inf


def _thread_limit(setup: Setup) -> contextlib.AbstractContextManager[Any]:
    """Return a context with one BLAS thread if the model is on the CPU and its products are small.

    A second thread does not make these faster, and on a busy machine waiting for it made a run ten times as long.
    """
    largest = max(n * m for n, m in itertools.pairwise(setup.model.sizes)) * setup.settings.batch_size
    if not setup.settings.device.startswith("cpu") or largest > _SMALL_PRODUCT:
        return contextlib.nullcontext()
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    limit: contextlib.AbstractContextManager[Any] = threadpool_limits(limits=1, user_api="blas")
    return limit


def _make_optimizer(settings: Settings, model: gf.nn.Module, steps: int) -> gf.optim.Optimizer:
    kinds: dict[str, Callable[..., gf.optim.Optimizer]] = {
        "adamw": gf.optim.AdamW,
        "adam": gf.optim.Adam,
        "sgd": gf.optim.SGD,
        "rmsprop": gf.optim.RMSprop,
    }
    courses: dict[str, Callable[..., Any]] = {
        "constant": gf.optim.schedules.constant,
        "cosine": partial(gf.optim.schedules.cosine, steps=steps),
    }
    options: dict[str, Any] = {"lr": courses[settings.schedule](settings.lr), "weight_decay": settings.weight_decay}
    if settings.momentum is not None:
        options["momentum"] = settings.momentum
    return kinds[settings.optimizer](model.parameters(), **options)


def _save(folder: RunFolder, result: Result, weights: dict[str, gf.Tensor]) -> str:
    """Write the files of a run. Return why curves.png could not be drawn, on one line; "" if it was."""
    settings, classification = result.settings, result.classification
    reached: dict[str, Any] = dict(zip(column_names(classification), result.epochs[-1], strict=True))
    if result.interrupted or result.failure:
        reached["stopped"] = result.failure or "interrupted"
    device = gf.get_backend(settings.device).device
    folder.write("weights.safetensors", weights_safetensors(weights))
    folder.write("metrics.csv", metrics_csv(result.epochs, classification))
    folder.write("config.toml", config_toml(settings, environment(device), reached))
    title = f"{settings.dataset}, seed {settings.seed}: test {result.score}"
    try:
        picture = curves_png(result.epochs, title, classification)
    except Exception as error:  # such as from a broken matplotlibrc: the run matters more than its plot
        return one_line(error)
    folder.write("curves.png", picture)
    return ""
