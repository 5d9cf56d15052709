"""State dicts: values of parameters and buffers by name, and by the names of PyTorch; files of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, zip_longest
from typing import Any, NamedTuple, Self

from gradflow.autograd.grad_mode import no_grad
from gradflow.files import FilePath
from gradflow.ops import all as all_
from gradflow.ops import asarray, equal, isnan, where
from gradflow.saving import load, save
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

    path, module: the file and the name of the class, for error messages. A tensor that `own` shares may be there once,
    as safetensors.torch.save_model writes it.

    Raises StateError if a tensor has no counterpart, ValueError if the shapes of two differ, and for a file of anything
    but tensors.
    """
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise ValueError(f"{path} does not hold the tensors of a state dict by name: read it with gradflow.load")
    in_order = sorted(state, key=lambda name: [(int(p), "") if p.isdecimal() else (-1, p) for p in name.split(".")])
    pairs = list(_pairs(_Node.of(in_order), _Node.of(own)))
    shared = {id(own[b]): a for a, b in pairs if a is not None and b is not None}
    pairs = [(shared.get(id(own[b])) if a is None and b is not None else a, b) for a, b in pairs]
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


def warn_of_gelu(module: Any) -> None:
    """Warn, on behalf of `Module.load`, if a layer computes the tanh form of GELU, which PyTorch's default is not."""
    layers = module.modules()
    if any(getattr(m, "approximate", None) == "tanh" or getattr(m, "activation", None) == "gelu" for m in layers):
        warnings.warn(
            'this model has the tanh form of GELU, which is nn.GELU(approximate="tanh") in PyTorch; for weights of a '
            'model with PyTorch\'s default, the exact form, give nn.GELU(approximate="none"), or the activation '
            '"gelu_exact", here, too',
            stacklevel=3,
        )


# ---------------------------------------------------------------------- the methods of modules


class Stateful:
    """The methods of `Module` for its tensors by name: state dicts, and files of them."""

    _parameters: Mapping[str, Tensor | None]
    _buffers: dict[str, Tensor | None]
    _modules: Mapping[str, Any]
    _transient: set[str]  # the names of buffers that are not in the state dict
    _places_in_torch = 1  # how many modules of a PyTorch `Sequential` do the same

    def _in_torch(self) -> Iterable[tuple[str, Any]]:
        """The direct submodules by the names that they have in the PyTorch module of the same layers."""
        return self._modules.items()

    def _state(self, prefix: str = "", in_torch: bool = False) -> dict[str, Tensor]:
        """The tensors of the state dict; a shared one appears under each of its names. in_torch: with PyTorch's."""
        kept = {name: buffer for name, buffer in self._buffers.items() if name not in self._transient}
        tensors = {**self._parameters, **kept}
        found = {f"{prefix}{name}": tensor for name, tensor in tensors.items() if tensor is not None}
        for name, module in self._in_torch() if in_torch else self._modules.items():
            if module is not None:
                found |= module._state(f"{prefix}{name}.", in_torch)
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all parameters and persistent buffers by dotted name, for `load_state_dict`.

        A tensor that is used in several places appears under each of its names, as one copy.

        >>> import gradflow as gf
        >>> layer = gf.nn.Linear(2, 1)
        >>> state = layer.state_dict()
        >>> gf.nn.init.zeros_(layer.weight)
        tensor([[0., 0.]], dtype=float32, device=cpu, requires_grad=True)
        >>> sorted(state), state["weight"].tolist() == layer.weight.tolist()
        (['bias', 'weight'], False)
        """
        state = self._state()
        with no_grad():
            copies = {id(tensor): tensor.detach().clone() for tensor in state.values()}
        return {name: copies[id(tensor)] for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Incompatible:
        """Copy values into parameters and buffers by name; returns the missing and unexpected names.

        state: tensors of any device, or NumPy arrays, by dotted name.
        strict: whether missing or unexpected names are an error (default True).

        Everything is checked before anything changes. Raises StateError, a KeyError, for missing or unexpected names if
        `strict`; ValueError for another shape, or for different values of one parameter that has several names (PyTorch
        uses the last); TypeError for integers in place of floating-point numbers, and the reverse.

        >>> import gradflow as gf
        >>> one, two = gf.nn.Linear(2, 1), gf.nn.Linear(2, 1)
        >>> two.load_state_dict(one.state_dict())
        Incompatible(missing_keys=[], unexpected_keys=[])
        >>> (one(gf.ones(2)) == two(gf.ones(2))).item()
        True
        """
        return load_state(type(self).__name__, self._state(), state, strict)

    def save(self, path: FilePath, names: str | None = None) -> None:
        """Write all parameters and persistent buffers to a safetensors file, as `gradflow.save` does.

        path: the file, which then is whole, or what it was before if there is an error.
        names: None for the names of `state_dict` (default), or "torch" for those that PyTorch gives the same layers: in
        a `Sequential` and an `MLP`, an activation that is part of a `Linear` has a number of its own, as dropout has.

        Raises ValueError for other names, OSError, and ModuleNotFoundError without safetensors.

        >>> import gradflow as gf
        >>> import tempfile
        >>> model = gf.nn.MLP([4, 8, 3], dropout=0.1)  # Linear, ReLU, Dropout, Linear
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/weights.safetensors", names="torch")
        ...     list(gf.load(f"{folder}/weights.safetensors"))
        ['0.weight', '0.bias', '3.weight', '3.bias']
        """
        in_torch = names_of_torch("save", names)
        state = self._state(in_torch=in_torch)
        save(path, {name: tensor.detach() for name, tensor in state.items()} if in_torch else state)

    def load(self, path: FilePath, names: str | None = None) -> Self:
        """Copy the tensors in a safetensors file into parameters and buffers; returns the module.

        path: a file of `save`, or of the state dict of a PyTorch module, see below.
        names: None if its names are those of `state_dict` (default), or "torch" for PyTorch's.

        With "torch", submodules with a number are matched in order, whatever the numbers are, and those in nested
        sequences as if there was one; names of attributes, weights and buffers must be equal. The module keeps its
        dtypes and devices: values of another floating dtype are rounded to nearest, and overflow to infinity. A file
        says nothing about activations, eps and dropout; a model with the tanh form of GELU warns, since PyTorch's
        default is the exact one.

        Everything is checked before anything changes. Raises like `load_state_dict` and `gradflow.load`; with "torch",
        StateError or ValueError shows the tensors of both sides where they do not fit.

        In PyTorch, the two directions are `safetensors.torch.save_file(model.state_dict(), path)` and
        `model.load_state_dict(safetensors.torch.load_file(path))`.

        >>> import gradflow as gf
        >>> import tempfile
        >>> one, two = gf.nn.MLP([4, 8, 3], dropout=0.1), gf.nn.MLP([4, 8, 3])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     one.save(f"{folder}/weights.safetensors", names="torch")
        ...     _ = two.load(f"{folder}/weights.safetensors", names="torch")
        >>> (one[-1].weight == two[-1].weight).all().item()
        True
        """
        in_torch = names_of_torch("load", names)
        state = load(path, "cpu")
        if in_torch:
            state = matched(path, type(self).__name__, self._state(), state)
            warn_of_gelu(self)
        try:
            self.load_state_dict(state)
        except StateError as error:
            raise StateError(f'{error}; if the file has the names of PyTorch, pass names="torch" to load') from None
        return self
