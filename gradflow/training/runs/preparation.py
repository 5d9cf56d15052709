"""What a run needs before it starts: packages, a device, the data, and models with their trainers."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import gradflow as gf
from gradflow.data import DATASETS, Batches, Part, Split
from gradflow.data.splits import split as split_data
from gradflow.distributed import Communicator
from gradflow.environment import DISTRIBUTION, delayed_interrupts, physical_memory, to_install
from gradflow.training.ranks import check_alike
from gradflow.training.runs.inputs import Inputs, inputs_of
from gradflow.training.runs.settings import OPTIMIZER_CLASSES, PLACES, Settings, SettingsError
from gradflow.training.runs.sources import Data, load_data
from gradflow.training.trainer import Trainer

EXTRA_MODULES = {
    "matplotlib": "matplotlib",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "tomli_w": "tomli-w",
    "tqdm": "tqdm",
}
"""What the extra `train` installs: the names to import, each with the name of its package."""

VALIDATION_BATCH = 4096
"""The batch size for the validation samples."""

_SHUFFLE_STREAM = 1 << 64  # added to the seed: shuffles use other keys than weights and masks
_MEMBER_STREAM = 1 << 32  # added for each member of an ensemble: seeds are below


class DeviceError(SettingsError):
    """The device of the settings cannot be used here; the message says why."""


@dataclass(frozen=True)
class Plan:
    """What a run trains, on which data, on which device.

    settings: with the device that was chosen, and absolute paths. reason: why it was chosen.
    dataset, split: the data, and its parts. data_hash: of all of it, in hex digits.
    notes: what is in the data and may be meant otherwise than it is taken.
    communicator: of the processes that train together, or None.
    """

    settings: Settings
    reason: str
    dataset: Data
    split: Split
    data_hash: str
    notes: tuple[str, ...] = ()
    communicator: Communicator | None = None

    @cached_property
    def inputs(self) -> Inputs:
        """What stands between the data and the network."""
        return inputs_of(self.split.input_scale)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The widths of the layers of the perceptron, from its inputs to its outputs."""
        return (self.inputs.width, *self.settings.hidden, self.dataset.outputs)

    @property
    def metric(self) -> str:
        """The name of the metric that is shown."""
        return "accuracy" if self.dataset.is_classification else "r2"


def require_extra() -> None:
    """Import the packages that a run needs. Raises ModuleNotFoundError, which says what to type, if some are missing.

    Importing them now keeps imports out of the part of a run that signals end cleanly. matplotlib is not imported: a
    broken installation of it costs only the plot.
    """
    missing = [package for module, package in EXTRA_MODULES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f'training needs {", ".join(missing)} from the extra "train" of {DISTRIBUTION}; {to_install("train")}'
        )
    with delayed_interrupts():
        for module in ("safetensors.numpy", "sklearn.datasets", "sklearn.model_selection", "threadpoolctl", "tomli_w"):
            importlib.import_module(module)


def resolve_device(settings: Settings, local_rank: int | None = None) -> tuple[Settings, str]:
    """Return the settings with the full name of an existing device, and one line that says why it was chosen.

    local_rank: the number of this process if several on this machine train together (default None): each has the
        device of this number, unless that is the CPU.

    Raises DeviceError, with the diagnosis, for a device that cannot be used.
    """
    name, reason = settings.device, "as requested"
    if name == "auto":
        device, reason = auto_device()
        name = str(device)
    kind = name.partition(":")[0]
    if local_rank is not None and kind != "cpu":
        name = f"{kind}:{local_rank}"
    try:
        return replace(settings, device=str(gf.get_backend(name).device)), reason
    except (ValueError, gf.DeviceUnavailableError) as error:
        raise DeviceError(str(error)) from None


def auto_device() -> tuple[gf.Device, str]:
    """Return the device that `gradflow.choose_device` chooses, and why. Raises DeviceError if it cannot be used."""
    try:
        device, reason = gf.choose_device()
        gf.get_backend(device)
    except (ValueError, gf.DeviceUnavailableError) as error:
        raise DeviceError(str(error)) from None
    return device, reason


def with_absolute_paths(settings: Settings) -> Settings:
    """Return the settings with absolute paths of the data, so that they mean the same from every folder."""
    paths: dict[str, Any] = {name: getattr(settings, name) for name in ("dataset", "test_file", "validation_file")}
    paths = {name: str(Path(p).absolute()) for name, p in paths.items() if p is not None and p not in DATASETS}
    return replace(settings, **paths)


def plan(settings: Settings, communicator: Communicator | None = None) -> Plan:
    """Return the plan of a run: choose its device, load its data and split it.

    communicator: of the processes that train together (default None). They compare their settings and data.

    Raises SettingsError for a device that cannot be used here or lacks the dtype of `autocast`, and like `load` and
    `Dataset.split`.
    """
    local_rank = communicator.local_rank if communicator is not None and communicator.local_size > 1 else None
    here, reason = resolve_device(settings, local_rank)
    if settings.autocast is not None:
        try:
            gf.get_backend(here.device).native_dtype(settings.autocast)
        except TypeError as error:
            raise SettingsError(f"autocast: {error}") from None
    settings, dataset, own = load_data(settings)
    settings = replace(settings, device=here.device)
    if settings.class_weight is not None and not dataset.is_classification:
        raise SettingsError(f"class_weight needs classes; the targets of {dataset.name} are values: a regression")
    assert settings.validation is not None  # chosen by `Settings`
    split = split_data(
        dataset, settings.seed, settings.test, settings.validation, own.get("test"), own.get("validation")
    )
    hashes = [dataset.fingerprint, *(f"{name} {data.fingerprint}" for name, data in own.items())]
    data_hash = hashes[0] if not own else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
    notes = [note for data in (dataset, *own.values()) for note in data.notes]
    notes += inputs_of(split.input_scale).notes
    notes += [
        f"{data.name} is the data that is trained on: figures on it are not those of unseen data"
        for data in own.values()
        if data.fingerprint == dataset.fingerprint
    ]
    if communicator is not None:
        own = {name: value for name, value in settings.to_dict().items() if name not in PLACES}
        try:
            check_alike(communicator, {"the setting": own, "the hash of the data": data_hash})
        except ValueError as error:
            raise SettingsError(str(error)) from None
    once = tuple(dict.fromkeys(notes))  # a file that is given twice has the same notes twice
    return Plan(with_absolute_paths(settings), reason, dataset, split, data_hash, once, communicator)


def make_trainer(plan: Plan, member: int) -> Trainer:
    """Return the trainer of a new model, that of the ensemble's member with this number, from 0.

    Raises SettingsError if there is not enough memory.
    """
    settings, split, device = plan.settings, plan.split, plan.settings.device
    seed = settings.seed + member * _MEMBER_STREAM
    shuffles, draws = gf.Generator(seed + _SHUFFLE_STREAM), gf.Generator(seed)

    def batches(part: Part, size: int, generator: gf.Generator | None) -> Batches:
        shuffle = generator is not None
        return Batches(part.inputs, part.targets, size, generator, shuffle, device=device, weights=part.weights)

    train = batches(split.train, settings.batch_size, shuffles)
    validation = None if split.validation is None else batches(split.validation, VALIDATION_BATCH, None)
    try:
        if device == "cpu" and _least_memory(plan.sizes, min(settings.batch_size, train.samples)) > physical_memory():
            raise MemoryError
        model = plan.inputs.model(plan.sizes, settings.activation, settings.dropout, device=device, generator=draws)
        optimizer = make_optimizer(settings, model, settings.epochs * steps_per_epoch(settings, train))
    except MemoryError:
        widths = ", ".join(map(str, settings.hidden))
        raise SettingsError(f"there is not enough memory on {device} for hidden layers of {widths}") from None
    return Trainer(
        model,
        gf.cross_entropy if plan.dataset.is_classification else gf.mse_loss,
        optimizer,
        train,
        validation,
        metrics=[plan.metric],
        clip_norm=settings.clip_norm,
        accumulate=settings.accumulate,
        average=settings.average or None,
        class_weight=settings.class_weight,
        autocast=settings.autocast,
        schedule=plateau_of(settings),
        communicator=plan.communicator,
    )


def steps_per_epoch(settings: Settings, train: Batches) -> int:
    """Return the number of optimizer steps in an epoch."""
    return -(-len(train) // settings.accumulate)


def _least_memory(sizes: tuple[int, ...], batch: int) -> int:
    """Return a lower bound on the bytes that training takes: weights, gradients, moments, a batch's hidden values."""
    return 4 * (3 * sum(n * m for n, m in itertools.pairwise(sizes)) + batch * sum(sizes))


def plateau_of(settings: Settings) -> gf.optim.schedules.plateau | None:
    """Return the schedule of a trainer, which is a function of the losses; None if the optimizer has one of steps."""
    lr: Any = settings.lr
    return gf.optim.schedules.plateau(lr, factor=0.5, patience=4) if settings.schedule == "plateau" else None


def make_optimizer(settings: Settings, model: gf.nn.Module, steps: int) -> gf.optim.Optimizer:
    """Return the optimizer of a model that is trained for so many steps."""
    courses: dict[str, Callable[..., Any]] = {
        "constant": gf.optim.schedules.constant,
        "cosine": partial(gf.optim.schedules.cosine, steps=steps),
        "plateau": float,  # and `Trainer` has the schedule
    }
    options: dict[str, Any] = {"lr": courses[settings.schedule](settings.lr), "weight_decay": settings.weight_decay}
    if settings.momentum is not None:
        options["momentum"] = settings.momentum
    return OPTIMIZER_CLASSES[settings.optimizer](model.parameters(), **options)
