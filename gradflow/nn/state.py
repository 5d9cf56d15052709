"""Loading state dicts: values of parameters and buffers by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gradflow.autograd.grad_mode import no_grad
from gradflow.ops import all as all_
from gradflow.ops import asarray, equal, isnan, where
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
