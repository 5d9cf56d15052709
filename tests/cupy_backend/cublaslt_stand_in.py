"""cuBLASLt for tests: `cublaslt_stand_in.cpp`, compiled with g++, under the emulated CuPy. EMULATED: no GPU."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from emulated_graphs import queue, unowned
from gradflow_cupy import cublaslt, cublaslt_library
from host_kernels import COMPILER, HERE, NO_COMPILER, compiled

_OPTIONS = ("-O3", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Werror")
_call = cublaslt.call


@cache
def path() -> str:
    """The path of the compiled library. Raises CublasLtError without a compiler."""
    if COMPILER is None:
        raise cublaslt_library.CublasLtError(NO_COMPILER)
    return str(compiled((HERE / "cublaslt_stand_in.cpp").read_text("utf-8"), *_OPTIONS))


def number(name: str) -> ctypes.c_int:
    """The variable `stand_in_NAME` of the library."""
    return ctypes.c_int.in_dll(ctypes.CDLL(path()), f"stand_in_{name}")


@contextlib.contextmanager
def stand_in(**numbers: int) -> Iterator[None]:
    """With some variables of the library set to these numbers."""
    before = {name: number(name).value for name in numbers}
    try:
        for name, value in numbers.items():
            number(name).value = value
        yield
    finally:
        for name, value in before.items():
            number(name).value = value


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let gradflow_cupy find the stand-in, and the emulated CuPy check the arrays of each product."""
    monkeypatch.setattr(cublaslt, "find", path)
    monkeypatch.setattr(cublaslt, "call", call)


def call(
    lt: Any, plan: Any, a: Any, b: Any, out: Any, accumulate: bool, bias: Any, aux: Any, workspace: Any, *factor: Any
) -> int:  # fmt: skip
    """`cublaslt.call`, after checks of what the library cannot see: dtypes, shapes, and that nothing overlaps."""
    import emulated_cupy as emulated  # which imports this module

    read = [emulated._unwrap(x) for x in (a, b, bias) if x is not None]
    written = [emulated._unwrap(x) for x in (out, aux) if x is not None]
    for target in written:
        assert target.dtype == out.dtype
        assert target.flags.writeable
        assert not any(np.shares_memory(target, x) for x in read)
    if bias is not None:
        assert (bias.shape, bias.dtype) == ((out.shape[1],), out.dtype)
        assert bias.flags.c_contiguous
    if aux is not None:
        assert aux.shape == out.shape
        assert aux.flags.c_contiguous
    if workspace is not None:
        written.append(emulated._unwrap(workspace))
    held = unowned((a, b, out, accumulate, bias, aux, workspace))

    def run() -> int:
        status = _call(lt, plan, *held, *factor)
        assert all(emulated._guarded(x) for x in written), "the product writes beyond an array"
        return status

    return queue("product", "product", run, [*read, *written], written) or 0
