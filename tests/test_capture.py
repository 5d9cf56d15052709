"""capture: what the plain step does, to the bit, whatever happens within a step or between two; what it refuses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from twin import twin_device

import gradflow as gf
from gradflow import nn, optim
from gradflow.optim import schedules
from gradflow.random import default_generator
from gradflow.testing import forbid_sync, host
from gradflow.tree import flatten

Step = Callable[..., Any]
STEPS = 6


def batches(rows: int = 8, dtype: str = "float32") -> Iterator[tuple[gf.Tensor, gf.Tensor]]:
    """Other values each time, the same ones in each training."""
    for i in range(STEPS):
        rng = np.random.default_rng(i)
        yield tuple(gf.tensor(rng.normal(size=(rows, n)).astype(dtype)) for n in (3, 2))  # type: ignore[misc]


class Training:
    """A model, its optimizer and a step; `history` has what each call gave and, by then, everything a step changes."""

    def __init__(
        self,
        through: Callable[[Step], Step],
        make: Callable[[Any], optim.Optimizer] = lambda p: optim.Adam(p, lr=0.05),
        dropout: float = 0.0,
        max_norm: float | None = None,
    ) -> None:
        gf.manual_seed(3)
        self.model = nn.MLP([3, 6, 5, 2], activation="tanh", dropout=dropout)
        self.optimizer = make(self.model.parameters())
        self.max_norm = max_norm
        self.call = through(self.step)
        self.history: list[Any] = []

    def step(self, x: gf.Tensor, y: gf.Tensor) -> Any:
        self.optimizer.zero_grad()
        return self.loss_and_update(x, y)

    def loss_and_update(self, x: gf.Tensor, y: gf.Tensor) -> Any:
        loss = gf.mse_loss(self.model(x), y)
        loss.backward()
        if self.max_norm is not None:
            norm = optim.clip_grad_norm_(self.model.parameters(), self.max_norm)
            self.optimizer.step()
            return {"loss": loss, "norm": norm}
        self.optimizer.step()
        return loss

    def run(self, *batch: gf.Tensor) -> None:
        try:
            result: Any = flatten(self.call(*batch))
        except ArithmeticError as error:
            result = [("", repr(error))]
        gradients = {name: p.grad for name, p in self.model.named_parameters()}
        everything = (result, self.model.state_dict(), gradients, self.optimizer.state_dict())
        self.history.append([(path, bits(x)) for path, x in flatten(everything)])
        self.history.append(default_generator.state_dict())


def bits(x: Any) -> Any:
    return (str(x.dtype), x.shape, host(x).tobytes()) if isinstance(x, gf.Tensor) else x


def as_it_is(step: Step) -> Step:
    return step


Scenario = Callable[[Callable[[Step], Step]], Training]


def assert_same(scenario: Scenario) -> None:
    """A scenario with a captured step leaves what it leaves with the plain one, call by call."""
    plain, captured = scenario(as_it_is), scenario(gf.capture)
    assert len(plain.history) >= 2 * STEPS
    assert plain.history[0] != plain.history[2], "the steps do not change anything, so that comparing proves nothing"
    assert captured.history == plain.history


def train(training: Training, between: Callable[[int], Any] = lambda i: None, **options: Any) -> Training:
    for i, batch in enumerate(batches(**options)):
        training.run(*batch)
        between(i)
    return training


# ---------------------------------------------------------------------- the same as the plain step


MAKERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, weight_decay=0.01),
    "SGD nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, lr=0.05, weight_decay=0.01),
    "AdamW": lambda p: optim.AdamW(p, lr=0.05),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.05, momentum=0.5, centered=True),
    "a schedule": lambda p: optim.Adam(p, lr=schedules.warmup(schedules.cosine(0.1, steps=6), steps=2)),
    "groups": lambda p: optim.SGD([{"params": list(p)[:2], "lr": 0.3}, {"params": list(p)[2:]}], lr=0.1),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_every_optimizer(make: Callable[[Any], optim.Optimizer], device: str) -> None:
    assert_same(lambda through: train(Training(through, make)))


def test_dropout_and_clipping_with_a_schedule(device: str) -> None:
    make = MAKERS["a schedule"]
    assert_same(lambda through: train(Training(through, make, dropout=0.4, max_norm=0.5)))


def test_inputs_that_change_their_shape_and_dtype(device: str) -> None:
    def scenario(through: Callable[[Step], Step]) -> Training:
        training = Training(through)
        for rows in (8, 3, 1, 8):
            train(training, rows=rows)
        return training

    assert_same(scenario)

    @gf.capture
    def total(x: gf.Tensor) -> gf.Tensor:
        return (x * x).sum()

    found = [total(gf.ones(shape, dtype)) for shape, dtype in ((3, "float32"), ((2, 4), "float64"), (3, "int64"))]
    assert [(x.item(), str(x.dtype)) for x in found] == [(3.0, "float32"), (8.0, "float64"), (3, "int64")]


def test_gradients_that_add_up(device: str) -> None:
    def scenario(through: Callable[[Step], Step]) -> Training:
        training = Training(through)
        training.call = through(training.loss_and_update)
        return train(training, lambda i: training.optimizer.zero_grad() if i == 2 else None)

    assert_same(scenario)


def test_a_step_that_reads_and_changes_python_values(device: str) -> None:
    def scenario(through: Callable[[Step], Step]) -> Training:
        training, count = Training(through), iter(range(100))

        def step(x: gf.Tensor, y: gf.Tensor) -> Any:
            n = next(count)
            loss = gf.mse_loss(training.model(x), y) * 0.5**n
            if n % 3 == 0:
                training.optimizer.zero_grad()
            loss.backward()
            if float(loss) < 0.1 or n % 2:
                training.optimizer.step()
            return loss

        training.call = through(step)
        return train(training)

    assert_same(scenario)


CHANGES: dict[str, Callable[[Training], Any]] = {
    "evaluation": lambda t: t.model.train(not t.model.training),
    "the learning rate": lambda t: t.optimizer.param_groups[0].update(lr=0.5),
    "the decay": lambda t: t.optimizer.param_groups[0].update(weight_decay=0.5),
    "the seed": lambda t: gf.manual_seed(8),
    "a dropout": lambda t: setattr(t.model[1], "p", 0.9),
    "an activation": lambda t: setattr(t.model[0], "activation", "relu"),
    "a layer frozen": lambda t: t.model[0].requires_grad_(not t.model[0].weight.requires_grad),
    "a layer replaced": lambda t: setattr(t.model, "2", nn.Linear(6, 5)),
    "another optimizer": lambda t: setattr(t, "optimizer", optim.SGD(t.model.parameters(), lr=0.2)),
    "a hook": lambda t: t.model[0].register_forward_hook(lambda module, inputs, out: out * 2),
    "a hook on gradients": lambda t: t.model[0].weight.register_hook(lambda g: g * 2),
    "a gradient held": lambda t: t.history.append(t.model[0].weight.grad.tolist()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_between_calls(change: Callable[[Training], Any], device: str) -> None:
    def scenario(through: Callable[[Step], Step], when: tuple[int, ...] = (1, 3)) -> Training:
        training = Training(through, lambda p: optim.AdamW(p, lr=0.05), dropout=0.3)
        return train(training, lambda i: change(training) if i in when else None)

    assert_same(scenario)
    assert scenario(gf.capture).history != scenario(gf.capture, ()).history


def test_states_loaded_between_calls(device: str) -> None:
    def scenario(through: Callable[[Step], Step]) -> Training:
        training, saved = Training(through), []

        def between(i: int) -> None:
            if i == 1:
                saved.extend([training.model.state_dict(), training.optimizer.state_dict()])
            if i == 3:
                training.model.load_state_dict(saved[0])
            if i == 4:
                training.optimizer.load_state_dict(saved[1])

        return train(training, between)

    assert_same(scenario)


@pytest.mark.parametrize("place", ["before", "after the backward pass", "after the step"])
def test_exceptions_leave_what_they_leave_in_the_plain_step(place: str, device: str) -> None:
    def scenario(through: Callable[[Step], Step]) -> Training:
        training, count = Training(through, dropout=0.2), iter(range(100))

        def step(x: gf.Tensor, y: gf.Tensor) -> Any:
            fails = next(count) in (0, 3)
            training.optimizer.zero_grad()
            loss = gf.mse_loss(training.model(x), y)
            if fails and place == "before":
                raise ArithmeticError(place)
            loss.backward()
            if fails and place == "after the backward pass":
                raise ArithmeticError(place)
            training.optimizer.step()
            if fails:
                raise ArithmeticError(place)
            return loss

        training.call = through(step)
        return train(training)

    assert_same(scenario)


# ---------------------------------------------------------------------- what goes in and comes out


class Pair(NamedTuple):
    first: Any
    second: Any


@pytest.mark.parametrize("of", [
    lambda x: None, lambda x: x, lambda x: (x, x + 1), lambda x: {"a": [x, None], "b": Pair(x, (x,))}, lambda x: []
])  # fmt: skip
def test_results_come_as_the_step_returns_them(of: Callable[[Any], Any]) -> None:
    returned = []

    @gf.capture
    def step(x: gf.Tensor) -> Any:
        returned.append(of(x))
        return returned[-1]

    for _ in range(3):
        assert step(gf.ones(2)) is returned[-1]


def test_it_waits_for_nothing(device: str) -> None:
    training = Training(gf.capture, dropout=0.2, max_norm=1.0)
    for x, y in list(batches()):
        with forbid_sync():
            training.call(x, y)


def test_inputs_by_name_and_none_at_all() -> None:
    @gf.capture
    def difference(x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        return x - y

    assert difference(y=gf.ones(1), x=gf.zeros(1)).tolist() == [-1.0]
    assert gf.capture(lambda: gf.ones(2))().tolist() == [1.0, 1.0]


def test_anything_that_can_be_called() -> None:
    model = nn.Linear(2, 1)
    x = gf.ones((1, 2))
    captured = gf.capture(model)
    assert captured(x).tolist() == model(x).tolist()
    assert not hasattr(captured, "training")
    assert gf.capture(functools.partial(gf.add, gf.ones(1)))(gf.ones(1)).tolist() == [2.0]


def test_it_keeps_the_name_of_the_step() -> None:
    @gf.capture
    def train_step(x: gf.Tensor) -> gf.Tensor:
        """A step."""
        return x

    assert (train_step.__name__, train_step.__doc__) == ("train_step", "A step.")


@pytest.mark.parametrize("what", [None, 3, gf.tensor(1.0)])
def test_what_cannot_be_called_is_refused(what: Any) -> None:
    with pytest.raises(TypeError, match=f"capture takes a function .* got {type(what).__name__}"):
        gf.capture(what)


@pytest.mark.parametrize("inputs", [(1.5,), (np.ones(2),), ([1.0],)])
@pytest.mark.parametrize("by_name", [False, True])
def test_inputs_that_are_no_tensors_are_refused_before_the_step(inputs: tuple[Any], by_name: bool) -> None:
    called: list[Any] = []
    captured = gf.capture(lambda x, y: called.append(x))
    with pytest.raises(TypeError, match=f"a captured step takes tensors; got {type(inputs[0]).__name__}"):
        captured(gf.ones(1), y=inputs[0]) if by_name else captured(gf.ones(1), *inputs)
    assert called == []


def test_inputs_on_different_devices_are_refused_before_the_step() -> None:
    called: list[Any] = []
    captured = gf.capture(lambda x, y: called.append(x))
    with twin_device() as twin, pytest.raises(gf.DeviceMismatchError) as refusal:
        captured(gf.ones(3), gf.ones((2, 1), device=twin))
    assert "a captured step got tensors on different devices: (3,) float32 on cpu, (2, 1)" in str(refusal.value)
    assert called == []


def test_results_that_are_no_tensors_are_refused() -> None:
    captured = gf.capture(lambda x: {"loss": x, "seen": (x, x.sum().item())})
    with pytest.raises(TypeError, match=r"result\['seen'\]\[1\] is float: return the tensor"):
        captured(gf.ones(1))
