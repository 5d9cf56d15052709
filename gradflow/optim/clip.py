"""Clipping of gradients by their global norm, without a wait for the device."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from gradflow.autograd.leaf import IN_BUFFER, Leaf
from gradflow.backend import Array
from gradflow.interception import opaque_call
from gradflow.ops.checks import mismatch
from gradflow.optim.hyperparameters import number
from gradflow.tensor import Tensor


@opaque_call
def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients in place so that their common 2-norm is at most `max_norm`; returns the norm before that.

    The norm is a tensor without axes, on the device of the gradients: reading it waits, clipping does not. 0 where
    there are no gradients. An infinite `max_norm` only measures. A parameter given twice counts once. Raises ValueError
    for a `max_norm` that is not a number >= 0, DeviceMismatchError for several devices. Pascanu et al. 2013, "On the
    difficulty of training recurrent neural networks", algorithm 1.
    """
    if max_norm != math.inf:
        number("max_norm", max_norm)
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    tensors = list({id(t): t for t in given}.values())
    with_gradient = [(t, leaf) for t in tensors if (leaf := _leaf(t)) is not None and leaf.array is not None]
    if not with_gradient:
        from gradflow.ops import zeros

        return zeros((), device=tensors[0].device if tensors else None)
    backend = with_gradient[0][0].backend
    if any(t.backend is not backend for t, _ in with_gradient):
        raise mismatch("clip_grad_norm_", [t for t, _ in with_gradient])
    arrays = _whole_arrays([leaf for _, leaf in with_gradient])
    if max_norm == math.inf:  # copies are scaled, since the factor is no number where the norm is infinite too
        return Tensor(backend.clip_global_norm([backend.copy(a) for a in arrays], math.inf), backend)
    norm = backend.clip_global_norm(arrays, float(max_norm))
    for _, leaf in with_gradient:
        leaf.mark_gradient_changed()
    return Tensor(norm, backend)


def _leaf(tensor: Tensor) -> Leaf | None:
    node = tensor._frozen_leaf() if tensor._node is None else tensor._node
    return node if isinstance(node, Leaf) else None


def _whole_arrays(leaves: list[Leaf]) -> list[Array]:
    """The gradients as few arrays: of an optimizer's block, all of whose members are here, the one flat array."""
    inside: dict[Any, list[Leaf]] = {}
    arrays = []
    for leaf in leaves:
        block = None if leaf.slot is None else leaf.slot.block()
        if block is not None and leaf.state is IN_BUFFER:
            inside.setdefault(block, []).append(leaf)
        else:
            arrays.append(leaf.array)
    for block, members in inside.items():
        if len(members) == len(block.slices):
            arrays.append(block.gradients)
        else:
            arrays += [leaf.array for leaf in members]
    return arrays
