"""Learning-rate schedules: pure functions of the count of steps, from 0, given to an optimizer as its `lr`.

Each is a small frozen class whose objects are called, so that it can be printed, compared and pickled.

>>> schedule = warmup(cosine(0.1, steps=100), steps=10)
>>> [round(schedule(step), 3) for step in (0, 5, 10, 60, 110)]
[0.01, 0.06, 0.1, 0.05, 0.0]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

Schedule = Callable[[int], float]


def _check(steps: int, **rates: float) -> None:
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"a schedule takes at least 1 step; got {steps!r}")
    for name, rate in rates.items():
        if not (isinstance(rate, Real) and math.isfinite(rate) and rate >= 0):
            raise ValueError(f"{name} is a finite number >= 0; got {rate!r}")


@dataclass(frozen=True)
class constant:  # noqa: N801 (a schedule reads as the function that it is)
    """Always `lr`. Raises ValueError, as all schedules do, for a rate that is negative or not finite."""

    lr: float

    def __post_init__(self) -> None:
        _check(1, lr=self.lr)

    def __call__(self, step: int) -> float:
        return self.lr


@dataclass(frozen=True)
class step:  # noqa: N801
    """`lr`, times `factor` after each `every` steps. ValueError for every < 1."""

    lr: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _check(self.every, lr=self.lr, factor=self.factor)

    def __call__(self, step: int) -> float:
        return self.lr * self.factor ** (step // self.every)


def _half_cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * min(max(fraction, 0.0), 1.0))) / 2.0


@dataclass(frozen=True)
class cosine:  # noqa: N801
    """From `lr` down to `final` in half a cosine over `steps`, then `final`.

    Loshchilov & Hutter 2017, "SGDR", eq. 5, without restarts. ValueError for steps < 1.
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
    """A straight rise over `steps` to where `schedule` starts, which then begins. ValueError for steps < 1."""

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
    """Half a cosine up to `peak` over the share `rise` of `steps`, then one down: PyTorch's OneCycleLR.

    From peak / start_divisor to that over final_divisor. Smith & Topin 2018, "Super-Convergence". ValueError for
    steps < 2, a share outside (0, 1) or a divisor that is not positive.
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
