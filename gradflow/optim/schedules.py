"""Learning-rate schedules: pure functions of the count of steps, from 0, given to an optimizer as its `lr`.

>>> schedule = warmup(cosine(0.1, steps=100), steps=10)
>>> [round(schedule(step), 3) for step in (0, 5, 10, 60, 110)]
[0.01, 0.06, 0.1, 0.05, 0.0]
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def _check(steps: int, **rates: float) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"a schedule takes at least 1 step; got {steps!r}")
    for name, rate in rates.items():
        if not (isinstance(rate, (int, float)) and math.isfinite(rate) and rate >= 0):
            raise ValueError(f"{name} is a finite number >= 0; got {rate!r}")


def constant(lr: float) -> Schedule:
    """Always `lr`. Raises ValueError, as all schedules do, for a rate that is negative or not finite."""
    _check(1, lr=lr)
    return lambda step: lr


def step(lr: float, every: int, factor: float = 0.1) -> Schedule:
    """`lr`, times `factor` after each `every` steps. ValueError for every < 1."""
    _check(every, lr=lr, factor=factor)
    return lambda step: lr * factor ** (step // every)


def _half_cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * min(max(fraction, 0.0), 1.0))) / 2.0


def cosine(lr: float, steps: int, final: float = 0.0) -> Schedule:
    """From `lr` down to `final` in half a cosine over `steps`, then `final`.

    Loshchilov & Hutter 2017, "SGDR", eq. 5, without restarts. ValueError for steps < 1.
    """
    _check(steps, lr=lr, final=final)
    return lambda step: _half_cosine(lr, final, step / steps)


def warmup(schedule: Schedule, steps: int) -> Schedule:
    """A straight rise over `steps` to where `schedule` starts, which then begins. ValueError for steps < 1."""
    _check(steps)
    return lambda step: schedule(0) * (step + 1) / steps if step < steps else schedule(step - steps)


def one_cycle(
    peak: float, steps: int, rise: float = 0.3, start_divisor: float = 25.0, final_divisor: float = 1e4
) -> Schedule:
    """Half a cosine up to `peak` over the share `rise` of `steps`, then one down: PyTorch's OneCycleLR.

    From peak / start_divisor to that over final_divisor. Smith & Topin 2018, "Super-Convergence". ValueError for
    steps < 2, a share outside (0, 1) or a divisor that is not positive.
    """
    _check(steps, peak=peak, start_divisor=start_divisor, final_divisor=final_divisor)
    if start_divisor == 0 or final_divisor == 0:
        raise ValueError(f"one_cycle needs divisors > 0; got {start_divisor} and {final_divisor}")
    if steps < 2 or not 0.0 < rise < 1.0:
        raise ValueError(f"one_cycle needs steps >= 2 and 0 < rise < 1; got steps={steps}, rise={rise}")
    start = peak / start_divisor
    top = rise * steps - 1.0

    def schedule(step: int) -> float:
        if step <= top:
            return _half_cosine(start, peak, step / top if top else 1.0)
        return _half_cosine(peak, start / final_divisor, (step - top) / (steps - 1.0 - top))

    return schedule
