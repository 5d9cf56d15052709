"""Clipping of gradients by their global norm, without waiting for the device."""

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
    """Scale all gradients in place so that their global 2-norm is at most `max_norm`, and return their previous norm.

    parameters: a tensor or several, on one device. Those without a gradient do not count; one given twice counts once.
    max_norm: the largest norm allowed, at least 0. `math.inf` changes nothing: it only measures the norm.

    The norm is a tensor of shape (), on the device of the gradients: reading it waits for the device, clipping does
    not. It is 0 if there are no gradients. Pascanu et al. 2013, "On the difficulty of training recurrent neural
    networks", algorithm 1.

    Raises ValueError for another `max_norm`, DeviceMismatchError for parameters on several devices.
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
    if max_norm == math.inf:  # scale copies, since the factor is NaN if the norm is infinite too
        return Tensor(backend.clip_global_norm([backend.copy(a) for a in arrays], math.inf), backend)
    norm = backend.clip_global_norm(arrays, float(max_norm))
    for _, leaf in with_gradient:
        leaf.mark_gradient_changed()
    return Tensor(norm, backend)


def _leaf(tensor: Tensor) -> Leaf | None:
    node = tensor._frozen_leaf() if tensor._node is None else tensor._node
    return node if isinstance(node, Leaf) else None


def _whole_arrays(leaves: list[Leaf]) -> list[Array]:
    """The gradients in as few arrays as possible: the flat array of an optimizer's block if all of its are here."""
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
