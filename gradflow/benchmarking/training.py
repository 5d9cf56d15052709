"""The training step that is measured, the same on every device."""

from __future__ import annotations

import copy
import itertools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

import gradflow as gf
from gradflow.dtypes import as_dtype
from gradflow.training.runs.settings import OPTIMIZER_CLASSES, OPTIMIZERS

_RATE = 1e-3
_MOST_BATCHES, _MOST_VALUES = 8, 1 << 24  # different batches, and the inputs of all of them


@dataclass(frozen=True)
class Task:
    """What is trained: a perceptron with layers of these widths, in one of `DTYPES`, by one of `OPTIMIZERS`."""

    layers: tuple[int, ...]
    dtype: str = "float32"
    optimizer: str = "adam"
    activation: str = "relu"

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.layers))}, {self.activation}, {self.loss}, {self.optimizer}, {self.dtype}"

    @property
    def kept(self) -> str:
        """The dtype of parameters, gradients, moments and data."""
        return self.dtype if self.dtype in ("float64", "float16", "bfloat16") else "float32"

    @property
    def product(self) -> str:
        """The dtype that products need."""
        return self.kept if self.dtype == "tf32" else self.dtype.removeprefix("autocast-")

    def mode(self) -> AbstractContextManager[Any]:
        """Return a context manager in which to compute the loss."""
        return gf.autocast(self.product) if self.dtype.startswith("autocast") else nullcontext()

    @property
    def loss(self) -> str:
        """The name of the loss: squared error for one output, else cross-entropy."""
        return "mse_loss" if self.layers[-1] == 1 else "cross_entropy"

    @property
    def parameters(self) -> int:
        """The number of weights and biases."""
        return sum((n + 1) * m for n, m in itertools.pairwise(self.layers))

    def least_bytes(self, batch: int) -> int:
        """A lower bound on the bytes of training: parameters, gradients, a moment, and the values of a batch."""
        return as_dtype(self.kept).itemsize * (3 * self.parameters + batch * sum(self.layers))

    @cached_property
    def model(self) -> gf.nn.Module:
        """The model at its start, on the CPU: drawing weights takes more memory than training does."""
        draws = gf.Generator(0)
        return gf.nn.MLP(self.layers, self.activation, device="cpu", dtype=self.kept, generator=draws)

    def data(self, device: str, batch: int) -> list[tuple[Any, Any]]:
        """Random batches on a device: some processors compute faster with zeros."""
        rng, found = np.random.default_rng(0), []
        for _ in range(max(1, min(_MOST_BATCHES, _MOST_VALUES // (batch * self.layers[0])))):
            x = rng.standard_normal((batch, self.layers[0]), dtype=np.float32)
            y = rng.integers(self.layers[-1], size=batch) if self.layers[-1] > 1 else x[:, :1]
            found.append((gf.tensor(x, self.kept, device), gf.tensor(y, None if y.ndim == 1 else self.kept, device)))
        return found


class Training:
    """A model in training on a device: `plain` takes a step as written, `captured` the same step captured.

    The initial weights are equal bit for bit on every device.
    """

    def __init__(self, task: Task, device: str) -> None:
        self._mode = task.mode
        self._model = copy.deepcopy(task.model).to(device)
        self._loss = getattr(gf, task.loss)
        algorithm = OPTIMIZER_CLASSES[task.optimizer]
        self._optimizer = algorithm(self._model.parameters(), **{**OPTIMIZERS[task.optimizer], "lr": _RATE})
        self.captured = gf.capture(self.plain)

    def plain(self, x: Any, y: Any) -> Any:
        """Take a step and return the loss before it."""
        self._optimizer.zero_grad()
        with self._mode():
            loss = self._loss(self._model(x), y)
        loss.backward()
        self._optimizer.step()
        return loss

    @cached_property
    def _start(self) -> tuple[Any, Any]:
        return self._model.state_dict(), self._optimizer.state_dict()

    def restore(self) -> None:
        """Go back to where the model was at the first call: trained on, gradients could vanish, which changes times."""
        model, optimizer = self._start
        self._model.load_state_dict(model)
        self._optimizer.load_state_dict(optimizer)
