"""Layers: linear maps, dropout and flattening, with PyTorch's names."""

from __future__ import annotations

import math
from typing import Any

from gradflow import ops
from gradflow.backend.registry import DeviceLike
from gradflow.nn import init
from gradflow.nn.constructors import positive, read_only
from gradflow.nn.module import Module
from gradflow.nn.parameter import Parameter
from gradflow.ops.network import check_activation, check_dropout
from gradflow.pytorch_names import explains_arguments
from gradflow.random.generator import Generator
from gradflow.shapes import normalize_axes
from gradflow.tensor import Tensor


@explains_arguments
class Linear(Module):
    """activation(x @ weight.T + bias), as one fused operation.

    in_features, out_features: the widths of the input and of the result, at least 1.
    bias: whether to add a bias (default True).
    activation: a name such as "relu", or None (default).
    device, dtype: of the parameters (default, the current device and float32).
    generator: draws the initial values (default, the global generator).

    Parameters: weight, (out_features, in_features), and bias, (out_features,) or None. Both start as U(-b, b) with
    b = 1 / sqrt(in_features), as in PyTorch. Raises ValueError for a width below 1 or an unknown activation.

    >>> import gradflow as gf
    >>> layer = gf.nn.Linear(3, 2, activation="relu")
    >>> layer
    Linear(in_features=3, out_features=2, bias=True, activation='relu')
    >>> layer(gf.ones((5, 3))).shape, layer.weight.shape, layer.bias.shape
    ((5, 2), (2, 3), (2,))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | None = None,
        device: DeviceLike | None = None,
        dtype: Any = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        n, m = positive("in_features", in_features), positive("out_features", out_features)
        if activation is not None:
            check_activation(activation)
        self.activation = activation
        self.weight = Parameter(ops.zeros((m, n), dtype, device))
        self.register_parameter("bias", Parameter(ops.zeros((m,), dtype, device)) if bias else None)
        bound = 1.0 / math.sqrt(n)
        init.uniform_(self.weight, -bound, bound, generator)
        if bias:
            init.uniform_(self.bias, -bound, bound, generator)

    in_features = read_only("in_features", lambda self: self.weight.shape[1], "The width of the input.")
    out_features = read_only("out_features", lambda self: self.weight.shape[0], "The width of the result.")

    @property
    def _places_in_torch(self) -> int:  # type: ignore[override]
        return 1 if self.activation is None else 2

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features); the result: (..., out_features)."""
        return ops.linear(x, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return text if self.activation is None else f"{text}, activation={self.activation!r}"


@explains_arguments
class Dropout(Module):
    """In training mode, sets each element to 0 with probability p and scales the rest by 1 / (1 - p).

    p: a probability, 0 <= p < 1 (default 0.5).
    generator: draws the masks, which are the same on every device (default, the global generator).

    Srivastava et al. 2014. Raises ValueError for another p.

    >>> import gradflow as gf
    >>> layer = gf.nn.Dropout(0.5, generator=gf.Generator(1))
    >>> layer(gf.ones(6)).tolist(), layer.eval()(gf.ones(6)).tolist()
    ([0.0, 0.0, 2.0, 2.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    """

    def __init__(self, p: float = 0.5, generator: Generator | None = None) -> None:
        super().__init__()
        check_dropout(p)
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """x with elements dropped; x itself in evaluation mode."""
        return ops.dropout(x, self.p, self.training, self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}"


@explains_arguments
class Identity(Module):
    """Returns its input.

    >>> import gradflow as gf
    >>> p = 0.0
    >>> layer = gf.nn.Dropout(p) if p else gf.nn.Identity()
    >>> layer(gf.tensor([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """

    def forward(self, x: Any) -> Any:
        """The input."""
        return x


@explains_arguments
class Flatten(Module):
    """Merges consecutive axes into one.

    start_axis, end_axis: the first and the last of them (default 1 and -1: all axes but the first).

    >>> import gradflow as gf
    >>> gf.nn.Flatten()(gf.zeros((10, 28, 28))).shape
    (10, 784)
    """

    def __init__(self, start_axis: int = 1, end_axis: int = -1) -> None:
        super().__init__()
        self.start_axis = start_axis
        self.end_axis = end_axis

    def forward(self, x: Tensor) -> Tensor:
        """x with the axes merged. Raises ValueError if start_axis lies after end_axis, IndexError if x lacks one."""
        first, last = (normalize_axes(axis, x.ndim)[0] for axis in (self.start_axis, self.end_axis))
        if first > last:
            raise ValueError(f"Flatten: start_axis {first} lies after end_axis {last} in a tensor of shape {x.shape}")
        return ops.reshape(x, (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]))

    def extra_repr(self) -> str:
        return f"start_axis={self.start_axis}, end_axis={self.end_axis}"
