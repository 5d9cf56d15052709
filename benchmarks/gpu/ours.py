"""gradflow's rows."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import gradflow as gf
from benchmarks.gpu.queued import DEVICE, Queued
from benchmarks.peers import ours
from benchmarks.peers.peer import UnavailableError
from benchmarks.workloads import Workload

if DEVICE == "emulated":
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    importlib.import_module("conformance_emulated")  # registers the device


def offered(name: str) -> Any:
    """A public name of gradflow. Raises UnavailableError if this version has none."""
    if not hasattr(gf, name):
        raise UnavailableError(f"this version of gradflow has no gradflow.{name}")
    return getattr(gf, name)


def set_precision(precision: str) -> None:
    """Set the precision of float32 products. Raises UnavailableError for TF32 if this version has none."""
    if precision == "tf32" or hasattr(gf, "set_matmul_precision"):
        offered("set_matmul_precision")(precision)


class Plain(Queued, ours.Gradflow):
    """A step of gradflow, as written, from the weights that all rows have."""

    device = DEVICE

    def __init__(self, workload: Workload) -> None:
        self._autocast = offered("autocast") if workload.precision == "autocast" else None
        set_precision("tf32" if workload.precision == "tf32" else "highest")
        super().__init__(workload)
        weights = [self._moved(w, workload.dtype) for w in workload.weights()]
        self._start = dict(zip(self._start[0], weights, strict=True)), self._start[1]
        self.restore()

    def step(self, x: Any, y: Any) -> Any:
        if self._autocast is None:
            return super().step(x, y)
        self.optimizer.zero_grad()
        with self._autocast("bfloat16"):
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
            with offered("profile")() as found:
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
        if self._captured.status != "replaying":
            raise UnavailableError(f"the captured step isn't replayed: {self._captured.status}")
        return found


class Steps(Plain):
    """Several steps in one graph, with the batches gathered on the device."""

    def __init__(self, workload: Workload) -> None:
        if "steps" not in inspect.signature(gf.capture).parameters:
            raise UnavailableError("this version of gradflow.capture takes no steps")
        super().__init__(workload)
