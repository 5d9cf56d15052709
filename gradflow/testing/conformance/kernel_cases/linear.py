"""Cases of `gemm`, `linear` and `linear_backward`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.backend import ACTIVATIONS
from gradflow.testing.conformance.harness import Case
from gradflow.testing.conformance.kernel_cases.activations import slope_bound
from gradflow.testing.conformance.kernel_cases.inputs import name_of, normal
from gradflow.testing.tolerances import eps, product_bound, sum_bound


def run_gemm(B: Any, a: Any, b: Any, out: Any, accumulate: bool) -> Sequence[Any]:
    result = B.gemm(a, b, out, accumulate)
    assert result is out
    return [result]


def gemm_bound(e: float, a: Any, b: Any, out: Any, accumulate: bool) -> Sequence[Any]:
    product = product_bound(a, b, "float64") / eps("float64")
    return [e * (product + 2 * (np.abs(out) + np.abs(a) @ np.abs(b) if accumulate else 0.0))]


def affine(e: float, x: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
    """Return x @ weight.T + bias and the bound on its error."""
    z, size = x @ weight.T, np.abs(x) @ np.abs(weight.T)
    if bias is not None:
        z, size = z + bias, size + np.abs(bias)
    return z, (x.shape[-1] + 2) * e * size


def linear_bound(e: float, x: Any, weight: Any, bias: Any, activation: str | None, parameter: float) -> Sequence[Any]:
    z, error = affine(e, x, weight, bias)
    return [1.2 * error + (0.0 if activation is None else 8 * e * np.abs(z))]  # slopes are at most 1.2


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
        assert buffer is None or gradient is buffer, "a gradient is not in its buffer"
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
    g = np.where(np.abs(z) < 0.05, 0.0, normal(z.shape, 8))  # no gradient where rounding decides the sign of z
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
    for needs_bias in (True, False):  # the gradient passes where z is NaN
        cases.append(
            Case(
                "linear_backward", f"relu-special-{needs_bias}",
                (g, x, weight, broken, (None,) * 3, "relu", 0.0, (True, True, needs_bias), True),
                lambda e, g, x, weight, bias, *rest: linear_backward_bound(e, g, x, weight, np.zeros(9), *rest),
                run_linear_backward, special=True,
            )
        )  # fmt: skip
    return list({str(case): case for case in cases}.values())


CASES = linear_cases()
