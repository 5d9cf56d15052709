"""What runs, recorded as a graph: the operations with their values, and the gradients of backward passes.

A `Recorder` is an observer. `gradflow.trace` makes it the observer of a `with`; `gradflow.explain` gives it an existing
graph and a backward pass of its own. Values are summarized on their device as they appear, and are read together when
the graph is first used.

A value is recognized by the node or leaf of its tensor; by the tensor, if that requires no grad; and by the array,
which `detach` shares. The recorder keeps none of them alive. A tensor that was changed in place is a new value.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from gradflow.autograd.batching import Batch
from gradflow.autograd.graph import Node, Operation
from gradflow.autograd.leaf import Leaf
from gradflow.autograd.observers import Forwarder, Observer
from gradflow.backend import Backend
from gradflow.drawing.graph import Kind
from gradflow.drawing.places import Place, Places
from gradflow.drawing.summaries import Summaries, Summary
from gradflow.nn.parameter import Parameter
from gradflow.tensor import Tensor
from gradflow.transforms.trace import IDENTITY


class Seen:
    """A value that was seen: its kind, its summary (or a Python number, or None if unknown), and its step."""

    __slots__ = ("forward", "gradient_of", "kind", "name", "owner", "step", "version")

    def __init__(self, kind: Kind, forward: Summary | float | None, step: int | None = None) -> None:
        self.kind = kind
        self.forward = forward
        self.step = step
        self.name: str | None = None
        self.version = 0  # the number of the last in-place change of its memory
        self.owner: weakref.ref[Tensor] | None = None  # the first tensor that had this value
        self.gradient_of: tuple[Pass, int] | None = None  # the value whose gradient a recorded backward pass computed


class Applied:
    """An operation that was applied: what it is, the indices of its values, and where it was called.

    inputs: for each argument the index of its value, or None for an argument that is None.
    recorded_by: the step whose rule called it, in a recorded backward pass.
    """

    __slots__ = ("inputs", "local", "op", "output", "parameters", "place", "recorded_by")

    def __init__(
        self,
        op: Operation,
        inputs: tuple[int | None, ...],
        output: int,
        parameters: dict[str, Any],
        place: Place,
        recorded_by: int | None,
    ) -> None:
        self.op = op
        self.inputs = inputs
        self.output = output
        self.parameters = parameters
        self.place = place
        self.recorded_by = recorded_by
        self.local: Sequence[Any] = ()


class Pass:
    """A backward pass: its steps in order, the gradients of values, and what each argument of a step received.

    recorded: whether its gradients are tensors, which can be differentiated in turn (`create_graph=True`).
    """

    def __init__(self) -> None:
        self.recorded = False
        self.steps: list[int] = []
        self.gradients: dict[int, Summary] = {}
        self.received: dict[tuple[int, int], Summary] = {}


class Recorder(Forwarder):
    """Records operations and backward passes. `other` is the observer to which it forwards everything, or None."""

    def __init__(self, other: Observer | None = None) -> None:
        super().__init__(other)
        self.summaries = Summaries()
        self.places = Places()
        self.values: list[Seen] = []
        self.steps: list[Applied] = []
        self.passes: list[Pass] = []
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # by the ids of a tensor and of its array
        self._nodes: weakref.WeakKeyDictionary[Node | Leaf, int] = weakref.WeakKeyDictionary()
        self._running: list[Node | Leaf | None] = []  # for each running pass, also inside another, what it is at
        self._last: int | None = None  # the step whose rule ran last
        self._checkpoints: weakref.WeakKeyDictionary[Node, list[int]] = weakref.WeakKeyDictionary()
        self._again: list[list[int]] = []

    # ------------------------------------------------------------------ values

    def find(self, x: Tensor) -> int | None:
        """The index of the value of a tensor, or None if it was not seen, or was changed in place since."""
        version = _version(x)
        index = None if x._node is None else self._nodes.get(x._node)
        if index is not None and self.values[index].version == version:
            return index
        for key in (id(x), id(x.array)):
            reference, index = self._known.get(key, (None, None))
            known = None if reference is None else reference()
            if known is not None and (known is x or known.array is x.array):
                assert index is not None
                if self.values[index].version == version:
                    return index
        return None

    def all_of(self, x: Tensor) -> list[int]:
        """The indices of the values that a tensor, or its memory, has been: of several if it was changed in place."""
        found = {index for index, seen in enumerate(self.values) if seen.owner is not None and seen.owner() is x}
        index = self.find(x)
        return sorted(found if index is None else found | {index})

    def _value(self, x: Any) -> int | None:
        """The index of the value of an input: a tensor, a number or None."""
        if x is None:
            return None
        if not isinstance(x, Tensor):
            return self._new("constant", x)
        index = self.find(x)
        if index is None:
            kind: Kind = "constant" if x._node is None else "parameter" if isinstance(x, Parameter) else "input"
            index = self._new(kind, self.summaries.add(x.array, x.backend))
        self._register(x, index)
        return index

    def _new(self, kind: Kind, forward: Any, step: int | None = None) -> int:
        self.values.append(Seen(kind, forward, step))
        return len(self.values) - 1

    def _register(self, x: Tensor, index: int) -> None:
        """Recognize a tensor, its array and its node as a value from now on."""
        if x._node is not None and (x._node not in self._nodes or isinstance(x._node, Leaf)):
            self._nodes[x._node] = index
        seen = self.values[index]
        seen.version = _version(x)
        reference = weakref.ref(x)
        if seen.owner is None:
            seen.owner = reference
        self._known[id(x)] = self._known[id(x.array)] = reference, index

    # ------------------------------------------------------------------ forward

    def forward(self, op: Operation, inputs: Sequence[Any], out: Tensor) -> None:
        super().forward(op, inputs, out)
        if op is IDENTITY:  # see `stands_for`
            return
        if self._running and isinstance(self._running[-1], Leaf):  # its gradient is copied
            source = self.find(inputs[0])
            if source is not None:
                self._register(out, source)
                return
        indices = tuple([self._value(x) for x in inputs])
        step = len(self.steps)
        kind: Kind = "constant" if out._node is None else "result"
        value = self._new(kind, self.summaries.add(out.array, out.backend), step)
        node = out._node
        parameters = node.parameters if isinstance(node, Node) else None
        recorded_by = self._last if self._running else None
        self.steps.append(Applied(op, indices, value, parameters or {}, self.places.current(), recorded_by))
        self._register(out, value)

    def stands_for(self, stand_in: Tensor, original: Tensor) -> None:
        super().stands_for(stand_in, original)
        index = self._value(original)
        assert index is not None
        self._register(stand_in, index)

    # ------------------------------------------------------------------ backward

    def before_backward(self) -> None:
        super().before_backward()
        if not self._running:
            self.passes.append(Pass())
        self._running.append(None)

    def visit(self, node: Node | Leaf) -> None:
        super().visit(node)
        self._running[-1] = node

    def gradient(self, node: Node | Leaf, gradient: Any) -> None:
        super().gradient(node, gradient)
        index = self._nodes.get(node)
        if index is None:
            return
        self.passes[-1].gradients[index] = self._summary(gradient, node.backend)
        step = self.values[index].step
        if isinstance(gradient, Tensor):
            self.passes[-1].recorded = True
            found = self.find(gradient)
            if found is not None and self.values[found].gradient_of is None:
                self.values[found].gradient_of = self.passes[-1], index
        if step is not None:
            self._last = step

    def before_rules(self, node: Node, g: Any, out: Any, values: Sequence[Any]) -> None:
        super().before_rules(node, g, out, values)
        step = self._step_of(node)
        if step is not None:
            self.passes[-1].steps.append(step)

    def received(self, node: Node, argument: int, gradient: Any) -> None:
        super().received(node, argument, gradient)
        step = self._step_of(node)
        if step is not None:
            summary = self._summary(gradient, node.parents[argument].backend)
            self.passes[-1].received[step, argument] = summary

    def after_backward(self) -> None:
        self._running.pop()
        super().after_backward()

    def backward_failed(self) -> None:
        del self._running[-1:]
        super().backward_failed()

    def _step_of(self, node: Node) -> int | None:
        index = self._nodes.get(node)
        return None if index is None else self.values[index].step

    def _summary(self, gradient: Any, backend: Backend) -> Summary:
        values = gradient.values if isinstance(gradient, Batch) else gradient
        return self.summaries.add(getattr(values, "array", values), backend)


def _version(x: Tensor) -> int:
    return 0 if x._memory is None else x._memory.changed
