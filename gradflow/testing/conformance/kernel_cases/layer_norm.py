"""Cases of `layer_norm` and `layer_norm_backward`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.testing.conformance.harness import Case
from gradflow.testing.conformance.kernel_cases.inputs import half_case, name_of, normal


def norm_parts(e: float, x: Any, axes: Any, epsilon: float) -> tuple[Any, Any, Any, Any, int]:
    """Return the normalized x and its bound, the scale and its relative bound, and the number of terms."""
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


def half_cases() -> list[Case]:
    x, g = np.array([[300.0, -300.0, 600.0, 0.0], [0.0] * 4]), normal((2, 4), 47)
    cases = [half_case("layer_norm", "far", (x, None, None, (1,), 1e-8), lambda B, *given: [B.layer_norm(*given)[0]])]
    for keep in (True, False):
        arguments = (g, x[:1] * [[1.0], [0.01]], None, (1,), 1e-8, (True, False, False), keep)
        cases.append(half_case("layer_norm_backward", f"far-{keep}", arguments, run_layer_norm_backward))
    return cases


CASES = [*layer_norm_cases(), *half_cases()]
