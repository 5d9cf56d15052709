"""Bounds on the difference between a result and a float64 reference on the CPU, and assertions that use them.

Three ways to agree: exactly (moves, masks, comparisons, random bits); within a few units in the last place (one
transcendental function); within `c * K * eps * (|A| @ |B|)` (products and sums of K terms, in any order of summation).
Each failure says how large the error is in ulp and how much of the bound it takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

import gradflow as gf
from gradflow import device as registry


@contextlib.contextmanager
def twin_device() -> Iterator[str]:
    """The name of a second device that every machine has: NumPy's backend under another name."""
    cpu = type(gf.get_backend("cpu"))
    gf.register_backend("twin", type("Twin", (cpu,), {"name": "twin"}))
    try:
        yield "twin"
    finally:
        del registry._registered["twin"]
        registry._backends.pop(gf.Device("twin"), None)


def host(x: Any) -> np.ndarray:
    """The values of a tensor or an array, on the host."""
    return x.detach().numpy() if isinstance(x, gf.Tensor) else np.asarray(x)


def eps(dtype: Any = "float32") -> float:
    """The distance from 1 to the next number."""
    return float(np.finfo(str(dtype)).eps)


def product_bound(a: Any, b: Any, dtype: Any = "float32", c: float = 1.0) -> np.ndarray:
    """c * K * eps * (|a| @ |b|): what K products and additions in any order can be off by, with c = 1 (Higham 2002,
    "Accuracy and Stability of Numerical Algorithms", eq. 3.5)."""
    a, b = (np.abs(host(x)).astype(np.float64) for x in (a, b))
    return c * a.shape[-1] * eps(dtype) * (a @ b)


def sum_bound(x: Any, axis: Any = None, dtype: Any = "float32", c: float = 1.0) -> np.ndarray:
    """c * K * eps * sum(|x|) for a sum of K terms along `axis`."""
    x = np.abs(host(x)).astype(np.float64)
    total = x.sum(axis=axis)
    return c * (x.size / max(total.size, 1)) * eps(dtype) * total


def ulp_bound(reference: Any, dtype: Any = "float32", ulps: float = 4.0) -> np.ndarray:
    """So many units in the last place of each element, in `dtype`."""
    rounded = np.abs(host(reference)).astype(str(dtype))
    return ulps * np.spacing(rounded).astype(np.float64)


def assert_within(what: str, actual: Any, reference: Any, bound: Any) -> float:
    """The share of the bound that the largest error takes; AssertionError where that is more than all of it."""
    found = host(actual)
    expected = host(reference).astype(np.float64)
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, not {expected.shape}"
    error = np.abs(found.astype(np.float64) - expected)
    limit = np.broadcast_to(np.asarray(bound, dtype=np.float64), error.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(error == 0, 0.0, error / limit)
    worst = np.nan_to_num(share, nan=np.inf)
    if worst.size and worst.max() > 1.0:
        i = np.unravel_index(int(worst.argmax()), worst.shape)
        ulp = error[i] / np.spacing(np.abs(expected[i]).astype(found.dtype))
        raise AssertionError(
            f"{what}: {found[i]!r} at {tuple(map(int, i))}, not {expected[i]!r}: an error of {error[i]:.3g} "
            f"({ulp:.3g} ulp), {worst[i]:.3g} times its bound of {limit[i]:.3g}; "
            f"{int((worst > 1).sum())} of {worst.size} elements are beyond theirs"
        )
    return float(worst.max()) if worst.size else 0.0


def assert_equal(what: str, actual: Any, reference: Any) -> None:
    """Equal to the bit, dtype and shape included."""
    found, expected = host(actual), host(reference)
    assert found.dtype == expected.dtype, f"{what}: {found.dtype}, not {expected.dtype}"
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, not {expected.shape}"
    different = found != expected
    if different.any():
        i = np.unravel_index(int(different.argmax()), different.shape) if different.ndim else ()
        raise AssertionError(
            f"{what}: {int(different.sum())} of {different.size} elements differ; "
            f"the first at {tuple(map(int, i))}: {found[i]!r}, not {expected[i]!r}"
        )
