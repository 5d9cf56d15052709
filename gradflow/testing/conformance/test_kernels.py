"""Every kernel of a backend, and its composed default on the same device, against the composed default on NumPy.

A case runs for each floating dtype and for arrays that are contiguous, strided (with NaN between the elements) and
transposed. Results lie within a bound that the case derives from the formula, of the float64 value; masks, random
bits, moves and selections are equal to the bit. What the contract does not change stays as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradflow.backend import KERNELS, Backend
from gradflow.testing.agreement import assert_agree, eps
from gradflow.testing.conformance import REALS, about
from gradflow.testing.conformance.harness import Case, both, check_case
from gradflow.testing.conformance.kernel_cases import CASES, normal

CHECKS = [pytest.param(case, dtype, id=f"{case}-{dtype}") for case in CASES for dtype in case.dtypes]


def test_every_kernel_has_a_case() -> None:
    """The kit is complete."""
    assert {case.subject for case in CASES} == set(KERNELS)
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize(("case", "dtype"), CHECKS)
def test_kernel(backend: Backend, case: Case, dtype: str) -> None:
    """A kernel and its composed default, against the composed default on NumPy."""
    check_case(backend, case, dtype)


@about("clip_global_norm")
@pytest.mark.parametrize("dtype", REALS)
def test_gradients_below_the_norm_are_left_alone(backend: Backend, dtype: str) -> None:
    """To the bit; and those above it have it afterwards."""
    given = [normal((7,), 42).astype(dtype), normal((3, 2), 43).astype(dtype)]
    for _, chosen in both(backend):
        gradients = [chosen.from_host(g) for g in given]
        chosen.clip_global_norm(gradients, 1e4)
        for gradient, g in zip(gradients, given, strict=True):
            assert_agree("a gradient", chosen.to_host(gradient), g)
        chosen.clip_global_norm(gradients, 0.5)
        total = sum(float((chosen.to_host(g).astype("float64") ** 2).sum()) for g in gradients)
        assert abs(np.sqrt(total) - 0.5) < 20 * eps(dtype) + 1e-6


def _steps(B: Backend, number: Any) -> list[Any]:
    """The arrays that the optimizers change, with each number as `number` makes it."""
    p, g, m, s, v = (B.from_host(np.abs(normal((33,), seed)).astype("float32")) for seed in range(44, 49))
    half, small, much = number(0.5), number(0.25), number(0.75)
    B.sgd_step(p, g, v, small, half, small, True, half, False)
    B.adam_step(p, g, m, s, 3, small, half, much, small, half, True)
    B.rmsprop_step(p, g, s, None, v, small, much, small, half, half)
    norm = B.clip_global_norm([g], half)
    return [p, m, s, v, norm, g]


@about("sgd_step", "adam_step", "rmsprop_step", "clip_global_norm")
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_hyperparameters_of_numpy(backend: Backend, kind: str) -> None:
    """What they are worth counts, and not their size in memory."""
    for _, chosen in both(backend):
        for found, expected in zip(_steps(chosen, np.dtype(kind).type), _steps(chosen, float), strict=True):
            value = chosen.to_host(expected).astype("float64")
            error = 64 * eps("float32") * np.abs(value).max()
            assert_agree(kind, chosen.to_host(found), value, bound=error)
