"""Whole training runs against PyTorch from the same initial weights, data and order.

In float64 the losses of all 50 steps and the final weights agree to 1e-9. Both programs round at 2^-53, in different
order; at learning rates where training is stable, these runs multiply such differences by less than 1e6.
In float32 the bound is 50 steps * K * eps, where K = 32 is the longest sum: the largest rounding error of the sums of
50 steps if a step does not enlarge differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn, optim
from gradflow.optim import schedules
from gradflow.testing import eps, host

torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
pytestmark = pytest.mark.slow

STEPS, BATCH, INPUTS, WIDTH, OUTPUTS = 50, 32, 6, 16, 3
RTOL = {"float64": 1e-9, "float32": STEPS * BATCH * eps("float32")}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The networks are too small for threads: with several, PyTorch takes several times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


TORCH_ACTIVATIONS = {
    "relu": torch.nn.ReLU,
    "leaky_relu": torch.nn.LeakyReLU,
    "elu": torch.nn.ELU,
    "gelu": lambda: torch.nn.GELU(approximate="tanh"),
    "gelu_exact": torch.nn.GELU,
    "silu": torch.nn.SiLU,
    "sigmoid": torch.nn.Sigmoid,
    "softplus": torch.nn.Softplus,
    "selu": torch.nn.SELU,
    "mish": torch.nn.Mish,
    "tanh": torch.nn.Tanh,
}
MODULES = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "gelu_exact": lambda: nn.GELU(approximate="none"),
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "selu": nn.SELU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
}


def models(activation: str, dtype: str, normalize: bool = False, fused: bool = True) -> tuple[nn.Module, Any]:
    """Return the same network of three layers in both libraries, with the same weights."""
    norm = [nn.LayerNorm(WIDTH, dtype=dtype)] if normalize else []
    act = [] if fused else [MODULES[activation]()]
    name = activation if fused else None
    ours = nn.Sequential(
        nn.Linear(INPUTS, WIDTH, activation=name, dtype=dtype), *act, *norm,
        nn.Linear(WIDTH, WIDTH, activation=name, dtype=dtype), *act, nn.Linear(WIDTH, OUTPUTS, dtype=dtype),
    )  # fmt: skip
    make = TORCH_ACTIVATIONS[activation]
    their_norm = [torch.nn.LayerNorm(WIDTH)] if normalize else []
    theirs = torch.nn.Sequential(
        torch.nn.Linear(INPUTS, WIDTH), make(), *their_norm,
        torch.nn.Linear(WIDTH, WIDTH), make(), torch.nn.Linear(WIDTH, OUTPUTS),
    ).to(getattr(torch, dtype))  # fmt: skip
    with torch.no_grad():
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.copy_(torch.from_numpy(host(p)))
    return ours, theirs


def batches(dtype: str, kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(STEPS):
        x = rng.normal(size=(BATCH, INPUTS)).astype(dtype)
        score = x @ np.array([[1, -1, 0.5], [0, 1, 1], [-1, 0, 0], [0.5, 0.5, -1], [0, 0, 1], [1, 1, 0]], dtype=dtype)
        y: np.ndarray = np.sin(score)
        if kind == "labels":
            y = score.argmax(axis=1)
        elif kind == "shares":
            y = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
        elif kind == "bits":
            y = (score > 0).astype(dtype)
        made.append((x, y))
    return made


def train(
    dtype: str,
    pair: tuple[nn.Module, Any],
    optimizers: tuple[Any, Any],
    losses: tuple[Callable[..., Any], Callable[..., Any]],
    data: list[tuple[np.ndarray, np.ndarray]],
    clip: float | None = None,
    scheduler: Any = None,
) -> None:
    """Train both, step by step. Raises AssertionError at the first loss or final weight that differs."""
    (ours, theirs), (our_opt, their_opt), (our_loss, their_loss) = pair, optimizers, losses
    first = None
    for step, (x, y) in enumerate(data):
        our_opt.zero_grad()
        a = our_loss(ours(gf.tensor(x)), gf.tensor(y))
        a.backward()
        their_opt.zero_grad()
        b = their_loss(theirs(torch.from_numpy(x)), torch.from_numpy(y))
        b.backward()
        if clip is not None:
            ours_norm = optim.clip_grad_norm_(ours.parameters(), clip).item()
            theirs_norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip).item()
            assert ours_norm == pytest.approx(theirs_norm, rel=RTOL[dtype]), f"norm of step {step}"
        our_opt.step()
        their_opt.step()
        if scheduler is not None:
            scheduler.step()
        first = b.item() if first is None else first
        assert a.item() == pytest.approx(b.item(), rel=RTOL[dtype]), f"loss of step {step}"
    assert b.item() != first, "the run learned nothing"
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        expected = q.detach().numpy()
        atol = RTOL[dtype] * np.abs(expected).max()
        np.testing.assert_allclose(host(p), expected, rtol=RTOL[dtype], atol=atol, err_msg=f"final {name}")


OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd momentum": ("SGD", {"lr": 0.05, "momentum": 0.9}),
    "sgd dampening": ("SGD", {"lr": 0.1, "momentum": 0.8, "dampening": 0.3}),
    "sgd nesterov": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "sgd weight decay": ("SGD", {"lr": 0.1, "weight_decay": 0.01}),
    "sgd all": ("SGD", {"lr": 0.05, "momentum": 0.7, "weight_decay": 0.01, "nesterov": True}),
    "adam": ("Adam", {"lr": 0.01}),
    "adam betas eps": ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3}),
    "adam no momentum": ("Adam", {"lr": 0.01, "betas": (0.0, 0.99)}),
    "adam weight decay": ("Adam", {"lr": 0.01, "weight_decay": 0.01}),
    "adamw": ("AdamW", {"lr": 0.01}),
    "adamw weight decay": ("AdamW", {"lr": 0.01, "weight_decay": 0.3}),
    "rmsprop": ("RMSprop", {"lr": 0.003}),
    "rmsprop momentum": ("RMSprop", {"lr": 0.001, "momentum": 0.8}),
    "rmsprop centered": ("RMSprop", {"lr": 0.003, "centered": True}),
    "rmsprop all": (
        "RMSprop",
        {"lr": 0.001, "alpha": 0.9, "eps": 1e-4, "momentum": 0.5, "centered": True, "weight_decay": 0.01},
    ),
}


def make_optimizers(name: str, pair: tuple[Any, Any], **changes: Any) -> tuple[Any, Any]:
    cls, options = OPTIMIZERS[name]
    options = {**options, **changes}
    ours = getattr(optim, cls)(pair[0].parameters(), **options)
    return ours, getattr(torch.optim, cls)(pair[1].parameters(), **options)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str, dtype: str) -> None:
    pair = models("tanh", dtype)
    losses = nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss()
    train(dtype, pair, make_optimizers(name, pair), losses, batches(dtype, "labels"))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "modules"])
@pytest.mark.parametrize("activation", TORCH_ACTIVATIONS)
def test_activations(activation: str, fused: bool, dtype: str) -> None:
    pair = models(activation, dtype, fused=fused)
    losses = nn.MSELoss(), torch.nn.MSELoss()
    train(dtype, pair, make_optimizers("sgd momentum", pair), losses, batches(dtype, "values"))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["sgd all", "adamw"])
def test_layer_norm(name: str, dtype: str) -> None:
    pair = models("relu", dtype, normalize=True)
    losses = nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss()
    train(dtype, pair, make_optimizers(name, pair), losses, batches(dtype, "labels"))


FACTORS = [0.5, 1.0, 2.0]


def loss_pairs(dtype: str) -> dict[str, tuple[Callable[..., Any], Callable[..., Any], str]]:
    a, b = gf.tensor(FACTORS, dtype=dtype), torch.tensor(FACTORS, dtype=getattr(torch, dtype))
    log_a, log_b = nn.LogSoftmax(), torch.nn.LogSoftmax(dim=-1)
    return {
        "mse": (nn.MSELoss(), torch.nn.MSELoss(), "values"),
        "mse sum": (nn.MSELoss(reduction="sum"), torch.nn.MSELoss(reduction="sum"), "values"),
        "l1": (nn.L1Loss(), torch.nn.L1Loss(), "values"),
        "huber": (nn.HuberLoss(), torch.nn.HuberLoss(), "values"),
        "huber delta": (nn.HuberLoss(delta=0.3), torch.nn.HuberLoss(delta=0.3), "values"),
        "cross-entropy": (nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss(), "labels"),
        "cross-entropy sum": (
            nn.CrossEntropyLoss(reduction="sum"), torch.nn.CrossEntropyLoss(reduction="sum"), "labels"
        ),
        "cross-entropy shares": (nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss(), "shares"),
        "cross-entropy weight": (nn.CrossEntropyLoss(weight=a), torch.nn.CrossEntropyLoss(weight=b), "labels"),
        "cross-entropy shares weight": (nn.CrossEntropyLoss(weight=a), torch.nn.CrossEntropyLoss(weight=b), "shares"),
        "cross-entropy smoothing": (
            nn.CrossEntropyLoss(label_smoothing=0.2), torch.nn.CrossEntropyLoss(label_smoothing=0.2), "labels"
        ),
        "cross-entropy weight smoothing": (
            nn.CrossEntropyLoss(weight=a, label_smoothing=0.2),
            torch.nn.CrossEntropyLoss(weight=b, label_smoothing=0.2),
            "labels",
        ),
        "nll": (lambda z, t: nn.NLLLoss()(log_a(z), t), lambda z, t: torch.nn.NLLLoss()(log_b(z), t), "labels"),
        "nll weight": (
            lambda z, t: nn.NLLLoss(weight=a)(log_a(z), t),
            lambda z, t: torch.nn.NLLLoss(weight=b)(log_b(z), t),
            "labels",
        ),
        "bce": (nn.BCEWithLogitsLoss(), torch.nn.BCEWithLogitsLoss(), "bits"),
        "bce weight": (nn.BCEWithLogitsLoss(weight=a), torch.nn.BCEWithLogitsLoss(weight=b), "bits"),
        "bce pos_weight": (nn.BCEWithLogitsLoss(pos_weight=a), torch.nn.BCEWithLogitsLoss(pos_weight=b), "shares"),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", loss_pairs("float32"))
def test_losses(name: str, dtype: str) -> None:
    ours, theirs, kind = loss_pairs(dtype)[name]
    pair = models("silu", dtype)
    optimizers = make_optimizers("sgd", pair, lr=0.003 if name.endswith("sum") else 0.1)
    train(dtype, pair, optimizers, (ours, theirs), batches(dtype, kind))


@pytest.mark.parametrize("name", [n for n, (a, _, _) in loss_pairs("float64").items() if isinstance(a, nn.Module)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_each_reduction_and_its_gradient(name: str, reduction: str) -> None:
    rng = np.random.default_rng(1)
    ours, theirs, kind = loss_pairs("float64")[name]
    assert isinstance(ours, nn.Module)
    ours.reduction = theirs.reduction = reduction
    x, y = rng.normal(size=(BATCH, OUTPUTS)), batches("float64", kind)[0][1]
    a, b = gf.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    la, lb = ours(a, gf.tensor(y)), theirs(b, torch.from_numpy(y))
    np.testing.assert_allclose(host(la), lb.detach().numpy(), rtol=1e-13, atol=1e-15)
    g = rng.normal(size=la.shape)
    la.backward(gf.tensor(g, dtype="float64"))
    lb.backward(torch.tensor(g, dtype=torch.float64))
    np.testing.assert_allclose(host(a.grad), b.grad.numpy(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["sgd momentum", "adam", "adamw", "rmsprop momentum"])
def test_parameter_groups(name: str, dtype: str) -> None:
    """Weights and biases alternate in the model, so the order of the flat buffer differs from that of the model."""
    pair = models("tanh", dtype)
    cls, options = OPTIMIZERS[name]
    made = []
    for library, model in zip((optim, torch.optim), pair, strict=True):
        weights = [p for p in model.parameters() if len(p.shape) == 2]
        biases = [p for p in model.parameters() if len(p.shape) == 1]
        groups = [
            {"params": weights[1:], "weight_decay": 0.1},
            {"params": biases, "lr": options["lr"] / 3},
            {"params": weights[0], "lr": options["lr"] * 2},
        ]
        made.append(getattr(library, cls)(groups, **options))
    losses = nn.CrossEntropyLoss(), torch.nn.CrossEntropyLoss()
    train(dtype, pair, (made[0], made[1]), losses, batches(dtype, "labels"))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("max_norm", [0.05, 0.5, 100.0])
def test_clipping(max_norm: float, dtype: str) -> None:
    pair = models("relu", dtype)
    losses = nn.MSELoss(), torch.nn.MSELoss()
    train(dtype, pair, make_optimizers("sgd momentum", pair), losses, batches(dtype, "values"), clip=max_norm)


SCHEDULES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "step": (schedules.step(0.1, 10, 0.5), lambda o: torch.optim.lr_scheduler.StepLR(o, 10, 0.5)),
    "cosine": (schedules.cosine(0.1, 50), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50)),
    "one_cycle": (
        schedules.one_cycle(0.1, 51),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=51, cycle_momentum=False),
    ),
    "warmup": (
        schedules.warmup(schedules.constant(0.1), 10),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=9),
    ),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str, dtype: str) -> None:
    pair = models("sigmoid", dtype)
    ours = optim.AdamW(pair[0].parameters(), lr=SCHEDULES[name][0])
    theirs = torch.optim.AdamW(pair[1].parameters(), lr=0.1)
    scheduler = SCHEDULES[name][1](theirs)
    losses = nn.MSELoss(), torch.nn.MSELoss()
    train(dtype, pair, (ours, theirs), losses, batches(dtype, "values"), scheduler=scheduler)


def test_a_frozen_layer_and_a_rate_changed_between_steps() -> None:
    pair = models("tanh", "float64")
    optimizers = make_optimizers("adam weight decay", pair)
    losses = nn.MSELoss(), torch.nn.MSELoss()
    data = batches("float64", "values")
    train("float64", pair, optimizers, losses, data[:10])
    for p, q in list(zip(pair[0].parameters(), pair[1].parameters(), strict=True))[:2]:
        p.requires_grad_(False)
        q.requires_grad_(False)
    for optimizer in optimizers:
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = 0.003
    frozen = host(next(pair[0].parameters())).copy()
    train("float64", pair, optimizers, losses, data[10:30])
    np.testing.assert_array_equal(host(next(pair[0].parameters())), frozen)
    for p, q in zip(pair[0].parameters(), pair[1].parameters(), strict=True):
        p.requires_grad_()
        q.requires_grad_()
    train("float64", pair, optimizers, losses, data[30:])


def test_momentum_turned_on_later() -> None:
    pair = models("tanh", "float64")
    optimizers = make_optimizers("sgd", pair)
    losses = nn.MSELoss(), torch.nn.MSELoss()
    data = batches("float64", "values")
    train("float64", pair, optimizers, losses, data[:10])
    for optimizer in optimizers:
        optimizer.param_groups[0]["momentum"] = 0.9
    train("float64", pair, optimizers, losses, data[10:])
