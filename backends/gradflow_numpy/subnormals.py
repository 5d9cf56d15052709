"""Arithmetic that takes subnormal numbers for zero, for the time of an optimizer's pass.

Decayed momentum and vanishing gradients end as numbers below the smallest normal one (1.2e-38 in float32), on which
many processors are 10 to 100 times slower. x86 processors can read and write them as zero instead, by two bits of the
MXCSR register (Intel 64 manual, vol. 1, sections 10.2.3.3 and 10.2.3.4), which each thread has of its own and the C
library sets. CUDA kernels of CuPy, too, are compiled to flush them. Elsewhere than on Linux on x86-64, nothing is done.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import Any

_FLUSH = 0x8040  # flush results to zero, take operands for zero
_MXCSR = 28  # where the register is in the C library's fenv_t on x86-64
_Environment = ctypes.c_char * 32
_flushing = _Environment()


def _found() -> tuple[Callable[..., int], Callable[..., int]] | None:
    """What gets and sets the floating-point environment of a thread, once `_flushing` is made from this one's."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    try:
        library = ctypes.PyDLL("libm.so.6")
        get, set_ = library.fegetenv, library.fesetenv
    except (OSError, AttributeError):  # another C library
        return None
    get(_flushing)
    register = ctypes.c_uint32.from_buffer(_flushing, _MXCSR)
    register.value |= _FLUSH
    return get, set_


_functions = _found()


def flushed(work: Callable[..., Any], *arguments: Any) -> None:
    """Call `work(*arguments)` with subnormal numbers taken for zero in this thread meanwhile."""
    if _functions is None:
        work(*arguments)
        return
    get, set_ = _functions
    before = _Environment()
    get(before)
    set_(_flushing)
    try:
        work(*arguments)
    finally:
        set_(before)
