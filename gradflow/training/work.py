"""What a trainer does between two steps of the loop around it, which Ctrl-C does not interrupt."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gradflow.autograd.grad_mode import grad_enabled
from gradflow.environment import Interrupts

if TYPE_CHECKING:
    from gradflow.training.trainer import Trainer


class Work:
    """A `with` in which the trainer works: Ctrl-C is delayed, and the time is added to that of the epoch.

    pressed: after the `with`, whether Ctrl-C was pressed in it. If it ends with an error, KeyboardInterrupt follows it.

    Another KeyboardInterrupt, such as of a second Ctrl-C, comes at any line, also in the end of a `no_grad`: gradients
    are enabled again if they were, and the trainer must not go on.
    """

    __slots__ = ("interrupts", "mode", "pressed", "trainer")

    def __init__(self, trainer: Trainer, interrupts: Interrupts) -> None:
        self.trainer, self.interrupts = trainer, interrupts

    def __enter__(self) -> Work:
        self.trainer._check_whole()
        self.interrupts.delayed = True
        self.mode = grad_enabled.get()
        self.trainer._progress.since = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None and not issubclass(kind, Exception):
            self.trainer._progress.torn = True
            grad_enabled.set(self.mode)
        self.trainer._progress.count_time()
        self.pressed = self.interrupts.end()
        if self.pressed and kind is not None:
            raise KeyboardInterrupt
