"""Captured steps with the batches of an epoch: every loss and weight has the bits of a loop over the batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from graphs_of_steps import give_graphs

import gradflow as gf
from gradflow import nn, optim
from gradflow.data import Batches
from tests import devices

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(61, 4)).astype("float32")
LABELS = RNG.integers(0, 3, 61)
WEIGHTS = RNG.uniform(0.5, 2.0, 61)


class Run:
    """A model, its optimizer, its batches and its step, the same each time."""

    def __init__(self, dropout: float = 0.0, make: Callable[[Any], optim.Optimizer] | None = None, **options: Any):
        self.model = nn.MLP([4, 8, 3], "tanh", dropout=dropout, generator=gf.Generator(1))
        make = make or (lambda parameters: optim.Adam(parameters, lr=optim.schedules.cosine(0.05, 40)))
        self.optimizer = make(self.model.parameters())
        self.generator = gf.Generator(2)
        options = {"batch_size": 7, "generator": self.generator, **options}
        self.batches = Batches(INPUTS, LABELS, **options)

    def step(self, inputs: gf.Tensor, labels: gf.Tensor, weights: gf.Tensor | None = None) -> Any:
        self.optimizer.zero_grad()
        outputs = self.model(inputs)
        losses = gf.cross_entropy(outputs, labels, reduction="none")
        loss = gf.mean(losses if weights is None else losses * weights)
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach(), "right": [gf.equal(gf.argmax(outputs, axis=1), labels)]}

    def weights(self) -> list[bytes]:
        return [p.detach().numpy().tobytes() for p in self.model.parameters()]


def values(result: Any) -> list[Any]:
    """The results of a step or of several, as one list for each step."""
    losses, right = result["loss"].numpy(), result["right"][0].numpy()
    several = losses.ndim == 1
    return [*zip(losses.tolist(), right.tolist(), strict=True)] if several else [(losses.item(), right.tolist())]


def plain(run: Run, epochs: int, first: int = 0) -> list[Any]:
    return [each for _ in range(epochs) for batch in run.batches.epoch(first) for each in values(run.step(*batch))]


@pytest.fixture(params=["graphs", "without"])
def replays(request: pytest.FixtureRequest, device: str, monkeypatch: pytest.MonkeyPatch) -> list[int] | None:
    """With graphs, the numbers of steps of the replays; None on the device as it is."""
    return give_graphs(monkeypatch, device) if request.param == "graphs" else None


OPTIONS: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "in order": {"shuffle": False},
    "whole batches": {"drop_last": True},
    "weights": {"weights": WEIGHTS},
    "on the host": {"keep": "host"},
    "one batch": {"batch_size": 100},
    "no smaller batch": {"batch_size": 61},
    "dropout": {"dropout": 0.3},
    "momentum": {"make": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9)},
}


@pytest.mark.parametrize(
    ("name", "steps"), [("shuffled", 1), ("shuffled", 4), *((name, n) for name in OPTIONS for n in (3, 32))]
)
def test_epochs_have_the_bits_of_a_loop(name: str, steps: int, replays: list[int] | None) -> None:
    expected = Run(**OPTIONS[name])
    found = Run(**OPTIONS[name])
    run = gf.capture(found.step, batches=found.batches, steps=steps)
    for _ in range(3):
        assert [each for result in run.epoch() for each in values(result)] == plain(expected, 1)
        assert found.weights() == expected.weights()
        assert found.generator.state_dict() == expected.generator.state_dict()
    whole = found.batches.samples // found.batches.batch_size
    if replays is not None and name != "on the host" and min(steps, whole) > 1:
        several = [n for n in replays if n > 1]
        assert set(several) == {min(steps, whole), whole % steps} - {0, 1}
        assert sum(several) >= 2 * (whole - whole % steps), "from the second epoch on, at the latest"


def test_an_item_has_the_results_of_several_steps(replays: list[int] | None) -> None:
    found = Run()
    run = gf.capture(found.step, batches=found.batches, steps=3)
    for first, lengths in ((0, [3, 3, 2, 1]), (2, [1, 3, 2, 1]), (6, [2, 1]), (8, [1]), (9, [])):
        for _ in range(3):
            assert [len(result["loss"]) for result in run.epoch(first)] == lengths
    shapes = [(result["loss"].shape, result["right"][0].shape) for result in run.epoch()]
    assert shapes == [((3,), (3, 7)), ((3,), (3, 7)), ((2,), (2, 7)), ((1,), (1, 5))]
    assert devices.replays(run.status)


def test_the_status_is_that_of_whole_batches() -> None:
    """Not that of the smaller last batch, which is recorded for itself, and later."""
    found = Run()
    run = gf.capture(found.step, batches=found.batches, steps=3)
    assert run.status == run.step.status
    for _ in run.epoch():
        pass
    assert devices.replays(run.status)
    assert run.step.status == "recording"


@pytest.mark.parametrize("steps", [2, 5])
def test_an_epoch_goes_on_from_any_batch(steps: int, replays: list[int] | None) -> None:
    expected, found = Run(), Run()
    run = gf.capture(found.step, batches=found.batches, steps=steps)
    for first in (0, 3, 0, 0, 5, 8, 9, 4):
        assert [each for result in run.epoch(first) for each in values(result)] == plain(expected, 1, first)
    assert found.weights() == expected.weights()


def test_an_epoch_may_be_left(replays: list[int] | None) -> None:
    """As with a loop over batches, its order is drawn when it begins."""
    expected, found = Run(), Run()
    run = gf.capture(found.step, batches=found.batches, steps=4)
    for _ in range(4):
        losses = values(next(iter(run.epoch())))
        batches = expected.batches.epoch()
        assert losses == [each for _ in range(4) for each in values(expected.step(*next(batches)))]
    assert found.weights() == expected.weights()


def test_two_runs_side_by_side(replays: list[int] | None) -> None:
    """Of two models; and of one model on other batches, with the same optimizer."""

    def results(epoch_of: Callable[[Run, Batches, int], Callable[[], Iterator[Any]]]) -> Any:
        one, other = Run(), Run(batch_size=9)
        shared = Batches(INPUTS[:30], LABELS[:30], 5, gf.Generator(4))
        epochs = [epoch_of(one, one.batches, 3), epoch_of(other, other.batches, 2), epoch_of(one, shared, 4)]
        found = []
        for _ in range(4):
            running = [epoch() for epoch in epochs]
            found.append([next(each, None) for _ in range(6) for each in running])
        return found, one.weights(), other.weights()

    def captured(run: Run, batches: Batches, steps: int) -> Callable[[], Iterator[Any]]:
        several = gf.capture(run.step, batches=batches, steps=steps)
        return lambda: map(values, several.epoch())

    def looped(run: Run, batches: Batches, steps: int) -> Callable[[], Iterator[Any]]:
        def epoch() -> Iterator[Any]:
            left, whole = batches.epoch(), batches.samples // batches.batch_size
            for i in range(0, whole, steps):
                yield [each for _ in range(min(steps, whole - i)) for each in values(run.step(*next(left)))]
            yield from (values(run.step(*batch)) for batch in left)

        return epoch

    assert results(captured) == results(looped)


def test_data_that_changes_in_place_is_read(replays: list[int] | None) -> None:
    expected, found = Run(), Run()
    run = gf.capture(found.step, batches=found.batches, steps=4)
    for i in range(5):
        assert [each for result in run.epoch() for each in values(result)] == plain(expected, 1)
        for each in (expected, found):
            if each.batches.kept == "device":
                inputs = each.batches.inputs
                inputs *= 1.0 + 0.1 * i
    assert found.weights() == expected.weights()


class Growing:
    """Batches of a user, of other tensors in each epoch."""

    def __init__(self) -> None:
        self.device, self.batch_size, self.samples, self.epochs = gf.current_device(), 10, 40, 0
        self.inputs = gf.tensor(INPUTS[:40])

    def batches(self) -> Batches:
        return Batches(self.inputs, gf.tensor(LABELS[:40]), 10, gf.Generator(self.epochs))

    def epoch(self, first: int = 0) -> Iterator[tuple[gf.Tensor, ...]]:
        found = self.batches().epoch(first)
        self.grow()
        return found

    def on_device(self) -> tuple[gf.Tensor, ...] | None:
        return self.batches().on_device()

    def order(self) -> gf.Tensor:
        found = self.batches().order()
        self.grow()
        return found

    def grow(self) -> None:
        self.epochs += 1
        self.inputs = self.inputs * 1.1


def test_batches_of_other_tensors_in_each_epoch(replays: list[int] | None) -> None:
    expected, found = Run(), Run()
    batches, again = Growing(), Growing()
    run = gf.capture(found.step, batches=again, steps=2)
    for _ in range(5):
        losses = [each for batch in batches.epoch() for each in values(expected.step(*batch))]
        assert [each for result in run.epoch() for each in values(result)] == losses
    assert found.weights() == expected.weights()


def test_gradients_that_add_up_are_not_done_together(replays: list[int] | None) -> None:
    """Nor what another mode, a held gradient or a reading step forbids; the results are those of the plain step."""

    def results(through: Callable[[Any, Batches], Callable[[], list[Any]]], kind: str) -> list[Any]:
        each = Run(make=lambda parameters: optim.SGD(parameters, lr=0.1))
        parameters, held = list(each.model.parameters()), []
        halves = parameters[0].backend.supports("float16")

        def step(inputs: gf.Tensor, labels: gf.Tensor) -> gf.Tensor:
            if kind != "adding":
                each.optimizer.zero_grad()
            loss = gf.cross_entropy(each.model(inputs), labels)
            if gf.is_grad_enabled():
                loss.backward()
                each.optimizer.step()
            return loss * float(loss) if kind == "reading" else loss

        epoch, found = through(step, each.batches), []
        for i in range(5):
            if kind == "adding":
                each.optimizer.zero_grad()
            if kind == "held":
                held.append(parameters[0].grad)
            if kind == "modes":
                each.model.train(i != 4)
                with gf.no_grad() if i == 3 else gf.enable_grad(), gf.autocast("float16", enabled=halves and i == 2):
                    found.append(epoch())
            else:
                found.append(epoch())
        return [*found, each.weights(), [None if g is None else g.tolist() for g in held]]

    def looped(step: Any, batches: Batches) -> Callable[[], list[Any]]:
        return lambda: [step(*batch).item() for batch in batches]

    def captured(step: Any, batches: Batches) -> Callable[[], list[Any]]:
        run = gf.capture(step, batches=batches, steps=4)
        return lambda: [loss for losses in run.epoch() for loss in losses.tolist()]

    for kind in ("adding", "held", "modes", "reading"):
        assert results(captured, kind) == results(looped, kind), kind


def test_gradients_that_are_cleared_between_items(replays: list[int] | None) -> None:
    """The program of a step that begins without gradients and ends with them is not repeated."""

    def results(captured: bool) -> Any:
        each = Run(make=lambda parameters: optim.SGD(parameters, lr=0.1), batch_size=5, drop_last=True)

        def step(inputs: gf.Tensor, labels: gf.Tensor) -> gf.Tensor:
            loss = gf.cross_entropy(each.model(inputs), labels)
            loss.backward()
            each.optimizer.step()
            return loss.detach()

        run, found = gf.capture(step, batches=each.batches, steps=4), []
        for _ in range(5):
            if captured:
                for losses in run.epoch(3):
                    found += losses.tolist()
                    each.optimizer.zero_grad()
                continue
            for i, batch in enumerate(each.batches.epoch(3), 4):
                found.append(step(*batch).item())
                if i % 4 == 0:
                    each.optimizer.zero_grad()
        return found, each.weights()

    assert results(True) == results(False)


def test_a_step_without_results(replays: list[int] | None) -> None:
    expected, found = Run(), Run()

    def step(*batch: gf.Tensor) -> None:
        found.step(*batch)

    run = gf.capture(batches=found.batches, steps=3)(step)
    assert [list(run.epoch()) for _ in range(3)] == [[None] * 4] * 3
    plain(expected, 3)
    assert found.weights() == expected.weights()


def test_what_is_refused(device: str) -> None:
    found = Run()
    for options, kind, message in (
        ({"batches": [1, 2]}, TypeError, r"such as gradflow.data.Batches\(inputs, targets, batch_size\); got list"),
        ({"batches": found.batches, "steps": 0}, ValueError, "steps is a number of steps, .* got 0"),
        ({"batches": found.batches, "steps": True}, ValueError, "steps is a number of steps, .* got True"),
        ({"batches": found.batches, "steps": 2.0}, ValueError, "steps is a number of steps, .* got 2.0"),
        ({"steps": 2}, TypeError, "steps is for a step with batches"),
        ({"batches": found.batches, "check": 2}, ValueError, "capture the step without batches"),
    ):
        with pytest.raises(kind, match=message):
            gf.capture(found.step, **options)
        with pytest.raises(kind, match=message):
            gf.capture(**options)
    run = gf.capture(found.step, batches=found.batches)
    for wrong in (-1, 10, 1.0, True, None):
        with pytest.raises(ValueError, match="an epoch has 9 batches"):
            run.epoch(wrong)  # type: ignore[arg-type]
    assert (run.steps, found.generator.counter) == (32, 0)
    calls = iter(range(100))
    uneven = gf.capture(lambda x, y: x[: next(calls) + 1], batches=found.batches)
    with pytest.raises(
        ValueError, match=r"got result: float32 of shape \(1, 4\), then result: float32 of shape \(2, 4"
    ):
        list(uneven.epoch())
