"""Activations as modules, with PyTorch's names."""

from __future__ import annotations

from typing import Any

from gradflow import ops
from gradflow.nn.module import Module
from gradflow.pytorch_names import explains_arguments
from gradflow.tensor import Tensor


class _Activation(Module):
    """An elementwise function without settings, as a module."""

    function: Any

    def forward(self, x: Tensor) -> Tensor:
        """The activation of each element; the result has the shape of x."""
        result: Tensor = type(self).function(x)
        return result


@explains_arguments
class ReLU(_Activation):
    """max(x, 0), elementwise; the gradient at 0 is 0 (Nair & Hinton 2010)."""

    function = staticmethod(ops.relu)


@explains_arguments
class Sigmoid(_Activation):
    """1 / (1 + exp(-x)), elementwise."""

    function = staticmethod(ops.sigmoid)


@explains_arguments
class Tanh(_Activation):
    """The hyperbolic tangent, elementwise."""

    function = staticmethod(ops.tanh)


@explains_arguments
class GELU(_Activation):
    """The Gaussian error linear unit, elementwise, in its tanh form (Hendrycks & Gimpel 2016).

    0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))).
    """

    function = staticmethod(ops.gelu)


@explains_arguments
class SiLU(_Activation):
    """x * sigmoid(x), elementwise (Elfwing et al. 2018)."""

    function = staticmethod(ops.silu)


@explains_arguments
class Softplus(_Activation):
    """log(1 + exp(x)), elementwise (Dugas et al. 2001)."""

    function = staticmethod(ops.softplus)


@explains_arguments
class LeakyReLU(Module):
    """x where x > 0, else negative_slope * x; elementwise (Maas et al. 2013).

    negative_slope: the slope where x <= 0 (default 0.01).
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """The activation of each element; the result has the shape of x."""
        return ops.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


@explains_arguments
class ELU(Module):
    """x where x > 0, else alpha * (exp(x) - 1); elementwise (Clevert et al. 2016).

    alpha: the factor where x <= 0; the result is above -alpha (default 1).
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """The activation of each element; the result has the shape of x."""
        return ops.elu(x, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class _AlongAxis(Module):
    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


@explains_arguments
class Softmax(_AlongAxis):
    """exp(x) / sum(exp(x)), summed along an axis.

    axis: the axis along which results sum to 1 (default -1, the last).
    """

    def forward(self, x: Tensor) -> Tensor:
        """The softmax of x, of its shape."""
        return ops.softmax(x, self.axis)


@explains_arguments
class LogSoftmax(_AlongAxis):
    """The logarithm of softmax(x), computed without overflow.

    axis: the axis of the softmax (default -1, the last).
    """

    def forward(self, x: Tensor) -> Tensor:
        """The logarithm of the softmax of x, of its shape."""
        return ops.log_softmax(x, self.axis)
