"""Observers: objects that see every operation and every gradient rule of a context."""

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
    """Sees every operation and every rule of a context: what `detect_anomaly` and `gradcheck` are made of."""

    def forward(self, op: Operation, inputs: Sequence[Any], out: Tensor) -> None:
        """An operation gave `out` for `inputs` (tensors, numbers or None)."""

    def before_backward(self) -> None:
        """A backward pass begins; it may do so within another."""

    def visit(self, node: Node | Leaf) -> None:
        """A backward pass comes to a node or leaf."""

    def before_rules(self, node: Node, g: Any, out: Any, values: Sequence[Any]) -> None:
        """The rules of a node are about to run; `values` are its inputs, as far as they were saved."""

    def after_rule(self, node: Node, argument: int, g: Any, out: Any, values: Sequence[Any], result: Any) -> None:
        """A rule gave the gradient of an argument, before broadcasts are undone and dtypes are cast."""

    def after_adding(self, node: Node | Leaf, gradient: Any) -> None:
        """The gradient of what a node stands for after it was summed over a broadcast, cast, or added to another."""

    def after_backward(self) -> None:
        """A backward pass ends."""

    def backward_failed(self) -> None:
        """A backward pass ends with an exception."""


class Forwarder(Observer):
    """Forwards every call to another observer, if there is one: the base class of nested observers."""

    def __init__(self, other: Observer | None) -> None:
        self.other = Observer() if other is None else other

    def forward(self, op: Operation, inputs: Sequence[Any], out: Tensor) -> None:
        self.other.forward(op, inputs, out)

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

    def after_backward(self) -> None:
        self.other.after_backward()

    def backward_failed(self) -> None:
        self.other.backward_failed()


@contextlib.contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Have `observer` see what is computed inside a `with`."""
    first = current_observer.set(observer)
    second = grad_enabled.set(OFF if grad_enabled.get() is OFF else OBSERVED)
    try:
        yield
    finally:
        grad_enabled.reset(second)
        current_observer.reset(first)
