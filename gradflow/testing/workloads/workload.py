"""`Workload`, `Place` and `Check`: what runs, where, and how its results are judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import gradflow as gf
from gradflow.testing.tolerances import eps, host

EPS = eps("float32")


class Place(NamedTuple):
    """Where a workload runs: a device, and the dtype of its floating-point numbers."""

    device: str
    dtype: str = "float32"

    def tensor(self, values: Any, grad: bool = False) -> gf.Tensor:
        """Return a tensor of these values; floating-point values are rounded to float32, then cast to `dtype`."""
        values = np.asarray(values)
        if values.dtype.kind == "f":
            values = values.astype(np.float32).astype(self.dtype)
        return gf.tensor(values, device=self.device, requires_grad=grad)

    def normal(self, shape: tuple[int, ...], seed: int, scale: float = 1.0, grad: bool = False) -> gf.Tensor:
        """Return normally distributed numbers, the same at every place."""
        return self.tensor(np.random.default_rng(seed).normal(size=shape) * scale, grad)


class Check(NamedTuple):
    """A result to judge: its name, its value, and the bound on its error.

    value: the result, or a function that returns it, so that one that raises does not stop the others.
    label: the bound in words.
    bound: None for equality bit for bit, a number of ulp, or a function that returns the largest error allowed for each
        element; only the reference calls it.
    """

    what: str
    value: Any
    label: str = "exact"
    bound: float | Callable[[], Any] | None = None


@dataclass(frozen=True)
class Workload:
    """A group of the table and the function that returns its checks. `exact`: the reference is float32, not float64."""

    group: str
    run: Callable[[Place], list[Check]]
    exact: bool = False


def f64(x: Any) -> Any:
    """Return the values of x on the host, in float64."""
    return host(x).astype(np.float64)


def times_size(factor: float, x: Any, power: int = 1) -> Any:
    """Return `factor * eps * (1 + |x|**power)` for each element of x."""
    return factor * EPS * (1 + np.abs(f64(x)) ** power)
