"""`capture`: whether a call of a captured step is replayed, recorded or run normally, and its `status`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from operator import index
from threading import get_ident
from typing import Any, Protocol, TypeVar, overload

from gradflow.autograd.grad_mode import current_observer
from gradflow.backend import Backend
from gradflow.backend.registry import get_backend
from gradflow.interception import measured, profilers, recorders
from gradflow.ops.checks import check_tensors
from gradflow.replay import interception
from gradflow.replay.batches import STEPS, BatchSource, CapturedRun, check_batches, modes
from gradflow.replay.plan import PATIENCE, RECORDING, Plan
from gradflow.replay.program import Program
from gradflow.replay.reasons import Reason
from gradflow.replay.recheck import Stateful, run_both
from gradflow.replay.recorder import copy_results
from gradflow.tensor import Tensor

_Result = TypeVar("_Result")
_Result_co = TypeVar("_Result_co", covariant=True)
logger = logging.getLogger("gradflow")
_MAX_SIGNATURES = 16
"""The largest number of signatures of inputs for which one step is recorded; with others it runs normally."""


class Captured(Protocol[_Result_co]):
    """A captured step: called like the step itself."""

    status: str
    """What the last call did: "recording", "replaying", or why the step ran normally.

    "replaying, ..." says how, where that is not the fastest way: with which functions in Python on the CPU, or why call
    by call.
    """

    def __call__(self, *inputs: Any, **named: Any) -> _Result_co: ...


_OBSERVED = Reason("an observer sees the step (trace, detect_anomaly or gradcheck)", expected=True)
_NESTED = Reason("runs inside another captured step", expected=True)
_WITH_A_GRAPH = Reason("an input is a parameter or requires a gradient: pass x.detach()")
_OTHER_THREAD = Reason("another thread is recording a step", expected=True)
_TOO_MANY_SIGNATURES = Reason(f"got inputs with more than {_MAX_SIGNATURES} signatures (shapes, dtypes, modes)")


@overload
def capture(step: Callable[..., _Result], *, check: int | None = None) -> Captured[_Result]: ...


@overload
def capture(
    step: Callable[..., _Result], *, batches: BatchSource, steps: int | None = None
) -> CapturedRun[_Result]: ...


@overload
def capture(*, check: int | None = None) -> Callable[[Callable[..., _Result]], Captured[_Result]]: ...


@overload
def capture(
    *, batches: BatchSource, steps: int | None = None
) -> Callable[[Callable[..., _Result]], CapturedRun[_Result]]: ...


def capture(
    step: Any = ..., *, check: int | None = None, batches: BatchSource | None = None, steps: int | None = None
) -> Any:
    """Return a function equivalent to `step` that replays recorded backend calls instead of running the step's Python.

    step: a function of tensors on one device, such as a batch and its labels, that does a whole training step: it
    clears gradients, computes a loss, calls `backward()` and the optimizer's `step()`. It returns a tensor, nested
    tuples, lists and dicts of tensors, or None. To capture a method, bind it: `capture(self.step)`.
    check: in every `check`-th call, if it is a replay, also run `step` from the same state, and compare bit for bit
    what both return and change (default None: never). A check synchronises with the device, and needs memory for copies
    of the parameters, gradients and optimizer state. It restores only what `Optimizer.state_dict` contains: an
    optimizer whose `update` changes other attributes differs in a check.
    batches: the batches of an epoch, such as a `gradflow.data.Batches`, whose tensors are the arguments of the step
    (default None). Then the result is a `CapturedRun`: `run.epoch()` iterates over an epoch and does several steps at a
    time, as shown below.
    steps: with `batches`, how many steps an item of `run.epoch()` is of (default 32).

    The first two calls with inputs of given shapes and dtypes run the step and record it. If both make the same calls
    of the backend, later calls replay them. The returned function returns copies of the step's results, which share no
    memory and do not require grad. Up to 16 combinations of shapes and dtypes can be replayed, and in each up to 4
    combinations of places of gradients: gradient accumulation needs two, for calls that begin without gradients and
    for calls that add to them. A call that is recorded keeps all intermediate results alive until its end.

    A replay uses the current values of all tensors, and the current learning rates, hyperparameters and state of
    optimizers, and draws the random numbers that the step would draw now (dropout). The step is recorded again after a
    change of anything known to determine its calls: a module that it uses, hooks, `requires_grad`, the parameters in an
    optimizer's groups and their `array`, or hyperparameters that the step itself reads.

    A step runs normally, without a replay, if it

    - reads values (`item()`, a tensor in an `if`), or seeds or sets a random generator or its `counter` or `key`,
    - changes tensors in place, or a parameter of which an input is a view, reads or assigns `.grad`, or works on other
      devices than that of its inputs,
    - changes hyperparameters, reads `Optimizer.steps`, or passes a closure to an optimizer,
    - indexes with a mask, or runs hooks or a custom operation,
    - backpropagates through a graph from before the step, or uses Python numbers that differ between two recordings.

    It is recorded again after 1, 2, 4 and so on calls, at most 1024, in case the cause has been fixed. The attribute
    `status` of the returned function says what its last call did: "recording", "replaying", or why the step ran
    normally, and in which line. The logger "gradflow" warns once of each reason that needs a change of the step.

    As with CUDA graphs, the rest of the step's Python does not run in a replay. What it would read, such as a flag or a
    counter, has the value from the recording, and what it would write, such as a list of losses, does not change.
    Work in other threads and on arrays taken from `tensor.array` is not recorded. `check` finds such mistakes.
    On a GPU and with the extra `fast`, rates are computed ahead: a schedule must be a pure function of the number of
    steps, may be called more than once for a step, and one that is not gradflow's is called before each step. On a GPU,
    an error that it raises comes before the step begins.

    Captured steps that compute gradients of the same leaves are for one thread at a time: while one is replayed,
    another thread must not call `backward()` for these leaves, or gradients are lost.

    On a GPU, what is replayed is one CUDA graph: a call copies the inputs, launches it, and copies the results. If the
    calls cannot be one graph, such as those of an optimizer with an `update` of its own, they are made one by one, and
    `status` is "replaying call by call", with the reason. If there is not enough memory for a graph, MemoryError is
    raised, the step has not been done, and later calls make its calls one by one.

    On a CPU with the extra `fast`, a replay is one call of native code for everything that has a kernel there. What has
    none is called from Python in between, and `status` names it: "replaying, with sum and where in Python"; or Python
    makes all calls, and `status` says why. For inputs that are read-only or not contiguous, Python makes all calls. All
    arrays of the step are kept until it is recorded again or the captured step is dropped.

    With `batches` whose data is on a GPU, the gathering of batches and `steps` steps are one graph, which the host
    starts with one call. The first steps of a run are done one by one, and so are steps on data that is kept on the
    host, and all steps on the CPU. The results are equal bit for bit.

    Raises TypeError if `step` is not callable, for `batches` that are none, and for `steps` without batches; ValueError
    if `check` or `steps` is not an integer of at least 1, or for `check` with batches. A call raises
    TypeError for an input that is not a tensor and DeviceMismatchError for inputs on different devices, both before
    the step begins; any error of the step; TypeError, after the step, for a result that is not a tensor; and
    RuntimeError if a check finds a difference, leaving the state from the step, not from the replay.

    >>> import gradflow as gf
    >>> w = gf.tensor([1.0, 2.0], requires_grad=True)
    >>> optimizer = gf.optim.SGD([w], lr=0.5)
    >>> @gf.capture
    ... def step(x):
    ...     optimizer.zero_grad()
    ...     loss = gf.mse_loss(w, x)
    ...     loss.backward()
    ...     optimizer.step()
    ...     return loss
    >>> x = gf.tensor([1.0, 0.0])
    >>> [step(x).item() for _ in range(4)]
    [2.0, 0.5, 0.125, 0.03125]
    >>> step.status
    'replaying'

    A Python number that changes during the two recordings shows up as their difference; one that changes later is
    found by a check:

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
        raise ValueError(f"check is a number of calls, an integer of at least 1; got {check!r}")
    every = 0 if check is None else index(check)
    if batches is None and steps is not None:
        raise TypeError("steps is for a step with batches: pass batches=..., such as a gradflow.data.Batches")
    if batches is not None:
        check_batches(batches, steps, check)
    if step is ...:
        return functools.partial(capture, check=check, batches=batches, steps=steps)
    if not callable(step):
        raise TypeError(f"capture takes a function that does a training step; got {type(step).__name__}")
    plans: dict[Any, Plan] = {}
    calls = 0
    replayed: Plan | None = None  # the plan of the last call, if that was a replay, and its key
    replayed_key: Any = None

    @functools.wraps(step, updated=())  # without the attributes of the step, which may be a module
    def captured(*inputs: Any, **named: Any) -> Any:
        nonlocal calls, replayed, replayed_key
        given = (*inputs, *named.values()) if named else inputs
        obstacle, key, arrays = _obstacle(), modes(), []
        key += named
        for x in given:
            if x.__class__ is not Tensor or x._node is not None:
                check_tensors("a captured step", *given)
                obstacle = obstacle or _WITH_A_GRAPH
            array = x.array
            arrays.append(array)
            key += x.backend, array.shape, array.dtype
        if len({*given}) < len(given):  # a tensor is given twice
            ids = [*map(id, given)]
            key += map(ids.index, ids)
        plan = replayed
        if plan is None or key != replayed_key:
            check_tensors("a captured step", *given)
            plan = plans.get(tuple(key))
        calls += 1
        if plan is not None and obstacle is None:
            for program in plan.programs:
                if program.is_valid():
                    if replayed is not plan:
                        attributes["status"], replayed, replayed_key = program.replayable.status, plan, key
                    if every and not calls % every:
                        replayed = None  # the check may drop the plan
                        return fallback.check(tuple(key), program, inputs, named)
                    if profilers:
                        return measured("replay", (step, _backend_of(given)), program.replay, *arrays)
                    return program.replay(*arrays)
                del program  # what it holds would count as shared
        replayed = None
        return fallback.run(calls, tuple(key), _backend_of(given), inputs, named, obstacle)

    attributes = vars(captured)  # referring to the function itself would close a reference cycle
    attributes["status"] = str(RECORDING)
    fallback = _Fallback(step, plans, attributes)
    if batches is None:
        return captured
    return CapturedRun(captured, lambda: replayed, batches, STEPS if steps is None else index(steps))


def _obstacle() -> Reason | None:
    """Why no call can be replayed or recorded now, whatever its inputs, or None."""
    if current_observer.get() is not None:
        return _OBSERVED
    return _NESTED if recorders and get_ident() in recorders else None


def _backend_of(given: Sequence[Any]) -> Backend:
    return given[0].backend if given else get_backend()


class _Fallback:
    """The slow path of a captured step: records the step or runs it normally, and sets the status."""

    def __init__(self, step: Callable[..., Any], plans: dict[Any, Plan], attributes: dict[str, Any]) -> None:
        self.step = step
        self.plans = plans  # changed only by the thread that holds the lock, except that a check drops a plan
        self.attributes = attributes
        self.logged: set[str] = set()

    def run(
        self,
        call: int,
        key: Any,
        backend: Backend,
        inputs: Sequence[Any],
        named: dict[str, Any],
        obstacle: Reason | None,
    ) -> Any:
        """Run the step in call number `call`, and record it if it is due. Returns copies of its results."""
        reason, persistent = obstacle or _OTHER_THREAD, True
        with interception.recording() if obstacle is None else nullcontext(False) as is_free:
            if is_free:
                plan = self._plan(call, key)
                if plan is None:
                    reason = _TOO_MANY_SIGNATURES
                elif plan.is_due(call):
                    try:
                        return plan.record(self.step, call, backend, inputs, named)
                    finally:
                        self._report(plan.reason, plan.failures >= PATIENCE)
                else:
                    reason, persistent = plan.reason, plan.failures >= PATIENCE
        plan = self.plans.get(key)
        if plan is not None:
            plan.candidates = []  # a program needs recordings in a row
        self._report(reason, persistent)
        return copy_results(self.step(*inputs, **named))

    def check(self, key: Any, program: Program, inputs: Sequence[Any], named: dict[str, Any]) -> Any:
        """Replay the step and run it from the same state; returns its results. RuntimeError if the two differ."""
        arrays = [x.array for x in (*inputs, *named.values())]
        result, difference = run_both(
            lambda: program.replay(*arrays),
            lambda: copy_results(self.step(*inputs, **named)),
            [groups.optimizer for groups in program.guards.groups],
            program.guards.leaves,
            [x for x in program.replayable.objects if isinstance(x, Stateful)],
        )
        if difference is not None:
            self.plans.pop(key, None)
            raise RuntimeError(
                f"the captured step {_name_of(self.step)} differs from the step itself: {difference}; a replay uses "
                "the values that the step read from Python when it was recorded: pass what changes as an input tensor"
            )
        return result

    def _plan(self, call: int, key: Any) -> Plan | None:
        """The plan for a signature of inputs; None if there are too many."""
        for each in list(self.plans.values()):
            each.drop_invalid(call)
        plan = self.plans.get(key)
        if plan is None and len(self.plans) < _MAX_SIGNATURES:
            # the plan must not refer to this object, which refers to the plans
            plan = self.plans[key] = Plan(functools.partial(_report, self.attributes, self.logged, _name_of(self.step)))
        return plan

    def _report(self, reason: Reason, persistent: bool) -> None:
        """Set the status, and log a persistent reason unless it is expected."""
        self.attributes["status"] = str(reason)
        if persistent and not reason.expected and reason.kind not in self.logged:
            self.logged.add(reason.kind)
            logger.warning("the captured step %s runs without replay: %s", _name_of(self.step), reason)


def _report(attributes: dict[str, Any], logged: set[str], name: str, status: str, reason: str | None) -> None:
    """Set the status of a step that is replayed, and log the reason why that is call by call once, if one is given."""
    attributes["status"] = status
    if reason is not None and reason not in logged:
        logged.add(reason)
        logger.warning("the captured step %s is replayed call by call: it %s", name, reason)


def _name_of(step: Any) -> str:
    return getattr(step, "__name__", type(step).__name__)
