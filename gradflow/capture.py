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
import re
from collections.abc import Callable, Iterator, Sequence, ValuesView
from threading import Lock, get_ident
from typing import Any, NamedTuple, TypeVar

from gradflow.backend import ARRAY_FUNCTIONS, KERNELS, Backend
from gradflow.device import current_device, get_backend
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
_SEEN = (*ARRAY_FUNCTIONS, *KERNELS, "getitem", "copy", "from_host", "from_host_later", "pin", *_READS)
_one_at_a_time = Lock()
"""Held by who records. Others run their steps as they are meanwhile."""


def capture(step: Callable[..., _Result]) -> Callable[..., _Result]:
    """A function that does what `step` does, to the bit, recorded once and replayed: less time between array calls.

    A step is a function of tensors of one device, such as a batch and its labels, and does a whole step of training:
    it forgets gradients, computes a loss, goes back from it, and calls the optimizer. It returns a tensor, nested
    tuples, lists and dicts of tensors, or None. The results are copies: they carry no gradient and share no memory. A
    method is captured when it is bound: `capture(self.step)`.

    The first calls with inputs of a shape and dtype record the step; once two in a row have made the same calls of the
    backend, later ones replay these. Learning rates, hyperparameters and states are an optimizer's own and always
    current, as are the values of all tensors. A change of a module, a hook, or what needs a gradient leads to a new
    recording. What no replay can do runs as it is: random numbers (dropout), values of tensors that are read, changes
    of tensors or of hyperparameters in the step, gradients that it reads or assigns, masks as indices, closures for
    optimizers, operations of your own, and Python numbers that differ between two recordings.

    The rest of a step's Python does not run in a replay. What it would read (a flag, a counter that acts later, values
    that `tensor.array` gave away) is as it was when it was recorded, and what it would write, such as a list of losses,
    stays as it is. So it is on a GPU, where a step is a graph. Work in other threads is not seen.

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
        device, kinds = current_device(), [(x.array.shape, x.array.dtype) for x in given]
        key = (backend, device.type, device.index, tuple(named), grad_enabled.get(), *kinds)
        plan = plans.get(key)
        program = None if plan is None else plan.program
        seen = observer.get() is not None or get_ident() in recorders
        if seen or any(x._node is not None or x.__class__ is not Tensor for x in given):
            pass  # as it is
        elif program is not None and program.changes == changes():
            # other states: a gradient that someone holds, or that was there before
            if [_state_of(leaf) for leaf in program.leaves] == program.states:
                return program.replay(*[x.array for x in given])
        elif _one_at_a_time.acquire(blocking=False):
            try:
                for other in plans.values():
                    other.forget()
                if plan is None and len(plans) < _KINDS:
                    plan = plans[key] = _Plan()
                if plan is not None and plan.attempts <= _ATTEMPTS:
                    return plan.record(step, backend, inputs, named)
            finally:
                _one_at_a_time.release()
        return _copies(step(*inputs, **named))

    return captured


def _copies(result: Any) -> Any:
    """What a step returned, without its graph, in arrays of its own."""
    for path, value in flatten(result):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"a captured step returns tensors, tuples, lists and dicts of them, or None; result{path} is "
                f"{type(value).__name__}: return the tensor, and read its value after the step"
            )
    return map_tree(lambda x: Tensor(x.backend.copy(x.array), x.backend), result)


class _Program(NamedTuple):
    """What to call with the arrays of the inputs, as long as nothing has changed and leaves are in these states."""

    replay: Callable[..., Any]
    changes: int
    leaves: list[Leaf]
    states: list[int | None]


class _Plan:
    """What is known of a step for one kind of inputs: its last recording, and a program where two agreed."""

    def __init__(self) -> None:
        self.recording: _Recording | None = None
        self.program: _Program | None = None
        self.attempts = 0

    def forget(self) -> None:
        """Let go of what was recorded before the last change."""
        if self.program is not None and self.program.changes != changes():
            self.program = None
        if self.recording is not None and self.recording.changes != changes():
            self.recording = None

    def record(self, step: Callable[..., Any], backend: Backend, inputs: Sequence[Any], named: dict[str, Any]) -> Any:
        """Do a step and record it; copies of what it returns."""
        before = self.recording
        states = [] if before is None else [_state_of(leaf) for leaf in before.leaves]
        recording = _Recording(backend, [] if before is None else before.optimizers)
        self.attempts += 1
        self.recording = None  # also where the step raises
        result = recording.watch(step, inputs, named)
        if before is not None and None not in states and recording.agrees_with(before):
            self.program = _Program(recording.program(), recording.changes, recording.leaves, states)
            self.attempts = 0
        elif self.attempts <= _ATTEMPTS:
            self.recording = recording
        return result


def _state_of(leaf: Leaf) -> int | None:
    """How a leaf begins a step: without a gradient, its buffer free (0) or not (1); with one, in its buffer (2) or
    elsewhere (3). None where there are tensors in the buffer, which a step would have to copy.
    """
    tensors = leaf.memory.tensors
    if tensors and any(reference() is not None for reference in tensors):
        return None
    if leaf.filled:
        return 2
    return 3 if leaf._grad is not None else 0 if leaf.free is not None else 1


def _settings(optimizer: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


class _Recording(Recorder):
    """The calls of a step, as lines of Python, and the objects in them. `changes`: of gradflow's, when it ended."""

    def __init__(self, backend: Backend, optimizers: Sequence[Any]) -> None:
        self.backend = backend
        self.changes = changes()
        self.optimizers: list[Any] = []
        self.leaves: list[Leaf] = []
        self.lines: list[str] = []
        self.constants: dict[int, Any] = {}  # by identity
        self._settings = {id(optimizer): _settings(optimizer) for optimizer in optimizers}
        self._names: dict[int, str] = {}  # of what inputs and lines give
        self._kept: list[Any] = []  # so that no other object gets the identity of one of them
        self._inputs = 0
        self._busy = False

    # ------------------------------------------------------------------ recording

    def watch(self, step: Callable[..., Any], inputs: Sequence[Tensor], named: dict[str, Tensor]) -> Any:
        """Do a step and note what it does. Its inputs are views, so that their arrays are known from nowhere else.

        Returns copies of its results, which are noted, too.
        """
        given = [*inputs, *named.values()]
        views = []
        for x in given:
            memory = x._shared_memory()
            views.append(Tensor(self.backend.reshape(x.array, x.array.shape), self.backend))
            memory.add(views[-1])
        for i, x in enumerate(views):
            self._names[id(x.array)] = f"i{i}"
        self._inputs = len(views)
        self._kept = [x.array for x in views]
        seen = views[: len(inputs)], dict(zip(named, views[len(inputs) :], strict=True))
        with states_before() as drawn, self._watching():
            result = step(*seen[0], **seen[1])
            self.refused |= not self.lines
            result = _copies(result)
        for x, view in zip(given, views, strict=True):
            if view._node is not None:  # the step told it to require a gradient
                x._node = view._node
        self.refused |= bool(drawn) or changes() != self.changes
        self.refused |= any(self._settings[id(each)] != _settings(each) for each in self.optimizers)
        self.changes = changes()
        self.lines.append(f"return {self._text(result)}")
        self._names, self._kept = {}, []
        return result

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
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
            self.refused |= name in _READS or (name in ("getitem", "scatter_add") and self._has_mask(arguments[1]))
            return self._do(f"F.{name}", function, arguments, options)

        return call

    def _has_mask(self, key: Any) -> bool:
        """Whether a mask is in a key: how much that selects is not known before."""
        if isinstance(key, (tuple, list)):
            return any(map(self._has_mask, key))
        return hasattr(key, "dtype") and self.backend.dtype_name(key.dtype) == "bool"

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if self._busy:
            return function(*arguments, **options)
        arguments, options = tuple(map(_listed, arguments)), {name: _listed(x) for name, x in options.items()}
        first = arguments[0] if arguments else None
        leaves = [x for x in (first if isinstance(first, list) else [first]) if isinstance(x, Leaf)]
        self.leaves += leaves
        self.refused |= any(leaf.backend is not self.backend for leaf in leaves)
        if hasattr(first, "param_groups"):
            self.optimizers.append(first)
            self.refused |= self._settings.setdefault(id(first), _settings(first)) != _settings(first)
        self.refused |= any(callable(x) for x in (*arguments[1:], *options.values()))  # a closure
        return self._do(self._constant(function), function, arguments, options)

    def refuse(self) -> None:
        self.refused |= not self._busy

    def _do(self, name: str, function: Callable[..., Any], arguments: Any, options: Any) -> Any:
        """Call a function, and write down how."""
        self._busy = True
        try:
            result = function(*arguments, **options)
            if _is_shared(result):
                result = self.backend.asarray(result)
        finally:
            self._busy = False
        written = [self._text(x) for x in arguments] + [f"{key}={self._text(x)}" for key, x in options.items()]
        line = f"r{len(self.lines)}"
        self.lines.append(f"{line} = {name}({', '.join(written)})")
        self._name(result, line)
        return result

    def _name(self, result: Any, name: str) -> None:
        """Note what a line gives, and the parts of it; a buffer that it was given is known already."""
        if isinstance(result, Tensor):
            result, name = result.array, f"{name}.array"
        if isinstance(result, (tuple, list)):
            for i, part in enumerate(result):
                self._name(part, f"{name}[{i}]")
        elif not hasattr(result, "dtype"):
            return
        self.refused |= _is_shared(result)
        if id(result) not in self._names and id(result) not in self.constants:
            self._names[id(result)] = name
            self._kept.append(result)

    def _text(self, x: Any) -> str:
        """An argument as Python."""
        if id(x) in self._names:
            return self._names[id(x)]
        if isinstance(x, Tensor) and id(x.array) in self._names and x._node is None:
            return f"Tensor({self._names[id(x.array)]}, F)"
        if x is None or x.__class__ in (bool, int, str) or (x.__class__ is float and math.isfinite(x)):
            return repr(x)
        if x.__class__ is tuple:
            return f"({''.join(self._text(part) + ', ' for part in x)})"
        if x.__class__ is list:
            return f"[{', '.join(map(self._text, x))}]"
        if x.__class__ is dict:
            return f"{{{', '.join(f'{self._text(key)}: {self._text(part)}' for key, part in x.items())}}}"
        self.refused |= isinstance(x, (tuple, list, dict))  # of another class, whose making is not known
        if x.__class__ is slice:
            return f"slice({self._text(x.start)}, {self._text(x.stop)}, {self._text(x.step)})"
        return self._constant(x)

    def _constant(self, x: Any) -> str:
        if hasattr(x, "dtype") and not isinstance(x, Leaf) and not hasattr(x, "__setitem__"):
            self.refused = True  # a NumPy scalar: its tensor may get an array
        self.constants.setdefault(id(x), x)
        return f"c{list(self.constants).index(id(x))}"

    # ------------------------------------------------------------------ replaying

    def agrees_with(self, other: _Recording) -> bool:
        """Whether two recordings say the same of the same objects, and can be replayed."""
        return (
            not (self.refused or other.refused)
            and self.lines == other.lines
            and len(self.constants) == len(other.constants)
            and all(map(_are_the_same, self.constants.values(), other.constants.values()))
        )

    def program(self) -> Callable[..., Any]:
        """A function of the arrays of the inputs that makes the recorded calls, and lets go of what was needed last."""
        lines = self.lines
        *calls, last = lines
        uses = [set(re.findall(r"\br\d+\b", line)) for line in lines]
        later = uses[-1]
        body = [last]
        for line, names in zip(reversed(calls), reversed(uses[:-1]), strict=True):
            body += [f"del {', '.join(sorted(names - later))}"] * bool(names - later) + [line]
            later = later | names
        scope: dict[str, Any] = {f"c{i}": x for i, x in enumerate(self.constants.values())}
        scope |= {"F": self.backend, "Tensor": Tensor}
        source = f"def replay({', '.join(f'i{i}' for i in range(self._inputs))}):\n    " + "\n    ".join(reversed(body))
        exec(compile(source, "<captured step>", "exec"), scope)
        replay: Callable[..., Any] = scope.pop("replay")  # else the two would keep each other
        return replay


def _listed(x: Any) -> Any:
    """An argument that can be read once, or that shows what a dict holds, as a list."""
    return list(x) if isinstance(x, (Iterator, ValuesView)) else x


def _is_shared(x: Any) -> bool:
    """Whether this is one of NumPy's two bools, which stand for many results."""
    return type(x).__name__ == "bool" and hasattr(x, "dtype")


def _are_the_same(a: Any, b: Any) -> bool:
    """Whether two objects are one, or stand for the same as dtypes do. Arrays and tensors do not."""
    if a is b:
        return True
    return type(a) is type(b) and not isinstance(a, Tensor) and not hasattr(a, "dtype") and bool(a == b)
