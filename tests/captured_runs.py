"""Random training runs, which a captured run must do with the bits of a plain one.

A run is settings and a list of actions: calls of several steps that share a model, and what happens between them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from captured_steps import Step, as_it_is

import gradflow as gf
from gradflow import nn, optim
from gradflow.data import Batches
from gradflow.optim import schedules
from gradflow.optim.averaging import WeightAverage

CALLS = ("train", "train", "train", "accumulate", "accumulate", "add", "evaluate", "overflow", "epoch")
"""What a run draws a few of, and then calls again and again."""
RATES: tuple[Callable[[], Any], ...] = (
    lambda: 0.05,
    lambda: schedules.cosine(0.05, 20),
    lambda: schedules.warmup(schedules.step(0.05, 4), 3),
    lambda: lambda steps: 0.05 / (1 + steps),
)
OPTIMIZERS: tuple[Callable[[Any, Any], optim.Optimizer], ...] = (
    optim.SGD,
    lambda p, lr: optim.SGD(p, lr, momentum=0.9, dampening=0.5),
    lambda p, lr: optim.SGD(p, lr, momentum=0.9, nesterov=True, weight_decay=0.01),
    optim.Adam,
    optim.AdamW,
    lambda p, lr: optim.RMSprop(p, lr, momentum=0.5, centered=True),
    lambda p, lr: optim.AdamW(p, lr, amsgrad=True, maximize=True),
    optim.NAdam,
)


class RandomRun:
    """A run that is drawn from a seed. `found` has the bits of what its actions leave."""

    def __init__(self, seed: int, through: Callable[[Step], Any] = as_it_is) -> None:
        self.random = draw = random.Random(seed)
        self.captures = through is not as_it_is
        gf.manual_seed(seed)
        activation = draw.choice(["relu", "tanh", "gelu", "silu"])
        layers = [nn.Linear(3, 6), nn.LayerNorm(6), nn.BatchNorm1d(6), nn.PReLU(6), nn.Dropout(0.2)]
        layers = [x for x in layers if isinstance(x, nn.Linear) or draw.random() < 0.5]
        self.model = nn.Sequential(*layers, nn.MLP([6, 5, 2], activation, dropout=draw.choice([0.0, 0.3])))
        parameters = list(self.model.parameters())
        make, rate = draw.choice(OPTIMIZERS), draw.choice(RATES)()
        if draw.random() < 0.4:
            halves: Any = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": draw.choice(RATES)()}]
            self.optimizers = [make(halves, rate)]
        elif draw.random() < 0.3:
            self.optimizers = [make(parameters[:3], rate), draw.choice(OPTIMIZERS)(parameters[3:], 0.02)]
        else:
            self.optimizers = [make(parameters, rate)]
        self.average = WeightAverage(self.optimizers[0], 0.9) if draw.random() < 0.3 else None
        self.clip = draw.choice([None, None, 0.5])
        half = draw.choice([None, "float16", "float16", "bfloat16"])
        self.half = half if half is not None and parameters[0].backend.supports(half) else None
        self.scaler = optim.GradScaler(2.0**16, growth_interval=3, enabled=self.half == "float16")
        self.pairs = draw.choice([1, 1, 1, 2])
        rows = np.random.default_rng(seed)
        self.inputs, self.labels = rows.normal(size=(200, 3)).astype("float32"), rows.integers(0, 2, 200)
        options: Any = {"batch_size": 4, "generator": gf.Generator(seed)}
        self.batches = Batches(self.inputs[:26], self.labels[:26], **options)
        self.steps = {name: through(getattr(self, name)) for name in ("train", "add", "update", "evaluate")}
        steps = draw.choice([2, 3, 4])
        self.epochs = gf.capture(self.train, batches=self.batches, steps=steps) if self.captures else None
        self.calls = draw.choices(CALLS, k=3)
        self.found: list[Any] = []
        self.saved: Any = None

    # ------------------------------------------------------------------ steps

    def loss(self, x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        with gf.autocast(self.half or "float16", enabled=self.half is not None):
            return gf.cross_entropy(self.model(x), y)

    def train(self, x: gf.Tensor, y: gf.Tensor) -> Any:
        for _ in range(self.pairs):
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            result = self.update(x, y)
        return result

    def add(self, x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        loss = self.loss(x, y)
        self.scaler.scale(loss).backward()
        return loss

    def update(self, x: gf.Tensor, y: gf.Tensor) -> Any:
        loss = self.add(x, y)
        found = [loss]
        if self.clip is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            found.append(optim.clip_grad_norm_(self.model.parameters(), self.clip))
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()
        return found

    def evaluate(self, x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        with gf.no_grad():
            return self.loss(x, y)

    # ------------------------------------------------------------------ what happens between them

    def rate(self) -> None:
        self.group()["lr"] = self.random.choice(RATES)()

    def hyperparameter(self) -> None:
        self.group()["weight_decay"] = self.random.choice([0.0, 0.02])

    def momentum(self) -> None:
        group = self.group()
        if "dampening" in group and not group["nesterov"]:
            group["momentum"] = self.random.choice([0.0, 0.8])

    def mode(self) -> None:
        self.model.train(not self.model.training)

    def weights(self) -> None:
        state = self.model.state_dict().items()
        self.model.load_state_dict({name: 0.9 * x if x.dtype.is_floating else x for name, x in state})

    def weight(self) -> None:
        with gf.no_grad():
            p = self.parameter()
            p *= 0.9

    def state(self) -> None:
        self.saved, saved = [x.state_dict() for x in (self.scaler, *self.optimizers)], self.saved
        if saved is not None:
            for x, state in zip((self.scaler, *self.optimizers), saved, strict=True):
                x.load_state_dict(state)

    def freeze(self) -> None:
        p = self.parameter()
        p.requires_grad_(not p.requires_grad)

    def gradient(self) -> None:
        p = self.parameter()
        if p.requires_grad:
            p.grad = None

    def clear(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=self.random.random() < 0.7)

    def seed(self) -> None:
        gf.manual_seed(self.random.randrange(5))

    def numbers(self) -> None:
        self.found.append(gf.random.uniform(3).numpy().tobytes())

    def plain(self) -> None:
        self.found.append(self.bits(self.train(*self.batch(4))))

    def error(self) -> None:
        x, y = self.batch(4)
        try:
            self.steps["train"](x[:, :2], y)
        except ValueError as error:
            self.found.append(str(error))

    def decay(self) -> None:
        if self.average is not None:
            self.average.decay = self.random.choice([0.5, 0.8])

    def interval(self) -> None:
        self.scaler.growth_interval = self.random.choice([2, 4])

    def look(self) -> None:
        """The bits of everything that the steps have left."""
        parameters = list(self.model.parameters())
        entries = [x.state_dict() for x in (*self.optimizers, self.scaler, *filter(None, [self.average]))]
        self.found.append([
            self.bits([*parameters, *self.model.buffers()]), self.bits([p.grad for p in parameters]),
            self.bits(entries), gf.random.default_generator.state_dict(),
        ])  # fmt: skip

    # ------------------------------------------------------------------ a run

    def group(self) -> dict[str, Any]:
        return self.random.choice(self.random.choice(self.optimizers).param_groups)

    def parameter(self) -> gf.Tensor:
        return self.random.choice(list(self.model.parameters()))

    def batch(self, rows: int) -> tuple[gf.Tensor, gf.Tensor]:
        start = self.random.randrange(190)
        return gf.tensor(self.inputs[start : start + rows]), gf.tensor(self.labels[start : start + rows])

    def bits(self, tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: self.bits(x) for key, x in tree.items() if not callable(x)}
        if isinstance(tree, (list, tuple)):
            return [self.bits(x) for x in tree]
        return tree.detach().numpy().tobytes() if isinstance(tree, gf.Tensor) else tree

    def call(self, name: str) -> None:
        if name == "epoch":
            if self.epochs is not None:
                for item in self.epochs.epoch():
                    self.found += [self.bits([x[i] for x in item]) for i in range(len(item[0]))]
            else:
                for batch in self.batches.epoch():
                    self.found.append(self.bits(self.train(*batch)))
            return
        if name == "accumulate":
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            for each in ("add", "add", "update"):
                self.call(each)
            return
        x, y = self.batch(4 if self.random.random() < 0.9 else 3)
        if name == "overflow":
            name, x = "train", x * float("inf") if self.scaler.enabled else x
        try:
            self.found.append(self.bits(self.steps[name](x, y)))
        except RuntimeError as error:  # of a scaler, without a gradient
            self.found.append(str(error))

    def run(self, actions: int) -> list[Any]:
        between = [self.rate, self.hyperparameter, self.momentum, self.mode, self.weights, self.weight, self.state,
                   self.freeze, self.gradient, self.clear, self.seed, self.numbers, self.plain, self.error, self.decay,
                   self.interval, self.look]  # fmt: skip
        for _ in range(actions):
            if self.random.random() < 0.2:
                self.random.choice(between)()
            self.call(self.random.choice(self.calls))
        self.look()
        return self.found
