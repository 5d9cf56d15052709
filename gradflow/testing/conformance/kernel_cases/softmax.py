"""Cases of `softmax`, `log_softmax` and `logsumexp`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.testing.conformance.harness import Case
from gradflow.testing.conformance.kernel_cases.inputs import half_case, name_of, normal


def softmax_parts(x: Any, axis: Any) -> tuple[Any, Any, Any, int]:
    """Return x minus its maximum, the log of the sum of exponentials, the softmax, and the number of terms."""
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


def softmax_cases() -> list[Case]:
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


def half_cases() -> list[Case]:
    row = normal((2, 70_000), 45, 0.1)  # longer than the largest float16
    cases = [half_case(name, "long", (row, 1)) for name in ("softmax", "log_softmax")]
    return [*cases, half_case("logsumexp", "long", (row, 1, False))]


CASES = [*softmax_cases(), *half_cases()]
