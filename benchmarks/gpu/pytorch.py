"""PyTorch's rows, all with the fused optimizer."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.queued import DEVICE, Queued, no_cuda, to_cpu
from benchmarks.peers import pytorch
from benchmarks.peers.peer import UnavailableError
from benchmarks.workloads import Workload


class Eager(Queued, pytorch.Fused):
    """A step of eager PyTorch."""

    device = to_cpu(DEVICE)

    def __init__(self, workload: Workload) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UnavailableError(no_cuda("PyTorch", torch.__version__))
        torch.set_float32_matmul_precision("high" if workload.precision == "tf32" else "highest")
        self._autocast = workload.precision == "autocast"
        super().__init__(workload)

    def mark(self) -> Any:
        if self.device != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds_between(self, first: Any, last: Any) -> float:
        return float(first.elapsed_time(last)) / 1000.0

    def objective(self) -> Any:
        """Return model and loss as one module, in mixed precision if the workload is."""
        return _Objective(self.model, self.loss, self.device if self._autocast else None)

    def compute_loss(self, x: Any, y: Any) -> Any:
        if not self._autocast:
            return super().compute_loss(x, y)
        with torch.autocast(self.device, torch.bfloat16):
            return super().compute_loss(x, y)

    def facts(self) -> dict[str, Any]:
        """Return the kernels, copies and fills that a step runs on the GPU, as the profiler counts them."""
        if self.device != "cuda":
            return {}
        from torch.profiler import ProfilerActivity, profile

        self.step(*self.batches[0])
        self.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            self.step(*self.batches[0])
            self.synchronize()
        events = [event for event in found.events() if event.device_type.name == "CUDA"]
        return {"on_the_device": len(events)}

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


class _Objective(torch.nn.Module):
    """Model and loss as one module, whose weights torch.compile finds."""

    def __init__(self, model: Any, loss: Any, autocast: str | None) -> None:
        super().__init__()
        self.model, self.loss, self.autocast = model, loss, autocast

    def forward(self, x: Any, y: Any) -> Any:
        if self.autocast is None:
            return self.loss(self.model(x), y)
        with torch.autocast(self.autocast, torch.bfloat16):
            return self.loss(self.model(x), y)


class Compiled(Eager):
    """torch.compile of model and loss, and so of their backward pass, with CUDA graphs."""

    mode = "reduce-overhead"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        torch._dynamo.reset()  # otherwise new shapes would be compiled as dynamic
        mode = self.mode if self.device == "cuda" else "default"  # of the processor, only compiling is the same
        self.compute_loss = torch.compile(self.objective(), fullgraph=True, mode=mode)  # type: ignore[method-assign]
        for batch in self.batches[:3]:
            self.step(*batch)
        self.synchronize()
        self.restore()


class Tuned(Compiled):
    """The same, with kernels chosen by measuring them."""

    mode = "max-autotune"


class Graph(Eager):
    """The whole step (loss, gradient, update) captured by hand in a CUDA graph, with a copy of the batch before it.

    In a dry run there is no graph to capture; then the step runs as it is.
    """

    options = {"fused": True, "capturable": True}  # noqa: RUF012

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._graph: Any = None
        if self.device == "cuda":
            self._capture()
            self.restore()

    def _capture(self) -> None:
        self._x, self._y = (values.clone() for values in self.batches[0])
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                super().step(self._x, self._y)
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._loss = super().step(self._x, self._y)
        self._graph = graph

    def step(self, x: Any, y: Any) -> Any:
        if self._graph is None:
            return super().step(x, y)
        self._x.copy_(x)
        self._y.copy_(y)
        self._graph.replay()
        return self._loss


class CompiledGraph(Graph):
    """The same, of the compiled loss, which has fewer kernels."""

    def __init__(self, workload: Workload) -> None:
        torch._dynamo.reset()
        self._compiled: Any = None
        super().__init__(workload)

    def compute_loss(self, x: Any, y: Any) -> Any:
        if self._compiled is None:
            self._compiled = torch.compile(self.objective(), fullgraph=True)
        return self._compiled(x, y)
