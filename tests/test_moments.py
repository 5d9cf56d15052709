"""Adagrad, NAdam, RAdam, AMSGrad and `maximize` are PyTorch's in float64; Lion is the paper's formula."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import optim
from gradflow.testing import host

STEPS = 100
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Adagrad": ("Adagrad", {}),
    "Adagrad all": ("Adagrad", {"lr_decay": 0.1, "weight_decay": 0.1, "eps": 1e-3, "maximize": True}),
    "NAdam": ("NAdam", {}),
    "NAdam all": ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "momentum_decay": 0.1}),
    "NAdam up": ("NAdam", {"weight_decay": 0.1, "betas": (0.99, 0.9), "maximize": True}),
    "RAdam": ("RAdam", {}),
    "RAdam all": ("RAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "RAdam up": ("RAdam", {"weight_decay": 0.1, "betas": (0.5, 0.5), "maximize": True}),
    "Adam": ("Adam", {"amsgrad": True, "weight_decay": 0.1, "eps": 1e-3}),
    "AdamW": ("AdamW", {"amsgrad": True, "maximize": True}),
    "SGD": ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    "RMSprop": ("RMSprop", {"momentum": 0.5, "centered": True, "maximize": True}),
}


@pytest.fixture
def torch() -> Iterator[Any]:
    """PyTorch, whose optimizers keep their numbers in its default dtype: here float64."""
    found = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    before = found.get_default_dtype()
    found.set_default_dtype(found.float64)
    yield found
    found.set_default_dtype(before)


def gradients(steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of two parameters; some are large, so that the largest squares matter."""
    rng = np.random.default_rng(1)
    for step in range(steps):
        size = 10.0 if step % 7 == 0 else 0.1
        yield size * rng.normal(size=(5, 3)), size * rng.normal(size=4)


@pytest.mark.parametrize("name", CASES)
def test_two_groups_move_as_in_pytorch(device: str, torch: Any, name: str) -> None:
    """To 1e-12 of the largest number, also from a pickle in the middle; the state has PyTorch's names and numbers."""
    kind, options = CASES[name]
    start = np.random.default_rng(0).normal(size=(5, 3)), np.random.default_rng(2).normal(size=4)
    ours, theirs = (
        [gf.tensor(x, requires_grad=True) for x in start],
        [torch.tensor(x, requires_grad=True) for x in start],
    )
    made = [
        getattr(library, kind)([{"params": p[:1]}, {"params": p[1:], "lr": 0.03}], lr=0.01, **options)
        for library, p in ((optim, ours), (torch.optim, theirs))
    ]
    for step, pair in enumerate(gradients(STEPS)):
        if step == STEPS // 2:
            ours, made[0] = pickle.loads(pickle.dumps((ours, made[0])))
            state = made[0].state_dict()
            made[0].load_state_dict(state)
        for p, q, g in zip(ours, theirs, pair, strict=True):
            p.grad, q.grad = gf.tensor(g), torch.tensor(g)
        made[0].step()
        made[1].step()
        for p, q in zip(ours, theirs, strict=True):
            expected = q.detach().numpy()
            np.testing.assert_allclose(host(p), expected, rtol=1e-12, atol=1e-12, err_msg=f"step {step}")
    own, other = (optimizer.state_dict()["state"] for optimizer in made)
    for i in range(2):
        assert {*own[i], "step"} == {*other[i], "step"} - {"mu_product"}
        for key in {*own[i]} - {"step"}:
            np.testing.assert_allclose(host(own[i][key]), other[i][key].numpy(), rtol=1e-12, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("maximize", [False, True])
def test_lion_is_its_formula(device: str, maximize: bool) -> None:
    """Against NumPy in float64. The gradients keep the argument of the sign away from 0."""
    start, decay, m = np.random.default_rng(0).normal(size=(5, 3)), 0.1, np.zeros((5, 3))
    p, expected = gf.tensor(start, requires_grad=True), start.copy()
    optimizer = optim.Lion([p], lr=0.01, betas=(0.8, 0.9), weight_decay=decay, maximize=maximize)
    for g, _ in gradients(STEPS):
        p.grad, g = gf.tensor(g), -g if maximize else g
        optimizer.step()
        c = 0.8 * m + (1 - 0.8) * g
        assert np.abs(c).min() > 1e-9
        expected -= 0.01 * (np.sign(c) + decay * expected)
        m = 0.9 * m + (1 - 0.9) * g
        np.testing.assert_allclose(host(p), expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(host(optimizer.state_dict()["state"][0]["exp_avg"]), m, rtol=1e-12, atol=1e-13)


def test_amsgrad_may_be_turned_on_later(device: str) -> None:
    p, q = (gf.tensor([1.0, 2.0], dtype="float64", requires_grad=True) for _ in range(2))
    later, never = optim.Adam([p], lr=0.1), optim.Adam([q], lr=0.1)
    for step in range(6):
        if step == 2:
            later.param_groups[0]["amsgrad"] = True
        for x, optimizer in ((p, later), (q, never)):
            x.grad = gf.tensor([4.0, 1.0] if step < 4 else [0.0, 0.0], dtype="float64")
            optimizer.step()
    assert [*later.state_dict()["state"][0]] == ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    assert (host(p) > host(q)).all(), "the squares fell, but not the largest"


def test_the_gradients_of_a_parameter_that_goes_up_stay(device: str) -> None:
    class Own(optim.Optimizer):
        """An optimizer of a user, which gets maximize from the base class."""

        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {"lr": 1.0, "maximize": True})

        def update(self, flat: Any, group: Any, lr: float, step: int, first: bool) -> None:
            flat.parameters[...] = flat.backend.subtract(flat.parameters, flat.gradients)

    for make in (Own, lambda p: optim.SGD(p, lr=1.0, maximize=True)):
        x = gf.tensor([1.0, 2.0], requires_grad=True)
        (x * x).sum().backward()
        make([x]).step()
        assert x.tolist() == [3.0, 6.0]
        assert x.grad is not None
        assert x.grad.tolist() == [2.0, 4.0]


@pytest.mark.parametrize("kind", ["Adagrad", "NAdam", "RAdam", "Lion"])
@pytest.mark.parametrize(
    "wrong", [{"weight_decay": -1.0}, {"betas": (0.9, 1.0)}, {"lr_decay": -1.0}, {"momentum_decay": -1.0}, {"eps": 0.0}]
)
def test_a_hyperparameter_out_of_range_raises(kind: str, wrong: dict[str, Any]) -> None:
    p = gf.tensor([1.0], requires_grad=True)
    optimizer = getattr(optim, kind)([p])
    (name,) = wrong
    with pytest.raises(ValueError, match=name) if name in optimizer.defaults else pytest.raises(TypeError, match=name):
        getattr(optim, kind)([p], **wrong)
