"""PyTorch's rows."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from benchmarks.peers.peer import Peer, UnavailableError
from benchmarks.workloads import Workload, make_optimizer


class Eager(Peer):
    """PyTorch with its defaults."""

    device = "cpu"
    options: dict[str, Any] = {}  # noqa: RUF012  # of the optimizer

    def __init__(self, workload: Workload) -> None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        modules: list[nn.Module] = []
        for n, m in pairwise(workload.layers):
            modules += [nn.Linear(n, m), nn.ReLU()]
        self.model = nn.Sequential(*modules[:-1]).to(self.device, getattr(torch, workload.dtype))
        self.loss = nn.MSELoss() if workload.loss == "mse_loss" else nn.CrossEntropyLoss()
        self.optimizer = make_optimizer(torch.optim, workload, list(self.model.parameters()), **self.options)
        self.batches = [(self._moved(x, workload.dtype), self._moved(y, workload.dtype)) for x, y in workload.slices()]
        self._start = [torch.from_numpy(w) for w in workload.weights()]
        self.restore()

    def _moved(self, values: Any, dtype: str) -> Any:
        """Values of a batch on the device; labels stay integers."""
        return torch.from_numpy(values).to(self.device, getattr(torch, dtype) if values.dtype.kind == "f" else None)

    def compute_loss(self, x: Any, y: Any) -> Any:
        """Return the recorded loss of a batch."""
        return self.loss(self.model(x), y)

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        loss = self.compute_loss(x, y)
        loss.backward()
        self.optimizer.step()
        return loss

    def restore(self) -> None:
        with torch.no_grad():
            for parameter, start in zip(self.model.parameters(), self._start, strict=True):
                parameter.copy_(start)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()


class Fused(Eager):
    """PyTorch with a fused optimizer: one kernel updates all parameters."""

    options = {"fused": True}  # noqa: RUF012


class Compiled(Fused):
    """torch.compile of model and loss, and so of their backward pass, with a fused optimizer."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        torch._dynamo.reset()  # otherwise new shapes would be compiled as dynamic
        self.compute_loss = torch.compile(super().compute_loss, fullgraph=True)  # type: ignore[method-assign]
        try:
            self.step(*self.batches[0])
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UnavailableError(f"torch.compile fails; it needs a C++ compiler: {reason}") from error
        self.restore()
