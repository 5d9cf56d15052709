"""Kernels compiled for any target, and launched in parts, in any order; and what a call launches."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from threading import get_ident
from typing import Any

import numpy as np
from gradflow_numpy.native import emit, kernels, llvm
from gradflow_numpy.native.kernels import Kernel, Launch


@functools.cache
def function_of(kernel: Kernel, dtype: str, target: emit.Target) -> Callable[..., None]:
    """The function of a kernel, compiled for a target."""
    group = f"{kernel.group}.{kernel.name} alone"
    kernels._GROUPS[group] = [kernel]
    try:
        library = llvm.Library(llvm.object_code(kernels.module_text(group, dtype, target)))
    finally:
        del kernels._GROUPS[group]
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(library.address(f"kernel_{kernel.name}"))
    function.library = library  # type: ignore[attr-defined]
    return function


def launches_of(call: Callable[[], Any]) -> tuple[Any, list[Launch]]:
    """The result of a call, and what it launches."""
    found: list[Launch] = []
    kernels.recorders[get_ident()] = found.append
    try:
        return call(), found
    finally:
        del kernels.recorders[get_ident()]


def again(launched: Launch, target: emit.Target | None = None, parts: Any = None) -> None:
    """Launch again, on the same arrays: for a target, in parts of random sizes in random order (a random generator)."""
    target, items = kernels.target() if target is None else target, launched.items
    function = function_of(launched.kernel, np.dtype(launched.dtype).name, target)
    words, scratch = launched.words(), np.empty(kernels.SCRATCH + 64, np.uint8)
    ranges = [(0, items)]
    if parts is not None:
        cuts = np.unique(np.concatenate([[0, items], parts.integers(0, items + 1, parts.integers(0, 6))]))
        ranges = list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))
        parts.shuffle(ranges)
    for start, stop in ranges:
        function(words.ctypes.data, start, stop, (scratch.ctypes.data + 63) // 64 * 64)


def assert_every_launch_gives_the_same_bits(call: Callable[[], Any], target: emit.Target, parts: Any) -> None:
    """Launching what a call launches, for another target and in other parts, writes what the call wrote."""
    _, launched = launches_of(call)
    assert launched
    for each in launched:
        changed = [x for x, letter in zip(each.arguments, each.kernel.access, strict=True)
                   if letter in "wW" and x is not None]  # fmt: skip
        expected = [x.tobytes() for x in changed]
        for x in changed:
            x.reshape(-1).view(np.uint8)[...] = 255  # NaN
        again(each, target, parts)
        assert [x.tobytes() for x in changed] == expected, each.kernel
