"""The Trainer on the CuPy backend with an emulated CuPy: what it reads, waits for and launches; runs that go on.

It says nothing about a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import emulated_cupy
import pytest
from emulated_device import needs_compiler
from emulated_graphs import Graphs
from gradflow_cupy.graph import FirstRows, GraphRows
from test_resume import Case, check_resume
from test_runs_on_devices import check_going_on, check_kept

import gradflow as gf
from gradflow import nn, optim
from gradflow.data import Batches
from gradflow.training import Trainer
from tests.trainers import INPUTS, LABELS, WEIGHTS

pytestmark = needs_compiler
State = emulated_cupy.State


def trainer_of(capture: bool = False, weights: Any = None, keep: str = "device", **options: Any) -> Trainer:
    """Return a trainer with five batches in an epoch."""
    model = nn.MLP([4, 8, 3], "tanh", generator=gf.Generator(1))
    train = Batches(INPUTS, LABELS, 16, gf.Generator(2), weights=weights, keep=keep)
    validation = Batches(INPUTS[:30], LABELS[:30], 20, shuffle=False, keep=keep)
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    return Trainer(model, gf.cross_entropy, optimizer, train, validation, capture=capture, **options)


def test_the_rates_of_a_plateau_reach_captured_steps(backend: Any) -> None:
    """With the bits of steps that are not captured, also of several at once; the rate falls more than once."""
    histories = []
    with gf.use_device("emulated"):
        for capture in (False, True):
            schedule = optim.schedules.plateau(0.05, factor=0.5, patience=0, threshold=0.3)
            trainer = trainer_of(capture, schedule=schedule)
            list(trainer.epochs(8))
            histories.append(trainer.history)
    assert histories[0] == histories[1]
    assert len({epoch.learning_rate for epoch in histories[0]}) > 2


# ---------------------------------------------------------------------- what is read, waited for and launched

OPTIONS: list[dict[str, Any]] = [
    {},
    {"metrics": ["accuracy"], "average": 0.9, "clip_norm": 0.5},
    {"accumulate": 2, "weights": WEIGHTS, "class_weight": "balanced"},
]


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_an_epoch_is_read_at_its_end_alone(
    backend: Any, capture: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is waited for within, and nothing copied but the numbers of a graph's next steps, more and more seldom.

    At the end, losses are read, and metrics, of both `Batches`.
    """
    tables: list[int] = []
    for cls, name in ((GraphRows, "_send"), (FirstRows, "array")):
        send = getattr(cls, name)
        monkeypatch.setattr(cls, name, lambda self, *x, send=send: tables.append(1) or send(self, *x))
    with gf.use_device("emulated"):
        trainer = trainer_of(capture, **options)
        next(trainer.epochs(1))
        reads, before, tables_sent = 4 if trainer.metrics else 2, (0, 0), []
        tables.clear()
        for step in trainer.steps(3 * trainer.step):
            if step.step > trainer.history[0].step + 1:
                found = State.transfers - before[0] - len(tables), State.synchronizations - before[1]
                assert found == ((reads, 0) if step.finished else (0, 0)), step
            before = State.transfers, State.synchronizations
            tables_sent += tables
            tables.clear()
    assert trainer.epoch == 3
    assert len(tables_sent) <= (8 if capture else 0)


def test_streamed_data_is_waited_for_only_to_fill_a_buffer_again(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five batches of two arrays, one is copied ahead, and the first two fill new buffers."""
    monkeypatch.setattr("gradflow.data.loader._GATHERED", 1)  # each batch is copied on its own
    backend.seed(backend.single)  # made once, and waited for
    with gf.use_device("emulated"):
        trainer, found = trainer_of(keep="host"), []
        before = State.transfers, State.synchronizations
        for step in trainer.steps(10):
            if not step.finished:
                found.append((State.transfers - before[0], State.synchronizations - before[1]))
            before = State.transfers, State.synchronizations
    assert found == [(4, 0), (2, 1), (2, 1), (2, 1)] * 2


def calls_of(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the calls of CuPy's functions, and the launches of kernels, from now on."""
    calls: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **options)

        return call

    for name, function in list(vars(cupy).items()):
        if callable(function) and not isinstance(function, type):
            monkeypatch.setattr(cupy, name, counted(name, function))
    launch = emulated_cupy.Kernel.__call__
    monkeypatch.setattr(
        emulated_cupy.Kernel, "__call__", lambda self, *arguments: counted(self.name, launch)(self, *arguments)
    )
    return calls


CLIPPING = [f"{name}<float>" for name in ("square_sums", "scale_by")]


@pytest.mark.parametrize("capture", [False, True])
def test_a_trainer_launches_what_a_plain_loop_does(cupy: Any, capture: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics, clipping and an average add so many launches, and nothing else does."""
    calls = calls_of(cupy, monkeypatch)
    with gf.use_device("emulated"):
        other = trainer_of()  # for its model, optimizer and batches
        model, optimizer = other.model, other.optimizer

        def step(inputs: gf.Tensor, targets: gf.Tensor) -> gf.Tensor:
            optimizer.zero_grad()
            loss = gf.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = gf.capture(step) if capture else step
        batch = next(iter(other.train))

        def counts_of(go: Callable[[], Any]) -> Counter[str]:
            for _ in range(8):  # a step is recorded in the first calls; the eighth is within an epoch
                calls.clear()
                go()
            if not capture:
                return Counter(calls)
            assert set(calls) <= {"array", "empty", "take_rows"}  # a table, the results, and the batch
            return Counter(max(Graphs.alive, key=lambda graph: graph.number).names)

        bare = counts_of(lambda: run(*batch))
        assert sum(bare.values()) > 10
        for options, more in (
            ({}, {}),
            ({"average": 0.9}, {"sgd_step<float>": 1}),
            ({"metrics": ["accuracy"]}, {"reduce": 1, "equal": 1} if capture else {"argmax": 1, "equal": 1}),
            ({"clip_norm": 0.5}, dict.fromkeys(CLIPPING, 1)),
        ):
            trainer = trainer_of(capture, **options)  # type: ignore[arg-type]
            steps = trainer.steps(10)
            found = counts_of(lambda steps=steps: next(steps))  # type: ignore[misc]
            found.subtract(bare)
            assert {name: n for name, n in found.items() if n and name != "empty"} == more


@pytest.mark.parametrize("capture", [False, True])
def test_only_a_loop_over_steps_computes_the_loss_of_a_union(
    cupy: Any, capture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share of each batch is the seed of its gradient, and costs no product."""
    calls = calls_of(cupy, monkeypatch)
    with gf.use_device("emulated"):
        found = []
        for how in ("_update", "steps"):
            trainer = trainer_of(capture, accumulate=2)
            list(trainer.epochs(3))
            calls.clear()
            if how == "steps":
                next(trainer.steps(100))  # type: ignore[call-overload]
            else:
                trainer._update()
            found.append(Counter(calls))
    epochs, steps = found
    assert epochs["multiply"] == 0
    steps.subtract(epochs)
    assert {name: n for name, n in steps.items() if n and name != "empty"} == {"multiply": 2, "add": 1}


# ---------------------------------------------------------------------- runs that stop and move


@pytest.mark.parametrize(
    "case",
    [
        Case(model="table", capture=True, optimizer="momentum", loss="values", keep="host"),
        Case(model="table", dropout=0.3, accumulate=2, average=0.9, clip_norm=0.5, weights=True),
        Case(autocast="float16", capture=True, average=0.9, clip_norm=0.5, optimizer="nadam", schedule="plateau"),
        Case(autocast="float16", accumulate=2, optimizer="momentum"),
    ],
)
def test_a_run_goes_on_with_the_same_bits(cupy: Any, case: Case, tmp_path: Path) -> None:
    """With gradients of repeated indices and with dropout, plain and captured."""
    with gf.use_device("emulated"):
        check_resume(case, [3], 7, tmp_path / "state.safetensors")


@pytest.mark.parametrize(("first", "second"), [("emulated", "cpu"), ("cpu", "emulated")])
def test_a_run_goes_on_on_the_other_device(cupy: Any, first: str, second: str, tmp_path: Path) -> None:
    check_going_on(Case(model="table", average=0.9), first, second, tmp_path / "state.safetensors")


def test_a_run_is_the_same_wherever_the_data_is_kept(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are made as late as the order of the streams allows."""
    monkeypatch.setattr("gradflow.data.loader._GATHERED", 1)
    with gf.use_device("emulated"):
        check_kept(Case(capture=True, weights=True, batch=7, validation=False), 12)
