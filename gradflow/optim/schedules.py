"""Learning-rate schedules: pure functions of the number of steps done so far, passed to an optimizer as its `lr`.

Each is a frozen dataclass whose instances are callable, so that it can be printed, compared and pickled. Any function
of the steps can serve as a schedule, too. All raise ValueError for a rate that is negative or non-finite, and for a
number of steps that is not an integer of at least 1. `plateau` is a function of the figures of the epochs instead.

>>> schedule = warmup(cosine(0.1, steps=100), steps=10)
>>> [round(schedule(step), 3) for step in (0, 5, 10, 60, 110)]
[0.01, 0.06, 0.1, 0.05, 0.0]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING

from gradflow.pytorch_names import hints_of

Schedule = Callable[[int], float]


def _check(steps: int, **rates: float) -> None:
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"a schedule takes an integer number of steps, at least 1; got {steps!r}")
    for name, rate in rates.items():
        if not (isinstance(rate, Real) and math.isfinite(rate) and rate >= 0):
            raise ValueError(f"{name} must be a finite number >= 0; got {rate!r}")


@dataclass(frozen=True)
class constant:  # noqa: N801 (lower case: used like functions)
    """A constant rate.

    lr: the learning rate.

    >>> import gradflow as gf
    >>> schedule = gf.optim.schedules.constant(0.1)
    >>> schedule(0), schedule(10**6)
    (0.1, 0.1)
    """

    lr: float

    def __post_init__(self) -> None:
        _check(1, lr=self.lr)

    def __call__(self, step: int) -> float:
        return self.lr


@dataclass(frozen=True)
class step:  # noqa: N801
    """A rate that is multiplied by a factor at regular intervals: `lr * factor ** (steps // every)`.

    lr: the first learning rate.
    every: the steps of an interval.
    factor: the factor (default 0.1).

    >>> import gradflow as gf
    >>> schedule = gf.optim.schedules.step(0.1, every=10, factor=0.5)
    >>> [schedule(n) for n in (0, 9, 10, 20)]
    [0.1, 0.1, 0.05, 0.025]
    """

    lr: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _check(self.every, lr=self.lr, factor=self.factor)

    def __call__(self, step: int) -> float:
        return self.lr * self.factor ** (step // self.every)


def is_known(rate: float | Schedule) -> bool:
    """Whether a rate is a number or a schedule of this module, so that the rates of later steps can be computed now.

    >>> import gradflow as gf
    >>> schedules = gf.optim.schedules
    >>> schedules.is_known(schedules.cosine(0.1, steps=100)), schedules.is_known(lambda step: 0.1)
    (True, False)
    """
    if type(rate) is warmup:
        return is_known(rate.schedule)
    return not callable(rate) or type(rate).__module__ == __name__


def _half_cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * min(max(fraction, 0.0), 1.0))) / 2.0


@dataclass(frozen=True)
class cosine:  # noqa: N801
    """Half a cosine down from `lr` to `final`: Loshchilov & Hutter 2017, "SGDR", eq. 5, without restarts.

    lr: the first learning rate.
    steps: the steps until `final`.
    final: the rate from then on (default 0).

    >>> import gradflow as gf
    >>> schedule = gf.optim.schedules.cosine(0.1, steps=100, final=0.02)
    >>> [round(schedule(n), 3) for n in (0, 50, 100, 200)]
    [0.1, 0.06, 0.02, 0.02]
    """

    lr: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self.steps, lr=self.lr, final=self.final)

    def __call__(self, step: int) -> float:
        return _half_cosine(self.lr, self.final, step / self.steps)


@dataclass(frozen=True)
class warmup:  # noqa: N801
    """A linear warm-up to another schedule's first rate, followed by that schedule from its step 0.

    schedule: the schedule that follows.
    steps: the steps of the warm-up. Its first rate is 1 / steps times the last one.

    >>> from gradflow.optim.schedules import constant, warmup
    >>> schedule = warmup(constant(0.1), steps=4)
    >>> [round(schedule(n), 3) for n in (0, 1, 3, 4, 100)]
    [0.025, 0.05, 0.1, 0.1, 0.1]
    """

    schedule: Schedule
    steps: int

    def __post_init__(self) -> None:
        _check(self.steps)

    def __call__(self, step: int) -> float:
        if step < self.steps:
            return self.schedule(0) * (step + 1) / self.steps
        return self.schedule(step - self.steps)


@dataclass(frozen=True)
class one_cycle:  # noqa: N801
    """Half a cosine up to `peak`, then one down: PyTorch's OneCycleLR (Smith & Topin 2018, "Super-Convergence").

    peak: the highest learning rate.
    steps: the steps of the whole cycle, at least 2.
    rise: the share of the steps in which the rate rises, in (0, 1) (default 0.3).
    start_divisor: the first rate is peak / start_divisor (default 25).
    final_divisor: the last rate is the first rate / final_divisor (default 1e4).

    Raises ValueError for fewer than 2 steps, `rise` outside (0, 1), and divisors that are not positive.

    >>> import gradflow as gf
    >>> schedule = gf.optim.schedules.one_cycle(0.5, steps=10)
    >>> [round(schedule(n), 3) for n in (0, 1, 2, 5, 9)]
    [0.02, 0.26, 0.5, 0.306, 0.0]
    """

    peak: float
    steps: int
    rise: float = 0.3
    start_divisor: float = 25.0
    final_divisor: float = 1e4

    def __post_init__(self) -> None:
        _check(self.steps, peak=self.peak, start_divisor=self.start_divisor, final_divisor=self.final_divisor)
        if self.start_divisor == 0 or self.final_divisor == 0:
            raise ValueError(f"one_cycle needs divisors > 0; got {self.start_divisor} and {self.final_divisor}")
        if self.steps < 2 or not 0.0 < self.rise < 1.0:
            raise ValueError(f"one_cycle needs steps >= 2 and 0 < rise < 1; got steps={self.steps}, rise={self.rise}")

    def __call__(self, step: int) -> float:
        start = self.peak / self.start_divisor
        top = self.rise * self.steps - 1.0
        if step <= top:
            return _half_cosine(start, self.peak, step / top if top else 1.0)
        return _half_cosine(self.peak, start / self.final_divisor, (step - top) / (self.steps - 1.0 - top))


@dataclass(frozen=True)
class plateau:  # noqa: N801
    """A rate that falls when a figure stops improving: PyTorch's ReduceLROnPlateau as a function of the figures so far.

    lr: the first learning rate.
    mode: "min" if lower figures are better (default), or "max".
    factor: what the rate is multiplied by, in [0, 1) (default 0.1).
    patience: how many epochs in a row without an improvement leave the rate as it is (default 10).
    threshold, threshold_mode: how much better than the best an improvement is: by a share of the best with "rel"
        (default), else by a difference, with "abs" (default 1e-4).
    cooldown: after the rate has fallen, so many epochs do not count as without an improvement (default 0).
    min_lr: the lowest rate (default 0).
    eps: the rate stays if it would fall by no more than this (default 1e-8).

    The `lr` of an optimizer is a function of the step, so it cannot be this one: `Trainer(..., schedule=plateau(0.1))`
    sets the rate of each epoch; in a loop of yours, `group["lr"] = schedule(losses)` does. It keeps no state, so a
    resumed run has the same rates. Raises ValueError for arguments out of range, and TypeError when it is called with
    a step.

    >>> import gradflow as gf
    >>> schedule = gf.optim.schedules.plateau(0.1, patience=1, factor=0.5)
    >>> schedule([]), schedule([3.0, 2.0, 2.0]), schedule([3.0, 2.0, 2.0, 2.0])
    (0.1, 0.1, 0.05)
    """

    lr: float
    mode: str = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check(1, lr=self.lr, factor=self.factor, threshold=self.threshold, min_lr=self.min_lr, eps=self.eps)
        for name, count in {"patience": self.patience, "cooldown": self.cooldown}.items():
            if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
                raise ValueError(f"{name} is a number of epochs, an integer of at least 0; got {count!r}")
        if self.factor >= 1.0:
            raise ValueError(f"plateau needs a factor below 1; got {self.factor!r}")
        if self.mode not in ("min", "max") or self.threshold_mode not in ("rel", "abs"):
            got = f"{self.mode!r} and {self.threshold_mode!r}"
            raise ValueError(f'plateau needs mode "min" or "max" and threshold_mode "rel" or "abs"; got {got}')

    def __call__(self, history: Iterable[float]) -> float:
        """The rate after epochs with these figures, in order."""
        if isinstance(history, Real):
            raise TypeError(
                f"plateau takes the figures of all epochs so far, not a step; got {history!r}: pass it to "
                "Trainer(schedule=...), and a number to the optimizer as its lr"
            )
        rate, best, stale, cooling = float(self.lr), math.inf if self.mode == "min" else -math.inf, 0, 0
        for figure in map(float, history):
            if self._is_better(figure, best):
                best, stale = figure, 0
            else:
                stale += 1
            if cooling:
                cooling, stale = cooling - 1, 0
            if stale > self.patience:
                lower = max(rate * self.factor, self.min_lr)
                rate = lower if rate - lower > self.eps else rate
                cooling, stale = self.cooldown, 0
        return rate

    def _is_better(self, figure: float, best: float) -> bool:
        if self.mode == "min":
            return figure < (best * (1.0 - self.threshold) if self.threshold_mode == "rel" else best - self.threshold)
        return figure > (best * (1.0 + self.threshold) if self.threshold_mode == "rel" else best + self.threshold)


if not TYPE_CHECKING:
    __getattr__ = hints_of(__name__)
