"""Interrupts and errors in a Trainer's steps, and the arguments that it refuses."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
from trainers import INPUTS, LABELS, VALUES, WEIGHTS, equal, make, user_loss, weights_of

import gradflow as gf
from gradflow import nn, optim
from gradflow.data import Batches
from gradflow.training import NonFiniteLossError, Trainer

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
    trainer, other, finished = make(), make(), []
    finish = trainer._finish
    trainer._finish = lambda: finished.append(finish()) or finished[-1]  # type: ignore[method-assign, func-returns-value]
    pressing(trainer, at=7)
    with pytest.raises(KeyboardInterrupt):
        list(getattr(trainer, how)(100))
    assert trainer.step == 7
    assert finished == trainer.history
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    trainer.state_dict()
    list(trainer.epochs(3))
    list(other.epochs(3))
    assert trainer.history == other.history


@posix
@pytest.mark.parametrize("how", ["epochs", "steps"])
def test_ctrl_c_in_the_validation_ends_the_epoch_which_is_yielded(how: str) -> None:
    trainer, yielded = make(validate=True), []
    read = trainer._on_train.read

    def pressed(tally: Any) -> Any:
        press_ctrl_c()
        return read(tally)

    def loop() -> None:
        for each in getattr(trainer, how)(15):
            yielded.append(each if how == "epochs" else each.finished)

    trainer._on_train.read = pressed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        loop()
    trainer._on_train.read = read  # type: ignore[method-assign]
    assert (trainer.epoch, trainer.step) == (1, 5)
    assert yielded[-1] == trainer.history[0]
    assert list(trainer.epochs(2)) == trainer.history[1:]


@posix
@pytest.mark.parametrize("how", ["epochs", "steps"])
def test_one_ctrl_c_in_one_of_two_loops_at_a_time_tears_neither(how: str) -> None:
    first, second = make(), make()
    pressing(second, at=7)
    with pytest.raises(KeyboardInterrupt):
        for _ in zip(getattr(first, how)(20), getattr(second, how)(20), strict=True):
            pass
    assert second.step == 7
    for each in (first, second):
        each.state_dict()
        assert len(list(each.epochs(5))) > 0
    assert first.history == second.history
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@posix
@pytest.mark.parametrize("use", ["evaluate", "restore_best"])
def test_ctrl_c_in_the_body_of_a_loop_leaves_the_weights_whole(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, other = make(average=0.9), make(average=0.9)
    name = "_assign" if use == "evaluate" else "restart"
    work, calls = getattr(trainer._average, name), []

    def pressed(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            press_ctrl_c()
        work(*arguments)

    def loop() -> None:
        for _ in trainer.steps(8):
            trainer.evaluate(trainer.train) if use == "evaluate" else trainer.restore_best()

    list(trainer.epochs(1))
    monkeypatch.setattr(trainer._average, name, pressed)
    with pytest.raises(KeyboardInterrupt):
        loop()
    list(other.epochs(1))
    list(other.steps(6))
    if use == "restore_best":
        other.restore_best()
    assert equal(weights_of(trainer), weights_of(other))
    assert trainer.evaluate(trainer.train) == other.evaluate(other.train)


@posix
def test_an_error_in_a_step_with_ctrl_c_is_the_context_of_the_interrupt() -> None:
    trainer = make()

    def failing(*batch: gf.Tensor) -> Any:
        press_ctrl_c()
        raise OSError("no more")

    trainer._step.whole = failing
    with pytest.raises(KeyboardInterrupt) as caught:
        list(trainer.epochs(1))
    assert isinstance(caught.value.__context__, OSError)
    assert not caught.value.__suppress_context__


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
    def make_one() -> Trainer:
        gf.manual_seed(5)
        validation = Batches(INPUTS[:30], LABELS[:30], 20)  # to be shuffled by the default generator
        model = nn.MLP([4, 8, 3], generator=gf.Generator(1))
        optimizer = optim.SGD(model.parameters(), 0.05)
        return Trainer(model, gf.cross_entropy, optimizer, Batches(INPUTS, LABELS, 16), validation, average=0.9)

    other = make_one()
    list(other.epochs(2))
    trainer = make_one()
    list(trainer.steps(4))
    on_validation: Any = trainer._on_validation
    objective = on_validation.objective
    on_validation.objective = lambda *batch: 1 / 0
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            list(trainer.steps(6))
        assert trainer.step == 5
    on_validation.objective = objective
    list(trainer.steps(10))
    assert trainer.history == other.history
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


def test_the_validation_loss_is_named_where_it_is_not_finite() -> None:
    trainer = make(validate=True)
    trainer._on_validation.read = lambda tally: (float("inf"), {})  # type: ignore[union-attr, method-assign]
    with pytest.raises(NonFiniteLossError, match="the validation loss became inf in epoch 1; try a lower"):
        list(trainer.epochs(2))


@pytest.mark.parametrize("how", ["left", "done", "error", "load"])
def test_a_bar_is_removed_when_the_loop_ends(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    trainer = make(progress=True)
    state = trainer.state_dict()
    if how == "error":
        whole = trainer._step.whole
        trainer._step.whole = lambda *batch: whole(*batch) if trainer.step < 3 else 1 / 0
        with pytest.raises(ZeroDivisionError):
            list(trainer.steps(9))
    else:
        steps = trainer.steps(3)
        if how == "done":
            list(steps)
        elif how == "left":
            next(steps)
            steps.close()  # type: ignore[attr-defined]
        else:
            next(steps)
            trainer.load_state_dict(state)
    assert trainer._bar._bar is None
    assert capsys.readouterr().err.endswith("\r")
    if how in ("left", "done"):
        list(trainer.epochs(1))
        shown = capsys.readouterr().err
        assert f"{trainer.step - 5 + (1 if how == 'left' else 3)}/5" in shown
        assert shown.endswith("\r")


def test_a_bar_shows_the_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    trainer = make(progress=True)
    assert list(trainer.epochs(2)) == list(make().epochs(2))
    shown = capsys.readouterr().err
    assert "epoch 1" in shown
    assert "epoch 2" in shown
    assert "0/5" in shown


# ---------------------------------------------------------------------- what is refused


def test_a_bar_without_tqdm_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ModuleNotFoundError, match='needs tqdm from the extra "train"'):
        make(progress=True)


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
    ({"options": {"clip_norm": -1}}, ValueError, r"clip_norm must be in \[0, inf\); got -1"),
    ({"options": {"clip_norm": 0}}, ValueError, "clip_norm must be above 0; got 0"),
    ({"options": {"clip_norm": True}}, ValueError, "clip_norm must be a finite number; got True"),
    ({"options": {"metrics": None}}, TypeError, "metrics is a list of names; got None"),
    ({"options": {"metrics": ["loss"]}}, ValueError, "the loss is always among the figures"),
    ({"options": {"monitor": "f1"}}, ValueError, r"got 'f1'; add it to metrics=\['f1', ...\]"),
    ({"options": {"class_weight": {0: "a"}}}, ValueError, "'balanced' or one number for each class; got"),
    ({"loss": nn.CrossEntropyLoss}, TypeError, r"the loss is the class CrossEntropyLoss: pass CrossEntropyLoss\(\)"),
    (
        {"loss": lambda outputs, targets, reduction="mean": gf.mean(outputs), "targets": LABELS[:, None],
         "model": nn.Linear(4, 1, device="cpu"), "options": {"class_weight": "balanced"}},
        ValueError, r"class_weight needs outputs of at least 2 classes; got outputs of shape \(2, 1\)",
    ),
    (
        {"loss": gf.binary_cross_entropy_with_logits, "targets": 2.0 * LABELS[:, None] - 1.0,
         "model": nn.Linear(4, 1, device="cpu")},
        ValueError, r"the targets of binary_cross_entropy_with_logits must be in \[0, 1\]; got -1 to 3",
    ),
    (
        {"loss": nn.BCEWithLogitsLoss(), "targets": LABELS[:, None], "model": nn.Linear(4, 1, device="cpu")},
        ValueError, r"must be in \[0, 1\]; got 0 to 2",
    ),
    (
        {"validation": Batches(INPUTS[:, :3], LABELS, 16, device="cpu")},
        ValueError, r"validation: the model does not take the inputs \(tried with 2 samples\)",
    ),
    ({"validation": Batches(INPUTS, LABELS + 1, 16, device="cpu")}, ValueError, "validation: labels for 3 outputs"),
    (
        {"options": {"accumulate": 2}, "loss": lambda o, t: gf.cross_entropy(o, t, weight=gf.tensor([1.0, 2.0, 9.0]))},
        ValueError, "for 14 samples, but .* on average for two parts of them",
    ),
    (
        {"options": {"accumulate": 2}, "loss": lambda o, t: gf.sum(gf.cross_entropy(o, t, reduction="none"))},
        ValueError, "a loss whose mean over a union of batches is the mean of theirs; this one is",
    ),
    ({"options": {"metrics": ["acuracy"]}}, ValueError, "unknown metric 'acuracy'; did you mean accuracy?"),
    ({"options": {"metrics": "accuracy"}}, TypeError, "list of names"),
    ({"options": {"metrics": ["r2"]}}, ValueError, "does not suit"),
    ({"options": {"monitor": "acuracy"}}, ValueError, "got 'acuracy'; did you mean accuracy?"),
    ({"options": {"monitor": "accuracy"}}, ValueError, r"add it to metrics=\['accuracy', ...\]"),
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


def test_losses_that_add_up_can_be_accumulated() -> None:
    binary = {"targets": (LABELS[:, None] > 0).astype("float32"), "model": nn.Linear(4, 1)}
    weight = gf.tensor([2.0])
    for changes in (
        {**binary, "loss": nn.BCEWithLogitsLoss(weight=weight)},
        {**binary, "loss": partial(gf.binary_cross_entropy_with_logits, pos_weight=weight)},
        {**binary, "loss": gf.mse_loss},
        {"loss": user_loss},
        {"loss": partial(gf.cross_entropy, weight=gf.tensor([1.0, 2.0, 3.0])), "weights": WEIGHTS},
        {"loss": user_loss, "inputs": INPUTS[:1], "targets": LABELS[:1]},
    ):
        list(changed(**changes, options={"accumulate": 2})().epochs(1))


def test_a_norm_may_be_a_number_of_numpy() -> None:
    assert make(clip_norm=np.float32(0.5)).clip_norm == 0.5


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED)
def test_arguments_that_do_not_fit(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        changed(**changes)()


def test_a_model_on_another_device_than_its_batches() -> None:
    model = nn.Linear(4, 3, device="fake")
    with pytest.raises(gf.DeviceMismatchError, match="the model is on fake:0, but its batches are on cpu"):
        changed(model=model)()


def test_an_evaluation_on_another_device_than_the_model() -> None:
    with pytest.raises(gf.DeviceMismatchError, match="fake:0"):
        make().evaluate(Batches(INPUTS, LABELS, 16, device="fake"))


@pytest.mark.parametrize("n", [-1, 1.5, True, None, "3"])
def test_numbers_of_epochs_and_steps(n: Any) -> None:
    for use in (make().epochs, make().steps):
        with pytest.raises(ValueError, match="an integer of at least 0"):
            use(n)
