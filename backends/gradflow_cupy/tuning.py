"""The fastest algorithm for each product: several are timed on the device, and the choice is kept in a file.

cuBLASLt suggests algorithms in the order of its own estimate. On an H100, the best of 8 took 10 µs off the 83 µs of a
step of 784-512-512-10 at batch 128, mostly since the first one often splits a product into two kernels. Another
algorithm adds up in another order, so the bits of results differ; with the file they are the same in each run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from gradflow.environment import VariableError
from gradflow.files import read_file, write_file

logger = logging.getLogger("gradflow")

VARIABLE = "GRADFLOW_TUNING_FILE"
"""The environment variable that names the file. Without it nothing is timed."""
CANDIDATES = 8
"""The number of algorithms that are timed for a product."""
REPEAT, ROUNDS = 20, 3
"""A time is the least of so many graphs of so many products."""
_MOST_BYTES = 1 << 24

Choices = dict[str, dict[str, list[int]]]
"""For each device with its version of cuBLASLt, and each kind of product: the algorithm, as cuBLASLt's 8 numbers."""


class Tuner:
    """Chooses algorithms on one device. device: its name and the version of cuBLASLt, under which choices are kept.

    Raises VariableError, which names the file, if that is there but is no file of choices.
    """

    def __init__(self, cupy: Any, path: str, device: str) -> None:
        self._cupy, self._path, self._device = cupy, path, device
        self._stream: Any = None
        self._known = _read(path).get(device, {})
        self._lock = threading.Lock()

    def choose(self, kind: tuple[int, ...], found: list[Any], run: Callable[[Any], bool]) -> Any:
        """The one of the algorithms in `found` that is known to be the fastest, or is now found to be.

        run: queues the product with an algorithm in the current stream; returns whether cuBLASLt could.
        """
        with self._lock:  # there is one stream, and one file
            key = ",".join(str(int(part)) for part in kind)
            known = self._known.get(key)
            for each in found:
                if list(each.algorithm) == known:
                    return each
            current = self._cupy.cuda.get_current_stream()
            if current.is_capturing():  # a graph that is being captured cannot wait for the device
                return found[0]
            with self._on_a_stream(current):
                times = [seconds(self._cupy, functools.partial(run, each)) for each in found]
            best = found[min(range(len(found)), key=times.__getitem__)]
            if min(times) == float("inf"):
                return best
            self._known[key] = list(best.algorithm)
            number = found.index(best) + 1
            logger.info("product %s: algorithm %d of %d takes %.2g s", key, number, len(found), min(times))
            self._write()
            return best

    @contextlib.contextmanager
    def _on_a_stream(self, current: Any) -> Iterator[None]:
        """In a stream that can be captured, after the work of the current one."""
        if self._stream is None:
            self._stream = self._cupy.cuda.Stream(non_blocking=True)
        self._stream.wait_event(current.record())
        with self._stream:
            try:
                yield
            finally:  # what was queued uses memory that is freed then
                self._stream.synchronize()

    def _write(self) -> None:
        """Add the choices to the file, which other processes may have written since."""
        try:
            choices = _read(self._path)
            choices.setdefault(self._device, {}).update(self._known)
            write_file(self._path, json.dumps(choices, indent=1).encode())
        except (OSError, ValueError) as error:
            logger.warning("the fastest algorithms of products are not kept: %s", error)


def seconds(cupy: Any, run: Callable[[], bool]) -> float:
    """The seconds that the device takes for the work that `run` queues, in a graph; infinity if that fails."""
    stream = cupy.cuda.get_current_stream()
    if not (run() and run()):  # what is loaded at the first call cannot be captured
        return float("inf")
    stream.synchronize()
    stream.begin_capture()
    try:
        for _ in range(REPEAT):
            run()
    finally:
        graph = stream.end_capture()
    best = float("inf")
    for _ in range(ROUNDS):
        graph.launch(stream)  # so that the next one is queued before it can start
        start = stream.record()
        graph.launch(stream)
        end = stream.record()
        start.synchronize()
        end.synchronize()
        best = min(best, cupy.cuda.get_elapsed_time(start, end) / 1000.0 / REPEAT)
    return best


def _read(path: str) -> Choices:
    """The choices in a file; none if it is not there. VariableError if it is something else."""
    if not os.path.exists(path):
        return {}
    try:
        choices = json.loads(read_file(path, _MOST_BYTES))
        for device, kinds in choices.items():
            if not all(isinstance(n, int) for numbers in kinds.values() for n in numbers):
                raise TypeError(device)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        wanted = "must be unset, or name a new file or one that gradflow has written"
        raise VariableError(f"{VARIABLE} {wanted}; {path}: {error}; type: unset {VARIABLE}") from None
    return choices  # type: ignore[no-any-return]
