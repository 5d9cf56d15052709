"""Clipping of gradients by their global norm or by value, without waiting for the device."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from gradflow.autograd.leaf import IN_BUFFER, Leaf
from gradflow.backend import Array
from gradflow.dtypes import DTYPES, promote
from gradflow.interception import opaque_call
from gradflow.ops import zeros
from gradflow.ops.checks import mismatch
from gradflow.optim.flat import FlatBlock
from gradflow.optim.hyperparameters import checked_number
from gradflow.tensor import Tensor, is_read_only

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _named(name: str) -> Callable[[_Function], _Function]:
    """Decorate what does the work of a public function, to be called by its name in profiles."""

    def rename(function: _Function) -> _Function:
        function.__name__ = name
        return function

    return rename


def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float, error_if_nonfinite: bool = False) -> Tensor:
    """Scale all gradients in place so that their global 2-norm is at most `max_norm`, and return their previous norm.

    parameters: a tensor or several, on one device. Those without a gradient do not count; one given twice counts once.
    max_norm: the largest norm allowed, at least 0. `math.inf` changes nothing: it only measures the norm.
    error_if_nonfinite: whether to raise RuntimeError for a norm that is infinite or NaN, before anything changes
        (default False). This measures a copy of the gradients first and waits for the device, so a captured step that
        asks for it runs normally.

    The norm is a tensor of shape (), of the widest dtype of the gradients and on their device: reading it waits for the
    device, clipping does not. It is 0 if there are no gradients. Pascanu et al. 2013, "On the difficulty of training
    recurrent neural networks", algorithm 1.

    As in PyTorch, the gradient of a frozen parameter counts, although `Optimizer.step` ignores it; a tensor that is the
    gradient of two parameters counts and is scaled twice; and the norm is infinite where the sum of squares is, that is
    from 1.8e19 in float32 on: then finite gradients become 0.

    Raises ValueError for another `max_norm` and for a read-only gradient, DeviceMismatchError for parameters on several
    devices.

    >>> import gradflow as gf
    >>> x = gf.tensor([0.0, 0.0], requires_grad=True)
    >>> (x * gf.tensor([3.0, 4.0])).sum().backward()
    >>> gf.optim.clip_grad_norm_([x], max_norm=1.0).item()
    5.0
    >>> [round(v, 4) for v in x.grad.tolist()]
    [0.6, 0.8]
    """
    if max_norm != math.inf:
        checked_number("max_norm", max_norm)
    tensors = _distinct(parameters)
    if error_if_nonfinite:
        norm = _clip_norm(tensors, math.inf)
        if not math.isfinite(value := float(norm.backend.to_host(norm.array))):
            raise RuntimeError(
                f"the norm of the gradients is {value}: a gradient is not finite, or their squares overflow "
                f"{norm.dtype}; nothing was clipped (error_if_nonfinite)"
            )
    return _clip_norm(tensors, max_norm)


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Limit each element of the gradients to [-clip_value, clip_value], in place.

    parameters: a tensor or several. Those without a gradient do not count.
    clip_value: the largest absolute value allowed, at least 0.

    NaN stays NaN. Nothing waits for the device. Raises ValueError for another `clip_value` and for a read-only
    gradient.

    >>> import gradflow as gf
    >>> x = gf.tensor([0.0, 0.0], requires_grad=True)
    >>> (x * gf.tensor([3.0, -0.5])).sum().backward()
    >>> gf.optim.clip_grad_value_([x], clip_value=1.0)
    >>> x.grad.tolist()
    [1.0, -0.5]
    """
    _clip_value(_distinct(parameters), checked_number("clip_value", clip_value))


def _distinct(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    return list({id(t): t for t in given}.values())


def _leaves(tensors: list[Tensor]) -> list[Leaf]:
    """The leaves that have a gradient."""
    return [leaf for t in tensors if (leaf := _leaf(t)) is not None and leaf.array is not None]


def _check_writable(arrays: Iterable[Array]) -> None:
    if any(map(is_read_only, arrays)):
        raise ValueError(
            "a gradient cannot be clipped in place: its memory is read-only, since it comes from an array of another "
            "library or a broadcast; copy it with .clone() first"
        )


@opaque_call
@_named("clip_grad_value_")
def _clip_value(tensors: list[Tensor], limit: float) -> None:
    leaves = _leaves(tensors)
    for backend in dict.fromkeys(leaf.backend for leaf in leaves):
        blocks, arrays = _joined([leaf for leaf in leaves if leaf.backend is backend])
        _check_writable(arrays)
        for array in [*arrays, *[block.gradients for block in blocks]]:
            backend.setitem(array, ..., backend.clip(array, -limit, limit))
    for leaf in leaves:
        leaf.mark_gradient_changed()


@opaque_call
@_named("clip_grad_norm_")
def _clip_norm(tensors: list[Tensor], max_norm: float) -> Tensor:
    leaves = _leaves(tensors)
    if not leaves:
        return zeros((), device=tensors[0].device if tensors else None)
    backend = leaves[0].backend
    if len({leaf.backend for leaf in leaves}) > 1:
        raise mismatch("clip_grad_norm_", [t for t in tensors if _leaf(t) in leaves])
    blocks, arrays = _joined(leaves)
    if max_norm != math.inf:
        _check_writable(arrays)
    padding = [*[None] * len(arrays), *[block.padding for block in blocks]]
    arrays += [block.gradients for block in blocks]
    converted = arrays  # to the widest dtype
    if len({array.dtype for array in arrays}) > 1:
        widest = functools.reduce(promote, [DTYPES[backend.dtype_name(array.dtype)] for array in arrays])
        converted = [backend.astype(array, backend.dtypes[widest.name]) for array in arrays]
    if max_norm == math.inf:  # clip copies and discard them: inf / inf would make the gradients NaN
        return Tensor(backend.clip_global_norm([backend.copy(array) for array in converted], math.inf), backend)
    norm = backend.clip_global_norm(converted, float(max_norm), padding)
    if converted is not arrays:
        for array, clipped in zip(arrays, converted, strict=True):
            backend.setitem(array, ..., backend.astype(clipped, array.dtype))
    for leaf in leaves:
        leaf.mark_gradient_changed()
    return Tensor(norm, backend)


def _leaf(tensor: Tensor) -> Leaf | None:
    node = tensor._frozen_leaf() if tensor._node is None else tensor._node
    return node if isinstance(node, Leaf) else None


def _joined(leaves: list[Leaf]) -> tuple[list[FlatBlock], list[Array]]:
    """The optimizers' blocks whose gradients are all in these leaves, to be clipped as a whole; the other gradients."""
    inside: dict[FlatBlock, list[Leaf]] = {}
    arrays: list[Array] = []
    for leaf in leaves:
        block = None if leaf.slot is None else leaf.slot.block()
        if block is not None and leaf.state is IN_BUFFER:
            inside.setdefault(block, []).append(leaf)
        else:
            arrays.append(leaf.array)
    blocks = []
    for block, members in inside.items():
        if len(members) == len(block.slices):
            blocks.append(block)
        else:
            arrays += [leaf.array for leaf in members]
    return blocks, arrays
