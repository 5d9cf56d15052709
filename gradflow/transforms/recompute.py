"""Activation checkpoints: a segment saves only its inputs and is recomputed in the backward pass, for less memory.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". A segment is recorded as one node. Its parents are
the arguments and everything else that the segment read and that requires grad (weights, for example). Its rule runs the
segment again, with the random generators in the states that they had, and backpropagates through that run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gradflow.autograd.autocast import autocast
from gradflow.autograd.backward import backward
from gradflow.autograd.batching import Batch, batched
from gradflow.autograd.grad_mode import autocast_dtype, current_observer, enable_grad, is_grad_enabled, repeating
from gradflow.autograd.graph import Node, Operation
from gradflow.autograd.mapping import at_level, current_level
from gradflow.autograd.memory import clock
from gradflow.autograd.observers import Forwarder, observe
from gradflow.default_dtype import current_dtype, use_dtype
from gradflow.ops import concat, namespace, reshape
from gradflow.random.generator import States, restored, states_before
from gradflow.tensor import Tensor
from gradflow.transforms.arguments import check_function
from gradflow.transforms.trace import stand_in
from gradflow.tree import flatten, map_tree, rebuild


def checkpoint(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """`function(*arguments, **options)`, whose intermediate values are not saved but recomputed in the backward pass.

    Gradients are bitwise identical to those without the checkpoint, including those of closed-over tensors, and dropout
    draws the same masks. Only the gradients of a tensor used both inside and outside may be added in another order.

    function: must compute the same values each time from its arguments and from tensors that do not change. It returns
        tensors of one dtype and device, or nested tuples, lists and dicts of them.
    arguments, options: what the function is called with.

    Raises TypeError for results of several dtypes or devices. The backward pass raises RuntimeError if the second run
    differs from the first, or would read a tensor that was changed in place since.

    >>> import gradflow as gf
    >>> x = gf.tensor([0.0, 1.0], requires_grad=True)
    >>> gf.checkpoint(lambda x: gf.square(gf.exp(x)).sum(), x).backward()
    >>> [round(g, 3) for g in x.grad.tolist()]
    [2.0, 14.778]
    """
    check_function("checkpoint", function)
    if not is_grad_enabled():
        return function(*arguments, **options)
    segment = _Segment(function, (arguments, options))
    with states_before() as states:
        run = _Run(segment, recorded=False)
    if run.flat is None:
        return run.output
    externals = run.external_nodes()
    segment.states, segment.externals = states, externals
    backend, array = run.flat.backend, run.flat.array
    parents = tuple([node for node in segment.argument_nodes if node is not None] + externals)
    node = Node(CHECKPOINT, backend, parents, None, None, array, {"segment": segment})
    segment.version = node.id
    memory = run.flat._shared_memory()  # the function may have returned a view of an argument
    out = Tensor(array, backend, node)
    memory.add(out)
    observer = current_observer.get()
    if observer is not None:
        observer.stands_for(out, run.flat)
    return run.split(out)


class _Segment:
    """A function, and what is needed to repeat its first run.

    tree, leaves: its arguments, nested, and as a list; argument_nodes: their nodes, None for those without a gradient.
    autocast, use_dtype, level: these modes of the first run, and the `vmap` that it was in.
    states: the states of the random generators before the first run.
    externals: the nodes of other tensors that it read and that require grad.
    version: the number of the clock after the first run.
    """

    states: States
    externals: list[Any]
    version: int

    def __init__(self, function: Callable[..., Any], tree: Any) -> None:
        self.function = function
        self.tree = tree
        self.autocast = autocast(autocast_dtype.get(), enabled=autocast_dtype.get() is not None)
        self.use_dtype = use_dtype(current_dtype())
        self.level = current_level.get()
        self.leaves = [x for _, x in flatten(tree)]
        self.argument_nodes = [x._node if isinstance(x, Tensor) else None for x in self.leaves]

    def check_unchanged(self, tensors: Iterable[Any], until: int) -> None:
        """Raise RuntimeError for a tensor that was changed in place between the first run and `until`."""
        for x in tensors:
            if not isinstance(x, Tensor):
                continue
            changed = 0 if x._memory is None else x._memory.changed
            if self.version < changed < until:
                raise RuntimeError(
                    f"a tensor of shape {x.shape} that a checkpoint reads was changed in place after it ran (it ran at "
                    f"version {self.version}, changed at version {changed}); change a copy of it, or change it after "
                    "backward()"
                )


class _Watcher(Forwarder):
    """Observes the second run of a segment, and raises if it reads a tensor that was changed in place."""

    def __init__(self, segment: _Segment) -> None:
        super().__init__(current_observer.get())
        self.segment = segment
        self.start = clock.tick()

    def forward(self, op: Operation, inputs: Sequence[Any], out: Tensor, parameters: dict[str, Any]) -> None:
        self.segment.check_unchanged(inputs, self.start)
        super().forward(op, inputs, out, parameters)


class _Run:
    """A run of a segment on stand-ins for its arguments.

    recorded: whether the stand-ins are connected to the graph of the arguments, for higher derivatives.

    `output` is what the function returned, `parts` are the recorded tensors in it, and `flat` is one tensor of all
    their elements, or None if there are none.
    """

    def __init__(self, segment: _Segment, recorded: bool) -> None:
        self.start = clock.tick()
        with segment.autocast, segment.use_dtype, at_level(segment.level), enable_grad():
            leaves = [
                x if node is None else stand_in(x, recorded)
                for x, node in zip(segment.leaves, segment.argument_nodes, strict=True)
            ]
            self.stand_ins: list[Any] = [
                x._node for x, node in zip(leaves, segment.argument_nodes, strict=True) if node is not None
            ]
            arguments, options = rebuild(segment.tree, leaves)
            self.output = segment.function(*arguments, **options)
            self.parts = [y for _, y in flatten(self.output) if isinstance(y, Tensor) and y._node is not None]
            if len({(y.dtype, y.device) for y in self.parts}) > 1:
                kinds = ", ".join(f"{y.dtype} on {y.device}" for y in self.parts)
                raise TypeError(f"the results of a checkpoint must be of one dtype and on one device; got {kinds}")
            self.flat: Tensor | None = None
            if self.parts:
                several = len(self.parts) > 1
                self.flat = concat([reshape(y, (y.size,)) for y in self.parts]) if several else self.parts[0]

    def external_nodes(self) -> list[Any]:
        """Return the nodes from before this run that the output depends on, except the stand-ins."""
        assert self.flat is not None
        seen, stack = set(self.stand_ins), [self.flat._node]
        externals = []
        while stack:
            node: Any = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.id < self.start:
                externals.append(node)
                continue
            stack += [parent for parent in node.parents if parent is not None]
        return sorted(externals, key=lambda node: node.id)

    def split(self, flat: Tensor) -> Any:
        """Return the output with the pieces of `flat` in place of its recorded tensors."""
        pieces, start = [], 0
        for y in self.parts:
            stop = start + math.prod(y.shape)
            pieces.append(flat if len(self.parts) == 1 else reshape(flat[start:stop], y.shape))
            start = stop
        remaining = iter(pieces)
        return map_tree(lambda y: next(remaining) if isinstance(y, Tensor) and y._node is not None else y, self.output)


def _run_again(F: Any, g: Any, out: Any, *parents: Any, needs: Any, segment: _Segment) -> list[Any]:
    """The gradient rule: run the segment again, and return the gradients of its arguments and externals."""
    watcher = _Watcher(segment)
    segment.check_unchanged(segment.leaves, watcher.start)
    batch = isinstance(g, Batch)
    recorded = isinstance(g.values if batch else g, Tensor)
    token = repeating.set(True)
    try:
        with restored(segment.states), observe(watcher):
            run = _Run(segment, recorded)
    finally:
        repeating.reset(token)
    externals = [] if run.flat is None else run.external_nodes()
    if run.flat is None or run.flat.shape != g.shape or externals != segment.externals:
        raise RuntimeError(
            "the function of a checkpoint did something else when it was run again: it must depend only on its "
            "arguments, tensors that do not change, and gradflow's random generators (a functional_call that contains "
            "the checkpoint has ended by then: put the checkpoint around the functional_call)"
        )
    ends = run.stand_ins + externals
    found = backward(
        [run.flat._node],  # type: ignore[list-item]
        [g],
        retain_graph=recorded,
        namespace=namespace if recorded else None,
        wanted=set(ends),
        to_batched=batched if batch else None,
    )
    return [found.get(node) for node in ends]


CHECKPOINT = Operation("checkpoint", lambda F: None, joint=_run_again, joint_reads_inputs=False, saves_parameters=True)
