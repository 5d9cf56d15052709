"""A device against a float64 reference on the CPU, in three ways (see `tolerances`): exactly, in ulp, by bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from twin import twin_device

import gradflow as gf
from gradflow import nn
from gradflow.backend import dropout_threshold
from gradflow.testing import assert_agree, eps, host, product_bound, sum_bound, ulp_bound
from gradflow.testing.workloads import Place
from gradflow.testing.workloads.training import EPOCHS, OPTIMIZERS, STEPS, Run

SIZES = [1, 2, 31, 32, 33, 257, 1000]


def f64(x: Any) -> np.ndarray:
    return host(x).astype(np.float64)


def normal(shape: tuple[int, ...], seed: int = 0) -> gf.Tensor:
    """Return float32 numbers on the current device, the same on every device."""
    return gf.tensor(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def words(seed: int, counter: int, n: int) -> np.ndarray:
    return np.random.Philox(key=seed, counter=counter).random_raw(n)


# ---------------------------------------------------------------------- exactly


@pytest.mark.parametrize("seed", [0, 1, 2**64 + 5, 2**128 - 1])
def test_initial_weights_are_the_same_bits(device: str, seed: int) -> None:
    model = nn.MLP([7, 33, 5], generator=gf.Generator(seed))
    counter = 0
    for (name, p), fan_in in zip(model.named_parameters(), (7, 7, 33, 33), strict=True):
        u = ((words(seed, counter, p.size) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        bound = 1.0 / np.sqrt(fan_in)
        assert_agree(name, p, (u * (bound - -bound) + -bound).astype(np.float32).reshape(p.shape))
        counter += (p.size + 3) // 4


def test_normal_numbers_are_the_same_bits(device: str) -> None:
    for dtype in ("float32", "float64"):
        here = gf.random.normal((10000,), dtype=dtype, generator=gf.Generator(3))
        assert_agree(
            dtype, here, host(gf.random.normal((10000,), dtype=dtype, device="cpu", generator=gf.Generator(3)))
        )


@pytest.mark.parametrize("n", [0, *SIZES])
def test_shuffles_are_the_same(device: str, n: int) -> None:
    generator = gf.Generator(3)
    for counter in (0, (n + 3) // 4):
        expected = np.argsort(words(3, counter, n), kind="stable")
        assert_agree("permutation", gf.random.permutation(n, generator=generator), expected.astype(np.int64))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("n", SIZES)
def test_dropout_masks_are_the_same(device: str, n: int, p: float) -> None:
    x = normal((n,)).requires_grad_()
    out = gf.dropout(x, p, generator=gf.Generator(9))
    halves = words(9, 0, (n + 1) // 2).astype("<u8").view("<u4")[:n]
    kept = halves >= dropout_threshold(p)
    assert_agree("mask", host(out) != 0, kept)
    # two roundings: 1 / (1 - p), and its product with x
    assert_agree("values", out, np.where(kept, f64(x) / (1 - p), 0), ulp_bound(f64(x) / (1 - p), ulps=2))
    out.sum().backward()
    assert_agree("mask of the gradient", host(x.grad) != 0, kept)


def test_moves_masks_and_comparisons_are_exact(device: str) -> None:
    x, y = normal((40, 50), 1), normal((40, 50), 2)
    a, b = host(x), host(y)
    assert_agree("there and back", x.to("cpu").to(device), a)
    assert_agree("less", gf.less(x, y), a < b)
    assert_agree("maximum", gf.maximum(x, y), np.maximum(a, b))
    assert_agree("relu", gf.relu(x), np.maximum(a, np.float32(0)))
    assert_agree("where", gf.where(x > y, x, y * 0), np.where(a > b, a, np.float32(0) * b))
    assert_agree("transposed", x.T, a.T)
    assert_agree("taken", gf.take(x, gf.tensor([3, 1, 3], dtype="int64"), axis=0), a[[3, 1, 3]])
    assert_agree("argmax", x.argmax(axis=1), a.argmax(axis=1))
    x.requires_grad_()
    gf.relu(x).backward(y)
    assert_agree("gradient of relu", x.grad, np.where(a > 0, b, np.float32(0)))


# ---------------------------------------------------------------------- in ulp


@pytest.mark.parametrize("name", ["exp", "log", "log1p", "expm1", "sqrt", "sin", "cos", "tanh", "sigmoid"])
def test_transcendental_functions_are_within_four_ulp(device: str, name: str) -> None:
    x = normal((10000,)) * 3
    if name in ("log", "log1p", "sqrt"):
        x = abs(x)
    v = f64(x)
    reference = 1 / (1 + np.exp(-v)) if name == "sigmoid" else getattr(np, name)(v)
    assert_agree(name, getattr(gf, name)(x), reference, ulp_bound(reference))


# ---------------------------------------------------------------------- by bounds


@pytest.mark.parametrize(("n", "k", "m"), [(1, 1, 1), (32, 3, 7), (7, 784, 100), (64, 3072, 10), (257, 33, 65)])
def test_linear_layers(device: str, n: int, k: int, m: int) -> None:
    """|error| <= K eps (|A| @ |B|) for the product and both of its gradients; one more term for the bias."""
    x, g = normal((n, k), 1).requires_grad_(), normal((n, m), 2)
    layer = nn.Linear(k, m)
    out = layer(x)
    out.backward(g)
    a, w, b, v = f64(x), f64(layer.weight), f64(layer.bias), f64(g)
    with_bias = np.abs(np.c_[a, np.ones(n)]), np.abs(np.c_[w, b]).T
    assert_agree("output", out, a @ w.T + b, product_bound(*with_bias))
    assert_agree("gradient of x", x.grad, v @ w, product_bound(v, w))
    assert_agree("gradient of the weight", layer.weight.grad, v.T @ a, product_bound(v.T, a))
    assert_agree("gradient of the bias", layer.bias.grad, v.sum(axis=0), sum_bound(v, axis=0))


def slopes(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an activation and its derivative, in float64."""
    s = 1 / (1 + np.exp(-x))
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    inner = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return {
        "relu": (np.maximum(x, 0), (x > 0) * 1.0),
        "leaky_relu": (np.where(x > 0, x, 0.01 * x), np.where(x > 0, 1, 0.01)),
        "elu": (np.where(x > 0, x, np.expm1(np.minimum(x, 0))), np.where(x > 0, 1, np.exp(np.minimum(x, 0)))),
        "gelu": (0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * inner),
        "silu": (x * s, s * (1 + x * (1 - s))),
        "sigmoid": (s, s * (1 - s)),
        "softplus": (np.logaddexp(0, x), s),
        "tanh": (np.tanh(x), 1 - np.tanh(x) ** 2),
    }[name]


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "gelu", "silu", "sigmoid", "softplus", "tanh"])
def test_activations_and_their_gradients(device: str, name: str) -> None:
    """About ten operations each, whose intermediate values are at most 1 + |x|^3: the bound is 16 eps times that."""
    x, g = (normal((5000,), 1) * 2).requires_grad_(), normal((5000,), 2)
    out = getattr(gf, name)(x)
    out.backward(g)
    value, slope = slopes(name, f64(x))
    size = 1 + np.abs(f64(x)) ** (3 if name == "gelu" else 1)
    assert_agree(name, out, value, 16 * eps() * size)
    assert_agree(f"gradient of {name}", x.grad, f64(g) * slope, 16 * eps() * size * np.abs(f64(g)))


def test_layer_norm(device: str) -> None:
    """Means of K = 257 terms: K eps times the largest deviation bounds the error of the centred values."""
    x, g = (normal((30, 257), 1) + 0.5).requires_grad_(), normal((30, 257), 2)
    layer = nn.LayerNorm(257)
    out = layer(x)
    out.backward(g)
    a, v = f64(x), f64(g)
    centred = a - a.mean(axis=1, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + layer.eps)
    n = centred * scale
    size = np.abs(a).max(axis=1, keepdims=True) * scale
    assert_agree("output", out, n, 257 * eps() * (size + np.abs(n)))
    gradient = scale * (v - v.mean(axis=1, keepdims=True) - n * (v * n).mean(axis=1, keepdims=True))
    largest = np.abs(v).max(axis=1, keepdims=True) * scale * (1 + np.abs(n)) * (1 + size)
    assert_agree("gradient of x", x.grad, gradient, 257 * eps() * largest)
    weight_bound = sum_bound(v * n, axis=0) + 257 * eps() * (np.abs(v) * (size + np.abs(n))).sum(axis=0)
    assert_agree("gradient of the weight", layer.weight.grad, (v * n).sum(axis=0), weight_bound)
    assert_agree("gradient of the bias", layer.bias.grad, v.sum(axis=0), sum_bound(v, axis=0))


def test_cross_entropy(device: str) -> None:
    """Each loss is within C eps (1 + the range of its logits), C = 10 classes; gradients are at most 1/N."""
    x = (normal((200, 10), 1) * 10).requires_grad_()
    labels = np.random.default_rng(2).integers(0, 10, size=200)
    a = f64(x)
    shifted = a - a.max(axis=1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    bound = 10 * eps() * (1 + np.ptp(a, axis=1))
    t = gf.tensor(labels)
    each = gf.cross_entropy(x, t, reduction="none")
    assert_agree("losses", each, -logp[np.arange(200), labels], bound)
    loss = gf.cross_entropy(x, t)
    assert_agree("mean", loss, -logp[np.arange(200), labels].mean(), bound.mean() + 200 * eps() * np.abs(logp).max())
    loss.backward()
    gradient = (np.exp(logp) - np.eye(10)[labels]) / 200
    assert_agree("gradient", x.grad, gradient, bound[:, None] / 200)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_steps(device: str, name: str) -> None:
    """About ten roundings in each of 10 steps, of numbers below 2: 10 * 10 eps * 2. Gradients are kept away from 0,
    where Adam and RMSprop would divide one rounding error by another."""
    start = normal((1000,), 1)
    p = gf.tensor(start, requires_grad=True)
    reference = gf.tensor(f64(start), device="cpu", requires_grad=True)
    here, there = OPTIMIZERS[name]([p]), OPTIMIZERS[name]([reference])
    for step in range(10):
        g = host(normal((1000,), step + 2))
        g = (np.sign(g) * (np.abs(g) + 0.1)).astype(np.float32)
        p.grad, reference.grad = gf.tensor(g), gf.tensor(g.astype(np.float64), device="cpu")
        here.step()
        there.step()
    size = 2 * np.maximum(1, np.abs(host(reference)))
    assert_agree(name, p, reference, 10 * 10 * eps() * size)


# ---------------------------------------------------------------------- whole training runs


def run_bound(dtype: str) -> float:
    """Return the relative error allowed for a loss: in each step the sums of at most K = 33 terms, in 3 layers, forward
    and backward, have an error of at most K eps; at these rates a step does not enlarge differences."""
    return STEPS * 6 * 33 * eps(dtype)


def assert_losses(what: str, losses: np.ndarray, reference: np.ndarray, dtype: str) -> None:
    assert_agree(what, losses, reference, run_bound(dtype) * np.abs(reference))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_training_run_gives_the_losses_of_the_reference(device: str, dtype: str, optimizer: str) -> None:
    here, reference = Run(Place(device, dtype), optimizer), Run(Place("cpu", "float64"), optimizer)
    for (name, p), q in zip(here.model.named_parameters(), reference.model.parameters(), strict=True):
        assert_agree(f"initial {name}", f64(p), host(q))
    losses, expected = host(here.losses()), host(reference.losses())
    assert here.generator.state_dict() == reference.generator.state_dict()
    assert np.mean(expected[-5:]) < 0.7 * np.mean(expected[:5]), f"the run learned nothing: {expected[::5]}"
    assert_losses(f"losses in {dtype} with {optimizer}", losses, expected, dtype)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_is_repeated_to_the_bit(device: str, optimizer: str) -> None:
    first, second = (Run(Place(device), optimizer).losses() for _ in range(2))
    assert_agree("losses", first, second)


def test_another_seed_is_another_run(device: str) -> None:
    first, second = (Run(Place(device), "sgd", seed).losses(1) for seed in (5, 6))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("way", ["to the CPU", "from the CPU"])
def test_a_run_moves_to_another_device_midway(device: str, optimizer: str, way: str) -> None:
    """Without a GPU the other device is NumPy under another name, and the run continues bit for bit."""
    with twin_device() as twin:
        first, second = (device, "cpu") if way == "to the CPU" else ("cpu", device)
        if first == second:
            second = twin
        whole = Run(Place(first), optimizer)
        expected = host(whole.losses())
        start = Run(Place(first), optimizer)
        before = host(start.losses(EPOCHS // 2))
        rest = Run(Place(second), optimizer, seed=99)
        rest.losses(1)  # another state, which load replaces
        rest.load(start.state())
        losses = np.concatenate([before, host(rest.losses(EPOCHS - EPOCHS // 2))])
        assert {str(p.device).partition(":")[0] for p in rest.model.parameters()} == {second.partition(":")[0]}
        if device == "cpu":
            assert_agree("losses", losses, expected)
        else:
            assert_losses("losses", losses, expected, "float32")
        assert rest.generator.state_dict() == whole.generator.state_dict()
