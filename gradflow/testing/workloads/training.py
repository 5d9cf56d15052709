"""What `gradflow agree` runs on each device: operations, a model's forward and backward, short training runs.

A workload is a function of a `Place` that returns `Check`s: results, each with its kind of bound. It runs on the two
devices and, for the reference, on the CPU; the bounds are computed there, from float64 values. Inputs are rounded to
float32 first, so that all places compute from the same numbers. Generators are the workload's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import gradflow as gf
from gradflow import nn, optim
from gradflow.backend import ACTIVATIONS
from gradflow.testing.tolerances import eps, host, product_bound, sum_bound

EPS = eps("float32")


class Place(NamedTuple):
    """Where a workload runs: a device, and the dtype of its floating-point numbers."""

    device: str
    dtype: str = "float32"

    def tensor(self, values: Any, grad: bool = False) -> gf.Tensor:
        """A tensor of the values here; floating-point ones are rounded to float32, then in the place's dtype."""
        values = np.asarray(values)
        if values.dtype.kind == "f":
            values = values.astype(np.float32).astype(self.dtype)
        return gf.tensor(values, device=self.device, requires_grad=grad)

    def normal(self, shape: tuple[int, ...], seed: int, scale: float = 1.0, grad: bool = False) -> gf.Tensor:
        """Normally distributed numbers, the same at every place."""
        return self.tensor(np.random.default_rng(seed).normal(size=shape) * scale, grad)


class Check(NamedTuple):
    """A result to be judged: what it is, its value, and the bound on its error.

    The value may be a function that gives it, so that one that raises does not take the others with it. The bound is
    None for equality to the bit, a number for so many ulp, or a function that gives the largest error allowed for each
    element, which only the reference calls. `label` is the bound in words.
    """

    what: str
    value: Any
    label: str = "exact"
    bound: float | Callable[[], Any] | None = None


@dataclass(frozen=True)
class Workload:
    """A group of the table, and the function that gives its checks. `exact`: the reference is of the same dtype."""

    group: str
    run: Callable[[Place], list[Check]]
    exact: bool = False


def workloads() -> Iterator[Workload]:
    """All workloads, in the order of the table."""
    yield Workload("element by element", _exact_elementwise, exact=True)
    for name in ("add", "subtract", "multiply", "divide", "square", "sqrt"):
        yield Workload("element by element", partial(_elementwise, name, 1))
    for name in ("exp", "log", "log1p", "expm1", "sin", "cos", "tanh", "sigmoid", "power"):
        yield Workload("element by element", partial(_elementwise, name, 4))
    for name in ("leaky_relu", "elu", "gelu", "silu", "softplus"):
        yield Workload("activations", partial(_activation, name))
    yield Workload("reductions", _exact_reductions, exact=True)
    yield Workload("reductions", _reductions)
    yield Workload("selection and moves", _selection, exact=True)
    yield Workload("selection and moves", _scatter)
    for shapes in (((1, 1), (1, 1)), ((7, 784), (784, 100)), ((64, 3072), (3072, 10)), ((5, 33, 65), (5, 65, 17))):
        yield Workload("products", partial(_matmul, *shapes))
    yield Workload("products", _linear)
    for name in ACTIVATIONS:
        yield Workload("products", partial(_fused, name))
    yield Workload("random numbers", _random, exact=True)
    yield Workload("random numbers", _dropout_values)
    yield Workload("normalisation and losses", _softmax)
    yield Workload("normalisation and losses", _layer_norm)
    for loss in (_cross_entropy, _squared_error, _absolute_errors, _binary_cross_entropy):
        yield Workload("normalisation and losses", loss)
    yield Workload("a perceptron of 20-64-32-4", _model)
    for name in OPTIMIZERS:
        yield Workload("optimizers", partial(_optimizer, name))
    yield Workload(f"training, {STEPS} steps", _start_of_training, exact=True)
    for name in OPTIMIZERS:
        yield Workload(f"training, {STEPS} steps", partial(_training, name))
    yield Workload(f"training, {STEPS} steps", _moved_training)


def _f64(x: Any) -> Any:
    return host(x).astype(np.float64)


def _times_size(factor: float, x: Any, power: int = 1) -> Any:
    return factor * EPS * (1 + np.abs(_f64(x)) ** power)


# ---------------------------------------------------------------------- element by element


def _exact_elementwise(at: Place) -> list[Check]:
    x, y = at.normal((40, 50), 1), at.normal((40, 50), 2)
    a, b = gf.round(x * 2), gf.round(y * 2)  # whole numbers, with ties
    special = at.tensor([0.0, -0.0, 1.5, np.inf, -np.inf, np.nan])

    def gradient_of_relu() -> Any:
        leaf = x.detach().requires_grad_()
        gf.relu(leaf).backward(y)
        return leaf.grad

    found: dict[str, Callable[[], Any]] = {}
    for name in ("abs", "negative", "sign", "floor", "ceil", "round"):
        found[name] = partial(getattr(gf, name), x * 2)
    for name in ("maximum", "minimum", "equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
        found[name] = partial(getattr(gf, name), a, b)
    for name in ("isfinite", "isinf", "isnan"):
        found[name] = partial(getattr(gf, name), special)
    for name in ("logical_and", "logical_or", "logical_xor"):
        found[name] = partial(getattr(gf, name), x > 0, y > 0)
    found["logical_not"] = lambda: gf.logical_not(x > 0)
    found["clip"] = lambda: gf.clip(x, -0.5, 1.0)
    found["where"] = lambda: gf.where(y > 0, x, 0.0)
    found["astype int32"] = lambda: gf.astype(x * 100, "int32")
    found["relu"] = lambda: gf.relu(x)
    found["relu: gradient"] = gradient_of_relu
    return [Check(name, value) for name, value in found.items()]


_BINARY = {"add", "subtract", "multiply", "divide", "power"}
_OF_POSITIVE = {"log", "log1p", "sqrt", "power"}


def _elementwise(name: str, ulps: float, at: Place) -> list[Check]:
    values = np.random.default_rng(1).normal(size=4096) * 3
    x = at.tensor(np.abs(values) if name in _OF_POSITIVE else values, grad=True)
    g = at.normal((4096,), 2)
    out = getattr(gf, name)(x, at.normal((4096,), 3)) if name in _BINARY else getattr(gf, name)(x)
    out.backward(g)

    def bound() -> Any:  # the rule of the gradient is a few operations, none with a result above g or g f'(x)
        return 16 * EPS * np.maximum(np.abs(_f64(g)), np.abs(_f64(x.grad)))

    return [
        Check(name, out, f"{ulps:g} ulp", ulps),
        Check(f"{name}: gradient", x.grad, "16 eps max(|g|, |g f'|)", bound),
    ]


def _activation(name: str, at: Place) -> list[Check]:
    """Some ten operations each, none of whose intermediate values is above 1 + |x|^3: 16 eps times that."""
    x, g = at.normal((4096,), 1, scale=2, grad=True), at.normal((4096,), 2)
    out = getattr(gf, name)(x)
    out.backward(g)
    power = 3 if name == "gelu" else 1
    size = "(1 + |x|^3)" if name == "gelu" else "(1 + |x|)"
    return [
        Check(name, out, f"16 eps {size}", lambda: _times_size(16, x, power)),
        Check(
            f"{name}: gradient", x.grad, f"16 eps {size} |g|", lambda: _times_size(16, x, power) * np.abs(_f64(g))
        ),
    ]  # fmt: skip


# ---------------------------------------------------------------------- reductions


def _exact_reductions(at: Place) -> list[Check]:
    x = gf.round(at.normal((40, 50), 1) * 3)  # with ties
    found: dict[str, Callable[[], Any]] = {}
    for name in ("max", "min", "argmax", "argmin"):
        found[name] = partial(getattr(gf, name), x, axis=1)
    for name in ("any", "all"):
        found[name] = partial(getattr(gf, name), x > 5, axis=0)
    found["argsort"] = lambda: gf.argsort(x, axis=1)
    found["argsort, descending"] = lambda: gf.argsort(x, axis=0, descending=True)
    found["sum of integers"] = lambda: gf.sum(gf.astype(x, "int32"), axis=0)
    return [Check(name, value) for name, value in found.items()]


def _reductions(at: Place) -> list[Check]:
    """K = 257 terms in each sum. A variance is a mean of squares whose terms are off by the error of the mean."""
    x = at.normal((33, 257), 1) + 0.5
    a, k = np.abs(_f64(x)), 257
    spread = 3 * (k + 4) * EPS * ((a + a.mean(axis=1, keepdims=True)) ** 2).mean(axis=1)
    factors = at.tensor(1 + np.random.default_rng(2).normal(size=(100, 8)) / 4)
    label = f"K eps sum|x|, K = {k}"
    return [
        Check("sum over all", gf.sum(x), f"K eps sum|x|, K = {a.size}", lambda: sum_bound(x)),
        Check("sum over axis 0", gf.sum(x, axis=0), "K eps sum|x|, K = 33", lambda: sum_bound(x, axis=0)),
        Check("sum over axis 1", gf.sum(x, axis=1), label, lambda: sum_bound(x, axis=1)),
        Check("mean", gf.mean(x, axis=1), "K eps mean|x|", lambda: sum_bound(x, axis=1) / k + EPS * a.mean(axis=1)),
        Check("var", gf.var(x, axis=1), "3 K eps mean (|x| + mean|x|)^2", lambda: spread),
        Check(
            "std", gf.std(x, axis=1), "that of var / (2 std)",
            lambda: spread / (2 * _f64(x).std(axis=1)) + 2 * EPS * _f64(x).std(axis=1),
        ),
        Check("prod", gf.prod(factors, axis=1), "K eps |prod|, K = 8",
              lambda: 8 * EPS * np.abs(_f64(factors).prod(axis=1))),
        Check("cumulative_sum", gf.cumulative_sum(x, axis=1), label, lambda: k * EPS * np.cumsum(a, axis=1)),
        Check(
            "logsumexp", gf.logsumexp(x, axis=1), "K eps (1 + range)",
            lambda: k * EPS * (1 + np.ptp(_f64(x), axis=1)),
        ),
    ]  # fmt: skip


# ---------------------------------------------------------------------- selection and moves


def _selection(at: Place) -> list[Check]:
    x = at.normal((6, 7, 8), 1)
    rows = at.tensor(np.array([3, 1, 3, 0]))
    order = at.tensor(np.random.default_rng(2).integers(0, 7, size=(6, 3, 8)))
    labels = at.tensor(np.array([2, 0, 4], dtype=np.uint8))

    def changed() -> Any:
        y = at.normal((6, 7, 8), 1)
        y[1:3, ::2] = 0.0
        return y

    found = {
        "to the host and back": lambda: at.tensor(x.numpy()),
        "reshape of a transposed": lambda: gf.reshape(gf.permute_dims(x, (2, 0, 1)), (8, 42)),
        "matrix_transpose": lambda: gf.matrix_transpose(x),
        "broadcast_to": lambda: gf.broadcast_to(x[:, :1], (6, 7, 8)),
        "concat": lambda: gf.concat([x, x[:2]], axis=0),
        "stack": lambda: gf.stack([x, x * 2], axis=1),
        "flip": lambda: gf.flip(x, axis=(0, 2)),
        "take": lambda: gf.take(x, rows, axis=0),
        "take_along_axis": lambda: gf.take_along_axis(x, order, axis=1),
        "x[slices]": lambda: x[1:5:2, 2:, None, ..., 3],
        "x[::-1]": lambda: x[:, ::-1],
        "x[integers]": lambda: x[rows, rows],
        "x[booleans]": lambda: x[x > 0],
        "x[slices] = 0": changed,
        "one_hot": lambda: gf.one_hot(labels, 5),
    }
    return [Check(name, value) for name, value in found.items()]


def _scatter(at: Place) -> list[Check]:
    """The gradient of a selection adds what was selected often; the bound takes all selections for one element."""
    rows = np.random.default_rng(1).integers(0, 5, size=40)
    x, g = at.normal((5, 6), 1, grad=True), at.normal((40, 6), 2)
    gf.take(x, at.tensor(rows), axis=0).backward(g)

    def bound() -> Any:
        total = np.zeros((5, 6))
        np.add.at(total, rows, np.abs(_f64(g)))
        return len(rows) * EPS * total

    return [Check("take: gradient", x.grad, "K eps sum|g|, K = 40", bound)]


# ---------------------------------------------------------------------- products


def _matmul(left: tuple[int, ...], right: tuple[int, ...], at: Place) -> list[Check]:
    a, b = at.normal(left, 1), at.normal(right, 2)
    name = " @ ".join("x".join(map(str, shape)) for shape in (left, right))
    return [Check(name, gf.matmul(a, b), f"K eps (|A| @ |B|), K = {left[-1]}", lambda: product_bound(a, b))]


def _linear(at: Place) -> list[Check]:
    """A product and a term more for the bias; each gradient is a product too."""
    n, k, m = 64, 784, 100
    x, g = at.normal((n, k), 1, grad=True), at.normal((n, m), 2)
    layer = nn.Linear(k, m, device=at.device, generator=gf.Generator(3)).to(at.dtype)
    bias = layer.bias
    assert bias is not None
    out = layer(x)
    out.backward(g)

    def of_output() -> Any:
        a, w, b = _f64(x), _f64(layer.weight), _f64(bias)
        return product_bound(np.c_[a, np.ones(n)], np.c_[w, b].T)

    label = "K eps (|A| @ |B|), K = {}"
    return [
        Check(f"linear {k}-{m}", out, label.format(k + 1), of_output),
        Check("linear: gradient of x", x.grad, label.format(m), lambda: product_bound(g, layer.weight)),
        Check(
            "linear: gradient of the weight", layer.weight.grad, label.format(n), lambda: product_bound(_f64(g).T, x)
        ),
        Check("linear: gradient of the bias", bias.grad, f"K eps sum|g|, K = {n}", lambda: sum_bound(g, axis=0)),
    ]  # fmt: skip


def _fused(name: str, at: Place) -> list[Check]:
    """The error of the product, which no activation expands by more than 1.2, and that of the activation."""
    x, weight, bias = at.normal((20, 33), 1), at.normal((17, 33), 2, scale=0.2), at.normal((17,), 3)
    out = gf.linear(x, weight, bias, name)

    def bound() -> Any:
        a, w = np.c_[_f64(x), np.ones(20)], np.c_[_f64(weight), _f64(bias)].T
        return 1.2 * product_bound(a, w) + _times_size(16, a @ w, 3 if name == "gelu" else 1)

    return [Check(f"linear with {name}", out, "K eps (|A| @ |B|), K = 34", bound)]


# ---------------------------------------------------------------------- random numbers


def _random(at: Place) -> list[Check]:
    backend = gf.get_backend(at.device)

    def bits(key: int, counter: int, n: int) -> Any:
        return backend.to_host(backend.random_bits(key, counter, n))

    def weights() -> Any:
        model = nn.MLP([7, 33, 5], device=at.device, generator=gf.Generator(5))
        return gf.concat([gf.reshape(p.detach(), (-1,)) for p in model.parameters()])

    def dropped() -> tuple[Any, Any]:
        x = at.tensor(np.ones((31, 33)), grad=True)
        out = gf.dropout(x, 0.3, generator=gf.Generator(9))
        out.sum().backward()
        return out != 0, x.grad != 0

    def number(draw: Callable[..., Any], shape: Any, **options: Any) -> Any:
        return draw(shape, device=at.device, generator=gf.Generator(1), **options)

    found = {
        "random bits": lambda: bits(0, 0, 1001),
        "random bits, far in the stream": lambda: bits(2**128 - 1, 2**64 - 3, 40),
        "uniform": lambda: number(gf.random.uniform, (1001,), low=-1, high=2),
        "normal": lambda: number(gf.random.normal, (1001,)),
        "permutation": lambda: number(gf.random.permutation, 1001),
        "initial weights": weights,
        "dropout: mask": lambda: dropped()[0],
        "dropout: mask of the gradient": lambda: dropped()[1],
    }
    return [Check(name, value) for name, value in found.items()]


def _dropout_values(at: Place) -> list[Check]:
    out = gf.dropout(at.normal((31, 33), 1), 0.3, generator=gf.Generator(9))
    return [Check("dropout: values", out, "2 ulp", 2.0)]  # two roundings: of 1 / (1 - p), and of its product with x


# ---------------------------------------------------------------------- normalisation and losses


def _softmax(at: Place) -> list[Check]:
    """The exponent is off by eps times its size, at most the range of x, and the sum by C eps, C = 10."""
    x = at.normal((200, 10), 1, scale=5)
    soft, log = gf.softmax(x, axis=-1), gf.log_softmax(x, axis=-1)

    def relative() -> Any:
        return (10 + 4 + np.ptp(_f64(x), axis=1, keepdims=True)) * EPS

    return [
        Check("softmax", soft, "(C + 4 + range) eps p", lambda: relative() * _f64(soft)),
        Check("log_softmax", log, "(C + 4 + range) eps", lambda: relative() + 0 * _f64(log)),
    ]


def _layer_norm(at: Place) -> list[Check]:
    """Means of K = 257 terms: K eps times the largest deviation bounds the error of what is divided by the root."""
    k = 257
    x, g = at.tensor(np.random.default_rng(1).normal(size=(30, k)) + 0.5, grad=True), at.normal((30, k), 2)
    weight = at.tensor(np.ones(k), grad=True)
    out = gf.layer_norm(x, (k,), weight, at.tensor(np.zeros(k)))
    out.backward(g)

    def sizes() -> tuple[Any, Any, Any, Any]:
        a, v = _f64(x), _f64(g)
        scale = 1 / np.sqrt(a.var(axis=1, keepdims=True) + 1e-5)
        return v, (a - a.mean(axis=1, keepdims=True)) * scale, np.abs(a).max(axis=1, keepdims=True) * scale, scale

    def of_output() -> Any:
        _, normal, size, _ = sizes()
        return k * EPS * (size + np.abs(normal))

    def of_gradient() -> Any:
        v, normal, size, scale = sizes()
        return k * EPS * np.abs(v).max(axis=1, keepdims=True) * scale * (1 + np.abs(normal)) * (1 + size)

    def of_weight() -> Any:
        v, normal, size, _ = sizes()
        return sum_bound(v * normal, axis=0) + k * EPS * (np.abs(v) * (size + np.abs(normal))).sum(axis=0)

    label = f"K eps (largest deviation), K = {k}"
    return [
        Check("layer_norm", out, label, of_output),
        Check("layer_norm: gradient of x", x.grad, label, of_gradient),
        Check("layer_norm: gradient of the weight", weight.grad, label, of_weight),
    ]


def _cross_entropy(at: Place) -> list[Check]:
    """Each loss within C eps (1 + the range of its logits), C = 10 classes; gradients are shares, at most 1/N."""
    n, classes = 200, 10
    x = at.normal((n, classes), 1, scale=10, grad=True)
    labels = at.tensor(np.random.default_rng(2).integers(0, classes, size=n))
    each = gf.cross_entropy(x, labels, reduction="none")
    loss = gf.cross_entropy(x, labels)
    loss.backward()

    def of_each() -> Any:
        return classes * EPS * (1 + np.ptp(_f64(x), axis=1))

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
              lambda: 1004 * EPS * ((_f64(x) - _f64(y)) ** 2).mean()),
        Check("mse_loss: gradient", x.grad, "4 ulp", 4.0),
    ]  # fmt: skip


def _absolute_errors(at: Place) -> list[Check]:
    x, y = at.normal((20, 50), 1, grad=True), at.normal((20, 50), 2)
    huber, absolute = gf.huber_loss(x, y), gf.l1_loss(x, y)
    label = "K eps mean|x - y|, K = 1004"

    def bound() -> Any:
        return 1004 * EPS * np.abs(_f64(x) - _f64(y)).mean()

    return [Check("huber_loss", huber, label, bound), Check("l1_loss", absolute, label, bound)]


def _binary_cross_entropy(at: Place) -> list[Check]:
    n = 1000
    x = at.normal((n,), 1, scale=3, grad=True)
    target = at.tensor((np.random.default_rng(2).random(n) < 0.5).astype(np.float32))
    loss = gf.binary_cross_entropy_with_logits(x, target)
    loss.backward()
    return [
        Check("binary_cross_entropy_with_logits", loss, "K eps mean (1 + |x|), K = 1000",
              lambda: _times_size(n + 16, x).mean()),
        Check("binary_cross_entropy: gradient", x.grad, "16 eps (1 + |x|) / N", lambda: _times_size(16, x) / n),
    ]  # fmt: skip


# ---------------------------------------------------------------------- a model


def _model(at: Place) -> list[Check]:
    """Forward and backward, with a running error: each layer adds the bound of its products to what it was given."""
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
                bounds.update(_running_errors(model, _f64(x), host(labels)))
            return bounds[what]

        return of_this

    label = "running error, K eps (|A| @ |B|)"
    found = {"output": logits, "loss": loss}
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return [Check(what, value, label, bound(what)) for what, value in found.items()]


def _running_errors(model: Any, x: Any, labels: Any) -> dict[str, Any]:
    """Bounds on the float32 errors of a tanh perceptron and its cross-entropy, from its float64 values.

    Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.3: with each product, |E| @ |B| of the
    errors so far and K eps (|A| @ |B|) of its own; tanh and softmax do not expand errors.
    """
    layers = [(name.removesuffix(".weight"), p) for name, p in model.named_parameters() if name.endswith("weight")]
    parameters = {name: _f64(p) for name, p in model.named_parameters()}
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


# ---------------------------------------------------------------------- optimizers and training

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=1e-3),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.005, momentum=0.5),
}

INPUTS, CLASSES, SAMPLES, BATCH, EPOCHS = 20, 4, 160, 32, 4
STEPS = EPOCHS * SAMPLES // BATCH


def _optimizer(name: str, at: Place) -> list[Check]:
    """Some ten roundings in each of 10 steps, of numbers below 2: 10 * 10 eps * 2. Gradients are kept off 0, where the
    quotient of Adam and RMSprop would be of rounding errors."""
    p = at.normal((1000,), 1, grad=True)
    optimizer = OPTIMIZERS[name]([p])
    for step in range(10):
        g = np.random.default_rng(step + 2).normal(size=1000)
        p.grad = at.tensor(np.sign(g) * (np.abs(g) + 0.1))
        optimizer.step()
    return [Check(f"10 steps of {name}", p, "200 eps max(1, |p|)", lambda: 200 * EPS * np.maximum(1, np.abs(_f64(p))))]


class Run:
    """A training run with everything that draws random numbers: weights, shuffles and dropout, of one generator."""

    def __init__(self, at: Place, optimizer: str, seed: int = 5) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(SAMPLES, INPUTS))
        labels = (x @ rng.normal(size=(INPUTS, CLASSES))).argmax(axis=1)
        self.device = at.device
        self.generator = gf.Generator(seed)
        first = nn.MLP([INPUTS, 32, 32], "tanh", 0.2, device=at.device, generator=self.generator)
        last = nn.Linear(32, CLASSES, device=at.device, generator=self.generator)
        self.model = nn.Sequential(first, nn.LayerNorm(32, device=at.device), nn.ReLU(), last).to(at.dtype)
        self.x, self.labels = at.tensor(x), at.tensor(labels)
        rate = optim.schedules.warmup(optim.schedules.cosine(0.05 if optimizer == "sgd" else 0.005, STEPS), 5)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.optimizer.param_groups[0]["lr"] = rate

    def losses(self, epochs: int = EPOCHS) -> Any:
        """Train for some epochs; the loss of each step."""
        losses = []
        for _ in range(epochs):
            order = gf.random.permutation(SAMPLES, device=self.device, generator=self.generator)
            for start in range(0, SAMPLES, BATCH):
                rows = order[start : start + BATCH]
                self.optimizer.zero_grad()
                logits = self.model(gf.take(self.x, rows, axis=0))
                loss = gf.cross_entropy(logits, gf.take(self.labels, rows, axis=0))
                loss.backward()
                optim.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                losses.append(loss.detach())
        return gf.stack(losses)

    def state(self) -> dict[str, Any]:
        """All that decides how the run goes on."""
        return {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "generator")}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from the state of another run."""
        for name, content in state.items():
            getattr(self, name).load_state_dict(content)


def _start_of_training(at: Place) -> list[Check]:
    run = Run(at, "sgd")
    weights = gf.concat([gf.reshape(p.detach(), (-1,)) for p in run.model.parameters()])
    return [
        Check("weights before the first step", weights),
        Check("the first shuffle", gf.random.permutation(SAMPLES, device=at.device, generator=run.generator)),
    ]


def _of_losses(losses: Any) -> Any:
    """In each step the sums, of at most K = 33 terms in each of 3 layers, forward and backward, are off by K eps at
    worst, and at these rates a step does not expand differences."""
    return STEPS * 6 * 33 * EPS * np.abs(_f64(losses))


def _training(optimizer: str, at: Place) -> list[Check]:
    losses = Run(at, optimizer).losses()
    return [Check(f"losses with {optimizer}", losses, "6 K eps loss x steps, K = 33", lambda: _of_losses(losses))]


def _moved_training(at: Place) -> list[Check]:
    """The first half of a run on the CPU and the second here, and the other way round."""

    def losses(first: Place, second: Place) -> Any:
        start, rest = Run(first, "adam"), Run(second, "adam")
        before = host(start.losses(EPOCHS // 2))
        rest.load(start.state())
        return np.concatenate([before, host(rest.losses(EPOCHS - EPOCHS // 2))])

    cpu = at._replace(device="cpu")
    found = {"moved from the CPU midway": losses(cpu, at), "moved to the CPU midway": losses(at, cpu)}
    return [
        Check(what, values, "6 K eps loss x steps, K = 33", partial(_of_losses, values))
        for what, values in found.items()
    ]  # fmt: skip
