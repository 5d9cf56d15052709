"""A run: check that all rows have equal losses, then let their processes take turns, round after round."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from benchmarks.peers.rows import REFERENCE, Row
from benchmarks.workloads import Workload

RTOL = {"float32": 1e-4, "bfloat16": 2e-2, "tf32": 5e-3, "autocast": 2e-2}
"""The largest relative difference of a row's losses from gradflow's, by dtype or precision."""
_ROOT = Path(__file__).parents[2]
_FORCED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ATEN_CPU_CAPABILITY")
"""Variables that change a library's choice of kernels; they are removed from the environment of every row."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class LeftOutError(Exception):
    """A row cannot be measured here, which is not an error; the message says why."""


class CrashError(Exception):
    """The process of a row crashed; the message is its last line on stderr, `trace` the last 40."""

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace


class Worker:
    """The process of a row, on these cores, with one thread per core. Its stderr goes to a file."""

    def __init__(self, row: Row, cores: list[int], stderr: IO[str]) -> None:
        threads = dict.fromkeys(_THREADS, str(len(cores)))
        inherited = {name: value for name, value in os.environ.items() if name not in _FORCED}
        self._stderr = stderr
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.peers.worker",
                row.where,
                *([str(row.checkout)] if row.checkout else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            cwd=_ROOT,
            env={**inherited, **threads, "GRADFLOW_FAST": "0", **row.environment},
        )
        self.ask("pin", cores)

    def ask(self, *command: Any) -> Any:
        """Return the result of a command. Raises LeftOutError if the row cannot run, CrashError if the worker ends."""
        pipes: Any = self._process
        try:
            pipes.stdin.write(json.dumps(command) + "\n")
            pipes.stdin.flush()
            line = pipes.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._stderr.seek(0)
            words = [line for line in self._stderr.read().splitlines() if line.strip()]
            status = f"it ended with status {self._process.returncode}"
            raise CrashError(words[-1] if words else status, "\n".join([*words[-40:], status]))
        answer = json.loads(line)
        if "left_out" in answer:
            raise LeftOutError(answer["left_out"])
        return answer["result"]

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self) -> None:
        """End the process. It ends by itself when its input is closed, unless it is in a step."""
        try:
            self._process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@dataclass
class Cell:
    """The measurements of a workload with an optimizer.

    turns: for each row, the median seconds of a step in each round; events: the same by the device's clock.
    facts: for each row, what is known about a step besides its time.
    memory: for each row, the peak bytes of training and the page faults per step.
    losses: for each row, the first losses.
    """

    workload: Workload
    optimizer: str
    turns: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    losses: dict[str, list[float] | None] = field(default_factory=dict)
    events: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.optimizer}, {self.workload.letter}"

    @property
    def task(self) -> dict[str, Any]:
        """The workload as JSON for a worker."""
        return asdict(replace(self.workload, optimizer=self.optimizer))


@dataclass
class Run:
    """The measurement of these rows.

    `left_out` says which rows or workloads are not measured, and why; `failed` lists failures. `blas` is the BLAS of
    gradflow's row, if known.
    """

    rows: dict[str, Row]
    cores: list[int]
    rounds: int
    seconds: float
    cells: list[Cell] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    blas: str = ""

    def __post_init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._order = random.Random(0)

    def measure(self, workloads: list[Workload], optimizers: list[str]) -> None:
        """Time the rows in turn."""
        with self._working(self.rows):
            for optimizer in optimizers:
                for workload in workloads:
                    self._measure(self._cell(workload, optimizer))

    def measure_apart(self, workload: Workload, optimizer: str) -> None:
        """Time one row after another, so that only one of them takes memory."""
        cell = self._cell(workload, optimizer)
        for name in self.rows:
            with self._working([name]):
                self._measure(cell)

    def measure_memory(self, workload: Workload, optimizer: str) -> None:
        """Measure the memory of each row in a new process, whose peak no other workload has raised."""
        cell = self._cell(workload, optimizer)
        for name in self.rows:
            with self._working([name]):
                found = self._ask(name, cell, "memory", cell.task)
                if found:
                    cell.memory[name] = found

    @contextmanager
    def _working(self, names: Iterable[str]) -> Iterator[None]:
        """Inside a `with`, run the processes of these rows, as far as they can be measured here."""
        with ExitStack() as stack:
            stack.callback(self._workers.clear)
            for name in names:
                row = self.rows[name]
                reason = row.why_not()
                if reason:
                    self.left_out[row.title] = reason
                else:
                    self._start(name, stack)
                    if name == REFERENCE and not self.blas:
                        self.blas = self._workers[name].ask("blas")
            yield

    def _start(self, name: str, stack: ExitStack) -> None:
        """Start the process of a row, which ends with the stack."""
        stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        stack.enter_context(stderr)
        self._workers[name] = Worker(self.rows[name], self.cores, stderr)
        stack.callback(self._workers[name].close)

    def _cell(self, workload: Workload, optimizer: str) -> Cell:
        """Add a new cell and print its name as progress."""
        self.cells.append(Cell(workload, optimizer))
        print(self.cells[-1], file=sys.stderr)
        return self.cells[-1]

    def _ask(self, name: str, cell: Cell, *command: Any) -> Any:
        """Return a worker's result; if it has none, return None and drop the worker."""
        if name not in self._workers:
            return None
        title = self.rows[name].title
        try:
            return self._workers[name].ask(*command)
        except LeftOutError as reason:
            self.left_out[title] = str(reason)
        except CrashError as words:
            self.failed.append(f"{title} crashed in {cell}: {words}")
        del self._workers[name]
        return None

    def _measure(self, cell: Cell) -> None:
        prepared = self._prepare(cell)
        cell.turns.update((name, []) for name in prepared)
        for _ in range(self.rounds):
            names = [name for name in prepared if name in self._workers]
            self._order.shuffle(names)
            for name in names:
                seconds = self._ask(name, cell, "turn", self.seconds)
                if seconds is None:
                    del cell.turns[name]
                else:
                    cell.turns[name].append(seconds)

    def _prepare(self, cell: Cell) -> list[str]:
        """Return the rows to time: those whose first losses equal gradflow's."""
        for name in list(self._workers):
            cell.losses[name] = self._ask(name, cell, "prepare", cell.task)
        ours = cell.losses.get(REFERENCE)
        found, rtol = [], RTOL[cell.workload.dtype]
        for name in list(self._workers):
            theirs = cell.losses[name]
            if theirs is None or equal(ours, theirs, rtol):
                found.append(name)
            else:
                self.failed.append(
                    f"{self.rows[name].title} is not timed in {cell}: its losses are {theirs}, gradflow's {ours}; "
                    f"they may differ by {rtol:g} of gradflow's"
                )
        return found


def equal(ours: list[float] | None, theirs: list[float], rtol: float = RTOL["float32"]) -> bool:
    """Return whether the losses of a row equal gradflow's up to this part of them; False if gradflow has none."""
    return ours is not None and all(
        math.isclose(a, b, rel_tol=0, abs_tol=rtol * abs(a)) for a, b in zip(ours, theirs, strict=True)
    )
