"""Learning-rate schedules: closed forms, comparisons with PyTorch's schedulers, and use in an optimizer."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.optim import SGD, schedules

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch, the reference, is not installed")


def rates_of_torch(lr: float, steps: int, make: Callable[[Any], Any]) -> list[float]:
    """The rates of a PyTorch scheduler at steps 0, 1, ..."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def compare(ours: Callable[[int], float], theirs: list[float]) -> None:
    """Equal up to rounding: PyTorch computes some schedules by recurrence, each rate from the one before."""
    for step, expected in enumerate(theirs):
        found = ours(step)
        assert math.isclose(found, expected, rel_tol=1e-11, abs_tol=1e-15), f"step {step}: {found!r}, not {expected!r}"


def test_constant() -> None:
    rate = schedules.constant(0.3)
    assert [rate(s) for s in (0, 1, 10**9)] == [0.3, 0.3, 0.3]


@needs_torch
@pytest.mark.parametrize(("every", "factor"), [(1, 0.9), (7, 0.1), (10, 0.5), (10, 0.0), (3, 1.5)])
def test_step_is_steplr(every: int, factor: float) -> None:
    theirs = rates_of_torch(0.2, 40, lambda o: torch.optim.lr_scheduler.StepLR(o, every, factor))
    compare(schedules.step(0.2, every, factor), theirs)


@needs_torch
@pytest.mark.parametrize(("steps", "final"), [(1, 0.0), (10, 0.0), (50, 0.01), (50, 0.2), (7, 0.5)])
def test_cosine_is_cosineannealinglr(steps: int, final: float) -> None:
    theirs = rates_of_torch(0.2, steps + 1, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps, final))
    compare(schedules.cosine(0.2, steps, final), theirs)


def test_cosine_stays_at_its_final_rate() -> None:
    rate = schedules.cosine(1.0, 10, 0.25)
    assert [rate(s) for s in (0, 10, 11, 15, 20, 10**6)] == [1.0, 0.25, 0.25, 0.25, 0.25, 0.25]
    assert math.isclose(rate(5), (1.0 + 0.25) / 2)


@needs_torch
@pytest.mark.parametrize("steps", [5, 10, 100])
@pytest.mark.parametrize("rise", [0.3, 0.25, 0.5, 0.9])
def test_one_cycle_is_onecyclelr(steps: int, rise: float) -> None:
    theirs = rates_of_torch(
        0.2,
        steps,
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, max_lr=0.7, total_steps=steps + 1, pct_start=rise * steps / (steps + 1), cycle_momentum=False
        ),
    )
    ours = schedules.one_cycle(0.7, steps + 1, rise * steps / (steps + 1))
    compare(ours, theirs)


@needs_torch
def test_one_cycle_with_other_divisors() -> None:
    theirs = rates_of_torch(
        0.2,
        20,
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, max_lr=0.7, total_steps=21, div_factor=10, final_div_factor=100, cycle_momentum=False
        ),
    )
    compare(schedules.one_cycle(0.7, 21, 0.3, 10, 100), theirs)


def test_one_cycle_starts_peaks_and_ends_where_it_should() -> None:
    rate = schedules.one_cycle(1.0, 101, rise=30 / 101)
    values = [rate(s) for s in range(101)]
    assert math.isclose(values[0], 1 / 25)
    assert values.index(max(values)) == 29
    assert math.isclose(max(values), 1.0)
    assert math.isclose(values[100], 1 / 25 / 1e4)
    assert rate(1000) == rate(100)


@pytest.mark.parametrize(("steps", "rise"), [(10, 0.1), (2, 0.5), (4, 0.25), (3, 0.01), (1000, 0.001)])
def test_one_cycle_with_no_room_to_rise_starts_at_or_past_its_peak(steps: int, rise: float) -> None:
    """rise * steps - 1 <= 0: the first phase is a point or empty."""
    rate = schedules.one_cycle(1.0, steps, rise)
    values = [rate(s) for s in range(steps)]
    assert values == sorted(values, reverse=True)
    assert 0.5 < values[0] <= 1.0, values[0]
    assert math.isclose(values[-1], 1 / 25 / 1e4)


@needs_torch
@pytest.mark.parametrize("steps", [2, 5, 10])
def test_warmup_is_linearlr(steps: int) -> None:
    theirs = rates_of_torch(
        0.2,
        20,
        lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=1 / steps, end_factor=1.0, total_iters=steps - 1),
    )
    compare(schedules.warmup(schedules.constant(0.2), steps), theirs)


@needs_torch
def test_warmup_then_cosine_is_sequentiallr() -> None:
    def make(o: Any) -> Any:
        lrs = torch.optim.lr_scheduler
        rise = lrs.LinearLR(o, start_factor=1 / 5, end_factor=1.0, total_iters=4)
        return lrs.SequentialLR(o, [rise, lrs.CosineAnnealingLR(o, 20)], milestones=[5])

    compare(schedules.warmup(schedules.cosine(0.2, 20), 5), rates_of_torch(0.2, 25, make))


def test_warmup_rises_linearly_to_the_first_rate_of_its_schedule() -> None:
    rate = schedules.warmup(schedules.step(1.0, 2), 4)
    assert [rate(s) for s in range(8)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.1, 0.1])


@pytest.mark.parametrize(
    "rate",
    [
        schedules.constant(0.1),
        schedules.step(0.1, 5),
        schedules.cosine(0.1, steps=100),
        schedules.warmup(schedules.cosine(0.1, 20), 5),
        schedules.one_cycle(0.5, 30),
    ],
    ids=str,
)
def test_schedules_are_printed_compared_and_pickled(rate: schedules.Schedule) -> None:
    twin = pickle.loads(pickle.dumps(rate))
    assert twin == rate != schedules.constant(0.2)
    assert [twin(s) for s in range(40)] == [rate(s) for s in range(40)]
    assert eval(repr(rate), vars(schedules)) == rate
    assert repr(schedules.cosine(0.1, steps=100)) == "cosine(lr=0.1, steps=100, final=0.0)"


def test_schedules_take_numpy_numbers() -> None:
    assert schedules.cosine(np.float32(0.5), np.int64(10))(0) == 0.5


def test_schedules_are_pure() -> None:
    rate = schedules.warmup(schedules.one_cycle(0.5, 30), 3)
    forwards = [rate(s) for s in range(40)]
    assert [rate(s) for s in reversed(range(40))] == forwards[::-1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.constant(-0.1),
        lambda: schedules.constant(math.nan),
        lambda: schedules.constant(math.inf),
        lambda: schedules.constant("0.1"),  # type: ignore[arg-type]
        lambda: schedules.step(0.1, 0),
        lambda: schedules.step(0.1, 2.5),  # type: ignore[arg-type]
        lambda: schedules.step(0.1, True),
        lambda: schedules.step(0.1, 5, -0.5),
        lambda: schedules.cosine(0.1, 0),
        lambda: schedules.cosine(0.1, 10, -1.0),
        lambda: schedules.warmup(schedules.constant(0.1), 0),
        lambda: schedules.one_cycle(0.1, 1),
        lambda: schedules.one_cycle(0.1, 10, rise=0.0),
        lambda: schedules.one_cycle(0.1, 10, rise=1.0),
        lambda: schedules.one_cycle(0.1, 10, rise=math.nan),
        lambda: schedules.one_cycle(-0.1, 10),
        lambda: schedules.one_cycle(0.1, 10, start_divisor=0),
        lambda: schedules.one_cycle(0.1, 10, final_divisor=0),
    ],
)
def test_a_schedule_with_invalid_arguments_raises(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError):
        make()


def test_an_optimizer_calls_its_schedule_at_each_step() -> None:
    asked: list[int] = []

    def rate(step: int) -> float:
        asked.append(step)
        return 1.0 / (step + 1)

    p = gf.tensor([0.0], requires_grad=True)
    sgd = SGD([p], lr=rate)
    for _ in range(3):
        p.grad = gf.tensor([1.0])
        sgd.step()
    assert asked == [0, 1, 2]
    assert p.item() == pytest.approx(-(1 + 1 / 2 + 1 / 3))
    assert sgd.learning_rates == [0.25]


def test_each_group_may_have_its_own_schedule() -> None:
    p, q = gf.tensor([0.0], requires_grad=True), gf.tensor([0.0], requires_grad=True)
    sgd = SGD([{"params": [p], "lr": schedules.step(1.0, 1, 0.5)}, {"params": [q]}], lr=0.25)
    for _ in range(3):
        p.grad, q.grad = gf.tensor([1.0]), gf.tensor([1.0])
        sgd.step()
    assert (p.item(), q.item()) == (-1.75, -0.75)
    assert sgd.learning_rates == [0.125, 0.25]


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, None, "0.1"])
def test_a_schedule_that_returns_an_invalid_rate_raises_before_anything_changes(bad: Any) -> None:
    p, q = gf.tensor([1.0], requires_grad=True), gf.tensor([1.0], requires_grad=True)
    sgd = SGD([{"params": [p]}, {"params": [q], "lr": lambda step: bad}], lr=0.1)
    p.grad, q.grad = gf.tensor([1.0]), gf.tensor([1.0])
    with pytest.raises(ValueError, match="lr"):
        sgd.step()
    assert (p.item(), q.item(), sgd.steps) == (1.0, 1.0, 0)


def test_copies_of_schedules_are_equal() -> None:
    for schedule in (schedules.constant(0.1), schedules.warmup(schedules.cosine(0.1, 10), 5)):
        for copied in (copy.copy(schedule), copy.deepcopy(schedule)):
            assert copied == schedule
            assert copied(3) == schedule(3)
