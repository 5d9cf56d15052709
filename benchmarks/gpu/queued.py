"""How a row is timed on a GPU: many steps are queued, then the device is waited for.

The clock is the host's; events on the device, before the first step and after the last, tell whether both agree.
"""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import time
from typing import TYPE_CHECKING, Any

DEVICE = os.environ.get("GRADFLOW_BENCHMARK_DEVICE", "cuda")
"""The device of this process: cuda; or, in a dry run, emulated (gradflow on an emulated CuPy) or cpu."""
CHUNK = 0.02
"""The seconds of work between two waits, about."""
WARM_UP, LEAST, MOST = 8, 4, 2000
"""The first steps of a turn, which are not timed, and the least and the most steps between two waits."""

if TYPE_CHECKING:
    from benchmarks.peers.peer import Peer as _Base
else:
    _Base = object


class Queued(_Base):
    """A row whose steps are queued: `step` doesn't wait for the device; `synchronize` does."""

    unit = 1
    """The steps of one call of the library, if it takes several."""

    def synchronize(self) -> None:
        """Wait for the device."""
        raise NotImplementedError

    def mark(self) -> Any:
        """Mark this point of the queue by an event; None if the library has none."""
        return None

    def seconds_between(self, first: Any, last: Any) -> float:
        """Return the seconds that the device took from one event to another."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Return what is known about a step besides its time, such as its number of launches."""
        return {}

    def run(self, count: int) -> None:
        """Take steps, the batches in turn."""
        for batch in itertools.islice(self._cycle, count):
            self.step(*batch)

    def turn(self, seconds: float) -> tuple[float, float | None]:
        """Return the median seconds of a step by the host's clock, and by the device's events if it has any.

        Each turn starts from the initial weights. Garbage collection is off.
        """
        self.restore()
        self._cycle = itertools.cycle(self.batches)
        warm_up = self.unit * -(-WARM_UP // self.unit)
        gc.collect()
        gc.disable()
        try:
            self._timed(warm_up)
            count = min(max(round(CHUNK / self._timed(warm_up)[0]), LEAST), MOST)
            count = self.unit * max(round(count / self.unit), 1)
            times: list[tuple[float, float | None]] = []
            end = time.perf_counter() + seconds
            while len(times) < 3 or time.perf_counter() < end:
                times.append(self._timed(count))
        finally:
            gc.enable()
        by_device = [device for _, device in times if device is not None]
        return statistics.median(host for host, _ in times), statistics.median(by_device) if by_device else None

    def _timed(self, count: int) -> tuple[float, float | None]:
        """Take and finish steps; return the seconds of one, by the host's clock and by events."""
        start, first = time.perf_counter(), self.mark()
        self.run(count)
        last = self.mark()
        self.synchronize()
        seconds = (time.perf_counter() - start) / count
        return seconds, None if first is None else self.seconds_between(first, last) / count


def to_cpu(device: str) -> str:
    """The device of a peer: it runs on the CPU in a dry run."""
    return device if device == "cuda" else "cpu"


def no_cuda(library: str, found: Any) -> str:
    """The reason why a library isn't measured that finds no GPU."""
    return f"{library} finds no CUDA device: {found}"
