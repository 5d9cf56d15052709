"""Activations as modules, with PyTorch's names."""

from __future__ import annotations

from typing import Any

from gradflow import ops
from gradflow.nn.module import Module
from gradflow.ops.activations import check_approximation
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
    """max(x, 0), elementwise; the gradient at 0 is 0 (Nair & Hinton 2010).

    >>> import gradflow as gf
    >>> gf.nn.ReLU()(gf.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    function = staticmethod(ops.relu)


@explains_arguments
class Sigmoid(_Activation):
    """1 / (1 + exp(-x)), elementwise.

    >>> import gradflow as gf
    >>> [round(y, 4) for y in gf.nn.Sigmoid()(gf.tensor([-1.0, 0.0, 1.0])).tolist()]
    [0.2689, 0.5, 0.7311]
    """

    function = staticmethod(ops.sigmoid)


@explains_arguments
class Tanh(_Activation):
    """The hyperbolic tangent, elementwise.

    >>> import gradflow as gf
    >>> model = gf.nn.Sequential(gf.nn.Linear(2, 3), gf.nn.Tanh())
    >>> model(gf.ones((5, 2))).shape
    (5, 3)
    """

    function = staticmethod(ops.tanh)


@explains_arguments
class GELU(Module):
    """The Gaussian error linear unit, elementwise (Hendrycks & Gimpel 2016).

    approximate: "tanh" (default) for 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))), or "none" for the exact
    0.5 * x * (1 + erf(x / sqrt(2))), which is PyTorch's default.

    Raises ValueError for another word.

    >>> import gradflow as gf
    >>> x = gf.tensor([-1.0, 0.0, 1.0])
    >>> [round(y, 4) for y in gf.nn.GELU()(x).tolist()]
    [-0.1588, 0.0, 0.8412]
    >>> [round(y, 4) for y in gf.nn.GELU(approximate="none")(x).tolist()]
    [-0.1587, 0.0, 0.8413]
    """

    def __init__(self, approximate: str = "tanh") -> None:
        super().__init__()
        check_approximation(approximate)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """The activation of each element; the result has the shape of x."""
        return ops.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


@explains_arguments
class SiLU(_Activation):
    """x * sigmoid(x), elementwise (Elfwing et al. 2018).

    >>> import gradflow as gf
    >>> [round(y, 3) for y in gf.nn.SiLU()(gf.tensor([-1.0, 0.0, 1.0])).tolist()]
    [-0.269, 0.0, 0.731]
    """

    function = staticmethod(ops.silu)


@explains_arguments
class Softplus(_Activation):
    """log(1 + exp(x)), elementwise (Dugas et al. 2001).

    >>> import gradflow as gf
    >>> [round(y, 3) for y in gf.nn.Softplus()(gf.tensor([-1.0, 0.0, 100.0])).tolist()]
    [0.313, 0.693, 100.0]
    """

    function = staticmethod(ops.softplus)


@explains_arguments
class LeakyReLU(Module):
    """x where x > 0, else negative_slope * x; elementwise (Maas et al. 2013).

    negative_slope: the slope where x <= 0 (default 0.01).

    >>> import gradflow as gf
    >>> gf.nn.LeakyReLU(0.25)(gf.tensor([-4.0, 4.0])).tolist()
    [-1.0, 4.0]
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

    >>> import gradflow as gf
    >>> [round(y, 3) for y in gf.nn.ELU(alpha=2.0)(gf.tensor([-100.0, 3.0])).tolist()]
    [-2.0, 3.0]
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
    def __init__(self, axis: int | tuple[int, ...] = -1) -> None:
        super().__init__()
        self.axis = axis

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


@explains_arguments
class Softmax(_AlongAxis):
    """exp(x) / sum(exp(x)), summed along an axis.

    axis: the axis along which results sum to 1 (default -1, the last), or a tuple of axes.

    >>> import gradflow as gf
    >>> gf.nn.Softmax(axis=0)(gf.tensor([[1.0, 0.0], [1.0, 1000.0]])).tolist()
    [[0.5, 0.0], [0.5, 1.0]]
    """

    def forward(self, x: Tensor) -> Tensor:
        """The softmax of x, of its shape."""
        return ops.softmax(x, self.axis)


@explains_arguments
class LogSoftmax(_AlongAxis):
    """The logarithm of softmax(x), computed without overflow.

    axis: the axis of the softmax (default -1, the last), or a tuple of axes.

    >>> import gradflow as gf
    >>> gf.nn.LogSoftmax()(gf.tensor([[1000.0, 0.0]])).tolist()
    [[0.0, -1000.0]]
    """

    def forward(self, x: Tensor) -> Tensor:
        """The logarithm of the softmax of x, of its shape."""
        return ops.log_softmax(x, self.axis)
