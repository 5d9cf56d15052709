"""A run that goes on: a row that crashes, hangs or computes something else is left out of one workload only."""

from __future__ import annotations

import re
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks.peers.rows import Row
from benchmarks.peers.run import RTOL, Cell, CrashError, LeftOutError, Run, equal
from benchmarks.workloads import Workload
from gradflow.benchmarking.measuring import LEAST_ROUNDS

_START = time.perf_counter()
SPARE = 15.0
"""Seconds that are kept for each row that is not ready yet, and those that a turn may take longer than it should."""


def progress(text: str) -> None:
    """Print a line with the seconds since the start of the command."""
    print(f"{time.perf_counter() - _START:6.1f} s  {text}", file=sys.stderr, flush=True)


def without_paths(text: str) -> str:
    """A traceback without folders, which would identify the machine."""
    return re.sub(r"(?<![\w.])/(?:[^\s/\"':]+/)*", "", text)


def tolerance(workload: Workload) -> float:
    """Return by how much the losses of a workload's rows may differ, relative to them."""
    return RTOL[workload.precision or workload.dtype]


def agreeing(losses: dict[str, list[float]], rtol: float) -> list[str]:
    """Return the rows whose losses are equal: if not all are, most of them; the first ones of as many.

    >>> agreeing({"gradflow": [2.0], "torch": [1.0], "jax": [1.0]}, rtol=1e-4)
    ['torch', 'jax']
    """
    groups = [[name for name, theirs in losses.items() if equal(ours, theirs, rtol)] for ours in losses.values()]
    return max(groups, key=len, default=[])


class GpuRun(Run):
    """Runs the workloads one after another; each row has `limit` seconds to compile, and the run `budget` in all.

    Each workload has a share of the time, so that a row that hangs in one takes no time from the next; the first one,
    in which the rows import their libraries, has two. `left_out` and `failed` name rows and workloads; `traces` has the
    last lines that a crashed row wrote.
    """

    def __init__(
        self, rows: dict[str, Row], cores: list[int], rounds: int, seconds: float, limit: float, budget: float
    ) -> None:
        super().__init__(rows, cores, rounds, seconds)
        self.limit, self._end = limit, _START + budget
        self._until = self._end  # for the present workload
        self.traces: dict[str, str] = {}

    def measure_each(self, workloads: list[Workload], after: Callable[[], None]) -> None:
        """Measure the workloads; call `after` whenever more is known."""
        self._after = after
        with ExitStack() as stack:
            stack.callback(self._workers.clear)
            for i, workload in enumerate(workloads):
                shares = 2 if i == 0 else 1
                self._until = self._end - self._left() * (1 - shares / (len(workloads) - i - 1 + shares))
                if self._left() < SPARE:
                    self.left_out[f"workload {workload.letter}"] = "no time was left"
                    continue
                for name, row in self.rows.items():
                    reason = row.why_not()
                    if reason:
                        self.left_out[row.title] = reason
                    elif name not in self._workers:
                        self._start(name, stack)
                progress(f"{workload.letter}: {workload.size}, batch {workload.batch}, {workload.dtype}")
                self._measure(self._cell(workload, workload.optimizer))

    def _measure(self, cell: Cell) -> None:
        prepared = self._prepare(cell)
        cell.turns.update((name, []) for name in prepared)
        self._after()
        for done in range(self.rounds):
            order = self._order.sample(prepared, len(prepared))
            end = self._until if done >= LEAST_ROUNDS else self._end
            if self._left(end) < 2 * self.seconds * len(order):
                self.left_out[f"rounds of {cell}"] = "no time was left"
                break
            for name in order:
                found = self._ask(name, cell, SPARE + self.seconds, "turn", self.seconds)
                if found is None:
                    prepared.remove(name)
                    del cell.turns[name]
                else:
                    by_host, by_events = found
                    cell.turns[name].append(by_host)
                    if by_events is not None:
                        cell.events.setdefault(name, []).append(by_events)
            self._after()
        self._ask_facts(prepared, cell)
        self._after()
        medians = {name: statistics.median(turns) for name, turns in cell.turns.items() if turns}
        progress("  " + ", ".join(f"{name} {1e6 * median:.1f} us" for name, median in medians.items()))

    def _ask_facts(self, names: list[str], cell: Cell) -> None:
        """Ask what else is known about a step. It comes last: profilers may slow down what follows."""
        for name in names:
            if self._left() > 1:
                facts = self._ask(name, cell, SPARE, "facts")
                if facts:
                    cell.facts[name] = facts

    def _prepare(self, cell: Cell) -> list[str]:
        """Return the rows to time: those with equal first losses."""
        names = [name for name in self.rows if name in self._workers]
        for i, name in enumerate(names):
            start = time.perf_counter()
            kept = 2 * self.seconds * self.rounds * len(names) + SPARE * (len(names) - i - 1)
            losses = self._ask(name, cell, max(self._left(self._until) - kept, SPARE), "prepare", cell.task)
            if losses is not None:
                progress(f"  {self.rows[name].title} is ready after {time.perf_counter() - start:.1f} s: {losses}")
                cell.losses[name] = losses
        rtol = tolerance(cell.workload)
        found = agreeing(cell.losses, rtol)
        for name in [name for name in cell.losses if name not in found]:
            others = f"those of {self.rows[found[0]].title} {cell.losses[found[0]]}" if found else "no others agree"
            self.failed.append(
                f"{self.rows[name].title} is not timed in {cell}: its losses are {cell.losses[name]}, {others}; "
                f"they may differ by {rtol:g} of them"
            )
            progress(f"  {self.failed[-1]}")
        return found

    def _left(self, end: float | None = None) -> float:
        """Return the seconds until a time, or until the end."""
        return (self._end if end is None else end) - time.perf_counter()

    def _ask(self, name: str, cell: Cell, limit: float, *command: Any) -> Any:  # type: ignore[override]
        """Return a worker's result; if it has none within these seconds, return None and end the worker."""
        worker, what = self._workers[name], f"{self.rows[name].title} in {cell}"
        late = threading.Event()

        def end() -> None:
            late.set()  # before the kill, whose end is awaited below
            worker.kill()

        timer = threading.Timer(max(min(limit, self.limit, self._left()), 1), end)
        timer.start()
        try:
            return worker.ask(*command)
        except LeftOutError as why:
            self.left_out[what] = str(why)
            progress(f"  left out: {what}: {why}")
        except CrashError as crash:
            reason = "it took too long" if late.is_set() else without_paths(str(crash))
            self.failed.append(f"{what}: {reason}")
            self.traces[what] = without_paths(crash.trace)
            progress(f"  {self.failed[-1]}")
        finally:
            timer.cancel()
        worker.close()
        del self._workers[name]
        return None
