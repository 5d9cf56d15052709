"""Low-level hooks for `gradflow.capture` and `gradflow.profile`: opaque calls, invalidation, measured calls.

While a thread records a step, the rest of gradflow reports to its recorder what the step does besides calling the
backend: the objects it reads, creates and changes, the calls to record as a whole (`opaque_call`), and the actions that
cannot be replayed (`forbid_replay`). Without a recorder, a report costs one test of an empty dict.

The reported objects are those that decide which calls a step makes: modules (attributes, training mode,
hooks), optimizers, leaves (hooks, gradient buffers), and the arrays of tensors. A tensor is reported by its array: it
may get another array, or start or stop requiring a gradient. Code that changes such an object calls `invalidate`. This
advances the version of the object if some `Snapshot` includes it; otherwise it costs one look-up.

While a thread is profiled, operations, modules, backward passes, opaque calls and replays are called through its
profiler (`measured`). Without one, this costs one test of an empty dict.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from threading import get_ident
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

_Result = TypeVar("_Result")
_P = ParamSpec("_P")
_Class = TypeVar("_Class", bound=type)


# ---------------------------------------------------------------------- reports to a recorder


class Recorder:
    """The interface of a recorder: the reports about the thread that it records."""

    def forbid_replay(self, reason: str) -> None:
        """The thread does something that cannot be replayed. "{}" in the reason: the name of the public function."""
        raise NotImplementedError

    def on_read(self, obj: Any, attribute: str = "") -> None:
        """The thread reads an object: its `attribute`, or "" if that is unknown."""
        raise NotImplementedError

    def on_create(self, obj: Any) -> None:
        """The thread creates an object."""
        raise NotImplementedError

    def on_change(self, obj: Any, here: bool) -> None:
        """An object has changed: in this thread if `here`, else in another."""
        raise NotImplementedError

    def opaque_call(self, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Call a function decorated with `opaque_call`, and return its result."""
        raise NotImplementedError

    def ignoring_reports(self) -> contextlib.AbstractContextManager[None]:
        """A context manager in which nothing is reported or recorded."""
        raise NotImplementedError


recorders: dict[int, Recorder] = {}
"""The recorder of each thread that has one, by the identifier of the thread."""
_attribute_readers: dict[Any, Callable[[Any, str], Any]] = {}
"""For each class decorated with `report_reads`, its `__getattribute__` while there is a recorder."""


def start(recorder: Recorder) -> None:
    """Start reporting what this thread does to `recorder`."""
    for cls, read_attribute in _attribute_readers.items():
        cls.__getattribute__ = read_attribute
    recorders[get_ident()] = recorder


def stop() -> None:
    """Stop reporting to the recorder of this thread."""
    recorders.pop(get_ident(), None)
    if not recorders:
        for cls in _attribute_readers:
            if "__getattribute__" in vars(cls):
                del cls.__getattribute__


def report_reads(cls: _Class) -> _Class:
    """Decorate a class to report reads of the attributes of its instances. Costs nothing without a recorder."""

    def read_attribute(self: Any, name: str) -> Any:
        recorder = recorders.get(get_ident())
        if recorder is not None:
            recorder.on_read(self, name)
        return super(cls, self).__getattribute__(name)  # type: ignore[arg-type]

    _attribute_readers[cls] = read_attribute
    return cls


def report_read(*objects: Any) -> None:
    """Report that what this thread does depends on these modules, nodes or arrays of tensors."""
    recorder = recorders.get(get_ident()) if recorders else None
    if recorder is not None:
        for obj in objects:
            recorder.on_read(obj)


def report_creation(obj: Any) -> None:
    """Report that this thread has created an object, so that later changes of the object do not forbid a replay."""
    recorder = recorders.get(get_ident()) if recorders else None
    if recorder is not None:
        recorder.on_create(obj)


def forbid_replay(reason: str) -> None:
    """Report that this thread does something that cannot be replayed.

    reason: the end of a sentence about the step; "{}" in it is replaced by the name of the public function.
    """
    recorder = recorders.get(get_ident()) if recorders else None
    if recorder is not None:
        recorder.forbid_replay(reason)


def unrecorded() -> contextlib.AbstractContextManager[None]:
    """A context manager in which nothing that this thread does is recorded or traced as part of a captured step."""
    recorder = recorders.get(get_ident()) if recorders else None
    return contextlib.nullcontext() if recorder is None else recorder.ignoring_reports()


def opaque_call(function: Callable[_P, _Result]) -> Callable[_P, _Result]:
    """Decorate a function that reads or changes Python objects: it is recorded and replayed as one call."""

    @functools.wraps(function)
    def call(*arguments: _P.args, **options: _P.kwargs) -> _Result:
        if recorders:
            recorder = recorders.get(get_ident())
            if recorder is not None:
                result: _Result = recorder.opaque_call(function, arguments, options)
                return result
        if profilers:
            return measured("opaque", function, function, *arguments, **options)
        return function(*arguments, **options)

    return call


# ---------------------------------------------------------------------- calls that a profiler measures


class Profiler:
    """The interface of a profiler of one thread: it makes calls on behalf of the thread, and measures them."""

    def measure(
        self, kind: str, subject: Any, function: Callable[..., _Result], arguments: Any, options: dict[str, Any]
    ) -> _Result:
        """Call a function and return its result. kind: what calls it; subject: for whom, for a name."""
        raise NotImplementedError

    def prepare(self, backend: Any) -> None:
        """Called with each backend before its first call."""
        raise NotImplementedError

    def call(self, backend: Any, name: str, function: Callable[..., _Result], arguments: Any, options: Any) -> _Result:
        """Call a function of a backend and return its result. name: the name of the function."""
        raise NotImplementedError

    def visits(self, nodes: Iterable[Any]) -> Iterator[Any]:
        """Yield the nodes of a backward pass, and measure the time until the next one is asked for."""
        raise NotImplementedError


profilers: dict[int, Profiler] = {}
"""The profiler of each thread that has one, by the identifier of the thread. Test it before calling `measured`."""


def measured(kind: str, subject: Any, function: Callable[..., _Result], /, *arguments: Any, **options: Any) -> _Result:
    """Call a function through the profiler of this thread, if it has one. See `Profiler.measure`."""
    profiler = profilers.get(get_ident())
    if profiler is None:
        return function(*arguments, **options)
    return profiler.measure(kind, subject, function, arguments, options)


def visited(nodes: Iterable[Any]) -> Iterable[Any]:
    """The nodes of a backward pass, to be visited through the profiler of this thread, if it has one."""
    profiler = profilers.get(get_ident()) if profilers else None
    return nodes if profiler is None else profiler.visits(nodes)


# ---------------------------------------------------------------------- invalidation


class _Version:
    """The time of the last change of an object, 0 at first. Keeps the object alive, so that none other gets its id."""

    __slots__ = ("__weakref__", "obj", "value")

    def __init__(self, obj: Any) -> None:
        self.obj = obj
        self.value = 0


_tick: Callable[[], int] = itertools.count(1).__next__
_last_change = 0
"""The time (a count of changes) of the last change of any object that has a version."""
_versions: WeakValueDictionary[int, _Version] = WeakValueDictionary()
"""The versions by the id of the object, as long as a `Snapshot` holds them."""


def invalidate(*objects: Any) -> None:
    """Report, after the fact, that modules, leaves or arrays of tensors have changed, and advance their versions."""
    if recorders:
        _report_change(objects)
    for obj in objects:
        _set_version(obj, None)


def report_mode(module: Any) -> None:
    """Report, after the fact, that the mode of a module has changed: its `training`, which a `Snapshot` compares."""
    global _last_change
    if recorders:
        _report_change((module,))
    if id(module) in _versions:
        _last_change = _tick()


def _report_change(objects: Iterable[Any], others_only: bool = False) -> None:
    for thread, recorder in list(recorders.items()):
        if not (others_only and thread == get_ident()):
            for obj in objects:
                recorder.on_change(obj, thread == get_ident())


def _set_version(obj: Any, value: int | None) -> None:
    """Set the version of an object that has one to `value`, or to the time now."""
    global _last_change
    version = _versions.get(id(obj))
    if version is not None:
        now = _tick()
        version.value = now if value is None else value
        _last_change = now  # only now that the version is set: other threads compare this first


@contextlib.contextmanager
def temporary_change(*objects: Any) -> Iterator[None]:
    """Declare that objects change within a `with` and are restored at its end: earlier snapshots are valid again then.

    The recorder of this thread gets no report, since it sees the calls that are made within.
    """
    before = [(obj, _versions.get(id(obj))) for obj in objects]
    values = [None if version is None else version.value for _, version in before]
    for obj in objects:
        _set_version(obj, None)
    within = [None if version is None else version.value for _, version in before]
    try:
        yield
    finally:
        _report_change(objects, others_only=True)
        for (obj, version), value, own in zip(before, values, within, strict=True):
            _set_version(obj, value if version is not None and version.value == own else None)


class Snapshot:
    """The versions and modes of some objects: `is_current` returns whether they are the same now.

    A change makes a snapshot invalid for good, another mode (`training` of a module) until the mode is back.
    """

    __slots__ = ("_checked", "_values", "_versions")

    def __init__(self, objects: Iterable[Any]) -> None:
        self._checked = _last_change
        self._versions = [_versions.setdefault(id(obj), _Version(obj)) for obj in objects]
        self._values = [*map(_value_and_mode, self._versions)]

    def is_current(self) -> bool:
        """Whether no object has changed. Cheap as long as no object of any snapshot has changed."""
        now = _last_change
        if self._checked == now:
            return True
        if [*map(_value_and_mode, self._versions)] != self._values:
            return False
        self._checked = now
        return True

    def first_changed(self) -> Any:
        """The first object that has changed, or None."""
        pairs = zip(self._versions, self._values, strict=True)
        return next((version.obj for version, value in pairs if _value_and_mode(version) != value), None)


def _value_and_mode(version: _Version) -> tuple[int, Any]:
    try:
        return version.value, object.__getattribute__(version.obj, "training")  # which reports no read
    except AttributeError:
        return version.value, None
