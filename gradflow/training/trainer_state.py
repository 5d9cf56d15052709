"""The saved state of a trainer: collecting it, checking one that is loaded, and going on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gradflow.optim import GradScaler
from gradflow.training.checks import generator_places, generators_of
from gradflow.training.objective import describe_loss, in_words
from gradflow.training.progress import Progress, damaged, generator_state, listed, names_of, part, weights_of

if TYPE_CHECKING:
    from gradflow.training.trainer import Trainer


def collect(trainer: Trainer) -> dict[str, Any]:
    """The state as a tree for `gradflow.save`, in which nothing changes later."""
    return {
        "run": run_of(trainer),
        "model": trainer.model.state_dict(),
        "trainable": [name for name, p in trainer.model.named_parameters() if p.requires_grad],
        "training": [name for name, module in trainer.model.named_modules() if module.training],
        "optimizer": trainer.optimizer.state_dict(),
        "average": None if trainer._average is None else trainer._average.state_dict(),
        "scaler": None if trainer.scaler is None else trainer.scaler.state_dict(),
        "generators": [[g.key, g.counter] for g in _generators(trainer)],
        "progress": trainer._progress.tree(),
        "watch": None if trainer._watch is None else trainer._watch.tree(),
    }


def restore(trainer: Trainer, state: Any) -> None:
    """Go on from a state that `collect` returned. Checks everything before anything changes; raises ValueError."""
    if not isinstance(state, Mapping) or not isinstance(state.get("run"), dict):
        raise ValueError("this is not the state of a trainer: it is what Trainer.save writes to a file")
    check_same(state["run"], run_of(trainer), "the saved state is of another run: {} was {}, and is {} here")
    own = trainer.model._state()
    weights = weights_of("model", state.get("model"), own)
    parameters, modules = dict(trainer.model.named_parameters()), dict(trainer.model.named_modules())
    trainable, training = names_of(state, "trainable", parameters), names_of(state, "training", modules)
    if not trainable:  # no step would be possible
        raise damaged("trainable", trainable)
    generators = _generators(trainer)
    states = [
        generator_state(*each) if isinstance(each, list) and len(each) == 2 else generator_state(each, 0)
        for each in listed(state, "generators")
    ]
    if len(states) != len(generators):
        raise damaged("generators", state["generators"])
    figures = trainer._on_train
    progress = Progress.from_tree(
        part(state, "progress"), trainer.train.device, own, len(figures.sizes), trainer.accumulate, figures.partial,
        figures.new_tally,
    )  # fmt: skip
    watch, watched = trainer._watch, None if state.get("watch") is None else part(state, "watch")
    if watched is not None and watch is None:  # the run was watched, so it is from here on
        watch = trainer._new_watch()
    load_watch = None
    if watch is not None:  # of a run that was not watched, nothing is known yet
        load_watch = watch.clear if watched is None else watch.loader(watched)
    average = trainer._average
    optimizer_state = part(state, "optimizer")
    average_state = {} if average is None else part(state, "average")
    try:
        load_optimizer = trainer.optimizer.state_loader(optimizer_state, finite=False)
        load_average = None if average is None else average.state_loader(average_state)
        scaler = None if trainer.scaler is None else GradScaler()
        if scaler is not None:
            scaler.load_state_dict(part(state, "scaler"))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"the saved state is damaged: {error}") from error

    was_torn, trainer._progress.torn = trainer._progress.torn, True
    try:
        trainer.model.load_state_dict(weights)
    except ValueError:  # different values of a parameter that has several names: nothing has changed
        trainer._progress.torn = was_torn
        raise
    load_optimizer()
    if load_average is not None:
        load_average()
    if trainer.scaler is not None and scaler is not None:
        trainer.scaler.load_state_dict(scaler.state_dict())
    if load_watch is not None:
        load_watch()
    for name, parameter in parameters.items():
        if parameter.requires_grad != (name in trainable):
            parameter.requires_grad_(name in trainable)
    for name, module in modules.items():
        if module.training != (name in training):
            module.training = name in training
    for generator, (key, counter) in zip(generators, states, strict=True):
        generator.key, generator.counter = key, counter
    trainer._go_on_from(progress, watch)


def _generators(trainer: Trainer) -> Any:
    return generators_of(trainer.model, trainer.train)


def run_of(trainer: Trainer) -> dict[str, Any]:
    """What two runs have in common if one goes on with the state of the other."""
    model, groups, train, validation = trainer.model, trainer.optimizer.param_groups, trainer.train, trainer.validation
    places = [*map(id, generator_places(model, train))]
    return {
        "model": {name: f"{x.dtype.name} {list(x.shape)}" for name, x in model._state().items()},
        "layer": {name: in_words(f"{type(m).__name__}({m.extra_repr()})") for name, m in model.named_modules()},
        "loss": describe_loss(trainer.loss),
        "optimizer": type(trainer.optimizer).__name__,
        "parameter groups": [len(group["params"]) for group in groups],
        "learning rate": [in_words(repr(group["lr"])) if callable(group["lr"]) else "number" for group in groups],
        "schedule": None if trainer.schedule is None else in_words(repr(trainer.schedule)),
        "metrics": list(trainer.metrics),
        "monitor": trainer.monitor,
        "clip_norm": trainer.clip_norm,
        "accumulate": trainer.accumulate,
        "average": None if trainer._average is None else trainer._average.decay,
        "class_weight": trainer.class_weights,
        "autocast": trainer.autocast,
        "batch_size": train.batch_size,
        "shuffle": train.shuffle,
        "drop_last": train.drop_last,
        "sharing of random generators": [places.index(each) for each in places],
        "training data": train.fingerprint(),
        "validation data": None if validation is None else validation.fingerprint(),
        "validation batch_size": None if validation is None else validation.batch_size,
    }


def check_same(saved: dict[str, Any], own: dict[str, Any], message: str) -> None:
    """Raise ValueError for the first difference between two runs: the message with its name and both values."""
    for name, value in own.items():
        if saved.get(name) != value:
            before = saved.get(name)
            if isinstance(before, dict) and isinstance(value, dict):
                keys = [k for k in [*before, *value] if before.get(k) != value.get(k)]
                name, before, value = f"{name}: {keys[0]}", before.get(keys[0]), value.get(keys[0])
            raise ValueError(message.format(name, repr(before), repr(value)))
