"""Spans: what one thread did between two moments, noted while it is profiled."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter_ns
from typing import Any

from gradflow.autograd.memory import clock
from gradflow.backend import KERNELS, Backend
from gradflow.backend.graphs import current_rows
from gradflow.interception import Profiler
from gradflow.profiling.traffic import moved_bytes

VIEWS = frozenset({
    "reshape", "broadcast_to", "permute_dims", "matrix_transpose", "squeeze", "expand_dims", "empty", "pin",
    "synchronize", "graph",
})  # fmt: skip
"""The functions of a backend that launch nothing and move nothing on the device."""
_KERNELS = frozenset(KERNELS)
OPERATIONS = frozenset({"operation", "node", "opaque", "replay"})
"""The kinds of spans that are rows of their own. A "call" is one if it is in none of these."""


class Span:
    """A moment of the host at which a thread began something, and one at which it was done.

    kind: "operation", "node" (of a backward pass), "opaque", "replay", "call" (of a backend), "module", "backward" or
        "region".
    phase: "forward", "backward", "update" or "replay". region: the module or region that it belongs to.
    outer: the span around it, or None. backend: of a call or a replay.
    start, end: nanoseconds of the host's clock. events: of the device, before and after, or None.
    launches, read, written: what a call did.
    """

    __slots__ = (
        "backend", "end", "events", "kind", "launches", "name", "outer", "phase", "read", "region", "start", "written",
    )  # fmt: skip

    def __init__(self, kind: str, name: str, phase: str, region: str, outer: Span | None) -> None:
        self.kind = kind
        self.name = name
        self.phase = phase
        self.region = region
        self.outer = outer
        self.backend: Backend | None = None
        self.events: tuple[Any, Any] | None = None
        self.launches = self.read = self.written = 0
        self.start = self.end = 0


class ThreadProfiler(Profiler):
    """Measures what one thread does, from its creation on: `spans`, in the order in which they began.

    origins: for each asynchronous backend, an event and the time of the host right after the device reached it, so that
        no work of the device seems to begin before its call.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.origins: dict[Backend, tuple[Any, int]] = {}
        self.ranges: tuple[Callable[[str], Any], Callable[[], Any]] | None = None  # of the last backend that has any
        self._open_ranges: list[Callable[[], Any]] = []  # what ends each of them
        self.span: Span | None = None  # the innermost now
        self.phase = "forward"
        self.region = ""
        self.named_region = ""  # the part of `region` that the user has named
        self._inside_call = False
        self._launches = 0
        self._paths: dict[int, tuple[Any, str]] = {}  # of the modules in the one that is called first, by id
        self._changes = [0]  # the numbers of the clock at which the region changed, and the regions
        self._regions = [""]

    def prepare(self, backend: Backend) -> None:
        """Called once for each backend, before its first call. One without working events is as one without any."""
        if is_asynchronous(backend):
            with contextlib.suppress(NotImplementedError):
                origin = backend.event()
                origin.record()
                backend.synchronize()  # before the clock is read: the device may reach the event much later
                self.origins[backend] = origin, perf_counter_ns()
        self.ranges = backend.named_ranges() or self.ranges

    def _events(self, backend: Backend) -> tuple[Any, Any] | None:
        """Two new events of an asynchronous backend; None for others, and while work is captured, not done."""
        if backend not in self.origins or _is_captured():
            return None
        return backend.event(), backend.event()

    # ------------------------------------------------------------------ beginning and end of a span

    def begin(self, kind: str, name: str) -> Span:
        """Begin a span inside the present one."""
        span = self.span = Span(kind, name, self.phase, self.region, self.span)
        self.spans.append(span)
        if self.ranges is not None:
            begin_range, end_range = self.ranges
            self._open_ranges.append(end_range)
            begin_range(name)
        span.start = perf_counter_ns()
        return span

    def finish(self, span: Span) -> None:
        """End a span, and those inside it that an exception has left."""
        span.end = perf_counter_ns()
        if self._open_ranges:  # if the backend started inside the span, this has no range
            self._open_ranges.pop()()
        self.span = span.outer

    def enter_region(self, region: str) -> None:
        """Set the region of spans and nodes from now on."""
        self.region = region
        self._changes.append(clock.tick())
        self._regions.append(region)

    # ------------------------------------------------------------------ what gradflow calls

    def measure(
        self, kind: str, subject: Any, function: Callable[..., Any], arguments: Any, options: dict[str, Any]
    ) -> Any:
        phase, region = self.phase, self.region
        if kind == "operation":
            span = self.begin(kind, subject.name)
        elif kind == "module":
            path = self._path(subject)
            self.enter_region(f"{self.named_region}/{path}" if self.named_region else path)
            span = self.begin(kind, path)
        elif kind == "backward":
            self.phase = "backward"
            span = self.begin(kind, "backward")
        elif kind == "replay":
            step, backend = subject
            self.phase = "replay"
            events = self._events(backend)
            span = self.begin(kind, getattr(step, "__name__", type(step).__name__))
            span.backend, span.events = backend, events
            if events is not None:
                events[0].record()
        else:
            name = _opaque_name(function, arguments)
            if name is None:
                return function(*arguments, **options)
            if phase != "backward" and (function.__module__.startswith("gradflow.optim") or name.endswith("zero_grad")):
                self.phase = "update"
            span = self.begin(kind, name)
        try:
            return function(*arguments, **options)
        finally:
            if span.events is not None:
                span.events[1].record()
            self.finish(span)
            self.phase = phase
            if self.region is not region:
                self.enter_region(region)

    def visits(self, nodes: Iterable[Any]) -> Iterator[Any]:
        region = self.region
        for node in nodes:
            if node.op is None:
                yield node
                continue
            self.region = self._regions[bisect_right(self._changes, node.id) - 1]
            span = self.begin("node", node.op.name)
            try:
                yield node
            finally:
                self.finish(span)
                self.region = region

    def call(self, backend: Backend, name: str, function: Callable[..., Any], arguments: Any, options: Any) -> Any:
        """Call a function of a backend. If another one has called it, only its launches are counted, in that one."""
        before = self._launches
        if self._inside_call:
            result = function(*arguments, **options)
            if self._launches == before:
                self._launches += _launches(backend, name, arguments)
            return result
        events = self._events(backend) if self.origins else None
        self._inside_call = True
        result = None
        span = self.begin("call", name)
        try:
            if events is not None:
                events[0].record()
            result = function(*arguments, **options)
            return result
        finally:
            if events is not None:
                events[1].record()
            self.finish(span)
            self._inside_call = False
            span.launches = self._launches - before or _launches(backend, name, arguments)
            if span.launches:
                span.read, span.written = moved_bytes(backend, name, arguments, options, result)
            span.backend, span.events = backend, events if span.launches else None

    def launched(self, _kernel: str) -> None:
        """Count the launch of a native kernel: in the call of a backend that makes it, or in the present span."""
        if _is_captured():
            return
        self._launches += 1
        if not self._inside_call and self.span is not None:
            self.span.launches += 1

    # ------------------------------------------------------------------ names

    def _path(self, module: Any) -> str:
        """The class of the module that is called first, and the dotted path of this one inside it."""
        outer, kind = self.span, type(module).__name__
        while outer is not None and outer.kind != "module":
            outer = outer.outer
        if outer is None and self._paths.get(id(module), (None, ""))[1] != kind:
            self._paths = {id(m): (m, f"{kind}.{name}" if name else kind) for name, m in module.named_modules()}
        known = self._paths.get(id(module))
        return f"{outer.name}.{kind}" if known is None and outer is not None else known[1]  # type: ignore[index]


def is_asynchronous(backend: Backend) -> bool:
    """Whether a device works while the host goes on: its backend has events of its own."""
    return type(backend).event is not Backend.event


def _launches(backend: Backend, name: str, arguments: Any) -> int:
    """What a function of a backend launches if it has reported nothing: one thing, or none if it returns a view."""
    if name in VIEWS or (backend.reports_launches and name in _KERNELS) or _is_captured():
        return 0
    return int(name != "getitem" or _has_array(arguments[1]))


def _is_captured() -> bool:
    """Whether this thread captures what it launches in a graph, which does nothing yet."""
    rows = current_rows()
    return rows is not None and rows.captures


def _has_array(key: Any) -> bool:
    return any(map(_has_array, key)) if key.__class__ is tuple else hasattr(key, "dtype")


def _opaque_name(function: Any, arguments: Any) -> str | None:
    """The name of an opaque function with that of the class of its object; None for one that users do not call."""
    name, module = function.__name__, function.__module__
    if name.startswith("_") or module.startswith("gradflow.autograd"):
        return None
    return f"{type(arguments[0]).__name__}.{name}" if "." in function.__qualname__ else name
