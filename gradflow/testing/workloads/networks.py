"""Normalization, losses, and the forward and backward pass of a perceptron."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import gradflow as gf
from gradflow import nn
from gradflow.testing.tolerances import host, sum_bound
from gradflow.testing.workloads.workload import EPS, Check, Place, Workload, f64, times_size


def workloads() -> Iterator[Workload]:
    """Yield the workloads of this file."""
    yield Workload("normalization and losses", _softmax)
    yield Workload("normalization and losses", _layer_norm)
    yield Workload("normalization and losses", _batch_norm)
    yield Workload("normalization and losses", _rms_norm)
    for loss in (_cross_entropy, _squared_error, _absolute_errors, _binary_cross_entropy, _likelihoods):
        yield Workload("normalization and losses", loss)
    yield Workload("a perceptron of 20-64-32-4", _model)


def _softmax(at: Place) -> list[Check]:
    """The error of the exponent is eps times its size, at most the range of x; that of the sum is C eps, C = 10."""
    x = at.normal((200, 10), 1, scale=5)
    soft, log = gf.softmax(x, axis=-1), gf.log_softmax(x, axis=-1)

    def relative() -> Any:
        return (10 + 4 + np.ptp(f64(x), axis=1, keepdims=True)) * EPS

    return [
        Check("softmax", soft, "(C + 4 + range) eps p", lambda: relative() * f64(soft)),
        Check("log_softmax", log, "(C + 4 + range) eps", lambda: relative() + 0 * f64(log)),
    ]


def _layer_norm(at: Place) -> list[Check]:
    weight, bias = at.tensor(np.ones(257), grad=True), at.tensor(np.zeros(257))
    return _norm(at, "layer_norm", 1, weight, lambda x: gf.layer_norm(x, (257,), weight, bias))


def _batch_norm(at: Place) -> list[Check]:
    weight, bias = at.tensor(np.ones(30), grad=True), at.tensor(np.zeros(30))
    return _norm(
        at, "batch_norm", 0, weight, lambda x: gf.batch_norm(x, weight=weight, bias=bias, training=True)
    )  # fmt: skip


def _norm(
    at: Place, name: str, axis: int, weight: gf.Tensor, normalize: Callable[[gf.Tensor], gf.Tensor]
) -> list[Check]:
    """Means of K = 257 terms: K eps times the largest deviation bounds the error of the centred values."""
    k = 257
    shape = (30, k) if axis else (k, 30)
    x, g = at.tensor(np.random.default_rng(1).normal(size=shape) + 0.5, grad=True), at.normal(shape, 2)
    out = normalize(x)
    out.backward(g)

    def sizes() -> tuple[Any, Any, Any, Any]:
        a, v = f64(x), f64(g)
        scale = 1 / np.sqrt(a.var(axis=axis, keepdims=True) + 1e-5)
        largest = np.abs(a).max(axis=axis, keepdims=True)
        return v, (a - a.mean(axis=axis, keepdims=True)) * scale, largest * scale, scale

    def of_output() -> Any:
        _, normal, size, _ = sizes()
        return k * EPS * (size + np.abs(normal))

    def of_gradient() -> Any:
        v, normal, size, scale = sizes()
        largest = np.abs(v).max(axis=axis, keepdims=True)
        return k * EPS * largest * scale * (1 + np.abs(normal)) * (1 + size)

    def of_weight() -> Any:
        v, normal, size, _ = sizes()
        return sum_bound(v * normal, axis=0) + k * EPS * (np.abs(v) * (size + np.abs(normal))).sum(axis=0)

    label = f"K eps (largest deviation), K = {k}"
    return [
        Check(name, out, label, of_output),
        Check(f"{name}: gradient of x", x.grad, label, of_gradient),
        Check(f"{name}: gradient of the weight", weight.grad, label, of_weight),
    ]


def _rms_norm(at: Place) -> list[Check]:
    """A mean of K = 257 squares, and in the gradient one of K products."""
    k, eps = 257, 1e-5
    x, g, weight = at.normal((30, k), 1, grad=True), at.normal((30, k), 2), at.tensor(np.ones(k), grad=True)
    out = gf.rms_norm(x, (k,), weight, eps)
    out.backward(g)

    def of_gradient() -> Any:
        a, v = f64(x), np.abs(f64(g))
        scale = 1 / np.sqrt((a**2).mean(axis=1, keepdims=True) + eps)
        normal = np.abs(a) * scale
        return 2 * k * EPS * scale * (v + normal * (v * normal).mean(axis=1, keepdims=True))

    return [
        Check("rms_norm", out, f"K eps |out|, K = {k}", lambda: k * EPS * np.abs(f64(out))),
        Check("rms_norm: gradient of x", x.grad, f"2 K eps of its terms, K = {k}", of_gradient),
        Check("rms_norm: gradient of the weight", weight.grad, f"K eps sum|g out|, K = {k}",
              lambda: k * EPS * np.abs(f64(g) * f64(out)).sum(axis=0)),
    ]  # fmt: skip


def _cross_entropy(at: Place) -> list[Check]:
    """Each loss is within C eps (1 + the range of its logits), C = 10 classes; gradients are at most 1/N."""
    n, classes = 200, 10
    x = at.normal((n, classes), 1, scale=10, grad=True)
    labels = at.tensor(np.random.default_rng(2).integers(0, classes, size=n))
    each = gf.cross_entropy(x, labels, reduction="none")
    loss = gf.cross_entropy(x, labels)
    loss.backward()

    def of_each() -> Any:
        return classes * EPS * (1 + np.ptp(f64(x), axis=1))

    label = "C eps (1 + range), C = 10"
    return [
        Check("cross_entropy of each", each, label, of_each),
        Check("cross_entropy", loss, f"its mean, K = {n}", lambda: of_each().mean() + sum_bound(each) / n),
        Check("cross_entropy: gradient", x.grad, f"{label}, / N", lambda: of_each()[:, None] / n),
    ]


def _squared_error(at: Place) -> list[Check]:
    x, y = at.normal((20, 50), 1, grad=True), at.normal((20, 50), 2)
    loss = gf.mse_loss(x, y)
    loss.backward()
    return [
        Check("mse_loss", loss, "K eps mean (x - y)^2, K = 1004",
              lambda: 1004 * EPS * ((f64(x) - f64(y)) ** 2).mean()),
        Check("mse_loss: gradient", x.grad, "4 ulp", 4.0),
    ]  # fmt: skip


def _absolute_errors(at: Place) -> list[Check]:
    x, y = at.normal((20, 50), 1, grad=True), at.normal((20, 50), 2)
    huber, absolute, smooth = gf.huber_loss(x, y), gf.l1_loss(x, y), gf.smooth_l1_loss(x, y, beta=0.5)
    label = "K eps mean|x - y|, K = 1004"

    def bound() -> Any:
        return 1004 * EPS * np.abs(f64(x) - f64(y)).mean()

    return [
        Check("huber_loss", huber, label, bound),
        Check("l1_loss", absolute, label, bound),
        Check("smooth_l1_loss", smooth, label, bound),
    ]


def _binary_cross_entropy(at: Place) -> list[Check]:
    n = 1000
    x = at.normal((n,), 1, scale=3, grad=True)
    target = at.tensor((np.random.default_rng(2).random(n) < 0.5).astype(np.float32))
    loss = gf.binary_cross_entropy_with_logits(x, target)
    loss.backward()
    return [
        Check("binary_cross_entropy_with_logits", loss, "K eps mean (1 + |x|), K = 1000",
              lambda: times_size(n + 16, x).mean()),
        Check("binary_cross_entropy: gradient", x.grad, "16 eps (1 + |x|) / N", lambda: times_size(16, x) / n),
    ]  # fmt: skip


def _likelihoods(at: Place) -> list[Check]:
    """Means of K = 1000 logarithms and quotients, whose sizes are in the bounds."""
    n, rng = 1000, np.random.default_rng(1)
    p, target = at.tensor(rng.uniform(0.05, 0.95, n), grad=True), at.tensor(rng.uniform(0.05, 0.95, n))
    x, var = at.normal((n,), 2, grad=True), at.tensor(rng.uniform(0.5, 2.0, n), grad=True)
    binary, divergence = gf.binary_cross_entropy(p, target), gf.kl_div(x, target)
    gaussian = gf.gaussian_nll_loss(x, target, var)
    gf.add(binary, gaussian).backward()

    def mean_of(sizes: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (n + 16) * EPS * (1 + sizes()).mean()

    def quotient() -> Any:
        return (f64(x) - f64(target)) ** 2 / f64(var)

    label = "K eps mean of sizes, K = 1016"
    return [
        Check("binary_cross_entropy", binary, label, mean_of(lambda: -np.log(f64(p)) - np.log1p(-f64(p)))),
        Check("kl_div", divergence, label, mean_of(lambda: np.abs(np.log(f64(target))) + np.abs(f64(x)))),
        Check("gaussian_nll_loss", gaussian, label, mean_of(lambda: np.abs(np.log(f64(var))) + quotient())),
        Check("binary_cross_entropy of p: gradient", p.grad, "16 eps / (p (1 - p) N)",
              lambda: 16 * EPS / (f64(p) * (1 - f64(p)) * n)),
        Check("gaussian_nll_loss: gradient", x.grad, "8 ulp", 8.0),
        Check("gaussian_nll_loss: gradient of var", var.grad, "16 eps (1 + quotient) / (var N)",
              lambda: 16 * EPS * (1 + quotient()) / (f64(var) * n)),
    ]  # fmt: skip


# ---------------------------------------------------------------------- a model


def _model(at: Place) -> list[Check]:
    """Forward and backward pass with a running error: each layer adds the bound of its products to the error."""
    n, sizes = 50, [20, 64, 32, 4]
    x = at.normal((n, sizes[0]), 1)
    labels = at.tensor(np.random.default_rng(2).integers(0, sizes[-1], size=n))
    model = nn.MLP(sizes, "tanh", device=at.device, generator=gf.Generator(5)).to(at.dtype)
    logits = model(x)
    loss = gf.cross_entropy(logits, labels)
    loss.backward()
    bounds: dict[str, Any] = {}

    def bound(what: str) -> Callable[[], Any]:
        def of_this() -> Any:
            if not bounds:
                bounds.update(_running_errors(model, f64(x), host(labels)))
            return bounds[what]

        return of_this

    label = "running error, K eps (|A| @ |B|)"
    found = {"output": logits, "loss": loss}
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return [Check(what, value, label, bound(what)) for what, value in found.items()]


def _running_errors(model: Any, x: Any, labels: Any) -> dict[str, Any]:
    """Return bounds on the float32 errors of a tanh perceptron and its cross-entropy, from its float64 values.

    Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.3: each product has the error
    |E| @ |B| from its inputs and K eps (|A| @ |B|) of its own; tanh and softmax do not enlarge errors.
    """
    layers = [(name.removesuffix(".weight"), p) for name, p in model.named_parameters() if name.endswith("weight")]
    parameters = {name: f64(p) for name, p in model.named_parameters()}
    a, error = x, np.zeros_like(x)
    inputs = []
    for i, (name, _) in enumerate(layers):
        w, b = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        inputs.append((a, error))
        error = error @ np.abs(w).T + (w.shape[1] + 1) * EPS * (np.abs(a) @ np.abs(w).T + np.abs(b))
        a = a @ w.T + b
        if i < len(layers) - 1:
            a = np.tanh(a)
            error = error + 4 * EPS * np.abs(a)
    found = {"output": error}
    n, classes = a.shape
    shifted = a - a.max(axis=1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    each = -np.log(p[np.arange(n), labels])
    own = classes * EPS * (1 + np.ptp(a, axis=1, keepdims=True))
    worst = error.max(axis=1, keepdims=True)
    found["loss"] = (2 * worst + own).mean() + n * EPS * each.mean()
    g, error = (p - np.eye(classes)[labels]) / n, (2 * p * worst + own) / n
    for (name, _), (a, of_input) in zip(reversed(layers), reversed(inputs), strict=True):
        w, size = parameters[f"{name}.weight"], np.abs(g)
        found[f"gradient of {name}.weight"] = error.T @ (np.abs(a) + of_input) + size.T @ of_input
        found[f"gradient of {name}.weight"] += n * EPS * (size.T @ np.abs(a))
        found[f"gradient of {name}.bias"] = error.sum(axis=0) + n * EPS * size.sum(axis=0)
        slope = 1 - a**2
        error = error @ np.abs(w) + w.shape[0] * EPS * (size @ np.abs(w))
        g = g @ w
        error = error * slope + np.abs(g) * (2 * np.abs(a) * of_input + 4 * EPS)
        g = g * slope
    return found
