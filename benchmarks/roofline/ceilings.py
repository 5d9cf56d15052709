"""The peak of multiply-adds, and the bandwidths of reading from caches and memory, by loops of native code (float32).

The threads are Python's, which native code does not hold up. A ceiling is what the machine can do undisturbed, so the
figures are the best of several turns.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

SECONDS, TURNS = 0.01, 50
_CHAINS = {32: 24, 16: 12}
"""By vector registers: sums that are computed at the same time, so that none waits for the addition before."""
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL = {2: 512 << 10, 3: 32 << 20}


def measure(threads: int) -> dict[str, Any]:
    """Return operations a second on one thread and on all, two for each multiply-add, and bytes a second on all."""
    multiply_add, read, per_turn = _functions()
    sizes = cache_sizes()
    found: dict[str, Any] = {
        "operations_per_second": {
            str(n): rate(n, lambda _, repeats: multiply_add(_pointer(_factors), repeats), per_turn)
            for n in sorted({1, threads})
        },
        "read_bytes_per_second": {},
        "bytes_per_thread": {"L2": sizes[2] // 2, "L3": sizes[3] // 4 // threads, "memory": 4 * sizes[3]},
    }
    for name, size in found["bytes_per_thread"].items():
        arrays = [np.ones(size // 4, np.float32) for _ in range(threads)]

        def work(i: int, repeats: int, arrays: list[Any] = arrays) -> None:
            read(_pointer(arrays[i]), arrays[i].size, repeats)

        found["read_bytes_per_second"][name] = rate(threads, work, arrays[0].nbytes)
    return found


def rate(threads: int, work: Callable[[int, int], None], amount: float) -> float:
    """Return the amount a second that threads reach together.

    work(i, repeats): what thread i does, `repeats` times the amount.
    """
    repeats = 1
    while _seconds(work, repeats) < SECONDS:
        repeats *= 2
    barrier = threading.Barrier(threads)
    best = 0.0

    def timed(i: int) -> tuple[float, float]:
        barrier.wait()
        start = time.perf_counter()
        work(i, repeats)
        return start, time.perf_counter()

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(TURNS):
            starts, ends = zip(*pool.map(timed, range(threads)), strict=True)
            best = max(best, threads * repeats * amount / (max(ends) - min(starts)))
    return best


def cache_sizes() -> dict[int, int]:
    """Return the bytes of the caches of levels 2 and 3, of usual ones where the system does not tell."""
    found = dict(_USUAL)
    for index in _CACHES.glob("index*"):
        level, size = int((index / "level").read_text()), (index / "size").read_text().strip()
        if level in found and size.endswith("K"):
            found[level] = 1024 * int(size[:-1])
    return found


_factors = np.array([0.5, 1.0, 0.0], np.float32)  # x, y in a <- a x + y, and where the sum is written


def _pointer(array: Any) -> int:
    return int(array.ctypes.data)


def _seconds(work: Callable[[int, int], None], repeats: int) -> float:
    start = time.perf_counter()
    work(0, repeats)
    return time.perf_counter() - start


def _functions() -> tuple[Callable[..., None], Callable[..., None], float]:
    """Return multiply_add(factors, repeats), read(array, size, repeats), and the operations of one repeat."""
    from gradflow_numpy.native import emit, kernels, llvm
    from llvmlite import ir

    target = kernels.target()
    chains, module = _CHAINS[target.registers], ir.Module("ceilings")

    fn = emit.Function(module, "multiply_add", [emit.I64] * 2, emit.F32, target)
    factors, repeats = fn.parameters
    x, y = (fn.load(factors + 4 * i, emit.F32).splat(fn.lanes) for i in range(2))
    sums = [fn.variable(fn.vector(i)) for i in range(chains)]
    with fn.loop(0, repeats):
        for each in sums:
            each.set(fn.fma(each.get(), x, y))
    _write_total(fn, sums, factors + 8)
    per_turn = 2.0 * chains * fn.lanes

    fn = emit.Function(module, "read", [emit.I64] * 3, emit.F32, target)
    array, size, repeats = fn.parameters
    sums = [fn.variable(fn.vector(0)) for _ in range(8)]
    with fn.loop(0, repeats), fn.loop(0, size - len(sums) * fn.lanes + 1, len(sums) * fn.lanes) as i:
        for j, each in enumerate(sums):
            each.set(each.get() + fn.load(array + (i + j * fn.lanes) * 4))
    _write_total(fn, sums, array)

    text = str(module)
    library = llvm.compiled(f"ceilings-{hashlib.sha256(text.encode()).hexdigest()[:16]}", lambda: text)
    signature = ctypes.CFUNCTYPE
    multiply_add = signature(None, *[ctypes.c_int64] * 2)(library.address("multiply_add"))
    return multiply_add, signature(None, *[ctypes.c_int64] * 3)(library.address("read")), per_turn


def _write_total(fn: Any, sums: list[Any], address: Any) -> None:
    """End the function: write the sum of all lanes, so that none of them is left out."""
    total = sums[0].get()
    for each in sums[1:]:
        total = total + each.get()
    number = total.lane(0)
    for i in range(1, fn.lanes):
        number = number + total.lane(i)
    fn.store(number, address)
    fn.finish()
