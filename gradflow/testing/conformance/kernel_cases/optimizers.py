"""The cases of `test_kernels`: calls of every kernel, each with the bound that its formula gives."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradflow.backend import ACTIVATIONS
from gradflow.testing.conformance.harness import REFERENCE, Case, cast
from gradflow.testing.tolerances import eps, product_bound, sum_bound

WIDE = ("float32", "float64")

# ---------------------------------------------------------------------- cases: activations and rows


def normal(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> Any:
    return np.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape) * scale)


def name_of(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "0d"


SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 80.0, -80.0, 1e-6, -1e-6, 3.0, -3.0])
PARAMETERS = [*((name, ACTIVATIONS[name].parameter) for name in ACTIVATIONS), ("leaky_relu", 0.3), ("elu", 0.7)]


def activation_bound(e: float, x: Any, name: str, parameter: float) -> Sequence[Any]:
    # the tanh form of GELU adds 1 and tanh, which nearly cancel for negative x
    value = np.abs(ACTIVATIONS[name].forward(REFERENCE, x, parameter))
    return [8 * e * (value + (np.abs(x) if name == "gelu" else 0.0))]


def slope_bound(e: float, g: Any, x: Any, name: str | None) -> Any:
    """Of the VJP of an activation at x: the terms of a slope, which may cancel, times g."""
    size = {"gelu": 1 + np.abs(x) + np.abs(x) ** 3 / 8, "silu": 1 + np.abs(x)}.get(name or "", 1.0)
    return 16 * e * np.abs(g) * size


def activation_cases() -> list[Case]:
    cases = []
    for name, parameter in PARAMETERS:
        title = f"{name}-{parameter:g}"
        exact = name == "relu"
        for shape in [(3, 5), (0, 5), (1, 33), (7,), (), (2, 3, 4)]:
            x = normal(shape, 1, 3.0)
            saved = x if ACTIVATIONS[name].saves == "x" else np.asarray(REFERENCE.activate(x, name, parameter))
            cases.append(
                Case("activate", f"{title}-{name_of(shape)}", (x, name, parameter), None if exact else activation_bound)
            )
            cases.append(
                Case(
                    "activate_backward", f"{title}-{name_of(shape)}", (normal(shape, 2), saved, name, parameter),
                    None if exact else lambda e, g, saved, name, _p: [slope_bound(e, g, saved, name)],
                )
            )  # fmt: skip
        cases.append(
            Case("activate", f"{title}-special", (SPECIAL, name, parameter), activation_bound, special=True)
        )  # fmt: skip
        if ACTIVATIONS[name].saves == "x":
            cases.append(
                Case(
                    "activate_backward", f"{title}-special", (normal(SPECIAL.shape, 2), SPECIAL, name, parameter),
                    lambda e, g, saved, name, _p: [slope_bound(e, g, saved, name)], special=True,
                )
            )  # fmt: skip
    pairs = np.array(list(itertools.product([np.inf, -np.inf, np.nan, 2.0], [0.0, -0.0, 1.0, 1e-30, np.inf, np.nan]))).T
    cases.append(Case("activate_backward", "relu-special", (*pairs.copy(), "relu", 0.0), special=True))
    return cases


def softmax_parts(x: Any, axis: Any) -> tuple[Any, Any, Any, int]:
    """x less its maximum, log of the sum of its exponentials, the softmax, and the number of terms."""
    shifted = x - x.max(axis=axis, keepdims=True)
    total = np.exp(shifted).sum(axis=axis, keepdims=True)
    return shifted, np.log(total), np.exp(shifted) / total, x.shape[axis]


def softmax_bound(e: float, x: Any, axis: int) -> Sequence[Any]:
    shifted, _, p, n = softmax_parts(x, axis)
    return [e * p * (np.abs(shifted) + n + 8)]


def log_softmax_bound(e: float, x: Any, axis: int) -> Sequence[Any]:
    shifted, log_total, _, n = softmax_parts(x, axis)
    return [e * (2 * np.abs(shifted) + log_total + n + 8)]


def logsumexp_bound(e: float, x: Any, axis: Any, keepdims: bool) -> Sequence[Any]:
    top = np.max(np.where(np.isfinite(x), np.abs(x), 0.0), axis=axis, keepdims=keepdims)
    return [e * (2 * top + 2 * np.log(x.size) + x.size + 8)]


def row_cases() -> list[Case]:
    cases = []
    shapes = [((3, 10), (-1, 0)), ((1, 1), (1,)), ((0, 4), (1,)), ((4, 33), (1,)), ((2, 700), (-1, 0)), ((5,), (0,)),
              ((2, 3, 4), (0, 1, 2))]  # fmt: skip
    for shape, axes in shapes:
        for axis in axes:
            title, x = f"{name_of(shape)}-axis{axis}", normal(shape, 3, 8.0)
            cases.append(Case("softmax", title, (x, axis), softmax_bound))
            cases.append(Case("log_softmax", title, (x, axis), log_softmax_bound))
    masked = np.array([[0.5, -np.inf, 2.0], [-np.inf, 1.0, -np.inf]])
    cases.append(Case("softmax", "masked", (masked, 1), lambda e, x, _a: [8 * e]))
    cases.append(Case("log_softmax", "masked", (masked, 1), lambda e, x, _a: [16 * e]))
    sums: list[tuple[tuple[int, ...], Any]] = [
        ((3, 10), 1), ((3, 10), 0), ((3, 10), None), ((2, 3, 4), (0, 2)), ((2, 3, 4), (1,)), ((), None), ((0, 4), 1),
        ((1, 700), -1),
    ]  # fmt: skip
    for shape, axis in sums:
        for keepdims in (False, True):
            arguments = (normal(shape, 4, 8.0), axis, keepdims)
            cases.append(Case("logsumexp", f"{name_of(shape)}-{axis}-{keepdims}", arguments, logsumexp_bound))
    infinite = np.array([[-np.inf, -np.inf, -np.inf], [1.0, np.inf, -np.inf], [-np.inf, 2.0, 1.0], [np.nan, 1.0, 2.0]])
    cases.append(Case("logsumexp", "special", (infinite, 1, False), logsumexp_bound, special=True))
    return cases


# ---------------------------------------------------------------------- cases: linear layers


def run_gemm(B: Any, a: Any, b: Any, out: Any, accumulate: bool) -> Sequence[Any]:
    result = B.gemm(a, b, out, accumulate)
    assert result is out
    return [result]


def gemm_bound(e: float, a: Any, b: Any, out: Any, accumulate: bool) -> Sequence[Any]:
    product = product_bound(a, b, "float64") / eps("float64")
    return [e * (product + 2 * (np.abs(out) + np.abs(a) @ np.abs(b) if accumulate else 0.0))]


def affine(e: float, x: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
    """x @ weight.T + bias, and its bound."""
    z, size = x @ weight.T, np.abs(x) @ np.abs(weight.T)
    if bias is not None:
        z, size = z + bias, size + np.abs(bias)
    return z, (x.shape[-1] + 2) * e * size


def linear_bound(e: float, x: Any, weight: Any, bias: Any, activation: str | None, parameter: float) -> Sequence[Any]:
    z, error = affine(e, x, weight, bias)
    return [1.2 * error + (0.0 if activation is None else 8 * e * np.abs(z))]  # no slope is above 1.2


def run_linear_backward(
    B: Any, g: Any, x: Any, weight: Any, bias: Any, into: Any, activation: Any, parameter: Any, needs: Any, keep: bool
) -> Sequence[Any]:
    out, residual = B.linear(x, weight, bias, activation, parameter)
    before = B.to_host(out)
    found = B.linear_backward(
        g, out, x, weight, bias, activation, parameter, residual if keep else None, needs, into
    )  # fmt: skip
    assert [f is not None for f in found] == list(needs)
    for gradient, buffer in zip(found, into, strict=True):
        assert buffer is None or gradient is buffer, "a gradient is not in the buffer for it"
    assert np.array_equal(B.to_host(out), before, equal_nan=True), "the result was changed"
    return list(found)


def linear_backward_bound(
    e: float, g: Any, x: Any, weight: Any, bias: Any, into: Any, activation: Any, parameter: Any, needs: Any, keep: bool
) -> Sequence[Any]:
    z, error = affine(e, x, weight, bias)
    slope = 0.0 if activation is None else slope_bound(e, g, z, activation) + 1.2 * np.abs(g) * error
    size, slope = 1.2 * np.abs(g), slope + 0 * g
    wide, rows, columns = np.abs(weight), (-1, weight.shape[0]), (-1, weight.shape[1])
    gx = weight.shape[0] * e * (size @ wide) + slope @ wide
    n = g.size // weight.shape[0]
    flat = np.abs(x).reshape(columns)
    gw = n * e * (size.reshape(rows).T @ flat) + slope.reshape(rows).T @ flat
    gb = sum_bound(size.reshape(rows), 0, "float64") * e / eps("float64") + slope.reshape(rows).sum(axis=0)
    return [bound if need else None for bound, need in zip((gx, gw, gb), needs, strict=True)]


def linear_case(
    shape: tuple[int, ...],
    features: int,
    activation: str | None,
    with_bias: bool,
    needs: tuple[bool, ...] = (True, True, True),
    buffers: bool = False,
    keep: bool = True,
) -> Case:
    x, weight = normal(shape, 5), normal((features, shape[-1]), 6)
    bias = normal((features,), 7) if with_bias else None
    if not with_bias:
        needs = (*needs[:2], False)
    parameter = 0.0 if activation is None else ACTIVATIONS[activation].parameter
    z = affine(0.0, x, weight, bias)[0]
    g = np.where(np.abs(z) < 0.05, 0.0, normal(z.shape, 8))  # a sign of z that rounding decides decides a slope
    into = tuple(
        np.full(part.shape, np.nan) if part is not None and buffers and need else None
        for part, need in zip((x, weight, bias), needs, strict=True)
    )
    title = "-".join(
        [name_of(shape), str(features), str(activation), "bias" if with_bias else "plain",
         "".join("ny"[n] for n in needs), *["buffers"] * buffers, *["recompute"] * (not keep)]
    )  # fmt: skip
    return Case(
        "linear_backward", title, (g, x, weight, bias, into, activation, parameter, needs, keep),
        linear_backward_bound, run_linear_backward, changes=(4,),
    )  # fmt: skip


def linear_cases() -> list[Case]:
    cases = []
    for n, k, m in [(3, 4, 5), (1, 1, 1), (0, 3, 2), (3, 0, 2), (2, 3, 0), (33, 65, 17)]:
        for accumulate in (False, True):
            out = normal((n, m), 9) if accumulate else np.full((n, m), np.nan)
            arguments: tuple[Any, ...] = (normal((n, k), 10), normal((k, m), 11), out, accumulate)
            cases.append(Case("gemm", f"{n}x{k}x{m}-{accumulate}", arguments, gemm_bound, run_gemm, changes=(2,)))
    shapes = [((3, 5), 4), ((0, 5), 4), ((1, 5), 3), ((5,), 4), ((2, 3, 5), 4), ((0, 3, 5), 2), ((33, 17), 9)]
    layers = {
        (shape, m, name, bias) for shape, m in shapes for name in (None, "relu", "gelu") for bias in (True, False)
    }
    layers |= {((3, 5), 4, name, bias) for name in ACTIVATIONS for bias in (True, False)}
    for shape, m, name, bias in sorted(layers, key=str):
        title = f"{name_of(shape)}-{m}-{name}-{'bias' if bias else 'plain'}"
        arguments = (
            normal(shape, 5), normal((m, shape[-1]), 6), normal((m,), 7) if bias else None, name,
            0.0 if name is None else ACTIVATIONS[name].parameter,
        )  # fmt: skip
        cases.append(
            Case("linear", title, arguments, linear_bound, lambda B, *arguments: [B.linear(*arguments)[0]])
        )  # fmt: skip
        for buffers in (False, True):
            cases.append(linear_case(shape, m, name, bias, buffers=buffers))
    for needs in itertools.product((True, False), repeat=3):
        for buffers in (False, True):
            for name in (None, "tanh", "silu"):
                cases.append(linear_case((4, 3), 2, name, True, needs, buffers))
    cases += [linear_case(shape, 4, name, True, keep=False) for name in ACTIVATIONS for shape in [(6, 3), (2, 2, 3)]]
    x, weight, broken = normal((33, 17), 5), normal((9, 17), 6), np.where(np.arange(9) % 3, 0.0, np.nan)
    g = np.where(np.abs(x @ weight.T) < 0.05, 0.0, normal((33, 9), 8))
    for needs_bias in (True, False):  # the gradient passes where the layer has become NaN
        cases.append(
            Case(
                "linear_backward", f"relu-special-{needs_bias}",
                (g, x, weight, broken, (None,) * 3, "relu", 0.0, (True, True, needs_bias), True),
                lambda e, g, x, weight, bias, *rest: linear_backward_bound(e, g, x, weight, np.zeros(9), *rest),
                run_linear_backward, special=True,
            )
        )  # fmt: skip
    return list({str(case): case for case in cases}.values())


# ---------------------------------------------------------------------- cases: layer norm


def norm_parts(e: float, x: Any, axes: Any, epsilon: float) -> tuple[Any, Any, Any, Any, int]:
    """The normalised x and its bound, the scale and its relative bound, and the number of terms."""
    n = int(np.prod([x.shape[a] for a in axes]))
    centred = x - x.mean(axis=axes, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + epsilon)
    shift = (n + 2) * e * np.abs(x).max(axis=axes, keepdims=True, initial=0)
    relative = 2 * shift * scale + (n + 8) * e
    return centred * scale, shift * scale + np.abs(centred * scale) * relative, scale, relative, n


def layer_norm_bound(e: float, x: Any, weight: Any, bias: Any, axes: Any, epsilon: float) -> Sequence[Any]:
    value, error, _, _, _ = norm_parts(e, x, axes, epsilon)
    factor = 1.0 if weight is None else np.abs(weight)
    return [error * factor + 4 * e * (np.abs(value) * factor + (0.0 if bias is None else np.abs(bias)))]


def run_layer_norm_backward(
    B: Any, g: Any, x: Any, weight: Any, axes: Any, epsilon: float, needs: Any, keep: bool
) -> Sequence[Any]:
    residual = B.layer_norm(x, weight, None, axes, epsilon)[1] if keep else None
    found = B.layer_norm_backward(g, x, weight, axes, epsilon, residual, needs)
    assert [f is not None for f in found] == list(needs)
    return list(found)


def layer_norm_backward_bound(
    e: float, g: Any, x: Any, weight: Any, axes: Any, epsilon: float, needs: Any, keep: bool
) -> Sequence[Any]:
    value, error, scale, relative, n = norm_parts(e, x, axes, epsilon)
    rows = g.size // max(n, 1)
    largest = np.abs(g if weight is None else g * weight).max(axis=axes, keepdims=True, initial=0)
    size = np.abs(value).max(axis=axes, keepdims=True, initial=0)
    wrong = np.abs(error).max(axis=axes, keepdims=True, initial=0)
    gx = scale * largest * ((2 + size**2) * (relative + (n + 8) * e) + 3 * size * wrong) + np.zeros_like(x)
    leading = tuple(range(x.ndim - len(axes)))
    gw = ((rows + 2) * e * np.abs(g * value) + np.abs(g) * error).sum(axis=leading)
    gb = ((rows + 2) * e * np.abs(g)).sum(axis=leading)
    return [bound if need else None for bound, need in zip((gx, gw, gb), needs, strict=True)]


def layer_norm_cases() -> list[Case]:
    cases = []
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((3, 10), (1,)), ((1, 10), (1,)), ((0, 4), (1,)), ((5, 1), (1,)), ((7,), (0,)), ((2, 3, 4), (2,)),
        ((2, 3, 4), (1, 2)), ((3, 2), (0, 1)), ((4, 300), (1,)), ((300, 33), (1,)),
    ]  # fmt: skip
    for shape, axes in shapes:
        inner = tuple(shape[a] for a in axes)
        x, g, leading = normal(shape, 12) * 2 + 0.5, normal(shape, 13), len(axes) < len(shape)
        for weighted, shifted in itertools.product((True, False), repeat=2):
            weight, bias = (normal(inner, 14) if weighted else None, normal(inner, 15) if shifted else None)
            title = f"{name_of(shape)}-{len(axes)}-{'weight' if weighted else ''}{'bias' if shifted else ''}"
            cases.append(
                Case(
                    "layer_norm", title, (x, weight, bias, axes, 1e-5), layer_norm_bound,
                    lambda B, *arguments: [B.layer_norm(*arguments)[0]],
                )
            )  # fmt: skip
            if not shifted:
                continue
            every = itertools.product((True, False), repeat=3) if shape == (3, 10) else [(True, weighted, True)]
            for needs, keep in itertools.product(every, (True, False)):
                cases.append(
                    Case(
                        "layer_norm_backward",
                        f"{title}-{''.join('ny'[n] for n in needs)}{'' if keep else '-recompute'}",
                        (g, x, weight, axes, 1e-5, needs, keep), layer_norm_backward_bound, run_layer_norm_backward,
                        aliases=not leading,
                    )
                )  # fmt: skip
    return cases


# ---------------------------------------------------------------------- cases: losses


def dense_target(target: Any, logits: Any) -> Any:
    return target if target.ndim == 2 else np.eye(logits.shape[1])[target.astype(np.int64)]


def loss_bound(e: float, logits: Any, target: Any, reduction: str) -> Sequence[Any]:
    shifted, log_total, _, n = softmax_parts(logits, 1)
    t, error = dense_target(target, logits), e * (2 * np.abs(shifted) + log_total + n + 8)
    size = np.abs(shifted) + log_total
    terms = np.where(t != 0, np.abs(t) * (error + (n + 2) * e * size), 0.0)
    losses = np.where(t != 0, np.abs(t) * size, 0.0).sum(axis=1)
    rows = terms.sum(axis=1)
    if reduction == "none":
        return [rows]
    total = rows.sum() + (len(rows) + 4) * e * losses.sum()
    return [total / len(rows) if reduction == "mean" else total]


def run_loss_backward(B: Any, g: Any, logits: Any, target: Any, reduction: str, needs: Any, keep: bool) -> Any:
    residual = B.softmax_cross_entropy(logits, target, reduction)[1] if keep else None
    found = B.softmax_cross_entropy_backward(g, logits, target, reduction, residual, needs)
    assert [f is not None for f in found] == list(needs)
    again = B.softmax_cross_entropy_backward(g, logits, target, reduction, residual, needs)
    for x, y in zip(found, again, strict=True):  # a second pass (retain_graph) has the same residual
        assert x is None or np.array_equal(B.to_host(x), B.to_host(y)), "the residual was changed"
    return list(found)


def loss_backward_bound(
    e: float, g: Any, logits: Any, target: Any, reduction: str, needs: Any, keep: bool
) -> Sequence[Any]:
    shifted, log_total, p, n = softmax_parts(logits, 1)
    t = dense_target(target, logits)
    g = np.abs(g).reshape(-1, 1) / (logits.shape[0] if reduction == "mean" else 1)
    total = t.sum(axis=1, keepdims=True)
    gl = g * e * (total * p * (np.abs(shifted) + 2 * n + 16) + (n + 8) * t)
    gt = g * e * (6 * np.abs(shifted) + 6 * log_total + n + 8)
    return [bound if need else None for bound, need in zip((gl, gt), needs, strict=True)]


def loss_cases() -> list[Case]:
    cases = []
    random = np.random.default_rng(16)
    for labels, classes in [
        (np.array([0, 9, 3, 3]), 10), (np.array([[1, 0], [2, 2]]), 3), (np.array(2), 4), (np.array([], np.int64), 5),
        (np.array([0, 0]), 1), (random.integers(0, 300, 77), 300), (np.array([5, 255, 0], np.uint8), 300),
        (np.array([5, 127], np.int8), 300), (np.array([1, 2], np.int32), 4), (np.array([3, 1], np.uint64), 4),
    ]:  # fmt: skip
        for dtype in ("float16", "float32", "float64", "int64", "bool"):
            cases.append(
                Case(
                    "one_hot", f"{name_of(labels.shape)}-{labels.dtype}-{classes}-as-{dtype}", (labels, classes, dtype),
                    call=lambda B, labels, classes, dtype: [B.one_hot(labels, classes, B.dtypes[dtype])],
                    dtypes=(dtype,),
                )
            )  # fmt: skip
    for rows, classes in [(3, 10), (1, 1), (1, 5), (5, 33), (2, 700), (0, 4), (300, 3)]:
        x = normal((rows, classes), 17, 6.0)
        p = REFERENCE.softmax(normal((rows, classes), 18), -1)
        labels = random.integers(0, classes, rows)
        smoothed = np.eye(classes)[labels] * 0.9 + 0.1 / classes
        targets = {
            "int64": labels, "int32": labels.astype(np.int32), "uint8": (labels % 256).astype(np.uint8),
            "probabilities": p, "smoothed": smoothed,
            "weighted": smoothed * np.where(np.arange(classes) % 3 == 1, 0.0, 1 + np.arange(classes) % 3),
        }  # fmt: skip
        for (kind, target), reduction in itertools.product(targets.items(), ("mean", "sum", "none")):
            if reduction == "mean" and not rows:
                continue
            title = f"{rows}x{classes}-{kind}-{reduction}"
            cases.append(
                Case(
                    "softmax_cross_entropy", title, (x, target, reduction), loss_bound,
                    lambda B, *arguments: [B.softmax_cross_entropy(*arguments)[0]],
                )
            )  # fmt: skip
            if kind in ("int32", "smoothed"):
                continue
            g = normal((rows,) if reduction == "none" else (), 19)
            wanted = [(True, False), (False, False)] if target.ndim == 1 else itertools.product((True, False), repeat=2)
            for needs, keep in itertools.product(wanted, (True, False)):
                cases.append(
                    Case(
                        "softmax_cross_entropy_backward",
                        f"{title}-{''.join('ny'[n] for n in needs)}{'' if keep else '-recompute'}",
                        (g, x, target, reduction, needs, keep), loss_backward_bound, run_loss_backward,
                    )
                )  # fmt: skip
    masked, label = np.array([[0.5, -np.inf, 2.0], [-np.inf, 1.0, -np.inf]]), np.array([2, 1])
    cases.append(
        Case(
            "softmax_cross_entropy", "masked", (masked, label, "none"), lambda e, *_: [16 * e],
            lambda B, *arguments: [B.softmax_cross_entropy(*arguments)[0]],
        )
    )  # fmt: skip
    cases.append(
        Case(
            "softmax_cross_entropy_backward", "masked",
            (np.array([1.0, 2.0]), masked, label, "none", (True, False), True),
            lambda e, *_: [32 * e, None], run_loss_backward,
        )
    )  # fmt: skip
    far = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
    cases.append(
        Case(
            "softmax_cross_entropy", "far", (far, np.array([1, 0]), "mean"), loss_bound,
            lambda B, *arguments: [B.softmax_cross_entropy(*arguments)[0]],
        )
    )  # fmt: skip
    return cases + squared_error_cases()


def squared_error_bound(e: float, x: Any, target: Any, reduction: str) -> Sequence[Any]:
    squares = (x - target) ** 2
    if reduction == "none":
        return [4 * e * squares]
    return [(squares.size + 4) * e * (squares.mean() if reduction == "mean" else squares.sum())]


def run_squared_error_backward(B: Any, g: Any, x: Any, target: Any, reduction: str, needs: Any, keep: bool) -> Any:
    residual = B.squared_error(x, target, reduction)[1] if keep else None
    found = B.squared_error_backward(g, x, target, reduction, residual, needs)
    assert [f is not None for f in found] == list(needs)
    return list(found)


def squared_error_backward_bound(
    e: float, g: Any, x: Any, target: Any, reduction: str, needs: Any, keep: bool
) -> Sequence[Any]:
    # in half precision, 2 g / n may be below the normal numbers
    bound = (8 * e * np.abs(g) + 1e-7 * (e > 1e-4)) * np.abs(x - target) * (2 / x.size if reduction == "mean" else 2)
    return [bound if need else None for need in needs]


def squared_error_cases() -> list[Case]:
    cases = []
    for shape, reduction in itertools.product(
        [(3, 5), (), (0, 5), (1,), (7,), (2, 3, 4), (3000,)], ("mean", "sum", "none")
    ):
        if reduction == "mean" and 0 in shape:
            continue
        x, target, title = normal(shape, 20), normal(shape, 21), f"{name_of(shape)}-{reduction}"
        cases.append(
            Case(
                "squared_error", title, (x, target, reduction), squared_error_bound,
                lambda B, *arguments: [B.squared_error(*arguments)[0]],
            )
        )  # fmt: skip
        g = normal(shape if reduction == "none" else (), 22)
        for needs, keep in itertools.product(itertools.product((True, False), repeat=2), (True, False)):
            cases.append(
                Case(
                    "squared_error_backward",
                    f"{title}-{''.join('ny'[n] for n in needs)}{'' if keep else '-recompute'}",
                    (g, x, target, reduction, needs, keep), squared_error_backward_bound, run_squared_error_backward,
                )
            )  # fmt: skip
    return cases


# ---------------------------------------------------------------------- cases: randomness and scatter, exact

KEY = (2**127 + 12345) ^ 2**63


def random_cases() -> list[Case]:
    cases = []
    for counter, n in itertools.product(
        [0, 7, 2**64 - 2, 2**128 - 3, 2**192 - 1, 2**256 - 1, 2**256 - 40], [0, 1, 4, 5, 1027]
    ):
        cases.append(Case("random_bits", f"{counter:x}-{n}", (KEY, counter, n), dtypes=("float32",)))
    for shape, p in itertools.product([(3, 5), (), (0, 5), (1,), (7,), (2, 3, 4), (2049,)], [0.0, 0.1, 0.5, 0.999]):
        x = normal(shape, 23)
        cases.append(
            Case(
                "dropout", f"{name_of(shape)}-{p}", (x, p, KEY, 2**64 - 3),
                call=lambda B, *arguments: B.dropout(*arguments),
            )
        )  # fmt: skip
        mask = np.asarray(np.random.default_rng(24).random(shape) >= p)
        cases.append(Case("dropout_backward", f"{name_of(shape)}-{p}", (x, mask, p)))
    half = int(np.random.Philox(key=KEY, counter=3).random_raw(2)[1]) & 0xFFFFFFFF  # of element 2: at the threshold
    cases.append(
        Case(
            "dropout", "edge", (normal((5,), 23), half / 2**32, KEY, 3),
            call=lambda B, *arguments: B.dropout(*arguments),
        )
    )  # fmt: skip
    infinite = np.repeat([np.inf, -np.inf, np.nan, 1.0], 2)
    cases.append(
        Case(
            "dropout", "special", (np.tile(infinite, 8), 0.5, KEY, 3), special=True,
            call=lambda B, *arguments: B.dropout(*arguments),
        )
    )  # fmt: skip
    cases.append(Case("dropout_backward", "special", (infinite, np.tile([True, False], 4), 0.5), special=True))
    return cases


def full_key(key: Any) -> Any:
    """The key as gradflow gives it to a backend: one boolean array, or a tuple with an Ellipsis."""
    if isinstance(key, np.ndarray) and key.dtype == bool:
        return key
    parts = key if isinstance(key, tuple) else (key,)
    return parts if any(part is ... for part in parts) else (*parts, ...)


def scatter_bound(e: float, values: Any, key: Any, shape: tuple[int, ...], into: Any = None) -> Sequence[Any]:
    size = np.zeros(shape) if into is None else np.abs(into)
    np.add.at(size, key, np.abs(values))
    return [e * (values.size + 2) * size]


def run_scatter(B: Any, *arguments: Any) -> Sequence[Any]:
    found, into = B.scatter_add(*arguments), arguments[3:]
    assert not into or found is into[0], "scatter_add must return the array that it adds to"
    return [found]


def scatter_cases() -> list[Case]:
    cases = []
    keys: dict[str, tuple[Any, tuple[int, ...]]] = {
        "integer": (2, (4, 3)), "negative": (-1, (4, 3)), "integers": ((1, 2), (4, 3)),
        "slice": (slice(1, None, 2), (5, 3)), "reversed": (slice(None, None, -2), (5, 3)),
        "none": ((None, slice(None)), (4, 3)), "ellipsis": ((..., 1), (2, 3, 4)), "nothing": (slice(0, 0), (4, 3)),
        "mask": (normal((4, 3), 25) > 0, (4, 3)), "rows": (np.array([True, False, True, True]), (4, 3)),
    }  # fmt: skip
    for name, (short, shape) in keys.items():
        key = full_key(short)
        arguments: tuple[Any, ...] = (normal(np.zeros(shape)[key].shape, 26), key, shape)
        cases.append(Case("scatter_add", name, arguments))
        arguments += (normal(shape, 31),)
        cases.append(Case("scatter_add", f"{name}-into", arguments, scatter_bound, run_scatter, changes=(3,)))
    repeated: dict[str, tuple[Any, tuple[int, ...]]] = {
        "array": (np.array([0, 2, 2, -1]), (4, 3)), "table": (np.array([[0, 1], [1, 1], [3, 0]]), (4, 3)),
        "one": (np.array([1, 1, 1, 1, 0]), (4,)), "two": ((np.array([0, 1, 1]), np.array([2, 0, 0])), (4, 3)),
        "broadcast": ((np.array([[0], [1]]), np.array([2, 0, 0])), (4, 3)),
        "columns": ((slice(None), np.array([2, 2, 0])), (4, 3)), "with none": ((None, np.array([1, 1])), (4, 3)),
        "apart": ((np.array([0, 1, 1]), slice(None), np.array([1, 1, 1])), (2, 3, 4)),
        "integer too": ((np.array([0, 0]), 1), (4, 3)), "narrow": (np.array([3, 250, 3], np.uint8), (300,)),
        "ellipsis too": ((..., np.array([1, 1])), (2, 3, 4)), "empty": (np.array([], np.int64), (4, 3)),
        "many": (np.random.default_rng(27).integers(0, 20, 500), (20, 2)),
    }  # fmt: skip
    for name, (short, shape) in repeated.items():
        key = full_key(short)
        arguments = (normal(np.zeros(shape)[key].shape, 28), key, shape)
        cases.append(Case("scatter_add", name, arguments, scatter_bound))
        arguments += (normal(shape, 32),)
        cases.append(Case("scatter_add", f"{name}-into", arguments, scatter_bound, run_scatter, changes=(3,)))
    rows = np.arange(300)[:, None]
    for name, indices, shape, axis in [
        ("last", np.array([[0, 3, 3], [1, 1, 1]]), (2, 4), 1), ("first", np.array([[0, 3, 3, 0]]), (5, 4), 0),
        ("negative", np.array([[-1, 3, 0], [1, -2, 1]]), (2, 4), -1), ("empty", np.zeros((0, 2), np.int64), (0, 4), 1),
        ("nothing", np.zeros((2, 0), np.int64), (2, 4), 1), ("vector", np.array([2, 2, 0, 2]), (3,), 0),
        ("three", np.random.default_rng(29).integers(0, 3, (2, 5, 4)), (2, 3, 4), 1),
        ("int8", (rows % 3).astype(np.int8), (300, 3), 1), ("uint8", (rows % 3).astype(np.uint8), (300, 3), -1),
        ("int32", np.array([[0, 3], [1, 1]], np.int32), (2, 4), 1),
    ]:  # fmt: skip
        cases.append(
            Case(
                "scatter_add_along_axis", name, (normal(indices.shape, 30), indices, shape, axis),
                lambda e, values, indices, shape, axis: scatter_bound(e, values, along(indices, axis), shape),
            )
        )  # fmt: skip
    return cases


def along(indices: Any, axis: int) -> tuple[Any, ...]:
    """The key that `indices` along `axis` are."""
    key = list(np.indices(indices.shape, sparse=True))
    key[axis] = indices
    return tuple(key)


# ---------------------------------------------------------------------- cases: optimizers

SIZES = (0, 1, 7, 65539)
"""One beyond a chunk of NumPy's backend, of 65536 elements."""


def in_place(kernel: str, *changed: int) -> Callable[..., Sequence[Any]]:
    """Calls a kernel that returns nothing; what is compared are the arguments that it changes."""

    def call(B: Any, *arguments: Any) -> Sequence[Any]:
        assert getattr(B, kernel)(*arguments) is None
        return [arguments[i] for i in changed]

    return call


def sgd_bound(
    e: float, p: Any, g: Any, v: Any, lr: float, momentum: float, dampening: float, nesterov: bool, decay: float,
    first: bool,
) -> Sequence[Any]:  # fmt: skip
    size = np.abs(g) + decay * np.abs(p)
    if v is None:
        return [8 * e * (np.abs(p) + lr * size), None]
    velocity = size if first else momentum * np.abs(v) + (1 - dampening) * size
    size = size + momentum * velocity if nesterov else velocity
    return [8 * e * (np.abs(p) + lr * size), 8 * e * velocity]


def root_bound(e: float, wrong: Any, square: Any, share: float) -> tuple[Any, Any]:
    """The root of an average of squares and its bound, where `wrong` is that of what is squared with this share."""
    root = np.sqrt(square)
    return root, np.sqrt(share) * wrong + 4 * e * root


def adam_bound(
    e: float, p: Any, g: Any, m: Any, v: Any, step: int, lr: float, b1: float, b2: float, epsilon: float, decay: float,
    decoupled: bool,
) -> Sequence[Any]:  # fmt: skip
    coupled = 0.0 if decoupled else decay
    size, g = np.abs(g) + coupled * np.abs(p), g + coupled * p
    mean, square = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    root, wrong = root_bound(e, 4 * e * size, square, 1 - b2)
    wrong_mean = 6 * e * (b1 * np.abs(m) + (1 - b1) * size)
    rate, correction = lr / (1 - b1**step), 1 / np.sqrt(1 - b2**step)
    below = correction * root + epsilon
    update = rate * np.abs(mean) / below
    change = rate * wrong_mean / below + update * (correction * wrong / below + 8 * e)
    return [8 * e * np.abs(p) + 2 * change, wrong_mean, 2 * root * wrong + wrong**2 + 4 * e * square]


def rmsprop_bound(
    e: float, p: Any, g: Any, square: Any, mean: Any, velocity: Any, lr: float, alpha: float, epsilon: float,
    decay: float, momentum: float,
) -> Sequence[Any]:  # fmt: skip
    size, g = np.abs(g) + decay * np.abs(p), g + decay * p
    square = alpha * square + (1 - alpha) * g**2
    root, wrong = root_bound(e, 4 * e * size, square, 1 - alpha)
    wrong_square = 2 * root * wrong + wrong**2 + 4 * e * square
    bounds = [wrong_square, None, None]
    average, wrong = square, wrong_square
    if mean is not None:
        bounds[1] = 6 * e * (alpha * np.abs(mean) + (1 - alpha) * size)
        mean = alpha * mean + (1 - alpha) * g
        average, wrong = square - mean**2, wrong + 2 * np.abs(mean) * bounds[1] + 4 * e * (square + mean**2)
        wrong, average = np.where(average + wrong < 0, 0.0, wrong), np.maximum(average, 0.0)
    below = np.sqrt(average) + epsilon
    update = np.abs(g) / below
    change = 4 * e * size / below + update * (wrong / np.sqrt(np.where(wrong == 0, 1.0, average)) / below + 8 * e)
    if velocity is not None:
        update = momentum * np.abs(velocity) + update
        change = bounds[2] = change + 4 * e * update
    return [4 * e * (np.abs(p) + lr * update) + lr * change, *bounds]


def run_clip(B: Any, gradients: list[Any], max_norm: float) -> Sequence[Any]:
    return [B.clip_global_norm(gradients, max_norm), *gradients]


def clip_bound(e: float, gradients: list[Any], max_norm: float) -> Sequence[Any]:
    n = sum(g.size for g in gradients) + 8
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    return [n * e * norm, *[n * e * np.abs(g) * min(1.0, max_norm / (norm + 1e-6)) for g in gradients]]


def optimizer_cases() -> list[Case]:
    cases = []
    for n in SIZES:
        p, g, v = normal((n,), 31), normal((n,), 32), normal((n,), 33)
        some = (n == 7,)
        for velocity, first, nesterov, dampening, decay in [
            (False, False, False, 0.0, 0.0), (False, False, False, 0.0, 0.1), (True, True, False, 0.0, 0.0),
            (True, False, False, 0.0, 0.0), (True, False, True, 0.0, 0.1), (True, True, True, 0.0, 0.1),
            (True, False, False, 0.3, 0.0), (True, False, False, 0.3, 0.1), (True, True, False, 0.3, 0.1),
        ]:  # fmt: skip
            before = None if not velocity else np.full(n, np.nan) if first else v  # nothing reads it at the first step
            title = f"{n}-{'velocity' if velocity else 'plain'}{'-first' * first}{'-nesterov' * nesterov}"
            cases.append(
                Case(
                    "sgd_step", f"{title}-{dampening}-{decay}",
                    (p, g, before, 0.1, 0.9 if velocity else 0.0, dampening, nesterov, decay, first),
                    sgd_bound, in_place("sgd_step", 0, 2), changes=(0, 2),
                )
            )  # fmt: skip
        for step, (decay, decoupled) in itertools.product(
            (1, 2, 1000) if some[0] else (1, 3), ((0.0, False), (0.1, False), (0.1, True), (0.0, True))
        ):
            m, square = (np.zeros(n), np.zeros(n)) if step == 1 else (v * 0.3, normal((n,), 34) ** 2)
            cases.append(
                Case(
                    "adam_step", f"{n}-{step}-{decay}-{decoupled}",
                    (p, g, m, square, step, 0.01, 0.9, 0.999, 1e-8, decay, decoupled),
                    adam_bound, in_place("adam_step", 0, 2, 3), changes=(0, 2, 3),
                )
            )  # fmt: skip
        for centred, with_velocity, decay in itertools.product((False, True), (False, True), (0.0, 0.1)):
            cases.append(
                Case(
                    "rmsprop_step", f"{n}{'-centred' * centred}{'-velocity' * with_velocity}-{decay}",
                    (p, g, 1 + normal((n,), 35) ** 2, v * 0.2 if centred else None, v if with_velocity else None,
                     0.01, 0.99, 1e-8, decay, 0.9 if with_velocity else 0.0),
                    rmsprop_bound, in_place("rmsprop_step", 0, 2, 3, 4), changes=(0, 2, 3, 4),
                )
            )  # fmt: skip
        constant = 1 + np.abs(v)  # a gradient that does not vary, its mean square less than its square
        cases += [
            Case(
                "rmsprop_step", f"{n}-constant{'-velocity' * with_velocity}",
                (p, constant, 0.99 * constant**2, constant, v if with_velocity else None,
                 0.01, 0.99, 0.1, 0.0, 0.9 if with_velocity else 0.0),
                rmsprop_bound, in_place("rmsprop_step", 0, 2, 3, 4), changes=(0, 2, 3, 4),
            )
            for with_velocity in (False, True)
        ]  # fmt: skip
    several = [normal((3, 5), 36), normal((4,), 37), normal((), 38), normal((0, 2), 39), normal((2, 3, 4), 40)]
    for (name, gradients), max_norm in itertools.product(
        {"one": several[:1], "several": several, "zeros": [np.zeros(4)], "empty": several[3:4],
         "long": [normal((3000,), 41), several[0]]}.items(), (0.0, 0.5, 1e3)
    ):  # fmt: skip
        cases.append(
            Case(
                "clip_global_norm", f"{name}-{max_norm}", (gradients, max_norm), clip_bound, run_clip, changes=(0,),
            )
        )  # fmt: skip
    broken = [np.array([1.0, np.nan]), np.array([2.0])]
    cases.append(
        Case("clip_global_norm", "special", (broken, 1.0), None, run_clip, changes=(0,), special=True)
    )  # fmt: skip
    return cases


# ---------------------------------------------------------------------- cases: half floats, computed in float32


def half_case(
    subject: str,
    name: str,
    arguments: tuple[Any, ...],
    call: Callable[..., Sequence[Any]] | None = None,
    changes: tuple[int, ...] = (),
) -> Case:
    """A case whose counts, factors, squares or epsilons leave float16, and whose results are rounded to it once."""

    def bound(e: float, *exact: Any) -> Sequence[Any]:
        results = Case(subject, name, exact, None, call).run(REFERENCE, cast(exact, "float64"))
        return [None if x is None else 2 * e * np.abs(x) for x in results]

    return Case(subject, f"half-{name}", arguments, bound, call, changes, ("float16",))


def half_cases() -> list[Case]:
    many = 70_000  # more than the largest float16
    row, rows = normal((2, many), 45, 0.1), normal((many, 3), 46)
    cases = [half_case(name, "long", (row, 1)) for name in ("softmax", "log_softmax")]
    cases.append(half_case("logsumexp", "long", (row, 1, False)))
    far = np.array([300.0, -300.0, 3e4, -3e4])
    for name, parameter in PARAMETERS:
        saved = far if ACTIVATIONS[name].saves == "x" else np.asarray(REFERENCE.activate(far, name, parameter))
        cases.append(half_case("activate", f"{name}-{parameter:g}-far", (far, name, parameter)))
        cases.append(half_case("activate_backward", f"{name}-{parameter:g}-far", (far, saved, name, parameter)))
    x, g = np.array([[300.0, -300.0, 600.0, 0.0], [0.0] * 4]), normal((2, 4), 47)
    cases.append(
        half_case("layer_norm", "far", (x, None, None, (1,), 1e-8), lambda B, *given: [B.layer_norm(*given)[0]])
    )
    for keep in (True, False):
        arguments: tuple[Any, ...] = (g, x[:1] * [[1.0], [0.01]], None, (1,), 1e-8, (True, False, False), keep)
        cases.append(half_case("layer_norm_backward", f"far-{keep}", arguments, run_layer_norm_backward))
    labels, shares = np.arange(many) % 3, np.asarray(REFERENCE.softmax(normal((many, 3), 48), -1))
    scale = np.asarray(1000.0)
    for kind, target in {"labels": labels, "shares": shares}.items():
        cases.append(
            half_case(
                "softmax_cross_entropy", f"long-{kind}", (rows, target, "mean"),
                lambda B, *arguments: [B.softmax_cross_entropy(*arguments)[0]],
            )
        )  # fmt: skip
        for keep in (True, False):
            arguments = (scale, rows, target, "mean", (True, False), keep)
            cases.append(
                half_case("softmax_cross_entropy_backward", f"long-{kind}-{keep}", arguments, run_loss_backward)
            )
    cases.append(
        half_case(
            "squared_error", "long", (row, 2 * row, "mean"), lambda B, *arguments: [B.squared_error(*arguments)[0]]
        )
    )  # fmt: skip
    for keep in (True, False):
        arguments = (scale, rows, 2 * rows, "mean", (True, True), keep)
        cases.append(half_case("squared_error_backward", f"long-{keep}", arguments, run_squared_error_backward))
    cases.append(half_case("dropout_backward", "rare", (normal((64,), 49, 1e-3), np.arange(64) % 2 == 0, 0.99999)))
    key = (np.zeros(5000, np.int64), ...)
    cases.append(half_case("scatter_add", "often", (np.ones(5000), key, (2,))))
    along_one = (np.ones((5000, 1)), np.zeros((5000, 1), np.int64), (2, 1), 0)
    cases.append(half_case("scatter_add_along_axis", "often", along_one))
    p, small = normal((6,), 50, 1e-3), np.array([0.0, 1e-4, -1e-4, 3e-6, -0.5, 300.0])
    zeros = np.zeros(6)
    options: tuple[Any, ...]
    for velocity in (None, zeros + 100.0):
        options = (1e-8, 0.0 if velocity is None else 0.9999, 0.0, False, 1e-8, False)
        cases.append(
            half_case(
                "sgd_step", "small" if velocity is None else "small-velocity", (p, 100 * small, velocity, *options),
                in_place("sgd_step", 0, 2), changes=(0, 2),
            )
        )  # fmt: skip
    for decoupled in (True, False):
        options = (1, 1e-5, 0.9, 0.9999, 1e-8, 1e-6, decoupled)
        cases.append(
            half_case(
                "adam_step", f"small-{decoupled}", (p, small, zeros, zeros, *options),
                in_place("adam_step", 0, 2, 3), changes=(0, 2, 3),
            )
        )  # fmt: skip
    for mean, velocity in itertools.product((None, zeros), (None, zeros)):
        options = (1e-5, 0.9999, 1e-8, 1e-6, 0.0 if velocity is None else 0.9)
        title = f"small{'' if mean is None else '-centred'}{'' if velocity is None else '-velocity'}"
        cases.append(
            half_case(
                "rmsprop_step", title, (p, small, zeros, mean, velocity, *options),
                in_place("rmsprop_step", 0, 2, 3, 4), changes=(0, 2, 3, 4),
            )
        )  # fmt: skip
    cases.append(half_case("clip_global_norm", "far", ([far, far[:2]], 1e-4), run_clip, changes=(0,)))
    return cases


CASES = [
    *activation_cases(), *row_cases(), *linear_cases(), *layer_norm_cases(), *loss_cases(), *random_cases(),
    *scatter_cases(), *optimizer_cases(), *half_cases(),
]  # fmt: skip
"""All cases, every kernel's."""
