"""Flushing subnormal numbers to zero during an optimizer step.

Decaying momentum and vanishing gradients become numbers below the smallest normal one (1.2e-38 in float32), on which
many processors are 10 to 100 times slower. x86 processors can read and write them as zero instead, controlled by two
bits of the MXCSR register of each thread (Intel 64 manual, vol. 1, sections 10.2.3.3 and 10.2.3.4), which the C library
can set. CuPy compiles CUDA kernels with the same effect. On systems other than Linux on x86-64, nothing is done.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import Any

_FLUSH = 0x8040  # flush results to zero, treat operands as zero
_MXCSR = 28  # the offset of the register in the C library's fenv_t on x86-64
_Environment = ctypes.c_char * 32
_flushing = _Environment()


def _found() -> tuple[Callable[..., int], Callable[..., int]] | None:
    """The C functions that get and set a thread's floating-point environment, or None; also initializes `_flushing`."""
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
    """Call `work(*arguments)`; during the call, this thread flushes subnormal numbers to zero."""
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
