"""The multilayer perceptron, whose layers run as one operation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from gradflow.autograd.grad_mode import current_observer
from gradflow.backend.registry import DeviceLike
from gradflow.nn.constructors import positive, read_only
from gradflow.nn.containers import Sequential
from gradflow.nn.layers import Dropout, Linear
from gradflow.nn.state import Incompatible, StateError
from gradflow.ops.network import check_activation, check_dropout, perceptron
from gradflow.pytorch_names import explains_arguments
from gradflow.random.generator import Generator


@explains_arguments
class MLP(Sequential):
    """A multilayer perceptron: linear layers, with an activation (and dropout) after all but the last.

    sizes: the widths (inputs, hidden, ..., outputs), at least two, each at least 1.
    activation: the name of an activation, fused into its layer (default "relu"). Assigning `activation` changes it in
        all layers but the last.
    dropout: the probability of dropping an element after each activation, 0 <= p < 1 (default 0: no dropout).
    device, dtype: of the parameters (default, the current device and float32).
    generator: draws the initial values and the dropout masks (default, the global generator).

    The layers are named 0, 1, 2, ..., whether or not there is dropout between them. Raises ValueError for invalid
    sizes, an unknown activation or an invalid probability.

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
        if isinstance(sizes, str) or not isinstance(sizes, Iterable):
            raise TypeError(f"an MLP takes its sizes as one sequence: nn.MLP([2, 3, 1]); got {sizes!r}")
        widths = tuple(positive("a size", n) for n in sizes)
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
        self._activation = activation

    @property
    def _linear(self) -> list[Linear]:
        return [module for module in self._modules.values() if isinstance(module, Linear)]

    sizes = read_only(
        "sizes",
        lambda self: (*[x.in_features for x in self._linear], *[x.out_features for x in self._linear[-1:]]),
        "The widths of all layers, the inputs first.",
    )

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Incompatible:
        """Like `Module.load_state_dict`; the error for layers numbered 0, 2, 4, ... says how to rename them."""
        try:
            return super().load_state_dict(state, strict)
        except StateError as error:
            names = [f"{2 * i}.{kind}" for i in range(len(self._linear)) for kind in ("weight", "bias")]
            if set(state) != set(names):
                raise
            raise StateError(
                f"{error}: this state numbers the layers 0, 2, 4, ..., with dropout between them; halve the numbers: "
                """{f"{int(k.split('.')[0]) // 2}.{k.split('.')[1]}": v for k, v in state.items()}"""
            ) from None

    @property
    def activation(self) -> str:
        """The name of the activation after all layers but the last."""
        name: str = self._activation
        return name

    @activation.setter
    def activation(self, name: str) -> None:
        check_activation(name)
        self._activation = name
        for layer in self._linear[:-1]:
            layer.activation = name

    def forward(self, x: Any) -> Any:
        """x: (..., inputs); the result: (..., outputs). Unchanged linear layers without hooks run as one operation."""
        left, layers, activation = len(self._modules), [], self._activation
        for module in self._modules.values():
            left -= 1
            if module.__class__ is not Linear or module._hooked or "forward" in module.__dict__:
                break
            if module.activation != (activation if left else None):
                break
            layers.append((module.weight, module.bias))
        else:
            if layers and current_observer.get() is None:  # an observer sees each layer
                return perceptron(x, layers, activation)
        return super().forward(x)
