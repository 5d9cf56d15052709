"""Graphs of steps after changes between two calls: their numbers and histories are those of the plain step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from emulated_device import needs_compiler
from emulated_graphs import Graph, Graphs, MemoryPool
from gradflow_cupy.graph import GraphRows, StepGraph

import gradflow as gf
from gradflow import nn, optim
from gradflow.optim import schedules
from gradflow.optim.averaging import WeightAverage
from gradflow.testing import host

pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def on_emulated(cupy: Any) -> Iterator[None]:
    with gf.use_device("emulated"):
        yield
    Graphs.work, MemoryPool.left = None, None


class Layer:
    """A layer and its optimizer. `finish` ends each step; `change` comes before the call with that number."""

    def __init__(self, make: Callable[[Any], optim.Optimizer]) -> None:
        gf.manual_seed(0)
        self.model = nn.Linear(3, 2)
        self.optimizer = make(self.model.parameters())

    def step(self, x: gf.Tensor) -> gf.Tensor:
        self.optimizer.zero_grad()
        loss = self.model(x).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss

    def state(self) -> Any:
        state = self.optimizer.state_dict()
        entries = [
            {name: host(x).tobytes() if isinstance(x, gf.Tensor) else x for name, x in entry.items()}
            for entry in state["state"].values()
        ]
        return state["steps"], entries, [host(p).tobytes() for p in self.model.parameters()]


def inputs(i: int) -> gf.Tensor:
    return gf.tensor(np.random.default_rng(i).normal(size=(4, 3)).astype("f4"))


def agree(
    make: Callable[[Any], optim.Optimizer],
    changes: dict[int, Callable[[Layer], Any]] | None = None,
    make_step: Callable[[Layer], Any] = lambda layer: layer.step,
    calls: int = 14,
) -> None:
    """Assert that a captured step leaves the bits of the plain one, with these changes before calls, and is a graph."""
    found: list[list[Any]] = []
    for through in (lambda step: step, gf.capture):
        layer, states = Layer(make), []
        call: Any = through(make_step(layer))
        for i in range(calls):
            if changes and i in changes:
                changes[i](layer)
            result = call(inputs(i))
            states.append((host(result).tobytes(), layer.state(), gf.random.default_generator.state_dict()))
        found.append(states)
    assert call.status == "replaying"
    assert Graphs.alive, "no step is a graph"
    for i, (plain, captured) in enumerate(zip(*found, strict=True)):
        assert plain == captured, f"call {i}"


def edit(**values: Any) -> Callable[[Layer], None]:
    return lambda layer: layer.optimizer.param_groups[0].update(values)


@pytest.mark.parametrize("when", [3, 7])
@pytest.mark.parametrize(
    ("make", "changes"),
    [(lambda p: optim.SGD(p, 0.01), {"momentum": 0.9}), (lambda p: optim.RMSprop(p, 0.01), {"centered": True})],
)
def test_state_that_a_new_hyperparameter_needs_is_kept_from_step_to_step(when: int, make: Any, changes: Any) -> None:
    """Before the step is captured (call 3 does that), and after."""
    agree(make, {when: edit(**changes)})


def load(change: Callable[[Any], Any]) -> Callable[[Layer], None]:
    def loaded(layer: Layer) -> None:
        state = layer.optimizer.state_dict()
        change(state)
        layer.optimizer.load_state_dict(state)

    return loaded


def step_of_the_bias(layer: Layer) -> None:
    """Between two calls, a step that does not train the weights."""
    layer.optimizer.zero_grad()
    layer.model(inputs(99)).sum().backward()
    layer.model.weight.grad = None
    layer.optimizer.step()
    layer.model(inputs(99)).sum().backward()


def test_parameters_with_unequal_numbers_of_steps() -> None:
    def adam(p: Any) -> optim.Optimizer:
        return optim.Adam(p, 0.01)

    agree(adam, {7: load(lambda state: state["state"][1].update(step=1))})
    agree(adam, {7: step_of_the_bias})


def test_state_that_was_not_written_in_the_state_that_is_loaded() -> None:
    def forget(state: Any) -> None:
        for entry in state["state"].values():
            entry["momentum_buffer"] = None

    agree(lambda p: optim.SGD(p, 0.01, momentum=0.9), {7: load(forget)})
    agree(
        lambda p: optim.SGD(p, 0.01, momentum=0.9, dampening=0.5),
        {5: edit(momentum=0.0), 7: load(forget), 9: edit(momentum=0.9)},
    )


def test_runs_with_a_frozen_parameter_between_them_keep_their_own_steps() -> None:
    """Equal steps when the step is captured, unequal ones later."""

    def adam(p: Any) -> optim.Optimizer:
        weight, bias = p
        return optim.Adam([weight, gf.ones(3), bias], 0.01)

    agree(adam, {7: load(lambda state: state["state"][2].update(step=1))})


def test_several_steps_of_an_optimizer_in_one_step() -> None:
    def make_step(layer: Layer) -> Any:
        def step(x: gf.Tensor) -> gf.Tensor:
            loss = layer.step(x)
            layer.optimizer.step()
            return loss

        return step

    agree(lambda p: optim.Adam(p, schedules.cosine(0.01, 40)), make_step=make_step)


@pytest.mark.parametrize("updates", [1, 2])
def test_an_average_with_several_updates_and_another_decay(updates: int) -> None:
    made: list[WeightAverage] = []

    def make_step(layer: Layer) -> Any:
        average = WeightAverage(layer.optimizer, 0.9)
        made.append(average)

        def step(x: gf.Tensor) -> gf.Tensor:
            loss = layer.step(x)
            for _ in range(updates):
                average.update()
            return loss

        return step

    def change(layer: Layer) -> None:
        made[-1].decay = 0.5

    agree(lambda p: optim.SGD(p, 0.1), {9: change}, make_step)
    plain, captured = [each.state_dict() for each in made]
    assert plain["steps"] == captured["steps"]
    for a, b in zip(plain["weights"], captured["weights"], strict=True):
        assert host(a).tobytes() == host(b).tobytes()


@pytest.mark.parametrize("after", [False, True])
def test_a_step_goes_on_after_an_interrupt_at_the_launch(monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    """The interrupted step counts, whether or not its graph was launched; the next ones have their own numbers."""
    layer, plain = Layer(lambda p: optim.Adam(p, 0.05)), Layer(lambda p: optim.Adam(p, 0.05))
    call = gf.capture(layer.step)
    for i in range(8):
        call(inputs(i)), plain.step(inputs(i))
    launch = Graph.launch

    def interrupted(self: Graph, stream: Any = None) -> None:
        if after:
            launch(self, stream)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Graph, "launch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call(inputs(8))
    if after:
        plain.step(inputs(8))
    else:
        state = plain.optimizer.state_dict()
        for entry in state["state"].values():
            entry["step"] += 1
        plain.optimizer.load_state_dict({**state, "steps": 9})
    for i in range(9, 30):
        call(inputs(i)), plain.step(inputs(i))
    assert layer.state() == plain.state()
    assert call.status == "replaying"


# ---------------------------------------------------------------------- generators of several threads


def drawing_step(generator: gf.Generator) -> Any:
    layer = Layer(lambda p: optim.SGD(p, 0.1))

    @gf.capture
    def step(x: gf.Tensor) -> gf.Tensor:
        return layer.step(gf.dropout(x, 0.5, generator=generator))

    return step


@pytest.mark.parametrize(("place", "calls"), [((StepGraph, "_record"), 3), ((GraphRows, "prepare"), 6)])
def test_threads_never_draw_the_numbers_of_a_graph(
    monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str], calls: int
) -> None:
    """A thread that draws while a graph is captured, or before it is launched."""
    generator = gf.Generator(7)
    step = drawing_step(generator)
    for i in range(calls):
        step(inputs(i))
    drawn: list[int] = []
    threads: list[threading.Thread] = []
    function = getattr(*place)

    def disturbed(self: Any) -> None:
        function(self)
        threads.append(threading.Thread(target=lambda: drawn.append(generator.draw(4)[1])))
        threads[-1].start()
        threads[-1].join(0.2)

    before, stride = generator.counter, generator.counter // calls
    with monkeypatch.context() as patch:
        patch.setattr(*place, disturbed)
        step(inputs(calls))
    threads[0].join()
    assert drawn == [before + stride]
    assert generator.counter == before + stride + 1
    step(inputs(calls + 1))
    assert generator.counter == before + 2 * stride + 1


# ---------------------------------------------------------------------- gradients


def test_gradients_that_a_graph_clears_at_its_end_leave_their_buffers_for_the_next_ones() -> None:
    states: list[list[Any]] = []
    for through in (lambda step: step, gf.capture):
        layer, found = Layer(lambda p: optim.SGD(p, 0.1)), []

        def backward(x: gf.Tensor, layer: Layer = layer) -> None:
            layer.model(x).square().mean().backward()

        def update(x: gf.Tensor, layer: Layer = layer) -> None:
            layer.model(x).square().mean().backward()
            layer.optimizer.step()
            layer.optimizer.zero_grad()

        first, last = through(backward), through(update)
        for i in range(12):
            if i % 2 and i > 8:
                assert layer.model.weight.grad is not None  # read, and dropped
            (last if i % 2 else first)(inputs(i))
            found.append([*[p._node.state for p in layer.model.parameters()], layer.state()])
        states.append(found)
    assert (first.status, last.status) == ("replaying", "replaying")
    assert states[0] == states[1]


def test_a_gradient_that_a_step_clears_without_computing_it_is_its_owners() -> None:
    held: list[bytes] = []
    for through in (lambda step: step, gf.capture):
        layer = Layer(lambda p: optim.SGD(p, 0.1))
        other = gf.ones(3, requires_grad=True)
        layer.optimizer.add_param_group({"params": [other]})
        call = through(layer.step)
        for i in range(7):
            (other * float(i)).sum().backward()
            grad = other.grad if i == 6 else None
            call(inputs(i))
        (other * 9.0).sum().backward()
        held.append(host(grad).tobytes())
    assert held[0] == held[1]


def test_an_error_in_the_first_call_of_a_graph_leaves_what_the_step_has_done() -> None:
    found: list[Any] = []
    for through in (lambda step: step, gf.capture):
        layer, other = Layer(lambda p: optim.Adam(p, 0.1)), gf.ones(3, requires_grad=True)
        rates = [0.1] * 6
        second = optim.SGD([other], lambda steps, rates=rates: rates[steps])

        def step(x: gf.Tensor, layer: Layer = layer, other: gf.Tensor = other, second: Any = second) -> None:
            second.zero_grad()
            layer.step(x * other)
            second.step()

        call = through(step)
        for i in range(6):
            if i == 2:
                rates[2] = -1.0
                with pytest.raises(ValueError, match="lr must be in"):
                    call(inputs(i))
                rates[2] = 0.1
            else:
                call(inputs(i))
            found.append((layer.state(), second.steps))
    assert found[:6] == found[6:]


def test_a_graph_refuses_a_second_step_of_a_scaler(cupy: Any) -> None:
    """As the plain step does, and goes on after `update`."""
    x = gf.tensor([1.0, 2.0], device="emulated", requires_grad=True)
    optimizer, scaler = gf.optim.SGD([x], lr=0.25), gf.optim.GradScaler(init_scale=4.0)

    @gf.capture
    def step() -> None:
        optimizer.zero_grad()
        scaler.scale(x.sum()).backward()
        scaler.step(optimizer)

    with gf.use_device("emulated"):
        for _ in range(7):
            step()
            scaler.update()
        step()
        assert step.status == "replaying"
        with pytest.raises(RuntimeError, match="has done a step since"):
            step()
        scaler.update()
        step()
    assert (step.status, optimizer.steps, x.tolist()) == ("replaying", 9, [1.0 - 9 * 0.25, 2.0 - 9 * 0.25])
