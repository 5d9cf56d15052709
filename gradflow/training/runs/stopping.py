"""Signals that end a run: here, and only here, it is decided what they do.

While a run trains and saves, a signal changes nothing but one variable, which the loop reads between two steps. So no
step and no file is ever torn, and what the run prints at its end is true, however many signals arrive.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_NAMES = ("SIGHUP", "SIGTERM", "SIGINT")  # the last is restored last: its handler raises KeyboardInterrupt


class Stopping:
    """Inside a `with`, Ctrl-C, SIGTERM and SIGHUP do not end the process: `signal` is the first that came, or None.

    restore: whether to restore the earlier handlers at the end of the `with` (default True); False for a process that
        has nothing left to do then.

    Signals that the process ignores, as SIGHUP under nohup, stay ignored. In a thread other than the main thread, where
    Python runs no handlers, this does nothing.

    >>> with Stopping() as stopping:
    ...     signal.raise_signal(signal.SIGINT)
    ...     print(stopping.signal.name)
    SIGINT
    """

    def __init__(self, restore: bool = True) -> None:
        self.signal: signal.Signals | None = None
        self._restore = restore
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            try:
                for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
                    before = signal.getsignal(number)
                    if before not in (signal.SIG_IGN, None):  # None: set by a library in C
                        self._before[number] = before
                        signal.signal(number, self._note)
            except BaseException:  # a signal in between
                self._give_back()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._restore:
            self._give_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)

    def _give_back(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


def reason(stop: signal.Signals | None) -> str:
    """Return why a run was stopped, in words: "interrupted", "stopped by SIGTERM"; "" for no signal."""
    if stop is None:
        return ""
    return "interrupted" if stop == signal.SIGINT else f"stopped by {stop.name}"
