"""The workloads: perceptrons of a few sizes, trained by gradflow and by PyTorch with the same few lines.

`Training` has those lines. A subclass only says how its library creates the model, the data and the optimizer, so the
rows of a group differ in nothing else. `check_equal_work` also compares their gradients and losses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

import gradflow as gf
from benchmarks.machine import threads

STEPS = 10
"""The training steps of one round; each round starts from the same weights."""


@dataclass(frozen=True)
class Workload:
    """A perceptron with layers of these widths, its loss, optimizer, batch size, number of batches and dtype.

    precision: of the products, if it is not that of the dtype: "tf32" for float32 values, or "autocast" for products in
    bfloat16 with weights, gradients and moments in float32.
    """

    letter: str
    name: str
    layers: tuple[int, ...]
    batch: int
    loss: str = "cross_entropy"
    optimizer: str = "SGD"
    batches: int = 32
    dtype: str = "float32"
    precision: str = ""

    @property
    def size(self) -> str:
        """The widths of the layers; many equal widths are abbreviated."""
        widths = [str(n) for n in self.layers]
        if len(widths) > 6:
            return f"{widths[0]}-{len(widths) - 2}x{widths[1]}-{widths[-1]}"
        return "-".join(widths)

    @property
    def parameters(self) -> int:
        """The number of weights and biases."""
        return sum((n + 1) * m for n, m in pairwise(self.layers))

    def __str__(self) -> str:
        return f"{self.name}-{self.batch}"

    def data(self) -> tuple[Any, Any]:
        """Return inputs and targets for all batches, on the host; the targets are a function of the inputs."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.batch * self.batches, self.layers[0]), dtype=np.float32)
        scores = x @ rng.standard_normal((self.layers[0], self.layers[-1]), dtype=np.float32)
        return x, scores.argmax(axis=1) if self.loss == "cross_entropy" else np.tanh(scores)

    def slices(self) -> list[tuple[Any, Any]]:
        """Return the data as a list of batches."""
        x, y = self.data()
        return [(x[i : i + self.batch], y[i : i + self.batch]) for i in range(0, len(x), self.batch)]

    def weights(self) -> list[Any]:
        """Return gradflow's initial weights, on the host: a matrix (outputs, inputs) and a bias for each layer."""
        gf.manual_seed(0)
        return [p.detach().numpy() for p in gf.nn.MLP(self.layers, device="cpu").parameters()]


TINY = Workload("T", "tiny", (2, 16, 16, 1), 32, loss="mse_loss")
SMALL = Workload("S", "small", (784, 128, 10), 64)
DEEP = Workload("D", "deep", (64,) * 20 + (10,), 128)
MEDIUM = Workload("M", "medium", (784, 512, 512, 10), 128, optimizer="Adam", batches=16)
LARGE = Workload("L", "large", (3072, 2048, 2048, 10), 512, batches=8)

WORKLOADS = [TINY, SMALL, DEEP, MEDIUM]
SWEEP = [replace(SMALL, batch=batch, batches=1) for batch in (1, 8, 512, 4096)]
"""One model at several batch sizes, to show from which size on a GPU is faster."""

OPTIMIZERS: dict[str, dict[str, float]] = {"SGD": {"lr": 0.05, "momentum": 0.9}, "Adam": {"lr": 1e-3}}


class Training:
    """A model in training. Subclasses set the attributes below and implement what the libraries do differently."""

    library: str
    model: Any
    optimizer: Any
    inputs: Any
    targets: Any
    x: Any
    y: Any
    loss_function: Any

    def __init__(self, workload: Workload, device: str) -> None:
        self.workload = workload
        self.device = device

    def forward(self) -> Any:
        """Return the loss of the first batch, recorded for a backward pass."""
        return self.loss_function(self.model(self.x), self.y)

    def step(self, x: Any, y: Any) -> Any:
        """Take one training step and return the loss before it."""
        self.optimizer.zero_grad()
        loss = self.loss_function(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def steps(self, count: int = STEPS) -> Any:
        """Take steps on the first batch and return the last loss."""
        loss = None
        for _ in range(count):
            loss = self.step(self.x, self.y)
        return loss

    def epoch(self) -> float:
        """Train on all shuffled data once and return the mean loss, which is read once, at the end."""
        batch, batches = self.workload.batch, self.workload.batches
        order = self.permutation(batch * batches)
        total = 0.0
        for start in range(0, batch * batches, batch):
            part = order[start : start + batch]
            total = self.step(self.inputs[part], self.targets[part]).detach() + total
        return float(total) / batches

    def permutation(self, n: int) -> Any:
        """Return the numbers 0 to n - 1 in random order, on the device."""
        raise NotImplementedError

    def gradients(self) -> list[Any]:
        """Return the gradients of all parameters, on the host."""
        raise NotImplementedError


class GradflowTraining(Training):
    """gradflow's row."""

    library = "gradflow"

    def __init__(self, workload: Workload, device: str) -> None:
        super().__init__(workload, device)
        gf.manual_seed(0)
        self.model = gf.nn.MLP(workload.layers, device=device)
        self.optimizer = make_optimizer(gf.optim, workload, list(self.model.parameters()))
        self.inputs, self.targets = (gf.tensor(values, device=device) for values in workload.data())
        self.x, self.y = self.inputs[: workload.batch], self.targets[: workload.batch]
        self.loss_function = getattr(gf, workload.loss)

    def permutation(self, n: int) -> Any:
        return gf.random.permutation(n, device=self.device)

    def gradients(self) -> list[Any]:
        return [p.grad.cpu().numpy() for p in self.model.parameters()]


class TorchTraining(Training):
    """PyTorch's row: eager mode with default settings, on as many threads as NumPy, from gradflow's weights."""

    library = "PyTorch"

    def __init__(self, workload: Workload, device: str) -> None:
        import torch

        super().__init__(workload, device)
        torch.set_num_threads(threads())
        weights = [torch.from_numpy(w) for w in workload.weights()]
        modules: list[Any] = []
        for n, m in pairwise(workload.layers):
            modules += [torch.nn.Linear(n, m), torch.nn.ReLU()]
        self.model = torch.nn.Sequential(*modules[:-1]).to(device)
        with torch.no_grad():
            for parameter, weight in zip(self.model.parameters(), weights, strict=True):
                parameter.copy_(weight)
        self._torch = torch
        self.optimizer = make_optimizer(torch.optim, workload, list(self.model.parameters()))
        self.inputs, self.targets = (torch.from_numpy(values).to(device) for values in workload.data())
        self.x, self.y = self.inputs[: workload.batch], self.targets[: workload.batch]
        self.loss_function = getattr(torch.nn.functional, workload.loss)

    def permutation(self, n: int) -> Any:
        return self._torch.randperm(n, device=self.device)

    def gradients(self) -> list[Any]:
        return [p.grad.cpu().numpy() for p in self.model.parameters()]


TRAININGS: dict[str, type[Training]] = {t.library: t for t in (GradflowTraining, TorchTraining)}


def make_optimizer(module: Any, workload: Workload, parameters: list[Any], **options: Any) -> Any:
    """Return the workload's optimizer from a module with PyTorch's names, such as `torch.optim`."""
    return getattr(module, workload.optimizer)(parameters, **OPTIMIZERS[workload.optimizer], **options)


@cache
def check_equal_work(workload: Workload, library: str, device: str) -> None:
    """Raise AssertionError unless `library` has gradflow's first gradients and its losses over 5 steps."""
    trainings = [TRAININGS[name](workload, device) for name in ("gradflow", library)]
    losses = [[float(t.steps(1).detach())] for t in trainings]
    for i, (ours, theirs) in enumerate(zip(*(t.gradients() for t in trainings), strict=True)):
        bound = 1e-4 * np.linalg.norm(ours)
        assert np.linalg.norm(ours - theirs) <= bound > 0, f"{library} has a different gradient for parameter {i}"
    for training, history in zip(trainings, losses, strict=True):
        history += [float(training.steps(1).detach()) for _ in range(4)]
    ours, theirs = losses
    assert ours[0] != ours[-1], "the losses do not change, so comparing them proves nothing"
    assert np.allclose(ours, theirs, rtol=1e-4), f"gradflow's losses are {ours}, those of {library} {theirs}"
