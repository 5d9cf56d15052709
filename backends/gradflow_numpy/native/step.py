"""A captured step on the CPU: `FastNumpyBackend.graph`.

The first call of a `NativeStep` does the step and traces it; from then on, a call does what `lower` has made of the
trace. What the step changes on the host is applied by a `HostDifference`, and the numbers that change from step to step
are in a row of memory, which each step gets from a table that is computed ahead.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any

import numpy as np

from gradflow.backend import Array, graphs, launch_counters
from gradflow.backend.graphs import MAX_AHEAD, Patience, RecordedStep, Rows, Source, taking_from
from gradflow_numpy.native.levels import address, root
from gradflow_numpy.native.lowering import Trace, lower
from gradflow_numpy.native.threads import Program

if TYPE_CHECKING:
    from gradflow_numpy.fast import FastNumpyBackend

ROW_WORDS = 4096
"""The largest number of numbers that change from step to step, in words of 64 bits."""
_COPY = np.ndarray.copy


class StepRows(Rows):
    """The numbers of the steps: those of the present one in a row, those of the next ones in a table."""

    def __init__(self) -> None:
        self.row = np.zeros(ROW_WORDS, np.int64)
        self.sources: list[Source] = []
        self._stops = [0]
        self._table = np.empty((0, 0), np.int64)
        self.address = self._width = self._known = self._used = 0
        self._checks: Counter[tuple[Callable[..., bool], tuple[Any, ...]]] = Counter()

    def before_launch(self, check: Callable[..., bool], *arguments: Any) -> None:
        self._checks[check, arguments] += 1

    def array(self, source: Source, numbers: Sequence[float]) -> Array:
        start, stop = self._stops[-1], self._stops[-1] + len(numbers)
        if stop > ROW_WORDS:
            raise NotImplementedError(f"takes more than {ROW_WORDS} numbers from the host")
        self.sources.append(source)
        self._stops.append(stop)
        part = self.row[start:stop].view(source.dtype)
        part[:] = numbers
        return part

    def hold(self) -> bool:
        """Whether the step still makes the same calls."""
        return self._check() and all(source.holds() for source in self.sources)

    def _check(self) -> bool:
        return all(check(n, *arguments) for (check, arguments), n in self._checks.items())

    def prepare(self) -> bool:
        """Make `address` that of the row of the next step; False if the step makes other calls."""
        if self._checks and not self._check():
            return False
        known, used = self._known, self._used
        is_current = known > 0
        if is_current:
            for source in self.sources:
                if not source.is_at(used):
                    is_current = False
                    break
        if not is_current or used == known:
            if not is_current and not self.hold():
                return False
            self._compute(2 * known if is_current else 1)
        return True

    def write(self) -> None:
        """Copy the row of the next step to `row`."""
        self.row[: self._stops[-1]] = self._table[self._used]

    def advance(self) -> None:
        """The step was done."""
        self._used += 1
        self.address += self._width

    def _compute(self, wanted: int) -> None:
        most = min([MAX_AHEAD, *[source.begin(self.sources) for source in self.sources]])
        n = max(min(wanted, most), 1)
        self._known = self._used = 0
        table = np.zeros((n, self._stops[-1]), np.int64)
        for source, start, stop in zip(self.sources, self._stops, self._stops[1:], strict=False):
            table[:, start:stop] = np.array(source.rows(n), source.dtype).view(np.int64).reshape(n, -1)
        self._table, self._known = table, n
        self.address, self._width = address(table), table.strides[0]


class NativeStep:
    """Replays a recorded step by native programs."""

    def __init__(self, backend: FastNumpyBackend, step: RecordedStep) -> None:
        self._backend, self._step = backend, step
        self._next: Callable[[NativeStep, Sequence[Array]], Any] = NativeStep._begin  # a method would be a cycle
        self._patience = Patience()
        self._results_of: Any = None
        self._difference: Any = None
        self._lowered: Any = None
        self._rows: Any = None
        self._results: Any = None
        self._words = self._noted = ""  # how the step is replayed, and what was last told of it
        self._renew_lock()
        _steps.add(self)

    def _renew_lock(self) -> None:
        self._lock = Lock()

    def __call__(self, *inputs: Array) -> Any:
        if launch_counters and get_ident() in launch_counters:  # which sees the calls of the backend
            return self._step.run(*inputs)
        with self._lock:
            return self._next(self, inputs)

    def _call_by_call(self, inputs: Sequence[Array]) -> Any:
        return self._step.run(*inputs)

    def _give_up(self, reason: str) -> None:
        """Make the calls one by one from now on, and free everything."""
        self._next = NativeStep._call_by_call
        self._tell(f", in Python, since it {reason}")
        self._free()

    def _by_other_kernels(self, inputs: Sequence[Array]) -> Any:
        """Make the calls one by one this time."""
        self._tell(", in Python, since it got an input that is not contiguous, or read-only: pass a copy")
        return self._step.run(*inputs)

    def _tell(self, words: str) -> None:
        self._noted = words
        self._step.note(words)

    def _free(self) -> None:
        self._rows = self._lowered = self._results = self._difference = None

    def _begin(self, inputs: Sequence[Array]) -> Any:
        """The first call."""
        self._results_of = self._step.parts()[1]
        return self._trace(inputs)

    def _trace(self, inputs: Sequence[Array]) -> Any:
        """Do the step, and trace it, if that is possible."""
        if not _are_contiguous(inputs):
            return self._by_other_kernels(inputs)
        self._free()
        self._next = NativeStep._trace
        step = self._step
        reason = step.obstacle() or step.trace_obstacle()
        if reason is not None:
            self._give_up(reason)
            return step.run(*inputs)
        places = [np.array(x) for x in inputs]
        rows, trace, before = StepRows(), Trace(), step.host_state()
        try:
            with taking_from(rows):
                results = step.trace(trace.make, *places)
        finally:
            try:
                self._difference = before.difference()
            except NotImplementedError as error:
                reason = str(error)
        if results is None:  # another thread records
            return step.run(*inputs)
        found = self._results_of(*map(np.array, results))
        try:
            if reason is not None:
                raise NotImplementedError(reason)
            self._lowered = lower(trace.calls, places, rows.row, results)
        except NotImplementedError as error:
            self._give_up(str(error))
            return found
        self._use(rows, results)
        return found

    def _use(self, rows: StepRows, results: Sequence[Array]) -> None:
        """Replay what was traced from now on."""
        parts = self._lowered.parts
        if not any(isinstance(part, Program) for part in parts):
            self._next = NativeStep._call_by_call
            return
        self._rows, self._results = rows, results
        self._flag = self._backend.nonfinite
        self._draws = any(source.dtype == "uint64" for source in rows.sources)
        self._next = NativeStep._replay
        names = self._lowered.names_in_python()
        listed = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
        self._words = f", with {listed} in Python" if names else ""
        self._tell(self._words)

    def _replay(self, inputs: Sequence[Array]) -> Any:
        if self._draws:
            with graphs.counter_lock:
                done = self._do(inputs)
        else:
            done = self._do(inputs)
        if done:
            self._patience.replays += 1
            if self._noted is not self._words:
                self._tell(self._words)
            return self._results_of(*map(_COPY, self._results))
        try:
            if not self._rows.hold() or self._backend.nonfinite is not self._flag:
                return self._step.run(*inputs) if self._is_in_vain() else self._trace(inputs)
        except NotImplementedError as error:
            self._give_up(str(error))
        return self._step.run(*inputs) if _are_contiguous(inputs) else self._by_other_kernels(inputs)

    def _do(self, inputs: Sequence[Array]) -> bool:
        """Do the step, or nothing if this trace cannot be replayed now; returns whether it was done."""
        rows, difference = self._rows, self._difference
        try:
            if self._backend.nonfinite is not self._flag or not (rows.prepare() and difference.applies()):
                return False
        except Exception:  # such as that of a schedule: the plain step raises it later
            return False
        given = self._given(inputs)
        if given is None:
            return False
        status = 0
        try:
            status = self._run(given, rows.address)
        finally:
            if not status:  # an interrupted step counts
                difference.apply()
                rows.advance()
        return not status

    def _given(self, inputs: Sequence[Array]) -> Sequence[Array] | None:
        """What programs get for the inputs: those that they cannot read where they are, in places of the trace.

        None for inputs that other kernels may take than those of the trace, or that the step may read after a change.
        """
        _, places, copied, kept = self._lowered
        for i, x in enumerate(inputs):
            if not x.flags.carray:
                return None
            owner = x if x.base is None else x.base
            if owner.__class__ is not np.ndarray or owner.base is not None:
                owner = root(x)
                if owner.__class__ is not np.ndarray:  # memory of another library may be anything
                    copied = {*copied, i}
            if id(owner) in kept:
                return None
        if not copied:
            return inputs
        given = [*inputs]
        for i in copied:
            if i == len(places):
                self._rows.write()
            elif places[i] is None:
                given[i] = inputs[i].copy()
            else:
                np.copyto(places[i], inputs[i])
                given[i] = places[i]
        return given

    def _run(self, given: Sequence[Array], row: int) -> int:
        """Do the parts; returns a number other than 0 if the step stopped before it changed anything it keeps."""
        for part in self._lowered.parts:
            if part.__class__ is Program:
                status: int = part.run(*given, row)
                if status:
                    return status
            else:
                try:
                    part.run()
                except Exception:
                    if part.may_raise:
                        return 1
                    raise
        return 0

    def _is_in_vain(self) -> bool:
        """Give up if traces become invalid too often."""
        if not self._patience.is_over():
            return False
        self._give_up("changes hyperparameters or settings too often")
        return True


def _are_contiguous(inputs: Sequence[Array]) -> bool:
    """Whether kernels take the inputs as they are, whatever else they take."""
    return all(x.flags.carray for x in inputs)


_steps: weakref.WeakSet[NativeStep] = weakref.WeakSet()


def _renew_locks() -> None:
    for step in _steps:
        step._renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)  # another thread of the parent may have held one
