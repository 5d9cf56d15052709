"""Weights of samples and classes, accumulated gradients, and averaged weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from trainers import INPUTS, LABELS, VALUES, WEIGHTS, equal, make, weights_of

import gradflow as gf
from gradflow import nn, optim
from gradflow.data import Batches
from gradflow.training import Epoch, Trainer


def fields(epoch: Epoch) -> dict[str, Any]:
    return {"loss": epoch.validation_loss, **epoch.validation_metrics}


# ---------------------------------------------------------------------- accumulation and weights


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("capture", [True, False])
def test_accumulation_has_the_gradient_of_the_union(device: str, capture: bool, weights: Any) -> None:
    """Batches of 9, 9, 9, 9 and 9, 9, 9, 7 against batches of 36 and 34: the same up to rounding."""
    options: dict[str, Any] = {"weights": weights, "clip_norm": 0.5, "metrics": ["accuracy"], "class_weight": [1, 2, 3]}
    parts, whole = make(9, accumulate=4, capture=capture, **options), make(36, **options)
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
    list(trainer.steps(23))
    trainer.restore_best()
    assert trainer.evaluate(trainer.validation) == fields(best)  # type: ignore[arg-type]
    plain = Trainer(trainer.model, gf.cross_entropy, trainer.optimizer, trainer.train)
    assert plain.evaluate(trainer.validation)["loss"] == best.validation_loss  # type: ignore[arg-type]


def test_an_average_of_half_precision_is_refused() -> None:
    model = nn.Linear(4, 3).to("float16")
    train = Batches(INPUTS.astype("float16"), LABELS, 16)
    with pytest.raises(ValueError, match="an average needs float32 or float64 parameters; one is float16"):
        Trainer(model, gf.cross_entropy, optim.SGD(model.parameters(), 0.1), train, average=0.9)


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


@pytest.mark.parametrize("capture", [True, False])
def test_an_average_of_parameters_whose_memory_is_shared(device: str, capture: bool) -> None:
    def train(shared: bool) -> tuple[list[Epoch], list[Any]]:
        model = nn.MLP([4, 8, 3], generator=gf.Generator(1))
        aliases = [p.detach() for p in model.parameters()][:2] if shared else []  # these keep their own memory
        optimizer = optim.SGD(model.parameters(), lr=0.3)
        train = Batches(INPUTS, LABELS, 16, gf.Generator(2))
        trainer = Trainer(model, gf.cross_entropy, optimizer, train, train, average=0.8, capture=capture)
        list(trainer.epochs(3))
        if shared:
            assert equal([alias.numpy() for alias in aliases], weights_of(trainer)[:2])
        return trainer.history, weights_of(trainer)

    history, weights = train(shared=True)
    expected = train(shared=False)
    assert history == expected[0]
    assert equal(weights, expected[1])


def test_a_failed_exchange_of_weights_and_averages_is_noticed() -> None:
    trainer = make(average=0.9, validate=True)
    list(trainer.epochs(1))
    state, average = trainer.state_dict(), trainer._average
    assert average is not None
    assign, calls = average._assign, []

    def failing(arrays: Any) -> None:
        calls.append(arrays)
        if len(calls) == 2:  # back to the weights
            raise MemoryError
        assign(arrays)

    average._assign = failing  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        list(trainer.epochs(2))
    average._assign = assign  # type: ignore[method-assign]
    for use in (trainer.state_dict, lambda: list(trainer.epochs(2))):
        with pytest.raises(RuntimeError, match="load a saved state"):
            use()
    trainer.load_state_dict(state)
    other = make(average=0.9, validate=True)
    assert list(trainer.epochs(3)) == list(other.epochs(3))[1:]
