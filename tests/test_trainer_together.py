"""A Trainer that does several captured steps at once, as on a device with graphs, has the bits of one that does not."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs_of_steps import give_graphs, take_graphs
from test_resume import INPUTS, VALUES, Case, losses, outcome

import gradflow as gf
from gradflow import nn
from gradflow.data import Batches
from gradflow.replay.batches import has_graphs
from gradflow.saving import to_bytes
from gradflow.training import NonFiniteLossError, Trainer
from gradflow.training.evaluation import Tally
from gradflow.training.step import steps_at_once

pytest.importorskip("safetensors")

CASES = {
    "adam": Case(batch=4),
    "accuracy": Case(batch=4, model="sequential", optimizer="adamw", schedule="number"),
    "clipped": Case(batch=4, optimizer="momentum", average=0.9, clip_norm=0.5, schedule="warm-up"),
    "weighted": Case(batch=6, weights=True, class_weight="balanced", optimizer="rmsprop"),
    "dropout": Case(batch=6, dropout=0.3, drop_last=True),
    "values": Case(batch=5, loss="values", shuffle="no", validation=False),
    "float16": Case(batch=4, autocast="float16", optimizer="momentum", clip_norm=0.5, average=0.9),
    "bfloat16": Case(batch=4, autocast="bfloat16"),
    "default order": Case(batch=7, shuffle="default", average=0.5),
}
STEPS = 4


@pytest.fixture
def with_graphs(device: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Return a function that gives the device graphs, of at most four steps, and returns the steps of each replay."""

    def give() -> list[int]:
        monkeypatch.setattr("gradflow.training.step._MOST_AT_ONCE", STEPS)
        return give_graphs(monkeypatch, device)

    return give


@pytest.fixture
def without_graphs(device: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that takes the graphs of the device, if it has any."""
    return lambda: take_graphs(monkeypatch, device)


@pytest.mark.parametrize("name", CASES)
def test_a_run_has_the_same_bits(name: str, device: str, with_graphs: Callable[[], list[int]]) -> None:
    """History, weights, best weights, moments, generators; whether epochs or steps are looped over."""
    case = CASES[name]
    if case.autocast is not None and not gf.get_backend(device).supports(case.autocast):
        pytest.skip(f"{device} has no {case.autocast}")
    expected = case.trainer()
    history = [str(epoch) for epoch in expected.epochs(4)]
    assert len(history) == 4
    replays = with_graphs()
    found = case.trainer()
    for i, _ in enumerate(found.epochs(4)):
        if i == 1:
            list(found.steps(found.step + 2))
    assert found.history == expected.history
    assert outcome(found) == outcome(expected)
    whole = 50 // case.batch
    assert {n for n in replays if n > 1} == {STEPS, whole % STEPS} - {0, 1}
    assert sum(n for n in replays if n > 1) >= 2 * (whole - STEPS)


@pytest.mark.parametrize("stop", range(0, 26, 5))
def test_a_run_goes_on_from_each_step(
    stop: int, with_graphs: Callable[[], list[int]], without_graphs: Callable[[], None], tmp_path: Path
) -> None:
    """Saved in the middle of what is done at once; loaded with and without graphs. The whole run has the device's."""
    case = Case(batch=4, average=0.9, dropout=0.0 if gf.current_device().type == "strict" else 0.2)  # slow there
    whole = case.trainer()
    list(whole.epochs(4))
    expected = outcome(whole)
    without_graphs()
    plain = case.trainer()
    assert plain._step.run is None
    replays = with_graphs()
    trainer = case.trainer()
    losses(trainer, stop)
    trainer.save(tmp_path / "state.safetensors")
    for each in (plain, case.trainer(), trainer):
        each.load(tmp_path / "state.safetensors")
        list(each.epochs(4))
        assert outcome(each) == expected
    assert set(replays) == {1, STEPS}


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="no signals")
@pytest.mark.parametrize("at", [1, 2, 5])
def test_ctrl_c_ends_after_the_steps_that_are_done_at_once(at: int, with_graphs: Callable[[], list[int]]) -> None:
    case = Case(batch=4)
    whole = case.trainer()
    list(whole.epochs(5))
    with_graphs()
    trainer = case.trainer()
    together = trainer._updates.together
    calls = itertools.count(1)

    def pressed(*arguments: Any) -> Any:
        found = together(*arguments)
        if found is not None and next(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return found

    vars(trainer._updates)["together"] = pressed
    with pytest.raises(KeyboardInterrupt):
        list(trainer.epochs(5))
    assert 0 < trainer.step < 5 * 13
    assert trainer.step % 13 % STEPS == 0
    list(trainer.epochs(5))
    assert outcome(trainer) == outcome(whole)


@pytest.mark.parametrize("every", [1, 2])
def test_a_watched_run_has_the_same_snapshots(every: int, with_graphs: Callable[[], list[int]]) -> None:
    case = Case(batch=4, drop_last=True)
    expected = case.trainer()
    watch = expected.watch(every)
    list(expected.epochs(4))
    replays = with_graphs()
    found = case.trainer()
    watched = found.watch(every)
    list(found.epochs(4))
    assert to_bytes(watched.tree()) == to_bytes(watch.tree())
    assert outcome(found) == outcome(expected)
    assert STEPS in replays


def test_the_bar_goes_on_by_several_batches(with_graphs: Callable[[], list[int]]) -> None:
    pytest.importorskip("tqdm")
    with_graphs()
    trainer = Case(batch=4).trainer()
    vars(trainer)["progress"] = True
    shown: list[int] = []
    show = trainer._bar.show
    vars(trainer._bar)["show"] = lambda batches, loss: (shown.append(batches), show(batches, loss))
    list(trainer.epochs(3))
    assert shown == [1, 2, 3, *[4, 8, 12, 13] * 3]


def test_results_of_steps_stay_in_order() -> None:
    tally, one = Tally(), gf.ones((2, 1))
    tally.add(gf.tensor(1.0), (one,))
    tally.add_stacked(gf.tensor([2.0, 3.0]), (gf.stack([2.0 * one, 3.0 * one]),))
    tally.add(gf.tensor(4.0), (4.0 * one[:1],))
    losses, (partial,) = tally.results()
    assert losses is not None
    assert (losses.tolist(), partial.reshape((-1,)).tolist()) == ([1, 2, 3, 4], [1, 1, 2, 2, 3, 3, 4])


def test_which_steps_are_done_at_once(
    device: str,
    with_graphs: Callable[[], list[int]],
    without_graphs: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small ones, of data on a device with graphs; each batch has a step."""
    batches = Batches(np.zeros((100, 4), "float32"), np.zeros(100), 10)
    assert steps_at_once(nn.Linear(4, 1), batches) == (32 if has_graphs(gf.get_backend(device)) else 1)
    without_graphs()
    assert steps_at_once(nn.Linear(4, 1), batches) == 1, "without graphs"
    with_graphs()
    assert steps_at_once(nn.Linear(4, 1), batches) == STEPS
    on_host = Batches(np.zeros((100, 4), "float32"), np.zeros(100), 10, keep="host")
    assert steps_at_once(nn.Linear(4, 1), on_host) == 1
    monkeypatch.setattr("gradflow.training.step._ELEMENTS_AT_ONCE", 3 * 50)
    assert steps_at_once(nn.Linear(4, 1), batches) == 3
    monkeypatch.setattr("gradflow.training.step._PRODUCTS_AT_ONCE", 2 * 64 * 5)
    assert steps_at_once(nn.Linear(4, 1), batches) == 2
    monkeypatch.setattr("gradflow.training.step._PRODUCTS_AT_ONCE", 10)
    assert steps_at_once(nn.Linear(4, 1), batches) == 1
    trainer = Case(batch=4, accumulate=2).trainer()
    assert trainer._step.run is None
    assert Case(batch=4, capture=False).trainer()._step.run is None


def test_an_error_in_a_step_ends_the_run(with_graphs: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    with_graphs()
    trainer: Trainer = Case(batch=4).trainer()
    list(trainer.epochs(2))
    assert trainer._step.run is not None

    def broken(*_: Any) -> Any:
        raise RuntimeError("broken")

    backend = gf.get_backend(trainer.train.device)
    monkeypatch.setattr(backend, "take_rows", broken)
    with pytest.raises(RuntimeError, match="broken"):
        list(trainer.epochs(3))
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="interrupted"):
        list(trainer.epochs(3))


# ---------------------------------------------------------------------- numbers that are not finite


class Hiding(nn.Module):
    """A layer whose activation hides NaN, as the ReLU of a library may."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(3, 4, generator=gf.Generator(0)), nn.Linear(4, 2, generator=gf.Generator(1))

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        z = self.hidden(x)
        return self.head(gf.where(gf.greater(z, 0.0), z, 0.0))


def hiding_trainer(**options: Any) -> Trainer:
    model = Hiding()
    optimizer = gf.optim.Adam(model.parameters(), lr=0.01)
    return Trainer(model, gf.mse_loss, optimizer, Batches(INPUTS, VALUES, 8, gf.Generator(2)), capture=True, **options)


@pytest.mark.parametrize("average", [None, 0.9])
def test_a_nan_that_an_activation_hides_ends_the_run(with_graphs: Callable[[], list[int]], average: Any) -> None:
    with_graphs()
    trainer, other = hiding_trainer(average=average), hiding_trainer()
    list(trainer.epochs(2))
    assert trainer._step.run is not None
    weight = trainer.model.hidden.weight  # type: ignore[union-attr]
    with gf.no_grad():
        weight[1] = float("nan")
    for _ in range(2):
        with pytest.raises(NonFiniteLossError, match=r"by epoch 3, although the loss is finite, of shape \(4, 3\)"):
            list(trainer.epochs(5))
    list(other.epochs(3))  # another run on the device goes on
    assert [epoch.epoch for epoch in other.history] == [1, 2, 3]
    assert gf.Tensor(other.train.inputs.backend.nonfinite, other.train.inputs.backend).item() == 0


def test_a_loss_that_is_not_finite_is_told_as_such(with_graphs: Callable[[], list[int]]) -> None:
    with_graphs()
    trainer = hiding_trainer()
    with gf.no_grad():
        trainer.model.head.bias[0] = float("nan")  # type: ignore[union-attr, index]
    with pytest.raises(NonFiniteLossError, match="the loss became nan in epoch 1"):
        list(trainer.epochs(5))


def test_a_device_without_graphs_is_not_watched(device: str, without_graphs: Callable[[], None]) -> None:
    without_graphs()
    hiding_trainer()
    assert gf.get_backend(device).nonfinite is None
