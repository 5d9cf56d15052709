"""gradflow's rows."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
from pathlib import Path
from typing import Any

import gradflow as gf
from benchmarks.gpu.queued import DEVICE, Queued
from benchmarks.peers import ours
from benchmarks.peers.ours import check_replayed
from benchmarks.peers.worker import CHECKED_STEPS
from benchmarks.workloads import Workload
from gradflow.data import Batches

STEPS = 32
"""The most steps of a graph of `Steps`."""

if DEVICE == "emulated":
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    importlib.import_module("conformance_emulated")  # registers the device


class Plain(Queued, ours.Gradflow):
    """A step of gradflow, as written, from the weights that all rows have."""

    device = DEVICE

    def __init__(self, workload: Workload) -> None:
        gf.set_matmul_precision("tf32" if workload.precision == "tf32" else "highest")
        self._autocast = workload.precision == "autocast"
        super().__init__(workload)
        weights = [self._moved(w, workload.dtype) for w in workload.weights()]
        self._start = dict(zip(self._start[0], weights, strict=True)), self._start[1]
        self.restore()

    def step(self, x: Any, y: Any) -> Any:
        if not self._autocast:
            return super().step(x, y)
        self.optimizer.zero_grad()
        with gf.autocast("bfloat16"):
            loss = self.loss(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def synchronize(self) -> None:
        gf.synchronize(self.device)

    def mark(self) -> Any:
        event = gf.get_backend(self.device).event()
        event.record()
        return event

    def seconds_between(self, first: Any, last: Any) -> float:
        return float(last.seconds_since(first))

    def facts(self) -> dict[str, Any]:
        """Return what a step launches and moves, by gradflow's profile, and which kernels compute it."""
        for _ in range(2):
            with gf.profile() as found:
                self.step(*self.batches[0])
        total = found.total
        moved = {"bytes_read": total.bytes_read, "bytes_written": total.bytes_written}
        return {"launches": total.launches, **moved, "kernels": gf.get_backend(self.device).kernels()}


class Captured(Plain):
    """The same step, captured."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._captured: Any = gf.capture(super().step)

    def step(self, x: Any, y: Any) -> Any:
        return self._captured(x, y)

    def turn(self, seconds: float) -> tuple[float, float | None]:
        found = super().turn(seconds)
        check_replayed(self._captured)
        return found

    def facts(self) -> dict[str, Any]:
        """Return how steps are replayed, the nodes of the graph, and the launches of a replay, with its copies.

        Without the bytes: those that a graph moves are not counted.
        """
        launches = super().facts()["launches"]
        return {"status": self._captured.status, "graph_nodes": graph_nodes(), "launches": launches}


class Steps(Plain):
    """All batches of the workload, at most 32 steps, in one graph that gathers the batches on the device."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        x, y = (self._moved(values, workload.dtype).numpy() for values in workload.data())
        batches = Batches(x, y, workload.batch, shuffle=False, device=self.device, keep="device")
        self.unit = min(STEPS, workload.batches)
        self._run: Any = gf.capture(super().step, batches=batches, steps=self.unit)
        for _ in range(3):  # single steps, then graphs
            self._epoch()
        self.restore()
        epochs = -(-CHECKED_STEPS // workload.batches)
        self._losses = iter([loss for _ in range(epochs) for losses in self._epoch() for loss in losses])

    def step(self, x: Any, y: Any) -> Any:
        """Return the loss of the next step, of those that were taken together: its batches are `x` and `y`."""
        return next(self._losses)

    def run(self, count: int) -> None:
        for _ in range(count // len(self.batches)):
            self._epoch()

    def turn(self, seconds: float) -> tuple[float, float | None]:
        found = super().turn(seconds)
        check_replayed(self._run)
        return found

    def facts(self) -> dict[str, Any]:
        """Return how steps are replayed, the nodes of the graphs, and what all steps of an epoch launch."""
        self._epoch()
        with gf.profile() as found:
            self._epoch()
        launches = {"launches_an_epoch": found.total.launches, "steps_an_epoch": len(self.batches)}
        return {"status": self._run.status, "graph_nodes": graph_nodes(), **launches}

    def _epoch(self) -> list[Any]:
        return list(self._run.epoch())


def graph_nodes() -> list[int]:
    """Return the number of nodes of each graph of this process."""
    steps = [each for each in gc.get_objects() if type(each).__name__ == "StepGraph"]
    return [_nodes(each._graph) for each in steps if each._graph is not None]


def _nodes(graph: Any) -> int:
    """Return the number of nodes of a graph of CuPy's, or of the emulated one."""
    if DEVICE == "emulated":
        return len(graph.names)
    count = ctypes.c_size_t()
    status = ctypes.CDLL("libcuda.so.1").cuGraphGetNodes(ctypes.c_void_p(graph.graph), None, ctypes.byref(count))
    if status:
        raise RuntimeError(f"cuGraphGetNodes: status {status}")
    return count.value
