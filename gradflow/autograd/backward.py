"""The backward pass: walks over the graph that apply the gradient rules of its nodes in reverse.

The graph has two kinds of vertices. A `Node` records an operation: its `parents` (the nodes and leaves that its inputs
came from) and the inputs and result that its rules read. A `Leaf` represents a tensor that no recorded operation
computed, and holds its gradient. Gradients flow from a node to its parents.

A walk starts from the roots, usually one loss, with a gradient for each. It visits the nodes that the roots depend on
from the newest to the oldest, and leaves last (`nodes_from`). A node is newer than its parents, so when the walk comes
to it, all gradients that flow to it have been computed. Until then `pending` holds their sum. (The rules of indexing
return a `Part`, a gradient that is zero outside the index; `parts` collects these and combines them in few calls.) The
walk applies the rules of the node to that sum, sums each result over broadcast axes and casts it (`fitted`), and adds
it to what is pending for the parent. Then it frees what the node saved, unless the graph is retained. At a leaf, it
adds the sum to the leaf's gradient (`accumulate`).

There are two walks, which give the same gradients, to the bit:

- `_walk_to_buffers`, the fast path of a training step: on arrays, to all leaves, without observers and hooks. Where it
  can, it has rules write the gradients of parameters straight into the buffers of their optimizer.
- `_walk`, for everything else: observers and hooks; the gradients of chosen nodes instead of those of all leaves;
  recorded walks (`create_graph=True`), in which the `F` of the rules is `gradflow.ops.namespace` rather than a backend,
  and gradients are tensors that can be differentiated again; and batches of gradients (`gradflow.autograd.batching`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from gradflow.autograd.fitting import fitted, in_float32
from gradflow.autograd.grad_mode import current_observer
from gradflow.autograd.graph import Node, nodes_from
from gradflow.autograd.hooks import hooked_nodes, retain, run_hooks
from gradflow.autograd.leaf import CLAIMED, RESERVED, Leaf, accumulate, locks, mark_filled, release
from gradflow.autograd.observers import Observer
from gradflow.autograd.parts import Part, PartsOf, with_parts
from gradflow.autograd.saved import free, saved_values
from gradflow.backend import Backend


def backward(
    roots: Sequence[Node | Leaf],
    gradients: Sequence[Any],
    retain_graph: bool,
    functions: Any = None,
    wanted: set[Node | Leaf] | None = None,
    batched: Callable[[Any], Any] | None = None,
    through: bool = False,
) -> dict[Any, Any]:
    """Backpropagate `gradients` of `roots` to the leaves; or return the gradients of the `wanted` nodes and leaves.

    Without `wanted`, the gradients are added to those of the leaves, and the returned dict is empty. With it, the
    gradients of leaves do not change.

    retain_graph: whether nodes keep what they saved, for another walk.
    functions: None (default) for a walk on arrays. With `gradflow.ops.namespace`, the `F` of rules on tensors,
        `gradients` are tensors and the walk is recorded.
    wanted: nodes and leaves where the walk ends.
    batched: converts an `F` into one for batches (`gradflow.autograd.batching.batched`); `gradients` are then batches.
    through: whether the walk continues beyond wanted nodes, to others that they depend on (default False).

    Raises RuntimeError where saved arrays were freed or changed in place, ValueError where a rule returns a gradient of
    the wrong shape.
    """
    observer = current_observer.get()
    if observer is None and functions is None and wanted is None and batched is None and not hooked_nodes:
        _walk_to_buffers(roots, gradients, retain_graph)
        return {}
    if observer is None:
        return _walk(roots, gradients, retain_graph, functions, wanted, batched, through, None)
    observer.before_backward()
    try:
        found = _walk(roots, gradients, retain_graph, functions, wanted, batched, through, observer)
    except BaseException:
        observer.backward_failed()
        raise
    observer.after_backward()
    return found


def _walk(
    roots: Sequence[Node | Leaf],
    gradients: Sequence[Any],
    retain_graph: bool,
    functions: Any,
    wanted: set[Node | Leaf] | None,
    batched: Callable[[Any], Any] | None,
    through: bool,
    observer: Observer | None,
) -> dict[Any, Any]:
    """The general walk of `backward`."""

    def namespace(backend: Backend) -> Any:
        """The `F` of what is computed on a device."""
        F = backend if functions is None else functions
        return F if batched is None else batched(F)

    on_arrays = functions is None and batched is None
    on_path: set[Any] | None = None  # the wanted nodes and those that depend on one; None: all
    if wanted is None:
        order = nodes_from(roots)
    else:
        order = nodes_from(roots, wanted, through)
        on_path = set(wanted)
        for node in reversed(order):
            if node not in on_path and any(p in on_path for p in node.parents):
                on_path.add(node)
    pending: dict[Any, Any] = {}
    parts = PartsOf()
    found: dict[Any, Any] = {}
    for root, g in zip(roots, gradients, strict=True):
        pending[root] = namespace(root.backend).add(pending[root], g) if root in pending else g
    for node in order:
        if observer is not None:
            observer.visit(node)
        g = pending.pop(node, None)
        if node in parts:
            g = with_parts(g, parts.pop(node), namespace(node.backend))
            if observer is not None:
                observer.after_adding(node, g)
        if g is None or (on_path is not None and node not in on_path):
            continue
        if hooked_nodes and weakref.ref(node) in hooked_nodes:
            g = run_hooks(node, g, functions, batched is not None)
            if wanted is None:
                retain(node, g, functions)
        if wanted is not None and node in wanted:
            found[node] = g
            if not (through and any(parent in on_path for parent in node.parents)):  # type: ignore[operator]
                continue
        op = node.op
        if op is None:
            if wanted is None:
                accumulate(node, g, functions)
                if observer is not None:
                    observer.after_adding(node, node.grad)
            continue

        values, out = saved_values(node, functions is not None)
        F = namespace(node.backend)
        if op.widens and not (op.joint and on_arrays) and node.dtype in node.backend.half_dtypes:
            g, out, values = in_float32(F, g, out, values, node)
        if observer is not None:
            observer.before_rules(node, g, out, values)
        parents, parameters = node.parents, node.parameters or {}
        if op.joint is not None:
            needs = [p is not None and (on_path is None or p in on_path) for p in parents]
            if op.writes_into:
                parameters = {**parameters, "into": [None] * len(parents)}
            if op.residual and not on_arrays:
                parameters = {**parameters, "residual": None}
            results = op.joint(F, g, out, *values, needs=needs, **parameters)
        else:
            results = op.rules  # called below, one by one

        for i, parent in enumerate(parents):
            result = results[i]
            if result is None or parent is None or (on_path is not None and parent not in on_path):
                continue
            if op.joint is None:
                result = result(F, g, out, *values, **parameters)
            if observer is not None:
                whole = result.whole(F, parent.shape) if result.__class__ is Part else result
                observer.after_rule(node, i, g, out, values, whole)
            if result.__class__ is Part:
                parts[parent].add(result, F)
                continue
            total = fitted(result, F, node, i, functions is not None and batched is None)
            if parent in pending:
                # F, unless the operation moved its input to another device
                total = namespace(parent.backend).add(pending[parent], total)
            pending[parent] = total
            if observer is not None and total is not result:
                observer.after_adding(parent, total)
        if not retain_graph:
            free(node)
    return found


def _walk_to_buffers(roots: Sequence[Node | Leaf], gradients: Sequence[Any], retain_graph: bool) -> None:
    """The walk of a training step: on arrays, to all leaves, without observers and hooks.

    A leaf is RESERVED if it has no gradient and its buffer may be overwritten. Before a rule that `writes_into` buffers
    runs, the walk claims the RESERVED leaves among the parents (CLAIMED), so that no walk of another thread writes to
    their buffers, and passes the buffers to the rule. If nothing else flows to such a leaf, its buffer holds the
    gradient at the end of the walk, and it is marked filled (IN_BUFFER). If something does, the sum with what was
    written is a new array in `pending`, and the claim is released. Leaves in `pending` get their gradients by
    `accumulate`, at the end.

    Gradients are added in the same order as by `_walk`, so that both give the same bits.
    """
    pending: dict[Any, Any] = {}
    parts: PartsOf | None = None
    for root, g in zip(roots, gradients, strict=True):
        pending[root] = root.backend.add(pending[root], g) if root in pending else g
    order = nodes_from(roots)
    claimed: list[Leaf] = []
    written: dict[Leaf, Any] = {}  # the buffers of claimed leaves that hold the first gradient that flowed to the leaf
    try:
        for node in order:
            op = node.op
            if op is None:  # a leaf: its gradient is added at the end
                continue
            g = pending.pop(node, None)
            if parts and node in parts:
                g = with_parts(g, parts.pop(node), node.backend)
            if g is None:
                continue
            F, parents, parameters = node.backend, node.parents, node.parameters
            saves = node.inputs is not None or node.out is not None or op.saves_parameters
            values, out = saved_values(node, False) if saves else (parents, None)
            joint, into = op.joint, parents  # no buffers: no result is a parent
            if joint is None:
                results = op.rules
                if op.widens and node.dtype is not F.single and node.dtype in F.half_dtypes:
                    g, out, values = in_float32(F, g, out, values, node)
            elif op.writes_into:
                into = []
                with locks.claims:
                    for parent in parents:
                        if parent is not None and parent.state is RESERVED:
                            parent.state = CLAIMED
                            claimed.append(parent)
                            into.append(parent.slot.array)
                        else:
                            into.append(None)
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
                    written[parent] = result
                    continue
                if result.shape != parent.shape or result.dtype is not parent.dtype:
                    if result.__class__ is Part:
                        if parts is None:
                            parts = PartsOf()
                        parts[parent].add(result, F)
                        continue
                    result = fitted(result, F, node, i, False)
                earlier = pending.get(parent)
                if earlier is None and written:
                    earlier = written.get(parent)
                pending[parent] = result if earlier is None else parent.backend.add(earlier, result)
            if saves and not retain_graph:
                free(node)
        for leaf, found in parts.items() if parts else ():
            g = pending.get(leaf, written.get(leaf))
            pending[leaf] = with_parts(g, found, leaf.backend)
        filled = [leaf for leaf in written if leaf not in pending] if pending else list(written)
        if filled:
            mark_filled(filled)
            claimed = [] if len(claimed) == len(filled) else list(set(claimed).difference(filled))
    finally:
        if claimed:  # a rule failed or did not write to a buffer, or something else flowed to a leaf
            release(claimed)
    for leaf, g in pending.items():
        own = parts is not None and leaf in parts and leaf.shape != ()  # NumPy's sum of 0-d arrays is a scalar
        accumulate(leaf, g, None, own)
