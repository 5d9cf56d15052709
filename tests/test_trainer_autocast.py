"""Mixed precision in the Trainer: bits of a loop by hand, skipped steps, saved states, errors, captured steps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_resume import Case, check_resume, losses, outcome

import gradflow as gf
from gradflow import nn, optim
from gradflow.data import Batches
from gradflow.training import NonFiniteLossError, Trainer, precision
from gradflow.training.progress import Progress
from tests.trainers import INPUTS, LABELS, VALUES, equal, make, weights_of

pytest.importorskip("safetensors")
every_half = pytest.mark.parametrize("half", ["float16", "bfloat16"])


@pytest.fixture(autouse=True)
def on_a_device_with_halves(device: str, request: pytest.FixtureRequest) -> None:
    for half in ("float16", "bfloat16"):
        if half in request.node.name and not gf.get_backend(device).supports(half):
            pytest.skip(f"{device} has no {half}")
    if not gf.get_backend(device).supports("float16"):
        pytest.skip(f"{device} has no float16")


def overflowing(trainer: Trainer, scale: float = 2.0**22) -> Trainer:
    """Make some of the next steps overflow."""
    assert trainer.scaler is not None
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": scale, "growth_interval": 2})
    return trainer


# ---------------------------------------------------------------------- what it computes


@every_half
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.filterwarnings("ignore:invalid value")  # of the loop by hand
def test_it_has_the_bits_of_a_loop_by_hand(half: str, clip_norm: float | None, capture: bool) -> None:
    """With the unscaled gradients clipped; some float16 steps overflow. Validation and `evaluate` run in half, too."""
    trainer = make(validate=True, autocast=half, clip_norm=clip_norm, capture=capture)
    assert (trainer.autocast, trainer.scaler is not None) == (half, half == "float16")
    scaler = optim.GradScaler(enabled=half == "float16")
    if trainer.scaler is not None:
        overflowing(trainer)
        scaler.load_state_dict(trainer.scaler.state_dict())
    model = nn.MLP([4, 8, 3], generator=gf.Generator(1))
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
    found, expected = [], []
    batches = Batches(INPUTS, LABELS, 16, gf.Generator(2))
    x, y = gf.tensor(INPUTS[:30]), gf.tensor(LABELS[:30])
    for epoch in trainer.epochs(3):
        found.append((epoch.train_loss, epoch.validation_loss))
        total = 0.0
        for inputs, targets in batches:
            optimizer.zero_grad()
            with gf.autocast(half):
                loss = gf.cross_entropy(model(inputs), targets)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            if clip_norm is not None:
                optim.clip_grad_norm_(model.parameters(), clip_norm)
            scaler.step(optimizer)
            scaler.update()
            total += loss.item() * len(inputs)
        with gf.autocast(half), gf.no_grad():
            parts = [(n, gf.cross_entropy(model(x[s]), y[s]).item()) for n, s in ((20, slice(20)), (10, slice(20, 30)))]
        expected.append((total / 70, sum(n * loss for n, loss in parts) / 30))
    assert found == expected
    assert equal(weights_of(trainer), [p.detach().numpy() for p in model.parameters()])
    assert trainer.optimizer.steps == optimizer.steps
    assert sum(epoch.skipped for epoch in trainer.history) == 15 - optimizer.steps
    assert (optimizer.steps < 15) == (half == "float16")
    assert trainer.evaluate(Batches(INPUTS[:30], LABELS[:30], 20))["loss"] == found[-1][1]


@every_half
def test_accumulated_batches_are_their_union(half: str) -> None:
    """Within the rounding of half floats."""
    whole, parts = make(batch=35, autocast=half), make(batch=7, accumulate=5, autocast=half)
    for trainer in (whole, parts):
        list(trainer.epochs(4))
    for a, b in zip(weights_of(whole), weights_of(parts), strict=True):
        assert np.abs(a - b).max() <= (2.0**-6 if half == "bfloat16" else 2.0**-9) * np.abs(a).max()


@every_half
def test_metrics_of_outputs_in_half(half: str) -> None:
    pytest.importorskip("sklearn")
    trainer = make(validate=True, autocast=half, metrics=["accuracy", "auroc"], class_weight="balanced")
    (epoch,) = trainer.epochs(1)
    outputs = Trainer.evaluate(trainer, Batches(INPUTS[:30], LABELS[:30], 20))
    assert {"loss": epoch.validation_loss, **epoch.validation_metrics} == outputs
    model = nn.MLP([4, 8, 2], generator=gf.Generator(1))
    train = Batches(INPUTS, VALUES, 16)
    values = Trainer(
        model, gf.mse_loss, optim.SGD(model.parameters(), 0.05), train, train, metrics=["r2", "mae"], autocast=half
    )
    *_, last = values.epochs(20)
    assert last.validation_metrics["r2"] > 0.8


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_a_half_float(accumulate: int) -> None:
    """One of a user that no operation makes float32. The scaled loss is float32."""
    model = nn.Linear(4, 1, generator=gf.Generator(1))
    trainer = Trainer(
        model, lambda outputs, _: gf.abs(outputs[0, 0]), optim.SGD(model.parameters(), 0.01),
        Batches(INPUTS, VALUES, 1), autocast="float16",
    )  # fmt: skip
    trainer._updates._accumulate = accumulate  # not as an argument, since the loss is no mean over the samples
    *_, last = trainer.epochs(3)
    assert last.train_loss < trainer.history[0].train_loss
    assert last.skipped == 0


def test_averaged_weights_are_evaluated() -> None:
    """In half, as those of a model that has them; then training goes on with the plain ones."""
    trainer = overflowing(make(validate=True, autocast="float16", average=0.9))
    for epoch in trainer.epochs(3):
        assert trainer._average is not None
        model = nn.MLP([4, 8, 3])
        averages = iter(trainer._average.state_dict()["weights"])
        model.load_state_dict({name: next(averages) for name, _ in model.named_parameters()})
        x, y = gf.tensor(INPUTS[:30]), gf.tensor(LABELS[:30])
        with gf.autocast("float16"), gf.no_grad():
            parts = [(n, gf.cross_entropy(model(x[s]), y[s]).item()) for n, s in ((20, slice(20)), (10, slice(20, 30)))]
        assert epoch.validation_loss == sum(n * loss for n, loss in parts) / 30
    assert sum(e.skipped for e in trainer.history) > 0
    plain = overflowing(make(autocast="float16"))
    list(plain.epochs(3))
    assert equal(weights_of(trainer), weights_of(plain))


# ---------------------------------------------------------------------- skipped steps, and errors


def test_skipped_steps_are_counted_and_change_nothing() -> None:
    """Also all steps of the first epochs, where a schedule is still at its first rate."""
    trainer = overflowing(make(lr=lambda step: 0.05 * 0.99**step, autocast="float16"), 2.0**30)
    before = weights_of(trainer)
    (first,) = trainer.epochs(1)
    assert (first.skipped, first.step, trainer.optimizer.steps) == (5, 5, 0)
    assert first.learning_rate == 0.05
    assert str(first).endswith("; 5 steps skipped; best")
    assert equal(weights_of(trainer), before)
    list(trainer.epochs(8))
    assert sum(e.skipped for e in trainer.history) + trainer.optimizer.steps == trainer.step == 40
    assert trainer.history[-1].train_loss < first.train_loss
    assert make().scaler is None


def test_a_skipped_step_is_counted_in_a_run_that_goes_on() -> None:
    whole = overflowing(make(autocast="float16"))
    list(whole.epochs(3))
    for stop in (2, 5, 7):
        trainer = overflowing(make(autocast="float16"))
        list(trainer.steps(stop))
        other = make(autocast="float16")
        list(other.epochs(1))  # a used one
        other.load_state_dict(trainer.state_dict())
        list(other.epochs(3))
        assert other.history == whole.history


@pytest.mark.filterwarnings("ignore:overflow")  # where the trainer tries the model
def test_a_loss_that_overflows_forward_is_an_error(device: str) -> None:
    """300 * 300 is infinite in float16, and the message says so; in bfloat16 it is not."""

    def trainer(half: str) -> Trainer:
        model = nn.Linear(1, 1, generator=gf.Generator(1))
        x = gf.full((8, 1), 300.0)
        with gf.no_grad():
            model.weight.copy_(gf.full((1, 1), 300.0))
        return Trainer(model, gf.mse_loss, optim.SGD(model.parameters(), 1e-9), Batches(x, x, 4), autocast=half)

    with pytest.raises(NonFiniteLossError, match="became inf in epoch 1; try bfloat16 or float32, since float16 ends"):
        list(trainer("float16").epochs(1))
    if gf.get_backend(device).supports("bfloat16"):
        list(trainer("bfloat16").epochs(1))


def test_a_scale_that_falls_below_the_floor_is_an_error(device: str) -> None:
    """Gradients that are never finite, with a finite loss: 31 steps are skipped, then training ends at the epoch."""

    def loss(outputs: gf.Tensor, targets: gf.Tensor) -> gf.Tensor:
        return gf.cross_entropy(outputs, targets) + gf.sum(gf.sqrt(outputs * 0.0))  # the gradient of sqrt at 0 is inf

    model = nn.MLP([4, 8, 3], generator=gf.Generator(1))
    train = Batches(INPUTS, LABELS, 16, gf.Generator(2))
    trainer = Trainer(model, loss, optim.SGD(model.parameters(), 0.1), train, autocast="float16", capture=False)
    before = weights_of(trainer)
    with pytest.raises(
        NonFiniteLossError, match=r"fell to 1\.91e-06, below 6\.1e-05, by epoch 7: .* bfloat16 or float32"
    ):
        list(trainer.epochs(9))
    assert [epoch.skipped for epoch in trainer.history] == [5] * 6
    assert equal(weights_of(trainer), before)


def test_a_scale_that_becomes_0_is_an_error() -> None:
    """In an epoch of many steps, without a warning of a division."""
    model = nn.Linear(4, 3)
    trainer = Trainer(
        model, lambda out, y: gf.cross_entropy(out, y) + gf.sum(gf.sqrt(out * 0.0)), optim.Adam(model.parameters()),
        Batches(INPUTS, LABELS, 1), autocast="float16",
    )  # fmt: skip
    with pytest.raises(NonFiniteLossError, match="the scale of the loss fell to 0, below"):
        list(overflowing(trainer, 2.0**-100).epochs(1))
    assert trainer.optimizer.steps == 0


@pytest.mark.parametrize("wrong", ["float32", "half", "", 16, True, ["float16"]])
def test_what_it_takes(wrong: Any) -> None:
    with pytest.raises(ValueError, match="autocast is 'bfloat16', 'float16' or None; got "):
        make(autocast=wrong)


def test_it_takes_dtypes() -> None:
    assert make(autocast=gf.float16).autocast == "float16"


def test_a_device_without_the_dtype(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = gf.get_backend(device)
    dtypes = {name: native for name, native in backend.dtypes.items() if name != "bfloat16"}
    monkeypatch.setattr(type(backend), "supports", lambda self, name: name in dtypes)
    with pytest.raises(TypeError, match="does not support bfloat16"):
        make(autocast="bfloat16")


def test_a_cpu_is_slow_which_is_said_once(device: str, caplog: pytest.LogCaptureFixture) -> None:
    precision._say_slow.cache_clear()
    with caplog.at_level(logging.WARNING, "gradflow"):
        for _ in range(2):
            make(autocast="float16")
    assert [r.getMessage() for r in caplog.records] == ([precision.SLOW] if device == "cpu" else [])


# ---------------------------------------------------------------------- saved states


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
@pytest.mark.parametrize(
    "case",
    [
        Case(autocast="float16", average=0.9, clip_norm=0.5, dropout=0.2),
        Case(autocast="float16", accumulate=2, batch=7, optimizer="momentum", weights=True),
        Case(autocast="float16", capture=True, optimizer="adamw", schedule="warm-up", class_weight="balanced"),
        Case(autocast="bfloat16", capture=True, loss="values", optimizer="rmsprop"),
    ],
    ids=["averaged float16", "accumulated float16", "captured float16", "bfloat16"],
)
def test_a_run_goes_on_with_the_same_bits(case: Case, stop: int, tmp_path: Path) -> None:
    """Overflows before and after the stop."""
    check_resume(case, [stop], 20, tmp_path / "state.safetensors")
    if case.autocast == "float16":
        trainer = case.trainer()
        list(trainer.epochs(4))
        assert sum(e.skipped for e in trainer.history) > 1


def test_a_used_trainer_goes_back(tmp_path: Path) -> None:
    """Captured steps, the scale and the count of applied steps are all those of the state."""
    case = Case(capture=True, optimizer="adam", autocast="float16")
    trainer, path = case.trainer(), tmp_path / "state.safetensors"
    list(trainer.steps(3))
    trainer.save(path)
    expected = losses(trainer, 18), outcome(trainer)
    for _ in range(2):
        trainer.load(path)
        assert (losses(trainer, 18), outcome(trainer)) == expected


def test_a_state_is_of_its_setting() -> None:
    state = make(autocast="float16").state_dict()
    with pytest.raises(ValueError, match="autocast was 'float16', and is None here"):
        make().load_state_dict(state)
    damaged = {**state, "scaler": {"scale": 1.0}}
    trainer = make(autocast="float16")
    list(trainer.steps(1))
    before = trainer.state_dict()
    for scaler in (damaged["scaler"], {**state["scaler"], "scale": -1.0}, None):
        with pytest.raises(ValueError, match="the saved state is damaged"):
            trainer.load_state_dict({**state, "scaler": scaler})
    assert trainer.state_dict()["scaler"] == before["scaler"]


def test_a_state_of_an_earlier_version_is_loaded() -> None:
    """It knows nothing of mixed precision."""
    trainer, other = make(), make()
    list(trainer.epochs(1))
    state = trainer.state_dict()
    del state["scaler"], state["run"]["autocast"], state["progress"]["applied"]
    for epoch in state["progress"]["history"]:
        del epoch["skipped"]
    other.load_state_dict(state)
    assert list(other.epochs(3)) == list(trainer.epochs(3))
    assert Progress().applied == 0
