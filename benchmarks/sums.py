"""Sums over leading axes and running sums, against PyTorch and NumPy: `python -m benchmarks.sums`.

The libraries are timed in turn, on the CPU, in float32: PyTorch on one thread per core, gradflow and NumPy on one
thread. The figures are median milliseconds.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import gradflow as gf
from benchmarks.machine import versions
from benchmarks.peers.options import Parser
from benchmarks.timing import interleaved

ROUNDS = 15
SUMS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((1_000_000, 100), (0,)), ((20_000_000, 2), (0,)), ((2000, 2000, 3), (0, 1)), ((100_000, 3), (0,)),
    ((1000, 100, 100), (0, 2)), ((1_000_000, 100), (1,)), ((512, 512), (0,)), ((64, 64), (0,)),
)  # fmt: skip


def line(
    title: str, x: Any, ours: Callable[[Any], Any], theirs: Callable[[Any], Any], own: Callable[[Any], Any]
) -> None:
    """Time a function of x in each library, and print a line."""
    import torch

    t, p = gf.tensor(x), torch.from_numpy(x)
    np.testing.assert_allclose(ours(t).numpy(), theirs(p).numpy(), rtol=1e-4)
    rows = {"gradflow": lambda: ours(t), "PyTorch": lambda: theirs(p), "NumPy": lambda: own(x)}
    found = {name: 1e3 * seconds for name, seconds in interleaved(rows, ROUNDS).items()}
    figures = "".join(f"{found[name]:12.4f}" for name in rows)
    print(f"{title:44}{figures}{found['gradflow'] / found['PyTorch']:12.2f}")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print all lines; exits with status 2 and one line if PyTorch is not installed."""
    parser = Parser(prog="python -m benchmarks.sums", description="Time sums against PyTorch and NumPy.")
    parser.parse_args(arguments)
    if importlib.util.find_spec("torch") is None:
        parser.error('PyTorch is not installed, and this compares with it; type: pip install -e ".[peers]"')
    import torch

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads)
    print(", ".join(f"{name} {version}" for name, version in versions().items()), f"- PyTorch on {threads} threads")
    print(f"{'':44}{'gradflow':>12}{'PyTorch':>12}{'NumPy':>12}{'to PyTorch':>12}")
    rng = np.random.default_rng(0)
    for shape, axes in SUMS:
        x = rng.random(shape, np.float32)
        line(
            f"sum of {shape} over {axes}", x,
            lambda t, a=axes: t.sum(axis=a), lambda p, a=axes: p.sum(a), lambda n, a=axes: n.sum(a),
        )  # fmt: skip
    for n in (1000, 3_000_000):
        x = rng.random(n, np.float32)
        line(f"running sum of {n}", x, lambda t: gf.cumulative_sum(t), lambda p: p.cumsum(0), np.cumsum)
    return 0


if __name__ == "__main__":
    sys.exit(main())
