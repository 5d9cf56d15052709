"""The network of an estimator: the columns of X, a perceptron, and the bytes in which they are pickled."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

import gradflow as gf
from gradflow.saving import from_bytes, to_bytes
from gradflow.tables import Columns

Array = npt.NDArray[Any]

ACTIVATIONS = {"logistic": "sigmoid", "identity": None}
"""scikit-learn's names of activations that gradflow calls otherwise; None is none."""

_ROWS_AT_ONCE = 4096


def device_of(name: str) -> gf.Device:
    """Return the device of this name, or for "auto" the one that `gradflow.choose_device` chooses.

    Raises DeviceUnavailableError or ValueError if it cannot be used.
    """
    return gf.choose_device()[0] if name == "auto" else gf.get_backend(name).device


class Network:
    """A perceptron on the columns of X, with what it needs to be trained further.

    columns: how the columns of X are treated. device: where the parameters are.
    generator: draws the initial values and the dropout masks.
    widths: of the hidden layers, and the number of outputs. activation: a name of scikit-learn's or gradflow's.
    dropout, dtype: as for `nn.MLP`.

    `names` are those of the columns. `optimizer` is that of `partial_fit`, or None. Raises ValueError for arguments
    that do not fit.
    """

    def __init__(
        self,
        columns: Columns,
        device: gf.Device,
        generator: gf.Generator,
        widths: list[int],
        activation: str,
        dropout: float,
        dtype: str,
    ) -> None:
        self.columns, self.device, self.generator = columns, device, generator
        self.names = [column["column"] for column in columns.describe()]
        self.architecture = {"widths": widths, "activation": activation, "dropout": dropout, "dtype": dtype}
        self.optimizer: gf.optim.AdamW | None = None
        inputs = columns.module(device=device, dtype=dtype, generator=generator)
        own = ACTIVATIONS.get(activation, activation)
        sizes = [inputs.out_features, *widths]
        perceptron = gf.nn.MLP(sizes, own or "relu", dropout, device, dtype, generator)
        if own is None:
            for layer in perceptron.children():
                if isinstance(layer, gf.nn.Linear):
                    layer.activation = None
        self.model = gf.nn.Sequential(inputs, perceptron)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The widths of all layers of the perceptron."""
        return tuple(self.model[1].sizes)

    @property
    def dtype(self) -> str:
        """The name of the dtype of the parameters."""
        return str(self.architecture["dtype"])

    def outputs(self, x: Array) -> Array:
        """Return the outputs for encoded rows, on the host."""
        parts = []
        with gf.no_grad():
            for start in range(0, len(x), _ROWS_AT_ONCE):
                rows = gf.tensor(x[start : start + _ROWS_AT_ONCE], device=self.device)
                parts.append(self.model(rows).numpy())
        return np.concatenate(parts)

    def to_bytes(self) -> bytes:
        """Return all of this as the content of a file that `gradflow.save` writes."""
        optimizer = None if self.optimizer is None else self.optimizer.state_dict()
        return to_bytes(
            {
                "columns": self.columns.to_dict(),
                "generator": self.generator.state_dict(),
                "architecture": self.architecture,
                "weights": self.model.state_dict(),
                "optimizer": optimizer,
            }
        )

    @classmethod
    def from_bytes(cls, content: bytes, device: str) -> Network:
        """Return the network of `to_bytes` on a device, "auto" for one that is here; on the CPU, with a warning,
        if there is no such device.
        """
        tree = from_bytes(content, "the pickled estimator", "cpu")
        try:
            there = device_of(device)
        except (ValueError, gf.DeviceUnavailableError):
            there = device_of("cpu")
            warnings.warn(f"there is no usable device {device!r} here: the estimator is on the CPU", stacklevel=3)
        network = cls(Columns.from_dict(tree["columns"]), there, gf.Generator(0), **tree["architecture"])
        network.model.load_state_dict(tree["weights"])
        network.model.eval()
        network.generator.load_state_dict(tree["generator"])
        if tree["optimizer"] is not None:
            network.optimizer = network.new_optimizer(0.0, 0.0)
            network.optimizer.load_state_dict(tree["optimizer"])
        return network

    def new_optimizer(self, lr: float, weight_decay: float) -> gf.optim.AdamW:
        """Return a new optimizer of the parameters."""
        return gf.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=weight_decay)
