"""`AppliedSteps`: an optimizer's numbers for steps that the device may skip, which a `GradScaler` asks for.

A step with a gradient that is not finite is skipped by the optimizer's kernel, which reads a flag on the device. How
many steps were applied is therefore known to the device alone. The scalars of the next steps (rates, bias corrections)
lie there in a table, whose row is the number of steps applied since the table was made. `Optimizer.steps` and states
read that number, which waits for the device.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from gradflow.backend import Array, Backend
from gradflow.backend.graphs import Rows, Source, current_rows, taking_from
from gradflow.interception import unrecorded
from gradflow.optim import schedules
from gradflow.optim.flat import Slice
from gradflow.optim.optimizer import Optimizer
from gradflow.optim.scalars import UpdateScalars

AHEAD = 256
"""The number of steps in a table. After as many, the number of applied steps is read, which waits for the device."""


class _Tables:
    """The numbers of the next steps that update the slices `ready`: for each update, its source and its table."""

    def __init__(self, ready: list[Slice]) -> None:
        self.ready = ready
        self.sources: list[UpdateScalars] = []
        self.arrays: list[Array] = []


class AppliedSteps(Rows):
    """The scalars of an optimizer whose steps the device may skip.

    skip: a 0-d int32 array on the device; while it is not 0, steps change nothing.
    """

    def __init__(self, optimizer: Optimizer, backend: Backend, skip: Array) -> None:
        self.options = {"skip": skip}
        self._backend = backend
        self._optimizer = weakref.ref(optimizer)  # which refers to this
        self._applied = backend.zeros((1,), dtype=backend.dtypes["int64"])  # since the tables were filled
        self._tried = 0  # steps, ever
        self._tried_before = 0  # the tables were filled
        self._unsettled = False
        self._tables = _Tables([])
        self._used = 0
        self._checked: Any = None
        self._base: tuple[int, dict[Slice, Any]] = (0, {})
        self._length = 0

    def step(self, ready: list[Slice]) -> None:
        """Do a step of the optimizer, or none if `skip` is not 0. ready: the slices that it will update."""
        optimizer: Any = self._optimizer()
        tables = self._tables
        if tables.ready != ready or not self._prepare(1, tables):
            tables = _Tables(ready)
            self._prepare(1, tables)
        rows = current_rows()
        self.captures = rows is not None and rows.captures
        if rows is not None:
            rows.before_launch(self._prepare, tables)
        for block in optimizer._blocks:
            if block.half is not None:
                block._update_half()  # which a step that is skipped does not write
        self._used, optimizer._unsettled = 0, None
        try:
            with taking_from(self):
                optimizer.step()
            self._tried += 1
            self._backend.count_step(self._applied, self.options["skip"])
        finally:
            optimizer._unsettled = self.settle

    def _prepare(self, steps: int, tables: _Tables) -> bool:
        """Make the tables have the numbers of so many steps from here on; False if they are those of other updates.

        Raises NotImplementedError if the numbers of so many steps are not known. Waits for the device where the
        numbers cannot be computed without the count of applied steps. None of it is part of a step that is traced:
        this is also called before each replay.
        """
        with unrecorded():
            return self._is_prepared(steps, tables)

    def _is_prepared(self, steps: int, tables: _Tables) -> bool:
        optimizer: Any = self._optimizer()
        optimizer._follow_edits()
        if not all(source.holds() for source in tables.sources):
            return False
        is_new = optimizer._unedited is not self._checked
        if is_new:
            rates = [group["lr"] for group in optimizer.param_groups]
            self._checked, self._length = optimizer._unedited, AHEAD if all(map(schedules.is_known, rates)) else 1
        if steps > self._length:
            raise NotImplementedError(
                f"needs the numbers of {steps} steps ahead, of which a GradScaler knows {self._length}: at most "
                f"{AHEAD}, and one with a rate by a function of the user's"
            )
        if self._unsettled and (tables is not self._tables or self._tried - self._tried_before + steps > self._length):
            self.settle()
        if not self._unsettled:
            optimizer._settle()  # steps of another scaler
            histories = {s: s.history for block in optimizer._blocks for s in block.slices}
            self._base, self._tried_before, is_new = (optimizer._steps, histories), self._tried, True
            self._backend.setitem(self._applied, ..., 0)
        self._tables, self._unsettled, optimizer._unsettled = tables, True, self.settle
        if is_new:
            for source, array in zip(tables.sources, tables.arrays, strict=True):
                self._fill(source, array)
        return True

    def _fill(self, source: UpdateScalars, array: Array) -> None:
        rows = source.rows_from(*self._base, self._length)
        self._backend.setitem(array, (slice(0, len(rows)),), self._backend.asarray(rows, dtype=array.dtype))

    def array(self, source: Source, numbers: Sequence[float]) -> Array:
        assert isinstance(source, UpdateScalars)
        F, tables, i = self._backend, self._tables, self._used
        self._used += 1
        if i == len(tables.arrays):
            tables.sources.append(source)
            with unrecorded():
                tables.arrays.append(F.zeros((AHEAD, len(numbers)), dtype=F.dtypes["float64"]))
                self._fill(source, tables.arrays[i])
        return F.reshape(F.getitem(tables.arrays[i], self._applied), (-1,))

    def settle(self) -> None:
        """Set the step counts of the optimizer to those of the applied steps. Waits for the device."""
        optimizer: Any = self._optimizer()
        self._unsettled, optimizer._unsettled = False, None
        applied = int(self._backend.to_host(self._applied)[0])
        steps, histories = self._base
        optimizer._steps = steps + applied
        updated = set(self._tables.ready)
        for block in optimizer._blocks:
            for s in block.slices:
                if s in histories and s in updated:
                    _, done, initialised = histories[s]
                    block.set_history(s, done + applied, s.history[2] if applied else initialised)
