"""A captured step with the batches of an epoch: several whole steps at a time (`gradflow.capture(..., batches=...)`).

On a device with graphs, `Several` gathers the batches of K steps and makes these steps in one graph, which one call of
the host starts. It is made of the program of the captured step, so the first steps run one by one, until there is a
program that ends with the gradients where it begins. On other devices all steps run one by one, with equal results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import index
from threading import get_ident
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from gradflow.autograd.grad_mode import autocast_dtype, current_observer, is_grad_enabled
from gradflow.backend import Backend, Device, get_matmul_precision
from gradflow.backend.graphs import current_rows
from gradflow.backend.registry import current_device, get_backend
from gradflow.dtypes import default_dtype
from gradflow.interception import measured, recorders
from gradflow.ops import stack
from gradflow.random.shares import current_share
from gradflow.replay.plan import Plan
from gradflow.replay.program import Program, Replayable
from gradflow.tensor import Tensor
from gradflow.tree import flatten, rebuild

_Result = TypeVar("_Result")
logger = logging.getLogger("gradflow")
STEPS = 32
"""How many steps are done at a time by default. More gain nothing: by then, the device is never idle."""
_MAX_GRAPHS = 4
"""The largest number of graphs of one run, each of another number of steps; other numbers run one by one."""


@runtime_checkable
class BatchSource(Protocol):
    """The batches of an epoch on a device, such as `gradflow.data.Batches`: tuples of tensors; the last may be smaller.

    device: where they are. batch_size: the samples of a batch. samples: those of an epoch.
    """

    @property
    def device(self) -> Device: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def samples(self) -> int: ...

    def epoch(self, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """The batches of a new epoch, from batch `first` on."""

    def on_device(self) -> tuple[Tensor, ...] | None:
        """The tensors from whose rows batches are gathered; None if batches come from elsewhere, through `epoch`."""

    def order(self) -> Tensor:
        """Draw the order of a new epoch, as `epoch` does: the row at each position, int64, on the device."""


def check_batches(batches: Any, steps: Any, check: Any) -> None:
    """Raise TypeError or ValueError for arguments of `capture` that do not fit."""
    if not isinstance(batches, BatchSource):
        raise TypeError(
            "batches are those of an epoch, such as gradflow.data.Batches(inputs, targets, batch_size); "
            f"got {type(batches).__name__}"
        )
    if steps is not None and (isinstance(steps, bool) or not hasattr(steps, "__index__") or index(steps) < 1):
        raise ValueError(f"steps is a number of steps, an integer of at least 1; got {steps!r}")
    if check is not None:
        raise ValueError("check compares single steps: to use it, capture the step without batches")


def has_graphs(backend: Backend) -> bool:
    """Whether several recorded steps can be one graph on the device. On the CPU, native programs are of one step."""
    return type(backend).graph is not Backend.graph and backend.graphs_of_several


class CapturedRun(Generic[_Result]):
    """A captured step with its batches, as `gradflow.capture(step, batches=..., steps=...)` returns it.

    step: the captured step, which takes one batch. batches, steps: as given to `capture`.

    >>> import gradflow as gf
    >>> from gradflow.data import Batches
    >>> w = gf.tensor([0.0], requires_grad=True)
    >>> optimizer = gf.optim.SGD([w], lr=0.25)
    >>> def step(inputs, targets):
    ...     optimizer.zero_grad()
    ...     loss = gf.mse_loss(w * inputs, targets)
    ...     loss.backward()
    ...     optimizer.step()
    ...     return loss
    >>> ones = gf.ones((5,))
    >>> run = gf.capture(step, batches=Batches(ones, ones, batch_size=1), steps=2)
    >>> [losses.tolist() for losses in run.epoch()]
    [[1.0, 0.25], [0.0625, 0.015625], [0.00390625]]
    """

    def __init__(self, step: Any, replayed: Callable[[], Plan | None], batches: BatchSource, steps: int) -> None:
        self.step = step
        self.batches = batches
        self.steps = steps
        self._replayed = replayed
        self._status = ""
        self._steady: Program | None = None
        self._modes: Any = None
        self._graphs: dict[int, _Graph] = {}
        self._rests: set[int] = set()

    @property
    def status(self) -> str:
        """What the last step on a whole batch did, as `status` of `gradflow.capture`."""
        return self._status or str(self.step.status)

    def epoch(self, first: int = 0) -> Iterator[_Result]:
        """Do the steps of a new epoch, from batch `first` on (default 0), and yield their results, several at a time.

        Each item has the form of a step's result, with the results of its steps stacked along a new first axis. An item
        is of `steps` steps; the last ones of an epoch are of the whole batches that are left, if any, and of the
        smaller last batch, alone. If `first` is not a multiple of `steps`, the first item goes up to the next one.
        Results stay on the device: reading one waits for its steps, iterating does not.

        This call draws the order of the epoch, as that of `Batches.epoch` does. Raises ValueError unless `first` is an
        integer in [0, number of batches], and for results that cannot be stacked; and what the step raises.
        """
        return self.begin(first)._results()

    def begin(self, first: int = 0) -> RunningEpoch:
        """Begin a new epoch at batch `first`; raises as `epoch`."""
        return RunningEpoch(self, first)

    def single(self, *batch: Tensor) -> Any:
        """Do a step on a batch of the epoch, and notice a program that ends with the gradients where it begins."""
        plan = self._replayed()
        before = None if plan is None else _valid(plan)
        result = self.step(*batch)
        if before is not None and self._replayed() is plan and len(batch[0]) == self.batches.batch_size:
            steady = before if before.is_valid() else None
            if steady is not self._steady:
                self._steady = steady
                self._graphs.clear()
            self._modes = _modes()
        return result

    def together(self, rows: Any, data: Sequence[Any]) -> Callable[..., Any] | None:
        """What does the steps on the batches of such rows at once, or None if they must be done one by one now.

        rows: (steps, batch size). data: the arrays whose rows they are.
        """
        program, steps = self._steady, rows.shape[0]
        if program is None or self._modes != _modes() or not program.is_valid():
            return None
        if steps < self.steps and steps not in self._rests:  # the rest of an epoch, which may be the only one
            self._rests.add(steps)
            return None
        found = self._graphs.get(steps)
        if found is None or any(x is not y for x, y in zip(found.data, data, strict=True)):
            if found is None and len(self._graphs) == _MAX_GRAPHS:
                return None
            backend = get_backend(self.batches.device)
            several = Several(backend, program.replayable, data)
            found = self._graphs[steps] = _Graph(several, data, backend.graph(several, [rows]))
        return None if found.several.refused else found.replay


class _Graph(NamedTuple):
    """several: the steps. data: the arrays that batches are gathered from. replay: does the steps of some rows."""

    several: Several
    data: Sequence[Any]
    replay: Callable[..., Any]


class Several:
    """Several steps in the form that `Backend.graph` takes: see `RecordedStep`. Their input is rows of batches.

    step: one step, which ends in the gradient states in which it begins. data: what batches are gathered from.

    `refused` says why they are no graph, or is None: then single steps, which may be graphs, are faster.
    """

    def __init__(self, backend: Backend, step: Replayable, data: Sequence[Any]) -> None:
        self._backend, self._data = backend, data
        self._calls, self._results = step.parts()
        self.obstacle, self.host_state = step.obstacle, step.host_state
        self.refused: str | None = None

    def run(self, rows: Any) -> Any:
        """Do a step on each batch of rows, (steps, batch size), and return their results, stacked."""
        return self._results(*self._stacked(rows))

    def parts(self) -> tuple[Callable[..., tuple[Any, ...]], Callable[..., Any]]:
        return self._stacked, self._results

    def note(self, words: str) -> None:
        pass

    def trace_obstacle(self) -> str:
        return "is several steps"

    def trace(self, make: Callable[..., Any], *inputs: Any) -> None:
        """As in the contract: not possible."""

    def report(self, reason: str) -> None:
        self.refused = reason
        logger.info("captured steps are replayed one by one, since several of them are no graph: it %s", reason)

    def _stacked(self, rows: Any) -> tuple[Any, ...]:
        """Do the steps. What each returns is copied to its place before the next one changes it."""
        F, numbers, steps = self._backend, current_rows(), rows.shape[0]
        batches = F.take_rows(self._data, rows)
        stacked: list[Any] = []
        for i in range(steps):
            if i and numbers is not None:
                numbers.next_step()
            found = self._calls(*[F.getitem(x, (i, ...)) for x in batches])
            stacked = stacked or [F.empty((steps, *x.shape), dtype=x.dtype) for x in found]
            for whole, x in zip(stacked, found, strict=True):
                F.setitem(whole, (i, ...), x)
        return tuple(stacked)


class RunningEpoch:
    """An epoch that is running: an iterator over the batches that are left; `single` and `together` do steps on them.

    done: how many batches are done. left: how many are left.
    """

    def __init__(self, run: CapturedRun[Any], first: int) -> None:
        batches = run.batches
        count = -(-batches.samples // batches.batch_size)
        if isinstance(first, bool) or not hasattr(first, "__index__") or not 0 <= index(first) <= count:
            raise ValueError(f"an epoch has {count} batches; it cannot start at batch {first!r}")
        self.done, self.left = index(first), count - index(first)
        self._run, self._backend = run, get_backend(batches.device)
        data = batches.on_device() if has_graphs(self._backend) else None
        self._data = [x.array for x in data or ()]
        self._order: Any = None if data is None else batches.order().array
        self._batches = batches.epoch(self.done) if data is None else None

    def __iter__(self) -> RunningEpoch:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        """The next batch, which counts as done."""
        if not self.left:
            raise StopIteration
        if self._batches is not None:
            batch = next(self._batches)
        else:
            F = self._backend
            batch = tuple(Tensor(F.getitem(x, (0, ...)), F) for x in F.take_rows(self._data, self._rows(1)))
        self._count(1)
        return batch

    def single(self) -> Any:
        """Do the step on the next batch, and return its result."""
        run, batch = self._run, next(self)
        result = run.step(*batch) if self._order is None else run.single(*batch)
        if len(batch[0]) == run.batches.batch_size:
            run._status = str(run.step.status)
        return result

    def together(self, most: int) -> Callable[[], Any] | None:
        """What does the next steps at once and returns their results, stacked; None if they must be done one by one.

        They are those of an item of `CapturedRun.epoch`, but at most `most`, of at least 2 whole batches.
        """
        steps = min(self._length(), most)
        if self._order is None or steps < 2 or self.done % self._run.steps:
            return None
        rows = self._rows(steps)
        replay = self._run.together(rows, self._data)
        return None if replay is None else partial(self._do, replay, rows)

    def _do(self, replay: Callable[..., Any], rows: Any) -> Any:
        results = measured("replay", (self._run.step, self._backend), replay, rows)
        self._count(rows.shape[0])
        return results

    def _results(self) -> Iterator[Any]:
        while self.left:
            steps = self._length()
            do = self.together(steps)
            yield _stacked([self.single() for _ in range(steps)]) if do is None else do()

    def _length(self) -> int:
        """The number of steps of the next item of `CapturedRun.epoch`."""
        source, steps = self._run.batches, self._run.steps
        whole = source.samples // source.batch_size - self.done
        return max(1, min(steps - self.done % steps, whole))

    def _rows(self, steps: int) -> Any:
        """The rows of the next batches, (steps, batch size); those of the smaller last batch, (1, its size)."""
        source, F = self._run.batches, self._backend
        start = self.done * source.batch_size
        stop = min(start + steps * source.batch_size, source.samples)
        return F.reshape(F.getitem(self._order, (slice(start, stop), ...)), (steps, -1))

    def _count(self, steps: int) -> None:
        self.done, self.left = self.done + steps, self.left - steps


def _valid(plan: Plan) -> Program | None:
    return next((program for program in plan.programs if program.is_valid()), None)


def modes() -> list[Any]:
    """The modes that a step depends on."""
    return [
        current_device(),
        is_grad_enabled(),
        autocast_dtype.get(),
        default_dtype.get(),
        get_matmul_precision(),
        current_share.get(),
    ]


def _modes() -> tuple[Any, ...]:
    """What a step depends on besides its batch and objects, as in the key and the obstacles of a captured step."""
    return modes(), current_observer.get(), recorders.get(get_ident())


def _stacked(results: list[Any]) -> Any:
    """The results of steps, stacked. Raises ValueError for results that differ in their form."""
    leaves = [flatten(result) for result in results]
    forms = [[(path, x.shape, x.dtype) for path, x in each] for each in leaves]
    for form in forms:
        if form != forms[0]:
            raise ValueError(
                "the results of steps are stacked, so those on batches of one size must have equal shapes and dtypes; "
                f"got {_described(forms[0])}, then {_described(form)}"
            )
    return rebuild(results[0], [stack([x for _, x in each]) for each in zip(*leaves, strict=True)])


def _described(form: list[Any]) -> str:
    return ", ".join(f"result{path}: {dtype} of shape {shape}" for path, shape, dtype in form) or "none"
