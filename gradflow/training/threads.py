"""One thread for the matrix products of small models."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

_SMALL_PRODUCT = 1 << 25  # multiplications, about a millisecond of one core

_lock = threading.Lock()
_limits: list[Any] = []
"""One entry for each `thread_limit` that has begun: the first has the limit of the process, the others have None."""


@contextlib.contextmanager
def thread_limit(device: str, sizes: Sequence[int], batch_size: int, processes: int = 1) -> Iterator[None]:
    """Give the process one BLAS thread inside a `with`, if the model is on the CPU and its products are small.

    device: its name. sizes: the widths of the layers. processes: how many train on this machine together (default 1):
    for large products, they divide its cores.

    A second thread does not make these faster, and on a busy machine waiting for it made a run ten times as long.
    Several threads may do this at once: the last one restores what the first one found.
    """
    largest = max(n * m for n, m in pairwise(sizes)) * batch_size
    is_small = largest <= _SMALL_PRODUCT
    if not device.startswith("cpu") or not (is_small or processes > 1):
        yield
        return
    threads = 1 if is_small else max(1, (os.cpu_count() or 1) // processes)
    with _lock:
        _limits.append(None if _limits else _controller().limit(limits=threads, user_api="blas"))
    try:
        yield
    finally:
        with _lock:
            if len(_limits) == 1:
                _limits[0].restore_original_limits()
            _limits.pop()


@functools.cache
def _controller() -> Any:
    """What sets the threads of libraries; it takes milliseconds to find these."""
    from threadpoolctl import ThreadpoolController  # comes with scikit-learn

    return ThreadpoolController()
