"""Checks of a trainer's arguments, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import gradflow as gf
from gradflow.data import Batches
from gradflow.dtypes import as_dtype
from gradflow.random.generator import Generator, default_generator
from gradflow.text import did_you_mean
from gradflow.training.metrics import METRICS
from gradflow.training.objective import Loss, adds_up, takes_labels


def check_parts(
    model: Any, loss: Loss, optimizer: Any, train: Any, validation: Any, clip_norm: Any, accumulate: Any
) -> None:
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
    if accumulate > 1 and train.weights is None and not adds_up(loss):
        raise ValueError(
            "accumulate needs a loss whose mean over a union of batches is the mean of theirs; one with `weight` "
            "divides by the weights of its batch: pass class_weight to the Trainer instead"
        )
    if clip_norm is not None and not (isinstance(clip_norm, (int, float)) and 0 < clip_norm < math.inf):
        raise ValueError(f"clip_norm is a finite number above 0, or None; got {clip_norm!r}")
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


def check_batches(name: str, batches: Any) -> None:
    """Raise TypeError unless these are `Batches`, ValueError for the first number that is not finite."""
    if not isinstance(batches, Batches):
        raise TypeError(
            f"{name} must be gradflow.data.Batches, such as Batches(inputs, targets, 64); got {_a(batches)}"
        )
    batches.check_finite()


def _a(x: Any) -> str:
    return "None" if x is None else f"a {type(x).__name__}"


def metric_names(metrics: Any, watch: Any) -> tuple[str, ...]:
    """The names of metrics, each once. Raises TypeError for a string, ValueError for a `watch` that is not in them."""
    if isinstance(metrics, str):
        raise TypeError(f"metrics is a list of names; got the string {metrics!r}: write [{metrics!r}]")
    names = tuple(dict.fromkeys(metrics))
    if watch not in ("loss", *names):
        hint = did_you_mean(str(watch), ("loss", *METRICS))
        known = f"add it to metrics=[{watch!r}, ...]" if watch in METRICS else f"there are loss, {', '.join(METRICS)}"
        raise ValueError(f"watch is 'loss' or one of the metrics {list(names)}; got {watch!r}{hint}; {known}")
    return names


def check_labels(loss: Loss, outputs: gf.Tensor, batches: Batches) -> None:
    """Raise ValueError for labels outside the outputs, if the targets are labels. Reads their range.

    They are if the loss is one of gradflow's for labels, or if the outputs have another axis, of several classes.
    """
    targets, shape = batches.targets, outputs.shape
    if as_dtype(targets.dtype).kind not in ("int", "uint") or not shape:
        return
    if not takes_labels(loss) and (len(shape) != len(targets.shape) + 1 or shape[1] < 2):
        return
    if isinstance(targets, gf.Tensor):
        lowest, highest = gf.stack([gf.min(targets), gf.max(targets)]).tolist()
    else:
        lowest, highest = int(targets.min()), int(targets.max())
    classes = outputs.shape[min(1, outputs.ndim - 1)]
    if not 0 <= lowest <= highest < classes:
        raise ValueError(f"labels for {classes} outputs must be in [0, {classes}); got {lowest} to {highest}")


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
