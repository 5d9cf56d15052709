"""The memory and the time of training steps. The devices take turns, so that a disturbance hits all alike."""

from __future__ import annotations

import gc
import itertools
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gradflow as gf
from gradflow.backend import Backend
from gradflow.benchmarking.training import Task, Training
from gradflow.nn.summaries import size
from gradflow.text import one_line

MODES = ("plain", "captured")
"""The ways to take a step."""
_TURN, _MOST_STEPS = 0.03, 1000  # seconds of steps that are timed together, and the most of them
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 50
_WARM_UP = 5  # steps; a captured one is recorded twice, then replayed
_FOR_MEMORY = 0.4  # of all seconds
_PAUSE = 0.01


@dataclass
class Cell:
    """A batch size on a device.

    memory: the bytes that model, optimizer and steps take on the device, at their peak (None: unknown).
    losses: of the first two steps. seconds: of a step, roughly.
    times: for each of `MODES`, the seconds of a step in each round. steps: how many of them are timed together.
    why: why a mode is not measured; that of "plain" is the reason for both. failed: whether it is an error.
    """

    batch: int
    device: str
    memory: int | None = None
    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    times: dict[str, list[float]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    failed: bool = False


class Measurement:
    """A task, measured on devices at batch sizes. `cells` is what is known so far.

    seconds: what it takes, about; compiling kernels and loading libraries before it do not count.
    """

    def __init__(self, task: Task, devices: Sequence[str], batches: Sequence[int], seconds: float) -> None:
        self.task, self.devices, self.seconds = task, devices, seconds
        self.cells = [Cell(batch, device) for batch in sorted(set(batches)) for device in devices]
        self._sizes = [list(cells) for _, cells in itertools.groupby(self.cells, key=lambda cell: cell.batch)]
        self._begin = time.monotonic()
        self._stopped = False

    def run(self) -> Iterator[list[Cell]]:
        """Measure the memory of all sizes, then yield the cells of each size when they are timed.

        Memory is measured from the smallest size to the largest, since the peak that a backend counts never falls, and
        in another thread, since CuPy counts in the thread that began to, where an allocation takes a microsecond more.
        """
        precision = gf.get_matmul_precision()
        gf.set_matmul_precision("tf32" if self.task.dtype == "tf32" else "highest")
        try:
            yield from self._run()
        finally:
            gf.set_matmul_precision(precision)

    def _run(self) -> Iterator[list[Cell]]:
        with ThreadPoolExecutor(1) as thread:
            try:
                thread.submit(self._measure_memory).result()
            finally:
                self._stopped = True
        for i, cells in enumerate(self._sizes):
            now = time.monotonic()
            share = (self._begin + self.seconds - now) / (len(self._sizes) - i)
            least = sum(cell.seconds for cell in cells) * len(MODES) * (_WARM_UP + 2 * _LEAST_ROUNDS)
            if i and now + least > self._begin + self.seconds:
                self._leave_out(cells)
            self._measure_times([cell for cell in cells if "plain" not in cell.why], now + share)
            yield cells

    def _measure_memory(self) -> None:
        _ = self.task.model  # drawn now, since that takes memory
        for device in self.devices:
            with _noting(next(cell for cell in self.cells if cell.device == device), "plain"):
                tiny = Task((2, 2, self.task.layers[-1]), self.task.dtype, self.task.optimizer, self.task.activation)
                gf.get_backend(device).prepare()
                training, data = Training(tiny, device), tiny.data(device, 2)
                for mode in MODES:  # compile kernels, load libraries
                    _take(getattr(training, mode), data, _WARM_UP)
                gf.memory_stats(device)  # CuPy begins to count
        self._begin, last = time.monotonic(), 0.0
        for cells in self._sizes:
            begin = time.monotonic()
            if last and begin + last * 2 - self._begin > _FOR_MEMORY * self.seconds:
                self._leave_out(cells)
            for cell in cells:
                if not self._stopped and "plain" not in cell.why:
                    self._measure_memory_of(cell)
            last = time.monotonic() - begin

    def _leave_out(self, cells: list[Cell]) -> None:
        for cell in cells:
            cell.why.setdefault("plain", f"there was no time left of {self.seconds:g} seconds: --seconds gives more")

    def _measure_memory_of(self, cell: Cell) -> None:
        backend, least = gf.get_backend(cell.device), self.task.least_bytes(cell.batch)
        free = backend.available_memory()
        if free is not None and least > free:
            cell.why["plain"] = f"out of memory: it needs more than {size(least)}, and {size(free)} are free"
            return
        with _noting(cell, "plain"):
            data = self.task.data(cell.device, cell.batch)
            with _peak(cell, backend):
                training = Training(self.task, cell.device)
                cell.losses = tuple(training.plain(*data[i % len(data)]).item() for i in range(2))
                cell.seconds = _take(training.plain, data, 1)
                with _noting(cell, "captured"):
                    _take(training.captured, data, _WARM_UP)
                    if training.captured.status != "replaying":
                        cell.why["captured"] = training.captured.status

    def _measure_times(self, cells: list[Cell], until: float) -> None:
        turns = []
        for cell in cells:
            with _noting(cell, "plain"):
                data, training = self.task.data(cell.device, cell.batch), Training(self.task, cell.device)
                for mode in MODES:
                    if mode not in cell.why:
                        with _noting(cell, mode):
                            turns.append(_Turn(cell, mode, training, data))
        order = random.Random(0)
        for i in range(_MOST_ROUNDS):
            if time.monotonic() > (until if i >= _LEAST_ROUNDS else self._begin + self.seconds) and i:
                break
            order.shuffle(turns)
            for turn in list(turns):
                with _noting(turn.cell, turn.mode):
                    seconds = turn()
                    turn.cell.times.setdefault(turn.mode, []).append(seconds)
                if turn.mode in turn.cell.why:
                    turns.remove(turn)


class _Turn:
    """Steps of a cell in one mode, timed together: as many as take about `_TURN` seconds."""

    def __init__(self, cell: Cell, mode: str, training: Training, data: list[Any]) -> None:
        self.cell, self.mode = cell, mode
        self._training, self._data = training, data
        self._step: Callable[..., Any] = getattr(training, mode)
        training.restore()
        _take(self._step, data, _WARM_UP)
        self._count = max(1, min(_MOST_STEPS, round(_TURN / _take(self._step, data, 2))))
        cell.steps[mode] = self._count

    def __call__(self) -> float:
        _rest()
        self._training.restore()
        _take(self._step, self._data, 1)
        gc.disable()
        try:
            return _take(self._step, self._data, self._count)
        finally:
            gc.enable()


def _take(step: Callable[..., Any], data: list[Any], count: int) -> float:
    """Take steps and wait for the device; return the seconds of one."""
    device = data[0][0].device
    gf.synchronize(device)
    begin = time.perf_counter()
    for batch in itertools.islice(itertools.cycle(data), count):
        step(*batch)
    gf.synchronize(device)
    return (time.perf_counter() - begin) / count


def _rest() -> None:
    """Sleep until the threads of the turn before sleep too: those of a BLAS spin for a while after a product."""
    for _ in range(30):
        before = time.process_time()
        time.sleep(_PAUSE)
        if time.process_time() - before < _PAUSE / 10:
            return


@contextmanager
def _peak(cell: Cell, backend: Backend) -> Iterator[None]:
    """Inside a `with`, measure how much memory is taken: of NumPy's arrays on the CPU, else what the backend counts."""
    gc.collect()
    backend.free_memory()
    on_cpu = backend.num_threads() > 0 and not tracemalloc.is_tracing()
    if on_cpu:  # the memory of the process is that of other devices, too
        tracemalloc.start()
    before = backend.memory_stats().current
    try:
        yield
        backend.synchronize()
        peak = tracemalloc.get_traced_memory()[1] if on_cpu else backend.memory_stats().peak
    finally:
        if on_cpu:
            tracemalloc.stop()
    if peak is not None:
        cell.memory = peak if on_cpu else max(peak - before, 0)


@contextmanager
def _noting(cell: Cell, mode: str) -> Iterator[None]:
    """Inside a `with`, an error is why the cell is not measured in this mode; the measurement goes on."""
    try:
        yield
    except MemoryError:
        cell.why[mode] = "out of memory"
    except Exception as error:
        cell.why[mode], cell.failed = one_line(error), True
    else:
        return
    gc.collect()  # now that the frames of the error are gone
    gf.get_backend(cell.device).free_memory()
