"""The page on writing an optimizer is correct: its code runs, and its Lion does all that the page promises."""

from __future__ import annotations

import contextlib
import inspect
import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn, optim
from gradflow.optim import Adam, FlatArrays, Optimizer
from gradflow.replay.batches import has_graphs
from gradflow.testing import assert_agree, host
from tests.devices import replays

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "write-an-optimizer.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NAMES: dict[str, Any] = {"__name__": __name__}
for snippet in (SNIPPETS[0], SNIPPETS[2]):
    exec(compile(snippet, "write-an-optimizer.md", "exec"), NAMES)
Lion: Any = NAMES["Lion"]
Adam1: Any = NAMES["Adam1"]


def test_the_snippets_print_what_their_comments_say() -> None:
    text = "\n".join(SNIPPETS)
    expected = re.findall(r"^print\(.*?\)\s+# (.*)$", text, re.MULTILINE)
    assert len(expected) == 2
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "write-an-optimizer.md", "exec"), {"__name__": "page"})
    assert printed.getvalue().splitlines() == expected


def test_the_page_names_the_hooks_and_the_arguments() -> None:
    for name in ("state_names", "nonnegative_state", "needed_state", "check_hyperparameters", "update"):
        assert f"`{name}" in PAGE
        assert hasattr(Optimizer, name)
    table = PAGE[PAGE.index("| argument |") :].partition("\n\n")[0]
    arguments = list(inspect.signature(Optimizer.update).parameters)
    assert arguments[:2] == ["self", "flat"]
    expected = [*(f"flat.{name}" for name in FlatArrays._fields), *arguments[2:]]
    assert re.findall(r"^\| `([\w.]+)`", table, re.MULTILINE) == expected


# ---------------------------------------------------------------------- Lion


def model_and_groups() -> tuple[nn.Module, list[dict[str, Any]]]:
    model = nn.MLP([3, 5, 2], "tanh", dtype="float64", generator=gf.Generator(1))
    parameters = list(model.parameters())
    return model, [
        {"params": parameters[:2], "weight_decay": 0.1, "lr": optim.schedules.cosine(0.02, 10)},
        {"params": parameters[2:], "beta1": 0.8},
    ]


def train(model: nn.Module, optimizer: Optimizer, steps: range, train_step: Any = None) -> None:
    def plain(x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        optimizer.zero_grad()
        loss = gf.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    for i in steps:
        rng = np.random.default_rng(i)
        (train_step or plain)(gf.tensor(rng.normal(size=(8, 3))), gf.tensor(rng.normal(size=(8, 2))))


def test_lion_is_its_formula(device: str) -> None:
    """Against NumPy in float64, with the same gradients. Each of n = 20 steps rounds each number less than 8 times, and
    all numbers are below 4: the bound is 20 * 8 * eps * 4. The gradients keep the argument of the sign away from 0."""
    rng = np.random.default_rng(0)
    start, lr, decay = rng.normal(size=(4, 3)), optim.schedules.cosine(0.1, 20), 0.1
    p = gf.tensor(start, requires_grad=True)
    optimizer = Lion([p], lr=lr, beta1=0.9, beta2=0.99, weight_decay=decay)
    expected, m = start.copy(), np.zeros_like(start)
    for n in range(20):
        g = rng.normal(size=start.shape)
        p.grad = gf.tensor(g)
        optimizer.step()
        c = 0.9 * m + 0.1 * g
        assert np.abs(c).min() > 1e-6
        expected = expected - lr(n) * (np.sign(c) + decay * expected)
        m = 0.99 * m + 0.01 * g
    bound = 20 * 8 * np.finfo(float).eps * 4 * np.ones_like(start)
    assert np.abs(expected).max() < 4
    assert_agree("parameter", p, expected, bound)
    assert_agree("exp_avg", optimizer.state_dict()["state"][0]["exp_avg"], m, bound)


def test_its_groups_have_their_own_hyperparameters_and_schedules(device: str) -> None:
    model, groups = model_and_groups()
    optimizer = Lion(groups, lr=0.01)
    alone, others = model_and_groups()
    first = Lion(others[0]["params"], lr=optim.schedules.cosine(0.02, 10), weight_decay=0.1)
    second = Lion(others[1]["params"], lr=0.01, beta1=0.8)

    class Both:
        def zero_grad(self) -> None:
            first.zero_grad()
            second.zero_grad()

        def step(self) -> None:
            first.step()
            second.step()

    both: Any = Both()
    train(model, optimizer, range(5))
    train(alone, both, range(5))
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        assert_agree("parameter", p, host(q))
    assert optimizer.learning_rates == [optim.schedules.cosine(0.02, 10)(5), 0.01]


def test_a_saved_lion_continues_to_the_bit(device: str) -> None:
    model, groups = model_and_groups()
    optimizer = Lion(groups, lr=0.01)
    train(model, optimizer, range(3))
    other, groups = model_and_groups()
    other.load_state_dict(model.state_dict())
    copied = Lion(groups, lr=0.01)
    copied.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    train(model, optimizer, range(3, 6))
    train(other, copied, range(3, 6))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert_agree("parameter", p, host(q))
    assert copied.steps == 6
    state = optimizer.state_dict()
    state["state"][0]["exp_avg_sq"] = state["state"][0]["exp_avg"]
    with pytest.raises(ValueError, match="has exp_avg_sq, which this optimizer lacks; it has exp_avg"):
        copied.load_state_dict(state)


def test_a_captured_step_of_lion_is_the_plain_one(device: str) -> None:
    models = []
    for captured in (False, True):
        model, groups = model_and_groups()
        optimizer = Lion(groups, lr=0.01)

        def step(x: gf.Tensor, y: gf.Tensor, model: Any = model, optimizer: Any = optimizer) -> gf.Tensor:
            optimizer.zero_grad()
            loss = gf.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        train_step: Any = gf.capture(step) if captured else step
        train(model, optimizer, range(8), train_step)
        if captured:
            called = ", since it uses Lion, whose own `update` may take numbers that change with each step"
            by_call, status = f"replaying call by call{called}", train_step.status
            assert status == by_call if has_graphs(gf.get_backend(device)) else replays(status)
        models.append(model)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert_agree("parameter", p, host(q))


@pytest.mark.parametrize("wrong", [{"beta1": 1.0}, {"beta2": -0.1}, {"weight_decay": -1.0}, {"lr": -1.0}, {"lr": None}])
def test_its_hyperparameters_are_checked(wrong: dict[str, Any]) -> None:
    p = gf.ones((2,), requires_grad=True)
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        Lion([p], **wrong)
    optimizer = Lion([p])
    state = optimizer.state_dict()
    state["param_groups"][0].update(wrong)
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        optimizer.load_state_dict(state)


# ---------------------------------------------------------------------- a kernel under another optimizer


def test_adam_with_one_decay_is_adam(device: str) -> None:
    models = []
    for make in (lambda p: Adam1(p, lr=0.01, beta=0.9), lambda p: Adam(p, lr=0.01, betas=(0.9, 0.9))):
        model, _ = model_and_groups()
        train(model, make(model.parameters()), range(4))
        models.append(model)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert_agree("parameter", p, host(q))
