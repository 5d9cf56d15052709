"""The products of linear layers, by NumPy's BLAS and by gradflow's tiles: `python -m benchmarks.products`.

The libraries take turns; before a turn all rest, because the threads of OpenBLAS go on to use a core for 0.1 s after a
product. A figure is the median of GFLOP/s for x W^T, the gradient of the weight, and the gradient of the input, as one
call of the backend each. This table is the reason for `rule` in `gradflow_numpy.native.linear`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from gradflow_numpy import FastNumpyBackend

from benchmarks.machine import versions
from benchmarks.peers.options import Parser, count

REST = 0.12
TURN = 0.02
"""Seconds of a turn of each library and product."""
SHAPES = [
    (32, 2, 16), (32, 16, 16), (32, 16, 1), (64, 784, 128), (64, 128, 10), (128, 64, 64), (128, 784, 512),
    (128, 512, 512), (128, 512, 10), (512, 3072, 2048), (512, 2048, 2048), (512, 2048, 10), (1, 784, 128),
    (4, 784, 128), (16, 784, 128), (1024, 784, 128), (65536, 784, 128), (1, 2048, 2048), (16, 2048, 2048),
    (64, 8192, 8192), (256, 17, 33),
]  # fmt: skip
"""Rows, inputs and outputs: the workloads of docs/cpu.md, and batches from 1 to 65,536 at widths up to 8,192."""

Calls = list[Callable[[], Any]]


def calls(rows: int, inputs: int, outputs: int, dtype: str) -> dict[str, Calls]:
    """The three products by each library."""
    rng, fast = np.random.default_rng(0), FastNumpyBackend()
    shapes = ((rows, inputs), (outputs, inputs), (rows, outputs), (rows, inputs), (outputs, inputs))
    x, w, g, gx, gw = (rng.standard_normal(shape).astype(dtype) for shape in shapes)

    def backward(needs: tuple[bool, ...], into: tuple[Any, ...]) -> Callable[[], Any]:
        return lambda: fast.linear_backward(g, g, x, w, None, None, 0.0, None, needs, into)

    return {
        "OpenBLAS": [lambda: np.dot(x, w.T), lambda: np.dot(g.T, x, gw), lambda: np.dot(g, w, gx)],
        "tiles": [
            lambda: fast.linear(x, w, None, None, 0.0)[0],
            backward((False, True, False), (None, gw, None)),
            backward((True, False, False), (gx, None, None)),
        ],
    }


def measured(libraries: dict[str, Calls], turns: int) -> dict[str, list[float]]:
    """The median seconds of each product by each library."""
    times: dict[str, list[list[float]]] = {name: [[] for _ in each] for name, each in libraries.items()}
    for _ in range(turns):
        for name, each in libraries.items():
            time.sleep(REST)
            for call, found in zip(each, times[name], strict=True):
                call()
                start, n = time.perf_counter(), 0
                while time.perf_counter() - start < TURN:
                    call()
                    n += 1
                found.append((time.perf_counter() - start) / n)
    return {name: [statistics.median(t) for t in each] for name, each in times.items()}


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = Parser(prog="python -m benchmarks.products", description="Time products by OpenBLAS and by tiles.")
    parser.add_argument("--threads", type=count, default=1, help="of each library (default 1)")
    parser.add_argument("--turns", type=count, default=7, help="of each library (default 7)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    options = parser.parse_args(arguments)
    FastNumpyBackend().set_num_threads(options.threads)
    print(
        ", ".join(f"{name} {found}" for name, found in versions().items() if name in ("gradflow", "numpy", "llvmlite"))
    )
    print(f"{options.dtype}, {options.threads} threads: GFLOP/s; and the time of tiles / OpenBLAS")
    print("| rows x inputs x outputs | OpenBLAS | tiles | time |\n|---|--:|--:|--:|")
    for shape in SHAPES:
        found = measured(calls(*shape, options.dtype), options.turns)
        rates = (" / ".join(f"{2e-9 * np.prod(shape, dtype=float) / t:.3g}" for t in each) for each in found.values())
        ratios = " / ".join(f"{b / a:.2f}" for a, b in zip(*found.values(), strict=True))
        print(f"| {' x '.join(map(str, shape))} | {' | '.join(rates)} | {ratios} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
