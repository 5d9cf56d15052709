"""A whole training step recorded once and replayed.

What is recorded are the calls of the backend that a step makes, as lines of Python: a replay makes these calls again,
on new inputs, without the operations, checks, nodes and the walk between them. What reads or changes Python's objects,
such as an optimizer's step, is recorded as one call (`gradflow.interception`).

A step is recorded twice before it is replayed: both must make the same calls with the same numbers and arrays. So a
step that counts, draws random numbers, or reads a value of a tensor shows itself, and runs as it is. What gradflow
knows to decide the calls (modes, hooks, frozen parameters, the arrays of parameters) is noted where the step reads it,
and compared before each replay.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from operator import index
from threading import get_ident
from typing import Any, Protocol, TypeVar, overload

from gradflow.autograd.grad_mode import current_observer, is_grad_enabled
from gradflow.backend import Backend
from gradflow.backend.registry import current_device, get_backend
from gradflow.interception import recorders
from gradflow.ops.checks import check_tensors
from gradflow.replay import recorder
from gradflow.replay.plan import PATIENCE, RECORDING, Plan
from gradflow.replay.program import Program
from gradflow.replay.reasons import Reason
from gradflow.replay.recheck import run_both
from gradflow.replay.recorder import copy_results
from gradflow.tensor import Tensor

_Result = TypeVar("_Result")
_Result_co = TypeVar("_Result_co", covariant=True)
logger = logging.getLogger("gradflow")
_KINDS = 16
"""Kinds of inputs that one step may be recorded for; others run as they are."""


class Captured(Protocol[_Result_co]):
    """A captured step, called as the step is."""

    status: str
    """What the last call did: "recording", "replaying", or why it can do neither and runs the step as it is."""

    def __call__(self, *inputs: Any, **named: Any) -> _Result_co: ...


_OBSERVED = Reason("an observer sees the step (detect_anomaly or gradcheck)", expected=True)
_WITHIN = Reason("runs within another captured step", expected=True)
_WITH_A_GRAPH = Reason("an input is a parameter or requires a gradient: pass x.detach()")
_OTHER_THREAD = Reason("another thread records a step", expected=True)
_TOO_MANY_KINDS = Reason(f"comes with more than {_KINDS} kinds of inputs (shapes, dtypes, modes)")


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
    plans: dict[Any, Plan] = {}
    calls = 0
    replayed: Plan | None = None  # by the last call

    @functools.wraps(step, updated=())  # the attributes of a module that is captured stay its own
    def captured(*inputs: Any, **named: Any) -> Any:
        nonlocal calls, replayed
        given = (*inputs, *named.values()) if named else inputs
        check_tensors("a captured step", *given)
        backend = given[0].backend if given else get_backend()
        device, kinds = current_device(), [(x.array.shape, x.array.dtype) for x in given]
        key = (backend, device.type, device.index, tuple(named), is_grad_enabled(), *kinds)
        plan = plans.get(key)
        program = None if plan is None else plan.program
        free = current_observer.get() is None and get_ident() not in recorders
        for x in given:
            if x._node is not None or x.__class__ is not Tensor:
                free = False
        calls += 1
        if free and program is not None and program.is_valid():
            if replayed is not plan:
                attributes["status"], replayed = "replaying", plan
            if every and not calls % every:
                return fallback.check(key, program, inputs, named)
            return program.replay(*[x.array for x in given])
        replayed = None
        return fallback.run(calls, key, backend, inputs, named)

    attributes = vars(captured)  # the function itself would close a cycle
    attributes["status"] = str(RECORDING)
    fallback = _Fallback(step, plans, attributes)
    return captured


class _Fallback:
    """What a captured step does instead of a replay: it records the step, or runs it as it is and says why."""

    def __init__(self, step: Callable[..., Any], plans: dict[Any, Plan], attributes: dict[str, Any]) -> None:
        self.step = step
        self.plans = plans
        self.attributes = attributes
        self.said: set[str] = set()

    def run(self, call: int, key: Any, backend: Backend, inputs: Sequence[Any], named: dict[str, Any]) -> Any:
        """Do the step; copies of what it returns. `call` counts all calls."""
        reason, plan = self._obstacle((*inputs, *named.values())), None
        if reason is None and recorder.recording_lock.acquire(blocking=False):
            try:
                plan = self._plan(call, key)
                if plan is None:
                    reason = _TOO_MANY_KINDS
                elif plan.is_due(call):
                    return plan.record(self.step, call, backend, inputs, named)
                else:
                    reason = plan.reason
            finally:
                recorder.recording_lock.release()
                if plan is not None:
                    self._say(plan.reason, plan.failures >= PATIENCE)
        if key in self.plans:
            self.plans[key].recording = None  # two in a row must agree
        self._say(_OTHER_THREAD if reason is None else reason, plan is None)
        return copy_results(self.step(*inputs, **named))

    def check(self, key: Any, program: Program, inputs: Sequence[Any], named: dict[str, Any]) -> Any:
        """Replay and do the step itself, from the same state; what the step returns. RuntimeError where they differ."""
        arrays = [x.array for x in (*inputs, *named.values())]
        result, difference = run_both(
            lambda: program.replay(*arrays),
            lambda: copy_results(self.step(*inputs, **named)),
            [groups.optimizer for groups in program.guards.groups],
            program.guards.leaves,
        )
        if difference is not None:
            self.plans.pop(key, None)
            raise RuntimeError(
                f"the captured step {_name_of(self.step)} differs from the step itself: {difference}; a replay knows "
                "what the step read from Python when it was recorded: give what changes as a tensor among its inputs"
            )
        return result

    def _obstacle(self, given: Sequence[Any]) -> Reason | None:
        if current_observer.get() is not None:
            return _OBSERVED
        if get_ident() in recorders:
            return _WITHIN
        if any(x._node is not None or x.__class__ is not Tensor for x in given):
            return _WITH_A_GRAPH
        return None

    def _plan(self, call: int, key: Any) -> Plan | None:
        for each in self.plans.values():
            each.drop_invalid(call)
        if key not in self.plans and len(self.plans) < _KINDS:
            self.plans[key] = Plan()
        return self.plans.get(key)

    def _say(self, reason: Reason, lasts: bool) -> None:
        self.attributes["status"] = str(reason)
        if lasts and not reason.expected and reason.kind not in self.said:
            self.said.add(reason.kind)
            logger.warning("the captured step %s runs without replay: %s", _name_of(self.step), reason)


def _name_of(step: Any) -> str:
    return getattr(step, "__name__", type(step).__name__)
