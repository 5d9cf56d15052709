"""The peak memory and the page faults of a row's process while it trains."""

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
    """Return the peak bytes of this process since `forget_peak`, or since its start if the system cannot reset that."""
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    import resource

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else 1024 * found


def forget_peak() -> None:
    """Return free memory to the system and reset the peak to the current use, if the system supports that."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        _FORGET.write_text("5")


def page_faults() -> int:
    """Return the number of (minor) page faults of this process."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def watch(make: Callable[[Workload], Peer], workload: Workload) -> dict[str, float]:
    """Return the peak bytes of model, optimizer and steps, and the median page faults of a step.

    First the row trains something tiny, so that its library's code and threads do not count. The batches and the
    initial weights kept for `restore` do not count either; every row has them.
    """
    try:
        page_faults()
    except ImportError as error:
        raise UnavailableError("this system does not report the memory of a process") from error
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
    """Take steps and return the median page faults of one."""
    counts = [page_faults()]
    for batch in itertools.islice(itertools.cycle(peer.batches), steps):
        peer.step(*batch)
        counts.append(page_faults())
    return statistics.median(after - before for before, after in itertools.pairwise(counts))
