"""Inputs, names and calls that the cases of several kernels share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradflow.testing.conformance.harness import REFERENCE, Case, cast


def normal(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> Any:
    return np.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape) * scale)


def name_of(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "0d"


def in_place(kernel: str, *changed: int) -> Callable[..., Sequence[Any]]:
    """Calls a kernel that returns nothing; what is compared are the arguments that it changes."""

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
    """A case whose counts, factors, squares or epsilons leave float16, and whose results are rounded to it once."""

    def bound(e: float, *exact: Any) -> Sequence[Any]:
        results = Case(subject, name, exact, None, call).run(REFERENCE, cast(exact, "float64"))
        return [None if x is None else 2 * e * np.abs(x) for x in results]

    return Case(subject, f"half-{name}", arguments, bound, call, changes, ("float16",))
