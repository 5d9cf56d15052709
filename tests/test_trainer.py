"""The Trainer: what a step does, the figures of epochs, what is captured, and which epoch is best."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
from trainers import INPUTS, LABELS, VALUES, WEIGHTS, equal, make, user_loss, weights_of

import gradflow as gf
from gradflow import nn, optim
from gradflow.data import Batches
from gradflow.testing import forbid_sync
from gradflow.training import Epoch, Trainer, evaluate, fit
from tests.devices import replays

# ---------------------------------------------------------------------- the loop


@pytest.mark.parametrize("capture", [True, False])
def test_it_does_what_a_loop_by_hand_does(device: str, capture: bool) -> None:
    trainer = make(capture=capture, clip_norm=0.5)
    by_hand = make()
    losses = []
    for _ in range(2):
        for x, y in by_hand.train:
            by_hand.optimizer.zero_grad()
            loss = gf.cross_entropy(by_hand.model(x), y)
            loss.backward()
            optim.clip_grad_norm_(by_hand.model.parameters(), 0.5)
            by_hand.optimizer.step()
            losses.append(loss.item())
    assert [step.loss.item() for step in trainer.steps(10)] == losses
    assert equal(weights_of(trainer), weights_of(by_hand))
    sizes = [16, 16, 16, 16, 6]
    assert [e.train_loss for e in trainer.history] == [
        sum(x * n for x, n in zip(part, sizes, strict=True)) / 70 for part in (losses[:5], losses[5:])
    ]


def test_epochs_and_steps_count_in_total_and_go_on_from_each_other(device: str) -> None:
    trainer, other = make(validate=True), make(validate=True)
    steps = list(trainer.steps(7))
    assert [s.step for s in steps] == list(range(1, 8))
    assert [s.epoch for s in steps] == [1] * 5 + [2] * 2
    assert [s.finished for s in steps] == [None] * 4 + [trainer.history[0]] + [None] * 2
    assert (trainer.step, trainer.epoch) == (7, 1)
    assert [e.epoch for e in trainer.epochs(3)] == [2, 3]
    assert list(trainer.epochs(3)) == list(trainer.steps(15)) == []
    assert trainer.history == list(other.epochs(3))
    assert [e.step for e in trainer.history] == [5, 10, 15]


def test_a_loop_may_be_left_and_another_one_goes_on(device: str) -> None:
    trainer, other = make(), make()
    for step in trainer.steps(100):
        if step.step == 3:
            break
    for _ in trainer.epochs(100):
        break
    assert trainer.step == 5
    assert trainer.history == list(other.epochs(1))


def test_an_epoch_is_one_line() -> None:
    epoch = Epoch(3, 15, 0.05, 0.25, {"accuracy": 0.9}, 0.5, {"accuracy": 0.875, "f1": 0.8}, 2, 0.5, 1234.5)
    assert str(epoch) == (
        "epoch 3: loss 0.25, accuracy 0.9; validation loss 0.5, accuracy 0.875, f1 0.8; rate 0.05; 1,234 samples/s; "
        "stale 2"
    )
    assert str(Epoch(1, 5, 0.05, 0.25, {}, None, {}, 0, 0.5, 99.0)).endswith("rate 0.05; 99 samples/s; best")


def test_the_learning_rate_of_an_epoch_is_that_of_its_last_step() -> None:
    schedule = optim.schedules.cosine(0.1, 10)
    assert [e.learning_rate for e in make(lr=schedule).epochs(2)] == [schedule(4), schedule(9)]


def test_seconds_do_not_count_in_comparisons() -> None:
    first, again = list(make().epochs(2)), list(make().epochs(2))
    assert first == again
    assert first[0].seconds > 0.0
    assert first[0].samples_per_second == pytest.approx(70 / first[0].seconds)


# ---------------------------------------------------------------------- nothing is read within an epoch


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "average": 0.9, "clip_norm": 1.0}, {"capture": False}])
def test_steps_neither_read_nor_wait(options: dict[str, Any]) -> None:
    with gf.use_device("fake"):
        trainer = make(metrics=["accuracy"], validate=True, weights=WEIGHTS, **options)
        list(trainer.epochs(3))
        per_epoch = -(-5 // options.get("accumulate", 1))
        with forbid_sync():
            list(trainer.steps(trainer.step + per_epoch - 1))
        assert trainer.captures == options.get("capture", True)
        with pytest.raises(RuntimeError, match="to the host"), forbid_sync():
            list(trainer.steps(trainer.step + 1))


def test_a_replay_goes_on_after_a_validation() -> None:
    """Validation sets evaluation mode and back, which would otherwise make captured steps be recorded again."""
    trainer = make(validate=True, average=0.9)
    list(trainer.epochs(3))
    statuses = []
    for _ in trainer.steps(trainer.step + 10):
        statuses.append(trainer._step.whole.status)  # type: ignore[attr-defined]
    assert all(map(replays, statuses))


@pytest.mark.parametrize("use", ["eval and train", "eval", "evaluate"])
def test_a_replay_goes_on_after_each_prediction_in_the_body_of_the_loop(use: str) -> None:
    """PyTorch's `model.eval(); ...; model.train()`, 30 times: the steps are not recorded again."""
    trainer = make()
    list(trainer.epochs(3))
    steps = trainer._step.whole
    statuses = []
    for _ in trainer.epochs(33):
        statuses.append(steps.status)  # type: ignore[attr-defined]
        if use == "evaluate":
            trainer.evaluate(trainer.train)
        else:
            trainer.model.eval()
            trainer.model(trainer.train.inputs)
            if use == "eval and train":
                trainer.model.train()
        statuses.append(next(trainer.steps(trainer.step + 1)) and steps.status)  # type: ignore[attr-defined]
    assert all(map(replays, statuses))


# ---------------------------------------------------------------------- capture


class Doubled(nn.Module):
    def forward(self, x: gf.Tensor) -> gf.Tensor:
        return 2.0 * x


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].register_forward_hook(lambda module, inputs, output: output)
    return model


def hooked_parameter() -> nn.Module:
    model = nn.Linear(4, 3)
    model.weight.register_hook(lambda g: 2.0 * g)
    return model


def own_forward() -> nn.Module:
    model = nn.Linear(4, 3)
    model.forward = lambda x: gf.nn.Linear.forward(model, x)  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    ("model", "loss", "captured"),
    [
        (lambda: nn.MLP([4, 8, 3]), gf.cross_entropy, True),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0), nn.Tanh()), nn.CrossEntropyLoss(), True),
        (lambda: nn.Linear(4, 3), partial(gf.cross_entropy, label_smoothing=0.1), True),
        (lambda: nn.MLP([4, 8, 3], dropout=0.1), gf.cross_entropy, True),
        (lambda: nn.Sequential(nn.Linear(4, 3), Doubled()), gf.cross_entropy, False),
        (hooked, gf.cross_entropy, False),
        (hooked_parameter, gf.cross_entropy, False),
        (own_forward, gf.cross_entropy, False),
        (lambda: nn.Linear(4, 3), user_loss, False),
        (lambda: nn.Linear(4, 3), partial(user_loss), False),
    ],
)
def test_models_of_gradflow_are_captured(model: Any, loss: Any, captured: bool) -> None:
    model = model()
    train = Batches(INPUTS, LABELS, 32)
    optimizer = optim.SGD(model.parameters(), 0.01)
    trainer = Trainer(model, loss, optimizer, train)
    assert trainer.captures == captured
    list(trainer.epochs(2))
    assert not Trainer(model, loss, optimizer, train, capture=False).captures
    assert Trainer(model, loss, optimizer, train, capture=True).captures


# ---------------------------------------------------------------------- the best


def trainer_with(figures: list[float], monitor: str) -> Trainer:
    """Return a trainer whose epochs have these values of the monitored figure."""
    trainer = make(validate=True, monitor=monitor, metrics=["accuracy"])
    read = iter(figures)

    def next_figures(tally: Any) -> tuple[float, dict[str, float]]:
        value = next(read)
        return (value, {"accuracy": 0.5}) if monitor == "loss" else (1.0, {"accuracy": value})

    trainer._on_validation.read = next_figures  # type: ignore[union-attr, method-assign]
    return trainer


@pytest.mark.parametrize(
    ("monitor", "figures", "stale"),
    [
        ("loss", [3.0, 2.0, 2.0, 2.5, 1.0], [0, 0, 1, 2, 0]),
        ("accuracy", [0.5, 0.6, 0.6, 0.4, 0.7], [0, 0, 1, 2, 0]),
        ("accuracy", [math.nan, math.nan, 0.1, math.nan, 0.2], [1, 2, 0, 1, 0]),
    ],
)
def test_the_best_epoch(monitor: str, figures: list[float], stale: list[int]) -> None:
    trainer = trainer_with(figures, monitor)
    kept: list[Any] = []
    for epoch in trainer.epochs(5):
        if epoch.stale == 0:
            kept = weights_of(trainer)
            assert trainer.best == epoch
    assert [e.stale for e in trainer.history] == stale
    list(trainer.steps(27))
    trainer.restore_best()
    assert equal(kept, weights_of(trainer))


def test_without_validation_the_training_is_monitored() -> None:
    trainer = make(metrics=["accuracy"], monitor="accuracy", lr=0.5)
    history = list(trainer.epochs(8))
    best = max(history, key=lambda e: (e.train_metrics["accuracy"], -e.epoch))
    assert trainer.best is best
    assert all(e.validation_loss is None and e.validation_metrics == {} for e in history)


def test_the_history_is_a_list_of_ones_own() -> None:
    trainer = make()
    list(trainer.epochs(2))
    trainer.history.clear()
    assert [e.epoch for e in trainer.history] == [1, 2]


ARGUMENTS = [
    "model", "loss", "optimizer", "train", "validation", "metrics", "monitor", "clip_norm", "accumulate", "captures",
    "class_weights", "progress",
]  # fmt: skip


@pytest.mark.parametrize("name", [*ARGUMENTS, "history", "step", "epoch", "best"])
def test_the_arguments_of_a_trainer_are_set_once(name: str) -> None:
    trainer = make()
    before = getattr(trainer, name)
    with pytest.raises(AttributeError):
        setattr(trainer, name, 1)
    assert getattr(trainer, name) == before


def test_restore_best_without_an_epoch() -> None:
    with pytest.raises(RuntimeError, match="no epoch is the best yet"):
        make().restore_best()


# ---------------------------------------------------------------------- evaluation


def test_evaluation_leaves_each_module_in_its_mode(device: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3), nn.Dropout(0.0))
    trainer = Trainer(model, gf.cross_entropy, optim.SGD(model.parameters(), 0.1), Batches(INPUTS, LABELS, 16))
    model.eval()
    model[1].train()
    modes = [m.training for m in model.modules()]
    first = trainer.evaluate(trainer.train)
    assert [m.training for m in model.modules()] == modes
    assert trainer.evaluate(trainer.train)["loss"] == pytest.approx(first["loss"], rel=1e-6)  # without dropout
    list(trainer.epochs(1))
    assert [m.training for m in model.modules()] == [True] * 5


def test_evaluation_computes_over_all_samples(device: str) -> None:
    trainer = make(metrics=["accuracy"])
    batches = Batches(INPUTS, LABELS, 32, shuffle=False)
    with gf.no_grad():
        outputs = trainer.model(batches.inputs)
        loss = gf.cross_entropy(outputs, batches.targets).item()
    accuracy = float((outputs.numpy().argmax(1) == LABELS).mean())
    assert trainer.evaluate(batches) == pytest.approx({"loss": loss, "accuracy": accuracy}, rel=1e-6)


class AlwaysNoisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3, generator=gf.Generator(0))

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        return self.inner(gf.dropout(x, 0.5))


def test_an_evaluation_changes_nothing_of_the_training(device: str) -> None:
    """Evaluation goes through all samples in order, and what a model draws in it leaves the generators as they were."""

    def trained(evaluating: bool) -> tuple[Any, list[Any]]:
        gf.manual_seed(0)
        model = AlwaysNoisy()
        train = Batches(INPUTS, LABELS, 16)
        trainer = Trainer(model, gf.cross_entropy, optim.SGD(model.parameters(), 0.1), train, train)
        found = []
        for _ in trainer.steps(12):
            if evaluating:
                found.append(trainer.evaluate(Batches(INPUTS, LABELS, 32, drop_last=True)))
                assert trainer.evaluate(Batches(INPUTS, LABELS, 32, drop_last=True)) == found[-1]
                assert trainer.evaluate(Batches(INPUTS, LABELS, 32, shuffle=False)) == found[-1]
        return trainer.history, weights_of(trainer)

    history, weights = trained(evaluating=True)
    expected = trained(evaluating=False)
    assert history == expected[0]
    assert equal(weights, expected[1])


# ---------------------------------------------------------------------- fit and evaluate


def test_fit_is_a_trainer_with_a_metric_that_suits(device: str) -> None:
    fitted, trained = make(validate=True), make(validate=True, metrics=["accuracy"])
    history = list(fit(fitted.model, gf.cross_entropy, fitted.optimizer, fitted.train, fitted.validation, 3))
    assert history == list(trained.epochs(3))
    assert equal(weights_of(fitted), weights_of(trained))
    figures = evaluate(fitted.model, gf.cross_entropy, fitted.validation)
    assert figures == (history[-1].validation_loss, history[-1].validation_metrics["accuracy"])


def test_the_score_of_a_regression_is_r2(device: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    batches = Batches(INPUTS, VALUES, 16, shuffle=False)
    model = nn.Linear(4, 2)
    with gf.no_grad():
        expected = metrics.r2_score(VALUES, model(batches.inputs).numpy())
    assert evaluate(model, gf.mse_loss, batches)[1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batches", [None, [(INPUTS, LABELS)]])
def test_fit_and_evaluate_take_batches(batches: Any) -> None:
    trainer = make()
    given = (trainer.model, gf.cross_entropy, trainer.optimizer)
    for use in (
        lambda: fit(*given, trainer.train, batches, 1),
        lambda: fit(*given, batches, trainer.train, 1),
        lambda: evaluate(trainer.model, gf.cross_entropy, batches),
        lambda: trainer.evaluate(batches),
    ):
        with pytest.raises(TypeError, match=r"batches must be gradflow.data.Batches.*got (None|a list)"):
            use()
