"""Where training stands: what a trainer changes besides weights and optimizer, and its form in a saved state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import gradflow as gf
from gradflow.training.epoch import Epoch
from gradflow.training.evaluation import Tally
from gradflow.training.metrics import better


@dataclass
class Progress:
    """Where training stands.

    step: the optimizer steps so far. history: the finished epochs.
    best: the best of them, or None; best_weights: the state dict of the model after it.

    Of the epoch that is running:
    batches: how many are done. tally: their results. seconds: the time so far.
    order: the key and counter of the generator of the order before it drew the order, or None before that.
    applied: the steps of the optimizer before the epoch: fewer than `step` says if some were skipped.

    Of what runs now, and not saved:
    new_tally: makes the tally of an epoch.
    torn: whether weights may be half changed. since: the time from which on nothing is counted in `seconds` yet.
    """

    new_tally: Callable[..., Tally] = Tally
    step: int = 0
    history: list[Epoch] = field(default_factory=list)
    best: Epoch | None = None
    best_weights: dict[str, gf.Tensor] | None = None
    batches: int = 0
    tally: Tally = field(init=False)
    seconds: float = 0.0
    order: tuple[int, int] | None = None
    applied: int = 0
    torn: bool = False
    since: float = 0.0

    def __post_init__(self) -> None:
        self.tally = self.new_tally()

    def count_time(self) -> None:
        """Count the time until now."""
        now = time.perf_counter()
        self.seconds, self.since = self.seconds + now - self.since, now

    def is_best(self, monitor: str, figures: Mapping[str, float]) -> bool:
        """Whether the monitored figure is better than that of the best epoch so far.

        figures: those of the validation if there is one, else of the training.
        """
        best = self.best
        if best is None:
            return not math.isnan(figures[monitor])
        return better(monitor) * (figures[monitor] - best.figure(monitor)) > 0.0

    def finish_epoch(self, epoch: Epoch, is_best: bool, weights: dict[str, gf.Tensor] | None) -> None:
        """Add a finished epoch with the weights of the best, and be before the first batch of the next one."""
        self.history.append(epoch)
        if is_best:
            self.best, self.best_weights = epoch, weights
        self.batches, self.tally, self.seconds, self.order = 0, self.new_tally(), 0.0, None

    def tree(self) -> dict[str, Any]:
        """A tree for `gradflow.save`."""
        losses, partials = self.tally.results()
        return {
            "step": self.step,
            "history": [asdict(epoch) for epoch in self.history],
            "best": None if self.best is None else self.best.epoch,
            "best_weights": self.best_weights,
            "batches": self.batches,
            "losses": losses,
            "partials": list(partials),
            "seconds": self.seconds,
            "order": None if self.order is None else list(self.order),
            "applied": self.applied,
        }

    @classmethod
    def from_tree(
        cls,
        tree: Mapping[str, Any],
        device: gf.Device,
        weights: Mapping[str, gf.Tensor],
        batches: int,
        accumulate: int,
        partials: Sequence[gf.Tensor],
        new_tally: Callable[..., Tally] = Tally,
    ) -> Progress:
        """What `tree` returned, on a device. The other arguments are what it must fit.

        weights: the state dict of the model. batches: those of an epoch. partials: what the metrics need of a batch.
        new_tally: makes a tally that has some results already.

        Raises ValueError for what it cannot have returned.
        """
        done = count(tree, "batches")
        if done > batches or (done % accumulate and done != batches):
            raise damaged("batches", done)
        tally = new_tally()
        if done:
            losses = tensor_of("losses", tree.get("losses"), (done,), ("float32", "float64"))
            given = listed(tree, "partials")
            if len(given) != len(partials):
                raise damaged("partials", given)
            for x, like in zip(given, partials, strict=True):
                rows = x.shape[:1] if isinstance(x, gf.Tensor) else ()
                tensor_of("partials", x, (*rows, *like.shape[1:]), (like.dtype.name,))
            tally = new_tally(losses.to(device=device), tuple(x.to(device=device) for x in given))
        history = history_of(tree)
        best, kept = tree.get("best"), None
        if best is not None:
            if type(best) is not int or not 1 <= best <= len(history):
                raise damaged("best", best)
            kept = weights_of("best_weights", tree.get("best_weights"), weights)
            kept = {name: value.to(device=device) for name, value in kept.items()}
        order = tree.get("order")
        if order is not None:
            order = generator_state(*order) if isinstance(order, list) and len(order) == 2 else generator_state(0, -1)
        elif done:
            raise damaged("order", order)
        seconds = tree.get("seconds")
        if type(seconds) is not float or not seconds >= 0.0:
            raise damaged("seconds", seconds)
        step, applied = count(tree, "step"), count({"applied": 0, **tree}, "applied")
        made = cls(new_tally, step, history, history[best - 1] if best else None, kept, done, seconds, order, applied)
        made.tally = tally
        return made


_KINDS: dict[str, type | tuple[type, ...]] = {"int": int, "float": float, "float | None": (float, type(None))}


def history_of(tree: Mapping[str, Any]) -> list[Epoch]:
    """The epochs of "history", a list of what `asdict` made of each. Raises ValueError for any other."""
    return [_epoch(entry, i) for i, entry in enumerate(listed(tree, "history"), 1)]


def _epoch(entry: Any, number: int) -> Epoch:
    """The epoch that `asdict` made an entry of."""
    names = [f.name for f in fields(Epoch)]
    if isinstance(entry, dict):
        entry = {"skipped": 0, **entry}  # which earlier versions did not save
    if not isinstance(entry, dict) or sorted(entry) != sorted(names) or entry["epoch"] != number:
        raise damaged("history", entry)
    for f in fields(Epoch):
        value = entry[f.name]
        if f.name.endswith("metrics"):
            fits = isinstance(value, dict) and all(
                isinstance(name, str) and isinstance(x, float) for name, x in value.items()
            )
        else:
            fits = isinstance(value, _KINDS[str(f.type)]) and not isinstance(value, bool)
        if not fits:
            raise damaged(f"{f.name} of epoch {number}", value)
    return Epoch(**entry)


# ---------------------------------------------------------------------- checks of a saved state


def damaged(name: str, value: Any) -> ValueError:
    """The error for a part of a saved state that no trainer saved."""
    text = repr(value)
    shown = text if len(text) < 80 else f"{text[:76]} ..."
    return ValueError(f"the saved state is damaged: its {name} cannot be {shown}")


def count(tree: Mapping[str, Any], name: str) -> int:
    """The integer of at least 0 of this name."""
    value = tree.get(name)
    if type(value) is not int or value < 0:
        raise damaged(name, value)
    return value


def listed(tree: Mapping[str, Any], name: str) -> list[Any]:
    """The list of this name."""
    value = tree.get(name)
    if not isinstance(value, list):
        raise damaged(name, value)
    return value


def names_of(tree: Mapping[str, Any], name: str, known: Mapping[str, Any]) -> list[str]:
    """The list of this name, which has some of the known names."""
    values = listed(tree, name)
    for value in values:
        if not isinstance(value, str) or value not in known:
            raise damaged(name, value)
    return values


def part(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The dict of this name."""
    value = tree.get(name)
    if not isinstance(value, dict):
        raise damaged(name, value)
    return value


def tensor_of(name: str, value: Any, shape: tuple[int, ...], dtypes: Sequence[str]) -> gf.Tensor:
    """The value, which must be a tensor of the shape and of one of the dtypes."""
    if not isinstance(value, gf.Tensor):
        raise damaged(name, value)
    if value.shape != shape or value.dtype.name not in dtypes:
        raise damaged(name, f"{value.dtype.name} of shape {value.shape} (expected {dtypes[0]} of shape {shape})")
    return value


def weights_of(name: str, values: Any, weights: Mapping[str, gf.Tensor]) -> dict[str, gf.Tensor]:
    """The values, which must be those of all weights of a model, of the same shapes and dtypes."""
    if not isinstance(values, dict) or sorted(map(str, values)) != sorted(weights):
        raise damaged(name, list(values) if isinstance(values, dict) else values)
    return {k: tensor_of(f"{k} of {name}", values[k], x.shape, (x.dtype.name,)) for k, x in weights.items()}


def generator_state(key: Any, counter: Any) -> tuple[int, int]:
    """A key and a counter in their ranges."""
    for name, value, bits in (("key", key, 128), ("counter", counter, 256)):
        if type(value) is not int or not 0 <= value < 1 << bits:
            raise damaged(f"{name} of a generator", value)
    return key, counter
