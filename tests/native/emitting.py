"""Functions written in `gradflow_numpy.native.emit`, compiled and called."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from gradflow_numpy.native import emit, llvm
from llvmlite import ir

TARGETS = {"avx512": emit.Target(64, 32), "avx2": emit.Target(32, 16), "neon": emit.Target(16, 32)}
"""What kernels are made for. LLVM splits or widens vectors that this processor does not have: slow, but right."""


def compiled(build: Callable[..., Any], target: emit.Target, count: int, real: Any = emit.F32) -> Callable[..., None]:
    """A function of so many 64-bit integers whose code is emitted by `build(fn, *parameters)`."""
    module = ir.Module("test")
    fn = emit.Function(module, "function", [emit.I64] * count, real, target)
    build(fn, *fn.parameters)
    fn.finish()
    library = llvm.Library(llvm.object_code(str(module)))
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * count)(library.address("function"))
    function.library = library  # type: ignore[attr-defined]
    return function


def run(build: Callable[..., Any], target: emit.Target, *arguments: Any, real: Any = emit.F32) -> None:
    """Compile and call a function of the addresses of arrays, and of integers."""
    words = [x if isinstance(x, int) else x.ctypes.data for x in arguments]
    compiled(build, target, len(words), real)(*words)
