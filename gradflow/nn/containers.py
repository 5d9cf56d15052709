"""Modules that hold other modules, or parameters, by position or by name."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from itertools import count
from operator import index
from typing import Any, Self

from gradflow.nn.module import Module
from gradflow.nn.parameter import Parameter
from gradflow.pytorch_names import explains_arguments
from gradflow.tensor import Tensor


class _Numbered(Module):
    """Modules, or parameters, that are registered under their positions: "0", "1", ...

    A subclass may give some of them other names. When one is inserted or removed, the others keep theirs, and the
    numbers are given again in order.
    """

    _registry = "_modules"

    def _names(self) -> list[str]:
        return list(getattr(self, self._registry))

    def _checked(self, value: Any, position: int) -> Any:
        """A new value at a position. Raises TypeError for anything but a module."""
        if isinstance(value, Module):
            return value
        name = type(self).__name__
        raise TypeError(f"a {name} is made of modules; got {type(value).__name__} at position {position}")

    def _chosen(self, key: int | slice) -> list[str]:
        """The names at a position, or at those of a slice. Raises IndexError for a position out of range."""
        names = self._names()
        if isinstance(key, slice):
            return names[key]
        if not -len(names) <= index(key) < len(names):
            raise IndexError(f"there is no position {key} in a {type(self).__name__} of length {len(names)}")
        return [names[index(key)]]

    def append(self, value: Any) -> Self:
        """Add one at the end; returns the container. Raises TypeError for a value of another kind."""
        taken = [int(name) for name in self._names() if name.isdigit()]
        setattr(self, str(max(taken, default=-1) + 1), self._checked(value, len(self)))
        return self

    def extend(self, values: Iterable[Any]) -> Self:
        """Add several at the end; returns the container. Raises TypeError for a value of another kind."""
        for value in values:
            self.append(value)
        return self

    def insert(self, position: int, value: Any) -> Self:
        """Add one in front of the one at `position`; returns the container. The numbers of those behind it grow by 1.

        Raises IndexError for a position out of range, TypeError for a value of another kind.
        """
        entries = [(name, getattr(self, name)) for name in self._names()]
        if not -len(entries) <= index(position) <= len(entries):
            raise IndexError(f"there is no position {position} in a {type(self).__name__} of length {len(entries)}")
        entries.insert(index(position), ("0", self._checked(value, position)))
        self._renumber(entries)
        return self

    def _renumber(self, entries: Iterable[tuple[str, Any]]) -> None:
        """Hold these alone, in this order, with new numbers in place of those among their names."""
        for name in self._names():
            delattr(self, name)
        numbers = count()
        for name, value in entries:
            self._register(self._registry, str(next(numbers)) if name.isdigit() else name, value)

    def __len__(self) -> int:
        return len(self._names())

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, name) for name in self._names())

    def __getitem__(self, key: int | slice) -> Any:
        found = [getattr(self, name) for name in self._chosen(key)]
        return self._of(found) if isinstance(key, slice) else found[0]

    def __setitem__(self, position: int, value: Any) -> None:
        if isinstance(position, slice):
            raise TypeError(f"assign to one position of a {type(self).__name__} at a time; got a slice")
        (name,) = self._chosen(position)
        setattr(self, name, self._checked(value, position))

    def __delitem__(self, key: int | slice) -> None:
        gone = self._chosen(key)
        self._renumber([(name, getattr(self, name)) for name in self._names() if name not in gone])

    def _of(self, values: Sequence[Any]) -> Any:
        """What a slice returns."""
        raise NotImplementedError


@explains_arguments
class ModuleList(_Numbered):
    """A list whose modules, and their parameters, are registered; it has no `forward`. A slice is a ModuleList.

    modules: any number of modules (default none).

    It has `append`, `extend`, `insert`, and assignment and `del` of positions, like `Sequential`.

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

    def _of(self, values: Sequence[Any]) -> Any:
        return ModuleList(values)


@explains_arguments
class ParameterList(_Numbered):
    """A list whose parameters are registered. A slice is a ParameterList.

    parameters: any number of parameters (default none); a floating-point tensor becomes a `Parameter`.

    It has `append`, `extend`, `insert`, and assignment and `del` of positions.

    >>> import gradflow as gf
    >>> class Polynomial(gf.nn.Module):
    ...     def __init__(self, degree):
    ...         super().__init__()
    ...         self.factors = gf.nn.ParameterList(gf.zeros(()) for _ in range(degree + 1))
    ...     def forward(self, x):
    ...         return sum(factor * x**i for i, factor in enumerate(self.factors))
    >>> [name for name, _ in Polynomial(2).named_parameters()]
    ['factors.0', 'factors.1', 'factors.2']
    """

    _registry = "_parameters"

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.extend(parameters)

    def _checked(self, value: Any, position: int) -> Any:
        if isinstance(value, Tensor) and value.dtype.is_floating:
            return value if isinstance(value, Parameter) else Parameter(value)
        kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"a ParameterList is made of floating-point tensors; got {kind} at position {position}")

    def _of(self, values: Sequence[Any]) -> Any:
        return ParameterList(values)

    def extra_repr(self) -> str:
        return ", ".join(str(tuple(parameter.shape)) for parameter in self)


@explains_arguments
class ModuleDict(Module):
    """A dict whose modules, and their parameters, are registered under their keys; it has no `forward`.

    modules: modules by name, or pairs of a name and a module (default none).

    It has `keys`, `values`, `items`, `update`, `pop` and `clear`, and keeps the order of insertion. A name is a text
    without dots that is not the name of another attribute, such as "training" or "keys": other texts raise ValueError,
    other values TypeError.

    >>> import gradflow as gf
    >>> heads = gf.nn.ModuleDict({"digit": gf.nn.Linear(8, 10), "parity": gf.nn.Linear(8, 1)})
    >>> {name: head(gf.ones((5, 8))).shape for name, head in heads.items()}
    {'digit': (5, 10), 'parity': (5, 1)}
    >>> del heads["digit"]
    >>> list(heads.state_dict()), "digit" in heads
    (['parity.weight', 'parity.bias'], False)
    """

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()) -> None:
        super().__init__()
        self.update(modules)

    def __getitem__(self, name: str) -> Any:
        if name in self._modules:
            return self._modules[name]
        raise KeyError(f"this ModuleDict has no module {name!r}; it has {', '.join(self._modules) or 'none'}")

    def __setitem__(self, name: str, module: Module) -> None:
        self.update({name: module})

    def __delitem__(self, name: str) -> None:
        self[name]
        delattr(self, name)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def keys(self) -> KeysView[str]:
        """The names."""
        return self._modules.keys()

    def values(self) -> ValuesView[Any]:
        """The modules."""
        return self._modules.values()

    def items(self) -> ItemsView[str, Any]:
        """The names and modules."""
        return self._modules.items()

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Add modules, or replace those of the same names, given as to the constructor. Raises like it."""
        given = dict(modules)
        for name, module in given.items():
            if not isinstance(name, str) or not isinstance(module, Module):
                kinds = f"{type(module).__name__} under {name!r}"
                raise TypeError(f"a ModuleDict holds modules under names that are texts; got {kinds}")
            if not name or "." in name or (hasattr(self, name) and name not in self._modules):
                raise ValueError(
                    f"a ModuleDict cannot hold a module under {name!r}: it is empty, has a dot, or is the "
                    "name of another attribute"
                )
        for name, module in given.items():
            setattr(self, name, module)

    def pop(self, name: str) -> Any:
        """Remove a module, and return it. Raises KeyError for an unknown name."""
        module = self[name]
        del self[name]
        return module

    def clear(self) -> None:
        """Remove all modules."""
        for name in list(self):
            del self[name]


@explains_arguments
class Sequential(_Numbered):
    """Modules that are called in order, each with the result of the one before. A slice is a Sequential.

    modules: any number of modules; without any, the input is returned.

    `model[1] = module`, `model.insert(1, module)`, `del model[1]`, `append` and `extend` change the modules; a state
    dict numbers them by their positions afterwards. An optimizer keeps the parameters that it was created with: create
    it after a change. A captured step is recorded again.

    >>> import gradflow as gf
    >>> model = gf.nn.Sequential(gf.nn.Linear(2, 8), gf.nn.ReLU(), gf.nn.Linear(8, 1))
    >>> model(gf.ones((5, 2))).shape, model[0].weight.shape
    ((5, 1), (8, 2))
    >>> model[1] = gf.nn.Tanh()
    >>> model.insert(2, gf.nn.Dropout(0.1))
    Sequential(
      (0): Linear(in_features=2, out_features=8, bias=True)
      (1): Tanh()
      (2): Dropout(p=0.1)
      (3): Linear(in_features=8, out_features=1, bias=True)
    )
    >>> del model[1:3]
    >>> list(model.state_dict())
    ['0.weight', '0.bias', '1.weight', '1.bias']
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

    def _of(self, values: Sequence[Any]) -> Any:
        return Sequential(*values)
