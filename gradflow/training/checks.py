"""Checks of a trainer's arguments, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any

import gradflow as gf
from gradflow.data import Batches
from gradflow.dtypes import as_dtype
from gradflow.nn.embedding import index_error
from gradflow.optim.hyperparameters import checked_number
from gradflow.random.generator import Generator, default_generator
from gradflow.text import did_you_mean
from gradflow.training.metrics import METRICS, known_loss
from gradflow.training.objective import Loss


def check_parts(model: Any, optimizer: Any, train: Any, validation: Any, accumulate: Any) -> None:
    """Raise TypeError or ValueError for parts of a trainer that do not fit together, or data with a NaN."""
    if not isinstance(model, gf.nn.Module):
        raise TypeError(f"the model is a gradflow.nn.Module; got {_a(model)}")
    if not isinstance(optimizer, gf.optim.Optimizer):
        raise TypeError(f"the optimizer is a gradflow.optim.Optimizer; got {_a(optimizer)}")
    check_batches("train", train)
    if validation is not None:
        check_batches("validation", validation)
    if isinstance(accumulate, bool) or not hasattr(accumulate, "__index__") or accumulate < 1:
        raise ValueError(f"accumulate is a number of batches, an integer of at least 1; got {accumulate!r}")
    own = {id(p) for p in model.parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if id(p) not in own:
                raise ValueError(
                    f"the optimizer has a parameter, of shape {p.shape}, that is not the model's: make it with "
                    "model.parameters()"
                )
    for p in model.parameters():
        for batches in (train, validation):
            if batches is not None and p.device != batches.device:
                raise gf.DeviceMismatchError(
                    f"the model is on {p.device}, but its batches are on {batches.device}: pass "
                    f"device={str(p.device)!r} to Batches, or move the model before making its optimizer"
                )


def check_schedule(schedule: Any, optimizer: gf.optim.Optimizer) -> None:
    """Raise TypeError or ValueError for a schedule of epochs that is none, or that would replace one of steps."""
    if schedule is None:
        return
    if not callable(schedule):
        raise TypeError(
            f"schedule is a function of the figures so far, such as schedules.plateau(0.1); got {schedule!r}"
        )
    if any(callable(group["lr"]) for group in optimizer.param_groups):
        raise ValueError(
            "the optimizer has a schedule of steps as its lr: give it a number, which the trainer's schedule replaces"
        )


def norm_of(clip_norm: Any) -> float | None:
    """The largest norm as a float, or None. Raises ValueError unless it is a finite number above 0."""
    norm = None if clip_norm is None else checked_number("clip_norm", clip_norm)
    if norm == 0.0:
        raise ValueError(f"clip_norm must be above 0; got {clip_norm!r}")
    return norm


def count(name: str, n: Any) -> int:
    """A number of epochs or steps. Raises ValueError unless it is an integer of at least 0."""
    if isinstance(n, bool) or not hasattr(n, "__index__") or n < 0:
        raise ValueError(f"{name} takes a number of {name}, an integer of at least 0; got {n!r}")
    return index(n)


def check_batches(name: str, batches: Any) -> None:
    """Raise TypeError unless these are `Batches`, ValueError for the first number that is not finite."""
    if not isinstance(batches, Batches):
        raise TypeError(
            f"{name} must be gradflow.data.Batches, such as Batches(inputs, targets, 64); got {_a(batches)}"
        )
    batches.check_finite()


def _a(x: Any) -> str:
    return "None" if x is None else f"a {type(x).__name__}"


def check_monitor(monitor: Any, names: Sequence[str]) -> None:
    """Raise ValueError unless "loss" or one of the metrics is monitored."""
    if monitor not in ("loss", *names):
        hint = f"; there are loss, {', '.join(METRICS)}"
        if monitor in METRICS:
            hint = f"; add it to metrics=[{monitor!r}, ...]"
        elif isinstance(monitor, str):
            hint = did_you_mean(monitor, ("loss", *METRICS)) + hint
        raise ValueError(f"monitor is 'loss' or one of the metrics {list(names)}; got {monitor!r}{hint}")


def check_labels(loss: Loss, outputs: gf.Tensor, batches: Batches) -> None:
    """Raise ValueError for labels outside the outputs, or binary targets outside [0, 1]. Reads the range of targets.

    Integer targets are labels if the loss is one of gradflow's for labels, or if the outputs have another axis, of
    several classes.
    """
    targets, shape, (name, kind) = batches.targets, outputs.shape, known_loss(loss)
    dtype = as_dtype(targets.dtype)
    if kind == "binary" and dtype.kind != "bool":
        lowest, highest = _range(targets)
        if not -_ROUNDING <= lowest <= highest <= 1 + _ROUNDING:
            raise ValueError(f"the targets of {name} must be in [0, 1]; got {lowest:g} to {highest:g}")
    if dtype.kind not in ("int", "uint") or not shape:
        return
    if not kind.startswith("classes") and (len(shape) != len(targets.shape) + 1 or shape[1] < 2):
        return
    lowest, highest = _range(targets)
    classes = outputs.shape[min(1, outputs.ndim - 1)]
    if not 0 <= lowest <= highest < classes:
        advice = ": give samples that do not count a label in this range and the weight 0" if lowest < 0 else ""
        raise ValueError(f"labels for {classes} outputs must be in [0, {classes}); got {lowest} to {highest}{advice}")


def check_embedded(module: gf.nn.Module, inputs: tuple[gf.Tensor, ...], _output: gf.Tensor) -> None:
    """Raise IndexError for indices that an `Embedding` was given and lacks. A forward hook; reads their range."""
    lowest, highest = _range(inputs[0])
    if not 0 <= lowest <= highest < module.num_embeddings:
        raise index_error(module.num_embeddings, lowest if lowest < 0 else highest)


_ROUNDING = 1e-6


def _range(x: Any) -> tuple[Any, Any]:
    """The lowest and the highest number."""
    if isinstance(x, gf.Tensor):
        lowest, highest = gf.stack([gf.min(x), gf.max(x)]).tolist()
        return lowest, highest
    return x.min().item(), x.max().item()


def generators_of(model: gf.nn.Module, *batches: Batches) -> Sequence[Generator]:
    """The generators that training draws from: those of `generator_places`, each once."""
    return list({id(g): g for g in generator_places(model, *batches)}.values())


def generator_places(model: gf.nn.Module, *batches: Batches) -> Sequence[Generator]:
    """The default generator, those of the batches, and those that are attributes of modules, also in a list or dict."""
    found = [default_generator, *(b.generator or default_generator for b in batches)]
    for module in model.modules():
        for x in vars(module).values():
            found += [g for g in _parts(x) if isinstance(g, Generator)]
    return found


def _parts(x: Any) -> Iterable[Any]:
    return x.values() if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else (x,)
