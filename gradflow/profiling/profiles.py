"""The class of profiles: the context manager, and what it offers when it has ended."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from threading import get_ident
from time import perf_counter_ns
from typing import Self

from gradflow.files import FilePath, write_file
from gradflow.profiling import wrappers
from gradflow.profiling.chrome import chrome_trace
from gradflow.profiling.rows import Row, rows_of
from gradflow.profiling.spans import ThreadProfiler
from gradflow.profiling.table import table


class Profile:
    """A profile of this thread inside a `with`: made by `gradflow.profile`, see there.

    >>> import gradflow as gf
    >>> with gf.profile() as p:
    ...     with p.region("data"):
    ...         x = gf.ones((8, 4))
    >>> [(row.name, row.region) for row in p.rows]
    [('ones', 'data')]
    """

    def __init__(self) -> None:
        self._profiler: ThreadProfiler | None = None
        self._thread = 0
        self._start = self._end = 0

    def __enter__(self) -> Self:
        if self._profiler is not None:
            raise RuntimeError("a profile is of one `with`: call gradflow.profile() again")
        profiler = ThreadProfiler()
        wrappers.start(profiler)
        self._profiler, self._thread = profiler, get_ident()
        self._start = perf_counter_ns()
        return self

    def __exit__(self, *_: object) -> None:
        if get_ident() != self._thread:
            raise RuntimeError("a profile ends in the thread in which it began")
        try:
            for backend in list(self._running.origins):  # other threads may start backends
                type(backend).synchronize(backend)  # without the wrapper, which would measure it
        finally:
            end = perf_counter_ns()
            wrappers.stop()
            self._end = end

    @property
    def _running(self) -> ThreadProfiler:
        if self._profiler is None or self._end:
            raise RuntimeError("the profile is not running: use it inside `with gradflow.profile() as p:`")
        return self._profiler

    @property
    def _ended(self) -> ThreadProfiler:
        if self._profiler is None or not self._end:
            state = "begun" if self._profiler is None else "ended"
            raise RuntimeError(f"the profile has not {state}: read it after `with gradflow.profile() as p:`")
        return self._profiler

    @contextlib.contextmanager
    def region(self, name: str) -> Iterator[None]:
        """Name a part of the program inside a `with`: rows and spans in it have this `region`.

        Regions may be nested: the name of the inner one is then "outer/inner".

        Raises TypeError for a name that is not a string, ValueError for an empty one; RuntimeError in another thread,
        and outside of the profile.
        """
        if not isinstance(name, str):
            raise TypeError(f"the name of a region is a string; got {name!r}")
        if not name:
            raise ValueError("the name of a region is empty; give it one, such as 'evaluation'")
        profiler = self._running
        if get_ident() != self._thread:
            raise RuntimeError("a region is for the thread that is profiled: use it there")
        before, named = profiler.region, profiler.named_region
        profiler.named_region = f"{named}/{name}" if named else name
        profiler.enter_region(profiler.named_region)
        span = profiler.begin("region", name)
        try:
            yield
        finally:
            profiler.finish(span)
            profiler.named_region = named
            profiler.enter_region(before)

    @functools.cached_property
    def rows(self) -> list[Row]:
        """The operations, each once for each phase, region and device, in the order in which they first ran.

        Raises RuntimeError before the profile has ended.
        """
        return rows_of(self._ended.spans)

    @functools.cached_property
    def total(self) -> Row:
        """All operations as one row. Its `host_seconds` are those of the whole `with`; `self_seconds`, of operations.

        Raises RuntimeError before the profile has ended.
        """
        total = Row("total", "", "", "")
        for row in self.rows:
            total.add(row)
        total.parts = []
        total.host_seconds = (self._end - self._start) / 1e9
        return total

    def table(self, by: str = "operation") -> str:
        """The rows as a table, those that took longest first: by the device's time if there is one, else the host's.

        by: "operation" (default), or "region", for a row for each module and region.

        Under an operation are the functions of the backend that it called, unless it called one of its own name each
        time. The columns are described in the documentation. Raises ValueError for another `by`, RuntimeError before
        the profile has ended.
        """
        if by not in ("operation", "region"):
            raise ValueError(f"a table is by 'operation' or by 'region'; got {by!r}")
        asynchronous = any(span.events is not None for span in self._ended.spans)
        return table(self.rows, self.total, asynchronous, by)

    def save(self, path: FilePath) -> None:
        """Write all spans to a JSON file, which chrome://tracing and ui.perfetto.dev open.

        There is a track of the host, and one for each device that works asynchronously. A file that is there is
        replaced, and folders that are missing are made. Raises OSError if the file cannot be written, RuntimeError
        before the profile has ended.
        """
        profiler = self._ended
        write_file(path, chrome_trace(profiler.spans, profiler.origins, self._start))

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        if self._profiler is None or not self._end:
            return f"<profile, {'running' if self._profiler else 'not started'}>"
        return f"<profile of {self.total.calls} calls in {self.total.host_seconds * 1e3:.3f} ms>"
