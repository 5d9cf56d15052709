"""What `gradflow.capture` needs of the rest: calls that it sees as one, what a step depends on, and what has changed.

What decides the calls of a step are modules (attributes, mode, forward hooks), leaves (hooks, places of gradients) and
the arrays of tensors (another array, or another need of a gradient). While a step is recorded its recorder is told
which of them it reads. Their changes are counted from then on, and no others: `Unchanged` compares.
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


class Recorder:
    """Sees what one thread does."""

    def forbid_replay(self, reason: str) -> None:
        """Note that something is done that no replay can do. "{}" in the reason stands for the function that did it."""
        raise NotImplementedError

    def read(self, thing: Any, attribute: str = "") -> None:
        """Note that what is done depends on a thing whose changes are noted, or on an attribute of an optimizer."""
        raise NotImplementedError

    def make(self, thing: Any) -> None:
        """Note that a thing is new, so that its changes are nobody else's."""
        raise NotImplementedError

    def change(self, thing: Any, here: bool) -> None:
        """Note that a thing has changed: by this thread (`here`), or by another."""
        raise NotImplementedError

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Do a call of `opaque_call` and return its result."""
        raise NotImplementedError


recorders: dict[int, Recorder] = {}
"""The recorder of each thread that has one."""
_seen_classes: dict[Any, Callable[[Any, str], Any]] = {}
"""Each with the `__getattribute__` that it has while there is a recorder."""


def start(recorder: Recorder) -> None:
    """Have a recorder see what this thread does from now on."""
    for cls, read_attribute in _seen_classes.items():
        cls.__getattribute__ = read_attribute
    recorders[get_ident()] = recorder


def stop() -> None:
    """Have the recorder of this thread see no more."""
    recorders.pop(get_ident(), None)
    if not recorders:
        for cls in _seen_classes:
            if "__getattribute__" in vars(cls):
                del cls.__getattribute__


def reads_are_seen(cls: _Class) -> _Class:
    """Mark a class: recorders see its objects read, by any attribute. Where there are none that costs nothing."""

    def read_attribute(self: Any, name: str) -> Any:
        recorder = recorders.get(get_ident())
        if recorder is not None:
            recorder.read(self, name)
        return super(cls, self).__getattribute__(name)  # type: ignore[arg-type]

    _seen_classes[cls] = read_attribute
    return cls


def forbid_replay(reason: str) -> None:
    """Note that this thread does something that no replay can do: "{}" stands for the name of the function."""
    recorder = recorders.get(get_ident()) if recorders else None
    if recorder is not None:
        recorder.forbid_replay(reason)


def read(*things: Any) -> None:
    """Note that what this thread does depends on these modules, nodes or arrays of tensors."""
    recorder = recorders.get(get_ident()) if recorders else None
    if recorder is not None:
        for thing in things:
            recorder.read(thing)


def note_creation(thing: Any) -> None:
    """Note that this thread has made a thing whose changes are noted."""
    recorder = recorders.get(get_ident()) if recorders else None
    if recorder is not None:
        recorder.make(thing)


# ---------------------------------------------------------------------- what has changed


class _Count:
    """The time of the last change of a thing, 0 for none. It keeps the thing, whose id is thus its own."""

    __slots__ = ("__weakref__", "thing", "value")

    def __init__(self, thing: Any) -> None:
        self.thing = thing
        self.value = 0


_tick: Callable[[], int] = itertools.count(1).__next__
latest = 0
"""The time of the last change of anything that is counted."""
_counts: WeakValueDictionary[int, _Count] = WeakValueDictionary()
"""By the id of the thing, as long as there is an `Unchanged` of it."""


def invalidate(*things: Any) -> None:
    """Note a change, after it was made, of what decides the calls of a step: of modules, nodes, arrays of tensors.

    The array of a tensor stands for the tensor: what is noted is that it has another array from now on, or that it
    needs a gradient or no longer does.
    """
    if recorders:
        _tell(things)
    for thing in things:
        _count(thing, None)


def _tell(things: Iterable[Any], others_alone: bool = False) -> None:
    for thread, recorder in list(recorders.items()):
        if not (others_alone and thread == get_ident()):
            for thing in things:
                recorder.change(thing, thread == get_ident())


def _count(thing: Any, value: int | None) -> None:
    """Give a thing, if it is counted, a new time of its last change, or `value`."""
    global latest
    count = _counts.get(id(thing))
    if count is not None:
        now = _tick()
        count.value = now if value is None else value
        latest = now  # only then, since threads may look meanwhile


@contextlib.contextmanager
def changed_meanwhile(*things: Any) -> Iterator[None]:
    """Things that are changed inside a `with`, and at its end are as they were before it.

    A recorder of this thread is not told: it sees what is done.
    """
    before = [(thing, _counts.get(id(thing))) for thing in things]
    values = [None if count is None else count.value for _, count in before]
    for thing in things:
        _count(thing, None)
    meanwhile = [None if count is None else count.value for _, count in before]
    try:
        yield
    finally:
        _tell(things, others_alone=True)
        for (thing, count), value, noted in zip(before, values, meanwhile, strict=True):
            _count(thing, value if count is not None and count.value == noted else None)


class Unchanged:
    """Tells whether all of some things are as they were when this was made. `latest`: the last change that it knows."""

    __slots__ = ("_counts", "_values", "latest")

    def __init__(self, things: Iterable[Any]) -> None:
        self.latest = latest
        self._counts = [_counts.setdefault(id(thing), _Count(thing)) for thing in things]
        self._values = [count.value for count in self._counts]

    def __bool__(self) -> bool:
        now = latest
        if self.latest == now:
            return True
        if [count.value for count in self._counts] != self._values:
            return False
        self.latest = now
        return True

    def first_change(self) -> Any:
        """The first of the things that has changed, or None."""
        return next((c.thing for c, value in zip(self._counts, self._values, strict=True) if c.value != value), None)


def opaque_call(function: Callable[_P, _Result]) -> Callable[_P, _Result]:
    """Mark a function that a recorder sees as a whole, and repeats as a whole: it reads or changes Python's objects."""

    @functools.wraps(function)
    def call(*arguments: _P.args, **options: _P.kwargs) -> _Result:
        if recorders:
            recorder = recorders.get(get_ident())
            if recorder is not None:
                result: _Result = recorder.call(function, arguments, options)
                return result
        return function(*arguments, **options)

    return call
