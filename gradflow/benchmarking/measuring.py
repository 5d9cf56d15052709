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
LEAST_ROUNDS = 3
"""The rounds that a comparison needs."""
_MOST_ROUNDS = 50
_WARM_UP = 5  # steps; a captured one is recorded twice, then replayed
_FIRST_BATCH, _GROWTH = 64, 4  # that a step is taken with before larger ones, and how much larger each may be
_STEPS_FOR_MEMORY = 3 + _WARM_UP
_STEPS_FOR_TIME = len(MODES) * (_WARM_UP + 2 + 2 * LEAST_ROUNDS)
_PAUSE = 0.01


@dataclass
class Cell:
    """A batch size on a device.

    memory: the bytes that model, optimizer and steps take on the device, at their peak (None: unknown).
    losses: of the first two steps. seconds: of a step, roughly.
    times: for each of `MODES`, the seconds of a step in each round. steps: how many are timed together, in the end.
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

    seconds: what it takes, about; compiling kernels and loading libraries before it do not count. A size whose steps
    are too slow for that is left out. progress: gets a line on what is done now (default: none is told).
    """

    def __init__(
        self,
        task: Task,
        devices: Sequence[str],
        batches: Sequence[int],
        seconds: float,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.task, self.devices, self.seconds, self._progress = task, devices, seconds, progress
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
            now, least = time.monotonic(), [self._least(cells) for cells in self._sizes[i:]]
            left = self._begin + self.seconds - now
            if least[0] > left:
                self._leave_out(cells, max(cell.seconds for cell in cells))
            self._progress(f"batch {cells[0].batch}, size {i + 1} of {len(self._sizes)}")
            share = least[0] + max(0.0, left - sum(least)) / len(least)
            most = self._begin + self.seconds - sum(least[1:])
            self._measure_times([cell for cell in cells if "plain" not in cell.why], now + min(share, left), most)
            yield cells

    def _least(self, cells: list[Cell]) -> float:
        return _STEPS_FOR_TIME * sum(cell.seconds for cell in cells if "plain" not in cell.why)

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
        self._begin = time.monotonic()
        steps: dict[str, tuple[int, float]] = {}  # by device: the last batch size, and the seconds of a step
        for cells in self._sizes:
            self._progress(f"memory of batch {cells[0].batch}")
            for cell in cells:
                if not self._stopped and "plain" not in cell.why:
                    self._measure_memory_of(cell, steps)

    def _leave_out(self, cells: Sequence[Cell], seconds: float) -> None:
        needed = f" for steps of about {float(f'{seconds:.2g}'):g} s" if seconds else ""
        why = f"no time was left of --seconds {self.seconds:g}{needed}"
        for cell in cells:
            cell.why.setdefault("plain", why)

    def _too_slow(self, cell: Cell, steps: dict[str, tuple[int, float]]) -> bool:
        """Whether there is no time for a cell. Takes steps of smaller batches, so that none is taken that is too slow.

        The time of a step grows at most like the batch. Half of the time that is left is for the size's times.
        """
        batch, seconds = steps.get(cell.device, (0, 0.0))
        while True:
            following = min(max(_FIRST_BATCH, batch * _GROWTH), cell.batch)
            expected = seconds * following / batch if batch else 0.0
            left = self._begin + self.seconds - time.monotonic()
            if expected * _STEPS_FOR_MEMORY > left / 2 or left <= 0:
                self._leave_out([cell], seconds * cell.batch / batch if batch else 0.0)
                return True
            if following == cell.batch or self._stopped:
                return False
            batch, data = following, self.task.data(cell.device, following)
            seconds = _take(Training(self.task, cell.device).plain, data, 1)

    def _measure_memory_of(self, cell: Cell, steps: dict[str, tuple[int, float]]) -> None:
        backend, least = gf.get_backend(cell.device), self.task.least_bytes(cell.batch)
        free = backend.available_memory()
        if free is not None and least > free:
            cell.why["plain"] = f"out of memory: it needs more than {size(least)}, and {size(free)} are free"
            return
        with _noting(cell, "plain"):
            if self._too_slow(cell, steps):
                return
            data = self.task.data(cell.device, cell.batch)
            with _peak(cell, backend):
                training = Training(self.task, cell.device)
                cell.losses = tuple(training.plain(*data[i % len(data)]).item() for i in range(2))
                cell.seconds = _take(training.plain, data, 1)
                steps[cell.device] = cell.batch, cell.seconds
                with _noting(cell, "captured"):
                    _take(training.captured, data, _WARM_UP)
                    if training.captured.status.split(",")[0] != "replaying":
                        cell.why["captured"] = training.captured.status

    def _measure_times(self, cells: list[Cell], until: float, most: float) -> None:
        """Measure until a time, but the least number of rounds if they end until `most`."""
        turns = []
        for cell in cells:
            with _noting(cell, "plain"):
                data, training = self.task.data(cell.device, cell.batch), Training(self.task, cell.device)
                for mode in MODES:
                    if mode not in cell.why:
                        with _noting(cell, mode):
                            turns.append(_Turn(cell, mode, training, data))
        order, last = random.Random(0), 0.0
        for i in range(_MOST_ROUNDS):
            begin = time.monotonic()
            if i and begin + last > (until if i >= LEAST_ROUNDS else most):
                break
            order.shuffle(turns)
            for turn in list(turns):
                with _noting(turn.cell, turn.mode):
                    seconds = turn()
                    turn.cell.times.setdefault(turn.mode, []).append(seconds)
                if turn.mode in turn.cell.why:
                    turns.remove(turn)
            last = time.monotonic() - begin


class _Turn:
    """Steps of a cell in one mode, timed together: as many as take about `_TURN` seconds."""

    def __init__(self, cell: Cell, mode: str, training: Training, data: list[Any]) -> None:
        self.cell, self.mode = cell, mode
        self._training, self._data = training, data
        self._step: Callable[..., Any] = getattr(training, mode)
        training.restore()
        _take(self._step, data, _WARM_UP)
        self._count = _MOST_STEPS
        self._take_fewer(_take(self._step, data, 2))

    def _take_fewer(self, seconds: float) -> None:
        """Take as many steps from now on as fit if one takes so long: no more than before."""
        self._count = max(1, min(self._count, round(_TURN / seconds)))
        self.cell.steps[self.mode] = self._count

    def __call__(self) -> float:
        _rest()
        self._training.restore()
        _take(self._step, self._data, 1)
        gc.disable()
        try:
            seconds = _take(self._step, self._data, self._count)
        finally:
            gc.enable()
        self._take_fewer(seconds)
        return seconds


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
    for _ in range(10):
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
