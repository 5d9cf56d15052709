"""Sequences of modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

from gradflow.nn.module import Module
from gradflow.pytorch_names import explains_arguments


class _ModuleSequence(Module):
    """Modules that are registered under their positions: "0", "1", ..."""

    def append(self, module: Module) -> Self:
        """Add a module at the end; returns the sequence. Raises TypeError for anything else."""
        if not isinstance(module, Module):
            name = type(self).__name__
            raise TypeError(f"a {name} is made of modules; got {type(module).__name__} at position {len(self)}")
        taken = [int(name) for name in self._modules if name.isdigit()]
        setattr(self, str(max(taken, default=-1) + 1), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end; returns the sequence. Raises TypeError for anything else."""
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
        """What a slice returns."""
        raise NotImplementedError


@explains_arguments
class ModuleList(_ModuleSequence):
    """A list whose modules, and their parameters, are registered; it has no `forward`. A slice is a ModuleList.

    modules: any number of modules (default none).

    >>> import gradflow as gf
    >>> class Residual(gf.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layers = gf.nn.ModuleList(gf.nn.Linear(4, 4) for _ in range(3))
    ...     def forward(self, x):
    ...         for layer in self.layers:
    ...             x = x + layer(x)
    ...         return x
    >>> len(list(Residual().parameters()))
    6
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def _of(self, modules: Sequence[Any]) -> Any:
        return ModuleList(modules)


@explains_arguments
class Sequential(_ModuleSequence):
    """Modules that are called in order, each with the result of the one before. A slice is a Sequential.

    modules: any number of modules; without any, the input is returned.

    >>> import gradflow as gf
    >>> model = gf.nn.Sequential(gf.nn.Linear(2, 8), gf.nn.ReLU(), gf.nn.Linear(8, 1))
    >>> model(gf.ones((5, 2))).shape, model[0].weight.shape
    ((5, 1), (8, 2))
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        self.extend(modules)

    def forward(self, x: Any) -> Any:
        """The result of the last module."""
        for module in self._modules.values():
            x = module(x)  # type: ignore[misc]  # a module may have been set to None, as in PyTorch: this raises
        return x

    def _in_torch(self) -> Iterator[tuple[str, Module | None]]:
        position = 0
        for module in self._modules.values():
            yield str(position), module
            position += 1 if module is None else module._places_in_torch

    def _of(self, modules: Sequence[Any]) -> Any:
        return Sequential(*modules)
