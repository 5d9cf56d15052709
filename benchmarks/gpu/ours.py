"""gradflow's rows."""

from __future__ import annotations

import importlib
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


class Plain(Queued, ours.Gradflow):
    """A step of gradflow, as written, from the weights that all rows have."""

    device = DEVICE

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        weights = [self._moved(w, workload.dtype) for w in workload.weights()]
        self._start = dict(zip(self._start[0], weights, strict=True)), self._start[1]
        self.restore()

    def synchronize(self) -> None:
        gf.synchronize(self.device)


class Captured(Plain):
    """The same step, captured."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._captured = gf.capture(super().step)

    def step(self, x: Any, y: Any) -> Any:
        return self._captured(x, y)

    def turn(self, seconds: float) -> float:
        found = super().turn(seconds)
        if self._captured.status != "replaying":  # type: ignore[attr-defined]
            raise UnavailableError(f"the captured step isn't replayed: {self._captured.status}")  # type: ignore[attr-defined]
        return found
