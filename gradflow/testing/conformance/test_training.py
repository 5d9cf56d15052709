"""Training runs and gradients on the device, against NumPy with the composed defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn, optim
from gradflow.testing.conformance.harness import reference_device
from gradflow.testing.conformance.kernel_cases.inputs import normal
from gradflow.testing.conformance.training_run import gradient_of, train
from gradflow.testing.tolerances import assert_agree

OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, lr=0.5),
    "SGD momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "SGD Nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.01),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.01),
    "Adam amsgrad": lambda p: optim.Adam(p, lr=0.01, amsgrad=True),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.05),
    "NAdam": lambda p: optim.NAdam(p, lr=0.01),
    "RMSprop centred": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
}
LOSS_BOUND = {"float64": 1e-10, "float32": 1e-4}
"""The largest relative error of a loss against NumPy: roundings of 1e-16 and 6e-8, which add up over the steps."""


@pytest.mark.parametrize("dtype", LOSS_BOUND)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_run(device: str, optimizer: str, dtype: str) -> None:
    """An MLP with dropout, layer norm, clipping and cross-entropy has NumPy's losses and parameters."""
    losses, parameters = train(device, dtype, OPTIMIZERS[optimizer])
    with reference_device() as name:
        expected, expected_parameters = train(name, dtype, OPTIMIZERS[optimizer])
    assert losses[-1] < 0.9 * losses[0], "the run does not learn"
    bound = LOSS_BOUND[dtype]
    assert_agree("the losses", np.array(losses), np.array(expected), bound=bound * np.array(expected))
    for x, y in zip(parameters, expected_parameters, strict=True):
        assert x.dtype == np.dtype(dtype)
        assert_agree("the parameters", x, y, bound=100 * bound * (np.abs(y) + 0.1))


@pytest.mark.parametrize("dtype", LOSS_BOUND)
def test_regression(device: str, dtype: str) -> None:
    """A run with the squared error, batches in random order and a schedule has NumPy's losses."""

    def run(name: str) -> list[float]:
        gf.manual_seed(5)
        with gf.use_device(name):
            model = nn.MLP([3, 20, 1], activation="tanh", dtype=dtype)
            x = gf.tensor(normal((40, 3), 90).astype(dtype))
            y = gf.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:]
            optimizer = optim.SGD(model.parameters(), lr=optim.schedules.cosine(0.1, 20), momentum=0.9)
            losses = []
            for _ in range(5):
                order = gf.random.permutation(40)
                for start in range(0, 40, 10):
                    rows = order[start : start + 10]
                    optimizer.zero_grad()
                    loss = gf.mse_loss(model(x[rows]), y[rows])
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.item())
            return losses

    found = run(device)
    with reference_device() as name:
        expected = np.array(run(name))
    assert_agree("the losses", np.array(found), expected, bound=LOSS_BOUND[dtype] * expected)


POSITIVE = np.abs(normal((3, 4), 91)) + 0.3
X, Y = normal((3, 4), 92), normal((3, 4), 93)
EXPRESSIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "arithmetic": (lambda x, y: x * y - x / (y * y + 1.0) + 2.0 * x, (X, Y)),
    "broadcasting": (lambda x, y: x * y + y, (X, Y[0])),
    "powers": (lambda x: x**2.5 + gf.sqrt(x) + gf.log(x), (POSITIVE,)),
    "exponentials": (lambda x: gf.exp(x) + gf.expm1(x) + gf.log1p(gf.square(x)), (X,)),
    "trigonometry": (lambda x: gf.sin(x) * gf.cos(x) + gf.tanh(x), (X,)),
    "choice": (lambda x, y: gf.where(x > y, gf.maximum(x, y), x * 2.0) + gf.clip(y, -0.5, 0.5), (X, Y)),
    "activations": (lambda x: gf.gelu(x) + gf.silu(x) + gf.softplus(x) + gf.sigmoid(x) + gf.elu(x) + gf.relu(x), (X,)),
    "further activations": (
        lambda x, w: gf.selu(x) + gf.mish(x) + gf.softsign(x) + gf.hardtanh(x) * gf.prelu(x, w) * gf.glu(gf.tile(x, 2)),
        (X, Y[0]),
    ),
    "reductions": (lambda x: x.sum(axis=0) + x.mean() + x.max(axis=1).sum() + gf.prod(x, axis=1).sum(), (X,)),
    "spread": (lambda x: gf.var(x, axis=1) + gf.std(x, axis=1, correction=1.0), (X,)),
    "scan": (lambda x: gf.cumulative_sum(x, axis=1) * x, (X,)),
    "matmul": (lambda x, y: (x @ y.T) @ x, (X, Y)),
    "batches": (lambda x, y: x @ y, (normal((2, 3, 4), 94), normal((4, 5), 95))),
    "linear": (lambda x, w, b: gf.linear(x, w, b, activation="gelu"), (X, normal((5, 4), 96), normal((5,), 97))),
    "layer norm": (lambda x, w, b: gf.layer_norm(x, (4,), w, b), (X, Y[0], Y[1])),
    "softmax": (lambda x: gf.softmax(x) * gf.log_softmax(x) + gf.logsumexp(x), (X,)),
    "cross-entropy": (lambda x: gf.cross_entropy(x, gf.tensor(np.array([0, 3, 1]), device=x.device)), (X,)),
    "squared error": (lambda x, y: gf.mse_loss(x, y), (X, Y)),
    "dropout": (lambda x: gf.dropout(x, 0.3, generator=gf.Generator(4)) * x, (X,)),
    "shapes": (lambda x: gf.concat([x.T, x.reshape(4, 3)], axis=1).flip(axis=0) * gf.stack([x, x])[0, 0, 0], (X,)),
    "slices": (lambda x: x[1:, ::2] * x[0, 1] + x[:2, -2:], (X,)),
    "rows": (lambda x: x[gf.tensor(np.array([0, 2, 2, -1]), device=x.device)] ** 2.0, (X,)),
    "along an axis": (
        lambda x: gf.take_along_axis(x, gf.tensor(np.array([[0, 0], [3, 1], [2, 2]]), device=x.device), axis=1) * 2.0,
        (X,),
    ),
    "conversion": (lambda x: x.astype("float32").astype("float64") * x, (X,)),
}


def _gradients(device: str, title: str, dtype: str) -> tuple[list[Any], list[Any]]:
    """Return the value and gradients of an expression, and the gradients of the gradients' squares."""
    call, values = EXPRESSIONS[title]
    inputs = [gf.tensor(v.astype(dtype), device=device, requires_grad=True) for v in values]
    out = call(*inputs)
    (out * out).sum().backward(create_graph=True)
    first = [x.grad for x in inputs]
    for x in inputs:
        x.zero_grad()
    total: Any = None
    for g in first:
        assert g is not None
        total = (g * g).sum() if total is None else total + (g * g).sum()
    total.backward()
    for x in inputs:
        assert x.grad is not None
        assert x.grad.device == x.device
        assert x.grad.dtype == x.dtype
    return [out.detach().numpy(), *[g.detach().numpy() for g in first if g is not None]], [
        gradient_of(x) for x in inputs
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("title", EXPRESSIONS)
def test_gradients(device: str, title: str, dtype: str) -> None:
    """Values and gradients of first and second order are within 1000 ulp of those in float64 on NumPy."""
    found = _gradients(device, title, dtype)
    with reference_device() as name:
        expected = _gradients(name, title, "float64")
    steps = 1000 * (1 if title != "conversion" else 2**29 if dtype == "float64" else 1)
    for got, wanted in zip(found, expected, strict=True):
        for x, y in zip(got, wanted, strict=True):
            assert x.dtype == np.dtype(dtype) or title == "conversion"
            bound = steps * float(np.finfo(dtype).eps) * np.abs(y).max(initial=1.0)
            assert_agree(title, x, y, bound=np.full(y.shape, bound))


SMOOTH = ("arithmetic", "broadcasting", "powers", "exponentials", "trigonometry", "spread", "scan", "matmul", "linear",
          "layer norm", "softmax", "cross-entropy", "squared error", "dropout", "shapes", "slices", "rows")  # fmt: skip


@pytest.mark.parametrize("title", SMOOTH)
def test_gradients_are_slopes(device: str, title: str) -> None:
    """They agree with central differences, in float64 on the device."""
    call, values = EXPRESSIONS[title]
    gf.gradcheck(call, *[gf.tensor(v, device=device) for v in values])
