"""Captured steps of the fast backend: what is native and what is Python, equal to plain steps to the bit."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from gradflow_numpy import FastNumpyBackend
from gradflow_numpy.native.kernels import is_supported
from gradflow_numpy.native.step import NativeStep
from gradflow_numpy.native.threads import Program

import gradflow as gf
from gradflow import nn, optim

pytestmark = pytest.mark.skipif(
    not isinstance(gf.get_backend("cpu"), FastNumpyBackend) or not is_supported(), reason="needs the extra fast"
)
RNG = np.random.default_rng(0)


class Training:
    """A linear model whose loss is made of array functions, most of which have a kernel and some of which have none."""

    def __init__(self, make: Callable[..., optim.Optimizer] = optim.Adam, **options: Any) -> None:
        gf.manual_seed(3)
        self.weight = gf.random.normal((6, 5)).requires_grad_()
        self.bias = gf.zeros((6, 5), requires_grad=True)
        self.optimizer = make([self.weight, self.bias], **options)
        self.norm: float | None = None
        self.dropped = 0.0

    def step(self, x: gf.Tensor, y: gf.Tensor) -> Any:
        self.optimizer.zero_grad()
        z = x * self.weight + self.bias
        z = gf.dropout(z, self.dropped) if self.dropped else z
        loss = ((z - y) * (z - y)).mean()
        loss.backward()
        if self.norm is not None:
            optim.clip_grad_norm_([self.weight, self.bias], self.norm)
        self.optimizer.step()
        return {"loss": loss, "z": z[1:, ::2]}

    def state(self) -> Any:
        return [bits(self.weight), bits(self.bias), self.optimizer.steps, repr(gf.random.default_generator)]


def bits(x: gf.Tensor) -> Any:
    return x.shape, str(x.dtype), x.detach().numpy().tobytes()


def batches(n: int, dtype: str = "float32") -> Iterator[tuple[gf.Tensor, gf.Tensor]]:
    rng = np.random.default_rng(1)
    for _ in range(n):
        yield tuple(gf.tensor(rng.normal(size=(6, 5)).astype(dtype)) for _ in range(2))  # type: ignore[misc]


def native(step: Any) -> Any:
    """The `NativeStep` of a captured step that has one program."""
    cells = dict(zip(step.__code__.co_freevars, (c.cell_contents for c in step.__closure__), strict=True))
    (plan,) = cells["plans"].values()
    (program,) = plan.programs
    assert isinstance(program.replay, NativeStep)
    return program.replay


def run(training: Training, through: Callable[[Any], Any], n: int = 12, between: Any = None) -> tuple[list[Any], Any]:
    """What the steps return and leave, and the step."""
    step, found = through(training.step), []
    for i, (x, y) in enumerate(batches(n)):
        if between is not None:
            x, y = between(training, i, x, y) or (x, y)
        result = step(x, y)
        found.append([bits(result["loss"]), bits(result["z"]), training.state()])
    return found, step


def as_it_is(step: Any) -> Any:
    return step


def assert_same(make: Callable[[], Training], between: Any = None, n: int = 12) -> Any:
    """Train plainly and captured, compare all bits, and return the captured step."""
    plain, _ = run(make(), as_it_is, n, between)
    captured, step = run(make(), gf.capture, n, between)
    for i, (a, b) in enumerate(zip(plain, captured, strict=True)):
        assert a == b, f"step {i}, status {step.status}"
    return step


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (optim.SGD, {"lr": 0.1}),
    "momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": (optim.Adam, {"lr": 0.1}),
    "adamw": (optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
    "rmsprop": (optim.RMSprop, {"lr": 0.1, "centered": True, "momentum": 0.5}),
    "adagrad": (optim.Adagrad, {"lr": 0.1}),
    "schedule": (optim.Adam, {"lr": optim.schedules.cosine(0.1, 8)}),
    "a function": (optim.SGD, {"lr": lambda steps: 0.1 / (1 + steps), "maximize": True}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_of_every_optimizer_have_the_bits_of_the_plain_step(name: str) -> None:
    make, options = OPTIMIZERS[name]
    step = assert_same(lambda: Training(make, **options))
    assert step.status.startswith("replaying, with ")
    assert any(isinstance(part, Program) for part in native(step)._lowered.parts)


def test_dropout_and_clipping_have_the_bits_of_the_plain_step() -> None:
    def make() -> Training:
        training = Training()
        training.norm, training.dropped = 0.5, 0.25
        return training

    def draw(training: Training, i: int, x: Any, y: Any) -> None:
        if i == 7:
            gf.random.uniform(5)
        if i == 9:
            gf.manual_seed(4)

    assert assert_same(make, draw).status.startswith("replaying")


def change_inputs(training: Training, i: int, x: gf.Tensor, y: gf.Tensor) -> tuple[gf.Tensor, gf.Tensor]:
    if i % 3 == 1:
        return gf.Tensor(np.asfortranarray(x.array), x.backend), y
    if i % 3 == 2:
        wide = gf.tensor(np.repeat(y.numpy(), 2, axis=1))
        return x, wide[:, ::2]
    return x, gf.Tensor(np.frombuffer(y.numpy().tobytes(), "f4").reshape(6, 5), y.backend)


def test_inputs_may_have_gaps_another_order_or_read_only_memory() -> None:
    assert_same(Training, change_inputs)


def test_an_input_may_lie_in_memory_that_the_step_changes() -> None:
    def parameter(training: Training, i: int, x: gf.Tensor, y: gf.Tensor) -> tuple[gf.Tensor, gf.Tensor]:
        return gf.Tensor(training.weight.array[...], x.backend) if i % 2 else x, y

    assert_same(Training, parameter)


EDITS: dict[str, Callable[[Training], Any]] = {
    "rate": lambda t: t.optimizer.param_groups[0].update(lr=0.5),
    "decay": lambda t: t.optimizer.param_groups[0].update(weight_decay=0.5),
    "steps": lambda t: setattr(t.optimizer, "steps", 40),
    "frozen": lambda t: t.bias.requires_grad_(False),
    "values": lambda t: gf.no_grad()(t.weight.copy_)(gf.ones((6, 5))),
    "other array": lambda t: setattr(t.weight, "array", t.weight.array.copy()),
    "state": lambda t: t.optimizer.load_state_dict(t.optimizer.state_dict()),
    "threads": lambda t: gf.set_num_threads(1 + gf.get_num_threads() % 2),
    "plain step": lambda t: t.step(*next(batches(1))),
    "gradients read": lambda t: t.weight.grad,
}


@pytest.mark.parametrize("name", EDITS)
def test_changes_between_steps_take_effect(name: str) -> None:
    threads = gf.get_num_threads()

    def edit(training: Training, i: int, x: Any, y: Any) -> None:
        if i in (6, 9):
            EDITS[name](training)

    try:
        assert assert_same(Training, edit, 16).status.startswith("replaying")
    finally:
        gf.set_num_threads(threads)


def test_a_gradient_that_is_held_is_not_overwritten() -> None:
    def hold(training: Training, i: int, x: Any, y: Any) -> None:
        if i in (6, 8):
            held.append((training.weight.grad, bits(training.weight.grad)))

    held: list[Any] = []
    assert_same(Training, hold)
    assert all(bits(x) == before for x, before in held)


def test_hyperparameters_that_change_all_the_time_end_tracing() -> None:
    def edit(training: Training, i: int, x: Any, y: Any) -> None:
        training.optimizer.param_groups[0]["weight_decay"] = 0.01 * i

    step = assert_same(Training, edit, 16)
    assert step.status == "replaying, in Python, since it changes hyperparameters or settings too often"


def test_accumulated_gradients_have_the_bits_of_the_plain_step() -> None:
    class Two(Training):
        def step(self, x: gf.Tensor, y: gf.Tensor) -> Any:
            self.optimizer.zero_grad()
            for part in (x, y):
                loss = ((part * self.weight + self.bias) * part).sum()
                loss.backward()
            self.optimizer.step()
            return {"loss": loss, "z": loss}

    assert assert_same(Two).status.startswith("replaying")


def labelled(captured: bool) -> list[Any]:
    gf.manual_seed(0)
    model = nn.MLP([4, 8, 3], dropout=0.5)
    optimizer = optim.Adam(model.parameters())
    step: Any = lambda x, y: _labelled(model, optimizer, x, y)  # noqa: E731
    found: list[Any] = []
    step = gf.capture(step) if captured else step
    for i in range(18):
        labels = gf.tensor([0, 1, 2, 3 if i in (6, 15) else 0], dtype="int64")
        before = getattr(step, "status", "")
        try:
            found.append(bits(step(gf.ones((4, 4)) * float(i), labels)))
        except ValueError as error:
            found.append(str(error))
            assert not captured or before.startswith("replaying")
        found.append([bits(p) for p in model.parameters()])
        found.append((optimizer.steps, [p.grad is None for p in model.parameters()]))
        found.append(gf.random.default_generator.state_dict())
    return found


def _labelled(model: nn.Module, optimizer: optim.Optimizer, x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
    optimizer.zero_grad()
    loss = gf.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def test_labels_out_of_range_raise_and_leave_what_the_plain_step_leaves() -> None:
    plain, captured = labelled(False), labelled(True)
    assert plain == captured
    assert sum("labels" in str(x) for x in plain) == 2


def test_an_exception_in_a_python_call_leaves_what_the_plain_step_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training()
    _, step = run(training, gf.capture, 5)
    before = training.state()
    parts = native(step)._lowered.parts
    call = next(part for part in parts if not isinstance(part, Program))
    calls = iter([MemoryError(), None])

    def fail() -> None:
        raise next(calls)

    monkeypatch.setattr(call, "run", fail)
    twin = Training()
    run(twin, as_it_is, 5)
    x, y = next(batches(1))
    assert bits(step(x, y)["loss"]) == bits(twin.step(x, y)["loss"])  # it is done again, call by call
    assert training.state() == twin.state() != before


def test_an_interrupted_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training()
    _, step = run(training, gf.capture, 5)

    def interrupt() -> None:
        raise KeyboardInterrupt

    part = next(part for part in native(step)._lowered.parts if not isinstance(part, Program))
    with monkeypatch.context() as patch:
        patch.setattr(part, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            step(*next(batches(1)))
    assert training.optimizer.steps == 6
    assert training.weight.grad is not None
    step(*next(batches(1)))
    assert training.optimizer.steps == 7


def test_memory_does_not_grow() -> None:
    training = Training()
    _, step = run(training, gf.capture, 5)
    x, y = next(batches(1))

    def objects() -> int:
        for _ in range(300):
            step(x, y)
        gc.collect()
        return len(gc.get_objects())

    objects()
    before = objects()
    assert objects() <= before + 5


def test_a_program_goes_with_its_step() -> None:
    import weakref

    _, step = run(Training(), gf.capture, 5)
    gone = weakref.ref(native(step)), weakref.ref(native(step)._lowered.parts[0])
    gc.disable()
    try:
        del step
        assert [x() for x in gone] == [None, None]
    finally:
        gc.enable()


def test_threads_may_replay_one_step_at_the_same_time() -> None:
    weight = gf.random.normal((6, 5))
    step: Any = gf.capture(lambda x: (x * weight + x).sum())
    inputs = [x for x, _ in batches(8)]
    expected = [bits((x * weight + x).sum()) for x in inputs]
    for x in inputs:
        step(x)
    wrong: list[Any] = []

    def work(x: gf.Tensor, right: Any) -> None:
        wrong.extend(i for i in range(200) if bits(step(x)) != right)

    threads = [threading.Thread(target=work, args=each) for each in zip(inputs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_replays_though_another_thread_held_the_step() -> None:
    training = Training()
    _, step = run(training, gf.capture, 6)
    taken = native(step)
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with taken._lock:
            held.set()
            go_on.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if not child:
        step(*next(batches(1)))
        os._exit(0 if training.optimizer.steps == 7 else 1)
    go_on.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_the_status_says_that_an_input_is_not_what_kernels_take() -> None:
    model = gf.nn.Linear(4, 2)
    step = gf.capture(lambda x: gf.sum(model(x)))
    x = gf.tensor(np.ones((4, 4), np.float32))
    for _ in range(4):
        step(x)
    usual = step.status
    assert "contiguous" not in usual
    expected = gf.sum(model(x.T)).detach().numpy()
    np.testing.assert_array_equal(step(x.T).numpy(), expected)
    assert (
        step.status == "replaying, in Python, since it got an input that is not contiguous, or read-only: pass a copy"
    )
    step(x)
    assert step.status == usual


def test_no_copy_is_kept_of_an_input_that_programs_read_where_it_is() -> None:
    model, x, y = gf.nn.Linear(4096, 1), gf.ones((256, 4096)), gf.zeros((256, 1))
    gf.mse_loss(model(x), y)  # compiles the kernels
    step = gf.capture(lambda x: gf.mse_loss(model(x), y))
    tracemalloc.start()
    try:
        for _ in range(4):
            step(x)
        assert step.status == "replaying"
        assert tracemalloc.get_traced_memory()[0] < x.array.nbytes / 2
    finally:
        tracemalloc.stop()
