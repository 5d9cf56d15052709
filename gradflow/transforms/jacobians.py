"""Jacobians, Hessians, and Hessian-vector products."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from gradflow import ops
from gradflow.autograd.grad_mode import enable_grad, is_grad_enabled
from gradflow.autograd.graph import nodes_from
from gradflow.tensor import Tensor
from gradflow.transforms.trace import (
    Trace,
    _check_sequences,
    _like_arguments,
    _matching,
    _node,
    _numbers,
    _pulled,
    _scalar,
    _walk,
    check_function,
    gradients_of,
)
from gradflow.tree import rebuild

_LARGEST_BATCH = 1 << 24
"""The most elements that a batch of gradients of one node may have in `jacobian`."""


def jacobian(f: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """A function that returns the Jacobian of `f` by the arguments `argnums`: shape of the result + shape of the input.

    For nested results and arguments it is a tree like the result, of trees like the argument (of tuples of them for a
    tuple of argnums). Computed by rows, or by columns where the result has many more elements than the arguments; a
    batch of them at a time. Raises TypeError or ValueError for what cannot be differentiated.

    >>> import gradflow as gf
    >>> gf.jacobian(lambda x: x * x)(gf.tensor([1.0, 2.0, 3.0])).tolist()
    [[2.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 6.0]]
    """

    check_function("jacobian", f)

    @functools.wraps(f, updated=())
    def of_arguments(*arguments: Any, **options: Any) -> Any:
        trace = Trace("jacobian", f, arguments, _numbers(argnums, len(arguments), "jacobian"), options)
        outputs = [y for _, y in trace.check_outputs(trace.output)]
        record = trace.needs_higher_order(*outputs)
        tall = sum(y.size for y in outputs) > 2 * sum(x.size for x in trace.inputs)
        blocks = _columns(trace, outputs, record) if tall else _rows(trace.inputs, outputs, record)
        single = isinstance(argnums, int)
        return rebuild(trace.output, [_like_arguments(trace, row, single) for row in blocks])

    return of_arguments


def _rows(inputs: Sequence[Tensor], outputs: Sequence[Tensor], record: bool) -> list[list[Tensor]]:
    """For each output the derivatives by each input, of shape output + input."""
    rows, start = [], 0
    everything = send_back_all(inputs, outputs, record)
    for y in outputs:
        stop = start + y.size
        rows.append([ops.reshape(g[start:stop], y.shape + x.shape) for x, g in zip(inputs, everything, strict=True)])
        start = stop
    return rows


def _columns(trace: Trace, outputs: Sequence[Tensor], record: bool) -> list[list[Tensor]]:
    """As `_rows`, from the transposed Jacobian: the rows of the function that sends cotangents back."""
    cotangents, pulled = _pulled(trace, outputs)
    by_input = _rows(cotangents, pulled, record)
    columns = []
    for j, y in enumerate(outputs):
        blocks = []
        for x, row in zip(trace.inputs, by_input, strict=True):
            order = (*range(x.ndim, x.ndim + y.ndim), *range(x.ndim))
            block = ops.creation.to_device(ops.elementwise.copy(ops.permute_dims(row[j], order)), x.device)
            blocks.append(ops.astype(block, x.dtype))
        columns.append(blocks)
    return columns


def send_back_all(inputs: Sequence[Tensor], outputs: Sequence[Tensor], record: bool) -> list[Tensor]:
    """The derivatives of all elements of the outputs by each input, (elements, ...), in batches of limited size."""
    total = sum(y.size for y in outputs)
    if not total:
        return [Tensor(x.backend.zeros((0, *x.shape), dtype=x.array.dtype), x.backend) for x in inputs]
    nodes = nodes_from([_node(y) for y in outputs if y._node is not None], {_node(x) for x in inputs})
    largest = max([math.prod(node.shape) for node in nodes], default=1)
    step = max(1, _LARGEST_BATCH // max(largest, 1))
    parts = []
    for start in range(0, total, step):
        stop, first = min(start + step, total), 0
        reached, bases = [], []
        for y in outputs:
            low, high = max(start, first), min(stop, first + y.size)
            if low < high:
                reached.append(y)
                bases.append(unit_vectors(y, low - first, high - first, low - start, stop - high))
            first += y.size
        parts.append(gradients_of(inputs, reached, bases, record, retain=True, batch=True))
    return parts[0] if len(parts) == 1 else [ops.concat(blocks) for blocks in zip(*parts, strict=True)]


def unit_vectors(y: Tensor, start: int, stop: int, before: int = 0, after: int = 0) -> Tensor:
    """The unit vectors `start` to `stop` in the space of y, as a batch, with so many zero vectors before and after."""
    places = ops.arange(start, stop, dtype="int64", device=y.device)
    units = ops.pad(ops.one_hot(places, y.size, y.dtype), ((before, after), (0, 0)))
    return ops.reshape(units, (units.shape[0], *y.shape))


def hessian(f: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """A function that returns the second derivatives of `f`, which returns a scalar: the Jacobian of its gradient.

    Of shape input + input; for nested arguments a tree of trees, as of `jacobian`. Errors as of `grad`.

    >>> import gradflow as gf
    >>> gf.hessian(lambda x: (x * x * x).sum())(gf.tensor([1.0, 2.0])).tolist()
    [[6.0, 0.0], [0.0, 12.0]]
    """

    check_function("hessian", f)

    @functools.wraps(f, updated=())
    def of_arguments(*arguments: Any, **options: Any) -> Any:
        trace = Trace("hessian", f, arguments, _numbers(argnums, len(arguments), "hessian"), options)
        gradients, record = _recorded_gradient(trace)
        single = isinstance(argnums, int)
        rows = [_like_arguments(trace, row, single) for row in _rows(trace.inputs, gradients, record)]
        return _like_arguments(trace, rows, single)

    return of_arguments


def _recorded_gradient(trace: Trace) -> tuple[list[Tensor], bool]:
    """The gradient of the scalar that was traced, recorded, and whether its own derivatives must be, too."""
    output = _scalar(trace, trace.output)
    record = trace.needs_higher_order(output)
    seed = Tensor(output.backend.ones_like(output.array), output.backend)
    with enable_grad():
        return _walk(trace.inputs, [output], [seed], record=True), record


def hvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, ...]:
    """The Hessian of `f`, which returns a scalar, at the primals times the tangents; without forming the Hessian.

    As for `jvp`, both are sequences, one for each argument; so is the result. Pearlmutter 1994, "Fast Exact
    Multiplication by the Hessian"; here as the VJP of the gradient, since the Hessian is symmetric.

    >>> import gradflow as gf
    >>> [h.tolist() for h in gf.hvp(lambda x: (x * x * x).sum(), (gf.tensor([1.0, 2.0]),), (gf.tensor([1.0, 1.0]),))]
    [[6.0, 12.0]]
    """
    _check_sequences("hvp", primals, tangents)
    trace = Trace("hvp", f, primals, range(len(primals)), {})
    given = _matching("hvp", "tangent", list(tangents), rebuild(trace.trees, trace.inputs))
    gradients, record = _recorded_gradient(trace)
    record = record or (is_grad_enabled() and any(t.requires_grad for t in given))
    return tuple(_like_arguments(trace, gradients_of(trace.inputs, gradients, given, record), single=False))
