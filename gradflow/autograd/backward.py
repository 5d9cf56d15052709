"""The backward pass: traverses the graph in reverse and applies the gradient rules of each node.

The graph has two kinds of vertices. A `Node` is one recorded operation. It stores its `parents` (the nodes and leaves
that its inputs came from) and the inputs and result that its rules need. A `Leaf` represents a tensor created by the
user, not by a recorded operation, and stores its gradient. Gradients flow from a node to its parents.

A walk starts from the roots, usually one loss, with a gradient for each. It visits the nodes that the roots depend on
from the newest to the oldest, and then the leaves (`nodes_from`). A node is newer than its parents, so by the time the
walk reaches a node, every gradient flowing into it is available: `pending` holds their sum. The walk applies the rules
of the node to that sum. It sums each result over broadcast axes, casts it to the dtype of the parent (`fitted`), and
adds it to what is pending for the parent. Then it frees what the node saved, unless the graph is retained. At a leaf,
it adds the sum to the leaf's existing gradient (`accumulate`).

Indexing rules return a `Part`: a gradient that is zero outside the index. Parts are collected for each parent
(`PartsOf`), and combined and added to what is pending when the walk reaches it.

There are two walks, which produce bitwise-identical gradients:

- `_walk_to_buffers`, the fast path of a training step: on arrays, to all leaves, without observers and hooks. Where
  possible, rules write parameter gradients directly into the optimizer's buffers.
- `_walk`, for everything else: observers and hooks; the gradients of chosen nodes instead of those of all leaves;
  recorded walks (`create_graph=True`), whose gradients are tensors that can be differentiated again; and batches of
  gradients (`gradflow.autograd.batching`).

A rule calls the functions of a namespace `F`: a backend on arrays, `gradflow.ops.namespace` on tensors, or either of
them converted for batches.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from gradflow.autograd.autocast import autocast
from gradflow.autograd.fitting import fitted, in_float32
from gradflow.autograd.grad_mode import autocast_dtype, current_observer
from gradflow.autograd.graph import Node, nodes_from
from gradflow.autograd.hooks import hooked_nodes, retain, run_hooks
from gradflow.autograd.leaf import Leaf, accumulate, arrivals, claim, mark_filled, release
from gradflow.autograd.observers import Observer
from gradflow.autograd.parts import Part, PartsOf, with_parts
from gradflow.autograd.saved import free, saved_values
from gradflow.backend import Backend
from gradflow.interception import measured, profilers, visited


def backward(
    roots: Sequence[Node | Leaf],
    gradients: Sequence[Any],
    retain_graph: bool,
    namespace: Any = None,
    wanted: set[Node | Leaf] | None = None,
    past_wanted: bool = False,
    to_batched: Callable[[Any], Any] | None = None,
) -> dict[Any, Any]:
    """Backpropagate `gradients` of `roots` to the leaves; or return the gradients of the `wanted` nodes and leaves.

    Without `wanted`, the gradients are added to those of the leaves, and the returned dict is empty. With it, the
    gradients of leaves do not change.

    retain_graph: whether nodes keep what they saved, for another walk.
    namespace: None (default) for a walk on arrays. Pass `gradflow.ops.namespace` to record the walk; `gradients` must
        then be tensors.
    wanted: nodes and leaves whose gradients are returned. The walk does not continue past them, unless `past_wanted`.
    past_wanted: whether the walk continues past wanted nodes, to others that they depend on (default False).
    to_batched: converts an `F` into one for batches (`gradflow.autograd.batching.batched`); `gradients` must then be
        batches. None (default): they are not.

    Raises RuntimeError if saved arrays were freed or changed in place, ValueError if a rule returns a gradient of the
    wrong shape.
    """
    observer = current_observer.get()
    if observer is None and namespace is None and wanted is None and to_batched is None and not hooked_nodes:
        if profilers:
            measured("backward", None, _walk_to_buffers, roots, gradients, retain_graph)
        else:
            _walk_to_buffers(roots, gradients, retain_graph)
        return {}
    if namespace is not None and autocast_dtype.get() is not None:
        with autocast(None, enabled=False):  # a walk that is recorded has the dtypes of the forward pass, too
            return backward(roots, gradients, retain_graph, namespace, wanted, past_wanted, to_batched)
    how = roots, gradients, retain_graph, namespace, wanted, past_wanted, to_batched, observer
    if observer is None:
        return measured("backward", None, _walk, *how)
    try:
        observer.before_backward()
        wanted_gradients = measured("backward", None, _walk, *how)
    except BaseException:
        observer.backward_failed()
        raise
    observer.after_backward()
    return wanted_gradients


def _walk(
    roots: Sequence[Node | Leaf],
    gradients: Sequence[Any],
    retain_graph: bool,
    namespace: Any,
    wanted: set[Node | Leaf] | None,
    past_wanted: bool,
    to_batched: Callable[[Any], Any] | None,
    observer: Observer | None,
) -> dict[Any, Any]:
    """Walk in general; see `backward` for the arguments."""

    def functions_of(backend: Backend) -> Any:
        """Return the `F` for rules that run on a backend."""
        F = backend if namespace is None else namespace
        return F if to_batched is None else to_batched(F)

    on_arrays = namespace is None and to_batched is None
    on_path: set[Any] | None = None  # the wanted nodes and those that depend on one; None: all
    if wanted is None:
        order = nodes_from(roots)
    else:
        order = nodes_from(roots, wanted, past_wanted)
        on_path = set(wanted)
        for node in reversed(order):
            if node not in on_path and any(p in on_path for p in node.parents):
                on_path.add(node)
    pending: dict[Any, Any] = {}
    parts = PartsOf()
    wanted_gradients: dict[Any, Any] = {}
    for root, g in zip(roots, gradients, strict=True):
        pending[root] = functions_of(root.backend).add(pending[root], g) if root in pending else g
    for node in visited(order):
        if observer is not None:
            observer.visit(node)
        g = pending.pop(node, None)
        if node in parts:
            g = with_parts(g, parts.pop(node), functions_of(node.backend))
            if observer is not None:
                observer.after_adding(node, g)
        if g is None or (on_path is not None and node not in on_path):
            continue
        if hooked_nodes and weakref.ref(node) in hooked_nodes:
            before, g = g, run_hooks(node, g, namespace, to_batched is not None)
            if observer is not None and g is not before:
                observer.changed_by_hooks(node, before)
            if wanted is None:
                retain(node, g, namespace)
        if observer is not None:
            observer.gradient(node, g)
        if wanted is not None and node in wanted:
            wanted_gradients[node] = g
            if not (past_wanted and any(parent in on_path for parent in node.parents)):  # type: ignore[operator]
                continue
        op = node.op
        if op is None:
            if wanted is None:
                accumulate(node, g, namespace)
                if observer is not None:
                    observer.after_adding(node, node.grad)
            continue

        parents, parameters = node.parents, node.parameters or {}  # before `saved_values`, see `free`
        values, out = saved_values(node, namespace is not None)
        F = functions_of(node.backend)
        if op.widens and not (op.joint and on_arrays) and node.dtype in node.backend.half_dtypes:
            g, out, values = in_float32(F, g, out, values, node)
        if observer is not None:
            observer.before_rules(node, g, out, values)
        needs = [p is not None and (on_path is None or p in on_path) for p in parents]
        results: Sequence[Any] | None = None
        if op.joint is not None:
            if op.writes_into:
                parameters = {**parameters, "into": [None] * len(parents)}
            if op.residual and not on_arrays:
                parameters = {**parameters, "residual": None}
            results = op.joint(F, g, out, *values, needs=needs, **parameters)

        for i, parent in enumerate(parents):
            if not needs[i]:
                continue
            if results is not None:
                result = results[i]
            else:
                rule = op.rules[i]
                result = None if rule is None else rule(F, g, out, *values, **parameters)
            if result is None:
                continue
            if observer is not None:
                whole = result.whole(F, parent.shape) if result.__class__ is Part else result
                observer.after_rule(node, i, g, out, values, whole)
            if result.__class__ is Part:  # its sum has the shape and dtype of the parent
                if observer is not None:
                    observer.received(node, i, whole)
                parts[parent].add(result, F)
                continue
            total = fitted(result, F, node, i)
            if observer is not None:
                observer.received(node, i, total)
            if parent in pending:  # the parent's namespace is F, unless the operation is a transfer between devices
                total = functions_of(parent.backend).add(pending[parent], total)
            pending[parent] = total
            if observer is not None and total is not result:
                observer.after_adding(parent, total)
        results = None  # so that a gradient is freed once its leaf has a copy
        if not retain_graph:
            free(node)
    return wanted_gradients


def _walk_to_buffers(roots: Sequence[Node | Leaf], gradients: Sequence[Any], retain_graph: bool) -> None:
    """Walk in a training step: on arrays, to all leaves, without observers and hooks.

    A leaf is RESERVED if it has no gradient and the next walk may overwrite its buffer. Before a rule that
    `writes_into` buffers runs, the walk claims the RESERVED leaves among the parents, so that no other thread writes to
    their buffers, and passes the buffers to the rule. If such a leaf receives no other gradient, its buffer holds the
    gradient at the end of the walk, and it is marked filled (IN_BUFFER). If it does, the sum with what was written is a
    new array in `pending`, and the claim is released. Leaves in `pending` get their gradients by `accumulate`, at the
    end.

    Gradients are added in the same order as in `_walk`, for the same bits.
    """
    pending: dict[Any, Any] = {}
    parts: PartsOf | None = None
    for root, g in zip(roots, gradients, strict=True):
        pending[root] = root.backend.add(pending[root], g) if root in pending else g
    order = nodes_from(roots)
    on_arrival = arrivals.get()
    uses = None if on_arrival is None else Counter(p for node in order for p in node.parents)  # those left to visit
    claimed: list[Leaf] = []
    written: dict[Leaf, Any] = {}  # claimed leaf -> its buffer, which holds the first gradient that reached the leaf
    try:
        for node in visited(order):
            op = node.op
            if op is None:  # a leaf: its gradient is added at the end
                continue
            g = pending.pop(node, None)
            if parts and node in parts:
                g = with_parts(g, parts.pop(node), node.backend)
            if g is None:
                continue
            F, parents, parameters = node.backend, node.parents, node.parameters
            saves = node.out is not None or node.inputs is not None or op.saves_parameters  # in this order, see `free`
            values, out = saved_values(node, False) if saves else (parents, None)
            joint, into = op.joint, None
            if joint is None:
                rules = op.rules
                if op.widens and node.dtype is not F.single and node.dtype in F.half_dtypes:
                    g, out, values = in_float32(F, g, out, values, node)
            else:
                needs = [p is not None for p in parents]
                if op.writes_into:
                    into = claim(parents, claimed)
                    results = joint(F, g, out, *values, needs=needs, into=into, **(parameters or {}))
                else:
                    results = joint(F, g, out, *values, needs=needs, **(parameters or {}))
            for i, parent in enumerate(parents):
                if parent is None:
                    continue
                if joint is None:
                    rule = rules[i]
                    if rule is None:
                        continue
                    result = rule(F, g, out, *values, **parameters) if parameters else rule(F, g, out, *values)
                else:
                    result = results[i]
                    if result is None:
                        continue
                    if into is not None and result is into[i] and not (pending and parent in pending):
                        written[parent] = result
                        continue
                if result.shape != parent.shape or result.dtype is not parent.dtype:
                    if result.__class__ is Part:  # its sum has the shape and dtype of the parent
                        if parts is None:
                            parts = PartsOf()
                        parts[parent].add(result, F)
                        continue
                    result = fitted(result, F, node, i)
                earlier = pending.get(parent)
                if earlier is None and written:
                    earlier = written.get(parent)
                pending[parent] = result if earlier is None else parent.backend.add(earlier, result)
            if saves and not retain_graph:
                free(node)
            if uses is not None:
                uses.subtract(parents)
                for parent in parents:
                    if (
                        parent in written
                        and not uses[parent]
                        and not (parent in pending or (parts and parent in parts))
                    ):
                        on_arrival(parent)  # type: ignore[misc]
        for leaf, collected in parts.items() if parts else ():
            g = pending.get(leaf, written.get(leaf))
            pending[leaf] = with_parts(g, collected, leaf.backend)
        filled = [leaf for leaf in written if leaf not in pending] if pending else list(written)
        if filled:
            mark_filled(filled)  # all of them are claimed, so if there are as many, no claim is left
            claimed = [] if len(claimed) == len(filled) else list(set(claimed).difference(filled))
    finally:
        if claimed:  # a rule failed or returned another array, or the leaf received further gradients
            release(claimed)
    if pending:
        results = result = earlier = None  # so that a gradient is freed once its leaf has a copy
        for leaf in list(pending):
            g = pending.pop(leaf)
            # for a leaf without axes, NumPy's add returns a scalar, which must be converted
            own = parts is not None and leaf in parts and leaf.shape != ()
            accumulate(leaf, g, None, own)
