"""A replay looks at each gradient again only after a change that `places` counts: so every change must be counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import gradflow as gf
from gradflow import nn, optim
from gradflow.autograd import leaf as leaves
from gradflow.autograd.leaf import places
from gradflow.backend import Backend


class Training(NamedTuple):
    model: nn.Linear
    optimizer: optim.Optimizer
    step: Callable[[gf.Tensor], gf.Tensor]

    @property
    def weight(self) -> gf.Tensor:
        return self.model.weight

    def loss(self) -> gf.Tensor:
        return self.model(gf.ones((5, 3))).square().mean()

    def state(self) -> Any:
        parameters = list(self.model.parameters())
        gradients = [None if p.grad is None else p.grad.tolist() for p in parameters]
        return [p.tolist() for p in parameters], gradients, repr(self.optimizer.state_dict())


def clears_first(t: Training, x: gf.Tensor) -> gf.Tensor:
    t.optimizer.zero_grad()
    return adds(t, x)


def clears_last(t: Training, x: gf.Tensor) -> gf.Tensor:
    loss = adds(t, x)
    t.optimizer.zero_grad()
    return loss


def adds(t: Training, x: gf.Tensor) -> gf.Tensor:
    loss = t.model(x).square().mean()
    loss.backward()
    t.optimizer.step()
    return loss


STEPS = [clears_first, clears_last, adds]


def training(step: Callable[[Training, gf.Tensor], gf.Tensor]) -> Training:
    gf.manual_seed(0)
    model = nn.Linear(3, 2)
    made = Training(model, optim.Adam(model.parameters(), lr=0.1), lambda x: step(made, x))
    return made


def replace(t: Training) -> None:
    t.weight.grad = gf.ones((2, 3))


def freeze_for_a_step(t: Training) -> None:
    t.weight.requires_grad = False
    t.step(gf.ones((5, 3)))
    t.weight.requires_grad = True


def back_in_time(t: Training) -> None:
    now = t.optimizer.state_dict()
    t.step(gf.ones((5, 3)))
    t.optimizer.load_state_dict(now)


def step_of_the_bias(t: Training) -> None:
    t.optimizer.zero_grad()
    t.loss().backward()
    t.weight.grad = None
    t.optimizer.step()


CHANGES: dict[str, Callable[[Training], Any]] = {
    "read": lambda t: t.weight.grad is None,
    "held": lambda t: t.weight.grad,
    "a part held": lambda t: None if t.weight.grad is None else t.weight.grad[0],
    "held at the second reading": lambda t: (t.weight.grad is None) or t.weight.grad,
    "none": lambda t: setattr(t.weight, "grad", None),
    "replaced": replace,
    "all cleared": lambda t: t.optimizer.zero_grad(),
    "filled with zeros": lambda t: t.optimizer.zero_grad(set_to_none=False),
    "another backward pass": lambda t: t.loss().backward(),
    "a second graph": lambda t: t.loss().backward(create_graph=True),
    "frozen": lambda t: t.weight.requires_grad_(False),
    "frozen for a step": freeze_for_a_step,
    "another optimizer": lambda t: optim.SGD(t.model.parameters(), lr=0.1),
    "a plain step": lambda t: t.optimizer.step(),
    "a step of the bias": step_of_the_bias,
    "back in time": back_in_time,
    "earlier": lambda t: setattr(t.optimizer, "steps", 3),
    "rate": lambda t: t.optimizer.param_groups[0].update(lr=0.05),
    "one rate less": lambda t: t.optimizer.param_groups[0].update(betas=(0.5, 0.9)),
    "other parameters": lambda t: t.optimizer.param_groups[0]["params"].reverse(),
    "fewer parameters": lambda t: t.optimizer.param_groups[0].update(params=t.optimizer.param_groups[0]["params"][:1]),
    "other list": lambda t: t.optimizer.param_groups[0].update(params=[t.weight]),
    "array": lambda t: setattr(t.weight, "array", t.weight.array.copy()),
}


def losses_and_states(made: Training, do: Callable[[gf.Tensor], gf.Tensor], name: str) -> list[Any]:
    """What 24 steps and three changes between them lead to, and what the changes return."""
    x, found, kept = gf.ones((5, 3)), [], []
    for i in range(24):
        if i % 8 == 7:
            kept.append(CHANGES[name](made))
        found.append(do(x).tolist())
        if i % 8 == 3:
            found.append(made.state())
    return [*found, made.state(), *(each.tolist() for each in kept if isinstance(each, gf.Tensor))]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_between_replays_is_seen(step: Callable[[Training, gf.Tensor], gf.Tensor], name: str) -> None:
    """The captured step and the plain one lead to the same; nothing else computes gradients meanwhile."""
    plain, replayed = training(step), training(step)
    expected = losses_and_states(plain, plain.step, name)
    captured, statuses = gf.capture(replayed.step), []

    def do(x: gf.Tensor) -> gf.Tensor:
        loss = captured(x)
        statuses.append(captured.status)
        return loss

    assert losses_and_states(replayed, do, name) == expected
    assert statuses[6].startswith("replaying")


@pytest.mark.skipif(type(gf.get_backend("cpu")).graph is Backend.graph, reason="the calls of a replay move gradients")
def test_steady_replays_move_no_gradient() -> None:
    """Otherwise each would look at all of them."""
    made = training(clears_first)
    captured = gf.capture(made.step)
    for _ in range(5):
        captured(gf.ones((5, 3)))
    before = places.last_change
    captured(gf.ones((5, 3)))
    assert places.last_change == before


def test_gradients_that_a_replay_moves_are_seen() -> None:
    """The first of the steps that only add to gradients writes them, and the others add to them."""

    def losses(made: Training, do: Callable[[Any], Any]) -> list[Any]:
        def add(x: gf.Tensor) -> gf.Tensor:
            loss = made.model(x).square().mean()
            loss.backward()
            return loss

        steps = [*[do(add)] * 3, do(lambda x: clears_last(made, x))]
        return [[step(gf.ones((5, 3))).tolist() for step in steps] for _ in range(12)] + [made.state()]

    assert losses(training(adds), gf.capture) == losses(training(adds), lambda step: step)


def test_every_change_of_a_leaf_is_counted() -> None:
    made = training(clears_first)
    leaf: Any = made.weight._node
    values: Any = made.weight.array * 0.0
    claimed: list[Any] = []

    def read() -> None:
        assert leaf.grad is not None

    for change in (
        leaf.clear,
        lambda: leaves.claim([leaf], claimed),
        lambda: leaves.accumulate(leaf, values),
        lambda: leaves.release(claimed),
        leaf.clear,
        lambda: leaves.mark_filled([leaf]),
        read,
        read,
        leaf.saved(),
        leaf.mark_filled,
        lambda: setattr(leaf, "grad", gf.ones((2, 3))),
        leaf.clear,
        lambda: leaf.attach(values, lambda: None),
        lambda: made.weight.requires_grad_(False),
    ):
        before = places.last_change
        change()
        assert places.last_change > before


def test_a_gradient_that_is_assigned_before_each_step_is_the_one_that_it_reads() -> None:
    """Also if the tensor stays the same, but not its array."""

    def values(through: Callable[[Any], Any]) -> list[Any]:
        made, found = training(clears_first), []
        step = through(lambda: made.optimizer.step())
        kept = made.weight.grad = gf.ones((2, 3))
        for i in range(16):
            if i < 8:
                kept = made.weight.grad = gf.full((2, 3), float(i))
            else:
                kept.array = kept.array + 1.0
            step()
            found.append(made.weight.tolist())
        return found

    assert values(gf.capture) == values(lambda step: step)


def test_a_held_gradient_is_added_to_until_the_step_of_an_optimizer_whose_parameters_were_reordered() -> None:
    """A replay must not make the blocks of the new order earlier than the step does."""

    def values(through: Callable[[Any], Any]) -> list[Any]:
        made = training(adds)
        step = through(made.step)
        for _ in range(8):
            step(gf.ones((5, 3)))
        held = made.weight.grad
        assert held is not None
        made.optimizer.param_groups[0]["params"].reverse()
        step(gf.ones((5, 3)))
        return [held.tolist(), made.state()]

    assert values(gf.capture) == values(lambda step: step)


def test_a_check_restores_a_gradient_that_is_a_scalar_of_numpy() -> None:
    def gradients(through: Callable[[Any], Any]) -> list[Any]:
        x, found = gf.tensor(0.5, requires_grad=True), []
        (x * x).backward(create_graph=True)
        step = through(lambda y: (x * y).backward())
        for i in range(8):
            step(gf.tensor(1.0 + i))
            assert x.grad is not None
            found.append(x.grad.item())
        return found

    assert gradients(gf.capture(check=1)) == gradients(lambda step: step)
