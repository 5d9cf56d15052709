"""Kernels: functions of native code that work on a range of items, and how they are launched.

A kernel is a native function `void(arguments, start, stop, scratch)`. `arguments` is the address of its arguments, 64
bits each: the address of an array (0 for None), an integer, or the bits of a float64. It does the items start to stop
of its work, such as rows of a matrix or elements of a flat array: any partition of the items, on any threads and in any
order, has the same result, bit for bit. `scratch` is memory of its own, of `SCRATCH` bytes, aligned to 64.

The arrays are C-contiguous (unless the kernel says otherwise), of one dtype, float32 or float64. What each argument is
and how it is used is declared by a letter:

    r, w, u   an array whose part of an item is read, written, or both, by the work on that item alone:
              of n items, item i has the i-th of n equal parts
    R, W, U   an array of which the work on an item may read, write, or change any part that no other item writes
    i, f      an integer, a float64 number

A launch while a step is captured is also added to the program of the step: see `lowering`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from threading import get_ident
from typing import Any, NamedTuple

import numpy as np

from gradflow_numpy.native import llvm, threads
from gradflow_numpy.native.threads import SCRATCH as SCRATCH

_GROUPS: dict[str, list[Kernel]] = {}


class Kernel:
    """A native function for each dtype.

    group: the kernels that are compiled together. name: its name in the group. access: a letter for each argument.
    multiple: a range begins at a multiple of so many items (default 1), for speed only.
    enough: the items from which on the fixed cost of a range, such as copying a factor, is small (default 1).
    flat: whether the arrays of letters r, w and u are flat, and the last argument is how many elements an item has.
    build: `build(fn, *arguments, start, stop, scratch)` emits the code: `fn` is a `Function` of the dtype, the
    arguments are values: 64-bit integers for arrays and integers, of the dtype for numbers.
    """

    def __init__(
        self,
        group: str,
        name: str,
        access: str,
        build: Callable[..., None],
        multiple: int = 1,
        enough: int = 1,
        flat: bool = False,
    ) -> None:
        self.group, self.name, self.access, self.build = group, name, access, build
        self.multiple, self.enough, self.flat = multiple, enough, flat
        _GROUPS.setdefault(group, []).append(self)
        self.kinds = sum(1 << i for i, letter in enumerate(access + "f") if letter == "f")  # as `threads` takes them
        self._addresses: dict[Any, int] = {}

    def __repr__(self) -> str:
        return f"Kernel({self.group}.{self.name})"

    def address(self, dtype: Any) -> int:
        """The address of the function for float32 or float64, compiled if need be."""
        found = self._addresses.get(dtype)
        if found is None:
            library = _library(self.group, np.dtype(dtype).name)
            found = self._addresses[dtype] = library.address(_symbol(self.name))
        return found


def kernel(
    group: str, access: str, multiple: int = 1, enough: int = 1, name: str | None = None
) -> Callable[[Callable[..., None]], Kernel]:
    """Make a function that emits code a `Kernel`; its name is that of the function by default."""
    return lambda build: Kernel(group, name or build.__name__, access, build, multiple, enough)


@functools.cache
def _library(group: str, dtype: str) -> llvm.Library:
    if not is_supported():
        raise RuntimeError(
            "the extra 'fast' makes code for AVX2 with FMA and F16C, AVX-512 or NEON, and this processor has none of "
            "them: unset GRADFLOW_FAST, or set GRADFLOW_FAST=0, to use NumPy's kernels"
        )
    name = f"{group}-{dtype}-{8 * target().vector_bytes}"
    return llvm.compiled(name, lambda: module_text(group, dtype, target()))


def _symbol(name: str) -> str:
    return f"kernel_{name}"  # else a kernel `exp` would be what LLVM calls for exp


def module_text(group: str, dtype: str, target: Any) -> str:
    """The LLVM IR of a group of kernels for a dtype, "float32" or "float64", and a `Target`."""
    from llvmlite import ir

    from gradflow_numpy.native import emit

    module = ir.Module(group)
    real = emit.F32 if dtype == "float32" else emit.F64
    for each in _GROUPS[group]:
        fn = emit.Function(module, _symbol(each.name), [emit.I64] * 4, real, target)
        arguments, start, stop, scratch = fn.parameters
        given = []
        for i, letter in enumerate(each.access):
            if letter == "f":
                number = fn.load(arguments + 8 * i, emit.F64)
                given.append(number.as_float(real))
            else:
                given.append(fn.load(arguments + 8 * i, emit.I64))
        each.build(fn, *given, start, stop, scratch)
        fn.finish()
    return str(module)


@functools.cache
def target() -> Any:
    """What kernels are made for on this processor: see `emit.Target`."""
    llvm.processor()  # before anything else of llvmlite, for its message where that is missing
    from gradflow_numpy.native.emit import Target

    if llvm.has("avx512f") and llvm.has("avx512vl"):
        return Target(64, 32)
    if llvm.has("avx2") and llvm.has("fma"):
        return Target(32, 16)
    return Target(16, 32)  # NEON


@functools.cache
def is_supported() -> bool:
    """Whether this processor has what kernels are made for: AVX2 with FMA and F16C, or 64-bit ARM's NEON.

    NumPy knows, while llvmlite takes a quarter of a second to import.
    """
    has = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__  # as numpy.show_runtime does
    return all(map(has.get, ("AVX2", "FMA3", "F16C"))) or bool(has.get("ASIMD"))


class Launch(NamedTuple):
    """A kernel and what it is launched with: see `launch`."""

    kernel: Kernel
    dtype: Any
    items: int
    cost: float
    arguments: tuple[Any, ...]

    def words(self) -> Any:
        """The arguments as 64-bit integers, in an array of NumPy."""
        out = np.zeros(len(self.arguments), np.int64)
        for i, (letter, x) in enumerate(zip(self.kernel.access, self.arguments, strict=True)):
            if letter == "i":
                out[i] = x
            elif letter == "f":
                out[i : i + 1].view(np.float64)[0] = x
            else:
                out[i] = 0 if x is None else x.__array_interface__["data"][0]
        return out


recorders: dict[int, Callable[[Launch], None]] = {}
"""What gets each launch of a thread that captures a step, by the identifier of the thread."""


def launch(kernel: Kernel, dtype: Any, items: int, cost: float, *arguments: Any) -> None:
    """Run a kernel on all of its items, on several threads if there is enough work.

    cost: about how many nanoseconds one thread takes for an item.
    arguments: arrays or None, integers, and numbers, as the kernel declares.
    """
    if recorders and (record := recorders.get(get_ident())) is not None:
        record(Launch(kernel, dtype, items, cost, arguments))
    work = items * cost
    size = 0 if work < threads.SMALL else threads.chunk_size(items, work, kernel)
    function = kernel._addresses.get(dtype) or kernel.address(dtype)
    (threads.current or threads.pool()).launch(function, kernel.kinds, items, size, arguments)
