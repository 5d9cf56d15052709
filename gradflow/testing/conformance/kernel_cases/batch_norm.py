"""Cases of `batch_norm`, `batch_norm_backward`, `normalize_columns` and `move_statistics`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.testing.conformance.harness import Case
from gradflow.testing.conformance.kernel_cases.inputs import name_of, normal
from gradflow.testing.conformance.kernel_cases.layer_norm import layer_norm_backward_bound, norm_parts

SHAPES: list[tuple[int, int]] = [(5, 3), (2, 1), (33, 20), (600, 9)]


def run_batch_norm(B: Any, x: Any, weight: Any, bias: Any, running: Any, momentum: float | None) -> Sequence[Any]:
    """Return the result and the statistics that it moves. Weights and statistics of half floats are float32."""
    half, (weight, bias, running) = x.dtype, _wide(B, (weight, bias, running))
    out, _ = B.batch_norm(x, weight, bias, 1e-5, running, momentum)
    return [out, *([] if running is None else [B.astype(r, half) for r in running[:2]] + [running[2]])]


def _wide(B: Any, x: Any) -> Any:
    if type(x) is tuple:
        return tuple(_wide(B, part) for part in x)
    return B.astype(x, B.single) if x is not None and x.dtype in B.half_dtypes else x


def batch_norm_bound(e: float, x: Any, weight: Any, bias: Any, running: Any, momentum: float | None) -> Sequence[Any]:
    value, error, _, _, n = norm_parts(e, x, (0,), 1e-5)
    factor = 1.0 if weight is None else np.abs(weight)
    bounds = [error * factor + 4 * e * (np.abs(value) * factor + (0.0 if bias is None else np.abs(bias)))]
    if running is not None:
        largest, spread = np.abs(x).max(axis=0), x.var(axis=0, ddof=1)
        new = (n + 4) * e * largest, (2 * n + 12) * e * (spread + largest * np.sqrt(spread))
        bounds += [b + 4 * e * np.abs(r) for b, r in zip(new, running, strict=False)] + [0.0]
    return bounds


def run_batch_norm_backward(B: Any, g: Any, x: Any, weight: Any, needs: Any, keep: bool) -> Sequence[Any]:
    half, weight = x.dtype, _wide(B, weight)
    residual = B.batch_norm(x, weight, None, 1e-5)[1] if keep else None
    found = B.batch_norm_backward(g, x, weight, 1e-5, residual, needs)
    assert [f is not None for f in found] == list(needs)
    return [None if f is None else B.astype(f, half) for f in found]


def batch_norm_backward_bound(e: float, g: Any, x: Any, weight: Any, needs: Any, keep: bool) -> Sequence[Any]:
    bounds = layer_norm_backward_bound(e, g, x, weight, (0,), 1e-5, needs, keep)
    more = len(x) * e * np.abs(g).sum(axis=0) * (1 + np.abs(norm_parts(e, x, (0,), 1e-5)[0]).max(axis=0))
    return [bound if i == 0 or bound is None else bound + more for i, bound in enumerate(bounds)]


def batch_norm_cases() -> list[Case]:
    cases = []
    for shape in SHAPES:
        x, g, columns = normal(shape, 12) * 2 + 0.5, normal(shape, 13), shape[1:]
        weight, bias, mean = (normal(columns, seed) for seed in (14, 15, 16))
        running = mean, mean**2 + 0.5, np.array(3)
        for title, given in {
            "plain": (None, None, None, None), "affine": (weight, bias, None, None), "bias": (None, bias, None, None),
            "running": (weight, bias, running, 0.1), "mean": (None, None, running, None),
        }.items():  # fmt: skip
            cases.append(
                Case(
                    "batch_norm", f"{name_of(shape)}-{title}", (x, *given), batch_norm_bound, run_batch_norm,
                    changes=(3,),
                )
            )  # fmt: skip
        every = (True,) * 3
        kinds: list[tuple[tuple[bool, ...], bool, bool]] = [
            (every, True, True), (every, False, True), (every, True, False)
        ]  # fmt: skip
        if shape == (5, 3):
            kinds += [(needs, True, True) for needs in itertools.product((True, False), repeat=3) if not all(needs)]
        for needs, keep, weighted in kinds:
            title = f"{''.join('ny'[n] for n in needs)}{'' if keep else '-recompute'}{'' if weighted else '-plain'}"
            arguments = g, x, weight if weighted else None, needs, keep
            cases.append(
                Case(
                    "batch_norm_backward", f"{name_of(shape)}-{title}", arguments, batch_norm_backward_bound,
                    run_batch_norm_backward,
                )
            )  # fmt: skip
    return cases


def run_normalize_columns(B: Any, x: Any, *given: Any) -> Sequence[Any]:
    return [B.normalize_columns(x, *_wide(B, given), 1e-5)]


def normalize_columns_bound(e: float, x: Any, mean: Any, variance: Any, weight: Any, bias: Any) -> Sequence[Any]:
    size = (np.abs(x) + np.abs(mean)) / np.sqrt(variance + 1e-5) * (1.0 if weight is None else np.abs(weight))
    return [12 * e * (size + (0.0 if bias is None else np.abs(bias)))]


def normalize_columns_cases() -> list[Case]:
    cases = []
    for shape in ((5, 3), (1, 20), (0, 2)):
        x, (mean, variance, weight, bias) = normal(shape, 19), (normal(shape[1:], seed) for seed in range(20, 24))
        for title, weights in (("affine", (weight, bias)), ("plain", (None, None))):
            cases.append(
                Case(
                    "normalize_columns", f"{name_of(shape)}-{title}", (x, mean, variance**2 + 0.5, *weights),
                    normalize_columns_bound, run_normalize_columns,
                )
            )  # fmt: skip
    return cases


def run_move_statistics(B: Any, running: Any, mean: Any, variance: Any, momentum: float | None) -> Sequence[Any]:
    assert B.move_statistics(running, mean, variance, momentum) is None
    return [r for r in running if r is not None]


def move_statistics_bound(e: float, running: Any, mean: Any, variance: Any, momentum: float | None) -> Sequence[Any]:
    sizes = [4 * e * (np.abs(r) + np.abs(new)) for r, new in zip(running, (mean, variance), strict=False)]
    return [*sizes, *[0.0] * (running[2] is not None)]


def move_statistics_cases() -> list[Case]:
    mean, variance = normal((7,), 17), normal((7,), 18) ** 2
    return [
        Case(
            "move_statistics", title, ((mean + 1, variance + 1, count), mean, variance, momentum),
            move_statistics_bound, run_move_statistics, changes=(0,),
        )
        for title, count, momentum in (("counted", np.array(3), 0.1), ("mean", np.array(0), None), ("plain", None, 0.3))
    ]  # fmt: skip


CASES = [*batch_norm_cases(), *normalize_columns_cases(), *move_statistics_cases()]
