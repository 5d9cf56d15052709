"""What a workload is: a place to run on, checks of its results, and a group of the table."""

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
        """A tensor of the values here; floating-point ones are rounded to float32, then in the place's dtype."""
        values = np.asarray(values)
        if values.dtype.kind == "f":
            values = values.astype(np.float32).astype(self.dtype)
        return gf.tensor(values, device=self.device, requires_grad=grad)

    def normal(self, shape: tuple[int, ...], seed: int, scale: float = 1.0, grad: bool = False) -> gf.Tensor:
        """Normally distributed numbers, the same at every place."""
        return self.tensor(np.random.default_rng(seed).normal(size=shape) * scale, grad)


class Check(NamedTuple):
    """A result to be judged: what it is, its value, and the bound on its error.

    The value may be a function that gives it, so that one that raises does not take the others with it. The bound is
    None for equality to the bit, a number for so many ulp, or a function that gives the largest error allowed for each
    element, which only the reference calls. `label` is the bound in words.
    """

    what: str
    value: Any
    label: str = "exact"
    bound: float | Callable[[], Any] | None = None


@dataclass(frozen=True)
class Workload:
    """A group of the table, and the function that gives its checks. `exact`: the reference is of the same dtype."""

    group: str
    run: Callable[[Place], list[Check]]
    exact: bool = False


def f64(x: Any) -> Any:
    """Return the values of x on the host, in float64."""
    return host(x).astype(np.float64)


def times_size(factor: float, x: Any, power: int = 1) -> Any:
    """Return `factor * eps * (1 + |x|**power)` for each element of x."""
    return factor * EPS * (1 + np.abs(f64(x)) ** power)
