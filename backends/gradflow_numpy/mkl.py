"""Matrix products by MKL, if its wheel is installed, where it is faster than NumPy's OpenBLAS.

On Intel processors MKL was measured to be 1.1 to 1.5 times as fast for medium and large matrices, and slower below
about 64 x 64 x 64. On AMD processors, with AVX2 and with AVX-512, it was not faster for any shape, so it is not used.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from pathlib import Path
from typing import Any

import numpy as np

from gradflow.backend import Array
from gradflow_numpy.threads import count

MIN_SIZE = 64**3
"""The smallest number of multiply-adds of a product for which MKL is used."""

_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112
_FUNCTIONS = {
    np.dtype(np.float32): ("cblas_sgemm", ctypes.c_float),
    np.dtype(np.float64): ("cblas_dgemm", ctypes.c_double),
}


def is_intel() -> bool:
    """Whether the processor is one of Intel's."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        return "Intel" in platform.processor()


@functools.cache
def library() -> Any:
    """MKL's runtime library, or None if the wheel `mkl` is not installed or cannot be loaded."""
    from importlib import metadata  # a slow import

    try:
        files = metadata.files("mkl") or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name.startswith(("libmkl_rt.", "mkl_rt.")):
            try:
                return _prepared(ctypes.CDLL(str(file.locate())))
            except OSError:
                return None
    return None


def _prepared(mkl: Any) -> Any:
    integer, pointer = ctypes.c_int, ctypes.c_void_p
    for name, number in _FUNCTIONS.values():
        function = getattr(mkl, name)
        function.restype = None
        function.argtypes = [*[integer] * 6, number, pointer, integer, pointer, integer, number, pointer, integer]
    mkl.MKL_Set_Num_Threads(count())
    return mkl


def multiply(a: Array, b: Array, out: Array | None = None) -> Array | None:
    """The product of 2-D arrays; None if MKL is not used: they are small, of another dtype, or not contiguous."""
    (n, k), m = a.shape, b.shape[1]
    if n * k * m < MIN_SIZE:
        return None
    known = _FUNCTIONS.get(a.dtype)
    if known is None or b.dtype != a.dtype:
        return None
    if out is None:
        out = np.empty((n, m), a.dtype)
    if out.dtype != a.dtype or not out.flags.carray:
        return None
    left, right = _layout(a), _layout(b)
    if left is None or right is None:
        return None
    getattr(library(), known[0])(
        _ROW_MAJOR, left[0], right[0], n, m, k, 1.0, a.ctypes.data, left[1], b.ctypes.data, right[1], 0.0,
        out.ctypes.data, m,
    )  # fmt: skip
    return out


def _layout(x: Array) -> tuple[int, int] | None:
    """CBLAS's transpose flag and leading dimension of x; None if x is not contiguous."""
    if x.flags.c_contiguous:
        return _PLAIN, x.shape[1]
    if x.flags.f_contiguous:
        return _TRANSPOSED, x.shape[0]
    return None
