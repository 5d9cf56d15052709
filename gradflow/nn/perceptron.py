"""Layers: linear maps, activations, dropout, normalisation, and modules in a row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import index
from typing import Any, Self

from gradflow import ops
from gradflow.backend.registry import DeviceLike
from gradflow.nn import init
from gradflow.nn.module import Incompatible, Module, Parameter, StateError, fixed, speaks_for_itself
from gradflow.ops.network import check_activation, check_dropout, check_epsilon
from gradflow.random.generator import Generator
from gradflow.shapes import normalize_axes
from gradflow.tensor import Tensor


def _positive(what: str, value: Any) -> int:
    """A count, as a Python integer: what `labels.max() + 1` of a NumPy array gives is one too."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or index(value) < 1:
        raise ValueError(f"{what} is an integer of at least 1; got {value!r}")
    return index(value)


class Linear(Module):
    """activation(x @ weight.T + bias), fused. weight: (out_features, in_features), bias: (out_features,).

    Both start as U(-b, b) with b = 1 / sqrt(in_features), as in PyTorch. `activation` is a name such as "relu", or
    None. Raises ValueError for a width below 1 or an unknown activation.
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
        n, m = _positive("in_features", in_features), _positive("out_features", out_features)
        if activation is not None:
            check_activation(activation)
        self.activation = activation
        self.weight = Parameter(ops.zeros((m, n), dtype, device))
        self.register_parameter("bias", Parameter(ops.zeros((m,), dtype, device)) if bias else None)
        bound = 1.0 / math.sqrt(n)
        init.uniform_(self.weight, -bound, bound, generator)
        if bias:
            init.uniform_(self.bias, -bound, bound, generator)

    in_features = fixed("in_features", lambda self: self.weight.shape[1], "The width of the input.")
    out_features = fixed("out_features", lambda self: self.weight.shape[0], "The width of the result.")

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features); the result (..., out_features)."""
        return ops.linear(x, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return text if self.activation is None else f"{text}, activation={self.activation!r}"


class _Activation(Module):
    """An activation without parameters, as a module."""

    function: Any

    def forward(self, x: Tensor) -> Tensor:
        """The activation of every element."""
        result: Tensor = type(self).function(x)
        return result


class ReLU(_Activation):
    """max(x, 0)."""

    function = staticmethod(ops.relu)


class Sigmoid(_Activation):
    """1 / (1 + exp(-x))."""

    function = staticmethod(ops.sigmoid)


class Tanh(_Activation):
    """The hyperbolic tangent."""

    function = staticmethod(ops.tanh)


class GELU(_Activation):
    """The Gaussian error linear unit, in the tanh form."""

    function = staticmethod(ops.gelu)


class SiLU(_Activation):
    """x * sigmoid(x)."""

    function = staticmethod(ops.silu)


class Softplus(_Activation):
    """log(1 + exp(x))."""

    function = staticmethod(ops.softplus)


class LeakyReLU(Module):
    """x where it is positive, else negative_slope * x."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """The activation of every element."""
        return ops.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class ELU(Module):
    """x where it is positive, else alpha * (exp(x) - 1)."""

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """The activation of every element."""
        return ops.elu(x, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class _AlongAxis(Module):
    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


class Softmax(_AlongAxis):
    """exp(x) / sum(exp(x)) along `axis`."""

    def forward(self, x: Tensor) -> Tensor:
        """The softmax of x."""
        return ops.softmax(x, self.axis)


class LogSoftmax(_AlongAxis):
    """log(softmax(x)) along `axis`."""

    def forward(self, x: Tensor) -> Tensor:
        """The logarithm of the softmax of x."""
        return ops.log_softmax(x, self.axis)


class Dropout(Module):
    """In training mode, each element 0 with probability p and else scaled by 1 / (1 - p); else nothing.

    The masks come from `generator`, by default the global one. Raises ValueError for p outside [0, 1).
    """

    def __init__(self, p: float = 0.5, generator: Generator | None = None) -> None:
        super().__init__()
        check_dropout(p)
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """x with elements dropped, or x itself in evaluation mode."""
        return ops.dropout(x, self.p, self.training, self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class LayerNorm(Module):
    """x less its mean, over its standard deviation, over the trailing axes `normalized_shape`; scaled and shifted.

    weight starts at 1 and bias at 0; neither exists without `elementwise_affine`. ValueError for a length below 1 or a
    negative eps.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        device: DeviceLike | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        lengths = normalized_shape if isinstance(normalized_shape, Iterable) else (normalized_shape,)
        shape = self.normalized_shape = tuple(_positive("a length of normalized_shape", n) for n in lengths)
        if not shape:
            raise ValueError("normalized_shape has at least one length; got none")
        check_epsilon(eps)
        self.eps = eps
        affine = elementwise_affine
        self.register_parameter("weight", Parameter(ops.ones(shape, dtype, device)) if affine else None)
        self.register_parameter("bias", Parameter(ops.zeros(shape, dtype, device)) if affine else None)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., *normalized_shape); the result has its shape."""
        return ops.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.weight is not None}"


class Identity(Module):
    """x itself."""

    def forward(self, x: Any) -> Any:
        """The input."""
        return x


class Flatten(Module):
    """The axes from `start_axis` to `end_axis`, both included, as one: all but the first unless told otherwise."""

    def __init__(self, start_axis: int = 1, end_axis: int = -1) -> None:
        super().__init__()
        self.start_axis = start_axis
        self.end_axis = end_axis

    def forward(self, x: Tensor) -> Tensor:
        """x in another shape. Raises ValueError or IndexError where it has no such axes."""
        first, last = (normalize_axes(axis, x.ndim)[0] for axis in (self.start_axis, self.end_axis))
        if first > last:
            raise ValueError(f"Flatten of the axes {first} to {last}: there are none; the shape is {x.shape}")
        return ops.reshape(x, (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]))

    def extra_repr(self) -> str:
        return f"start_axis={self.start_axis}, end_axis={self.end_axis}"


class _Row(Module):
    """Modules that are registered by their places."""

    def append(self, module: Module) -> Self:
        """Add a module at the end; returns the row. TypeError for what is none."""
        if not isinstance(module, Module):
            name = type(self).__name__
            raise TypeError(f"a {name} is made of modules; got {type(module).__name__} at place {len(self)}")
        taken = [int(name) for name in self._modules if name.isdigit()]
        setattr(self, str(max(taken, default=-1) + 1), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end; returns the row. TypeError for what is none."""
        for module in modules:
            self.append(module)
        return self

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def __getitem__(self, index: int | slice) -> Any:
        modules = list(self._modules.values())
        return self._of(modules[index]) if isinstance(index, slice) else modules[index]

    def _of(self, modules: Sequence[Any]) -> Any:
        raise NotImplementedError


class ModuleList(_Row):
    """A list of modules, which computes nothing: its owner says what is done with them. A slice is another list."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def _of(self, modules: Sequence[Any]) -> Any:
        return ModuleList(modules)


class Sequential(_Row):
    """Modules one after another: each takes the result of the one before. A slice is a Sequential of the same ones."""

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        self.extend(modules)

    def forward(self, x: Any) -> Any:
        """The result of the last module."""
        for module in self._modules.values():
            x = module(x)  # type: ignore[misc]  # a place may be None, as in PyTorch; then this is the error
        return x

    def _of(self, modules: Sequence[Any]) -> Any:
        return Sequential(*modules)


class MLP(Sequential):
    """A multilayer perceptron: linear layers of the widths `sizes`, an activation (and dropout) after all but the last.

    sizes: (inputs, hidden, ..., outputs). The activation is fused into its layer; assigning `activation` changes it in
    all layers but the last. The layers are called 0, 1, 2, ..., with dropout between them or not. ValueError for fewer
    than two sizes, a width below 1, an unknown activation or a dropout outside [0, 1).

    >>> from gradflow import nn
    >>> nn.MLP([64, 32, 10], dropout=0.2)
    MLP(
      (0): Linear(in_features=64, out_features=32, bias=True, activation='relu')
      (dropout0): Dropout(p=0.2)
      (1): Linear(in_features=32, out_features=10, bias=True)
    )
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str = "relu",
        dropout: float = 0.0,
        device: DeviceLike | None = None,
        dtype: Any = None,
        generator: Generator | None = None,
    ) -> None:
        if not isinstance(sizes, Iterable):
            raise TypeError(f"an MLP takes its sizes as one sequence: nn.MLP([2, 3, 1]); got {sizes!r}")
        widths = tuple(_positive("a size", n) for n in sizes)
        if len(widths) < 2:
            raise ValueError(f"an MLP needs at least two sizes, inputs and outputs; got {widths}")
        check_activation(activation)
        check_dropout(dropout)
        super().__init__()
        for i, (n, m) in enumerate(pairwise(widths)):
            last = i == len(widths) - 2
            setattr(self, str(i), Linear(n, m, True, None if last else activation, device, dtype, generator))
            if dropout and not last:
                setattr(self, f"dropout{i}", Dropout(dropout, generator))
        self._sizes = widths
        self._activation = activation

    sizes = fixed("sizes", lambda self: self._sizes, "The widths of all layers, the inputs first.")

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Incompatible:
        """As `Module.load_state_dict`; the error for layers numbered 0, 2, 4, ... says how to rename them."""
        try:
            return super().load_state_dict(state, strict)
        except StateError as error:
            names = [f"{2 * i}.{kind}" for i in range(len(self._sizes) - 1) for kind in ("weight", "bias")]
            if set(state) != set(names):
                raise
            raise StateError(
                f"{error}: this state numbers the layers 0, 2, 4, ..., with dropout between them; halve the numbers: "
                """{f"{int(k.split('.')[0]) // 2}.{k.split('.')[1]}": v for k, v in state.items()}"""
            ) from None

    @property
    def activation(self) -> str:
        """The activation after all layers but the last."""
        name: str = self._activation
        return name

    @activation.setter
    def activation(self, name: str) -> None:
        check_activation(name)
        self._activation = name
        for layer in [module for module in self._modules.values() if isinstance(module, Linear)][:-1]:
            layer.activation = name

    def forward(self, x: Any) -> Any:
        """x: (..., inputs); the result (..., outputs). Layers that nobody has changed or hooked are one operation."""
        left, layers, activation = len(self._modules), [], self._activation
        for module in self._modules.values():
            left -= 1
            if module.__class__ is not Linear or module._forward_hooks or "forward" in module.__dict__:
                break
            if module.activation != (activation if left else None):
                break
            layers.append((module.weight, module.bias))
        else:
            if layers:
                return ops.network.perceptron(x, layers, activation)
        return super().forward(x)


for _cls in (
    Linear, ReLU, Sigmoid, Tanh, GELU, SiLU, Softplus, LeakyReLU, ELU, Softmax, LogSoftmax, Dropout, LayerNorm,
    Identity, Flatten, ModuleList, Sequential, MLP,
):  # fmt: skip
    speaks_for_itself(_cls)
