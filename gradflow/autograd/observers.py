"""Observers: objects that are called for every operation and every gradient rule in a context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gradflow.autograd.grad_mode import OBSERVED, OFF, current_observer, grad_enabled

if TYPE_CHECKING:
    from gradflow.autograd.graph import Node, Operation
    from gradflow.autograd.leaf import Leaf
    from gradflow.tensor import Tensor


class Observer:
    """The base class of observers, whose methods do nothing. `detect_anomaly` and `gradcheck` use observers.

    Gradients and values are arrays; in a recorded pass they are tensors, and in a pass on batches they are `Batch`es.
    """

    def forward(self, op: Operation, inputs: Sequence[Any], out: Tensor, parameters: dict[str, Any]) -> None:
        """Called when an operation has computed `out` from `inputs` (tensors, numbers or None).

        parameters: its keyword arguments; they may contain what the gradient rule needs (`residual`).
        """

    def before_backward(self) -> None:
        """Called when a backward pass begins, perhaps inside another one."""

    def visit(self, node: Node | Leaf) -> None:
        """Called when a backward pass reaches a node or leaf."""

    def before_rules(self, node: Node, g: Any, out: Any, values: Sequence[Any]) -> None:
        """Called before the rules of a node run, with all that they read; see `saved_values` for `out` and `values`."""

    def after_rule(self, node: Node, argument: int, g: Any, out: Any, values: Sequence[Any], result: Any) -> None:
        """Called with what a rule returned for an argument, before it is summed over broadcast axes and cast."""

    def after_adding(self, node: Node | Leaf, gradient: Any) -> None:
        """Called with the gradient of a node or leaf so far, if it differs from what a rule has just returned.

        That is, if the gradient was summed over broadcast axes or cast, or added to an earlier one.
        """

    def received(self, node: Node, argument: int, gradient: Any) -> None:
        """Called with the gradient that an argument receives from a rule: summed over broadcast axes, and cast."""

    def gradient(self, node: Node | Leaf, gradient: Any) -> None:
        """Called with the gradient of a node or leaf: the sum of all that it receives in this pass, after its hooks."""

    def changed_by_hooks(self, node: Node | Leaf, gradient: Any) -> None:
        """Called before `gradient` with what that was before the hooks of the node, if they changed it."""

    def stands_for(self, stand_in: Tensor, original: Tensor) -> None:
        """Called when `stand_in`, a tensor with the values of `original`, takes its place in what follows."""

    def after_backward(self) -> None:
        """Called when a backward pass has succeeded."""

    def backward_failed(self) -> None:
        """Called when a backward pass ends with an exception, which `before_backward` may have raised."""


class Forwarder(Observer):
    """Forwards every call to the observer `other`, unless that is None. The base class of nested observers."""

    def __init__(self, other: Observer | None) -> None:
        self.other = Observer() if other is None else other

    def forward(self, op: Operation, inputs: Sequence[Any], out: Tensor, parameters: dict[str, Any]) -> None:
        self.other.forward(op, inputs, out, parameters)

    def before_backward(self) -> None:
        self.other.before_backward()

    def visit(self, node: Node | Leaf) -> None:
        self.other.visit(node)

    def before_rules(self, node: Node, g: Any, out: Any, values: Sequence[Any]) -> None:
        self.other.before_rules(node, g, out, values)

    def after_rule(self, node: Node, argument: int, g: Any, out: Any, values: Sequence[Any], result: Any) -> None:
        self.other.after_rule(node, argument, g, out, values, result)

    def after_adding(self, node: Node | Leaf, gradient: Any) -> None:
        self.other.after_adding(node, gradient)

    def received(self, node: Node, argument: int, gradient: Any) -> None:
        self.other.received(node, argument, gradient)

    def gradient(self, node: Node | Leaf, gradient: Any) -> None:
        self.other.gradient(node, gradient)

    def changed_by_hooks(self, node: Node | Leaf, gradient: Any) -> None:
        self.other.changed_by_hooks(node, gradient)

    def stands_for(self, stand_in: Tensor, original: Tensor) -> None:
        self.other.stands_for(stand_in, original)

    def after_backward(self) -> None:
        self.other.after_backward()

    def backward_failed(self) -> None:
        self.other.backward_failed()


@contextlib.contextmanager
def observe(observer: Observer | None) -> Iterator[None]:
    """Make `observer` the observer of the context inside a `with`, instead of any other, and disable fast paths.

    With None, nothing observes.
    """
    first = current_observer.set(observer)
    second = grad_enabled.set(OFF if grad_enabled.get() is OFF else OBSERVED)
    try:
        yield
    finally:
        grad_enabled.reset(second)
        current_observer.reset(first)
