"""Single operations and their gradients, and random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import gradflow as gf
from gradflow import nn
from gradflow.backend import ACTIVATIONS
from gradflow.testing.tolerances import product_bound, sum_bound
from gradflow.testing.workloads.workload import EPS, Check, Place, Workload, f64, times_size


def workloads() -> Iterator[Workload]:
    """Yield the workloads of this file."""
    yield Workload("element by element", _exact_elementwise, exact=True)
    for name in ("add", "subtract", "multiply", "divide", "square", "sqrt"):
        yield Workload("element by element", partial(_elementwise, name, 1))
    for name in ("exp", "log", "log1p", "expm1", "sin", "cos", "tanh", "sigmoid", "power", *_FURTHER):
        yield Workload("element by element", partial(_elementwise, name, 4))
    for name in ("leaky_relu", "elu", "selu", "gelu", "gelu_exact", "silu", "mish", "softplus", "softsign", "hardtanh"):
        yield Workload("activations", partial(_activation, name))
    yield Workload("activations", _gated)
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
    for name in ("abs", "negative", "sign", "floor", "ceil", "round", "trunc"):
        found[name] = partial(getattr(gf, name), x * 2)
    for name in ("maximum", "minimum", "equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
        found[name] = partial(getattr(gf, name), a, b)
    for name in ("isfinite", "isinf", "isnan"):
        found[name] = partial(getattr(gf, name), special)
    for name in ("logical_and", "logical_or", "logical_xor"):
        found[name] = partial(getattr(gf, name), x > 0, y > 0)
    found["logical_not"] = lambda: gf.logical_not(x > 0)
    found["floor_divide"] = lambda: a // (gf.abs(b) + 0.75)
    found["remainder"] = lambda: gf.round(a % (gf.abs(b) + 1))
    found["clip"] = lambda: gf.clip(x, -0.5, 1.0)
    found["where"] = lambda: gf.where(y > 0, x, 0.0)
    found["astype int32"] = lambda: gf.astype(x * 100, "int32")
    found["relu"] = lambda: gf.relu(x)
    found["relu: gradient"] = gradient_of_relu
    return [Check(name, value) for name, value in found.items()]


_FURTHER = ("log2", "log10", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh")
_BINARY = {"add", "subtract", "multiply", "divide", "power", "atan2"}
_OF_POSITIVE = {"log", "log1p", "sqrt", "power", "log2", "log10"}


def _elementwise(name: str, ulps: float, at: Place) -> list[Check]:
    values = np.random.default_rng(1).normal(size=4096) * 3
    values = np.abs(values) if name in _OF_POSITIVE else np.tanh(values / 3) if name in ("asin", "acos") else values
    x = at.tensor(values, grad=True)
    g = at.normal((4096,), 2)
    out = getattr(gf, name)(x, at.normal((4096,), 3)) if name in _BINARY else getattr(gf, name)(x)
    out.backward(g)

    def bound() -> Any:  # the gradient rule is a few operations with results of at most |g| or |g f'(x)|
        return 16 * EPS * np.maximum(np.abs(f64(g)), np.abs(f64(x.grad)))

    return [
        Check(name, out, f"{ulps:g} ulp", ulps),
        Check(f"{name}: gradient", x.grad, "16 eps max(|g|, |g f'|)", bound),
    ]


def _activation(name: str, at: Place) -> list[Check]:
    """About ten operations each, whose intermediate values are at most 1 + |x|^3: the bound is 16 eps times that."""
    x, g = at.normal((4096,), 1, scale=2, grad=True), at.normal((4096,), 2)
    out = gf.gelu(x, approximate="none") if name == "gelu_exact" else getattr(gf, name)(x)
    out.backward(g)
    power = 3 if name == "gelu" else 1
    size = "(1 + |x|^3)" if name == "gelu" else "(1 + |x|)"
    return [
        Check(name, out, f"16 eps {size}", lambda: times_size(16, x, power)),
        Check(
            f"{name}: gradient", x.grad, f"16 eps {size} |g|", lambda: times_size(16, x, power) * np.abs(f64(g))
        ),
    ]  # fmt: skip


def _gated(at: Place) -> list[Check]:
    """A product with the sigmoid of the other half; and one with a weight of each column, which adds up K = 50 rows."""
    x, g = at.normal((50, 40), 1, grad=True), at.normal((50, 20), 2)
    gated = gf.glu(x)
    gated.backward(g)
    y, weight = at.normal((50, 40), 3, grad=True), at.tensor(np.linspace(-1, 1, 40), grad=True)
    sloped = gf.prelu(y, weight)
    sloped.backward(at.normal((50, 40), 4))

    def of_gradient() -> Any:
        a, v = np.abs(f64(x)[:, :20]), np.abs(f64(g))
        return 16 * EPS * np.concatenate([v, v * a], axis=1)

    def of_weight() -> Any:
        return sum_bound(np.minimum(f64(y), 0) * f64(at.normal((50, 40), 4)), axis=0)

    return [
        Check("glu", gated, "16 eps |a|", lambda: 16 * EPS * np.abs(f64(x)[:, :20])),
        Check("glu: gradient", x.grad, "16 eps |g| max(1, |a|)", of_gradient),
        Check("prelu", sloped, "1 ulp", 1.0),
        Check("prelu: gradient of x", y.grad, "1 ulp", 1.0),
        Check("prelu: gradient of the weight", weight.grad, "K eps sum|g x|, K = 50", of_weight),
    ]


# ---------------------------------------------------------------------- reductions


def _exact_reductions(at: Place) -> list[Check]:
    x = gf.round(at.normal((40, 50), 1) * 3)  # with ties
    found: dict[str, Callable[[], Any]] = {}
    for name in ("max", "min", "argmax", "argmin"):
        found[name] = partial(getattr(gf, name), x, axis=1)
    for name in ("any", "all"):
        found[name] = partial(getattr(gf, name), x > 5, axis=0)
    found["argsort"] = lambda: gf.argsort(x, axis=1)
    found["sort, descending"] = lambda: gf.sort(x, axis=0, descending=True)
    found["topk"] = lambda: gf.concat([part.astype("float32") for part in gf.topk(x, 7, axis=1)], axis=1)
    found["median"] = lambda: gf.median(x, axis=1)
    found["largest norm"] = lambda: gf.norm(x, np.inf, axis=0)
    found["argsort, descending"] = lambda: gf.argsort(x, axis=0, descending=True)
    found["sum of integers"] = lambda: gf.sum(gf.astype(x, "int32"), axis=0)
    return [Check(name, value) for name, value in found.items()]


def _reductions(at: Place) -> list[Check]:
    """K = 257 terms in each sum. A variance is a mean of squares, whose terms have the error of the mean."""
    x = at.normal((33, 257), 1) + 0.5
    a, k = np.abs(f64(x)), 257
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
            lambda: spread / (2 * f64(x).std(axis=1)) + 2 * EPS * f64(x).std(axis=1),
        ),
        Check("norm", gf.norm(x, axis=1), "K eps norm", lambda: k * EPS * np.linalg.norm(f64(x), axis=1)),
        Check("cumulative_prod", gf.cumulative_prod(factors, axis=1), "K eps |prod|, K = 8",
              lambda: 8 * EPS * np.abs(np.cumprod(f64(factors), axis=1))),
        Check("prod", gf.prod(factors, axis=1), "K eps |prod|, K = 8",
              lambda: 8 * EPS * np.abs(f64(factors).prod(axis=1))),
        Check("cumulative_sum", gf.cumulative_sum(x, axis=1), label, lambda: k * EPS * np.cumsum(a, axis=1)),
        Check(
            "logsumexp", gf.logsumexp(x, axis=1), "K eps (1 + range)",
            lambda: k * EPS * (1 + np.ptp(f64(x), axis=1)),
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
        "gather": lambda: gf.gather(x, order[:3], axis=1),
        "scatter": lambda: gf.scatter(x, gf.argsort(x[:, :3], axis=1), 1.0, axis=1),
        "x.at[integers].set": lambda: x.at[rows[1:]].set(x[:3]),
        "masked_fill": lambda: gf.masked_fill(x, x > 0, -1.0),
        "tril": lambda: gf.tril(x, 1),
        "roll": lambda: gf.roll(x, (2, -3), axis=(0, 2)),
    }
    return [Check(name, value) for name, value in found.items()]


def _scatter(at: Place) -> list[Check]:
    """The gradient of a selection adds up repeated elements; the bound assumes that all selections hit one element."""
    rows = np.random.default_rng(1).integers(0, 5, size=40)
    x, g = at.normal((5, 6), 1, grad=True), at.normal((40, 6), 2)
    gf.take(x, at.tensor(rows), axis=0).backward(g)

    def bound() -> Any:
        total = np.zeros((5, 6))
        np.add.at(total, rows, np.abs(f64(g)))
        return len(rows) * EPS * total

    return [Check("take: gradient", x.grad, "K eps sum|g|, K = 40", bound)]


# ---------------------------------------------------------------------- products


def _matmul(left: tuple[int, ...], right: tuple[int, ...], at: Place) -> list[Check]:
    a, b = at.normal(left, 1), at.normal(right, 2)
    name = " @ ".join("x".join(map(str, shape)) for shape in (left, right))
    return [Check(name, gf.matmul(a, b), f"K eps (|A| @ |B|), K = {left[-1]}", lambda: product_bound(a, b))]


def _linear(at: Place) -> list[Check]:
    """A product with one more term for the bias; each gradient is a product too."""
    n, k, m = 64, 784, 100
    x, g = at.normal((n, k), 1, grad=True), at.normal((n, m), 2)
    layer = nn.Linear(k, m, device=at.device, generator=gf.Generator(3)).to(at.dtype)
    bias = layer.bias
    assert bias is not None
    out = layer(x)
    out.backward(g)

    def of_output() -> Any:
        a, w, b = f64(x), f64(layer.weight), f64(bias)
        return product_bound(np.c_[a, np.ones(n)], np.c_[w, b].T)

    label = "K eps (|A| @ |B|), K = {}"
    return [
        Check(f"linear {k}-{m}", out, label.format(k + 1), of_output),
        Check("linear: gradient of x", x.grad, label.format(m), lambda: product_bound(g, layer.weight)),
        Check(
            "linear: gradient of the weight", layer.weight.grad, label.format(n), lambda: product_bound(f64(g).T, x)
        ),
        Check("linear: gradient of the bias", bias.grad, f"K eps sum|g|, K = {n}", lambda: sum_bound(g, axis=0)),
    ]  # fmt: skip


def _fused(name: str, at: Place) -> list[Check]:
    """The error of the product, which an activation multiplies by at most 1.2, plus that of the activation."""
    x, weight, bias = at.normal((20, 33), 1), at.normal((17, 33), 2, scale=0.2), at.normal((17,), 3)
    out = gf.linear(x, weight, bias, name)

    def bound() -> Any:
        a, w = np.c_[f64(x), np.ones(20)], np.c_[f64(weight), f64(bias)].T
        return 1.2 * product_bound(a, w) + times_size(16, a @ w, 3 if name == "gelu" else 1)

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
    return [Check("dropout: values", out, "2 ulp", 2.0)]  # two roundings: 1 / (1 - p), and its product with x
