"""Anomaly detection: finds the operation that produced the first non-finite value."""

from __future__ import annotations

import contextlib
import linecache
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from gradflow.autograd.batching import Batch
from gradflow.autograd.grad_mode import OBSERVED, OFF, current_observer, grad_enabled
from gradflow.autograd.graph import Node, Operation
from gradflow.autograd.leaf import Leaf
from gradflow.autograd.mapping import Level, device_array, device_backend
from gradflow.autograd.observers import Forwarder, Observer, observe
from gradflow.backend import Backend
from gradflow.modes import BareMode
from gradflow.printing import describe
from gradflow.shapes import broadcasts, unravel
from gradflow.tensor import Tensor

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_LONGEST = 10_000
"""When more results than this are kept, they are checked before the end of the backward pass."""


class NonFiniteError(FloatingPointError):
    """Raised by `detect_anomaly` for a value that is infinite or NaN.

    The message says which operation produced it, from which inputs, and which line called that operation.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0, float("inf")], requires_grad=True)
    >>> try:
    ...     with gf.detect_anomaly():
    ...         y = x * 2
    ... except gf.NonFiniteError as error:
    ...     print(str(error).splitlines()[0])
    multiply gave inf at index (1,)
    """

    __module__ = "gradflow"


class _DetectAnomaly(BareMode):
    """Raises NonFiniteError for the first non-finite result or gradient computed inside a `with`.

    It also decorates functions, generators and coroutines. The error names the operation, the line that called it, the
    first bad index, and the shape, dtype, device and range of its inputs. Values are checked on their device, and all
    are kept in memory until the host synchronises: at the end of each backward pass and of the `with`, and when a
    generator or coroutine pauses.

    >>> import gradflow as gf
    >>> with gf.detect_anomaly():  # doctest: +ELLIPSIS
    ...     y = gf.tensor([1.0, float("inf")]) * 2.0
    Traceback (most recent call last):
    gradflow.NonFiniteError: multiply gave inf at index (1,)
      in the forward pass, at <doctest ...>:2: y = gf.tensor([1.0, float("inf")]) * 2.0
      result: tensor of shape (2,), float32 on cpu
      input 0: tensor of shape (2,), float32 on cpu, inf there, from 1.0 to 1.0, 1 of 2 elements non-finite
      input 1: the number 2.0
    """

    variables = (current_observer, grad_enabled)

    def _values(self) -> tuple[Any, ...]:
        return _Detector(), None

    def _enter(self, values: tuple[Any, ...]) -> None:
        detector, mode = values  # None: the mode of the surrounding context
        mode = grad_enabled.get() if mode is None else mode
        super()._enter((detector, OFF if mode is OFF else OBSERVED))

    def _finish(self, values: tuple[Any, ...], error: BaseException | None) -> None:
        detector = values[0]
        if error is None:
            detector.check()
        elif isinstance(error, Exception) and not isinstance(error, NonFiniteError):
            detector.check(error)  # a non-finite value may be its cause


detect_anomaly = _DetectAnomaly()


class _Line(NamedTuple):
    """A line of source code. `names`: the globals of its module, from which `linecache` gets the module's loader."""

    file: str
    number: int
    names: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {linecache.getline(self.file, self.number, self.names).strip()}"


class _Record(NamedTuple):
    """A result to be checked, and the parts of the message about it.

    head: the beginning of the message, such as "exp gave".
    finite: a 0-d bool array on the device of the result: whether all elements are finite.
    line, inside: the line that called the operation, and the words before it, such as "in the forward pass, at".
    """

    head: str
    result: Tensor
    finite: Any
    inputs: tuple[tuple[str, Any], ...]
    line: _Line | str
    inside: str = "in the forward pass, at"


class _Pass:
    """A backward pass: the identity of the frame that called it, and the node or leaf that it is at."""

    def __init__(self, caller: int) -> None:
        self.caller = caller
        self.node: Node | Leaf | None = None


class _Detector(Forwarder):
    """The observer of `detect_anomaly`: records all results and gradients, and checks them at the end of a pass."""

    def __init__(self) -> None:
        other = current_observer.get()
        super().__init__(None if isinstance(other, _Detector) else other)  # an inner detector is in charge
        self.records: list[_Record] = []
        self.passes: list[_Pass] = []  # the backward passes that are running, the innermost last
        self.finite: dict[Backend, Any] = {}  # for each device, a bool array: whether all results there are finite
        self.lines: WeakKeyDictionary[Any, _Line | str] = WeakKeyDictionary()  # by the node it made

    def forward(self, op: Operation, inputs: Sequence[Any], out: Tensor, parameters: dict[str, Any]) -> None:
        super().forward(op, inputs, out, parameters)
        frame = _user_frame()
        line: _Line | str = _line_of(frame)
        inside = "in the forward pass, at"
        node = None  # the pass was at this node, and called the operation itself, not by way of user code
        if self.passes and self.passes[-1].caller == id(frame):
            node = self.passes[-1].node
        if isinstance(node, Node):
            line, inside = self._line_of(node), f"in the rule of {node.op.name}, in the backward pass of"
        elif node is not None:
            inside = "adding up gradients in the backward pass, at"
        if out._node is not None:
            self.lines[out._node] = line
        named = tuple((f"input {i}", x) for i, x in enumerate(inputs) if isinstance(x, (Tensor, float, int)))
        self._note(f"{op.name} gave", out, named, line, inside)

    def after_rule(self, node: Node, argument: int, g: Any, out: Any, values: Sequence[Any], result: Any) -> None:
        super().after_rule(node, argument, g, out, values, result)
        inputs = [(f"input {i}", x) for i, x in enumerate(values) if not isinstance(x, (Node, Leaf))]
        named = [("gradient of the result", g), *inputs]
        line, inside = self._line_of(node), "in the backward pass of"
        tensors = tuple((name, _as_tensor(x, node.backend)) for name, x in named if x is not None)
        head = f"the gradient of input {argument} of {node.op.name} is"
        self._note(head, _as_tensor(result, node.parents[argument].backend), tensors, line, inside)

    def after_adding(self, node: Node | Leaf, gradient: Any) -> None:
        super().after_adding(node, gradient)
        if isinstance(node, Node):
            head, line = f"the gradient of the result of {node.op.name}, added up, is", self._line_of(node)
        else:
            head, line = "the gradient of a leaf, added up, is", _line_of(_user_frame())
        self._note(head, _as_tensor(gradient, node.backend), (), line, "in the backward pass of")

    def _line_of(self, node: Node) -> _Line | str:
        return self.lines.get(node, "an operation before detect_anomaly")

    def before_backward(self) -> None:
        super().before_backward()
        self.passes.append(_Pass(id(_user_frame())))

    def visit(self, node: Node | Leaf) -> None:
        super().visit(node)
        self.passes[-1].node = node

    def after_backward(self) -> None:
        super().after_backward()
        self.passes.pop()
        if not self.passes:  # a pass inside another (in a checkpoint) is checked at the end of the outer one
            self.check()

    def backward_failed(self) -> None:
        super().backward_failed()
        del self.passes[-1:]  # none if `before_backward` was interrupted

    def _note(self, head: str, result: Tensor, inputs: tuple[Any, ...], line: Any, inside: str) -> None:
        if not result.dtype.is_floating:
            return
        result, inputs = _on_device(result), tuple((name, _on_device(x)) for name, x in inputs)
        F = result.backend
        finite = F.all(F.isfinite(result.array))
        self.finite[F] = finite if F not in self.finite else F.logical_and(self.finite[F], finite)
        self.records.append(_Record(head, result.detach(), finite, inputs, line, inside))
        if len(self.records) > _LONGEST:
            self.check()

    def check(self, cause: Exception | None = None) -> None:
        """Drop all records; raise NonFiniteError for the first non-finite one. Waits for the device."""
        records, self.records = self.records, []
        finite, self.finite = self.finite, {}
        if all(bool(F.to_host(flag)) for F, flag in finite.items()):
            return
        blamed = next(record for record in records if not bool(record.result.backend.to_host(record.finite)))
        with observe(Observer()):  # so that an outer detector does not check the operations that describe the error
            message = _describe_record(blamed)
        raise NonFiniteError(message) from cause


def _as_tensor(x: Any, backend: Backend) -> Any:
    x = x.values if isinstance(x, Batch) else x
    return x if isinstance(x, Tensor) or type(x) in (float, int) else Tensor(x, backend)  # numpy.float64 is a float


def _on_device(x: Any) -> Any:
    """A tensor inside `vmap` as one of all examples; anything else unchanged."""
    if not isinstance(x, Tensor) or not isinstance(x.backend, Level):
        return x
    return Tensor(device_array(x.array), device_backend(x.backend))


def _user_frame() -> FrameType:
    """Return the innermost frame outside this package: user code."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename.startswith(_PACKAGE) or frame.f_code.co_filename == contextlib.__file__
    ):
        frame = frame.f_back
    return frame


def _line_of(frame: FrameType) -> _Line:
    return _Line(frame.f_code.co_filename, frame.f_lineno, frame.f_globals)


def _describe_record(record: _Record) -> str:
    result = record.result
    flat = result.reshape(-1).tolist()
    bad = [i for i, value in enumerate(flat) if not math.isfinite(value)]
    index = unravel(bad[0], result.shape) if bad else ()
    if bad:
        others = f", the first of {len(bad)} non-finite elements of {result.size}" if len(bad) > 1 else ""
        head = f"{record.head} {flat[bad[0]]} at index {index}{others}"
    else:
        head = f"{record.head} a non-finite value at an unknown index: the tensor has been changed in place since"
    lines = [f"{record.inside} {record.line}", f"result: {describe(result)}"]
    lines += [f"{name}: {_describe_input(x, index, result.shape)}" for name, x in record.inputs]
    return "\n  ".join([head, *lines])


def _describe_input(x: Any, index: tuple[int, ...], shape: tuple[int, ...]) -> str:
    if not isinstance(x, Tensor):
        return f"the number {x}"
    text = describe(x)
    if not x.size:
        return text
    flat = x.detach().reshape(-1).tolist()
    if len(index) == len(shape) and broadcasts(x.shape, shape):
        there = [i if n > 1 else 0 for i, n in zip(index[len(shape) - x.ndim :], x.shape, strict=True)]
        place = 0
        for i, n in zip(there, x.shape, strict=True):
            place = place * n + i
        text += f", {flat[place]} there"
    good = [value for value in flat if math.isfinite(value)]
    if good:
        text += f", from {min(good)} to {max(good)}"
    if len(good) < len(flat):
        text += f", {len(flat) - len(good)} of {len(flat)} elements non-finite"
    return text
