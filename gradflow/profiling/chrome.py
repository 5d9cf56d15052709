"""A profile in the trace event format of Chrome, which Perfetto reads, too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gradflow.backend import Backend
from gradflow.profiling.spans import Span

_HOST, _DEVICE = 1, 2
"""The numbers of the processes, which a viewer shows as groups of tracks."""


def chrome_trace(spans: Sequence[Span], origins: dict[Backend, tuple[Any, int]], start: int) -> bytes:
    """The spans as JSON: a track of the host, and one for each device timed by events. Waits for these.

    origins: see `ThreadProfiler`. start: the nanoseconds of the host's clock at the beginning.

    The "Trace Event Format" of Google: complete events ("X") with microseconds, and metadata ("M").
    """
    timed = dict.fromkeys(span.backend for span in spans if span.backend is not None and span.events is not None)
    tracks = {backend: i for i, backend in enumerate(timed)}
    events = [_name("process_name", _HOST, 0, "host"), _name("thread_name", _HOST, 0, "profiled thread")]
    if tracks:
        events.append(_name("process_name", _DEVICE, 0, "device"))
    events += [_name("thread_name", _DEVICE, i, str(backend.device)) for backend, i in tracks.items()]
    for span in spans:
        details = {"phase": span.phase, "region": span.region}
        if span.kind == "call":
            details |= {"launches": span.launches, "bytes read": span.read, "bytes written": span.written}  # type: ignore[dict-item]
        event = {"ph": "X", "name": span.name, "cat": span.kind, "pid": _HOST, "tid": 0, "args": details}
        events.append({**event, "ts": (span.start - start) / 1e3, "dur": (span.end - span.start) / 1e3})
        if span.events is not None and span.backend is not None:
            first, last = span.events
            origin, moment = origins[span.backend]
            begin = first.seconds_since(origin) * 1e6 + (moment - start) / 1e3
            where = {"pid": _DEVICE, "tid": tracks[span.backend], "ts": begin, "dur": last.seconds_since(first) * 1e6}
            events.append({**event, **where})
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode()


def _name(what: str, process: int, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": track, "args": {"name": name}}
