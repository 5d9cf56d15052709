"""Activations as modules, with PyTorch's names."""

from __future__ import annotations

from typing import Any

from gradflow import ops
from gradflow.backend.registry import DeviceLike
from gradflow.nn.constructors import positive, read_only
from gradflow.nn.module import Module
from gradflow.nn.parameter import Parameter
from gradflow.ops.activations import check_approximation, check_limits
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
class Mish(_Activation):
    """x * tanh(softplus(x)), elementwise (Misra 2019).

    >>> import gradflow as gf
    >>> [round(y, 3) for y in gf.nn.Mish()(gf.tensor([-1.0, 0.0, 1.0])).tolist()]
    [-0.303, 0.0, 0.865]
    """

    function = staticmethod(ops.mish)


@explains_arguments
class SELU(_Activation):
    """scale * x where x > 0, else scale * alpha * (exp(x) - 1); elementwise (Klambauer et al. 2017).

    With scale = 1.0507... and alpha = 1.6733..., layers whose weights start with mean 0 and variance 1 / in_features
    keep mean 0 and variance 1.

    >>> import gradflow as gf
    >>> [round(y, 3) for y in gf.nn.SELU()(gf.tensor([-100.0, 0.0, 1.0])).tolist()]
    [-1.758, 0.0, 1.051]
    """

    function = staticmethod(ops.selu)


@explains_arguments
class Softsign(_Activation):
    """x / (1 + |x|), elementwise (Bergstra et al. 2009).

    >>> import gradflow as gf
    >>> gf.nn.Softsign()(gf.tensor([-1.0, 0.0, 3.0])).tolist()
    [-0.5, 0.0, 0.75]
    """

    function = staticmethod(ops.softsign)


@explains_arguments
class Hardtanh(Module):
    """x limited to [min_val, max_val], elementwise; the gradient at the limits is 0 (Collobert 2004).

    min_val, max_val: the limits (default -1 and 1); 0 and 6 make PyTorch's ReLU6.

    Raises ValueError if min_val > max_val, TypeError unless both are numbers.

    >>> import gradflow as gf
    >>> gf.nn.Hardtanh(0.0, 6.0)(gf.tensor([-1.0, 2.0, 7.0])).tolist()
    [0.0, 2.0, 6.0]
    """

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0) -> None:
        super().__init__()
        check_limits(min_val, max_val)
        self.min_val = min_val
        self.max_val = max_val

    def forward(self, x: Tensor) -> Tensor:
        """The activation of each element; the result has the shape of x."""
        return ops.hardtanh(x, self.min_val, self.max_val)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}"


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


@explains_arguments
class PReLU(Module):
    """x where x > 0, else weight * x, with slopes that are learned (He et al. 2015, "Delving Deep into Rectifiers").

    num_parameters: 1 for one slope (default), or the length of axis 1 of the inputs for one slope for each channel.
    init: the slopes at the start (default 0.25).
    device, dtype: of the slopes (default, the current device and float32).

    Parameter: weight, (num_parameters,). Weight decay pulls it to 0, which makes the module a ReLU. Raises ValueError
    for num_parameters below 1.

    >>> import gradflow as gf
    >>> layer = gf.nn.PReLU(2)
    >>> layer(gf.tensor([[-4.0, 8.0]])).tolist(), layer.weight.tolist()
    ([[-1.0, 8.0]], [0.25, 0.25])
    """

    def __init__(
        self, num_parameters: int = 1, init: float = 0.25, device: DeviceLike | None = None, dtype: Any = None
    ) -> None:
        super().__init__()
        n = positive("num_parameters", num_parameters)
        self.weight = Parameter(ops.full((n,), float(init), dtype, device))

    num_parameters = read_only("num_parameters", lambda self: self.weight.shape[0], "The number of slopes.")

    def forward(self, x: Tensor) -> Tensor:
        """The activation of each element; the result has the shape of x."""
        return ops.prelu(x, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


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


@explains_arguments
class GLU(Module):
    """a * sigmoid(b), where a and b are the halves of x along an axis (Dauphin et al. 2017).

    axis: the axis that is halved (default -1, the last); its length is even.

    >>> import gradflow as gf
    >>> model = gf.nn.Sequential(gf.nn.Linear(4, 2 * 8), gf.nn.GLU())
    >>> model(gf.ones((5, 4))).shape
    (5, 8)
    """

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """The first half of x times the sigmoid of the second, half as long along the axis as x."""
        return ops.glu(x, self.axis)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"
