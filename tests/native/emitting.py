"""Functions written in `gradflow_numpy.native.emit`, compiled and called."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from gradflow_numpy.native import emit, llvm
from gradflow_numpy.native.emit import Function, Target, Value
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


def rows(
    target: Target,
    real: Any,
    arrays: list[Any],
    results: list[Callable[..., Value]],
    dtype: str,
    kind: Any = None,
    vectors: bool = True,
) -> Any:
    """A row for each function of values, of its results for the elements of the arrays; `kind`: their type."""
    n = len(arrays[0])
    out = np.zeros((len(results), n), dtype)
    element = real if kind is None else kind
    lanes = target.vector_bytes // arrays[0].itemsize if vectors else 1

    def build(fn: Function, *addresses: Value) -> None:
        with fn.loop(0, n, lanes) as i:
            at = [a + i * x.itemsize for a, x in zip(addresses, arrays, strict=False)]
            given = [fn.load(a, ir.VectorType(element, lanes) if vectors else element) for a in at]
            for k, result in enumerate(results):
                fn.store(result(*given), addresses[-1] + (i + k * n) * out.itemsize)

    run(build, target, *arrays, out, real=real)
    return out


def assert_same(found: Any, expected: Any, names: Any) -> None:
    """Equal bits, but for NaN, whose bits are free."""
    for row, other, name in zip(found, expected, names, strict=True):
        other = np.asarray(other, row.dtype)
        nan = np.isnan(row) if row.dtype.kind == "f" else np.zeros(row.shape, bool)
        if row.dtype.kind == "f":
            np.testing.assert_array_equal(nan, np.isnan(other), name)
        np.testing.assert_array_equal(row[~nan].view(f"i{row.itemsize}"), other[~nan].view(f"i{row.itemsize}"), name)
