"""What the device reaches at best: the rate of a large copy, and of large products in each precision.

`python -m benchmarks.gpu.ceilings DEVICE` prints them as JSON: bytes a second, read plus written, and operations a
second, two for each multiply-add. A kind of product that cannot be measured has a reason in place of the number.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import gradflow as gf

COPY, WIDTH = 1 << 28, 8192  # values that are copied, and the width of the square matrices
PRODUCTS = {"float32": ("float32", "highest"), "tf32": ("float32", "tf32"), "bfloat16": ("bfloat16", "highest")}
"""For each precision: the dtype of the factors, and the precision to set."""
_REPEATS, _TURNS = 10, 3


def rate(device: str, function: Any, amount: float) -> float:
    """Return the amount a second, in the best of several turns: a ceiling is what the device can do undisturbed."""
    times = []
    for _ in range(_TURNS + 1):  # the first one warms up
        gf.synchronize(device)
        start = time.perf_counter()
        for _ in range(_REPEATS):
            function()
        gf.synchronize(device)
        times.append((time.perf_counter() - start) / _REPEATS)
    return amount / min(times[1:])


def products(device: str, width: int) -> dict[str, Any]:
    """Return the rate of products of random square matrices, by precision."""
    backend, found = gf.get_backend(device), {}
    for name, (dtype, precision) in PRODUCTS.items():
        try:
            gf.set_matmul_precision(precision)
            a, b = (gf.random.normal((width, width), device=device).astype(dtype).array for _ in range(2))
            out = backend.empty((width, width), dtype=backend.dtypes[dtype])
            found[name] = rate(device, lambda a=a, b=b, out=out: backend.gemm(a, b, out), 2.0 * width**3)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def main(device: str) -> None:
    """Measure and print."""
    n, width = (COPY, WIDTH) if device == "cuda" else (1 << 12, 16)
    x = gf.random.normal((n,), device=device)
    copied = rate(device, lambda: x.backend.copy(x.array), 2.0 * 4 * n)
    print(json.dumps({"copy_bytes_per_second": copied, "operations_per_second": products(device, width)}))


if __name__ == "__main__":
    main(sys.argv[1])
