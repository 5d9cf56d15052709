"""What runs, recorded as a graph: the operations with their values, and the gradients of backward passes.

A `Recorder` is an observer. `gradflow.trace` makes it the observer of a `with`; `gradflow.explain` gives it an existing
graph and a backward pass of its own. Values are summarized on their device as they appear, and are read together when
the graph is first used.

The second run of a checkpoint is recognized as the first, so that the steps of the first get the gradients.

A value is recognized by the node or leaf of its tensor; by the tensor, if that requires no grad; and by the array,
which `detach` shares. The recorder keeps none of them alive. A tensor that was changed in place is a new value.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

from gradflow.autograd.backward import backward
from gradflow.autograd.batching import Batch
from gradflow.autograd.grad_mode import enable_grad
from gradflow.autograd.graph import Node, Operation, nodes_from
from gradflow.autograd.leaf import Leaf
from gradflow.autograd.observers import Forwarder, Observer, observe
from gradflow.autograd.saved import FREED
from gradflow.backend import Backend
from gradflow.drawing.graph import Kind
from gradflow.drawing.known import (
    is_perceptron,
    kept,
    layer_by_layer,
    linear_layers,
    parameters_in,
    recomputed,
    unhooked_inputs,
    version,
)
from gradflow.drawing.local import Form, local_derivatives
from gradflow.drawing.places import Call, Place, Places
from gradflow.drawing.summaries import Summaries, Summary
from gradflow.nn.module import Module
from gradflow.nn.parameter import Parameter
from gradflow.tensor import Tensor
from gradflow.transforms.recompute import CHECKPOINT
from gradflow.transforms.trace import IDENTITY


class Seen:
    """A value that was seen: its kind, its summary (or a Python number, or None if unknown), and its step."""

    __slots__ = ("forward", "gradient_of", "kept", "kind", "name", "owner", "shape", "step", "version")

    def __init__(
        self, kind: Kind, shape: tuple[int, ...], forward: Summary | float | None, step: int | None = None
    ) -> None:
        self.kind = kind
        self.shape = shape
        self.forward = forward
        self.step = step
        self.name: str | None = None
        self.kept: Summary | None = None  # the gradient in `.grad`, for a graph that no pass was observed on
        self.version: int | None = None  # the number of the last in-place change of its memory; None: any
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
        self.local: Sequence[tuple[Form, Summary | None] | None] = ()


class Pass:
    """A backward pass: its steps in order, the gradients of values, and what each argument of a step received.

    recorded: whether its gradients are tensors, which can be differentiated in turn (`create_graph=True`).
    failed: whether it ended with an exception.
    elsewhere: the parts of gradients that came from operations that were not seen.
    before_hooks: the gradients that hooks changed, as they were before.
    """

    def __init__(self) -> None:
        self.recorded = False
        self.failed = False
        self.elsewhere: dict[int, list[Summary]] = {}
        self.before_hooks: dict[int, Summary] = {}
        self.steps: list[int] = []
        self.gradients: dict[int, Summary] = {}
        self.received: dict[tuple[int, int], Summary] = {}


class _Running:
    """A backward pass that is running, perhaps inside another: what it is at.

    again: the steps that the second run of a checkpoint repeats, while the pass is at the checkpoint.
    at_checkpoint: whether it is at a checkpoint whose first run was not seen.
    hidden: whether it is inside such a checkpoint, which is one step.
    """

    def __init__(self, hidden: bool) -> None:
        self.node: Node | Leaf | None = None
        self.again: Iterator[int] = iter(())
        self.at_checkpoint = False
        self.hidden = hidden

    def is_in_step(self) -> bool:
        """Whether what runs now is part of a step."""
        return self.hidden or self.at_checkpoint


_Method = TypeVar("_Method", bound=Callable[..., None])


def _guarded(method: _Method) -> _Method:
    """A method of a `Recorder` that first forwards its call. An error in it ends the recording, not the program."""
    name = method.__name__

    @functools.wraps(method)
    def guarded(self: Recorder, *arguments: Any) -> None:
        getattr(self.other, name)(*arguments)
        if self.note is None:
            try:
                method(self, *arguments)
            except Exception as error:
                self.failed(error)

    return cast(_Method, guarded)


class Recorder(Forwarder):
    """Records operations and backward passes.

    other: the observer to which it forwards everything (default None).
    guest: whether it observes a program of the user, which it must not disturb (default False): no rule of a user's
        operation runs again for the local derivatives, and an error in the recorder ends the recording, with a `note`.
    """

    def __init__(self, other: Observer | None = None, guest: bool = False) -> None:
        super().__init__(other)
        self.guest = guest
        self.note: str | None = None  # why the recording ended early
        self.summaries = Summaries()
        self.places = Places()
        self.values: list[Seen] = []
        self.steps: list[Applied] = []
        self.passes: list[Pass] = []
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # by the ids of a tensor and of its array
        self._owned: dict[int, list[int]] = {}  # values by the ids of their owners
        self._nodes: weakref.WeakKeyDictionary[Node | Leaf, int] = weakref.WeakKeyDictionary()
        self._steps: weakref.WeakKeyDictionary[Node, int] = weakref.WeakKeyDictionary()
        self._layers: weakref.WeakKeyDictionary[Node, Any] = weakref.WeakKeyDictionary()  # last layer, leaves
        self._running: list[_Running] = []
        self._last: int | None = None  # the step whose rule ran last
        self._inside: dict[int, list[int]] = {}  # the steps in a call of `checkpoint`, by the number of the call
        self._checkpoints: weakref.WeakKeyDictionary[Node, list[int]] = weakref.WeakKeyDictionary()

    def failed(self, error: Exception) -> None:
        """End the recording with a note, because of an error in the recorder; or raise it, unless it is a guest."""
        if not self.guest:
            raise error
        self.note = f"the recording ended here: {type(error).__name__}: {error}"
        if self._running:
            self.passes[-1].failed = True

    # ------------------------------------------------------------------ values

    def find(self, x: Tensor) -> int | None:
        """The index of the value of a tensor, or None if it was not seen, or was changed in place since."""
        current = version(x)
        index = None if x._node is None else self._nodes.get(x._node)
        if index is not None and self.values[index].version in (None, current):
            return index
        for key in (id(x), id(x.array)):
            reference, index = self._known.get(key, (None, None))
            known = None if reference is None else reference()
            if known is not None and (known is x or known.array is x.array):
                assert index is not None
                if self.values[index].version == current:
                    return index
        return None

    def all_of(self, x: Tensor) -> list[int]:
        """The indices of the values that a tensor has been: of several if it was changed in place."""
        found = {index for index in self._owned.get(id(x), ()) if _is(self.values[index].owner, x)}
        index = self.find(x)
        return sorted(found if index is None else found | {index})

    def seen(self, node: Node | Leaf) -> Seen:
        """The value of a node or leaf that was seen."""
        return self.values[self._nodes[node]]

    def _value(self, x: Any) -> int | None:
        """The index of the value of an input: a tensor, a number or None."""
        if x is None:
            return None
        if not isinstance(x, Tensor):
            return self._new("constant", (), x)
        index = self.find(x)
        if index is None:
            kind: Kind = "constant" if x._node is None else "parameter" if isinstance(x, Parameter) else "input"
            index = self._new(kind, x.shape, self.summaries.add(x.array, x.backend))
        self._register(x, index)
        return index

    def _new(self, kind: Kind, shape: tuple[int, ...], forward: Any, step: int | None = None) -> int:
        self.values.append(Seen(kind, shape, forward, step))
        return len(self.values) - 1

    def _register(self, x: Tensor, index: int) -> None:
        """Recognize a tensor, its array and its node as a value from now on."""
        if x._node is not None and (x._node not in self._nodes or isinstance(x._node, Leaf)):
            self._nodes[x._node] = index
        seen = self.values[index]
        seen.version = version(x)
        reference = weakref.ref(x)
        if seen.owner is None:
            seen.owner = reference
            self._owned.setdefault(id(x), []).append(index)
        self._known[id(x)] = self._known[id(x.array)] = reference, index

    # ------------------------------------------------------------------ forward

    @_guarded
    def forward(self, op: Operation, inputs: Sequence[Any], out: Tensor, parameters: dict[str, Any]) -> None:
        if op is IDENTITY:  # see `stands_for`
            return
        running = self._running[-1] if self._running else None
        if running is not None and running.is_in_step():
            return
        if running is not None and isinstance(running.node, Leaf):  # its gradient is copied
            source = self.find(inputs[0])
            if source is not None:
                self._register(out, source)
                return
        place = self.places.current()
        step = None if running is None else next(running.again, None)
        if step is None or self.steps[step].op is not op:
            indices = tuple([self._value(x) for x in inputs])
            step = len(self.steps)
            kind: Kind = "constant" if out._node is None else "result"
            value = self._new(kind, out.shape, self.summaries.add(out.array, out.backend), step)
            recorded_by = None if running is None else self._last
            self.steps.append(Applied(op, indices, value, _described(parameters), place, recorded_by))
        self._register(out, self.steps[step].output)
        if isinstance(out._node, Node):
            self._steps[out._node] = step
        for call in place.calls:
            if call.module is None:
                self._inside.setdefault(call.number, []).append(step)

    @_guarded
    def stands_for(self, stand_in: Tensor, original: Tensor) -> None:
        index = self._value(original)
        assert index is not None
        self._register(stand_in, index)
        node = stand_in._node
        if isinstance(node, Node) and node.op is CHECKPOINT:
            number = next(call.number for call in reversed(self.places.current().calls) if call.module is None)
            self._checkpoints[node] = self._inside.pop(number, [])

    # ------------------------------------------------------------------ a graph that exists

    def add_graph(
        self, roots: Sequence[Node | Leaf], tensors: Iterable[Tensor] = (), modules: Iterable[Module] = ()
    ) -> None:
        """Add the steps that computed the roots, with the values that nodes keep. Those that were seen stay.

        tensors: others whose values are known, such as the caller's variables. modules: whose layers have boxes.

        A value that is not kept is computed again where its inputs are known, and a perceptron layer by layer.
        """
        tensors = list(tensors)
        order = [node for node in reversed(nodes_from(roots)) if node not in self._nodes]
        arrays, trained = kept(order, tensors), parameters_in(order, tensors)
        for node in order:
            if is_perceptron(node) and not self.guest:
                arrays[node] = self._add_layers(node, modules)
                continue
            if node not in arrays and isinstance(node, Node) and not self.guest:
                array = recomputed(node, arrays)
                if array is not None:
                    arrays[node] = array
            kind: Kind = "result" if node.op is not None else "parameter" if node in trained else "input"
            summary = self.summaries.add(arrays[node], node.backend) if node in arrays else None
            index = self._new(kind, tuple(node.shape), summary)
            self._nodes[node] = index
            if isinstance(node, Node):
                self.values[index].step = self._steps[node] = len(self.steps)
                inputs = tuple([self._input_of(node, i) for i in range(len(node.parents))])
                parameters = _described(node.parameters or {})
                self.steps.append(Applied(node.op, inputs, index, parameters, Place((), None), None))

    def _add_layers(self, node: Node, modules: Iterable[Module]) -> Any:
        """Add the steps of a perceptron, one for each layer; returns the array of its result."""
        first, inputs = len(self.steps), unhooked_inputs(node)
        leaves: set[Any] = set()
        for x, parent in zip(inputs, node.parents, strict=True):
            if x._node is not None:
                self._nodes[x._node] = self._nodes[parent]
                leaves.add(x._node)
        with observe(self), enable_grad():
            out = layer_by_layer(node, inputs)
        self._layers[node] = out._node, leaves
        self._nodes[node] = self.steps[-1].output
        layers = {id(layer.weight): (outer, layer) for each in modules for outer, layer in linear_layers(each)}
        assert node.inputs is not None
        for step, weight in zip(self.steps[first:], node.inputs[1::2], strict=True):
            step.place = Place(tuple([Call(module, node.id) for module in layers.get(id(weight), ())]), None)
        return out.array

    def _input_of(self, node: Node, argument: int) -> int | None:
        parent = node.parents[argument]
        if parent is not None:
            return self._nodes[parent]
        if node.inputs is None or node.inputs is FREED:
            return None if node.op.joint is not None else self._new("constant", (), None)
        x = node.inputs[argument]
        return self._value(x) if x is not None or node.op.joint is not None else self._new("constant", (), None)

    # ------------------------------------------------------------------ backward

    @_guarded
    def before_backward(self) -> None:
        if not self._running:
            self.passes.append(Pass())
        self._running.append(_Running(hidden=bool(self._running) and self._running[-1].is_in_step()))

    @_guarded
    def visit(self, node: Node | Leaf) -> None:
        running = self._running[-1]
        running.node, running.at_checkpoint = node, False

    @_guarded
    def gradient(self, node: Node | Leaf, gradient: Any) -> None:
        if self._running[-1].hidden:
            return
        current = self.passes[-1]
        if not current.gradients and node not in self._nodes:  # the graph is older than this recorder
            self.add_graph([node])
        index = self._nodes.get(node)
        if index is None:
            return
        current.gradients[index] = self._summary(gradient, node.backend)
        if isinstance(gradient, Tensor):
            current.recorded = True
            found = self.find(gradient)
            seen = None if found is None else self.values[found]
            if seen is not None and seen.gradient_of is None and self._is_recorded(seen.step):
                seen.gradient_of = current, index
        if isinstance(node, Node):
            self._last = self._steps.get(node, self._last)

    @_guarded
    def before_rules(self, node: Node, g: Any, out: Any, values: Sequence[Any]) -> None:
        running = self._running[-1]
        if running.hidden:
            return
        step = self._steps.get(node)
        if step is not None:
            self.passes[-1].steps.append(step)
            if not isinstance(g, (Tensor, Batch)) and not self.steps[step].local:
                with observe(None):
                    self.steps[step].local = local_derivatives(node, out, values, self.summaries, not self.guest)
        if node in self._layers:  # what they receive from the perceptron itself is the same
            last, leaves = self._layers[node]
            backward([last], [g], retain_graph=True, wanted=leaves)
        running.again = iter(self._checkpoints.get(node, ()))
        running.at_checkpoint = node.op is CHECKPOINT and node not in self._checkpoints

    @_guarded
    def received(self, node: Node, argument: int, gradient: Any) -> None:
        parent, current = node.parents[argument], self.passes[-1]
        if self._running[-1].hidden or (node not in self._steps and parent not in self._nodes) or node in self._layers:
            return
        summary = self._summary(gradient, parent.backend)
        if node in self._steps:
            current.received[self._steps[node], argument] = summary
        elif not self._checkpoints.get(node):  # the steps of a checkpoint that was seen have received it
            current.elsewhere.setdefault(self._nodes[parent], []).append(summary)

    @_guarded
    def changed_by_hooks(self, node: Node | Leaf, gradient: Any) -> None:
        if node in self._nodes and not self._running[-1].hidden:
            self.passes[-1].before_hooks[self._nodes[node]] = self._summary(gradient, node.backend)

    @_guarded
    def after_backward(self) -> None:
        self._running.pop()

    @_guarded
    def backward_failed(self) -> None:
        if self._running:
            self.passes[-1].failed = True
        del self._running[-1:]

    def _is_recorded(self, step: int | None) -> bool:
        """Whether a step is one that a recorded backward pass computed."""
        return step is not None and self.steps[step].recorded_by is not None

    def _summary(self, gradient: Any, backend: Backend) -> Summary:
        values = gradient.values if isinstance(gradient, Batch) else gradient
        return self.summaries.add(getattr(values, "array", values), backend)


def _described(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters as formulas show them: without what only rules read, and without the arrays of indices."""
    return {name: _named(value) for name, value in parameters.items() if name not in ("residual", "segment")}


def _named(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple([_named(part) for part in value])
    return "indices" if hasattr(value, "dtype") and not isinstance(value, type) else value


def _is(reference: weakref.ref[Tensor] | None, x: Tensor) -> bool:
    return reference is not None and reference() is x
