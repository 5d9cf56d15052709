"""capture: a captured step does what the plain step does, bit for bit, whatever happens in a call or between calls."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import itertools
import os
import re
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
from captured_steps import Step, as_it_is, held, make_training_of_a_layer
from twin import twin_device

import gradflow as gf
from gradflow import nn, optim
from gradflow.interception import recorders
from gradflow.optim import schedules
from gradflow.optim.averaging import WeightAverage
from gradflow.random import default_generator
from gradflow.replay.batches import has_graphs
from gradflow.testing import forbid_sync, host
from gradflow.tree import flatten
from tests.devices import replays

pytestmark = pytest.mark.usefixtures("no_hooks_of_earlier_tests")
STEPS = 6


def batches(rows: int = 8, dtype: str = "float32") -> Iterator[tuple[gf.Tensor, gf.Tensor]]:
    """Batches with different values, the same in each training."""
    for i in range(STEPS):
        rng = np.random.default_rng(i)
        yield tuple(gf.tensor(rng.normal(size=(rows, n)).astype(dtype)) for n in (3, 2))  # type: ignore[misc]


class Training:
    """A model, its optimizer and a step; `history` has the results of each call and the state that it left."""

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


Scenario = Callable[[Callable[[Step], Step]], Training]


def assert_same(scenario: Scenario) -> None:
    """Assert that a scenario has the same history with a captured step as with the plain one."""
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
    "Adam amsgrad": lambda p: optim.Adam(p, lr=0.05, amsgrad=True, maximize=True),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.05, lr_decay=0.1),
    "NAdam": lambda p: optim.NAdam(p, lr=0.05),
    "RAdam": lambda p: optim.RAdam(p, lr=0.05, weight_decay=0.1, decoupled_weight_decay=True),
    "Lion": lambda p: optim.Lion(p, lr=0.05, weight_decay=0.1),
    "a schedule": lambda p: optim.Adam(p, lr=schedules.warmup(schedules.cosine(0.1, steps=6), steps=2)),
    "groups": lambda p: optim.SGD([{"params": part, "lr": lr} for part, lr in zip(halves(p), (0.3, 0.1), strict=True)]),
}


def halves(parameters: Iterable[gf.Tensor]) -> tuple[list[gf.Tensor], list[gf.Tensor]]:
    """Return the first two parameters, and the others."""
    first, second, *others = parameters
    return [first, second], others


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
    "a layer replaced": lambda t: setattr(t.model, "1", nn.Linear(6, 5)),
    "another optimizer": lambda t: setattr(t, "optimizer", optim.SGD(t.model.parameters(), lr=0.2)),
    "a hook": lambda t: t.model[0].register_forward_hook(lambda module, inputs, out: out * 2),
    "a hook on gradients": lambda t: t.model[0].weight.register_hook(lambda g: g * 2),
    "an array replaced": lambda t: setattr(t.model[0].weight, "array", (t.model[0].weight.detach() * 0.5).array),
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


RANDOM: dict[str, Step] = {
    "dropout": lambda x: gf.dropout(x, 0.5),
    "two masks of one generator": lambda x: (
        gf.dropout(x, 0.25, generator=GENERATOR) + gf.dropout(x * 2, 0.5, generator=GENERATOR)
    ),
    "numbers": lambda x: (gf.random.normal(3, device=x.device) * x, gf.random.uniform(5, device=x.device)),
    "a shuffle": lambda x: x[gf.random.permutation(4, device=x.device)],
    "no numbers": lambda x: x * gf.random.uniform((0, 3), device=x.device).sum(),
}


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("check", [None, 4])
def test_a_replay_draws_the_numbers_that_the_step_would_draw(name: str, check: int | None, device: str) -> None:
    found: list[list[Any]] = []
    for through in (as_it_is, functools.partial(gf.capture, check=check)):
        gf.manual_seed(7)
        GENERATOR.manual_seed(8)
        call, results = through(RANDOM[name]), []
        for i in range(9):
            if i == 6:
                gf.manual_seed(9)
                gf.random.uniform(3)
            results += [bits(x) for _, x in flatten(call(gf.ones((4, 3))))]
            results += [default_generator.state_dict(), GENERATOR.state_dict()]
        found.append(results)
    assert found[0] == found[1]
    computes_on_host = not gf.get_backend().uint64_works and name in ("numbers", "a shuffle", "no numbers")
    assert replays(call.status) or computes_on_host  # type: ignore[attr-defined]


def test_a_checkpoint_that_draws_again_is_not_replayed() -> None:
    w = gf.ones(3, requires_grad=True)

    def step(x: gf.Tensor) -> None:
        gf.checkpoint(lambda y: gf.dropout(y * w, 0.5), x).sum().backward()

    captured = gf.capture(step)
    for _ in range(4):
        captured(gf.ones(3))
    assert captured.status.startswith("sets random generators back to draw the same numbers again: ")


@pytest.mark.parametrize("place", ["before", "after the backward pass", "after the step"])
def test_exceptions_leave_what_they_leave_in_the_plain_step(place: str, device: str) -> None:
    def scenario(through: Callable[[Step], Step]) -> Training:
        training, count = Training(through, dropout=0.2), iter(range(100))

        def step(x: gf.Tensor, y: gf.Tensor) -> Any:
            fails = next(count) in (0, 2)
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


# ---------------------------------------------------------------------- when it is replayed


class Counted:
    """A step that counts how often its Python runs."""

    def __init__(self, step: Step) -> None:
        self.step, self.runs = step, 0
        self.captured = gf.capture(self.run)

    def run(self, *inputs: gf.Tensor) -> Any:
        self.runs += 1
        return self.step(*inputs)

    def runs_of(self, calls: int, *inputs: gf.Tensor) -> int:
        """How often the step's Python runs in a number of calls."""
        before = self.runs
        for _ in range(calls):
            self.captured(*(inputs or (gf.ones((4, 3)),)))
        return self.runs - before


def test_a_step_of_training_is_recorded_and_replayed(device: str) -> None:
    training = Training(as_it_is, max_norm=1.0)
    counted = Counted(training.step)
    inputs = [gf.ones((8, 3)), gf.zeros((8, 2))]
    assert counted.runs_of(9, *inputs) <= 3  # in the first there are neither gradients nor buffers for them
    assert counted.runs_of(5, *inputs) == 0
    assert counted.runs_of(5, gf.ones((5, 3)), gf.zeros((5, 2))) == 2
    assert counted.runs_of(5, *inputs) == 0


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in ("a gradient held", "a layer replaced")])
def test_it_is_recorded_anew_after_a_change_or_runs_as_it_is(name: str) -> None:
    training = Training(as_it_is, lambda p: optim.AdamW(p, lr=0.05))
    counted = Counted(training.step)
    batch = gf.ones((8, 3)), gf.zeros((8, 2))
    counted.runs_of(6, *batch)
    CHANGES[name](training)
    decides_no_call = name in ("the learning rate", "the decay", "the seed")
    assert counted.runs_of(6, *batch) in ([0] if decides_no_call else [2, 3, 4, 6])


KEPT = gf.zeros(3)
GENERATOR = gf.Generator(5)
STATE = GENERATOR.state_dict()
COUNTER = iter(range(1000))

AS_IT_IS: dict[str, Step] = {
    "a seed": lambda x: gf.dropout(x, 0.5, generator=gf.Generator(3)),
    "a generator that is set": lambda x: gf.dropout(x, 0.5, generator=GENERATOR.load_state_dict(STATE)),
    "a counter that is set": lambda x: (setattr(GENERATOR, "counter", 2), gf.dropout(x, 0.5, generator=GENERATOR))[1],
    "initial weights": lambda x: x * nn.Linear(2, 3).weight.sum(),
    "a value that is read": lambda x: x * float(x.sum()),
    "a value that is printed": lambda x: x * len(repr(x)),
    "a value that is formatted": lambda x: x * len(f"{x}"),
    "a branch": lambda x: x if x.sum() > 0 else x * 2,
    "a change in place": lambda x: KEPT.copy_(x.sum(axis=0)) * 1,
    "an index that is assigned": lambda x: KEPT.__setitem__(0, x.sum()),
    "an operator that assigns": lambda x: KEPT.__iadd__(x.sum(axis=0)),
    "a counter": lambda x: x * next(COUNTER),
    "new numbers from the host": lambda x: x + gf.tensor([1.0, 2.0, next(COUNTER)]),
    "new numbers of NumPy": lambda x: x + gf.tensor(np.ones(3)).to("float32"),
    "a result that it did not compute": lambda x: KEPT,
    "an input as the result": lambda x: x,
}


@pytest.mark.parametrize("step", AS_IT_IS.values(), ids=AS_IT_IS)
def test_what_no_replay_can_do_runs_as_it_is(step: Step) -> None:
    counted = Counted(step)
    assert counted.runs_of(20) == 20


def test_hooks_are_called_each_time() -> None:
    layer, calls = nn.Linear(3, 2), []
    counted = Counted(lambda x: layer(x).sum().backward())
    with layer.register_forward_hook(lambda *_: calls.append("forward")):
        counted.runs_of(9)
    with layer.weight.register_hook(lambda _: calls.append("backward")):
        counted.runs_of(9)
    assert calls == ["forward"] * 9 + ["backward"] * 9


def test_a_step_without_inputs_is_replayed(device: str) -> None:
    training = Training(as_it_is)
    x, y = gf.ones((8, 3)), gf.zeros((8, 2))
    counted = Counted(lambda: training.step(x, y))
    losses = [counted.captured().item() for _ in range(9)]
    assert counted.runs <= 3
    again = Training(as_it_is)
    assert losses == [again.step(x, y).item() for _ in range(9)]


def test_an_input_that_the_step_also_knows_otherwise() -> None:
    known = gf.ones(2)
    captured = gf.capture(lambda x: x * 10 + known)
    assert [captured(known).tolist() for _ in range(3)] == [[11.0, 11.0]] * 3
    assert captured(gf.zeros(2)).tolist() == [1.0, 1.0]


def test_one_tensor_given_twice() -> None:
    captured = gf.capture(lambda x, y: x * 10 + y)
    x = gf.ones(2)
    assert [captured(x, x).tolist() for _ in range(3)] == [[11.0, 11.0]] * 3
    assert captured(x, gf.zeros(2)).tolist() == [10.0, 10.0]


def test_conditions_are_replayed() -> None:
    def step(x: gf.Tensor) -> Any:
        finite = gf.isfinite(x.sum())
        return (x > 0).any(), (x > -5).all(), finite, gf.where(gf.logical_and(finite, (x > 0).all()), x, -x)

    counted = Counted(step)
    counted.runs_of(3, gf.ones(2))
    for values in ([1.0, 1.0], [-1.0, -1.0], [-9.0, 9.0], [1.0, float("inf")]):
        x = gf.tensor(values)
        assert values_of(counted.captured(x)) == values_of(step(x))
    assert counted.runs == 2


def test_the_values_of_all_tensors_are_current() -> None:
    scale, scalar = gf.ones(2), gf.tensor(1.0).sum()
    scalar.detach()
    counted = Counted(lambda x: x * scale * scalar)
    counted.runs_of(3, gf.ones(2))
    scale.copy_(gf.full(2, 3.0))
    scalar.copy_(gf.tensor(2.0))
    assert counted.captured(gf.ones(2)).tolist() == [6.0, 6.0]


def test_a_model_elsewhere_than_the_inputs() -> None:
    """Calls on another device are not recorded, so such a step must run normally."""
    with twin_device() as twin:
        layer = nn.Linear(3, 2, device=twin)
        optimizer = optim.SGD(layer.parameters(), lr=0.1)

        def step(x: gf.Tensor) -> None:
            optimizer.zero_grad()
            layer(x.to(twin)).sum().backward()
            optimizer.step()

        assert Counted(step).runs_of(9) == 9
        before = layer.weight.tolist()
        assert Counted(lambda: step(gf.ones((4, 3)))).runs_of(0) == 0
        captured = gf.capture(lambda: step(gf.ones((4, 3))))
        for _ in range(4):
            captured()
            assert layer.weight.tolist() != before
            before = layer.weight.tolist()


def test_a_flag_of_python_is_as_it_was_recorded() -> None:
    flags = {"double": False}
    captured = gf.capture(lambda x: x * 2 if flags["double"] else x * 1)
    assert [captured(gf.ones(1)).item() for _ in range(3)] == [1.0] * 3
    flags["double"] = True
    assert captured(gf.ones(1)).item() == 1.0
    assert captured(gf.ones((1, 1))).item() == 2.0  # recorded now


def test_many_kinds_of_inputs() -> None:
    counted = Counted(lambda x: x * 2)
    for n in range(1, 40):
        assert counted.captured(gf.ones(n)).shape == (n,)
    assert counted.runs_of(4, gf.ones(3)) == 1
    assert counted.runs_of(4, gf.ones(39)) == 4


def test_in_and_outside_of_no_grad() -> None:
    w = gf.ones(2, requires_grad=True)

    def step(x: gf.Tensor) -> gf.Tensor:
        w.zero_grad()
        y = (w * x).sum()
        if y.requires_grad:
            y.backward()
        return y

    counted = Counted(step)
    for i in range(3):
        with gf.no_grad():
            counted.captured(gf.ones(2) * i)
        counted.captured(gf.ones(2) * i)
        assert w.grad is not None
        assert w.grad.tolist() == [i, i]


def test_nothing_stays_behind_in_the_backend(device: str) -> None:
    backend = gf.get_backend(device)
    gc.collect()  # the fake device counts the memory in use
    before = dict(vars(backend))

    def fail(x: gf.Tensor) -> None:
        raise ArithmeticError

    captured = gf.capture(fail)
    for _ in range(3):
        with pytest.raises(ArithmeticError):
            captured(gf.ones(2))
        gf.capture(lambda x: x * 2)(gf.ones(2))
    del captured
    gc.collect()
    assert dict(vars(backend)) == before


def test_steps_of_several_threads() -> None:
    def train_one(seed: int) -> list[float]:
        generator = gf.Generator(seed)
        model = nn.MLP([3, 8, 2], generator=generator)
        optimizer = optim.Adam(model.parameters(), lr=0.01)

        def step(x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
            optimizer.zero_grad()
            loss = gf.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        call = gf.capture(step) if threading.current_thread() is not threading.main_thread() else step
        return [call(x, y).item() for x, y in batches() for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(train_one, range(8)))
    assert found == [train_one(seed) for seed in range(8)]


def test_a_captured_step_within_another() -> None:
    inner = Counted(lambda x: x * 2)
    outer = Counted(lambda x: inner.captured(x) + 1)
    assert [outer.captured(gf.ones(1)).item() for _ in range(4)] == [3.0] * 4
    assert outer.runs == 2


def test_an_observed_step_is_not_replayed() -> None:
    layer = nn.Linear(3, 2)
    counted = Counted(lambda x: layer(x).sum().backward())
    counted.runs_of(4)
    with gf.detect_anomaly():
        assert counted.runs_of(3) == 3
    assert counted.runs_of(3) == 0


# ---------------------------------------------------------------------- what is easily missed


def trained(through: Callable[[Step], Step], work: Callable[[nn.Linear, optim.Optimizer, gf.Tensor], Any]) -> Any:
    """The weights after each of several calls of the step `work` on different inputs."""
    gf.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    call = through(lambda x: work(model, optimizer, x))
    found = []
    for x, _ in list(batches()) * 2:
        call(x)
        found.append(model.weight.tolist())
    return found


def assign_gradients(model: nn.Linear, optimizer: optim.Optimizer, x: gf.Tensor) -> None:
    parameters = dict(model.named_parameters())
    for name, g in gf.grad(lambda p: nn.functional_call(model, p, x).square().mean())(parameters).items():
        parameters[name].grad = g
    optimizer.step()


def scale_gradients(model: nn.Linear, optimizer: optim.Optimizer, x: gf.Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    for p in model.parameters():
        p.grad = held(p) * 0.1
    optimizer.step()


def clear_by_none(model: nn.Linear, optimizer: optim.Optimizer, x: gf.Tensor) -> None:
    for p in model.parameters():
        p.grad = None
    (model.weight.square().sum() + model(x).square().mean()).backward()
    optimizer.step()


def set_the_rate(model: nn.Linear, optimizer: optim.Optimizer, x: gf.Tensor) -> None:
    optimizer.param_groups[0]["lr"] = 0.5 / (optimizer.steps + 1)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def select_by_a_mask(model: nn.Linear, optimizer: optim.Optimizer, x: gf.Tensor) -> None:
    optimizer.zero_grad()
    y = model(x)
    y[y > 0].square().sum().backward()
    optimizer.step()


def clip_what_is_given_by_name(model: nn.Linear, optimizer: optim.Optimizer, x: gf.Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optim.clip_grad_norm_(max_norm=0.1, parameters=dict(model.named_parameters()).values())
    optimizer.step()


def parameters_of(optimizer: optim.Optimizer) -> list[gf.Tensor]:
    members: list[gf.Tensor] = optimizer.param_groups[0]["params"]
    return members


def lower_the_rate_afterwards(model: nn.Linear, optimizer: optim.Optimizer, x: gf.Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] *= 0.9


def lower_the_rate_of_a_group_that_is_held(model: nn.Linear, optimizer: optim.Optimizer, x: gf.Tensor) -> None:
    if not hasattr(model, "group"):
        model.group = optimizer.param_groups[0]
    model.group["lr"] *= 0.9
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def leave_one_out(model: nn.Linear, optimizer: optim.Optimizer, x: gf.Tensor) -> None:
    members = parameters_of(optimizer)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    bias = members.pop()
    optimizer.step()
    members.append(bias)


def train_one_every_other_time(model: nn.Linear, optimizer: optim.Optimizer, x: gf.Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    members = parameters_of(optimizer)
    members.pop() if len(members) == 2 else members.append(model.bias)


class Batch:
    """A batch stored as an attribute, as a trainer would."""

    x: gf.Tensor

    def loss(self, model: nn.Linear) -> gf.Tensor:
        model.zero_grad()
        loss = model(self.x).square().mean()
        loss.backward()
        return loss


BATCH = Batch()


def step_by_a_closure(model: nn.Linear, optimizer: optim.Optimizer, x: gf.Tensor) -> None:
    BATCH.x = x
    if not hasattr(optimizer, "closure"):
        optimizer.closure = functools.partial(BATCH.loss, model)  # type: ignore[attr-defined]
    optimizer.step(optimizer.closure)  # type: ignore[attr-defined]


def guard_what_is_not_finite(model: nn.Linear, optimizer: optim.Optimizer, x: gf.Tensor) -> None:
    optimizer.zero_grad()
    loss = model(x).sum()
    finite = gf.logical_and(gf.isfinite(loss), gf.isfinite(loss * 2))
    gf.where(gf.logical_and((x.sum() > 0).any(), finite), loss, loss * 2).backward()
    optimizer.step()


FILLED = np.zeros((8, 2), np.float32)


def fill(F: Any, x: Any) -> Any:
    np.multiply(x, 2, out=FILLED[: len(x)])
    return FILLED[: len(x)] if len(x) < len(FILLED) else FILLED


FILL = gf.operation("fill", fill, lambda F, g, _out, _x: F.multiply(g, 2.0))


def use_an_operation_of_ones_own(model: nn.Linear, optimizer: optim.Optimizer, x: gf.Tensor) -> None:
    optimizer.zero_grad()
    FILL(model(x)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("work", [
    assign_gradients, scale_gradients, clear_by_none, set_the_rate, select_by_a_mask, clip_what_is_given_by_name,
    lower_the_rate_afterwards, leave_one_out, train_one_every_other_time, step_by_a_closure, guard_what_is_not_finite,
    lower_the_rate_of_a_group_that_is_held, use_an_operation_of_ones_own,
])  # fmt: skip
def test_what_steps_do_with_gradients_and_rates(work: Callable[..., Any]) -> None:
    assert trained(gf.capture, work) == trained(as_it_is, work)


def test_clipping_is_replayed_however_the_parameters_are_given() -> None:
    model = nn.Linear(3, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    counted = Counted(lambda x: clip_what_is_given_by_name(model, optimizer, x))
    assert counted.runs_of(9) <= 3


def test_gradients_that_are_read_between_calls_leave_it_replaying() -> None:
    training = Training(gf.capture)
    for i, batch in enumerate(batches()):
        training.run(*batch)  # which reads all gradients
        assert i < 3 or replays(training.call.status)  # type: ignore[attr-defined]


@pytest.mark.parametrize("of", [
    lambda g: g, lambda g: g[:1], lambda g: g.reshape(-1), lambda g: g.detach(), lambda g: (g[:1], g)[0],
])  # fmt: skip
def test_a_gradient_that_is_held_stays_what_it_was(of: Callable[[gf.Tensor], gf.Tensor]) -> None:
    model, _, step = make_training_of_a_layer()
    counted = Counted(step)
    counted.runs_of(4)
    gradient = of(held(model.weight))
    before = gradient.tolist()
    counted.captured(gf.full((4, 3), 9.0))
    assert gradient.tolist() == before
    del gradient
    counted.runs_of(2)
    assert counted.runs_of(3) == 0


def test_a_gradient_as_a_result_is_a_copy() -> None:
    model, _, step = make_training_of_a_layer()
    captured = gf.capture(lambda x: (step(x), model.weight.grad, held(model.weight)[:1], model.weight[0]))
    results = []
    for x, _ in list(batches()) * 2:
        found = captured(x)[1:]
        results.append((found, values_of(found)))
        assert found[0].tolist() == held(model.weight).tolist()
    assert all(values_of(found) == values for found, values in results)


def test_results_share_no_memory() -> None:
    captured = gf.capture(lambda x: (x.reshape(-1), x * 2, (x * 2).reshape(-1)))
    for _ in range(4):
        x = gf.ones(3)
        first = captured(x)
        x.zero_()
        first[1].zero_()
        assert [t.tolist() for t in first] == [[1.0] * 3, [0.0] * 3, [2.0] * 3]


class Around(nn.Module):
    """A module that contains `model`, with a given forward."""

    def __init__(self, model: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self.call = forward

    def forward(self, *inputs: gf.Tensor) -> Any:
        return self.call(*inputs)


def test_parameters_that_functional_call_replaces() -> None:
    model, x = nn.Linear(3, 2, bias=False), gf.ones((1, 3))
    captured = gf.capture(lambda x: model(x))

    around, zeros = Around(model, captured), {"model.weight": gf.zeros((2, 3))}
    for _ in range(4):
        for _ in range(3):
            assert captured(x).tolist() == model(x).tolist()
        for _ in range(3):
            assert nn.functional_call(around, zeros, x).tolist() == [[0.0, 0.0]]


def test_a_frozen_model_that_moves() -> None:
    model, x = nn.Linear(3, 2).requires_grad_(False), gf.ones((1, 3))
    captured = gf.capture(lambda x: model(x))
    for _ in range(4):
        captured(x)
    model.to("float64").to("float32").load_state_dict({"weight": np.ones((2, 3), "f"), "bias": np.zeros(2, "f")})
    assert captured(x).tolist() == [[3.0, 3.0]]


def test_a_gradient_that_is_only_read() -> None:
    model, _, step = make_training_of_a_layer()
    captured = gf.capture(lambda: held(model.weight).sum())
    for i in range(8):
        step(gf.full((2, 3), float(i + 1)))
        assert captured().item() == held(model.weight).sum().item()
    model.weight.grad = gf.ones((2, 3))
    assert captured().item() == 6.0


@pytest.mark.parametrize("calls", [1, 2, 3, 9])
def test_what_a_step_does_to_its_inputs(calls: int) -> None:
    w = gf.tensor([1.0, 2.0, 3.0], requires_grad=True)
    x = gf.ones(3)

    def differentiate(x: gf.Tensor) -> None:
        x.requires_grad_()
        x.zero_grad()
        (w * x).square().sum().backward()

    captured = gf.capture(differentiate)
    for _ in range(calls):
        captured(x)
    assert held(x).tolist() == [2.0, 8.0, 18.0]
    total = gf.ones(3).sum()
    captured = gf.capture(lambda x: x.copy_(x + 1))
    for _ in range(calls):
        captured(total)
    assert total.item() == 3.0 + calls
    saved = gf.ones(3)
    double = gf.capture(lambda x: x.copy_(x * 2))
    for _ in range(calls):
        double(saved)
    product = (w * saved).sum()
    double(saved)
    with pytest.raises(RuntimeError, match="changed in place"):
        product.backward()


@pytest.mark.parametrize("calls", [1, 2, 3, 9])
def test_a_gradient_as_an_input(calls: int) -> None:
    def scenario(through: Callable[[Step], Step]) -> list[Any]:
        w = gf.tensor([1.0, 2.0], requires_grad=True)
        optimizer = optim.SGD([w], lr=0.1)

        def step(g: gf.Tensor) -> gf.Tensor:
            optimizer.zero_grad()
            (w * g.sum()).sum().backward()
            return g * 1

        call, found = through(step), []
        (w * w).sum().backward()
        for _ in range(calls):
            found.append(call(held(w)).tolist())
        return found

    assert scenario(gf.capture) == scenario(as_it_is)


def test_places_of_gradients_that_are_free_or_not() -> None:
    def scenario(through: Callable[[Step], Step]) -> list[Any]:
        gf.manual_seed(0)
        layer = nn.Linear(16, 16)
        optimizer = optim.SGD(layer.parameters(), lr=0.01)

        def step(x: gf.Tensor) -> None:
            for _ in range(4):
                x = layer(x)
            x.square().mean().backward()
            optimizer.step()

        call, found = through(step), []
        for i in range(12):
            call(gf.random.normal((8, 16), generator=gf.Generator(i)))
            found.append(layer.weight.tolist())
            gradient = held(layer.weight) if i % 4 == 3 else None
            optimizer.zero_grad()
            del gradient
        return found

    assert scenario(gf.capture) == scenario(as_it_is)


def test_a_step_may_wait_for_another_thread_that_captures() -> None:
    def inner() -> float:
        return float(gf.capture(lambda x: x * 2)(gf.ones(1)).item())

    with ThreadPoolExecutor(1) as pool:
        outer = gf.capture(lambda x: x * pool.submit(inner).result(timeout=60))
        assert [outer(gf.ones(1)).item() for _ in range(3)] == [2.0] * 3


def test_a_step_that_threads_share_while_the_model_changes() -> None:
    model, stop = nn.Linear(3, 2), threading.Event()
    captured = gf.capture(lambda x: model(x))
    x = gf.ones((1, 3))
    expected = model(x).tolist()

    def change() -> None:
        while not stop.wait(0.001):
            model.mark = object()

    def call(_: int) -> bool:
        return all(captured(x).tolist() == expected for _ in range(300))

    changer = threading.Thread(target=change)
    changer.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            assert all(pool.map(call, range(3)))
    finally:
        stop.set()
        changer.join()


def test_a_replay_lets_go_of_what_it_no_longer_needs() -> None:
    def chain(x: gf.Tensor) -> gf.Tensor:
        for _ in range(20):
            x = x * 1.5
        return x.sum()

    captured, x = gf.capture(chain), gf.ones(1 << 18)
    for _ in range(3):
        captured(x)
    tracemalloc.start()
    try:
        captured(x)
        assert tracemalloc.get_traced_memory()[1] < 4 * 4 * x.size
    finally:
        tracemalloc.stop()


def test_nothing_is_kept_when_it_is_gone() -> None:
    model, _, step = make_training_of_a_layer()
    captured = gf.capture(step)
    for n in (1, 2, 2, 2, 3):
        captured(gf.ones((n, 3)))
    array = weakref.ref(model.weight.array)
    gc.disable()
    try:
        del model, step, captured, _
        assert array() is None
    finally:
        gc.enable()


# ---------------------------------------------------------------------- what a step uses, and what it does not


class Parts(nn.Module):
    """A module that is not called itself, with modules in a list, a buffer, and attributes that its loss depends on."""

    extra: list[nn.Module]

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.MLP([3, 6, 5], activation="tanh")
        self.head = nn.Linear(5, 2)
        self.extra = [nn.Linear(5, 2).requires_grad_(False)]
        self.register_buffer("shift", gf.full(2, 0.25))
        self.register_buffer("bend", gf.full(2, 0.75))

    def loss(self, x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        h = self.body(x)
        out = self.head(h) + self.extra[0](h) + self.shift
        out = out * 0.5 if not self.body[0].training else out
        out = out * getattr(self, "bend", 0.5)
        return gf.mse_loss(out * 3.0 if hasattr(self, "triple") else out, y)


class Untold(nn.Module):
    """A module that each call of the step creates."""

    def __init__(self) -> None:
        super().__init__()
        self.p = 2.0

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        return (x * self.p).mean()


class World:
    """A step that uses some objects and not others; `history` has the results and the state of each call."""

    def __init__(self, through: Callable[[Step], Any]) -> None:
        gf.manual_seed(5)
        self.parts = Parts()
        self.options = nn.Module()
        self.options.alpha = 1.5
        self.scale = gf.full(3, 0.5)
        self.switch = gf.ones(1)
        self.precision = nn.Linear(1, 1)
        self.optimizer = optim.Adam(list(self.parts.body.parameters()), lr=0.05)
        self.other = nn.MLP([3, 4, 2], dropout=0.5)
        self.other_tensor = gf.ones(3, requires_grad=True)
        self.other_optimizer = optim.SGD(self.other.parameters(), lr=0.1)
        self.handles: list[Any] = []
        self.call = through(self.step)
        self.history: list[Any] = []
        self.seen: list[str] = []

    def step(self, x: gf.Tensor, y: gf.Tensor) -> Any:
        self.optimizer.zero_grad()
        self.parts.head.zero_grad()
        loss = self.parts.loss(x.astype(self.precision.weight.dtype).astype("float32") * self.scale, y)
        loss = loss * self.options.alpha + Untold()(loss)
        if self.switch.requires_grad:
            loss = loss * 2.0
        loss.backward()
        self.optimizer.step()
        return loss

    def all_of(self, result: Any) -> list[tuple[str, Any]]:
        gradients = {name: p.grad for name, p in self.parts.named_parameters()}
        return flatten((result, self.parts.state_dict(), gradients, self.scale.grad, self.optimizer.state_dict()))

    def run(self, calls: int) -> None:
        for i in range(calls):
            x, y = list(batches())[i % STEPS]
            result = self.call(x, y)
            self.history.append([(path, bits(value)) for path, value in self.all_of(result)])
            self.seen.append(getattr(self.call, "status", ""))


def train_other(w: World) -> None:
    w.other_optimizer.zero_grad()
    w.other(gf.ones((2, 3))).sum().backward()
    w.other_optimizer.step()


Change = Callable[[World], Any]

USED: dict[str, Change] = {
    "a module of a parent that is not called": lambda w: setattr(w.parts, "head", nn.Linear(5, 2)),
    "a list of modules": lambda w: setattr(w.parts, "extra", [nn.Linear(5, 2).requires_grad_(False)]),
    "an attribute of a module that is not called": lambda w: setattr(w.options, "alpha", w.options.alpha + 1),
    "an attribute that appears": lambda w: setattr(w.parts, "triple", True),
    "an attribute that goes": lambda w: delattr(w.parts, "bend"),
    "a buffer": lambda w: setattr(w.parts, "shift", gf.full(2, 0.5)),
    "a buffer registered again": lambda w: w.parts.register_buffer("bend", gf.full(2, 0.5)),
    "a parameter": lambda w: w.parts.head.register_parameter("weight", nn.Parameter(gf.ones((2, 5)))),
    "a parameter that goes": lambda w: w.parts.head.register_parameter("bias", None),
    "a layer appended": lambda w: w.parts.body.append(nn.Tanh()),
    "a layer inserted": lambda w: w.parts.body.insert(1, nn.Tanh()),
    "a layer of a perceptron": lambda w: setattr(w.parts.body, "1", nn.Linear(6, 5)),
    "an activation within a perceptron": lambda w: setattr(w.parts.body[0], "activation", "relu"),
    "evaluation": lambda w: w.parts.train(not w.parts.training),
    "evaluation of a module within": lambda w: w.parts.body[0].train(not w.parts.body[0].training),
    "a forward of its own": lambda w: setattr(w.parts.head, "forward", lambda h: h[:, :2]),
    "a parameter frozen": lambda w: w.parts.body[0].weight.requires_grad_(not w.parts.body[0].weight.requires_grad),
    "a layer frozen": lambda w: w.parts.head.requires_grad_(not w.parts.head.weight.requires_grad),
    "a tensor that needs a gradient": lambda w: w.scale.requires_grad_(not w.scale.requires_grad),
    "whether another tensor needs a gradient": lambda w: w.switch.requires_grad_(not w.switch.requires_grad),
    "the dtype of another tensor": lambda w: w.precision.to("float16"),
    "a move and back": lambda w: w.parts.to("float64").to("float32"),
    "another optimizer for the same parameters": lambda w: optim.SGD(w.parts.body.parameters(), lr=0.1),
    "more parameters to train": lambda w: w.optimizer.add_param_group({"params": list(w.parts.head.parameters())}),
}
"""Changes of what the step uses, after which it is recorded again."""

WITHOUT_EFFECT = [USED["a move and back"], USED["another optimizer for the same parameters"]]
"""Changes that replace arrays but not their values."""

HOOKS: dict[str, Change] = {
    "a forward hook": lambda w: w.parts.head.register_forward_hook(lambda module, inputs, out: out * 2),
    "a forward hook within a perceptron": lambda w: w.parts.body[1].register_forward_hook(lambda m, i, out: out * 2),
    "a hook before a module": lambda w: w.parts.head.register_forward_pre_hook(lambda module, inputs: inputs[0] * 2),
    "a hook on the gradients of a module": lambda w: w.parts.body[1].register_full_backward_hook(
        lambda module, inputs, outputs: inputs[0] * 2
    ),
    "a hook on a parameter": lambda w: w.parts.body[0].weight.register_hook(lambda g: g * 2),
}
"""Hooks on what the step uses, with which it runs normally."""

UNUSED: dict[str, Change] = {
    "nothing": lambda w: None,
    "a new leaf": lambda w: gf.tensor([1.0], requires_grad=True),
    "a new parameter": lambda w: nn.Parameter(gf.ones(2)),
    "a new loss": lambda w: nn.CrossEntropyLoss(),
    "a new module": lambda w: nn.LayerNorm(3),
    "a new optimizer": lambda w: optim.SGD([gf.ones(2, requires_grad=True)], lr=0.1),
    "evaluation": lambda w: w.other.train(not w.other.training),
    "an attribute": lambda w: setattr(w.other, "mark", object()),
    "a module replaced": lambda w: setattr(w.other, "0", nn.Linear(3, 4)),
    "a tensor frozen": lambda w: w.other_tensor.requires_grad_(not w.other_tensor.requires_grad),
    "a module frozen": lambda w: w.other.requires_grad_(not w.other[0].weight.requires_grad),
    "a move and back": lambda w: w.other.to("float64").to("float32"),
    "training": train_other,
    "a hook": lambda w: w.other_tensor.register_hook(lambda g: g * 2) if w.other_tensor.requires_grad else None,
    "a hook that goes": lambda w: w.other_tensor.register_hook(lambda g: g * 2).remove(),
    "a forward hook": lambda w: w.other.register_forward_hook(lambda module, inputs, out: out * 2),
    "functional_call": lambda w: nn.functional_call(w.other, {"0.weight": gf.zeros((4, 3))}, gf.ones((1, 3))),
    "functional_call of what it uses": lambda w: nn.functional_call(
        w.parts.body, {"0.weight": gf.zeros((6, 3))}, gf.ones((1, 3))
    ),
    "a gradient by functional_call": lambda w: gf.grad(
        lambda p: nn.functional_call(w.parts.body, p, gf.ones((1, 3))).sum()
    )(dict(w.parts.body.named_parameters())),
    "values of what it uses": lambda w: w.parts.load_state_dict(w.parts.state_dict()),
    "the learning rate": lambda w: w.optimizer.param_groups[0].update(lr=0.02),
    "a forward pass": lambda w: w.parts.body(gf.ones((1, 3))),
    "a checkpoint": lambda w: gf.checkpoint(w.other, gf.ones((1, 3))).sum().backward(),
    "a copy": lambda w: copy.deepcopy(w.parts),
    "another step that is captured": lambda w: gf.capture(lambda x: w.other[0](x))(gf.ones((1, 3))),
}
"""Changes to things the step does not use, changes that are reverted, and changes that affect no call."""


def both(*events: Change | int) -> tuple[World, World]:
    """Two worlds, with the plain and with the captured step, after the same changes and numbers of calls."""
    worlds = World(as_it_is), World(gf.capture)
    for world in worlds:
        for event in events:
            gf.manual_seed(len(world.history))
            try:
                world.run(event) if isinstance(event, int) else event(world)
            except (RuntimeError, ValueError, TypeError, AttributeError) as error:
                world.history.append([("error", repr(error))])
    return worlds


@pytest.mark.parametrize("change", USED.values(), ids=USED)
def test_a_change_of_what_a_step_uses_leads_to_a_new_recording(change: Change) -> None:
    plain, captured = both(6, change, 6)
    assert captured.history == plain.history
    assert replays(captured.seen[5])
    assert replays(captured.seen[11])
    assert not replays(captured.seen[6])
    if change not in WITHOUT_EFFECT:
        assert plain.history != both(12)[0].history, "the change decides nothing, so that comparing proves nothing"


@pytest.mark.parametrize("change", HOOKS.values(), ids=HOOKS)
def test_a_hook_on_what_a_step_uses_is_called_until_it_goes(change: Change) -> None:
    def go(world: World) -> None:
        world.handles.pop().remove()

    plain, captured = both(6, lambda w: w.handles.append(change(w)), 6, go, 8)
    assert captured.history == plain.history
    assert replays(captured.seen[5])
    assert replays(captured.seen[-1])
    assert "hook" in captured.seen[6]
    assert "hook" in captured.seen[11]


@pytest.mark.parametrize("change", UNUSED.values(), ids=UNUSED)
def test_a_change_of_what_a_step_does_not_use_leaves_it_replaying(change: Change) -> None:
    plain, captured = both(4, *[change, 1] * 8)
    assert captured.history == plain.history
    assert [*map(replays, captured.seen[3:])] == [True] * 9


def test_a_hook_elsewhere_changes_no_bit() -> None:
    """While any hook exists, backward passes take another path."""

    def work(model: nn.Linear, optimizer: optim.Optimizer, x: gf.Tensor) -> None:
        optimizer.zero_grad()
        y = model(x) + model(x * 0.7) + model(x * 0.3) + model(x + 1.0)
        y.square().mean().backward()
        optimizer.step()

    other, handles = gf.ones(2, requires_grad=True), []

    def hooked(step: Step) -> Step:
        def call(x: gf.Tensor) -> Any:
            result = captured(x)
            if not handles:
                handles.append(other.register_hook(lambda g: g))
            return result

        captured = gf.capture(step)
        return call

    assert trained(hooked, work) == trained(as_it_is, work)


def test_parts_of_a_tensor_are_differentiated_twice() -> None:
    """The backward pass on tensors selects parts by operations that are called by name."""

    def work(model: nn.Linear, optimizer: optim.Optimizer, x: gf.Tensor) -> None:
        optimizer.zero_grad()
        loss = model.weight[0].square().sum() * model(x).square().mean()
        (g,) = gf.gradients(loss, [model.weight], create_graph=True)
        ((loss + g.square().sum()) * 0.01).backward()
        optimizer.step()

    assert trained(gf.capture, work) == trained(as_it_is, work)


class Lenient:
    """A class with its own `__getattribute__`."""

    def __getattribute__(self, name: str) -> Any:
        return 2.0 if name == "factor" else super().__getattribute__(name)


class Factor(nn.Module, Lenient):
    def forward(self, x: gf.Tensor) -> gf.Tensor:
        return x * self.factor


def test_a_module_with_a_getattribute_of_its_own() -> None:
    captured = gf.capture(Factor())
    assert [captured(gf.ones(1)).item() for _ in range(4)] == [2.0] * 4


@pytest.mark.parametrize("seed", range(12))
def test_changes_in_any_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    changes = [*USED.values(), *HOOKS.values(), *UNUSED.values()]
    events = []
    for _ in range(12):
        events += [changes[rng.integers(len(changes))], int(rng.integers(1, 6))]
    plain, captured = both(3, *events)
    assert captured.history == plain.history


GROUPS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "the rate": lambda o: o.param_groups[0].update(lr=0.5),
    "another group": lambda o: o.add_param_group({"params": [gf.ones(2, requires_grad=True)]}),
    "another parameter": lambda o: o.param_groups[0]["params"].append(gf.ones(2, requires_grad=True)),
    "a state": lambda o: o.load_state_dict({**o.state_dict(), "param_groups": [
        {**group, "lr": 0.25} for group in o.state_dict()["param_groups"]
    ]}),
}  # fmt: skip


@pytest.mark.parametrize("change", GROUPS.values(), ids=GROUPS)
def test_parameter_groups_that_a_step_reads(change: Callable[[optim.Optimizer], Any]) -> None:
    found = []
    for through in (as_it_is, gf.capture):
        gf.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        def step(x: gf.Tensor) -> gf.Tensor:
            optimizer.zero_grad()  # noqa: B023
            groups = optimizer.param_groups  # noqa: B023
            penalty = sum((p.square().sum() for group in groups for p in group["params"]), gf.zeros(()))
            loss = model(x).square().mean() + penalty * groups[0]["lr"]  # noqa: B023
            loss.backward()
            optim.clip_grad_norm_([p for group in groups for p in group["params"]], 0.1)
            optimizer.step()  # noqa: B023
            return loss

        call, results = through(step), []
        for i in range(16):
            if i == 8:
                change(optimizer)
            results.append((call(gf.ones((2, 3))).item(), model.weight.tolist()))
            if through is not as_it_is and i in (7, 15):
                assert replays(call.status)  # type: ignore[attr-defined]
        found.append(results)
    assert found[0] == found[1]


def move_a_parameter(optimizer: optim.Optimizer) -> None:
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [parameters_of(optimizer).pop(0)], "lr": 0.5})


EDITS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "one less": lambda o: parameters_of(o).pop(),
    "one moved to another group": move_a_parameter,
    "another order": lambda o: parameters_of(o).reverse(),
    "one replaced": lambda o: parameters_of(o).__setitem__(0, gf.ones(2, requires_grad=True)),
    "another list": lambda o: o.param_groups[0].update(params=parameters_of(o)[:1]),
    "other groups": lambda o: setattr(o, "param_groups", [{**o.param_groups[0], "params": parameters_of(o)[1:]}]),
}


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_parameters_of_a_group_that_are_edited_by_hand(edit: Callable[[optim.Optimizer], Any], goes_on: bool) -> None:
    """The step does not read the groups itself; what it computes after the optimizer's step depends on them."""
    found = []
    for through in (as_it_is, gf.capture):
        gf.manual_seed(0)
        model, optimizer = nn.MLP([3, 4, 3]), None
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step(x: gf.Tensor) -> Any:
            optimizer.zero_grad()  # noqa: B023
            loss = model(x).square().mean()  # noqa: B023
            loss.backward()
            optimizer.step()  # noqa: B023
            return (loss, model(x)) if goes_on else loss  # noqa: B023

        call, results = through(step), []
        for i in range(12):
            if i == 6:
                edit(optimizer)
            result = call(gf.ones((2, 3)) * (i + 1.0))
            everything = (result, model.state_dict(), [p.grad for p in model.parameters()])
            results.append([(path, bits(x)) for path, x in flatten(everything)])
            del everything  # holding a gradient would change its state
            if through is not as_it_is and i not in (0, 1, 2, 6, 7, 8):
                assert replays(call.status)  # type: ignore[attr-defined]
        found.append(results)
    assert found[0] == found[1]


def test_an_attribute_called_steps_is_any_attribute_of_a_module() -> None:
    options = nn.Module()
    options.steps, options.param_groups = 2.0, 3.0
    captured = gf.capture(lambda x: x * options.steps * options.param_groups)
    assert [captured(gf.ones(1)).item() for _ in range(3)] == [6.0] * 3
    assert replays(captured.status)


@pytest.mark.parametrize("when", range(4))
def test_a_step_that_is_recorded_while_another_thread_changes_what_it_uses(when: int) -> None:
    """The change comes in the middle of a call, after the step has read the old value."""
    options, calls = nn.Module(), itertools.count()
    options.alpha = 1.0

    def step(x: gf.Tensor) -> gf.Tensor:
        y = x * options.alpha
        if next(calls) == when:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(setattr, options, "alpha", 2.0).result()
        return y

    captured = gf.capture(step)
    found = [captured(gf.ones(1)).item() for _ in range(8)]
    assert found == ([1.0] * (when + 1) + [2.0] * 7)[:8] if when < 2 else found == [1.0] * 8  # replayed from the third
    assert replays(captured.status)


def test_a_step_that_is_recorded_within_functional_call_of_another_thread() -> None:
    model, calls = nn.Linear(3, 2, bias=False), itertools.count()
    started, done = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        done.wait(60)

    around, given = Around(model, wait), {"model.weight": gf.zeros((2, 3))}

    def step(x: gf.Tensor) -> gf.Tensor:
        if next(calls) >= 2:
            return model(x)
        started.clear(), done.clear()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(nn.functional_call, around, given)
            started.wait(60)
            y = model(x)
            done.set()
        return y

    x = gf.ones((1, 3))
    captured = gf.capture(step)
    found = [captured(x).tolist() for _ in range(6)]
    assert found == [[[0.0, 0.0]]] * 2 + [model(x).tolist()] * 4


def test_a_gradient_from_before_that_a_step_reads_keeps_its_values() -> None:
    model, _, step = make_training_of_a_layer()
    step(gf.ones((2, 3)))
    gradient = held(model.weight)
    expected = (gradient * 2).tolist()
    captured = gf.capture(lambda: gradient * 2)
    for _ in range(4):
        assert captured().tolist() == expected
    assert replays(captured.status)
    for _ in range(2):
        step(gf.full((2, 3), 9.0))  # which writes to the buffer of that gradient
        for _ in range(3):
            assert captured().tolist() == expected
    assert replays(captured.status)


def test_a_frozen_parameter_that_gets_another_place() -> None:
    layer = nn.Linear(3, 2).requires_grad_(False)
    kept = optim.SGD(layer.parameters(), lr=0.1)
    captured = gf.capture(layer)
    for _ in range(3):
        captured(gf.ones((1, 3)))
    other = optim.SGD(layer.parameters(), lr=0.1)  # which moves the parameters to its own buffer
    layer.load_state_dict({"weight": gf.ones((2, 3)), "bias": gf.zeros(2)})
    assert captured(gf.ones((1, 3))).tolist() == [[3.0, 3.0]]
    assert kept.steps == other.steps == 0


def test_gradients_that_get_another_place() -> None:
    found = []
    for through in (as_it_is, gf.capture):
        gf.manual_seed(0)
        model, (x, _) = nn.Linear(3, 2), next(batches())
        optim.SGD(model.parameters(), lr=0.1)
        model.requires_grad_(False)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        model.requires_grad_()

        def step(x: gf.Tensor) -> None:
            model.zero_grad()  # noqa: B023
            model(x).square().sum().backward()  # noqa: B023

        call = through(step)
        for _ in range(4):
            call(x)
        optimizer.step()  # which gives the gradients new buffers
        call(x * 2)
        found.append([held(p).tolist() for p in model.parameters()])
    assert found[0] == found[1]


def test_a_captured_step_within_functional_call_has_the_tensors_given() -> None:
    model, x = nn.Linear(3, 2), gf.ones((1, 3))
    captured = gf.capture(lambda x: model(x))

    expected = model(x).tolist()
    for value in (0.0, 1.0, 2.0):
        for _ in range(3):  # recorded with these tensors, which the next functional_call replaces
            given = {"model.weight": gf.full((2, 3), value), "model.bias": gf.zeros(2)}
            assert nn.functional_call(Around(model, captured), given, x).tolist() == [[3 * value] * 2]
    for _ in range(4):
        assert captured(x).tolist() == expected


def test_a_graph_from_before_is_gone_back_through_as_it_is() -> None:
    w = gf.tensor([1.0, 2.0], requires_grad=True)
    before = w * w
    captured = gf.capture(lambda x: (before * x).sum().backward(retain_graph=True))
    for _ in range(5):
        captured(gf.ones(2))
    assert captured.status.startswith("backpropagates through operations recorded before the step (backward): ")
    w.zero_grad()
    with before.register_hook(lambda g: g * 10):
        captured(gf.ones(2))
    assert held(w).tolist() == [20.0, 40.0]


# ---------------------------------------------------------------------- what it says


def test_the_status_is_that_of_the_last_call() -> None:
    captured = gf.capture(lambda x: x * 2)
    seen = [captured.status]
    for n in (1, 1, 1, 2, 1, 2, 2):
        captured(gf.ones(n))
        seen.append(captured.status)
    recorded = "recording"
    others = [recorded, *[recorded, recorded, True], recorded, True, *[recorded, True]]
    assert [replays(x) or x for x in seen] == others


REASONS: dict[str, str] = {
    "a seed": r"manual_seed seeds a random generator",
    "a generator that is set": "load_state_dict sets a random generator",
    "a counter that is set": "sets the counter of a random generator",
    "initial weights": r"changes a tensor of shape \(3, 2\) \(requires_grad_\)",
    "a value that is read": r"reads a value \(item\)",
    "a value that is printed": r"reads a value \(__repr__\)",
    "a value that is formatted": r"reads a value \(__repr__\)",
    "a branch": r"reads a value \(item\)",
    "a change in place": r"changes a tensor in place \(copy_\)",
    "an index that is assigned": r"changes a tensor in place \(__setitem__\)",
    "an operator that assigns": r"changes a tensor in place \(an operator such as \+=\)",
    "a counter": "two recordings differ",
    "new numbers from the host": "two recordings differ",
    "new numbers of NumPy": "two recordings differ",
    "a result that it did not compute": "calls nothing on cpu",
    "an input as the result": "calls nothing on cpu",
}


@pytest.mark.parametrize("name", AS_IT_IS)
def test_the_status_says_why_a_step_runs_as_it_is(name: str, caplog: pytest.LogCaptureFixture) -> None:
    step = AS_IT_IS[name]
    captured = gf.capture(step)
    for _ in range(4):
        captured(gf.ones((4, 3)))
    assert re.match(REASONS[name], captured.status), captured.status
    if "nothing" not in REASONS[name]:
        assert f"{__file__}, line {step.__code__.co_firstlineno}" in captured.status
    for _ in range(200):
        captured(gf.ones((4, 3)))
    (said,) = caplog.records
    assert (said.name, said.levelname) == ("gradflow", "WARNING")
    assert re.match(f"the captured step <lambda> runs without replay: {REASONS[name]}", said.getMessage())


@pytest.mark.parametrize(("work", "reason"), [
    (assign_gradients, "assigns a gradient"), (scale_gradients, "reads a gradient"),
    (set_the_rate, "reads the step count of an optimizer"),
    (lower_the_rate_afterwards, "changes hyperparameters of SGD"),
    (leave_one_out, "changes the parameters of SGD"), (train_one_every_other_time, "changes the parameters of SGD"),
    (select_by_a_mask, "indexes with a mask"), (step_by_a_closure, "passes a closure to an optimizer"),
    (use_an_operation_of_ones_own, r"calls a custom operation \(fill\)"),
])  # fmt: skip
def test_the_log_says_why_a_training_step_runs_as_it_is(
    work: Callable[..., Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    trained(gf.capture, work)
    assert re.search(f"runs without replay: {reason}", caplog.records[0].getMessage())


def test_the_status_after_an_exception_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(x: gf.Tensor) -> None:
        raise ArithmeticError

    captured = gf.capture(fail)
    for _ in range(9):
        with pytest.raises(ArithmeticError):
            captured(gf.ones(2))
    assert captured.status == "raises an exception"
    assert caplog.records == []


def test_a_difference_names_both_calls() -> None:
    numbers = iter(range(9))
    captured = gf.capture(lambda x: (x + 1.0) * next(numbers))
    for _ in range(2):
        captured(gf.ones(1))
    assert captured.status.endswith(": multiply(result 1, 0.0), then multiply(result 1, 1.0)")


def test_a_step_that_is_replayed_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    both(12, *USED.values(), 12)
    assert caplog.records == []


@pytest.mark.parametrize(("given", "reason"), [
    (lambda: gf.ones(2, requires_grad=True), "an input is a parameter or requires a gradient"),
    (lambda: nn.Parameter(gf.ones(2), requires_grad=False), "an input is a parameter or requires a gradient"),
])  # fmt: skip
def test_the_status_says_what_is_wrong_with_the_inputs(given: Callable[[], gf.Tensor], reason: str) -> None:
    captured = gf.capture(lambda x: x * 2)
    for _ in range(4):
        captured(given())
    assert captured.status.startswith(reason)
    for n in range(40):
        captured(gf.ones(n + 1))
    assert captured.status.startswith("got inputs with more than 16 signatures")
    with gf.detect_anomaly():
        captured(gf.ones(1))
    assert captured.status.startswith("an observer sees the step")
    for _ in range(3):
        captured(gf.ones(1))
    assert replays(captured.status)


def test_a_gradient_that_is_held_is_named() -> None:
    model, _, step = make_training_of_a_layer()
    captured = gf.capture(step)
    for _ in range(4):
        captured(gf.ones((2, 3)))
    gradients = []
    for _ in range(4):
        gradients.append(held(model.weight))
        captured(gf.ones((2, 3)))
    assert captured.status.startswith("other tensors share the buffer of a gradient")
    for _ in range(3):
        captured(gf.ones((2, 3)))
    assert replays(captured.status)


# ---------------------------------------------------------------------- trying again


def recorded_calls(captured: Any, calls: int) -> list[int]:
    """Which of a number of calls record a step that appends to `RECORDED`."""
    found = []
    for i in range(calls):
        RECORDED.clear()
        captured(gf.ones((4, 3)))
        found += [i] if any(RECORDED) else []
    return found


RECORDED: list[bool] = []


def test_it_tries_again_at_doubling_distances_and_not_for_nothing() -> None:
    drop = nn.Dropout(0.5)

    def step(x: gf.Tensor) -> gf.Tensor:
        RECORDED.append(bool(recorders))
        return drop(x) * (x.sum().item() if drop.training else 2.0)

    captured = gf.capture(step)
    assert recorded_calls(captured, 300) == [0, 1, 2, 4, 7, 12, 21, 38, 71, 136, 265]
    drop.eval()
    more = recorded_calls(captured, 300)
    assert len(more) == 2
    assert more[1] == more[0] + 1
    assert replays(captured.status)


def test_a_program_is_valid_again_when_the_mode_is_back() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.0))

    def step(x: gf.Tensor) -> gf.Tensor:
        RECORDED.append(bool(recorders))
        return model(x)

    captured = gf.capture(step)
    recorded_calls(captured, 5)
    for change in (model.eval, model[1].eval):
        change()
        model.train()
        assert recorded_calls(captured, 3) == []
    model.eval()
    assert len(recorded_calls(captured, 5)) == 2
    model.train()
    model[1].p = 0.0  # a change for good
    assert len(recorded_calls(captured, 20)) == 2


def test_two_recordings_that_agree_are_made_in_a_row() -> None:
    """Otherwise what every second call does would seem to be what all calls do."""
    calls = itertools.count()
    captured, found = gf.capture(lambda x: x * float(next(calls) % 2)), []
    for i in range(12):
        with gf.detect_anomaly() if i % 2 else contextlib.nullcontext():
            found.append(captured(gf.ones(1)).item())
    assert found == [0.0, 1.0] * 6


def test_the_longest_wait_is_stated() -> None:
    captured = gf.capture(lambda x: RECORDED.append(bool(recorders)) or float(x.sum()) * x)
    found = recorded_calls(captured, 6000)
    assert max(b - a for a, b in itertools.pairwise(found)) == 1025


def test_a_module_that_changes_in_every_step_does_not_record_every_time(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(3, 2)

    def step(x: gf.Tensor) -> gf.Tensor:
        RECORDED.append(bool(recorders))
        return model(x)

    captured, found = gf.capture(step), []
    for i in range(200):
        RECORDED.clear()
        model.count = i
        captured(gf.ones((4, 3)))
        found += [i] if any(RECORDED) else []
    assert len(found) < 20
    assert captured.status == "uses Linear, which changes between calls"
    assert [r.getMessage().partition(": ")[2] for r in caplog.records] == [captured.status]
    assert recorded_calls(captured, 300)[1:] != []
    assert replays(captured.status)


REARRANGED: dict[str, Callable[[nn.Linear, optim.Optimizer], Any]] = {
    "a module": lambda model, optimizer: setattr(model, "mark", object()),
    "a group": lambda model, optimizer: parameters_of(optimizer).reverse(),
    "a rate": lambda model, optimizer: optimizer.param_groups[0].update(lr=optimizer.param_groups[0]["lr"] * 0.9),
}


@pytest.mark.parametrize("change", REARRANGED.values(), ids=REARRANGED)
def test_a_program_that_was_worth_it_is_followed_by_another_at_once(change: Callable[..., Any]) -> None:
    model, optimizer, step = make_training_of_a_layer()
    counted = Counted(lambda x: step(x) * optimizer.param_groups[0]["lr"])
    counted.runs_of(20)
    for _ in range(12):
        change(model, optimizer)
        assert counted.runs_of(20) <= 3
        assert replays(counted.captured.status)


def test_gradients_that_are_cleared_between_some_calls_only() -> None:
    """With two gradient states in turn, one is replayed, and the other is recorded more and more rarely."""
    model, optimizer = nn.Linear(3, 2), None
    optimizer = optim.SGD(model.parameters(), lr=0.01)

    def step(x: gf.Tensor) -> None:
        RECORDED.append(bool(recorders))
        model(x).square().mean().backward()
        optimizer.step()

    captured, found = gf.capture(step), []
    for i in range(400):
        RECORDED.clear()
        captured(gf.ones((4, 3)))
        found += [i] if any(RECORDED) else []
        if i % 3 == 0:
            optimizer.zero_grad()
    assert len(found) < 40


# ---------------------------------------------------------------------- checked


def every(n: int) -> Callable[[Step], Any]:
    return functools.partial(gf.capture, check=n)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_a_check_that_finds_nothing_changes_nothing(
    make: Callable[[Any], optim.Optimizer], max_norm: float | None, device: str
) -> None:
    worlds = [train(train(Training(through, make, max_norm=max_norm))) for through in (as_it_is, every(1))]
    assert worlds[0].history == worlds[1].history
    assert replays(worlds[1].call.status)  # type: ignore[attr-defined]


def test_a_check_of_gradients_without_an_optimizer(device: str) -> None:
    """They add up outside of an optimizer's buffers, which a graph cannot do: a device with graphs makes the calls."""
    worlds = [train(Training(through, lambda p: optim.SGD(halves(p)[0], lr=0.1))) for through in (as_it_is, every(1))]
    assert worlds[0].history == worlds[1].history
    outside = ", since it keeps a gradient outside of the buffers of an optimizer"
    status = worlds[1].call.status  # type: ignore[attr-defined]
    assert status == f"replaying call by call{outside}" if has_graphs(gf.get_backend(device)) else replays(status)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_check_restores_averages_and_scales(scaled: bool, device: str) -> None:
    found: list[Any] = []
    for through in (as_it_is, every(2)):
        w = gf.tensor([1.0, -2.0, 3.0], requires_grad=True)
        optimizer = optim.SGD([w], 0.1)
        scaler = optim.GradScaler(init_scale=8.0, growth_interval=3, enabled=scaled)
        average = WeightAverage(optimizer, 0.9, scaler)

        def step(x: gf.Tensor, w: Any = w, optimizer: Any = optimizer, average: Any = average, s: Any = scaler) -> None:
            optimizer.zero_grad()
            s.scale((w * x).square().sum()).backward()
            s.step(optimizer)
            s.update()
            average.update()

        call = through(step)
        for i in range(9):
            call(gf.full(3, 0.1 * i))
            state = average.state_dict()
            found.append((state["steps"], bits(state["weights"][0]), bits(w), scaler.state_dict()))
    assert found[:9] == found[9:]
    assert call.status.startswith("replaying")  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_check_restores_the_half_copies_of_autocast(dtype: str) -> None:
    """The step itself does not run on the copies that the replay wrote."""
    found = []
    for through in (as_it_is, every(2)):
        gf.manual_seed(0)
        model = nn.MLP([3, 4, 2])
        optimizer = optim.Adam(model.parameters(), lr=0.1)

        def step(x: gf.Tensor, y: gf.Tensor, model: Any = model, optimizer: Any = optimizer) -> gf.Tensor:
            optimizer.zero_grad()
            with gf.autocast(dtype):
                loss = gf.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        call, x, y = through(step), gf.random.normal((5, 3)), gf.tensor([0, 1, 1, 0, 1], dtype="int64")
        found.append([bits(call(x, y)) for _ in range(12)])
    assert found[0] == found[1]
    assert replays(call.status)  # type: ignore[attr-defined]


def test_a_check_of_gradients_that_add_up(device: str) -> None:
    def scenario(through: Callable[[Step], Step]) -> Training:
        training = Training(through)
        training.call = through(training.loss_and_update)
        return train(train(training), lambda i: training.optimizer.zero_grad() if i == 2 else None)

    assert scenario(every(1)).history == scenario(as_it_is).history


def test_a_check_runs_the_step_every_so_many_calls() -> None:
    run: list[bool] = []

    @gf.capture(check=5)
    def step(x: gf.Tensor) -> gf.Tensor:
        run.append(True)
        return x * 2

    found = []
    for i in range(1, 21):
        run.clear()
        assert step(gf.ones(1)).item() == 2.0
        found += [i] if run else []
    assert found == [1, 2, 5, 10, 15, 20]
    assert replays(step.status)
    assert step.__name__ == "step"


class Flags:
    """Python values that a step reads."""

    factor = 1.0
    frozen = False


DIFFERENCES: dict[str, tuple[Callable[[nn.Linear, optim.Optimizer, gf.Tensor, Flags], Any], str]] = {
    "a result": (
        lambda model, optimizer, x, flags: {"a": [x, x * flags.factor]},
        r"result\['a'\]\[1\] at index \(0, 0\) is 1\.0 in a replay and 2\.0 in the step",
    ),
    "a parameter": (
        lambda model, optimizer, x, flags: (
            optimizer.zero_grad(), (model.bias * flags.factor).sum().backward(), optimizer.step(), None
        )[-1],
        r"parameter 1 of SGD at index \(0,\) is \S+ in a replay and \S+ in the step",
    ),
    "a gradient": (
        lambda model, optimizer, x, flags: (
            model.zero_grad(), (model.weight * flags.factor).sum().backward(), None
        )[-1],
        r"the gradient of leaf 0 of shape \(2, 3\) at index \(0, 0\) is 1\.0 in a replay and 2\.0 in the step",
    ),
    "who is trained": (
        lambda model, optimizer, x, flags: (
            optimizer.zero_grad(), model(x).sum().backward(), None if flags.frozen else optimizer.step(), None
        )[-1],
        r"parameter 0 of SGD at index \(0, 0\) is \S+ in a replay and \S+ in the step",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_check_finds_what_python_has_changed(name: str) -> None:
    work, message = DIFFERENCES[name]
    states = []
    for through in (as_it_is, every(10)):
        gf.manual_seed(0)
        model, flags = nn.Linear(3, 2), Flags()
        optimizer = optim.SGD(model.parameters(), lr=0.125, momentum=0.5)
        step = through(lambda x: work(model, optimizer, x, flags))  # noqa: B023
        for i in range(10):
            if i == 9:
                flags.factor, flags.frozen = 2.0, True
                if through is not as_it_is:
                    with pytest.raises(RuntimeError, match=f"the captured step <lambda> differs .*: {message}"):
                        step(gf.ones((1, 3)))
                    break
            step(gf.ones((1, 3)))
        gradients = {name: p.grad for name, p in model.named_parameters()}
        everything = (model.state_dict(), gradients, optimizer.state_dict())
        states.append([(path, bits(x)) for path, x in flatten(everything)])
    assert states[0] == states[1], "it is not left as the step leaves it"
    for _ in range(4):
        step(gf.ones((1, 3)))
    assert replays(step.status)  # type: ignore[attr-defined]


def test_what_a_check_has_found_wrong_is_not_replayed_again() -> None:
    flags = Flags()
    captured = gf.capture(lambda x: x * flags.factor, check=10)
    for _ in range(9):
        captured(gf.ones(1))
    flags.factor = 2.0
    with pytest.raises(RuntimeError, match="differs from the step itself"):
        captured(gf.ones(1))
    assert [captured(gf.ones(1)).item() for _ in range(4)] == [2.0] * 4


def test_a_check_leaves_the_groups_of_an_optimizer_the_same_dicts() -> None:
    model, optimizer, step = make_training_of_a_layer()
    groups, group = optimizer.param_groups, optimizer.param_groups[0]
    captured = gf.capture(step, check=1)
    for _ in range(5):
        captured(gf.ones((1, 3)))
    assert replays(captured.status)
    assert optimizer.param_groups is groups
    assert groups[0] is group
    before = model.weight.tolist()
    group["lr"] = 0.0
    captured(gf.ones((1, 3)))
    assert model.weight.tolist() == before


def test_a_check_does_not_see_nan_as_a_difference() -> None:
    step = gf.capture(lambda x: x * 1.0, check=1)
    for _ in range(5):
        assert gf.isnan(step(gf.full(1, float("nan")))).item()


def test_an_exception_of_the_step_in_a_check_is_the_steps() -> None:
    flags = Flags()

    def step(x: gf.Tensor) -> gf.Tensor:
        if flags.frozen:
            raise ArithmeticError("frozen")
        return x * 2

    captured = gf.capture(step, check=1)
    for _ in range(3):
        captured(gf.ones(1))
    flags.frozen = True
    with pytest.raises(ArithmeticError, match="frozen"):
        captured(gf.ones(1))


@pytest.mark.parametrize("check", [0, -1, 1.5, "100", True])
def test_a_check_is_a_count(check: Any) -> None:
    with pytest.raises(ValueError, match="check is a number of calls, an integer of at least 1"):
        gf.capture(check=check)
    assert gf.capture(lambda x: x, check=np.int64(3)).status == "recording"


# ---------------------------------------------------------------------- what goes in and comes out


class Pair(NamedTuple):
    first: Any
    second: Any


def values_of(tree: Any) -> list[tuple[str, Any]]:
    return [(path, tensor.tolist()) for path, tensor in flatten(tree)]


@pytest.mark.parametrize("of", [
    lambda x: None, lambda x: x * 2, lambda x: (x * 2, x + 1), lambda x: {"a": [x * 2, None], "b": (x * 3, (x - 1,))},
    lambda x: [], lambda x: x, lambda x: Pair(x * 2, x), lambda x: (x, x),
])  # fmt: skip
def test_results_come_as_the_step_returns_them(of: Callable[[Any], Any]) -> None:
    captured = gf.capture(of)
    results = []
    for i in range(4):
        x = gf.tensor([1.0, 2.0 + i])
        result, expected = captured(x), of(x)
        assert type(result) is type(expected)
        assert values_of(result) == values_of(expected)
        results.append((result, values_of(result)))
    for result, values in results:  # each call returns its own tensors
        assert values_of(result) == values


def test_results_carry_no_gradient() -> None:
    w = gf.ones(2, requires_grad=True)
    captured = gf.capture(lambda x: {"y": w * x})
    for _ in range(4):
        assert not captured(gf.ones(2))["y"].requires_grad


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
    with pytest.raises(TypeError, match=rf"a captured step takes tensors; got (numpy\.)?{type(inputs[0]).__name__}"):
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_forked_while_another_thread_records_has_nothing_of_it() -> None:
    inside, go_on = threading.Event(), threading.Event()
    w = gf.ones(2, requires_grad=True)

    def slow(x: gf.Tensor) -> gf.Tensor:
        inside.set()
        go_on.wait(20)
        return (w * x).sum()

    backend = gf.get_backend("cpu")
    before = dict(vars(backend))
    thread = threading.Thread(target=gf.capture(slow), args=(gf.ones(2),))
    thread.start()
    assert inside.wait(20)
    assert vars(backend) != before
    assert recorders
    child = os.fork()
    if child == 0:
        code = 1
        try:
            step = gf.capture(lambda x: (w * x).sum())
            values = [step(gf.full((2,), float(i))).item() for i in range(5)]
            clean = not recorders and vars(backend) == before and "__getattribute__" not in vars(gf.nn.Module)
            code = 0 if clean and values == [0.0, 2.0, 4.0, 6.0, 8.0] and replays(step.status) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go_on.set()
    thread.join()
    assert vars(backend) == before
    assert not recorders


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_step_that_forks_goes_on_in_both() -> None:
    w = gf.ones(2, requires_grad=True)
    children = []

    @gf.capture
    def step(x: gf.Tensor) -> gf.Tensor:
        children.append(os.fork())
        return (w * x).sum()

    result = step(gf.ones(2))
    if children[0] == 0:
        os._exit(0 if result.item() == 2.0 and not recorders else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    assert result.item() == 2.0


def test_a_replay_checks_the_probabilities_and_variances_that_it_computes() -> None:
    model = nn.Linear(2, 1)

    def loss(x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        p = model(x)
        return gf.binary_cross_entropy(p, y) + gf.gaussian_nll_loss(y, x[:, :1], p)

    with gf.no_grad():
        model.weight.copy_(gf.tensor([[0.5, 0.0]]))
        model.bias.copy_(0.0)
    step, x, y = gf.capture(loss), gf.ones((3, 2)), gf.ones((3, 1))
    for _ in range(4):
        step(x, y)
    assert replays(step.status)
    with pytest.raises(ValueError, match="as its input; got numbers from 2 to 2"):
        step(x * 4, y)
