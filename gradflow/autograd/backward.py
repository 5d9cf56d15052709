"""The backward pass: nodes that remember operations, and the walk that applies their rules in reverse.

A node holds an operation, the nodes that its inputs came from, and the tensors that its rules read. A walk visits
nodes from the newest to the oldest and hands each gradient on. It runs in one of two ways:

- on arrays, where a rule's `F` is the backend: nothing is recorded;
- on tensors (`create_graph=True`), where `F` is `gradflow.ops`: the same rule, recorded, so that the gradient can be
  differentiated in turn.

Either way it can go for many gradients at once (`gradflow.batching`): the same rules again, on batches of them.

What would otherwise stand in every rule is done here, once: running it in float32 where gradients are half floats, so
that no count or factor leaves their range, undoing broadcasts, casting gradients to the dtype of
their input, skipping what needs no gradient, buffers, and freeing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from gradflow.autograd import saved
from gradflow.autograd.grad_mode import current_observer
from gradflow.autograd.graph import Node, nodes_from
from gradflow.autograd.hooks import _retain, _run_hooks, hooked_nodes
from gradflow.autograd.leaf import Leaf, _accumulate, _hand_out, locks
from gradflow.autograd.parts import Part, _PartsOf, _with_parts
from gradflow.autograd.saved import _free, _saved
from gradflow.backend import Backend
from gradflow.backend.half_floats import widened
from gradflow.shapes import broadcasts


def _sum_to_shape(F: Any, g: Any, shape: tuple[int, ...], native: Any, backend: Backend) -> Any:
    """The VJP of broadcasting from `shape`: g summed over what was repeated, half floats in float32."""
    extra = g.ndim - len(shape)
    axes = tuple(i for i, n in enumerate(g.shape) if i < extra or (shape[i - extra] == 1 and n != 1))
    if axes:
        if native in backend.half_dtypes:
            g = F.astype(g, backend.dtypes["float32"])
        g = F.sum(g, axis=axes, keepdims=True)
    return F.reshape(g, shape)


def backward(
    roots: Sequence[Node | Leaf],
    gradients: Sequence[Any],
    retain_graph: bool,
    create_graph: bool,
    wanted: set[Node | Leaf] | None = None,
    batched: Callable[[Any], Any] | None = None,
    through: bool = False,
) -> dict[Any, Any]:
    """Walk back from `roots` with their `gradients` (arrays, or tensors with `create_graph`).

    Adds to the gradients of the leaves; or, with `wanted`, leaves them alone, ends at those nodes (or goes on
    `through` them to others), and returns their gradients. `batched` turns an `F` into one for batches, which the
    gradients then are.
    Raises RuntimeError where saved arrays have been freed or changed.
    """
    observer = current_observer.get()
    hooked = hooked_nodes if hooked_nodes else None
    if not create_graph and wanted is None and batched is None and observer is None and hooked is None:
        _backward_to_buffers(roots, gradients, retain_graph)
        return {}
    on_path: set[Any] | None = None
    if wanted is None:
        order = nodes_from(roots)
    else:
        order = nodes_from(roots, wanted, through)
        on_path = set(wanted)
        for node in reversed(order):
            if node not in on_path and any(p in on_path for p in node.parents):
                on_path.add(node)
    on_tensors = create_graph and batched is None
    if observer is not None:
        observer.before_backward()
    pending: dict[Any, Any] = {}
    parts = _PartsOf()
    for root, g in zip(roots, gradients, strict=True):
        if root in pending:
            F = saved.tensor_functions if create_graph else root.backend
            g = (F if batched is None else batched(F)).add(pending[root], g)
        pending[root] = g
    found: dict[Any, Any] = {}
    for node in order:
        g = pending.pop(node, None)
        if node in parts:
            F = saved.tensor_functions if create_graph else node.backend
            g = _with_parts(g, parts.pop(node), F if batched is None else batched(F))
            if observer is not None:
                observer.after_adding(node, g)
        if g is None:
            continue
        if hooked is not None and weakref.ref(node) in hooked and (on_path is None or node in on_path):
            g = _run_hooks(node, g, create_graph, batched)
            if wanted is None:
                _retain(node, g, create_graph)
        if on_path is not None:
            if node not in on_path:
                continue
            if node in wanted:  # type: ignore[operator]
                found[node] = g
                if not (through and any(parent in on_path for parent in node.parents)):
                    continue
        op = node.op
        if op is None:
            if wanted is None:
                _accumulate(node, g, create_graph)
                if observer is not None:
                    observer.after_adding(node, node.grad)
            continue
        values, out = _saved(node, create_graph)
        F = saved.tensor_functions if create_graph else node.backend
        if batched is not None:
            F = batched(F)
        whole = op.joint is None or create_graph or batched is not None  # else its kernels see to half floats
        if op.widens and whole and node.dtype in node.backend.half_dtypes:
            g, out, values = _widened(F, g, out, values, node)
        if observer is not None:
            observer.before_rules(node, g, out, values)
        parents, parameters = node.parents, node.parameters or {}
        if op.joint is not None:
            needs = [p is not None and (on_path is None or p in on_path) for p in parents]
            if op.writes_into:
                parameters = {**parameters, "into": [None] * len(parents)}
            if op.residual and (create_graph or batched is not None):
                parameters = {**parameters, "residual": None}
            results = op.joint(F, g, out, *values, needs=needs, **parameters)
        else:
            results = op.rules
        for i, parent in enumerate(parents):
            result = results[i]
            if result is None or parent is None or (on_path is not None and parent not in on_path):
                continue
            if op.joint is None:
                result = result(F, g, out, *values, **parameters)
            if result.__class__ is Part:
                parts[parent].add(result, F)
                if observer is not None:
                    observer.after_rule(node, i, g, out, values, result.whole(F, parent.shape))
                continue
            given = result
            if observer is not None:
                observer.after_rule(node, i, g, out, values, result)
            result = _fitted(result, F, node, i, on_tensors)
            total, earlier = result, pending.get(parent)
            if earlier is not None:
                there = saved.tensor_functions if create_graph else parent.backend  # F, unless the node moved its input
                total = (there if batched is None else batched(there)).add(earlier, result)
            pending[parent] = total
            if observer is not None and total is not given:
                observer.after_adding(parent, total)
        if not retain_graph:
            _free(node)
    if observer is not None:
        observer.after_backward()
    return found


def _backward_to_buffers(roots: Sequence[Node | Leaf], gradients: Sequence[Any], retain_graph: bool) -> None:
    """`backward` of a training step: on arrays, to all leaves, without observers.

    Gradients are written straight to the buffers where possible. All are added up in the same order as in any other
    walk, so that the sums are equal to the bit.
    """
    pending: dict[Any, Any] = {}
    parts: _PartsOf | None = None
    for root, g in zip(roots, gradients, strict=True):
        pending[root] = root.backend.add(pending[root], g) if root in pending else g
    order = nodes_from(roots)
    written: list[Leaf] = []  # leaves whose buffers hold their only gradient so far
    claims = 0
    try:
        for node in order:
            op = node.op
            if op is None:  # a leaf, whose gradient waits until the end
                continue
            g = pending.pop(node, None)
            if parts and node in parts:
                g = _with_parts(g, parts.pop(node), node.backend)
            if g is None:
                continue
            F, parents, parameters = node.backend, node.parents, node.parameters
            saves = node.inputs is not None or node.out is not None or op.saves_parameters
            values, out = _saved(node, False) if saves else (parents, None)
            joint, into = op.joint, parents
            if joint is None:
                results = op.rules
                if op.widens and node.dtype is not F.single and node.dtype in F.half_dtypes:
                    g, out, values = _widened(F, g, out, values, node)
            elif op.writes_into:
                into = []
                with locks.claims:
                    for parent in parents:
                        buffer = None if parent is None else parent.free
                        if buffer is not None:  # it is written once
                            if buffer is parent.buffer:
                                parent.free = pending  # marks it as claimed by this walk
                                claims += 1
                            else:
                                buffer = None
                        into.append(buffer)
                needs = [p is not None for p in parents]
                results = joint(F, g, out, *values, needs=needs, into=into, **(parameters or {}))
            else:
                results = joint(F, g, out, *values, needs=[p is not None for p in parents], **(parameters or {}))
            for i, parent in enumerate(parents):
                result = results[i]
                if result is None or parent is None:
                    continue
                if joint is None:
                    result = result(F, g, out, *values, **parameters) if parameters else result(F, g, out, *values)
                elif result is into[i] and not (pending and parent in pending):
                    written.append(parent)
                    continue
                if result.shape != parent.shape or result.dtype is not parent.dtype:
                    if result.__class__ is Part:
                        if parts is None:
                            parts = _PartsOf()
                        parts[parent].add(result, F)
                        continue
                    result = _fitted(result, F, node, i, False)
                earlier = pending.get(parent)
                if earlier is None and parent.free is pending and parent in written:
                    earlier = parent.buffer
                pending[parent] = result if earlier is None else parent.backend.add(earlier, result)
            if saves and not retain_graph:
                _free(node)
        for leaf, found in parts.items() if parts else ():
            g = pending.get(leaf, leaf.buffer if leaf in written else None)
            pending[leaf] = _with_parts(g, found, leaf.backend)
        if pending:
            written = [leaf for leaf in written if leaf not in pending]
        if written:
            _hand_out(written)
            claims -= len(written)
    finally:
        if claims:  # a buffer was not written or another gradient was added to it, or a rule has raised
            with locks.claims:
                for node in order:
                    if node.free is pending:
                        node.free = None
    for leaf, g in pending.items():
        own = parts is not None and leaf in parts and leaf.shape != ()  # without axes, NumPy's sum is a number
        _accumulate(leaf, g, False, own)


def _widened(F: Any, g: Any, out: Any, values: Sequence[Any], node: Node) -> tuple[Any, Any, Sequence[Any]]:
    """What the rules of a node read, with half floats in float32."""
    backend = node.backend
    values = [x if x.__class__ in (Node, Leaf) else widened(x, backend, F) for x in values]
    return widened(g, backend, F), widened(out, backend, F), values


def _fitted(result: Any, F: Any, node: Node, argument: int, on_tensors: bool) -> Any:
    """What a rule gave as the gradient of an argument, in the shape and the dtype of this."""
    parent = node.parents[argument]
    native = result.array.dtype if on_tensors else result.dtype
    if result.shape != parent.shape:
        _check_broadcast(node, argument, result.shape, parent.shape)
        result = _sum_to_shape(F, result, parent.shape, native, node.backend)
        native = result.array.dtype if on_tensors else result.dtype
    if native is not parent.dtype and native != parent.dtype:
        result = F.astype(result, parent.dtype)
    return result


def _check_broadcast(node: Node, argument: int, shape: Any, expected: Any) -> None:
    """Raise ValueError for a gradient that is not a broadcast of its argument: a rule is wrong."""
    if len(shape) > max(len(expected), len(node.shape)) or not broadcasts(expected, shape):
        raise ValueError(
            f"the rule of {node.op.name} for argument {argument} gave a gradient of shape {tuple(shape)}; "
            f"the argument has shape {tuple(expected)}"
        )
