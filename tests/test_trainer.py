"""The Trainer: what a step does, the figures of epochs, what is best, interrupts, and what it refuses."""

from __future__ import annotations

import math
import os
import signal
from functools import partial
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn, optim
from gradflow.data import Batches
from gradflow.testing import forbid_sync
from gradflow.training import Epoch, NonFiniteLossError, Trainer, evaluate, fit

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(70, 4)).astype("float32")
LABELS = (INPUTS[:, 0] * 2 + INPUTS[:, 1] > 0).astype("int64") + (INPUTS[:, 2] > 1)
VALUES = (INPUTS @ RNG.normal(size=(4, 2)) + 0.1 * RNG.normal(size=(70, 2))).astype("float32")
WEIGHTS = RNG.uniform(0.5, 2.0, size=70)


def make(
    batch: int = 16, lr: Any = 0.05, weights: Any = None, validate: bool = False, dropout: float = 0.0, **options: Any
) -> Trainer:
    """Return a trainer of three classes on the current device."""
    model = nn.MLP([4, 8, 3], dropout=dropout, generator=gf.Generator(1))
    train = Batches(INPUTS, LABELS, batch, gf.Generator(2), weights=weights)
    validation = Batches(INPUTS[:30], LABELS[:30], 20, shuffle=False) if validate else None
    return Trainer(
        model, gf.cross_entropy, optim.SGD(model.parameters(), lr, momentum=0.9), train, validation, **options
    )


def weights_of(trainer: Trainer) -> list[Any]:
    return [p.detach().numpy() for p in trainer.model.parameters()]


def equal(a: list[Any], b: list[Any]) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def fields(epoch: Epoch) -> dict[str, Any]:
    return {"loss": epoch.validation_loss, **epoch.validation_metrics}


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
    assert set(statuses) == {"replaying"}


# ---------------------------------------------------------------------- capture


class Doubled(nn.Module):
    def forward(self, x: gf.Tensor) -> gf.Tensor:
        return 2.0 * x


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].register_forward_hook(lambda module, inputs, output: output)
    return model


def own_forward() -> nn.Module:
    model = nn.Linear(4, 3)
    model.forward = lambda x: gf.nn.Linear.forward(model, x)  # type: ignore[method-assign]
    return model


def user_loss(outputs: gf.Tensor, targets: gf.Tensor) -> gf.Tensor:
    return gf.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("model", "loss", "captured"),
    [
        (lambda: nn.MLP([4, 8, 3]), gf.cross_entropy, True),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0), nn.Tanh()), nn.CrossEntropyLoss(), True),
        (lambda: nn.Linear(4, 3), partial(gf.cross_entropy, label_smoothing=0.1), True),
        (lambda: nn.MLP([4, 8, 3], dropout=0.1), gf.cross_entropy, False),
        (lambda: nn.Sequential(nn.Linear(4, 3), Doubled()), gf.cross_entropy, False),
        (hooked, gf.cross_entropy, False),
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


# ---------------------------------------------------------------------- accumulation and weights


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("capture", [True, False])
def test_accumulation_has_the_gradient_of_the_union(device: str, capture: bool, weights: Any) -> None:
    """10 batches of 7 in groups of 4, 4 and 2, against batches of 28, 28 and 14: the same up to rounding."""
    options: dict[str, Any] = {"weights": weights, "clip_norm": 0.5, "metrics": ["accuracy"], "class_weight": [1, 2, 3]}
    parts, whole = make(7, accumulate=4, capture=capture, **options), make(28, **options)
    losses = [[s.loss.item() for s in t.steps(6)] for t in (parts, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(weights_of(parts), weights_of(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for one, other in zip(parts.history, whole.history, strict=True):
        assert one.step == other.step
        assert one.train_metrics == pytest.approx(other.train_metrics, rel=1e-6)
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)


def test_a_sample_of_weight_two_counts_like_two(device: str) -> None:
    twice = np.arange(70) % 3 == 0
    order = np.concatenate([np.arange(70), np.flatnonzero(twice)])
    weighted = make(70, weights=1.0 + twice, metrics=["accuracy"])
    repeated = make(70)
    repeated = Trainer(
        repeated.model, gf.cross_entropy, repeated.optimizer, Batches(INPUTS[order], LABELS[order], len(order)),
        metrics=["accuracy"],
    )  # fmt: skip
    for a, b in zip(weighted.epochs(5), repeated.epochs(5), strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-5)
        assert a.train_metrics == pytest.approx(b.train_metrics, rel=1e-6)
    for x, y in zip(weights_of(weighted), weights_of(repeated), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_balanced_classes_have_the_weights_of_scikit_learn(device: str) -> None:
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    expected = sklearn.compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    balanced = make(class_weight="balanced")
    assert balanced.class_weights == pytest.approx(list(expected))
    by_sample = make(weights=expected[LABELS])
    assert [s.loss.item() for s in balanced.steps(10)] == pytest.approx([s.loss.item() for s in by_sample.steps(10)])


def test_weights_of_classes_and_samples_multiply_and_count_in_the_validation(device: str) -> None:
    trainer = make(16, weights=WEIGHTS, class_weight={2: 3.0}, validate=True)
    both = make(16, weights=WEIGHTS * np.where(LABELS == 2, 3.0, 1.0))
    for a, b in zip(trainer.epochs(2), both.epochs(2), strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-5)
    with gf.no_grad():
        losses = gf.cross_entropy(trainer.model(gf.tensor(INPUTS[:30])), gf.tensor(LABELS[:30]), reduction="none")
    assert trainer.history[-1].validation_loss == pytest.approx(
        np.average(losses.numpy(), weights=np.where(LABELS[:30] == 2, 3.0, 1.0)), rel=1e-5
    )


@pytest.mark.parametrize("kind", ["probabilities", "binary", "values"])
def test_weights_where_targets_are_not_labels(device: str, kind: str) -> None:
    model = nn.Linear(4, {"probabilities": 3, "binary": 1, "values": 2}[kind])
    labels = LABELS > 0
    loss, targets, classes = {
        "probabilities": (gf.cross_entropy, np.eye(3, dtype="float32")[LABELS], [1.0, 2.0, 3.0]),
        "binary": (gf.binary_cross_entropy_with_logits, labels[:, None].astype("float32"), [1.0, 3.0]),
        "values": (gf.mse_loss, VALUES, None),
    }[kind]
    factors = WEIGHTS * (
        1.0 if classes is None else np.array(classes)[LABELS if kind == "probabilities" else labels * 1]
    )
    batches = Batches(INPUTS, targets, 16, weights=WEIGHTS)
    trainer = Trainer(model, loss, optim.SGD(model.parameters(), 0.1), batches, class_weight=classes)
    with gf.no_grad():
        losses = loss(model(batches.inputs), batches.targets, reduction="none").numpy()
    expected = np.average(losses.reshape(70, -1).mean(1), weights=factors)
    assert trainer.evaluate(batches)["loss"] == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------------- the average


@pytest.mark.parametrize("capture", [True, False])
def test_the_average_is_validated_and_kept_as_the_best(device: str, capture: bool) -> None:
    decay = 0.8
    trainer = make(average=decay, validate=True, metrics=["accuracy"], capture=capture, lr=0.3)
    average = [np.zeros_like(w, dtype="float64") for w in weights_of(trainer)]
    for step in trainer.steps(20):
        present = weights_of(trainer)
        rate = (1 - decay) / (1 - decay**step.step)
        average = [a + rate * (w - a) for a, w in zip(average, present, strict=True)]
        if step.finished is not None:
            found = trainer.evaluate(trainer.validation)  # type: ignore[arg-type]
            assert found == fields(step.finished)
            assert equal(present, weights_of(trainer))  # only swapped in
            with gf.no_grad():
                other = nn.MLP([4, 8, 3])
                other.load_state_dict(
                    dict(zip(other.state_dict(), [a.astype("float32") for a in average], strict=True))
                )
                loss = gf.cross_entropy(other(gf.tensor(INPUTS[:30])), gf.tensor(LABELS[:30])).item()
            assert step.finished.validation_loss == pytest.approx(loss, rel=1e-4)
    best = trainer.best
    assert best is not None
    trainer.restore_best()
    assert trainer.evaluate(trainer.validation) == fields(best)  # type: ignore[arg-type]
    plain = Trainer(trainer.model, gf.cross_entropy, trainer.optimizer, trainer.train)
    assert plain.evaluate(trainer.validation)["loss"] == best.validation_loss  # type: ignore[arg-type]


def test_an_average_follows_parameters_that_are_added() -> None:
    model = nn.MLP([4, 8, 3], generator=gf.Generator(0))
    parameters = list(model.parameters())
    optimizer = optim.SGD(parameters[2:], lr=0.1)
    trainer = Trainer(model, gf.cross_entropy, optimizer, Batches(INPUTS, LABELS, 16), average=0.5)
    list(trainer.epochs(1))
    optimizer.add_param_group({"params": parameters[:2]})
    list(trainer.epochs(2))
    trainer.restore_best()
    assert trainer.evaluate(trainer.train)["loss"] < 2.0


# ---------------------------------------------------------------------- the best


def trainer_with(figures: list[float], watch: str) -> Trainer:
    """Return a trainer whose epochs have these values of the watched figure."""
    trainer = make(validate=True, watch=watch, metrics=["accuracy"])
    read = iter(figures)

    def next_figures(tally: Any) -> tuple[float, dict[str, float]]:
        value = next(read)
        return (value, {"accuracy": 0.5}) if watch == "loss" else (1.0, {"accuracy": value})

    trainer._on_validation.read = next_figures  # type: ignore[union-attr, method-assign]
    return trainer


@pytest.mark.parametrize(
    ("watch", "figures", "stale"),
    [
        ("loss", [3.0, 2.0, 2.0, 2.5, 1.0], [0, 0, 1, 2, 0]),
        ("accuracy", [0.5, 0.6, 0.6, 0.4, 0.7], [0, 0, 1, 2, 0]),
        ("accuracy", [math.nan, math.nan, 0.1, math.nan, 0.2], [1, 2, 0, 1, 0]),
    ],
)
def test_the_best_epoch(watch: str, figures: list[float], stale: list[int]) -> None:
    trainer = trainer_with(figures, watch)
    kept: list[Any] = []
    for epoch in trainer.epochs(5):
        if epoch.stale == 0:
            kept = weights_of(trainer)
            assert trainer.best == epoch
    assert [e.stale for e in trainer.history] == stale
    list(trainer.steps(27))
    trainer.restore_best()
    assert equal(kept, weights_of(trainer))


def test_without_validation_the_training_is_watched() -> None:
    trainer = make(metrics=["accuracy"], watch="accuracy", lr=0.5)
    history = list(trainer.epochs(8))
    best = max(history, key=lambda e: (e.train_metrics["accuracy"], -e.epoch))
    assert trainer.best is best
    assert all(e.validation_loss is None and e.validation_metrics == {} for e in history)


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


# ---------------------------------------------------------------------- interrupts and errors


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


posix = pytest.mark.skipif(os.name != "posix", reason="os.kill sends no SIGINT to the own process on Windows")


def pressing(trainer: Trainer, at: int, times: int = 1) -> None:
    """Make Ctrl-C be pressed within step number `at`."""
    whole = trainer._step.whole

    def pressed(*batch: gf.Tensor) -> Any:
        if trainer.step == at - 1:
            for _ in range(times):
                press_ctrl_c()
        return whole(*batch)

    trainer._step.whole = pressed


@posix
@pytest.mark.parametrize("how", ["epochs", "steps"])
def test_ctrl_c_ends_the_step(how: str) -> None:
    trainer, other = make(), make()
    pressing(trainer, at=7)
    with pytest.raises(KeyboardInterrupt):
        list(getattr(trainer, how)(100))
    assert trainer.step == 7
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    trainer.state_dict()
    list(trainer.epochs(3))
    list(other.epochs(3))
    assert trainer.history == other.history


@posix
def test_ctrl_c_in_the_validation_ends_the_epoch() -> None:
    trainer = make(validate=True)
    read = trainer._on_train.read

    def pressed(tally: Any) -> Any:
        press_ctrl_c()
        return read(tally)

    trainer._on_train.read = pressed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        list(trainer.epochs(3))
    assert (trainer.epoch, trainer.step) == (1, 5)


@posix
def test_a_second_ctrl_c_ends_within_the_step_and_the_trainer_says_so() -> None:
    trainer = make()
    state = trainer.state_dict()
    pressing(trainer, at=3, times=2)
    with pytest.raises(KeyboardInterrupt):
        list(trainer.epochs(3))
    for use in (lambda: list(trainer.epochs(3)), lambda: list(trainer.steps(9)), trainer.state_dict):
        with pytest.raises(RuntimeError, match="load a saved state"):
            use()
    trainer.load_state_dict(state)
    trainer._step = make()._step
    assert list(make().epochs(0)) == []


def test_after_an_error_within_a_step_a_saved_state_goes_on() -> None:
    trainer, other = make(), make()
    list(trainer.steps(2))
    state, update = trainer.state_dict(), trainer.optimizer.update

    def failing(*arguments: Any) -> None:
        update(*arguments)
        raise OSError("no more")

    trainer.optimizer.update = failing  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no more"):
        list(trainer.steps(4))
    with pytest.raises(RuntimeError, match="load a saved state"):
        next(trainer.epochs(1))
    trainer.optimizer.update = update  # type: ignore[method-assign]
    trainer.load_state_dict(state)
    assert list(trainer.epochs(2)) == list(other.epochs(2))
    assert equal(weights_of(trainer), weights_of(other))


def test_an_error_in_the_validation_tears_nothing() -> None:
    trainer, other = make(validate=True, average=0.9), make(validate=True, average=0.9)
    list(trainer.steps(4))
    on_validation: Any = trainer._on_validation
    tally = on_validation.tally
    on_validation.tally = lambda model: 1 / 0
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            list(trainer.steps(6))
        assert trainer.step == 5
    on_validation.tally = tally
    list(trainer.steps(10))
    assert trainer.history == list(other.epochs(2))
    assert equal(weights_of(trainer), weights_of(other))


@pytest.mark.parametrize("capture", [True, False])
def test_a_loss_that_is_not_finite_ends_training(device: str, capture: bool) -> None:
    trainer = make(lr=1e30, capture=capture)
    with np.errstate(all="ignore"):
        for _ in range(2):
            with pytest.raises(NonFiniteLossError, match=r"the loss became (nan|inf) in epoch 1; try a lower"):
                list(trainer.epochs(2))
        with pytest.raises(NonFiniteLossError):
            list(trainer.steps(50))
    assert trainer.history == []
    assert trainer.step == 5


def test_a_bar_shows_the_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    trainer = make(progress=True)
    assert list(trainer.epochs(2)) == list(make().epochs(2))
    shown = capsys.readouterr().err
    assert "epoch 1" in shown
    assert "epoch 2" in shown
    assert "0/5" in shown


# ---------------------------------------------------------------------- what is refused


def changed(**changes: Any) -> Any:
    """Return a function that makes a trainer with changed arguments."""

    def build() -> Trainer:
        model = changes.get("model", nn.Linear(4, 3))
        optimizer = changes.get("optimizer") or optim.SGD(nn.ModuleList([model]).parameters(), 0.1)
        data = Batches(
            changes.get("inputs", INPUTS), changes.get("targets", LABELS), 16, weights=changes.get("weights")
        )
        given = (
            changes.get("loss", gf.cross_entropy),
            optimizer,
            changes.get("train", data),
            changes.get("validation"),
        )
        return Trainer(model, *given, **changes.get("options", {}))

    return build


def with_(array: Any, value: Any, at: Any) -> Any:
    array = array.copy()
    array[at] = value
    return array


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"train": None}, TypeError, "train must be gradflow.data.Batches.*got None"),
    ({"train": [(INPUTS, LABELS)]}, TypeError, "train must be gradflow.data.Batches.*got a list"),
    ({"validation": [1]}, TypeError, "validation must be gradflow.data.Batches.*got a list"),
    ({"loss": "mse"}, TypeError, "the loss is a function.*got 'mse'"),
    ({"loss": nn.CrossEntropyLoss(reduction="sum")}, ValueError, "reduction must be 'mean'; got 'sum'"),
    ({"loss": partial(gf.cross_entropy, reduction="none")}, ValueError, "reduction must be 'mean'; got 'none'"),
    ({"loss": lambda outputs, targets: outputs}, ValueError, r"one floating-point number.*shape \(2, 3\)"),
    ({"loss": user_loss, "weights": WEIGHTS}, TypeError, "user_loss has no `reduction`"),
    ({"loss": user_loss, "options": {"class_weight": [1, 2, 3]}}, TypeError, "user_loss has no `reduction`"),
    ({"loss": gf.mse_loss}, ValueError, "targets do not fit the outputs of the model.*equal shapes"),
    ({"targets": LABELS[:, None]}, ValueError, "targets do not fit the outputs of the model"),
    ({"targets": with_(LABELS, 3, 40)}, ValueError, r"labels for 3 outputs must be in \[0, 3\); got 0 to 3"),
    ({"targets": with_(LABELS, -1, 40)}, ValueError, "got -1 to 2"),
    ({"inputs": with_(INPUTS, np.nan, (40, 2))}, ValueError, "row 40.*column 2"),
    ({"inputs": INPUTS[:, :3]}, ValueError, "the model does not take the inputs"),
    ({"options": {"average": 1.0}}, ValueError, r"the decay of an average is in \(0, 1\); got 1.0"),
    ({"options": {"average": 0}}, ValueError, r"in \(0, 1\); got 0"),
    ({"options": {"average": "a"}}, ValueError, "the decay of an average"),
    ({"options": {"accumulate": 0}}, ValueError, "accumulate is a number of batches.*got 0"),
    ({"options": {"accumulate": 1.5}}, ValueError, "accumulate is a number of batches.*got 1.5"),
    ({"options": {"accumulate": True}}, ValueError, "accumulate is a number of batches.*got True"),
    (
        {"options": {"accumulate": 2}, "loss": nn.CrossEntropyLoss(weight=gf.ones(3, device="cpu"))},
        ValueError, "pass class_weight to the Trainer instead",
    ),
    ({"options": {"clip_norm": -1}}, ValueError, "clip_norm is a finite number above 0"),
    ({"options": {"metrics": ["acuracy"]}}, ValueError, "unknown metric 'acuracy'; did you mean accuracy?"),
    ({"options": {"metrics": "accuracy"}}, TypeError, "list of names"),
    ({"options": {"metrics": ["r2"]}}, ValueError, "does not suit"),
    ({"options": {"watch": "acuracy"}}, ValueError, "got 'acuracy'; did you mean accuracy?"),
    ({"options": {"watch": "accuracy"}}, ValueError, r"add it to metrics=\['accuracy', ...\]"),
    ({"options": {"capture": "yes"}}, ValueError, "capture is True, False or 'auto'; got 'yes'"),
    ({"options": {"class_weight": [1, 2]}}, ValueError, "one number for each of 3 classes; got 2"),
    ({"options": {"class_weight": [1, 2, -3]}}, ValueError, "finite numbers of at least 0"),
    ({"options": {"class_weight": "equal"}}, ValueError, "'balanced' or one number for each class; got 'equal'"),
    ({"options": {"class_weight": {3: 1.0}}}, ValueError, "has the class 3; the classes are 0 to 2"),
    (
        {"loss": gf.mse_loss, "targets": VALUES, "model": nn.Linear(4, 2, device="cpu"),
         "options": {"class_weight": [1, 2]}},
        ValueError, "class_weight needs targets that are classes",
    ),
    ({"model": len, "optimizer": 1}, TypeError, "the model is a gradflow.nn.Module"),
    ({"optimizer": "sgd"}, TypeError, "the optimizer is a gradflow.optim.Optimizer; got a str"),
    (
        {"optimizer": optim.SGD(nn.Linear(4, 3, device="cpu").parameters(), 0.1)},
        ValueError, r"a parameter, of shape \(3, 4\), that is not the model's",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED)
def test_arguments_that_do_not_fit(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        changed(**changes)()


def test_a_model_on_another_device_than_its_batches() -> None:
    model = nn.Linear(4, 3, device="fake")
    with pytest.raises(gf.DeviceMismatchError, match="the model is on fake:0, but its batches are on cpu"):
        changed(model=model)()


@pytest.mark.parametrize("n", [-1, 1.5, True, None, "3"])
def test_numbers_of_epochs_and_steps(n: Any) -> None:
    for use in (make().epochs, make().steps):
        with pytest.raises(ValueError, match="an integer of at least 0"):
            use(n)
