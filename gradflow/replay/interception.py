"""What a thread calls of the backends while its step is recorded or traced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from threading import RLock, get_ident
from typing import Any

from gradflow.backend import ARRAY_FUNCTIONS, KERNELS, Backend
from gradflow.interception import Recorder, recorders, start, stop

NOT_REPLAYABLE = {
    "to_host": "reads a value ({})",
    "host_values": "reads a value ({})",
    "synchronize": "waits for the device ({})",
    "event": "uses an event of the device ({})",
    "from_host_ahead": "copies values from the host ahead ({})",
    "stream": "uses a stream of the device ({})",
    "setitem": "changes a tensor in place ({})",
}
"""Backend functions whose calls cannot be replayed, because they synchronise or change an array in place, and why."""
_INTERCEPTED = (
    *ARRAY_FUNCTIONS, *KERNELS, "getitem", "copy", "seed", "from_host", "from_host_later", "pin", *NOT_REPLAYABLE
)  # fmt: skip
recording_lock = RLock()
"""Held by the thread that records or traces: see `recording`. Use it as `interception.recording_lock`, since a forked
child replaces it."""
_undo: list[Callable[[], None]] = []
"""While a thread intercepts calls, the function that restores the backends."""


@contextlib.contextmanager
def recording() -> Iterator[bool]:
    """Hold `recording_lock` within the `with`, unless another thread does; gives whether this one holds it.

    Ctrl-C may come between any two instructions: so all that this thread holds is released, whatever it knows of it.
    """
    lock = recording_lock
    try:
        yield lock.acquire(blocking=False)
    finally:
        with contextlib.suppress(RuntimeError):  # none is left, or it is another thread's
            while True:
                lock.release()


def _restore_backends() -> None:
    while _undo:
        _undo[-1]()  # which may be done twice, if Ctrl-C comes
        _undo.pop()


def _forget_other_threads() -> None:
    """Clean up in a forked child, where only the forking thread survives, if another thread was recording."""
    global recording_lock
    if get_ident() not in recorders:
        _restore_backends()
        recorders.clear()
        stop()
        recording_lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


class Interceptor(Recorder):
    """A recorder that also makes the calls of backends. It must hold `recording_lock`."""

    def __init__(self) -> None:
        self._paused = False  # whether to ignore reports, because a call or the recorder itself makes them

    def on_call(
        self, backend: Backend, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], options: Any
    ) -> Any:
        """Call a function of a backend, and return its result."""
        raise NotImplementedError

    @contextlib.contextmanager
    def ignoring_reports(self) -> Iterator[None]:
        """Within the `with`, calls are made as they are."""
        outer, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = outer

    @contextlib.contextmanager
    def intercepting(self, backends: Iterable[Backend]) -> Iterator[None]:
        """Within the `with`, this thread reports to this recorder, which makes its calls of the backends."""
        _restore_backends()  # if Ctrl-C stopped that at the end of the last one
        originals = [(vars(each), {name: vars(each).get(name) for name in _INTERCEPTED}) for each in backends]

        def undo() -> None:
            for own, functions in originals:
                for name, function in functions.items():  # one by one, since other threads call them meanwhile
                    if function is None:
                        own.pop(name, None)
                    else:
                        own[name] = function

        try:
            _undo.append(undo)
            for each in backends:
                for name in _INTERCEPTED:
                    setattr(each, name, self._intercepted(each, name, getattr(each, name)))
            start(self)
            yield
        finally:
            stop()
            _restore_backends()

    def _intercepted(self, backend: Backend, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._paused or recorders.get(get_ident()) is not self:
                return function(*arguments, **options)
            return self.on_call(backend, name, function, arguments, options)

        return call
