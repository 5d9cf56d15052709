"""What the process of a row takes while it trains: memory at its peak, and page faults."""

from __future__ import annotations

import ctypes
import gc
import itertools
import statistics
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from benchmarks.peers.peer import Peer, UnavailableError
from benchmarks.workloads import Workload

WARM_UP, STEPS = 3, 5
_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak() -> int:
    """The most bytes that this process has held since `forget_peak`, or ever where the system cannot forget."""
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    import resource

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else 1024 * found


def forget_peak() -> None:
    """Give back what is free, and let the peak be what is still held, where the system can do that."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        _FORGET.write_text("5")


def page_faults() -> int:
    """How often this process has been given a page that it did not have."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def watch(make: Callable[[Workload], Peer], workload: Workload) -> dict[str, float]:
    """The bytes of model, optimizer and steps at their peak, and the page faults of a step, in the median.

    Before, the row trains something tiny: its library's code and threads are not to count. Nor do the batches count,
    nor the weights that `restore` goes back to, which every row holds.
    """
    try:
        page_faults()
    except ImportError as error:
        raise UnavailableError("this system does not tell what a process takes") from error
    kept = 4 * workload.parameters + sum(values.nbytes for values in workload.data())
    train(make(replace(workload, layers=(2, 16, 16, 10), batch=8, batches=1)), WARM_UP)
    forget_peak()
    before = peak()
    peer = make(workload)
    forget_peak()
    train(peer, WARM_UP)
    faults = train(peer, STEPS)
    return {"peak_bytes": peak() - before - kept, "page_faults_a_step": faults}


def train(peer: Peer, steps: int) -> float:
    """Take steps; the page faults of one, in the median."""
    counts = [page_faults()]
    for batch in itertools.islice(itertools.cycle(peer.batches), steps):
        peer.step(*batch)
        counts.append(page_faults())
    return statistics.median(after - before for before, after in itertools.pairwise(counts))
