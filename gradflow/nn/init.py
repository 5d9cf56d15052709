"""Initial values of parameters, with PyTorch's names and formulas. Each function overwrites a tensor and returns it.

The numbers come from a generator of `gradflow.random`, by default the global one, and are the same on every device.
"""

from __future__ import annotations

import math
from typing import Any

from gradflow import random
from gradflow.autograd.grad_mode import no_grad
from gradflow.random.generator import Generator
from gradflow.tensor import Tensor

_GAINS = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5.0 / 3.0, "relu": math.sqrt(2.0), "selu": 0.75}


def calculate_gain(nonlinearity: str, a: float = 0.01) -> float:
    """The factor by which weights before this activation are larger; `a` is the slope of "leaky_relu".

    Raises ValueError for an activation without one.
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1.0 + a * a))
    if nonlinearity not in _GAINS:
        raise ValueError(f"no gain is known for {nonlinearity!r}; there are leaky_relu, {', '.join(_GAINS)}")
    return _GAINS[nonlinearity]


def _fans(tensor: Tensor) -> tuple[int, int]:
    if tensor.ndim < 2:
        raise ValueError(
            f"fan-in and fan-out need a weight of at least two axes (out, in); the shape is {tensor.shape}"
        )
    rest = math.prod(tensor.shape[2:])
    return max(tensor.shape[1] * rest, 1), max(tensor.shape[0] * rest, 1)  # 0 where there is nothing to fill


def _overwrite(tensor: Tensor, values: Tensor) -> Tensor:
    with no_grad():
        return tensor.copy_(values)


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Numbers spread evenly between a and b. ValueError for a > b."""
    if not a <= b:
        raise ValueError(f"uniform_ needs a <= b; got a={a}, b={b}")
    how: Any = {"dtype": tensor.dtype, "device": tensor.device, "generator": generator}
    return _overwrite(tensor, random.uniform(tensor.shape, low=a, high=b, **how))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normally distributed numbers. ValueError for std < 0."""
    if std < 0:
        raise ValueError(f"normal_ needs std >= 0; got {std}")
    how: Any = {"dtype": tensor.dtype, "device": tensor.device, "generator": generator}
    return _overwrite(tensor, random.normal(tensor.shape, mean=mean, std=std, **how))


def constant_(tensor: Tensor, value: float) -> Tensor:
    """One value everywhere."""
    with no_grad():
        tensor._assign(float(value))
    return tensor


def zeros_(tensor: Tensor) -> Tensor:
    """0 everywhere."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """1 everywhere."""
    return constant_(tensor, 1.0)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """U(-b, b) with b = gain * sqrt(6 / (fan_in + fan_out)). Glorot & Bengio 2010, eq. 16. ValueError for one axis."""
    bound = gain * math.sqrt(6.0 / sum(_fans(tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """N(0, s^2) with s = gain * sqrt(2 / (fan_in + fan_out)). Glorot & Bengio 2010, eq. 12. ValueError for one axis."""
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(_fans(tensor))), generator)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode is 'fan_in' or 'fan_out'; got {mode!r}")
    fan = _fans(tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """U(-b, b) with b = gain * sqrt(3 / fan). He et al. 2015, "Delving Deep into Rectifiers", eq. 10 and 14.

    `a` is the slope of a leaky ReLU. Raises ValueError for one axis or an unknown mode or activation.
    """
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """N(0, s^2) with s = gain / sqrt(fan). He et al. 2015, eq. 10 and 14. ValueError as for `kaiming_uniform_`."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)
