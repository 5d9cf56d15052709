"""Jacobians, Hessians, and Hessian-vector products."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from gradflow import ops
from gradflow.autograd.grad_mode import enable_grad, is_grad_enabled
from gradflow.autograd.graph import nodes_from
from gradflow.ops.elementwise import copy
from gradflow.ops.transfer import to_device
from gradflow.tensor import Tensor
from gradflow.transforms.arguments import check_function, check_primals_and_tangents, matching_tensors
from gradflow.transforms.trace import Trace, aliased_gradients_of, cotangent_of_ones, gradients_of, node_of
from gradflow.tree import rebuild

_LARGEST_BATCH = 1 << 24
"""The largest number of elements of a batch of gradients of one node in `batched_rows`."""


def jacobian(f: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """A function that returns the Jacobian of `f`, of shape (*result, *argument), for the arguments `argnums`.

    f: a function that returns a tensor, or nested tuples, lists and dicts of tensors.
    argnums: the number of the positional argument to differentiate by, or a tuple of several (default 0).

    For nested results and arguments, the Jacobian is a tree like the result; each of its leaves is a tree like the
    argument, or a tuple of such trees for a tuple of argnums. It is computed by rows, or by columns if the result has
    more than twice as many elements as the arguments, in batched backward passes. Raises TypeError or ValueError for
    values that cannot be differentiated.

    >>> import gradflow as gf
    >>> gf.jacobian(lambda x: x * x)(gf.tensor([1.0, 2.0, 3.0])).tolist()
    [[2.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 6.0]]
    """

    check_function("jacobian", f)

    @functools.wraps(f, updated=())
    def of_arguments(*arguments: Any, **options: Any) -> Any:
        trace = Trace("jacobian", f, arguments, argnums, options)
        outputs = trace.output_tensors()
        record = trace.needs_higher_order(*outputs)
        tall = sum(y.size for y in outputs) > 2 * sum(x.size for x in trace.inputs)
        blocks = by_columns(trace, outputs, record) if tall else by_rows(trace.inputs, outputs, record)
        return rebuild(trace.output, [trace.like_arguments(row) for row in blocks])

    return of_arguments


def by_rows(inputs: Sequence[Tensor], outputs: Sequence[Tensor], record: bool) -> list[list[Tensor]]:
    """The blocks of the Jacobian, [output][input], each of shape (*output, *input), computed by rows."""
    blocks, start = [], 0
    rows = batched_rows(inputs, outputs, record)
    for y in outputs:
        stop = start + y.size
        blocks.append([ops.reshape(g[start:stop], y.shape + x.shape) for x, g in zip(inputs, rows, strict=True)])
        start = stop
    return blocks


def by_columns(trace: Trace, outputs: Sequence[Tensor], record: bool) -> list[list[Tensor]]:
    """The same blocks as `by_rows`, computed by columns: the rows of the Jacobian of the VJP, transposed."""
    cotangents, gradients = trace.recorded_vjp(outputs)
    transposed = by_rows(cotangents, gradients, record)
    blocks = []
    for j, y in enumerate(outputs):
        row = []
        for x, column in zip(trace.inputs, transposed, strict=True):
            order = (*range(x.ndim, x.ndim + y.ndim), *range(x.ndim))
            block = to_device(copy(ops.permute_dims(column[j], order)), x.device)
            row.append(ops.astype(block, x.dtype))
        blocks.append(row)
    return blocks


def batched_rows(inputs: Sequence[Tensor], outputs: Sequence[Tensor], record: bool) -> list[Tensor]:
    """For each input, the gradients of all elements of all outputs, of shape (elements, *input).

    A batched backward pass computes several rows: as many as keep its largest gradient within `_LARGEST_BATCH`.
    """
    total = sum(y.size for y in outputs)
    if not total:
        return [Tensor(x.backend.zeros((0, *x.shape), dtype=x.array.dtype), x.backend) for x in inputs]
    nodes = nodes_from([node_of(y) for y in outputs if y._node is not None], {node_of(x) for x in inputs})
    largest = max([math.prod(node.shape) for node in nodes], default=1)
    step = max(1, _LARGEST_BATCH // max(largest, 1))
    chunks = []
    for start in range(0, total, step):
        stop, first = min(start + step, total), 0
        reached, cotangents = [], []  # the outputs that have elements in rows start to stop
        for y in outputs:
            low, high = max(start, first), min(stop, first + y.size)
            if low < high:
                reached.append(y)
                cotangents.append(unit_vectors(y, low - first, high - first, low - start, stop - high))
            first += y.size
        chunks.append(gradients_of(inputs, reached, cotangents, record, retain=True, batch=True))
    return chunks[0] if len(chunks) == 1 else [ops.concat(parts) for parts in zip(*chunks, strict=True)]


def unit_vectors(y: Tensor, start: int, stop: int, before: int = 0, after: int = 0) -> Tensor:
    """A batch of tensors like y, (batch, *y): in each, one element is 1, from element `start` of y up to `stop`.

    before, after: the numbers of tensors of zeros before and after these in the batch (default 0).
    """
    places = ops.arange(start, stop, dtype="int64", device=y.device)
    units = ops.pad(ops.one_hot(places, y.size, y.dtype), ((before, after), (0, 0)))
    return ops.reshape(units, (units.shape[0], *y.shape))


def hessian(f: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """A function that returns the Hessian of `f`, of shape (*argument, *argument), for the arguments `argnums`.

    f: a function that returns a scalar tensor.
    argnums: as for `jacobian`.

    For nested arguments, the Hessian is a tree of trees, as for `jacobian`. Raises TypeError or ValueError as `grad`
    does.

    >>> import gradflow as gf
    >>> gf.hessian(lambda x: (x * x * x).sum())(gf.tensor([1.0, 2.0])).tolist()
    [[6.0, 0.0], [0.0, 12.0]]
    """

    check_function("hessian", f)

    @functools.wraps(f, updated=())
    def of_arguments(*arguments: Any, **options: Any) -> Any:
        trace = Trace("hessian", f, arguments, argnums, options)
        gradients, record = _recorded_gradients(trace)
        blocks = by_rows(trace.inputs, gradients, record)
        return trace.like_arguments([trace.like_arguments(row) for row in blocks])

    return of_arguments


def hvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, ...]:
    """The product of the Hessian of `f` at the primals with the tangents: a tuple, with a part for each primal.

    f: a function that returns a scalar tensor.
    primals, tangents: as for `jvp`.

    The Hessian is not formed: since it is symmetric, the product is the VJP of the gradient (Pearlmutter 1994, "Fast
    Exact Multiplication by the Hessian"). Raises TypeError or ValueError for values that do not match.

    >>> import gradflow as gf
    >>> [h.tolist() for h in gf.hvp(lambda x: (x * x * x).sum(), (gf.tensor([1.0, 2.0]),), (gf.tensor([1.0, 1.0]),))]
    [[6.0, 12.0]]
    """
    check_primals_and_tangents("hvp", primals, tangents)
    trace = Trace("hvp", f, primals, range(len(primals)), {})
    given = matching_tensors("hvp", "tangent", list(tangents), rebuild(trace.arguments, trace.inputs))
    gradients, record = _recorded_gradients(trace)
    record = record or (is_grad_enabled() and any(t.requires_grad for t in given))
    products = gradients_of(trace.inputs, gradients, given, record)
    return trace.like_arguments(products)  # type: ignore[no-any-return]  # a tuple, for a range of argnums


def _recorded_gradients(trace: Trace) -> tuple[list[Tensor], bool]:
    """The gradients of the traced scalar, recorded; and whether derivatives of these must be recorded in turn."""
    output = trace.scalar_output()
    record = trace.needs_higher_order(output)
    with enable_grad():
        return aliased_gradients_of(trace.inputs, [output], [cotangent_of_ones(output)], record=True), record
