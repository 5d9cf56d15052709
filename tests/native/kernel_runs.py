"""Kernels compiled for any vectors, and run on any ranges of their items."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from gradflow_numpy.native import emit, kernels, llvm


def runner(kernel: kernels.Kernel, dtype: str, target: emit.Target) -> Any:
    """A function `run(ranges, *arguments)` that runs a kernel on ranges of items, one after another.

    arguments: arrays, None or integers, as in `kernels.launch`; no float64 numbers.
    """
    text = kernels.module_text(kernel.group, dtype, target)
    library = llvm.Library(llvm.object_code(text))
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(library.address(f"kernel_{kernel.name}"))
    scratch = np.empty(1 << 20, np.uint8)

    def run(ranges: Sequence[tuple[int, int]], *arguments: Any) -> None:
        words = [0 if x is None else x if isinstance(x, int) else x.ctypes.data for x in arguments]
        given = np.array(words, np.int64)
        for start, stop in ranges:
            function(given.ctypes.data, start, stop, scratch.ctypes.data)

    run.library = library  # type: ignore[attr-defined]
    return run
