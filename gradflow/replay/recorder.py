"""A whole training step recorded once and replayed.

What is recorded are the calls of the backend that a step makes, as lines of Python: a replay makes these calls again,
on new inputs, without the operations, checks, nodes and the walk between them. What reads or changes Python's objects,
such as an optimizer's step, is recorded as one call (`gradflow.recording`).

A step is recorded twice before it is replayed: both must make the same calls with the same numbers and arrays. So a
step that counts, draws random numbers, or reads a value of a tensor shows itself, and runs as it is. What gradflow
knows to decide the calls (modes, hooks, frozen parameters, the arrays of parameters) is noted where the step reads it,
and compared before each replay.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence, ValuesView
from itertools import zip_longest
from operator import index
from threading import Lock, get_ident
from typing import Any, NamedTuple, Protocol, TypeVar, overload

from gradflow import recording as noted
from gradflow.backend import ARRAY_FUNCTIONS, KERNELS, Backend
from gradflow.device import current_device, get_backend
from gradflow.engine import Leaf, Node, current_observer, grad_enabled, tick
from gradflow.ops.table import check_tensors
from gradflow.recheck import run_both
from gradflow.recording import Recorder, Unchanged, recorders, start, stop
from gradflow.tensor import Tensor
from gradflow.tree import flatten, map_tree

_Result = TypeVar("_Result")
_Result_co = TypeVar("_Result_co", covariant=True)

logger = logging.getLogger("gradflow")

_KINDS = 16
"""Kinds of inputs that one step may be recorded for; others run as they are."""
_TRIES = 3
"""Recordings in a row that may come to nothing at once; then each next one waits twice as long as the one before."""
_LONGEST_WAIT = 1024
"""Calls that run as they are between two recordings, at most."""
_WORTHWHILE = 16
"""Calls after which a program has been worth its recording, so that a change is no reason to wait with the next."""
_READS = {
    "to_host": "reads a value ({})",
    "host_values": "reads a value ({})",
    "synchronize": "waits for the device ({})",
    "event": "uses an event of the device ({})",
    "stream": "uses a stream of the device ({})",
    "setitem": "changes a tensor in place ({})",
}
"""Services that no replay can do, with the reason: they wait, or change an array that is seen from elsewhere."""
_SEEN = (*ARRAY_FUNCTIONS, *KERNELS, "getitem", "copy", "from_host", "from_host_later", "pin", *_READS)
_one_at_a_time = Lock()
"""Held by who records. Others run their steps as they are meanwhile."""
_undo: list[Callable[[], None]] = []
"""What makes the backend of who records its own again."""


def _forget_other_threads() -> None:
    """In a forked child, where this thread alone goes on: if another was recording, nobody is."""
    global _one_at_a_time
    if get_ident() not in recorders:
        while _undo:
            _undo.pop()()
        recorders.clear()
        stop()
        _one_at_a_time = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


class Captured(Protocol[_Result_co]):
    """A captured step, called as the step is."""

    status: str
    """What the last call did: "recording", "replaying", or why it can do neither and runs the step as it is."""

    def __call__(self, *inputs: Any, **named: Any) -> _Result_co: ...


class _Reason(NamedTuple):
    """Why a step runs as it is: of which kind that is, and what more is known. `usual`: nobody needs to be told."""

    kind: str
    more: str = ""
    usual: bool = False

    def __str__(self) -> str:
        return self.kind + self.more


_RECORDING, _REPLAYING = _Reason("recording", usual=True), "replaying"
_OBSERVED = _Reason("an observer sees the step (detect_anomaly or gradcheck)", usual=True)
_WITHIN = _Reason("runs within another captured step", usual=True)
_WITH_A_GRAPH = _Reason("an input is a parameter or requires a gradient: pass x.detach()")
_OTHER_THREAD = _Reason("another thread records a step", usual=True)
_TOO_MANY_KINDS = _Reason(f"comes with more than {_KINDS} kinds of inputs (shapes, dtypes, modes)")
_OTHER_STATE = _Reason("a gradient is held, or lies elsewhere than when the step was recorded")


@overload
def capture(step: Callable[..., _Result], *, check: int | None = None) -> Captured[_Result]: ...
@overload
def capture(*, check: int | None = None) -> Callable[[Callable[..., _Result]], Captured[_Result]]: ...
def capture(step: Any = ..., *, check: int | None = None) -> Any:
    """A function that does what `step` does, to the bit, recorded once and replayed: less time between array calls.

    A step is a function of tensors of one device, such as a batch and its labels, and does a whole step of training:
    it forgets gradients, computes a loss, goes back from it, and calls the optimizer. It returns a tensor, nested
    tuples, lists and dicts of tensors, or None. The results are copies: they carry no gradient and share no memory. A
    method is captured when it is bound: `capture(self.step)`.

    The first calls with inputs of a shape and dtype record the step; once two in a row have made the same calls of the
    backend, later ones replay these. Learning rates, hyperparameters and states are an optimizer's own and always
    current, as are the values of all tensors. A change of a module that the step uses, of a hook, of what needs a
    gradient, or of who is in an optimizer's groups leads to a new recording; changes elsewhere do not. What no replay
    can do runs as it is: random numbers (dropout), values of tensors that are read, changes of tensors or of
    hyperparameters in the step, gradients that it reads or assigns, masks as indices, closures for optimizers,
    operations of your own, and Python numbers that differ between two recordings. It is tried again after 1, 2, 4 and
    so on calls, at most 1024.

    `status` of the result tells what its last call did: "recording", "replaying", or the reason why it can do neither,
    with the line of the step. The logger "gradflow" warns once of each reason that lasts.

    The rest of a step's Python does not run in a replay. What it would read (a flag, a counter that acts later, values
    that `tensor.array` gave away) is as it was when it was recorded, and what it would write, such as a list of losses,
    stays as it is. So it is on a GPU, where a step is a graph. Work in other threads is not seen.
    `check=100` finds what a step should not have read: every 100th call, if it is a replay, is done once more by the
    step itself, from the same parameters, gradients and states of optimizers, and compared to the bit. That waits for
    the device, and holds a second copy of all these.

    Raises TypeError for what cannot be called, ValueError for a `check` below 1. A call raises TypeError for an input
    that is no tensor and DeviceMismatchError for inputs on different devices, both before the step begins; whatever the
    step raises; TypeError, after it, for a result that is no tensor; and RuntimeError where `check` finds a difference,
    with all as the step itself has left it.

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
    >>> step.status
    'replaying'

    A number that Python changes is found where two recordings differ in it, else by a check:

    >>> scale = 1.0
    >>> @gf.capture(check=10)
    ... def scaled(x):
    ...     return x * scale
    >>> for i in range(20):  # doctest: +ELLIPSIS
    ...     scale = 1.0 if i < 5 else 2.0
    ...     y = scaled(x)
    Traceback (most recent call last):
    RuntimeError: the captured step scaled differs from the step itself: result at index (0,) is 1.0 in a replay ...
    """
    if check is not None and (isinstance(check, bool) or not hasattr(check, "__index__") or index(check) < 1):
        raise ValueError(f"check is a count of calls, an integer of at least 1; got {check!r}")
    every = 0 if check is None else index(check)
    if step is ...:
        return functools.partial(capture, check=check)
    if not callable(step):
        raise TypeError(f"capture takes a function that does a training step; got {type(step).__name__}")
    plans: dict[Any, _Plan] = {}
    calls = 0
    replayed: _Plan | None = None  # by the last call

    @functools.wraps(step, updated=())  # the attributes of a module that is captured stay its own
    def captured(*inputs: Any, **named: Any) -> Any:
        nonlocal calls, replayed
        given = (*inputs, *named.values()) if named else inputs
        check_tensors("a captured step", *given)
        backend = given[0].backend if given else get_backend()
        device, kinds = current_device(), [(x.array.shape, x.array.dtype) for x in given]
        key = (backend, device.type, device.index, tuple(named), grad_enabled.get(), *kinds)
        plan = plans.get(key)
        program = None if plan is None else plan.program
        free = current_observer.get() is None and get_ident() not in recorders
        for x in given:
            if x._node is not None or x.__class__ is not Tensor:
                free = False
        calls += 1
        if (
            free
            and program is not None
            and (program.unchanged.latest == noted.latest or program.unchanged)
            and _same_groups(program.groups)
            and [_state_of(leaf) for leaf in program.leaves] == program.states
        ):
            if replayed is not plan:
                attributes["status"], replayed = _REPLAYING, plan
            if every and not calls % every:
                return fallback.check(key, program, inputs, named)
            return program.replay(*[x.array for x in given])
        replayed = None
        return fallback.run(calls, key, backend, inputs, named)

    attributes = vars(captured)  # the function itself would close a cycle
    attributes["status"] = str(_RECORDING)
    fallback = _Fallback(step, plans, attributes)
    return captured


class _Fallback:
    """What a captured step does instead of a replay: it records the step, or runs it as it is and says why."""

    def __init__(self, step: Callable[..., Any], plans: dict[Any, _Plan], attributes: dict[str, Any]) -> None:
        self.step = step
        self.plans = plans
        self.attributes = attributes
        self.said: set[str] = set()

    def run(self, call: int, key: Any, backend: Backend, inputs: Sequence[Any], named: dict[str, Any]) -> Any:
        """Do the step; copies of what it returns. `call` counts all calls."""
        reason, plan = self._obstacle((*inputs, *named.values())), None
        if reason is None and _one_at_a_time.acquire(blocking=False):
            try:
                plan = self._plan(call, key)
                if plan is None:
                    reason = _TOO_MANY_KINDS
                elif plan.is_due(call):
                    return plan.record(self.step, call, backend, inputs, named)
                else:
                    reason = plan.reason
            finally:
                _one_at_a_time.release()
                if plan is not None:
                    self._say(plan.reason, plan.failures >= _TRIES)
        if key in self.plans:
            self.plans[key].recording = None  # two in a row must agree
        self._say(_OTHER_THREAD if reason is None else reason, plan is None)
        return _copies(self.step(*inputs, **named))

    def check(self, key: Any, program: _Program, inputs: Sequence[Any], named: dict[str, Any]) -> Any:
        """Replay and do the step itself, from the same state; what the step returns. RuntimeError where they differ."""
        arrays = [x.array for x in (*inputs, *named.values())]
        result, difference = run_both(
            lambda: program.replay(*arrays),
            lambda: _copies(self.step(*inputs, **named)),
            [groups.optimizer for groups in program.groups],
            program.leaves,
        )
        if difference is not None:
            self.plans.pop(key, None)
            raise RuntimeError(
                f"the captured step {_name_of(self.step)} differs from the step itself: {difference}; a replay knows "
                "what the step read from Python when it was recorded: give what changes as a tensor among its inputs"
            )
        return result

    def _obstacle(self, given: Sequence[Any]) -> _Reason | None:
        if current_observer.get() is not None:
            return _OBSERVED
        if get_ident() in recorders:
            return _WITHIN
        if any(x._node is not None or x.__class__ is not Tensor for x in given):
            return _WITH_A_GRAPH
        return None

    def _plan(self, call: int, key: Any) -> _Plan | None:
        for each in self.plans.values():
            each.forget(call)
        if key not in self.plans and len(self.plans) < _KINDS:
            self.plans[key] = _Plan()
        return self.plans.get(key)

    def _say(self, reason: _Reason, lasts: bool) -> None:
        self.attributes["status"] = str(reason)
        if lasts and not reason.usual and reason.kind not in self.said:
            self.said.add(reason.kind)
            logger.warning("the captured step %s runs without replay: %s", _name_of(self.step), reason)


def _name_of(step: Any) -> str:
    return getattr(step, "__name__", type(step).__name__)


def _copies(result: Any) -> Any:
    """What a step returned, without its graph, in arrays of its own."""
    for path, value in flatten(result):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"a captured step returns tensors, tuples, lists and dicts of them, or None; result{path} is "
                f"{type(value).__name__}: return the tensor, and read its value after the step"
            )
    return map_tree(lambda x: Tensor(x.backend.copy(x.array), x.backend), result)


class _Program:
    """What to call with the arrays of the inputs, as long as all is unchanged and leaves are in these states."""

    __slots__ = ("groups", "leaves", "made", "replay", "states", "unchanged")

    def __init__(self, recording: _Recording, states: list[int | None]) -> None:
        self.replay = recording.program()
        self.unchanged = recording.unchanged
        self.groups = recording.groups
        self.leaves = recording.leaves
        self.states = states
        self.made = recording.made


class _Plan:
    """What is known of a step for one kind of inputs: its last recording, a program where two agreed, else the reason.

    `failures`: recordings in a row that came to nothing; `next`: the call that may record again.
    """

    def __init__(self) -> None:
        self.recording: _Recording | None = None
        self.program: _Program | None = None
        self.reason = _RECORDING
        self.failures = 0
        self.next = 0

    def is_due(self, call: int) -> bool:
        """Whether this call records the step."""
        return call >= self.next

    def _fail(self, call: int) -> None:
        """Count a failure; try again from `call` on, the later the more there were."""
        self.failures += 1
        self.next = call + min(1 << self.failures >> _TRIES, _LONGEST_WAIT)

    def forget(self, call: int) -> None:
        """Let go of what was recorded before a change."""
        for each in (self.program, self.recording):
            if each is not None and not (each.unchanged and _same_groups(each.groups)):
                changed = each.unchanged.first_change()
                thing = "a parameter group" if changed is None else _describe(changed)
                self.reason = _Reason(f"{thing}, which it uses, changes between calls")
                if call - each.made < _WORTHWHILE:
                    self._fail(call)
                else:
                    self.failures = self.next = 0
                if each is self.program:
                    self.program = None
                else:
                    self.recording = None

    def record(
        self, step: Callable[..., Any], call: int, backend: Backend, inputs: Sequence[Any], named: dict[str, Any]
    ) -> Any:
        """Do a step and record it; copies of what it returns."""
        before, self.recording = self.recording, None
        states = [] if before is None else [_state_of(leaf) for leaf in before.leaves]
        recording = _Recording(backend, call, [] if before is None else before.groups)
        self.reason = _Reason("raises an exception", usual=True)
        self._fail(call + 1)
        result = recording.watch(step, inputs, named)
        reason = recording.reason
        if reason is None:
            self.recording = recording
            if before is not None:
                reason = _OTHER_STATE if None in states else recording.difference(before)
        if reason is None:
            if self.program is None:  # otherwise two gradient states would replace each other's program by turns
                self.failures -= 1
            if before is None:
                self.next = call + 1
            else:
                self.program, self.recording = _Program(recording, states), None
        self.reason = _RECORDING if reason is None else reason
        return result


def _state_of(leaf: Leaf) -> int | None:
    """How a leaf begins a step: without a gradient, its buffer free (0) or not (1); with one, in its buffer (2) or
    elsewhere (3). None where somebody holds tensors in the buffer, which a step would have to copy.
    """
    if leaf.memory.tensors and leaf.is_held():
        return None
    if leaf._grad is not None:
        return 2 if leaf._grad.array is leaf.buffer else 3
    return 2 if leaf.filled else 0 if leaf.free is not None else 1


def _settings(optimizer: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


class _Groups:
    """The parameters and hyperparameters in the groups of an optimizer; `are_read`: by the step itself."""

    __slots__ = ("are_read", "optimizer", "parameters", "settings")

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.parameters = [list(group["params"]) for group in optimizer.param_groups]
        self.settings = _settings(optimizer)
        self.are_read = False

    def are_the_same(self) -> bool:
        """Whether they hold the same parameters, and, where the step reads them, the same hyperparameters."""
        same = self.optimizer.holds(self.parameters)
        return same and (not self.are_read or _settings(self.optimizer) == self.settings)


def _same_groups(before: Sequence[_Groups]) -> bool:
    return all(map(_Groups.are_the_same, before))


class _Recording(Recorder):
    """The calls of a step, as lines of Python, and the objects in them; or the reason why no replay can do the same.

    `made`: the number of the call. `unchanged`: all that the step depended on, as it was at its end; `groups`: of its
    optimizers.
    """

    unchanged: Unchanged

    def __init__(self, backend: Backend, made: int, before: Sequence[_Groups]) -> None:
        self.backend = backend
        self.made = made
        self.reason: _Reason | None = None
        self.leaves: list[Leaf] = []
        self.groups = [_Groups(groups.optimizer) for groups in before]
        self.lines: list[str] = []
        self.places: list[str] = []  # in the step, of each line
        self.constants: dict[int, Any] = {}  # by identity
        self._names: dict[int, str] = {}  # of what inputs and lines give
        self._kept: list[Any] = []  # so that no other object gets the identity of one of them
        self._read: dict[int, Any] = {}
        self._made: dict[int, Any] = {}
        self._changed: list[Any] = []
        self._own = {"gradflow", "contextlib", type(backend).__module__.partition(".")[0]}
        self._start = tick()
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
        with self._watching():
            result = step(*seen[0], **seen[1])
            nothing = not self.lines
            result = _copies(result)
            used = {**self._read, **self.constants}
            for leaf in self.leaves:  # nobody has tensors in their buffers where a program is made: see `_state_of`
                used.pop(id(leaf.buffer), None)
            self.unchanged = Unchanged(used.values())
        for x, view in zip(given, views, strict=True):
            if view._node is not None:  # the step told it to require a gradient
                x._node = view._node
        if nothing:
            self._refuse(f"calls nothing on {self.backend.device}")
        for groups in self.groups:
            self._check_groups(groups)
        for thing in self._changed:
            if id(thing) in used:
                self._refuse(f"changes what it uses, {_describe(thing)}")
        self.lines.append(f"return {self._text(result)}")
        self._names, self._kept = {}, []
        self._read, self._made, self._changed = {}, {}, []
        return result

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        own = vars(self.backend)
        before = {name: own[name] for name in _SEEN if name in own}

        def undo() -> None:
            for name in _SEEN:
                own.pop(name, None)
            own.update(before)

        _undo.append(undo)
        for name in _SEEN:
            setattr(self.backend, name, self._watched(name, getattr(self.backend, name)))
        start(self)
        try:
            yield
        finally:
            stop()
            _undo.remove(undo)
            undo()

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._busy or recorders.get(get_ident()) is not self:
                return function(*arguments, **options)
            if name in _READS:
                self._refuse(_READS[name])
            elif name in ("getitem", "scatter_add") and self._has_mask([*arguments[1:], *options.values()]):
                self._refuse("indexes with a mask")
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
        self._busy = True  # what is looked at here the step has not read
        leaves = [x for x in (first if isinstance(first, list) else [first]) if isinstance(x, Leaf)]
        self.leaves += leaves
        if any(leaf.backend is not self.backend for leaf in leaves):
            self._refuse(f"works on other devices than {self.backend.device}")
        if hasattr(first, "param_groups"):
            self._check_groups(self._groups_of(first))
        if any(callable(x) for x in (*arguments[1:], *options.values())):
            self._refuse("gives an optimizer a closure")
        self._busy = False
        return self._do(self._constant(function), function, arguments, options)

    def _groups_of(self, optimizer: Any) -> _Groups:
        found = next((groups for groups in self.groups if groups.optimizer is optimizer), None)
        if found is None:
            found = _Groups(optimizer)
            self.groups.append(found)
        return found

    def _check_groups(self, groups: _Groups) -> None:
        name = type(groups.optimizer).__name__
        if not groups.optimizer.holds(groups.parameters):
            self._refuse(f"changes the parameters of {name}")
        if groups.settings != _settings(groups.optimizer):
            self._refuse(f"changes hyperparameters of {name}")

    def forbid_replay(self, reason: str) -> None:
        if not self._busy:
            self._refuse(reason)

    def _refuse(self, reason: str) -> None:
        if self.reason is None:
            name, place = self._caller()
            self.reason = _Reason(reason.replace("{}", name), f": {place}" if noted.recorders else "")

    def _caller(self) -> tuple[str, str]:
        """The innermost function of gradflow that a user can call among those that run, and the line outside of it."""
        frame, name = sys._getframe(1), ""
        while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in self._own:
            function, module = frame.f_code.co_name, frame.f_globals["__name__"]
            told = module not in _UNTOLD and function not in _UNTOLD and not re.match("<|_[^_]", function)
            if told and not name:
                name = function
            frame = frame.f_back
        return name, f"{frame.f_code.co_filename}, line {frame.f_lineno}"

    def read(self, thing: Any, attribute: str = "") -> None:
        if self._busy or id(thing) in self._names or id(thing) in self._made:
            return
        kind = type(thing)  # not its __class__, which would be another attribute that is read
        if kind in (Leaf, Node) and thing.id > self._start:
            return
        if kind is Node:
            self._refuse("backpropagates through operations recorded before the step ({})")
        self._read[id(thing)] = thing
        if hasattr(kind, "add_param_group"):  # an optimizer
            if attribute == "steps":
                self._refuse("reads how many steps an optimizer has done")
            elif attribute in ("param_groups", "learning_rates"):
                self._busy = True  # what is looked at here the step has not read
                self._groups_of(thing).are_read = True
                self._busy = False

    def make(self, thing: Any) -> None:
        self._made[id(thing)] = thing

    def change(self, thing: Any, here: bool) -> None:
        if id(thing) in self._made:
            return
        if here and not self._busy:
            self._refuse(f"changes {_describe(thing)} ({{}})")
        self._changed.append(thing)

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
        self.places.append(self._caller()[1])
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
        if _is_shared(result):
            self._refuse("uses one of NumPy's two bools")
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
        if isinstance(x, (tuple, list, dict)):  # of another class, whose making is not known
            self._refuse(f"gives the backend a {type(x).__name__}")
        if x.__class__ is slice:
            return f"slice({self._text(x.start)}, {self._text(x.stop)}, {self._text(x.step)})"
        return self._constant(x)

    def _constant(self, x: Any) -> str:
        if hasattr(x, "dtype") and not isinstance(x, Leaf) and not hasattr(x, "__setitem__"):
            self._refuse("uses a tensor whose values are a NumPy scalar")  # it may get an array
        self.constants.setdefault(id(x), x)
        return f"c{list(self.constants).index(id(x))}"

    # ------------------------------------------------------------------ replaying

    def difference(self, other: _Recording) -> _Reason | None:
        """Where two recordings do not say the same of the same objects: in which call."""
        for i, (ours, theirs) in enumerate(zip_longest(self.lines, other.lines)):
            if ours is None or theirs is None:
                return _Reason(f"two recordings differ: {len(other.lines) - 1} calls, then {len(self.lines) - 1}")
            for name in re.findall(r"\bc\d+\b", ours) if ours == theirs else ():
                a, b = (list(each.constants.values())[int(name[1:])] for each in (other, self))
                if not _are_the_same(a, b):
                    theirs = theirs.replace(name, f"another {_describe(a).removeprefix('a ')}")
            if ours != theirs:
                place = self.places[i] if i < len(self.places) else "the results"
                calls = [each._readable(line) for each, line in ((other, theirs), (self, ours))]
                return _Reason("two recordings differ", f" at {place}: {calls[0]}, then {calls[1]}")
        return None

    def _readable(self, line: str) -> str:
        """A line as a reason shows it."""
        constants = list(self.constants.values())
        line = re.sub(r"\bc(\d+)\b", lambda found: _describe(constants[int(found[1])]), line.partition(" = ")[2])
        line = re.sub(r"\br(\d+)\b", lambda found: f"result {int(found[1]) + 1}", line)
        return re.sub(r"\bi(\d+)\b", r"input \1", line.replace("F.", ""))

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


_UNTOLD = {__name__, noted.__name__, "__init__", "add_hook", "apply", "draw", "forward", "function", "nodes_from"}
"""Modules and functions of gradflow that say nothing to who reads a reason."""


def _describe(x: Any) -> str:
    if isinstance(x, Leaf):
        return f"a leaf of shape {tuple(x.shape)}"
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"a tensor of shape {tuple(x.shape)}"
    if callable(x) and hasattr(x, "__qualname__"):
        return str(x.__qualname__)
    return type(x).__name__
