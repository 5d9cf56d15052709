"""A whole training step recorded once and replayed.

What is recorded are the calls of the backend that a step makes, as lines of Python: a replay makes these calls again,
on new inputs, without the operations, checks, nodes and the walk between them. What reads or changes Python's objects,
such as an optimizer's step, is recorded as one call (`gradflow.recording`).

A step is recorded twice before it is replayed: both must make the same calls with the same numbers and arrays. So a
step that counts, draws random numbers, or reads a value of a tensor shows itself, and runs as it is. What gradflow
knows to decide the calls (modes, hooks, frozen parameters, the arrays of parameters) is compared before each replay.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from threading import Lock, get_ident
from typing import Any, TypeVar

from gradflow.backend import ARRAY_FUNCTIONS, KERNELS, Array, Backend
from gradflow.device import get_backend
from gradflow.engine import Leaf, grad_enabled, observer
from gradflow.ops.table import check_tensors
from gradflow.random import states_before
from gradflow.recording import Recorder, changes, recorders
from gradflow.tensor import Tensor
from gradflow.tree import flatten, map_tree

_Result = TypeVar("_Result")

_KINDS = 16
"""Kinds of inputs that one step may be recorded for; others run as they are."""
_ATTEMPTS = 6
"""Recordings in a row that may come to nothing, before a kind of inputs is given up."""
_READS = ("to_host", "host_values", "synchronize", "event", "stream", "setitem")
"""Services that no replay can do: they wait, or change an array that is seen from elsewhere."""
_one_at_a_time = Lock()
_SEEN = (*ARRAY_FUNCTIONS, *KERNELS, "getitem", "from_host", "from_host_later", "pin", *_READS)


def capture(step: Callable[..., _Result]) -> Callable[..., _Result]:
    """A function that does what `step` does, to the bit, recorded once and replayed: less time between array calls.

    A step is a function of tensors of one device, such as a batch and its labels, and does a whole step of training:
    it forgets gradients, computes a loss, goes back from it, and calls the optimizer. It returns a tensor, nested
    tuples, lists and dicts of tensors, or None; the tensors carry no gradient. A method is captured when it is bound:
    `capture(self.step)`.

    The first two calls with inputs of a shape and dtype record the step; where both make the same calls of the
    backend, later ones replay them. Learning rates, hyperparameters and states are an optimizer's own and always
    current, as are the values of all tensors. A change of a module, a hook or a frozen parameter leads to a new
    recording. A step that draws random numbers (dropout), reads values of tensors or changes them in place, or computes
    with Python numbers that differ between the first two calls, runs as it is. What else it reads of Python's (a flag,
    a counter that acts later) is as it was when it was recorded: as on a GPU, where a step is a graph.

    Raises TypeError for what cannot be called. A call raises TypeError for an input that is no tensor and
    DeviceMismatchError for inputs on different devices, both before the step begins; whatever the step raises; and
    TypeError, after it, for a result that is no tensor.

    >>> import gradflow as gf
    >>> w = gf.tensor([1.0, 2.0], requires_grad=True)
    >>> optimizer = gf.optim.SGD([w], lr=0.5)
    >>> @gf.capture
    ... def step(x):
    ...     optimizer.zero_grad()
    ...     loss = (w * x).sum()
    ...     loss.backward()
    ...     optimizer.step()
    ...     return loss
    >>> x = gf.tensor([1.0, 1.0])
    >>> [step(x).item() for _ in range(4)]
    [3.0, 2.0, 1.0, 0.0]
    """
    if not callable(step):
        raise TypeError(f"capture takes a function that does a training step; got {type(step).__name__}")
    plans: dict[Any, _Plan] = {}

    @functools.wraps(step, updated=())  # the attributes of a module that is captured stay its own
    def captured(*inputs: Any, **named: Any) -> Any:
        given = (*inputs, *named.values()) if named else inputs
        check_tensors("a captured step", *given)
        backend = given[0].backend if given else get_backend()
        key = (backend, tuple(named), grad_enabled.get(), *[(x.array.shape, x.array.dtype) for x in given])
        plan = plans.get(key)
        if plan is None and len(plans) < _KINDS:
            plan = plans[key] = _Plan(backend)
        if plan is None or observer.get() is not None or recorders:
            return _detached(step(*inputs, **named))
        return plan.run(step, inputs, named)

    return captured


def _detached(result: Any) -> Any:
    """What a step returned, without its graph."""
    if isinstance(result, Tensor):
        return result.detach()
    for path, value in flatten(result):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"a captured step returns tensors, tuples, lists and dicts of them, or None; result{path} is "
                f"{type(value).__name__}: return the tensor, and read its value after the step"
            )
    return map_tree(lambda x: x.detach(), result)


class _Plan:
    """What is known of a step for one kind of inputs: a recording, and the program once a second one agreed."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.changes = -1
        self.recording: _Recording | None = None
        self.program: Callable[..., Any] | None = None
        self.states: list[int | None] = []  # of the leaves, before the step
        self.attempts = 0

    def run(self, step: Callable[..., Any], inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Do a step: replay, record, or run it as it is."""
        given = [*inputs, *named.values()]
        if any(x._node is not None for x in given) or self.attempts > _ATTEMPTS:
            return _detached(step(*inputs, **named))
        if self.changes != changes():
            self.changes, self.recording, self.program = changes(), None, None
        if self.recording is None:
            self.recording, result = _record(step, self.backend, inputs, named)
        elif self.program is None:
            before, states = self.recording, [_state_of(leaf) for leaf in self.recording.leaves]
            self.recording, result = _record(step, self.backend, inputs, named)
            if self.recording.agrees_with(before):
                self.program, self.states, self.attempts = self.recording.program(), states, 0
        elif [_state_of(leaf) for leaf in self.recording.leaves] == self.states:
            return self.program(*[x.array for x in given])
        else:  # a gradient that someone holds, or that was there before
            return _detached(step(*inputs, **named))
        if self.program is None:
            self.attempts += 1
        result = _detached(result)
        self.changes = changes()  # of what the step itself changed, the second recording tells
        return result


def _state_of(leaf: Leaf) -> int | None:
    """Whether a leaf has no gradient (0), one in its buffer (1), or elsewhere (2); None where someone holds it."""
    grad, tensors = leaf._grad, leaf.memory.tensors
    if tensors:
        held = [tensor for reference in tensors if (tensor := reference()) is not None and tensor is not grad]
        if held:
            return None
    if leaf.filled or (grad is not None and grad.array is leaf.buffer):
        return 1
    return 0 if grad is None else 2


def _record(
    step: Callable[..., Any], backend: Backend, inputs: tuple[Tensor, ...], named: dict[str, Tensor]
) -> tuple[_Recording, Any]:
    """Do a step and record it. Its inputs are views, so that none of their arrays is known otherwise."""

    def view(x: Tensor) -> Tensor:
        return Tensor(backend.reshape(x.array, x.array.shape), backend)

    seen = tuple(view(x) for x in inputs), {name: view(x) for name, x in named.items()}
    recording = _Recording(backend, [x.array for x in (*seen[0], *seen[1].values())])
    before = changes()
    with _one_at_a_time, states_before() as drawn, recording.watching():
        result = step(*seen[0], **seen[1])
    if drawn or changes() != before:
        recording.refused = True
    recording.end(result)
    return recording, result


class _Recording(Recorder):
    """The calls of a step, as lines of Python, and the objects in them."""

    def __init__(self, backend: Backend, inputs: Sequence[Array]) -> None:
        self.backend = backend
        self.names = {id(array): f"i{i}" for i, array in enumerate(inputs)}  # of what the lines make
        self.arity = len(inputs)
        self.kept: list[Any] = [*inputs]  # so that no other object gets the identity of one of them
        self.constants: list[Any] = []
        self.lines: list[str] = []
        self.leaves: list[Leaf] = []
        self.refused = False
        self._busy = False

    # ------------------------------------------------------------------ recording

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """See the calls that this thread makes of the backend."""
        before = {name: vars(self.backend)[name] for name in _SEEN if name in vars(self.backend)}
        for name in _SEEN:
            setattr(self.backend, name, self._watched(name, getattr(self.backend, name)))
        recorders[get_ident()] = self
        try:
            yield
        finally:
            recorders.pop(get_ident())
            for name in _SEEN:
                if name in before:
                    setattr(self.backend, name, before[name])
                else:
                    delattr(self.backend, name)

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._busy or recorders.get(get_ident()) is not self:
                return function(*arguments, **options)
            if name in _READS:
                self.refused = True
            return self._do(f"F.{name}", function, arguments, options)

        return call

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if self._busy:
            return function(*arguments, **options)
        arguments = tuple(list(x) if isinstance(x, Iterator) else x for x in arguments)
        for x in arguments[:1]:
            self.leaves += [leaf for leaf in (x if isinstance(x, list) else [x]) if isinstance(leaf, Leaf)]
            self.refused |= any(leaf.backend is not self.backend for leaf in self.leaves)
        return self._do(self._constant(function), function, arguments, options)

    def _do(self, name: str, function: Callable[..., Any], arguments: Any, options: Any) -> Any:
        """Call a function, and write down how."""
        self._busy = True
        try:
            result = function(*arguments, **options)
        finally:
            self._busy = False
        written = [self._text(x) for x in arguments] + [f"{key}={self._text(x)}" for key, x in options.items()]
        line = f"r{len(self.lines)}"
        self.lines.append(f"{line} = {name}({', '.join(written)})")
        self._name(result, line)
        return result

    def _name(self, result: Any, name: str) -> None:
        """Note what a line gives, and the parts of it."""
        if isinstance(result, Tensor):
            result, name = result.array, f"{name}.array"
        if isinstance(result, (tuple, list)):
            for i, part in enumerate(result):
                self._name(part, f"{name}[{i}]")
        elif not hasattr(result, "dtype"):
            return
        if id(result) not in self.names:
            self.names[id(result)] = name
            self.kept.append(result)

    def _text(self, x: Any) -> str:
        """An argument as Python."""
        if id(x) in self.names:
            return self.names[id(x)]
        if isinstance(x, Tensor) and id(x.array) in self.names and x._node is None:
            return f"Tensor({self.names[id(x.array)]}, F)"
        if x is None or x.__class__ in (bool, int, str) or (x.__class__ is float and math.isfinite(x)):
            return repr(x)
        if x.__class__ is tuple:
            return f"({''.join(self._text(part) + ', ' for part in x)})"
        if x.__class__ is list:
            return f"[{', '.join(map(self._text, x))}]"
        if x.__class__ is slice:
            return f"slice({self._text(x.start)}, {self._text(x.stop)}, {self._text(x.step)})"
        if (
            hasattr(x, "dtype") and not isinstance(x, Leaf) and not hasattr(x, "__setitem__")
        ):  # a NumPy scalar: its tensor may get an array
            self.refused = True
        return self._constant(x)

    def _constant(self, x: Any) -> str:
        for i, known in enumerate(self.constants):
            if known is x:
                return f"c{i}"
        self.constants.append(x)
        return f"c{len(self.constants) - 1}"

    def end(self, result: Any) -> None:
        """Note what the step returns: something that one of its lines made."""

        def text(tree: Any) -> str:
            if isinstance(tree, Tensor):
                name = self.names.get(id(tree.array), "")
                self.refused |= not name.startswith("r")
                return f"Tensor({name}, F)"
            if tree is None:
                return "None"
            if tree.__class__ in (tuple, list):
                inside = "".join(text(part) + ", " for part in tree)
                return f"({inside})" if tree.__class__ is tuple else f"[{inside}]"
            if tree.__class__ is dict:
                return f"{{{', '.join(f'{self._text(key)}: {text(part)}' for key, part in tree.items())}}}"
            self.refused = True
            return ""

        self.lines.append(f"return {text(result)}")
        self.names, self.kept = {}, []

    # ------------------------------------------------------------------ replaying

    def agrees_with(self, other: _Recording) -> bool:
        """Whether two recordings say the same of the same objects, and can be replayed."""
        return (
            not (self.refused or other.refused)
            and self.lines == other.lines
            and len(self.constants) == len(other.constants)
            and all(a is b or _are_equal(a, b) for a, b in zip(self.constants, other.constants, strict=True))
        )

    def program(self) -> Callable[..., Any]:
        """A function of the arrays of the inputs that makes the recorded calls."""
        names = ", ".join(f"i{i}" for i in range(self.arity))
        body = "\n    ".join(self.lines)
        scope = {"F": self.backend, "Tensor": Tensor, **{f"c{i}": x for i, x in enumerate(self.constants)}}
        exec(compile(f"def replay({names}):\n    {body}", "<captured step>", "exec"), scope)
        replay: Callable[..., Any] = scope["replay"]
        return replay


def _are_equal(a: Any, b: Any) -> bool:
    """Whether two objects that are not the same stand for the same: dtypes, not arrays or tensors."""
    return type(a) is type(b) and not isinstance(a, (Tensor, Leaf)) and not hasattr(a, "shape") and bool(a == b)
