"""Loading state dicts: values of parameters and buffers by name, and by PyTorch's names."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, zip_longest
from typing import Any, NamedTuple

from gradflow.autograd.grad_mode import no_grad
from gradflow.files import FilePath
from gradflow.ops import all as all_
from gradflow.ops import asarray, equal, gelu, isnan, where
from gradflow.tensor import Tensor
from gradflow.tree import check_state


class StateError(KeyError):
    """A state dict has missing or unexpected keys; the message lists them.

    >>> import gradflow as gf
    >>> layer = gf.nn.Linear(2, 1)
    >>> try:
    ...     layer.load_state_dict({"weight": gf.ones((1, 2))})
    ... except gf.nn.StateError as error:
    ...     print(error.args[0])
    load_state_dict of Linear: missing: bias
    """

    __module__ = "gradflow.nn"

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the repr of its argument


class Incompatible(NamedTuple):
    """The keys that a state dict lacks, and those that the module does not have."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def load_state(module: str, own: Mapping[str, Tensor], state: Mapping[str, Any], strict: bool) -> Incompatible:
    """Copy the values of a state dict into the tensors `own`, by name, for `Module.load_state_dict`.

    module: the name of the class, for error messages. strict: whether missing or unexpected names are an error.

    Returns the missing and unexpected names. Checks everything before it changes anything.
    """
    check_state(state)
    names = Incompatible([n for n in own if n not in state], [n for n in state if n not in own])
    if strict and (names.missing_keys or names.unexpected_keys):
        problems = [f"{what}: {', '.join(n)}" for what, n in zip(("missing", "unexpected"), names, strict=True) if n]
        raise StateError(f"load_state_dict of {module}: {'; '.join(problems)}")
    values: dict[int, tuple[str, Tensor, Tensor]] = {}  # by tensor: its first name in the state, and its new value
    for name, tensor in own.items():
        if name not in state:
            continue
        given = state[name]
        value = given if isinstance(given, Tensor) else asarray(given, device=tensor.device)
        if value.shape != tensor.shape:
            raise ValueError(f"load_state_dict: {name} has shape {tensor.shape}; got {value.shape}")
        if value.dtype.is_floating != tensor.dtype.is_floating:
            raise TypeError(f"load_state_dict: {name} is {tensor.dtype}; got {value.dtype}")
        if not isinstance(given, Tensor):
            value = asarray(given, tensor.dtype, tensor.device)  # raises for numbers that an integer dtype cannot hold
        first, _, before = values.setdefault(id(tensor), (name, tensor, value))
        if value is not before and not _same(value, before):
            raise ValueError(f"load_state_dict: {first} and {name} share one tensor, but their values differ")
    with no_grad():
        for _, tensor, value in values.values():
            tensor.copy_(value)
    return names


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape, on any devices, hold the same numbers; NaN equals NaN. Synchronizes."""
    a, b = a.detach(), b.detach().to(a.device)
    return bool(all_(where(isnan(a), isnan(b), equal(a, b))))


# ---------------------------------------------------------------------- PyTorch's names


class _Node:
    """A module in a state dict: the full names of its tensors, and its submodules, each by its own name."""

    def __init__(self) -> None:
        self.tensors: dict[str, str] = {}
        self.attributes: dict[str, _Node] = {}
        self.positions: dict[str, _Node] = {}  # the submodules whose names are numbers

    @classmethod
    def of(cls, names: Iterable[str]) -> _Node:
        """The outermost module of a state dict."""
        root = cls()
        for name in names:
            node = root
            *path, own = name.split(".")
            for part in path:
                node = (node.positions if part.isdecimal() else node.attributes).setdefault(part, cls())
            node.tensors[own] = name
        return root

    def layers(self) -> Iterator[_Node]:
        """The submodules whose names are numbers; in place of nothing but a sequence of such modules, these."""
        for node in self.positions.values():
            if node.positions and not (node.tensors or node.attributes):
                yield from node.layers()
            else:
                yield node


def _pairs(there: _Node, own: _Node) -> Iterator[tuple[str | None, str | None]]:
    """The names of two state dicts, tensor by tensor; None where one has no counterpart."""
    yield from ((there.tensors.get(name), own.tensors.get(name)) for name in _union(own.tensors, there.tensors))
    for a, b in zip_longest(there.layers(), own.layers(), fillvalue=_Node()):
        yield from _pairs(a, b)
    for name in _union(own.attributes, there.attributes):
        yield from _pairs(there.attributes.get(name, _Node()), own.attributes.get(name, _Node()))


def _union(*names: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys(chain(*names))


def matched(path: FilePath, module: str, own: Mapping[str, Tensor], state: Any) -> dict[str, Tensor]:
    """The tensors of a PyTorch state dict by the names that they have in `own`, for `Module.load`.

    path, module: the file and the name of the class, for error messages.

    Raises StateError if a tensor has no counterpart, ValueError if the shapes of two differ, and for a file of anything
    but tensors.
    """
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise ValueError(f"{path} does not hold the tensors of a state dict by name: read it with gradflow.load")
    in_order = sorted(state, key=lambda name: [(int(p), "") if p.isdecimal() else (-1, p) for p in name.split(".")])
    pairs = list(_pairs(_Node.of(in_order), _Node.of(own)))
    fits = [a is not None and b is not None and state[a].shape == own[b].shape for a, b in pairs]
    if all(fits):
        return {b: state[a] for a, b in pairs}  # type: ignore[misc]
    rows = [tuple("-" if n is None else f"{n} {x[n].shape}" for n, x in ((a, state), (b, own))) for a, b in pairs]
    width = max(len(left) for left, _ in rows)
    lines = [f"  {' ' if fit else '>'} {a:{width}}  {b}" for (a, b), fit in zip(rows, fits, strict=True)]
    message = "\n".join([f"{path} does not fit this {module}; tensors of the file, and of the model:", *lines])
    raise StateError(message) if any(None in pair for pair in pairs) else ValueError(message)


def names_of_torch(method: str, names: str | None) -> bool:
    """Whether the argument `names` of `Module.save` and `load` asks for PyTorch's. ValueError for an unknown one."""
    if names not in (None, "torch"):
        raise ValueError(f'{method}: names is None, for the names of state_dict, or "torch"; got {names!r}')
    return names == "torch"


def warn_of_gelu(modules: Iterable[Any]) -> None:
    """Warn, on behalf of `Module.load`, if a module computes the tanh form of GELU, which PyTorch's default is not."""
    if any(getattr(m, "function", None) is gelu or getattr(m, "activation", None) == "gelu" for m in modules):
        warnings.warn(
            'this model has the tanh form of GELU, which is nn.GELU(approximate="tanh") in PyTorch; the weights of a '
            "model with PyTorch's default, the exact form, give other results here",
            stacklevel=3,
        )
