"""Launches: what native kernels report to a profile of their thread."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident

launch_counters: dict[int, Callable[[str], None]] = {}
"""By the identifier of a thread that is profiled: what to call with the name of each kernel that it launches."""


def launched(name: str) -> None:
    """Report the launch of a kernel on a device, for `gradflow.profile`; call it if `launch_counters` is not empty.

    name: the name of the kernel.

    Array functions that a kernel calls are counted without a report. A backend whose kernels report everything else
    says so with `Backend.reports_launches`.
    """
    count = launch_counters.get(get_ident())
    if count is not None:
        count(name)
