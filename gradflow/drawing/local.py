"""Local derivatives of recorded operations, computed by the operations' own rules.

A rule computes vector-Jacobian products. Of a scalar, that for the gradient 1 is the derivative; of an elementwise
operation, that for a gradient of ones is the diagonal of the Jacobian, whose other elements are 0; and those for all
unit vectors, in one batch, are the rows of any Jacobian.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from gradflow.autograd.batching import Batch, batched
from gradflow.autograd.fitting import fitted
from gradflow.autograd.graph import Node
from gradflow.autograd.parts import Part
from gradflow.backend import ACTIVATIONS, Backend
from gradflow.backend.array_functions import ELEMENTWISE
from gradflow.drawing.summaries import Summaries, Summary
from gradflow.ops.custom import is_custom
from gradflow.transforms.recompute import CHECKPOINT

Form = Literal["number", "diagonal", "full", "implicit"]

LARGEST = 1024
"""Jacobians with more elements are not formed, nor diagonals with more."""
_ELEMENTWISE = (ELEMENTWISE | ACTIVATIONS.keys() | {"power", "copy", "astype", "dropout", "erf", "logaddexp"}) - {"pow"}


def local_derivatives(
    node: Node, out: Any, values: Sequence[Any], summaries: Summaries, custom: bool
) -> list[tuple[Form, Summary | None] | None]:
    """For each argument of a node, the form of its local derivative and its numbers, unless it is too large.

    out, values: what the rules read, see `saved_values`. An argument without a gradient has None.
    custom: whether the rules of a user's operation may run again for this.
    """
    forms: list[Form | None] = [None if parent is None else form_of(node, parent) for parent in node.parents]
    if is_custom(node.op) and not custom:
        forms = [form and "implicit" for form in forms]
    formed: list[Any] = [None] * len(forms)
    size = math.prod(node.shape)
    if any(form in ("number", "diagonal") and size <= LARGEST for form in forms):
        ones = node.backend.ones(node.shape, dtype=_dtype_of_gradients(node))
        formed = _formed(node, ones, out, values, node.backend)
    if "full" in forms:
        units = Batch(_unit_vectors(node.backend, node.shape, _dtype_of_gradients(node)))
        rows = _formed(node, units, out, values, batched(node.backend))
        formed = [row if form == "full" else one for form, row, one in zip(forms, rows, formed, strict=True)]
    result: list[tuple[Form, Summary | None] | None] = []
    for form, numbers, parent in zip(forms, formed, node.parents, strict=True):
        if form is None:
            result.append(None)
            continue
        summary = None
        if numbers is None or form == "implicit":
            form = "implicit" if form == "full" else form
        else:
            array = numbers.values if isinstance(numbers, Batch) else numbers
            shape = (*node.shape, *parent.shape) if form == "full" else parent.shape
            summary = summaries.add(parent.backend.reshape(array, shape), parent.backend)
        result.append((form, summary))
    return result


def form_of(node: Node, parent: Any) -> Form:
    """The form of the local derivative of a node by one of its parents."""
    rows, columns = math.prod(node.shape), math.prod(parent.shape)
    if node.op is CHECKPOINT or node.op.name == "vmap":  # its rule runs it again, or sums over all examples
        return "implicit"
    if rows == columns == 1:
        return "number"
    if node.op.name in _ELEMENTWISE and not is_custom(node.op) and tuple(node.shape) == tuple(parent.shape):
        return "diagonal"
    return "full" if 0 < rows * columns <= LARGEST else "implicit"


def _dtype_of_gradients(node: Node) -> Any:
    """The dtype in which the rules of a node compute: float32 for half floats, as in the walk."""
    half = node.op.widens and node.op.joint is None and node.dtype in node.backend.half_dtypes
    return node.backend.single if half else node.dtype


def _unit_vectors(F: Backend, shape: tuple[int, ...], dtype: Any) -> Any:
    n = math.prod(shape)
    places = F.arange(n, dtype=F.dtypes["int64"])
    units = F.equal(F.reshape(places, (n, 1)), F.reshape(places, (1, n)))
    return F.reshape(F.astype(units, dtype), (n, *shape))


def _formed(node: Node, g: Any, out: Any, values: Sequence[Any], F: Any) -> list[Any]:
    """`_products`, or only None where a user's rule fails: one that runs once, or on arrays and not on batches."""
    try:
        return _products(node, g, out, values, F)
    except Exception:
        if not is_custom(node.op):
            raise
        return [None] * len(node.parents)


def _products(node: Node, g: Any, out: Any, values: Sequence[Any], F: Any) -> list[Any]:
    """The vector-Jacobian products of a node by each argument, for an array or a batch of gradients."""
    op, parameters = node.op, dict(node.parameters or {})
    needs = [parent is not None for parent in node.parents]
    if op.joint is not None:
        if op.writes_into:
            parameters["into"] = [None] * len(needs)
        if op.residual and isinstance(g, Batch):
            parameters["residual"] = None
        results = op.joint(F, g, out, *values, needs=needs, **parameters)
    else:
        pairs = zip(op.rules, needs, strict=True)
        results = [rule(F, g, out, *values, **parameters) if rule and need else None for rule, need in pairs]
    found: list[Any] = []
    for i, result in enumerate(results):
        if result is None or not needs[i]:
            found.append(None)
            continue
        whole = result.whole(F, node.parents[i].shape) if result.__class__ is Part else result
        found.append(fitted(whole, F, node, i))
    return found
