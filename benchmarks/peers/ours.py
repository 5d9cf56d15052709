"""gradflow's rows."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any

import gradflow as gf
from benchmarks.peers.peer import Peer, UnavailableError
from benchmarks.peers.worker import CHECKED_STEPS
from benchmarks.workloads import Workload, make_optimizer
from gradflow import nn, optim


class Gradflow(Peer):
    """gradflow on the CPU; the environment of its process selects the kernels."""

    device = "cpu"

    def __init__(self, workload: Workload) -> None:
        gf.manual_seed(0)
        self.model = nn.MLP(workload.layers, device=self.device, dtype=workload.dtype)
        self.loss = nn.MSELoss() if workload.loss == "mse_loss" else nn.CrossEntropyLoss()
        self.optimizer = make_optimizer(optim, workload, list(self.model.parameters()))
        self._start = self.model.state_dict(), self.optimizer.state_dict()
        self.batches = [(self._moved(x, workload.dtype), self._moved(y, workload.dtype)) for x, y in workload.slices()]

    def _moved(self, values: Any, dtype: str) -> Any:
        """Values of a batch on the device; labels stay integers."""
        return gf.tensor(values, device=self.device, dtype=dtype if values.dtype.kind == "f" else None)

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        loss = self.loss(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def restore(self) -> None:
        self.model.load_state_dict(self._start[0])
        self.optimizer.load_state_dict(self._start[1])


class Captured(Gradflow):
    """The same step, captured, and replayed from the first one that is measured on."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._captured: Any = gf.capture(super().step)
        for batch in islice(cycle(self.batches), CHECKED_STEPS):
            self.step(*batch)
        check_replayed(self._captured)
        self.restore()

    def step(self, x: Any, y: Any) -> Any:
        return self._captured(x, y)


def check_replayed(captured: Any) -> None:
    """Raise UnavailableError, with the reason, if the last step was not replayed."""
    if not captured.status.startswith("replaying"):
        raise UnavailableError(f"the captured step isn't replayed: {captured.status}")
