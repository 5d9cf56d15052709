"""Cohorts: parameters that steps update together share a record, of which each still sees its own part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

import gradflow as gf
from gradflow import nn, optim

Step = Callable[..., Any]


class Training:
    """Of three layers, of which a step trains those that it is told."""

    def __init__(self) -> None:
        gf.manual_seed(0)
        self.model = nn.MLP((3, 4, 4, 2))
        self.parameters = [*self.model.parameters()]
        self.optimizer = optim.Adam(self.parameters, lr=0.1)

    def step(self, x: gf.Tensor) -> gf.Tensor:
        self.optimizer.zero_grad()
        loss: gf.Tensor = self.model(x).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss

    def step_of(self, parameters: Sequence[gf.Tensor]) -> None:
        self.optimizer.zero_grad()
        sum((x.sum() for x in parameters), gf.zeros(())).backward()
        self.optimizer.step()

    def cohorts(self) -> list[Any]:
        return [s.membership.cohort for block in self.optimizer._blocks for s in block.slices]

    def steps(self) -> list[int]:
        return [entry["step"] for _, entry in sorted(self.optimizer.state_dict()["state"].items())]


def as_it_is(step: Step) -> Step:
    return step


THROUGH = pytest.mark.parametrize("through", [as_it_is, gf.capture])
X = gf.ones((5, 3))


@THROUGH
def test_parameters_that_are_updated_together_share_one_record(through: Callable[[Step], Step]) -> None:
    training = Training()
    step = through(training.step)
    for _ in range(5):
        step(X)
    (cohort,) = {*training.cohorts()}
    assert (cohort.size, cohort.history[1]) == (6, 5)
    training.optimizer.load_state_dict(training.optimizer.state_dict())
    assert len({*training.cohorts()}) == 6
    step(X)
    (cohort,) = {*training.cohorts()}
    assert (cohort.size, cohort.history[1]) == (6, 6)


@THROUGH
def test_a_step_of_some_parameters_counts_for_these(through: Callable[[Step], Step]) -> None:
    """Captured steps of some, each of which has a record that becomes that of others in between."""
    training = Training()
    some, all_ = training.parameters[2:4], training.parameters
    steps = [through(lambda _, part=part: training.step_of(part)) for part in (some, all_)]
    for i in range(8):
        for step in steps:
            step(X)
        assert training.steps() == [i + 1, i + 1, 2 * i + 2, 2 * i + 2, i + 1, i + 1]
    state = training.optimizer.state_dict()
    state["state"] = {i: {**entry, "step": 20} for i, entry in state["state"].items()}
    training.optimizer.load_state_dict(state)
    for step in steps:
        step(X)
    assert training.steps() == [21, 21, 22, 22, 21, 21]


@THROUGH
def test_a_step_changes_what_graphs_have_saved_of_its_parameters(through: Callable[[Step], Step]) -> None:
    training = Training()
    first = training.parameters[0]
    step, other = through(training.step), through(lambda _: training.step_of([first]))
    for _ in range(4):
        step(X)
        other(X)
    saved = [(x * x).sum() for x in training.parameters]
    other(X)
    with pytest.raises(RuntimeError, match="changed in place"):
        saved[0].backward()
    saved[1].backward()
    step(X)
    for loss in saved[2:]:
        with pytest.raises(RuntimeError, match="changed in place"):
            loss.backward()


def test_a_change_otherwise_is_seen_beside_those_by_steps() -> None:
    training = Training()
    training.step(X)
    first, second = training.parameters[:2]
    losses = [(first * first).sum(), (second * second).sum()]
    with gf.no_grad():
        first.copy_(2.0 * first)
    with pytest.raises(RuntimeError, match="changed in place"):
        losses[0].backward()
    losses[1].backward()
    losses = [(first * first).sum()]
    training.step(X)
    losses.append((first * first).sum())
    training.optimizer.load_state_dict(training.optimizer.state_dict())  # another cohort, whose last change is the same
    with pytest.raises(RuntimeError, match="changed in place"):
        losses[0].backward()
    losses[1].backward()


def test_records_of_as_many_parameters_are_told_apart() -> None:
    training = Training()
    for part in (slice(0, 2), slice(2, 4), slice(1, 3)):
        training.step_of(training.parameters[part])
    assert training.steps() == [1, 2, 2, 1]


def test_groups_have_records_of_their_own() -> None:
    x, y, z = (gf.ones(2, requires_grad=True) for _ in range(3))
    optimizer = optim.SGD([{"params": [x, y], "lr": 0.25}, {"params": [z], "lr": 0.5}])
    (x + y + z).sum().backward()
    optimizer.step()
    assert [each.tolist() for each in (x, y, z)] == [[0.75, 0.75], [0.75, 0.75], [0.5, 0.5]]
    assert [s.history[0] for s in optimizer._blocks[0].slices] == [0, 0, 1]


@pytest.mark.parametrize("at", range(1, 7))
def test_an_interrupted_change_of_records_loses_no_step(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slices join a new cohort; an interrupt comes when so many have."""
    training = Training()
    training.step(X)
    training.optimizer.load_state_dict(training.optimizer.state_dict())
    joined = 0

    def join(membership: Any, name: str, value: Any) -> None:
        nonlocal joined
        joined += 1
        if joined == at:
            raise KeyboardInterrupt
        object.__setattr__(membership, name, value)

    Membership = type(training.optimizer._blocks[0].slices[0].membership)
    with monkeypatch.context() as patch:
        patch.setattr(Membership, "__setattr__", join)
        with pytest.raises(KeyboardInterrupt):
            training.step(X)
    before = training.steps()
    training.step_of(training.parameters[3:])
    training.step(X)
    assert training.steps() == [n + 1 + (i >= 3) for i, n in enumerate(before)]
