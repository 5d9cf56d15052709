"""How many threads a training uses on the CPU: one for small products, a part of the cores for one of several."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import gradflow as gf

_SMALL_PRODUCT = 1 << 25  # multiplications, about a millisecond of one core

_ASKED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_lock = threading.Lock()
_limits: list[Any] = []
"""One entry for each `thread_limit` that has begun: the first has the limit of the process, the others have None."""


@contextlib.contextmanager
def thread_limit(device: str, sizes: Sequence[int], batch_size: int) -> Iterator[None]:
    """Give the process one BLAS thread inside a `with`, if the model is on the CPU and its products are small.

    device: its name. sizes: the widths of the layers.

    A second thread does not make these faster, and on a busy machine waiting for it made a run ten times as long.
    Several threads may do this at once: the last one restores what the first one found.
    """
    largest = max(n * m for n, m in pairwise(sizes)) * batch_size
    if not device.startswith("cpu") or largest > _SMALL_PRODUCT:
        yield
        return
    with _lock:
        _limits.append(None if _limits else _controller().limit(limits=1, user_api="blas"))
    try:
        yield
    finally:
        with _lock:
            if len(_limits) == 1:
                _limits[0].restore_original_limits()
            _limits.pop()


@contextlib.contextmanager
def cores_divided(processes: int) -> Iterator[None]:
    """Give this process its part of the cores inside a `with`, unless the environment says how many threads it has.

    processes: how many train on this machine together.
    """
    if processes == 1 or any(os.environ.get(name) for name in _ASKED):
        yield
        return
    before = gf.get_num_threads()
    gf.set_num_threads(max(1, before // processes))
    try:
        yield
    finally:
        gf.set_num_threads(before)


@functools.cache
def _controller() -> Any:
    """What sets the threads of libraries; it takes milliseconds to find these."""
    from threadpoolctl import ThreadpoolController  # comes with scikit-learn

    return ThreadpoolController()
