"""What the processes of a run decide together between two steps: whether to save, and whether to stop."""

from __future__ import annotations

import signal
import time

import numpy as np

from gradflow.distributed import Communicator

_SECONDS = 0.2
"""About so often they ask each other."""
_MOST_STEPS = 1000


class Turns:
    """Decisions that all ranks of a communicator take after the same step.

    They exchange what each knows every so many steps: rank 0 measures the steps, and says when the next turn is.
    """

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._steps, self._next, self._began = 0, 1, time.monotonic()

    def decide(self, is_due: bool, stop: signal.Signals | None) -> tuple[bool, signal.Signals | None]:
        """Return whether to save now, and the signal that ends the run; called after each step.

        is_due: whether it is time to save, which rank 0 decides. stop: the signal that this rank got, or None.
        """
        self._steps += 1
        if self._steps < self._next:
            return False, None
        now, rank = time.monotonic(), self._communicator.rank
        told = np.zeros(2 + self._communicator.size, np.int64)
        if rank == 0:
            steps = int(self._steps * _SECONDS / max(now - self._began, 1e-6))
            told[:2] = is_due, min(max(steps, 1), _MOST_STEPS)
        told[2 + rank] = 0 if stop is None else stop
        self._communicator.sum_on_host(told)
        due, self._next, *signals = map(int, told)
        self._steps, self._began = 0, time.monotonic()
        return bool(due), next((signal.Signals(number) for number in signals if number), None)
