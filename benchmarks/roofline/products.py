"""The three products of a linear layer: by gradflow's kernels, as its steps call them, and by NumPy's BLAS.

A row is the layer of a workload with one layer. A turn times its products one after the other.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

import gradflow as gf
from benchmarks.peers.peer import Peer
from benchmarks.peers.rows import Row
from benchmarks.peers.worker import MAX_STEPS, WARM_UP, rest
from benchmarks.workloads import Workload

PRODUCTS = ("forward", "gradient of the weight", "gradient of the input")
_HERE = "benchmarks.roofline.products"


def rows() -> dict[str, Row]:
    """The rows: gradflow's kernels of the extra `fast`, and NumPy's BLAS."""
    fast = {"GRADFLOW_FAST": "1"}
    return {
        "gradflow": Row("gradflow fast", f"{_HERE}:Gradflow", "llvmlite", extra="fast", environment=fast),
        "blas": Row("NumPy's BLAS", f"{_HERE}:NumpyBlas"),
    }


def layers(workloads: list[Workload]) -> list[Workload]:
    """Return a workload for each shape of the linear layers of workloads, whose letter it keeps."""
    found: dict[Any, Workload] = {}
    for each in workloads:
        for n, m in pairwise(each.layers):
            found.setdefault((each.batch, n, m), Workload(each.letter, "layer", (n, m), each.batch, batches=1))
    return list(found.values())


class _Products(Peer):
    """Calls of the products, which are checked against float64."""

    trains = False
    batches = ()

    def __init__(self, workload: Workload) -> None:
        (n, m), rng = workload.layers, np.random.default_rng(0)
        self.x, self.g, self.y, self.w, self.gw, self.gx = (
            rng.standard_normal(shape, dtype=np.float32)
            for shape in ((workload.batch, n), *((workload.batch, m),) * 2, *((m, n),) * 2, (workload.batch, n))
        )
        x, g, w = (a.astype(np.float64) for a in (self.x, self.g, self.w))
        self.calls = self.prepared()
        for call, (a, b) in zip(self.calls, ((x, w.T), (g.T, x), (g, w)), strict=True):
            bound = a.shape[1] * np.finfo(np.float32).eps * (np.abs(a) @ np.abs(b))
            assert (np.abs(call() - a @ b) <= bound).all(), "a product is wrong"

    def prepared(self) -> list[Callable[[], Any]]:
        """Return functions that compute and return the products, in the order of `PRODUCTS`."""
        raise NotImplementedError

    def turn(self, seconds: float) -> list[float]:
        """Return the median seconds of each product; each has a third of the time."""
        return [_median(call, seconds / len(self.calls)) for call in self.calls]


class Gradflow(_Products):
    """The kernels of linear layers, without bias and activation."""

    def prepared(self) -> list[Callable[[], Any]]:
        backend = gf.get_backend("cpu")

        def gradient(which: int) -> Any:
            needs = [i == which for i in range(3)]
            into = [buffer if need else None for buffer, need in zip((self.gx, self.gw, None), needs, strict=True)]
            arrays = (self.g, self.y, self.x, self.w)
            return backend.linear_backward(*arrays, None, None, 0.0, None, needs, into)[which]

        return [
            lambda: backend.linear(self.x, self.w, None, None, 0.0)[0],
            lambda: gradient(1),
            lambda: gradient(0),
        ]


class NumpyBlas(_Products):
    """NumPy's products."""

    def prepared(self) -> list[Callable[[], Any]]:
        return [
            lambda: np.matmul(self.x, self.w.T, out=self.y),
            lambda: np.matmul(self.g.T, self.x, out=self.gw),
            lambda: np.matmul(self.g, self.w, out=self.gx),
        ]


def _median(call: Callable[[], Any], seconds: float) -> float:
    for _ in range(WARM_UP):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or (len(times) < MAX_STEPS and time.perf_counter() < end):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    rest()
    return statistics.median(times)
