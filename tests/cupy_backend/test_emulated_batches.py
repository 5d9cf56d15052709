"""Several captured steps in one graph, on the CuPy backend with an emulated CuPy that captures as CUDA does.

It says nothing about a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_cuda import State
from emulated_device import needs_compiler
from emulated_graphs import Graph, Graphs
from test_capture_batches import OPTIONS, Run, plain, values
from test_resume import Case, losses, outcome
from test_trainer_together import CASES, STEPS, Hiding

import gradflow as gf
from gradflow import optim
from gradflow.data import Batches
from gradflow.training import NonFiniteLossError, Trainer

pytestmark = [needs_compiler, pytest.mark.slow]


@pytest.fixture
def launched(backend: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The nodes of each graph that is launched in a test, on the device `emulated`."""
    found: list[list[str]] = []
    launch = Graph.launch
    monkeypatch.setattr(Graph, "launch", lambda graph, stream=None: (found.append(graph.names), launch(graph, stream)))
    monkeypatch.setattr("gradflow.training.step._MOST_AT_ONCE", STEPS)
    with gf.use_device("emulated"):
        yield found


def steps_of(names: list[str]) -> int:
    """The number of steps in a graph."""
    return names.count("next_row")


@pytest.mark.parametrize(
    ("name", "steps"),
    [(name, 3) for name in ("shuffled", "weights", "dropout", "on the host", "one batch")] + [("whole batches", 32)],
)
def test_epochs_have_the_bits_of_a_loop(name: str, steps: int, launched: list[list[str]]) -> None:
    expected, found = Run(**OPTIONS[name]), Run(**OPTIONS[name])
    run = gf.capture(found.step, batches=found.batches, steps=steps)
    for _ in range(5):
        assert [each for result in run.epoch() for each in values(result)] == plain(expected, 1)
        assert found.weights() == expected.weights()
    assert run.status == "replaying"
    whole = found.batches.samples // found.batches.batch_size
    several = [names for names in launched if steps_of(names) > 1]
    if name == "on the host" or whole < 2:
        assert not several
        return
    assert {*map(steps_of, several)} == {min(steps, whole), whole % steps} - {0, 1}
    for names in several:  # one launch gathers all batches; each of the two results of a step is copied to its place
        assert (names.count("take_rows"), names.count("__setitem__")) == (1, 2 * steps_of(names))


def test_an_epoch_goes_on_from_any_batch(launched: list[list[str]]) -> None:
    expected, found = Run(dropout=0.2), Run(dropout=0.2)
    run = gf.capture(found.step, batches=found.batches, steps=4)
    for first in (0, 0, 3, 4, 0, 5, 8, 9, 2):
        assert [each for result in run.epoch(first) for each in values(result)] == plain(expected, 1, first)
    assert found.weights() == expected.weights()
    assert 4 in map(steps_of, launched)


def test_rates_that_change_are_followed(launched: list[list[str]]) -> None:
    """By hand within an epoch too. A user's function is asked before each step, so these steps are single graphs."""
    for lr in (0.05, optim.schedules.cosine(0.05, 60), lambda step: 0.05 / (1 + step)):
        runs = [Run(make=lambda p, lr=lr: optim.Adam(p, lr=lr)) for _ in range(2)]  # type: ignore[misc]
        run = gf.capture(runs[0].step, batches=runs[0].batches, steps=4)
        for epoch in range(5):
            launched.clear()
            found, batches = [], runs[1].batches.epoch()
            for i, result in enumerate(run.epoch()):
                found += values(result)
                expected = [each for _ in values(result) for each in values(runs[1].step(*next(batches)))]
                assert found[-len(expected) :] == expected
                if lr == 0.05:
                    for each in runs:
                        each.optimizer.param_groups[0]["lr"] = 0.05 / (1 + epoch + i)
        assert runs[0].weights() == runs[1].weights()
        together = [1] * 9 if "lambda" in repr(lr) else [4, 4, 1]
        assert [*map(steps_of, launched)] == together


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the tables of numbers that are sent to the device."""
    from gradflow_cupy.graph import GraphRows

    found: list[int] = []
    send = GraphRows._send
    monkeypatch.setattr(GraphRows, "_send", lambda rows, wanted: (found.append(wanted), send(rows, wanted)))
    return found


def test_nothing_is_waited_for_and_only_numbers_ahead_are_copied(launched: list[list[str]], sent: list[int]) -> None:
    found = Run(dropout=0.2)
    run = gf.capture(found.step, batches=found.batches, steps=4)
    for _ in range(4):  # until the smaller batch has a graph, too
        list(run.epoch())
    sent.clear()
    before = State.synchronizations, State.transfers
    for _ in range(6):
        for _ in run.epoch():
            assert (State.synchronizations, State.transfers - len(sent)) == before
    assert len(sent) <= 6 * 3, "for 4 steps, for 8, and for the smaller batch"


# ---------------------------------------------------------------------- the Trainer


@pytest.mark.parametrize("accuracy", [False, True])
def test_an_epoch_is_read_at_its_end_alone(accuracy: bool, launched: list[list[str]], sent: list[int]) -> None:
    """Losses, with the flag, and metrics, of the training and the validation."""
    case = Case(batch=4, loss="labels" if accuracy else "values", average=0.9, clip_norm=0.5)
    trainer = case.trainer()
    if not accuracy:
        trainer = Trainer(trainer.model, trainer.loss, trainer.optimizer, trainer.train, trainer.validation)
    for epoch in range(1, 9):
        before = State.transfers, State.synchronizations
        sent.clear()
        launched.clear()
        list(trainer.epochs(epoch))
        if epoch > 4:
            reads = 4 if accuracy else 2
            assert (State.transfers - before[0] - len(sent), State.synchronizations - before[1]) == (reads, 0)
            assert [*map(steps_of, launched)] == [STEPS] * 3 + [1]


@pytest.mark.parametrize("name", ["weighted", "clipped", "dropout", "default order", "float16", "bfloat16"])
def test_a_trainer_has_the_same_bits(name: str, launched: list[list[str]]) -> None:
    case = CASES[name]
    expected, found = Case(**{**vars(case), "capture": False}).trainer(), case.trainer()
    for trainer in (expected, found):
        gf.manual_seed(9)
        list(trainer.epochs(4))
    assert found.history == expected.history
    assert outcome(found) == outcome(expected)
    assert (sum(epoch.skipped for epoch in found.history) > 0) == (name == "float16")
    steps = [steps_of(names) for names in launched]
    if name == "clipped":  # its rate is a user's function
        assert max(steps) == 1
    else:
        assert STEPS in steps


def test_a_run_goes_on_with_the_same_bits(launched: list[list[str]], tmp_path: Path) -> None:
    case = Case(batch=4, average=0.9, dropout=0.2)
    whole = case.trainer()
    list(whole.epochs(4))
    trainer = case.trainer()
    losses(trainer, 17)  # in the middle of an epoch, and of steps that are done at once
    trainer.save(tmp_path / "state.safetensors")
    for each in (case.trainer(), trainer):
        each.load(tmp_path / "state.safetensors")
        list(each.epochs(4))
        assert outcome(each) == outcome(whole)
    assert STEPS in map(steps_of, launched)


def test_a_nan_that_an_activation_hides_ends_the_run(launched: list[list[str]]) -> None:
    """The optimizer's kernel raises the flag in the graph; it is read with the losses."""
    model = Hiding()
    x = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    trainer = Trainer(model, gf.mse_loss, optimizer, Batches(x, x[:, :2].copy(), 4), capture=True)
    list(trainer.epochs(3))
    assert STEPS in map(steps_of, launched)
    with gf.no_grad():
        model.hidden.weight[1] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"by epoch 4, although the loss is finite, of shape \(4, 3\)"):
        list(trainer.epochs(5))


def test_a_run_that_is_gone_leaves_no_graph(launched: list[list[str]]) -> None:
    """Without the garbage collector: nothing refers to itself."""
    found = Run()
    run = gf.capture(found.step, batches=found.batches, steps=4)
    for _ in range(4):
        list(run.epoch())
    before = len(Graphs.alive)
    gc.collect()
    gc.disable()
    try:
        del run
        assert len(Graphs.alive) == before - 3, "of 4 steps, of one, and of the smaller batch"
    finally:
        gc.enable()
