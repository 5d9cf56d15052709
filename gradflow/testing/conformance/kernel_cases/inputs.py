"""Inputs, names and calls shared by the cases of several kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradflow.testing.conformance.harness import REFERENCE, Case, cast


def normal(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> Any:
    """Return normally distributed numbers, which depend on the seed and the shape."""
    return np.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape) * scale)


def name_of(shape: Sequence[int]) -> str:
    """Return a shape as a part of a name: 3x4, or 0d."""
    return "x".join(map(str, shape)) or "0d"


def in_place(kernel: str, *changed: int) -> Callable[..., Sequence[Any]]:
    """Return a call of a kernel that returns None; the results to compare are the arguments that it changes."""

    def call(B: Any, *arguments: Any) -> Sequence[Any]:
        assert getattr(B, kernel)(*arguments) is None
        return [arguments[i] for i in changed]

    return call


def half_case(
    subject: str,
    name: str,
    arguments: tuple[Any, ...],
    call: Callable[..., Sequence[Any]] | None = None,
    changes: tuple[int, ...] = (),
) -> Case:
    """Return a case with counts, factors, squares or epsilons outside float16, whose results are rounded to it once."""

    def bound(e: float, *exact: Any) -> Sequence[Any]:
        results = Case(subject, name, exact, None, call).run(REFERENCE, cast(exact, "float64"))
        return [None if x is None else 2 * e * np.abs(x) for x in results]

    return Case(subject, f"half-{name}", arguments, bound, call, changes, ("float16",))
