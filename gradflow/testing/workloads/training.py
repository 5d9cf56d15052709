"""Optimizers, and short training runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import gradflow as gf
from gradflow import nn, optim
from gradflow.testing.tolerances import host
from gradflow.testing.workloads.workload import EPS, Check, Place, Workload, f64

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=1e-3),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.005, momentum=0.5),
    "nadam": lambda p: optim.NAdam(p, lr=0.005),
}
FURTHER: dict[str, Callable[..., optim.Optimizer]] = {
    "amsgrad": lambda p: optim.Adam(p, lr=0.01, amsgrad=True),
    "radam": lambda p: optim.RAdam(p, lr=0.01),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05, lr_decay=0.01),
    "lion": lambda p: optim.Lion(p, lr=0.001, weight_decay=0.1),
}
"""Optimizers that take single steps only. Runs with Lion differ: it rounds a sum near 0 to -1 or 1."""

INPUTS, CLASSES, SAMPLES, BATCH, EPOCHS = 20, 4, 160, 32, 4
STEPS = EPOCHS * SAMPLES // BATCH


def workloads() -> Iterator[Workload]:
    """Yield the workloads of this file."""
    for name in (*OPTIMIZERS, *FURTHER):
        yield Workload("optimizers", partial(_optimizer, name))
    yield Workload(f"training, {STEPS} steps", _start_of_training, exact=True)
    for name in OPTIMIZERS:
        yield Workload(f"training, {STEPS} steps", partial(_training, name))
    yield Workload(f"training, {STEPS} steps", _moved_training)


def _optimizer(name: str, at: Place) -> list[Check]:
    """About ten roundings in each of 10 steps, of numbers below 2: 10 * 10 eps * 2.

    Gradients are kept away from 0, where Adam and RMSprop would divide one rounding error by another.
    """
    p = at.normal((1000,), 1, grad=True)
    optimizer = (OPTIMIZERS | FURTHER)[name]([p])
    for step in range(10):
        g = np.random.default_rng(step + 2).normal(size=1000)
        p.grad = at.tensor(np.sign(g) * (np.abs(g) + 0.1))
        optimizer.step()
    return [Check(f"10 steps of {name}", p, "200 eps max(1, |p|)", lambda: 200 * EPS * np.maximum(1, np.abs(f64(p))))]


class Run:
    """A training run in which weights, shuffles and dropout draw from one generator."""

    def __init__(self, at: Place, optimizer: str, seed: int = 5) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(SAMPLES, INPUTS))
        labels = (x @ rng.normal(size=(INPUTS, CLASSES))).argmax(axis=1)
        self.device = at.device
        self.generator = gf.Generator(seed)
        first = nn.MLP([INPUTS, 32, 32], "tanh", 0.2, device=at.device, generator=self.generator)
        last = nn.Linear(32, CLASSES, device=at.device, generator=self.generator)
        self.model = nn.Sequential(first, nn.LayerNorm(32, device=at.device), nn.ReLU(), last).to(at.dtype)
        self.x, self.labels = at.tensor(x), at.tensor(labels)
        rate = optim.schedules.warmup(optim.schedules.cosine(0.05 if optimizer == "sgd" else 0.005, STEPS), 5)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.optimizer.param_groups[0]["lr"] = rate

    def losses(self, epochs: int = EPOCHS) -> Any:
        """Train for some epochs and return the loss of each step."""
        losses = []
        for _ in range(epochs):
            order = gf.random.permutation(SAMPLES, device=self.device, generator=self.generator)
            for start in range(0, SAMPLES, BATCH):
                rows = order[start : start + BATCH]
                self.optimizer.zero_grad()
                logits = self.model(gf.take(self.x, rows, axis=0))
                loss = gf.cross_entropy(logits, gf.take(self.labels, rows, axis=0))
                loss.backward()
                optim.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                losses.append(loss.detach())
        return gf.stack(losses)

    def state(self) -> dict[str, Any]:
        """Return everything that determines how the run continues."""
        return {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "generator")}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from the state of another run."""
        for name, content in state.items():
            getattr(self, name).load_state_dict(content)


def _start_of_training(at: Place) -> list[Check]:
    run = Run(at, "sgd")
    weights = gf.concat([gf.reshape(p.detach(), (-1,)) for p in run.model.parameters()])
    return [
        Check("weights before the first step", weights),
        Check("the first shuffle", gf.random.permutation(SAMPLES, device=at.device, generator=run.generator)),
    ]


def _of_losses(losses: Any) -> Any:
    """The bound of the losses: in each step, sums of at most K = 33 terms have an error of at most K eps, in 3 layers,
    forward and backward. At these learning rates a step does not enlarge differences."""
    return STEPS * 6 * 33 * EPS * np.abs(f64(losses))


def _training(optimizer: str, at: Place) -> list[Check]:
    losses = Run(at, optimizer).losses()
    return [Check(f"losses with {optimizer}", losses, "6 K eps loss x steps, K = 33", lambda: _of_losses(losses))]


def _moved_training(at: Place) -> list[Check]:
    """The first half of a run on the CPU and the second half here, and the other way round."""

    def losses(first: Place, second: Place) -> Any:
        start, rest = Run(first, "adam"), Run(second, "adam")
        before = host(start.losses(EPOCHS // 2))
        rest.load(start.state())
        return np.concatenate([before, host(rest.losses(EPOCHS - EPOCHS // 2))])

    cpu = at._replace(device="cpu")
    found = {"moved from the CPU midway": losses(cpu, at), "moved to the CPU midway": losses(at, cpu)}
    return [
        Check(what, values, "6 K eps loss x steps, K = 33", partial(_of_losses, values))
        for what, values in found.items()
    ]  # fmt: skip
