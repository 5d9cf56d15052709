"""Wrappers of the functions of all backends, while any thread is profiled."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock, get_ident
from typing import Any

from gradflow.backend import ARRAY_FUNCTIONS, KERNELS, Backend, launch_counters
from gradflow.backend.registry import on_start, started_backends
from gradflow.interception import profilers, recorders
from gradflow.profiling.spans import ThreadProfiler
from gradflow.replay import interception

_SERVICES = (
    "getitem", "setitem", "copy", "to_host", "from_host", "from_host_later", "from_host_ahead", "pin", "synchronize",
    "graph",
)  # fmt: skip
_originals: dict[Backend, dict[str, Any]] = {}
"""For each backend whose functions are wrapped, those that were attributes of the object itself, or None."""
_lock = Lock()


def start(profiler: ThreadProfiler) -> None:
    """Profile this thread. Raises RuntimeError if it is profiled already, or records a captured step."""
    if get_ident() in profilers:
        raise RuntimeError("a profile is running in this thread: end it before the next, or name parts with region()")
    _refuse_recording()
    for backend in started_backends():
        profiler.prepare(backend)
    with _lock, interception.recording_lock:  # a recording wraps the same functions, and unwraps them when it ends
        if not profilers:
            for backend in started_backends():
                _wrap(backend)
            on_start.append(_started)
        profilers[get_ident()] = profiler
        launch_counters[get_ident()] = profiler.launched


def stop() -> None:
    """End the profile of this thread."""
    _refuse_recording()
    with _lock, interception.recording_lock:
        del profilers[get_ident()], launch_counters[get_ident()]
        if not profilers:
            on_start.remove(_started)
            while _originals:
                _unwrap(*_originals.popitem())


def _refuse_recording() -> None:
    if get_ident() in recorders:
        raise RuntimeError("a captured step cannot profile itself: put `with gf.profile():` around calls of the step")


def _started(backend: Backend) -> None:
    for profiler in list(profilers.values()):  # of all threads: any may use it from now on
        profiler.prepare(backend)
    with _lock:
        if profilers:
            _wrap(backend)


def _wrap(backend: Backend) -> None:
    own = vars(backend)
    functions = (*ARRAY_FUNCTIONS, *KERNELS, *_SERVICES)
    _originals[backend] = {name: own.get(name) for name in functions}
    for name in functions:
        setattr(backend, name, _measured(backend, name, getattr(backend, name)))


def _unwrap(backend: Backend, functions: dict[str, Any]) -> None:
    own = vars(backend)
    for name, function in functions.items():  # one by one, since other threads call them meanwhile
        if function is None:
            own.pop(name, None)
        else:
            own[name] = function


def _measured(backend: Backend, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        profiler = profilers.get(get_ident())
        if profiler is None:
            return function(*arguments, **options)
        return profiler.call(backend, name, function, arguments, options)

    return call
