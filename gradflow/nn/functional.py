"""Calling a module as a function of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gradflow import ops
from gradflow.interception import temporary_change
from gradflow.nn.module import Module
from gradflow.ops import asarray
from gradflow.pytorch_names import hints_of
from gradflow.tensor import Tensor


def functional_call(module: Module, parameters: Mapping[str, Tensor], *inputs: Any, **options: Any) -> Any:
    """`module(*inputs, **options)` with other tensors in place of parameters and buffers; the module does not change.

    parameters: tensors by the dotted names of `named_parameters` and `named_buffers`; NumPy arrays are moved to the
        device of the parameter. A parameter that is shared by several modules is replaced in all of them. The module's
        own values are used for names that are left out.

    With it, `gradflow.grad` and the other transforms differentiate with respect to the parameters of a module. Raises
    KeyError for an unknown name, ValueError for another shape.

    >>> import gradflow as gf
    >>> layer = gf.nn.Linear(2, 1)
    >>> loss = lambda p, x: gf.nn.functional_call(layer, p, x).square().sum()
    >>> sorted(gf.grad(loss)(dict(layer.named_parameters()), gf.ones((3, 2))))
    ['bias', 'weight']
    """
    own: dict[str, Tensor] = {**dict(module.named_parameters(False)), **dict(module.named_buffers(False))}
    replacements: dict[int, Tensor] = {}  # by the id of the tensor in the module
    for name, value in parameters.items():
        if name not in own:
            raise KeyError(f"{type(module).__name__} has no parameter {name!r}; it has {', '.join(own) or 'none'}")
        value = value if isinstance(value, Tensor) else asarray(value, device=own[name].device)
        if value.shape != own[name].shape:
            raise ValueError(f"functional_call: {name} has shape {own[name].shape}; got {value.shape}")
        replacements[id(own[name])] = value
    places = [
        (owner, attribute, tensor)
        for owner in module.modules()
        for attribute, tensor in (owner._parameters | owner._buffers).items()
        if id(tensor) in replacements
    ]
    with temporary_change(*{id(owner): owner for owner, _, _ in places}.values()):
        try:
            for owner, attribute, tensor in places:
                object.__setattr__(owner, attribute, replacements[id(tensor)])
            return module(*inputs, **options)
        finally:
            for owner, attribute, tensor in places:
                object.__setattr__(owner, attribute, tensor)


if not TYPE_CHECKING:
    __getattr__ = hints_of(__name__, ops.__all__)
