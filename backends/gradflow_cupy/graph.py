"""A captured step as one CUDA graph: `CupyBackend.graph`.

The first call of a `StepGraph` makes the calls of the step in a stream and a memory pool of its own, as the capture
will: this compiles kernels and chooses the algorithms of products. The second call captures them. From then on, a call
copies the inputs to their places, launches the graph, and returns copies of its results. What the step changes on the
host is applied by a `HostDifference`.

The numbers that change from step to step lie in a row on the device, which the first kernel of the graph takes from a
table there. The host fills the table for 1, 2, 4 and so on steps ahead, and again when something else has changed them.

A graph keeps everything alive that it uses: its pool, the places of inputs and results, and the memory that kernels
of its stream share.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from gradflow.backend import Array, graphs, launch_counters, launched
from gradflow.backend.graphs import MAX_AHEAD, HostDifference, Patience, RecordedStep, Rows, Source, taking_from
from gradflow_cupy.kernels import launch

if TYPE_CHECKING:
    from gradflow_cupy.backend import CupyBackend

ROW_WORDS = 4096
"""The largest number of numbers that change from step to step, in words of 64 bits."""
TABLE_WORDS = 1 << 17
"""The size of the table."""


class FirstRows(Rows):
    """The rows of a step that is not captured: the numbers are copied to the device one after another."""

    def __init__(self, backend: CupyBackend) -> None:
        self._backend = backend
        self._steps = 0  # how many the graph is of
        self._checks: Counter[tuple[Callable[..., bool], tuple[Any, ...]]] = Counter()

    def next_step(self) -> None:
        self._steps += 1

    def before_launch(self, check: Callable[..., bool], *arguments: Any) -> None:
        if self._steps == 1:
            self._checks[check, arguments] += 1

    def check(self) -> bool:
        """Whether a graph of these calls can be launched now, as far as `before_launch` says."""
        return all(check(self._steps * count, *arguments) for (check, arguments), count in self._checks.items())

    def array(self, source: Source, numbers: Sequence[float]) -> Array:
        return self._backend.from_host(self._backend.numpy.asarray(numbers, dtype=source.dtype))


class GraphRows(FirstRows):
    """The table and the row of a graph, and the sources of the numbers in it.

    side: the stream of the work `beside`.
    """

    captures = True

    def __init__(self, backend: CupyBackend, side: Any) -> None:
        super().__init__(backend)
        word = backend.dtypes["int64"]
        self._table = backend.cupy.empty((TABLE_WORDS,), dtype=word)  # not zeros: other streams write to it
        self._row = backend.cupy.empty((ROW_WORDS,), dtype=word)
        self._side = side
        self._kept: list[Array] = []  # what work in the other stream may still use
        self._sources: list[Source] = []
        self._parts: list[tuple[int, Array]] = []  # of each source, the end of its numbers in a row, and their array
        self._given = 0  # how many sources the present step has asked for
        self._filled = self._used = self._prepared = 0

    def next_step(self) -> None:
        """Begin a step in the graph: its numbers come from the next row."""
        super().next_step()
        self._given = 0
        launch("next_row", None, (1,), (32,), self._table, self._row)

    def array(self, source: Source, numbers: Sequence[float]) -> Array:
        if self._given == len(self._sources):
            start = self._parts[-1][0] if self._parts else 0
            stop = start + len(numbers)
            if stop > ROW_WORDS:
                raise NotImplementedError(f"takes more than {ROW_WORDS} numbers from the host")
            self._sources.append(source)
            self._parts.append((stop, self._row[start:stop].view(self._backend.dtypes[source.dtype])))
        self._given += 1
        return self._parts[self._given - 1][1]

    @contextlib.contextmanager
    def beside(self, *arrays: Array) -> Iterator[None]:
        self._side.wait_event(self._backend.cupy.cuda.get_current_stream().record())
        with self._side:
            yield
        self._kept += arrays

    def join(self) -> None:
        if self._kept:
            self._backend.cupy.cuda.get_current_stream().wait_event(self._side.record())
            self._kept.clear()

    def hold(self) -> bool:
        """Whether the graph still makes the calls of the step."""
        return all(source.holds() for source in self._sources)

    def prepare(self) -> None:
        """Make the table have the rows of the next launch. Raises NotImplementedError if they cannot be computed.

        Until `advance`, the table counts as empty: after an interrupt, it is unknown whether the graph takes a row.
        """
        is_current = not self._filled or all(source.is_at(self._used) for source in self._sources)
        if self._used + self._steps > self._filled or not is_current:
            self._send(max(2 * self._filled, self._steps) if is_current else self._steps)
        self._filled, self._prepared = 0, self._filled

    def _send(self, wanted: int) -> None:
        numpy, width = self._backend.numpy, self._parts[-1][0] if self._parts else 0
        ahead = [source.begin(self._sources) for source in self._sources]
        most = min(MAX_AHEAD, (TABLE_WORDS - 2) // max(width, 1), *ahead)
        if most < self._steps:
            raise NotImplementedError(
                f"takes numbers from the host that are known for {most} of its {self._steps} steps, such as a rate by "
                "a function of the user's"
            )
        n = min(wanted, most)
        table = numpy.empty((2 + n * width,), dtype="int64")
        table[0], table[1] = 0, width
        rows, start = table[2:].reshape(n, width), 0
        for source, (stop, _) in zip(self._sources, self._parts, strict=True):
            numbers = numpy.array(source.rows(n), dtype=source.dtype)
            rows[:, start:stop] = numbers.view("int64").reshape(n, -1)
            start = stop
        _copy(self._backend, self._backend.from_host_later(self._backend.pin(table)), self._table[: table.size])
        self._filled, self._used = n, 0

    def advance(self) -> None:
        """The graph was launched."""
        self._filled = self._prepared
        self._used += self._steps


class StepGraph:
    """Replays a recorded step on a GPU."""

    def __init__(self, backend: CupyBackend, step: RecordedStep) -> None:
        self._backend, self._step = backend, step
        self._cuda = backend.cupy.cuda
        self._lock = Lock()
        self._next: Callable[[StepGraph, Sequence[Array]], Any] = StepGraph._begin  # a method would be a cycle
        self._stream: Any = None
        self._side: Any = None
        self._pool: Any = None
        self._graph: Any = None
        self._rows: Any = None
        self._results: Any = None
        self._places: list[Array] = []
        self._patience = Patience()

    def __call__(self, *inputs: Array) -> Any:
        with self._lock, graphs.counter_lock, self._backend._cuda_device:
            return self._next(self, inputs)

    def _call_by_call(self, inputs: Sequence[Array]) -> Any:
        return self._step.run(*inputs)

    def _give_up(self, reason: str) -> None:
        """Make the calls one by one from now on, and free everything."""
        self._next = StepGraph._call_by_call
        self._step.report(reason)
        self._free()

    def _free(self) -> None:
        self._graph = self._rows = self._results = None
        self._places = []
        if self._pool is not None:
            with self._backend._cuda_device:
                self._backend.free_stream(self._stream.ptr)
                self._pool.free_all_blocks()  # which a pool does not do when it is deleted

    def __del__(self) -> None:
        self._free()

    # ------------------------------------------------------------------ capturing

    def _begin(self, inputs: Sequence[Array]) -> Any:
        """The first call: the step as it will be captured."""
        reason = self._step.obstacle()
        if reason is not None:
            self._give_up(reason)
            return self._step.run(*inputs)
        self._calls, self._results_of = self._step.parts()
        self._stream, self._side = (self._cuda.Stream(non_blocking=True) for _ in range(2))
        self._pool = self._cuda.MemoryPool()
        self._backend.cupy.get_default_memory_pool().free_all_blocks()  # which another pool cannot use
        return self._first(inputs)

    def _first(self, inputs: Sequence[Array]) -> Any:
        """Make the calls of the step as it will be captured next."""
        rows = FirstRows(self._backend)
        outer = self._last = self._cuda.get_current_stream()
        self._stream.wait_event(outer.record())
        try:
            with self._own(), taking_from(rows):
                rows.next_step()
                self._places = [self._backend.copy(x) for x in inputs]
                results = self._calls(*self._places)
        except Exception as error:  # what the step has done before stays, as in a plain step
            self._give_up(_reason(error))
            raise
        finally:
            outer.wait_event(self._stream.record())
        self._rows = rows
        self._next = StepGraph._replay
        return self._results_of(*map(self._backend.copy, results))

    @contextlib.contextmanager
    def _own(self) -> Iterator[None]:
        """Within the `with`, work is queued in the stream of the graph, and memory comes from its pool."""
        with self._cuda.using_allocator(self._pool.malloc), self._stream:
            yield

    def _capture(self) -> bool:
        """Capture the graph; False, with everything as it was, if that fails."""
        reason = self._step.obstacle()
        if reason is not None:
            self._give_up(reason)
            return False
        before, failure = self._step.host_state(), ""
        try:
            rows, results, graph = self._record()
            self._difference: HostDifference = before.difference()
            self._rows, self._results, self._graph = rows, results, graph
        except MemoryError as error:
            traceback.clear_frames(error.__traceback__)  # so that the memory in use there is freed now
            self._give_up("needs more memory as a graph than there is")
            raise
        except Exception as error:
            failure = _reason(error)
        finally:
            before.restore()
        if failure:  # now that the arrays of the calls that raised it are freed
            self._give_up(failure)
        return not failure

    def _record(self) -> tuple[GraphRows, Sequence[Array], Any]:
        """The numbers of a graph, its results, and the graph."""
        self._graph = self._results = None  # first, since their memory can be used again
        with self._own():
            rows = GraphRows(self._backend, self._side)
            self._flag = self._backend.nonfinite
            self._stream.begin_capture()
            try:
                with taking_from(rows):
                    rows.next_step()
                    results = self._calls(*self._places)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._stream.end_capture()
                raise
            return rows, results, self._stream.end_capture()

    # ------------------------------------------------------------------ replaying

    def _is_valid(self) -> bool:
        """Whether the graph can be launched, captured again if need be."""
        if self._graph is not None:
            if self._rows.hold() and self._flag is self._backend.nonfinite:
                return self._difference.applies()
            if self._is_in_vain():
                return False
        return self._capture() and self._difference.applies()

    def _is_in_vain(self) -> bool:
        """Give up if graphs become invalid too often."""
        if not self._patience.is_over():
            return False
        self._give_up("changes hyperparameters or settings too often")
        return True

    def _replay(self, inputs: Sequence[Array]) -> Any:
        backend, stream = self._backend, self._cuda.get_current_stream()
        if stream != self._last:
            stream.wait_event(self._last.record())
            self._last = stream
        try:
            is_same = self._rows.check()
            if is_same:
                if not self._is_valid():
                    return self._step.run(*inputs)
                self._rows.prepare()
        except NotImplementedError as error:
            self._give_up(str(error))
            return self._step.run(*inputs)
        if not is_same:
            graph, self._graph = self._graph, None
            return self._step.run(*inputs) if graph is not None and self._is_in_vain() else self._first(inputs)
        for x, place in zip(inputs, self._places, strict=True):
            _copy(backend, x, place)
        self._difference.apply()  # first: an interrupted step counts, since the graph may have been launched
        self._graph.launch(stream)
        if launch_counters:
            launched("graph")
        self._rows.advance()
        self._patience.replays += 1
        copies = []
        for x in self._results:
            out = backend.cupy.empty(x.shape, dtype=x.dtype)
            _copy(backend, x, out)
            copies.append(out)
        return self._results_of(*copies)


def _copy(backend: CupyBackend, source: Array, target: Array) -> None:
    """Copy an array to a contiguous one, in the current stream."""
    if source.flags.c_contiguous:
        target.data.copy_from_device_async(source.data, target.nbytes)
    else:
        target[...] = source
    if launch_counters:
        launched("copy")


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, NotImplementedError) else f"cannot be captured: {error!r}"
