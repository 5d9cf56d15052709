"""Captured steps as graphs, on an emulated CuPy that captures as CUDA does, or worse: see `emulated_graphs`.

It says nothing about the speed of a GPU.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import emulated_cupy
import numpy as np
import pytest
from captured_steps import make_training_of_a_layer
from emulated_cuda import CUDARuntimeError, Stream
from emulated_device import needs_compiler
from emulated_graphs import Graph, Graphs, MemoryPool, using_allocator
from gradflow_cupy import graph, kernels
from gradflow_cupy.graph import GraphRows, StepGraph

import gradflow as gf
from gradflow import nn, optim
from gradflow.data import Batches
from gradflow.optim import schedules
from gradflow.optim.averaging import WeightAverage
from gradflow.testing import host

pytestmark = needs_compiler
State = emulated_cupy.State
Step = Callable[..., Any]


@pytest.fixture(autouse=True)
def on_emulated(cupy: Any) -> Iterator[None]:
    with gf.use_device("emulated"):
        yield
    Graphs.work, MemoryPool.left = None, None


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of rows of the tables that were sent."""
    sent: list[int] = []
    send = GraphRows._send

    def counted(self: GraphRows, wanted: int) -> None:
        send(self, wanted)
        sent.append(self._filled)

    monkeypatch.setattr(GraphRows, "_send", counted)
    return sent


def labels(n: int) -> gf.Tensor:
    return gf.tensor([i % 2 for i in range(n)], dtype="int64")


class Training:
    """A perceptron, its optimizer, and a step through `through`; `found` has the bits of what each call leaves."""

    def __init__(self, through: Step, make: Any = optim.Adam, dropout: float = 0.0, width: int = 5) -> None:
        gf.manual_seed(1)
        self.model = nn.MLP([3, width, 2], activation="relu", dropout=dropout)
        self.optimizer = make(self.model.parameters())
        self.call = through(self.step)
        self.found: list[Any] = []
        self.other: Any = None

    def step(self, x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        self.optimizer.zero_grad()
        return self.update(x, y)

    def update(self, x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        loss = gf.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def run(self, i: int, rows: int = 4) -> Training:
        rng = np.random.default_rng(i)
        x, y = gf.tensor(rng.normal(size=(rows, 3)).astype("f4")), gf.tensor(rng.integers(0, 2, rows))
        result = self.call(x, y)
        state = self.optimizer.state_dict()
        tensors = [result, *self.model.parameters(), *[p.grad for p in self.model.parameters() if p.grad is not None]]
        tensors += [x for entry in state["state"].values() for x in entry.values() if isinstance(x, gf.Tensor)]
        steps = [state["steps"], *[entry["step"] for entry in state["state"].values()]]
        self.found.append((steps, [host(x).tobytes() for x in tensors], gf.random.default_generator.state_dict()))
        return self

    @property
    def status(self) -> str:
        return str(self.call.status)  # type: ignore[attr-defined]


def plain_step(step: Step) -> Step:
    return step


def run_each(trainings: list[Any], calls: range) -> None:
    for i in calls:
        for training in trainings:
            training.run(i)


def scenario_of(
    calls: int,
    *arguments: Any,
    cls: Any = Training,
    between: Callable[[int, Any], Any] = lambda i, t: None,
    **options: Any,
) -> Callable[[Step], Training]:
    """A training of so many calls, before each of which `between` gets its number and the training."""

    def scenario(through: Step) -> Training:
        training: Training = cls(through, *arguments, **options)
        for i in range(calls):
            between(i, training)
            training.run(i)
        return training

    return scenario


def both(scenario: Callable[[Step], Training]) -> Training:
    """The captured training of a scenario, after a comparison with the plain one."""
    plain, captured = scenario(plain_step), scenario(gf.capture)
    assert plain.found == captured.found
    assert len({str(each[1]) for each in plain.found}) >= len(plain.found) - 1, "a step changes nothing"
    return captured


def graphs() -> list[Graph]:
    gc.collect()
    return sorted(Graphs.alive, key=lambda each: each.number)


def beside(made: Graph) -> list[str]:
    """The nodes in another stream than the first one."""
    return [node.name for node in made.nodes if node.stream is not made.nodes[0].stream and node.name]


# ---------------------------------------------------------------------- the same bits


@pytest.mark.slow
def test_thousands_of_steps_leave_the_bits_of_the_plain_step(
    monkeypatch: pytest.MonkeyPatch, tables: list[int]
) -> None:
    """All optimizers and schedules, clipping, dropout and an average in one step."""
    monkeypatch.setattr(kernels, "THREADS", 4)  # the emulation takes time for each thread

    def run(through: Step) -> list[bytes]:
        gf.manual_seed(5)
        tensors = [gf.random.normal(3, generator=gf.Generator(i)).requires_grad_() for i in range(5)]
        made = [
            optim.Adam(tensors[:1], schedules.cosine(0.01, 2500)),
            optim.SGD(tensors[1:2], schedules.warmup(schedules.step(0.05, 700), 100), momentum=0.9, nesterov=True),
            optim.RMSprop(tensors[2:3], schedules.one_cycle(0.01, 2900), momentum=0.5, centered=True),
            optim.AdamW(tensors[3:4], schedules.constant(0.01)),
            optim.SGD(tensors[4:], 0.001),
        ]
        average = WeightAverage(made[0], 0.99)
        a, b, c, d, e = tensors

        def step(x: gf.Tensor) -> gf.Tensor:
            for optimizer in made:
                optimizer.zero_grad()
            loss = (gf.dropout(x * a, 0.25) * b - (c + gf.dropout(d, 0.5)) * x + e).square().sum()
            loss.backward()
            norm = optim.clip_grad_norm_(tensors, 3.0)
            for optimizer in made:
                optimizer.step()
            average.update()
            return loss + norm

        call, found = through(step), []
        inputs = [gf.random.normal(3, generator=gf.Generator(100 + i)) for i in range(7)]
        for i in range(3000):
            found.append(host(call(inputs[i % 7])).tobytes())
        found += [host(x).tobytes() for x in [*tensors, *average.state_dict()["weights"]]]
        assert through is not gf.capture or call.status == "replaying"
        return found

    plain, captured = run(plain_step), run(gf.capture)
    assert plain == captured
    assert len(set(plain)) > 2500
    assert tables == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024]


class Half(Training):
    def step(self, x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        with gf.autocast("bfloat16"):
            return super().step(x, y)


MAKERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "momentum": lambda p: optim.SGD(p, 0.05, momentum=0.9),
    "Adam": lambda p: optim.Adam(p, schedules.cosine(0.05, 20)),
    "groups": lambda p: optim.RMSprop([{"params": [x], "lr": 0.01 * (i + 1)} for i, x in enumerate(p)]),
}


class Scaled(Training):
    """A step with a scaler and an average, in float16; every third input or so has infinities."""

    average: Any = None

    def step(self, x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        self.optimizer.zero_grad()
        self.other = self.other or optim.GradScaler(init_scale=2.0**20, growth_interval=3)
        self.average = self.average or WeightAverage(self.optimizer, 0.9, self.other)
        with gf.autocast("float16"):
            loss = gf.cross_entropy(self.model(x), y)
        self.other.scale(loss).backward()
        self.other.unscale_(self.optimizer)
        norm = optim.clip_grad_norm_(self.model.parameters(), 0.5)
        self.other.step(self.optimizer)
        self.other.update()
        self.average.update()
        return loss + norm * 0.0

    @property
    def left(self) -> list[Any]:
        """The bits that the steps leave."""
        state, average = self.optimizer.state_dict(), self.average.state_dict()
        tensors = [*average["weights"], *[x for e in state["state"].values() for x in e.values()][1::3]]
        return [self.other.get_scale(), self.optimizer.steps, average["steps"],
                *[host(x).tobytes() for x in self.model.parameters()],
                *[host(x).tobytes() for x in tensors if isinstance(x, gf.Tensor)]]  # fmt: skip


def adam_with_cosine(parameters: Any) -> optim.Optimizer:
    return optim.Adam(parameters, schedules.cosine(0.05, 200))


class Twice(Scaled):
    """Two steps of the scaler in a step, after one without the other."""

    def __init__(self, through: Step) -> None:
        super().__init__(through, adam_with_cosine, width=8)
        self.other = optim.GradScaler(4.0)
        super().step(gf.ones((4, 3)), labels(4))

    def step(self, x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        return super().step(x, y) + super().step(0.5 * x, y)


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, 3])
def test_a_table_of_scaled_steps_has_rows_for_all_in_a_graph(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr("gradflow.optim.applied_steps.AHEAD", 16)
    rng = np.random.default_rng(4)
    batches = Batches(gf.tensor(rng.normal(size=(120, 3)).astype("f4")), labels(120), batch_size=4)
    plain = Twice(plain_step)
    for batch in batches.epoch():
        plain.call(*batch)
    captured = Twice(lambda step: gf.capture(step, batches=batches, steps=together))
    list(captured.call.epoch())  # type: ignore[attr-defined]
    assert captured.status == "replaying"
    assert captured.left == plain.left


@pytest.mark.slow
def test_scaled_steps_are_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 steps, one or seven in a graph, of which the device skips some: the bits of plain steps, and no waits."""
    monkeypatch.setattr(kernels, "THREADS", 32)
    rng, n = np.random.default_rng(4), 300
    x, y = rng.normal(size=(4 * n, 3)).astype("f4"), rng.integers(0, 2, 4 * n)
    x[rng.integers(0, len(x), 50)] = np.inf
    batches = Batches(gf.tensor(x), gf.tensor(y), batch_size=4)

    def run(through: Step, steps: Callable[[Any], Any]) -> list[Any]:
        training = Scaled(through, adam_with_cosine, width=8)
        before = State.synchronizations
        losses = list(steps(training.call))
        assert State.synchronizations - before <= 2  # after 256 steps, of which the first graph may not be the last
        assert getattr(training.call, "status", "replaying") == "replaying"
        return [b"".join(host(loss).tobytes() for loss in losses), *training.left]

    def one_by_one(call: Any) -> Any:
        return (call(*batch) for batch in batches.epoch())

    plain = run(plain_step, one_by_one)
    assert 200 < plain[2] < n - 20
    assert run(gf.capture, one_by_one) == plain
    assert run(lambda step: gf.capture(step, batches=batches, steps=7), lambda call: call.epoch()) == plain


SCALED_BETWEEN: dict[str, Callable[[Scaled], Any]] = {
    "another rate": lambda t: t.optimizer.param_groups[0].update(lr=0.5),
    "a rate of the user's": lambda t: t.optimizer.param_groups[0].update(lr=lambda n: 0.1 / (n + 1)),
    "another hyperparameter": lambda t: t.optimizer.param_groups[0].update(weight_decay=0.1),
    "momentum": lambda t: t.optimizer.param_groups[0].update(momentum=0.9),
    "another interval": lambda t: setattr(t.other, "growth_interval", 2),
    "another scaler's state": lambda t: t.other.load_state_dict(optim.GradScaler(4.0, 3.0, 0.25, 2).state_dict()),
    "another decay of the average": lambda t: setattr(t.average, "decay", 0.5),
    "an average that restarts": lambda t: t.average.restart(),
    "the average's state": lambda t: t.average.load_state_dict({**t.average.state_dict(), "steps": 2}),
    "the number of steps": lambda t: t.optimizer.steps,
    "a plain step": lambda t: Training.step(t, gf.ones((2, 3)), labels(2)),
    "a scaled step of its own": lambda t: t.step(gf.ones((2, 3)), labels(2)),
    "a step of some parameters": lambda t: (t.model.zero_grad(), t.model[0].bias.sum().backward(), t.optimizer.step()),
    "a loaded state": lambda t: t.optimizer.load_state_dict(t.optimizer.state_dict()),
}


@pytest.mark.parametrize("name", SCALED_BETWEEN)
def test_what_changes_between_two_scaled_steps_is_seen(name: str) -> None:
    inputs = np.random.default_rng(0).normal(size=(16, 4, 3)).astype("f4")
    inputs[[1, 6, 8, 11]] = np.inf

    def run(through: Step) -> list[Any]:
        training = Scaled(through, lambda p: optim.SGD(p, 0.1, dampening=0.5), width=8)
        for i, x in enumerate(inputs):
            if i == 9:
                SCALED_BETWEEN[name](training)
            training.call(gf.tensor(x), labels(4))
        assert through is not gf.capture or training.status == "replaying"
        return training.left

    assert run(gf.capture) == run(plain_step)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_graph_leaves_what_the_plain_step_leaves(make: Any) -> None:
    captured = both(scenario_of(9, make, dropout=0.3))
    assert captured.status == "replaying"
    assert len(graphs()) == 1


def test_mixed_precision() -> None:
    captured = both(scenario_of(9, optim.AdamW, width=8, cls=Half))
    assert captured.status == "replaying"
    assert len(graphs()) == 1


class Adding(Training):
    """Its step adds to the gradients that it finds."""

    def step(self, x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        return self.update(x, y)


def test_gradients_that_add_up() -> None:
    """Two graphs: for calls that begin without gradients, and for those that add to them."""

    captured = both(scenario_of(16, cls=Adding, between=lambda i, t: i % 3 or t.optimizer.zero_grad()))
    assert captured.status == "replaying"
    assert len(graphs()) == 2


BETWEEN: dict[str, tuple[Callable[[Training], Any], int]] = {
    "nothing": (lambda t: None, 1),
    "another rate": (lambda t: t.optimizer.param_groups[0].update(lr=0.5), 1),
    "a schedule": (lambda t: t.optimizer.param_groups[0].update(lr=schedules.step(0.1, 2)), 1),
    "another hyperparameter": (lambda t: t.optimizer.param_groups[0].update(weight_decay=0.1), 2),
    "a step of its own": (lambda t: t.step(gf.ones((2, 3)), labels(2)), 1),
    "a step without a gradient": (lambda t: (t.optimizer.zero_grad(), t.optimizer.step()), 1),
    "a loaded state": (lambda t: t.optimizer.load_state_dict(STATES[-1]), 1),
    "a seed": (lambda t: gf.manual_seed(9), 1),
    "numbers that are drawn": (lambda t: gf.random.uniform(3), 1),
    "a gradient that is read": (lambda t: t.model[0].weight.grad.sum(), 1),
    "gradients that are dropped": (lambda t: t.model.zero_grad(), 1),
    "weights that are set": (lambda t: t.model.load_state_dict(t.model.state_dict()), 1),
}
STATES: list[Any] = []


def tenfold(training: Training) -> None:
    weight = training.model[0].weight
    with gf.no_grad():
        weight *= 10.0


def other_half(training: Training) -> None:
    with gf.autocast("float16"):
        training.model(gf.ones((2, 3)))


WEIGHTS: dict[str, tuple[Callable[[Training], Any], int]] = {
    "another weight": (tenfold, 1),
    "other weights": (lambda t: t.model.load_state_dict({k: 3.0 * v for k, v in t.model.state_dict().items()}), 1),
    "a step in float32": (lambda t: Training.step(t, gf.ones((2, 3)), labels(2)), 1),
    "another half float": (other_half, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_change_between_two_calls_are_cast_anew(name: str) -> None:
    change, count = WEIGHTS[name]
    first = next(Graphs.numbers)
    captured = both(scenario_of(14, width=8, cls=Half, between=lambda i, t: i == 7 and change(t)))
    assert captured.status == "replaying"
    assert max(each.number for each in graphs()) == first + count


@pytest.mark.parametrize("name", BETWEEN)
def test_what_changes_between_two_calls_is_seen(name: str) -> None:
    change, count = BETWEEN[name]

    def between(i: int, training: Training) -> None:
        if i == 2:
            STATES.append(training.optimizer.state_dict())
        if i == 7:
            change(training)

    first = next(Graphs.numbers)
    captured = both(scenario_of(14, lambda p: optim.Adam(p, 0.05), dropout=0.2, between=between))
    assert captured.status == "replaying"
    assert max(each.number for each in graphs()) == first + count


def test_a_gradient_of_a_parameter_that_the_step_does_not_use() -> None:
    def scenario(through: Step) -> Training:
        training = Training(through)
        other = gf.ones(3, requires_grad=True)
        training.optimizer.add_param_group({"params": [other]})
        training.call = through(training.update)
        for i in range(12):
            training.optimizer.zero_grad()
            if i in (7, 9):
                (other * float(i)).sum().backward()
            training.run(i)
            training.found.append((i, [host(other).tobytes()], host(training.model[0].bias).tobytes()))
        return training

    plain, captured = scenario(plain_step), scenario(gf.capture)
    assert plain.found == captured.found


def test_a_rate_by_a_function_of_the_user_is_asked_for_in_each_step(tables: list[int]) -> None:
    rate = 0.1

    def between(i: int, training: Training) -> None:
        nonlocal rate
        rate = 0.1 * i

    scenario = scenario_of(10, lambda p: optim.SGD(p, lambda steps: rate / (1 + steps)), between=between)
    assert both(scenario).status == "replaying"
    assert tables == [1] * 7


def test_results_are_the_callers() -> None:
    training = Training(gf.capture)
    results = [training.call(gf.ones((2, 3)), labels(2)) for _ in range(6)]
    values = [x.item() for x in results]
    training.call(gf.ones((2, 3)), labels(2))
    assert [x.item() for x in results] == values
    assert len(set(values)) == 6


def test_graphs_side_by_side_and_shapes_and_streams() -> None:
    def scenario(through: Step) -> Training:
        one, two = Training(through), Training(through, lambda p: optim.SGD(p, 0.1), dropout=0.5, width=6)
        for i in range(14):
            with gf.get_backend("emulated").stream() if i % 3 == 2 else contextlib.nullcontext():
                one.run(i, rows=4 if i % 2 else 3)
                two.run(i)
        one.found += two.found
        one.other = two
        return one

    captured = both(scenario)
    assert captured.status == "replaying"
    assert len(graphs()) == 3


def test_checks_of_graphs_find_nothing() -> None:
    scenario = scenario_of(10, dropout=0.4)
    assert scenario(lambda step: gf.capture(step, check=2)).found == scenario(plain_step).found


# ---------------------------------------------------------------------- what is queued


@pytest.mark.slow
def test_a_replay_is_one_launch_and_the_copies_of_inputs_and_results(tables: list[int]) -> None:
    training = Training(gf.capture, dropout=0.2)
    x, y = gf.ones((4, 3)), labels(4)
    for _ in range(4):
        training.call(x, y)
    for _ in range(100):
        Graphs.work, before = Counter(), (State.transfers, State.synchronizations, len(tables))
        training.call(x, y)
        sent = len(tables) - before[2]
        assert Counter({"graph": 1, "copy": 3 + sent}) == Graphs.work
        assert (State.transfers - before[0], State.synchronizations - before[1]) == (sent, 0)
    assert tables == [1, 2, 4, 8, 16, 32, 64]


def test_the_nodes_of_a_step() -> None:
    """A step of L layers with ReLU is 4 L + 1 launches, and the kernel that takes the numbers of the step."""
    training = Training(gf.capture, lambda p: optim.Adam(p, 0.1))
    for i in range(4):
        training.run(i)
    (made,) = graphs()
    assert beside(made) == ["product"] * 2
    assert Counter(made.names) == {
        "next_row": 1, "product": 5, "cross_entropy<float>": 1, "bias_backward<float>": 2, "adam_step<float>": 1
    }  # fmt: skip


@pytest.mark.parametrize(("dtype", "kind"), [("float16", "__half"), ("bfloat16", "__nv_bfloat16")])
def test_the_nodes_of_a_step_in_half_floats(dtype: str, kind: str) -> None:
    """Those of float32: nothing is cast."""
    training = Training(gf.capture)
    training.model.to(dtype=dtype)
    training.optimizer = optim.Adam(training.model.parameters(), 0.1)
    for _ in range(4):
        training.call(gf.ones((4, 3), dtype=dtype), labels(4))
    (made,) = graphs()
    kernels = {f"{name}<{kind}>": n for name, n in {"cross_entropy": 1, "bias_backward": 2, "adam_step": 1}.items()}
    assert Counter(made.names) == {"next_row": 1, "product": 5, **kernels}


def test_the_nodes_of_a_step_in_mixed_precision() -> None:
    """Those of float32, and casts of the input, of the loss's input, and of its gradient; none of weights.

    The plain step launches as much.
    """
    plain = Half(plain_step, lambda p: optim.Adam(p, 0.1), width=8)
    training = Half(gf.capture, lambda p: optim.Adam(p, 0.1), width=8)
    x, y = gf.ones((4, 3)), labels(4)
    for _ in range(4):
        training.call(x, y)
        Graphs.work = Counter()
        plain.call(x, y)
    (made,) = graphs()
    assert Counter({"product": 5, "kernel": 4, "function": 3}) == Graphs.work
    assert Counter(made.names) == {
        "next_row": 1, "astype": 3, "product": 5, "cross_entropy<float>": 1, "bias_backward<__nv_bfloat16>": 2,
        "adam_step<float>": 1,
    }  # fmt: skip


def test_gradients_of_weights_are_computed_beside_the_others() -> None:
    """In another stream, joined before the optimizer, or where a weight that is used twice adds them up."""

    def between(i: int, training: Training) -> None:
        if not i:
            shared = nn.Linear(3, 3)
            training.model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(3, 2))
            training.optimizer = optim.SGD(training.model.parameters(), 0.1)

    captured = both(scenario_of(8, between=between))
    assert captured.status == "replaying"
    (made,) = graphs()
    assert beside(made) == ["product"] * 2


# ---------------------------------------------------------------------- steps without a graph


class SignDescent(optim.Optimizer):
    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def update(self, flat: Any, group: Any, lr: float, step: int, first: bool) -> None:
        F = flat.backend
        flat.parameters[...] = F.subtract(flat.parameters, F.multiply(F.sign(flat.gradients), lr / step))


def shared(parameters: Any) -> optim.Optimizer:
    parameters = list(parameters)
    KEPT[:] = [parameters[0].detach()]
    return optim.SGD(parameters, 0.1)


KEPT: list[Any] = []


class FromHost(Training):
    def step(self, x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        return super().step(x * gf.tensor([1.0, 2.0, 3.0]), y)


CALLED: dict[str, tuple[Any, Any, str]] = {
    "an update": (Training, SignDescent, "uses SignDescent, whose own `update` may take numbers that change"),
    "shared memory": (Training, shared, "trains a parameter whose memory is shared"),
    "a copy from the host": (FromHost, optim.Adam, r"cannot be captured: CUDARuntimeError\('CUDA error 900"),
}


@pytest.mark.parametrize("name", CALLED)
def test_what_cannot_be_captured_is_called(name: str, caplog: pytest.LogCaptureFixture) -> None:
    cls, make, reason = CALLED[name]

    with caplog.at_level(logging.WARNING, "gradflow"):
        training = both(scenario_of(8, make, cls=cls))
    assert training.status.startswith("replaying call by call, since it ")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(training.status)
    assert len([x for x in caplog.records if "is replayed call by call: it" in x.getMessage()]) == 1
    assert not graphs()
    assert Graphs.capture is None


def test_a_gradient_outside_of_a_buffer_is_called() -> None:
    w = gf.ones(3, requires_grad=True)

    def step(x: gf.Tensor) -> gf.Tensor:
        loss = (w * x).sum()
        loss.backward()
        return loss

    call = gf.capture(step)
    for i in range(1, 7):
        w.grad = None
        call(gf.full(3, float(i)))
        assert w.grad is not None
        assert w.grad.tolist() == [float(i)] * 3
    assert call.status.endswith("since it keeps a gradient outside of the buffers of an optimizer")


@pytest.mark.parametrize("after", [0, 3, 7])
def test_out_of_memory_is_an_error_and_leaves_everything_as_it_was(after: int) -> None:
    plain, training = Training(plain_step), Training(gf.capture)
    run_each([plain, training], range(3))
    MemoryPool.left = after
    with pytest.raises(MemoryError, match="Out of memory"):
        training.run(3)
    MemoryPool.left = None
    assert Graphs.capture is None
    gc.collect()
    assert not [pool for pool in MemoryPool.made if pool.total_bytes()]
    run_each([plain, training], range(3, 8))
    assert training.found == plain.found
    assert "as a graph" in training.status


def test_a_capture_that_fails_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    end = Stream.end_capture

    def fails(self: Stream) -> Any:
        end(self)
        raise CUDARuntimeError(901, "the capture is invalid")

    monkeypatch.setattr(Stream, "end_capture", fails)
    training = both(scenario_of(8, dropout=0.2))
    assert "the capture is invalid" in training.status
    gc.collect()  # earlier tests
    assert not [pool for pool in MemoryPool.made if pool.total_bytes()]


def test_an_interrupt_while_a_step_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, training = Training(plain_step), Training(gf.capture)
    run_each([plain, training], range(3))
    with monkeypatch.context() as patch:
        patch.setattr(graph.GraphRows, "next_step", lambda self: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            training.run(3)
    assert Graphs.capture is None
    run_each([plain, training], range(3, 8))
    assert training.found == plain.found
    assert training.status == "replaying"


def test_hyperparameters_that_change_in_each_step_are_not_captured_each_time() -> None:
    def between(i: int, training: Training) -> None:
        training.optimizer.param_groups[0]["momentum"] = 0.5 + 0.01 * i

    assert "too often" in both(scenario_of(12, lambda p: optim.SGD(p, 0.1, momentum=0.5), between=between)).status


# ---------------------------------------------------------------------- how long a graph lives


def test_a_graph_is_freed_with_its_step() -> None:
    model, optimizer, step = make_training_of_a_layer()
    call = gf.capture(step)
    for _ in range(6):
        call(gf.ones((2, 3)))
    (made,) = map(weakref.ref, graphs())
    pools = [pool for pool in MemoryPool.made if pool.total_bytes()]
    assert len(pools) == 1
    gc.disable()
    try:
        del model, optimizer, step, call
        assert made() is None
        assert not pools[0].total_bytes()
    finally:
        gc.enable()


def test_memory_that_cupy_keeps_is_there_for_a_graph(cupy: Any) -> None:
    pool = cupy.get_default_memory_pool()
    assert pool.spare
    Training(gf.capture).run(0).run(1).run(2)
    assert not pool.spare


def test_a_graph_outlives_its_model() -> None:
    training, plain = Training(gf.capture), Training(plain_step)
    run_each([plain, training], range(5))
    call = training.call
    del training
    gc.collect()
    for _ in range(4):
        x, y = gf.ones((4, 3)), labels(4)
        assert call(x, y).item() == plain.call(x, y).item()


# ---------------------------------------------------------------------- the emulation is hostile


@contextlib.contextmanager
def capturing(cupy: Any) -> Iterator[tuple[Stream, list[Graph]]]:
    stream, made = Stream(non_blocking=True), []
    with using_allocator(MemoryPool().malloc), stream:
        stream.begin_capture()
        try:
            yield stream, made
        finally:
            made.append(stream.end_capture())


REFUSED: dict[str, Callable[[Any, Any], Any]] = {
    "a copy to the host": lambda cupy, x: cupy.asnumpy(x),
    "a copy from the host": lambda cupy, x: cupy.array(np.ones(3)),
    "a copy into an array": lambda cupy, x: x.set(np.ones(3, "f4")),
    "a wait for a stream": lambda cupy, x: cupy.cuda.get_current_stream().synchronize(),
    "a wait for the device": lambda cupy, x: cupy.cuda.Device().synchronize(),
    "a product": lambda cupy, x: cupy.matmul(x.reshape(1, 3), x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_emulation_refuses(cupy: Any, name: str) -> None:
    x = cupy.empty((3,), dtype="f4")
    with capturing(cupy), pytest.raises((CUDARuntimeError, NotImplementedError), match="captur"):
        REFUSED[name](cupy, x)


def test_the_emulation_refuses_memory_of_the_pool(cupy: Any) -> None:
    stream = Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(AssertionError, match="memory of CuPy's pool"):
            cupy.empty((3,))
        stream.end_capture()


def test_the_emulation_computes_when_a_graph_is_launched(cupy: Any) -> None:
    x = cupy.array(np.ones(3, "f4"))
    with capturing(cupy) as (_, made):
        y = cupy.add(x, x)
    assert np.isnan(cupy.asnumpy(y)).all()
    made[0].launch()
    assert cupy.asnumpy(y).tolist() == [2.0] * 3
    x[...] = cupy.array(np.full(3, 4.0, "f4"))
    made[0].launch()
    assert cupy.asnumpy(y).tolist() == [8.0] * 3
    del x  # its memory is freed, but the graph uses it
    made[0].launch()
    assert np.isnan(cupy.asnumpy(y)).all()


def test_the_emulation_finds_streams_in_no_order(cupy: Any) -> None:
    x = cupy.array(np.ones(3, "f4"))
    side = Stream(non_blocking=True)
    with capturing(cupy) as (stream, _):
        y = cupy.add(x, x)
        side.wait_event(stream.record())
        with side:
            z = cupy.multiply(y, y)
        with pytest.raises(AssertionError, match="multiply and __setitem__ are in no order"):
            y[...] = x
        stream.wait_event(side.record())
        y[...] = z


def test_a_graph_needs_the_streams_of_a_capture_joined(cupy: Any) -> None:
    x, side = cupy.array(np.ones(3, "f4")), Stream(non_blocking=True)
    with contextlib.ExitStack() as stack:
        stream, _ = stack.enter_context(capturing(cupy))
        side.wait_event(stream.record())
        with side:
            cupy.add(x, x)
        with pytest.raises(CUDARuntimeError, match="904"):
            stack.close()


def test_steps_of_other_devices_are_programs() -> None:
    assert isinstance(gf.get_backend("emulated").graph(None, []), StepGraph)  # type: ignore[arg-type]
    with gf.use_device("cpu"):
        training = Training(gf.capture)
        for i in range(5):
            training.run(i)
    assert training.status == "replaying"
    assert not graphs()
