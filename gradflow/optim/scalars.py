"""The scalars of optimizer steps as sources of numbers for a graph: see `gradflow.backend.graphs`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from gradflow.backend import Array
from gradflow.backend.graphs import MAX_AHEAD, Rows, Source
from gradflow.optim import schedules
from gradflow.optim.cohorts import History, as_cohort, cohort_of
from gradflow.optim.flat import FlatArrays, Slice

if TYPE_CHECKING:
    from gradflow.optim.optimizer import Optimizer


_HISTORY = attrgetter("history")


class _Kernels:
    """Stands for the backend in `Optimizer.update`, which passes scalars to kernels as the last of their arguments."""

    def __init__(self, kernel_of: Callable[[str], Callable[..., None]]) -> None:
        self._kernel_of = kernel_of

    def __getattr__(self, name: str) -> Callable[..., None]:
        kernel = vars(self)[name] = self._kernel_of(name)  # for the next call
        return kernel


class UpdateScalars(Source):
    """The scalars that an optimizer's `update` passes to kernels.

    run: the slices that it updates.
    flat: their arrays.
    names: those of the state arrays that they need.
    """

    dtype = "float64"

    def __init__(self, optimizer: Optimizer, run: Sequence[Slice], flat: FlatArrays, names: tuple[str, ...]) -> None:
        self._optimizer_of = weakref.ref(optimizer)  # which may refer to this: see `AppliedSteps`
        self._run, self._flat, self._names = run, flat, names
        self._cohort = as_cohort(run)
        self._group, _, written = self._cohort.history
        self._written = written.union(names)
        self._call = optimizer._steps  # counts the calls of `step`: a captured step may make several
        self._blocks = optimizer._blocks
        self._numbers: list[float] = []
        numbers = self._numbers  # a reference to this object would be a cycle
        kernels: Any = _Kernels(lambda name: lambda *arguments, **options: numbers.extend(arguments[-1]))
        self._collector = flat._replace(backend=kernels)
        self._fixed = self._hyperparameters()
        self._checked = optimizer._unedited

    @property
    def _optimizer(self) -> Any:
        return self._optimizer_of()

    def _hyperparameters(self) -> list[dict[str, Any]]:
        groups = self._optimizer.param_groups
        return [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in groups]

    def begin(self, sources: Sequence[Source]) -> int:
        optimizer, first = self._optimizer, self._run[0]
        own = [x for x in sources if isinstance(x, UpdateScalars) and x._optimizer is optimizer]
        calls = list(dict.fromkeys(x._call for x in own))
        updates = [x for x in own if first in x._run]
        self._before, self._stride = calls.index(self._call), len(calls)
        self._updates_before, self._updates = updates.index(self), len(updates)
        self._steps, self._history = optimizer.steps, first.history
        self._begun = optimizer._unedited
        return MAX_AHEAD if schedules.is_known(optimizer.param_groups[self._group]["lr"]) else 1

    def rows(self, n: int) -> list[float]:
        _, steps, initialised = self._history
        optimizer = self._optimizer
        group = optimizer.param_groups[self._group]
        step, done = steps + self._updates_before + 1, self._steps + self._before
        lr = group["lr"] if group["lr"].__class__ is float else None
        first = self._updates_before == 0 and not initialised.issuperset(self._names)
        scalars = optimizer._scalars or self._collected
        found: list[float] = []
        for k in range(n):
            found += scalars(group, optimizer._rate(group, done + k * self._stride) if lr is None else lr, step, first)
            step, first = step + self._updates, False
        return found

    def rows_from(self, steps: int, histories: Mapping[Slice, Any], count: int) -> list[tuple[float, ...]]:
        """The rows of `count` steps from an earlier state: so many steps, and these histories of the slices."""
        _, done, initialised = histories[self._run[0]]
        group, first = self._optimizer.param_groups[self._group], not initialised.issuperset(self._names)
        rate = self._optimizer._rate
        return [self.numbers(group, rate(group, steps + k), done + k + 1, first and not k) for k in range(count)]

    def numbers(self, group: Mapping[str, Any], lr: float, step: int, first: bool) -> tuple[float, ...]:
        """The scalars of all kernels in an update."""
        return tuple(map(float, (self._optimizer._scalars or self._collected)(group, lr, step, first)))

    def _collected(self, group: Mapping[str, Any], lr: float, step: int, first: bool) -> list[float]:
        """Those that `update` passes; valid until the next call."""
        self._numbers.clear()
        self._optimizer.update(self._collector, group, lr, step, first)
        return self._numbers

    def update(self, rows: Rows, group: Mapping[str, Any], lr: float, step: int, first: bool) -> None:
        """`Optimizer.update`, whose kernels read their scalars from a row."""
        row = rows.array(self, self.numbers(group, lr, step, first))
        start = 0

        def call(name: str, *arguments: Any, **options: Any) -> None:
            nonlocal start
            *arrays, scalars = arguments
            part: Array = row[start : start + len(scalars)]
            start += len(scalars)
            getattr(self._flat.backend, name)(*arrays, part, **options, **rows.options)

        kernels: Any = _Kernels(lambda name: partial(call, name))
        self._optimizer.update(self._flat._replace(backend=kernels), group, lr, step, first)

    def is_at(self, k: int) -> bool:
        optimizer = self._optimizer_of()
        if optimizer._unedited is not self._begun or optimizer.steps != self._steps + k * self._stride:  # type: ignore[union-attr]
            return False
        group, steps, initialised = self._history
        return self._common_history() == (group, steps + k * self._updates, self._written if k else initialised)

    def holds(self) -> bool:
        optimizer: Any = self._optimizer_of()
        if optimizer._unedited is not self._checked:
            if optimizer._blocks is not self._blocks or self._hyperparameters() != self._fixed:
                return False
            self._checked = optimizer._unedited
        history = self._common_history()
        return history is not None and history[2].union(self._names) == self._written

    def _common_history(self) -> History | None:
        """The history of all slices of the run; None if they differ."""
        if not self._cohort.size:  # for example, after `load_state_dict`
            cohort = cohort_of(self._run)
            if cohort is None:
                histories = [*map(_HISTORY, self._run)]
                return histories[0] if histories.count(histories[0]) == len(histories) else None
            self._cohort = cohort
        return self._cohort.history
