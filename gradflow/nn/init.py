"""Initial values of parameters, with PyTorch's names and formulas. Each function overwrites a tensor and returns it.

The random numbers come from `generator`, by default the global one, and are the same on every device. fan_in and
fan_out of a weight (out, in, *kernel) are `in` and `out` times the size of the kernel.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gradflow import ops, random
from gradflow.autograd.grad_mode import no_grad
from gradflow.pytorch_names import hints_of
from gradflow.random.generator import Generator
from gradflow.random.quantile import normal_quantile
from gradflow.tensor import Tensor

_GAINS = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5.0 / 3.0, "relu": math.sqrt(2.0), "selu": 0.75}


def calculate_gain(nonlinearity: str, a: float = 0.01) -> float:
    """The gain of an activation: a factor for the standard deviation of the weights before it, as in PyTorch.

    nonlinearity: "linear", "sigmoid" (1), "tanh" (5/3), "relu" (sqrt(2)), "selu" (3/4), or "leaky_relu".
    a: the negative slope of "leaky_relu" (default 0.01), whose gain is sqrt(2 / (1 + a^2)).

    Raises ValueError for another name.

    >>> import gradflow as gf
    >>> round(gf.nn.init.calculate_gain("relu") ** 2, 6)
    2.0
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1.0 + a * a))
    if nonlinearity not in _GAINS:
        raise ValueError(f"no gain is known for {nonlinearity!r}; there are leaky_relu, {', '.join(_GAINS)}")
    return _GAINS[nonlinearity]


def _fans(tensor: Tensor) -> tuple[int, int]:
    """fan_in and fan_out, at least 1 each, so that an empty weight causes no division by zero."""
    if tensor.ndim < 2:
        raise ValueError(
            f"fan-in and fan-out need a weight of at least two axes (out, in); the shape is {tensor.shape}"
        )
    kernel = math.prod(tensor.shape[2:])
    return max(tensor.shape[1] * kernel, 1), max(tensor.shape[0] * kernel, 1)


def _overwrite(tensor: Tensor, values: Tensor) -> Tensor:
    with no_grad():
        return tensor.copy_(values)


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill a tensor from U(a, b); by default U(0, 1). Raises ValueError unless a <= b.

    generator: draws the numbers (default, the global generator).

    >>> import gradflow as gf
    >>> weight = gf.nn.init.uniform_(gf.zeros(1000), -0.5, 0.5)
    >>> weight.min().item() >= -0.5, weight.max().item() <= 0.5
    (True, True)
    """
    if not a <= b:
        raise ValueError(f"uniform_ needs a <= b; got a={a}, b={b}")
    options: Any = {"dtype": tensor.dtype, "device": tensor.device, "generator": generator}
    return _overwrite(tensor, random.uniform(tensor.shape, low=a, high=b, **options))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill a tensor from N(mean, std^2); by default N(0, 1). Raises ValueError for std < 0.

    generator: draws the numbers (default, the global generator).

    >>> import gradflow as gf
    >>> weight = gf.nn.init.normal_(gf.zeros(10000), mean=1.0, std=0.5, generator=gf.Generator(0))
    >>> round(weight.mean().item(), 1), round(weight.std().item(), 1)
    (1.0, 0.5)
    """
    if std < 0:
        raise ValueError(f"normal_ needs std >= 0; got {std}")
    options: Any = {"dtype": tensor.dtype, "device": tensor.device, "generator": generator}
    return _overwrite(tensor, random.normal(tensor.shape, mean=mean, std=std, **options))


def constant_(tensor: Tensor, value: float) -> Tensor:
    """Fill a tensor with one value.

    >>> import gradflow as gf
    >>> layer = gf.nn.Linear(2, 3)
    >>> gf.nn.init.constant_(layer.bias, 0.1).shape
    (3,)
    """
    with no_grad():
        tensor._assign(float(value))
    return tensor


def zeros_(tensor: Tensor) -> Tensor:
    """Fill a tensor with 0.

    >>> import gradflow as gf
    >>> layer = gf.nn.Linear(2, 3)
    >>> gf.nn.init.zeros_(layer.bias)
    tensor([0., 0., 0.], dtype=float32, device=cpu, requires_grad=True)
    """
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill a tensor with 1.

    >>> import gradflow as gf
    >>> gf.nn.init.ones_(gf.zeros((1, 2))).tolist()
    [[1.0, 1.0]]
    """
    return constant_(tensor, 1.0)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill a weight from U(-b, b) with b = gain * sqrt(6 / (fan_in + fan_out)).

    gain: see `calculate_gain` (default 1). generator: draws the numbers (default, the global generator).

    Glorot & Bengio 2010, eq. 16. Raises ValueError for fewer than two axes.

    >>> import gradflow as gf
    >>> weight = gf.nn.init.xavier_uniform_(gf.zeros((300, 100)), generator=gf.Generator(0))
    >>> round(weight.std().item(), 3) == round((2 / (300 + 100)) ** 0.5, 3)
    True
    """
    bound = gain * math.sqrt(6.0 / sum(_fans(tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill a weight from N(0, s^2) with s = gain * sqrt(2 / (fan_in + fan_out)).

    gain: see `calculate_gain` (default 1). generator: draws the numbers (default, the global generator).

    Glorot & Bengio 2010, eq. 12. Raises ValueError for fewer than two axes.

    >>> import gradflow as gf
    >>> weight = gf.nn.init.xavier_normal_(gf.zeros((300, 100)), generator=gf.Generator(0))
    >>> round(weight.std().item(), 2) == round((2 / (300 + 100)) ** 0.5, 2)
    True
    """
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(_fans(tensor))), generator)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode must be 'fan_in' or 'fan_out'; got {mode!r}")
    fan = _fans(tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Fill a weight from U(-b, b) with b = gain * sqrt(3 / fan), for layers followed by ReLU.

    a: the negative slope of a leaky ReLU (default 0: ReLU).
    mode: the fan, "fan_in" (default), which preserves the variance of values in the forward pass, or "fan_out", which
        preserves that of gradients in the backward pass.
    nonlinearity: the activation, for `calculate_gain` (default "leaky_relu").
    generator: draws the numbers (default, the global generator).

    He et al. 2015, "Delving Deep into Rectifiers", eq. 10 and 14. Raises ValueError for fewer than two axes, another
    mode or an unknown activation.

    >>> import gradflow as gf
    >>> layer = gf.nn.Linear(100, 50)
    >>> bound = (6 / 100) ** 0.5
    >>> gf.nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu").max().item() <= bound
    True
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
    """Fill a weight from N(0, s^2) with s = gain / sqrt(fan). Arguments and errors as for `kaiming_uniform_`.

    >>> import gradflow as gf
    >>> x = gf.random.normal((1000, 256), generator=gf.Generator(0))
    >>> for _ in range(5):
    ...     weight = gf.nn.init.kaiming_normal_(gf.zeros((256, 256)), nonlinearity="relu", generator=gf.Generator(1))
    ...     x = gf.relu(x @ weight.T)
    >>> 0.2 < x.square().mean().item() < 5.0
    True
    """
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill a weight with `gain` times a random matrix whose rows are orthonormal, or whose columns are, if it is tall.

    tensor: (out, in, *kernel), at least two axes: the matrix is (out, in * kernel).
    gain: see `calculate_gain` (default 1). generator: draws the numbers (default, the global generator).

    Orthonormalizes normal random numbers, so that every orthogonal matrix is as likely as any other (Saxe et al. 2013).
    Computed on the CPU in float64, then copied to the device. Raises ValueError for fewer than two axes.

    >>> import gradflow as gf
    >>> weight = gf.nn.init.orthogonal_(gf.zeros((2, 5), dtype="float64"), gain=2.0)
    >>> gf.allclose(weight @ weight.T, 4.0 * gf.eye(2, dtype="float64"))
    True
    """
    if tensor.ndim < 2:
        raise ValueError(f"orthogonal_ needs a weight of at least two axes (out, in); the shape is {tensor.shape}")
    if not tensor.size:
        return tensor
    rows, columns = tensor.shape[0], tensor.size // tensor.shape[0]
    options: Any = {"dtype": "float64", "device": "cpu", "generator": generator}
    with no_grad():
        a = random.normal((max(rows, columns), min(rows, columns)), **options).T
        q = _orthonormal(_orthonormal(a))  # the second time removes rounding errors of the first
        return tensor.copy_(ops.reshape(q.T if rows >= columns else q, tensor.shape) * gain)


def _orthonormal(rows: Tensor) -> Tensor:
    """The method of Gram and Schmidt by halves, so by large products: the Q of a = QR, for the rows of a transposed.

    The diagonal of R is positive, which makes Q unique.
    """
    n = rows.shape[0]
    if n == 1:
        return rows / ops.norm(rows)
    first, rest = _orthonormal(rows[: n // 2]), rows[n // 2 :]
    return ops.concat([first, _orthonormal(rest - (rest @ first.T) @ first)])


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Fill a tensor from N(mean, std^2), restricted to [a, b].

    a, b: the limits themselves, not multiples of std (default -2 and 2); they may be infinite.
    generator: draws the numbers (default, the global generator).

    Transforms uniform numbers by the inverse of the distribution, one for each element. Raises ValueError unless a < b,
    std > 0 and some of [a, b] is less than 5 std from the mean.

    >>> import gradflow as gf
    >>> weight = gf.nn.init.trunc_normal_(gf.zeros(10000), std=0.02, a=-0.04, b=0.04, generator=gf.Generator(0))
    >>> weight.max().item() <= 0.04, round(weight.std().item(), 3)
    (True, 0.018)
    """
    if not (math.isfinite(mean) and 0.0 < std < math.inf and a < b):
        raise ValueError(f"trunc_normal_ needs a finite mean, std > 0 and a < b; got {mean=}, {std=}, {a=}, {b=}")
    low, high = (a - mean) / std, (b - mean) / std
    if low >= 5.0 or high <= -5.0:
        raise ValueError(
            f"trunc_normal_ needs limits less than 5 standard deviations from the mean; got {mean=}, {std=}, {a=}, {b=}"
        )
    low, high = (math.erfc(-limit / math.sqrt(2.0)) / 2.0 for limit in (low, high))
    options: Any = {"dtype": "float64", "device": tensor.device, "generator": generator}
    with no_grad():
        p = ops.clip(random.uniform(tensor.shape, low=low, high=high, **options), 2.0**-53, 1.0 - 2.0**-53)
        return tensor.copy_(ops.clip(normal_quantile(p, ops) * std + mean, a, b))


if not TYPE_CHECKING:
    __getattr__ = hints_of(__name__)
