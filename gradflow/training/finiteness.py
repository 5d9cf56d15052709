"""Whether a training has diverged: its losses, and numbers that the device saw although the losses are finite.

On a GPU, the ReLU of a library may turn NaN into 0, so that a loss stays finite while weights are lost. There, kernels
raise the flag `Backend.nonfinite`, which the host reads with the losses of an epoch. All runs on a device share it.
"""

from __future__ import annotations

import math

import gradflow as gf
from gradflow.optim import Optimizer
from gradflow.replay.batches import has_graphs
from gradflow.training.epoch import NonFiniteLossError

_ADVICE = (
    "try a lower learning rate, or find the operation that made it with gradflow.detect_anomaly() or gradflow.trace()"
)


def watch_device(device: gf.Device) -> None:
    """Let the kernels of a device raise its flag, if it has graphs: there, it takes no time."""
    backend = gf.get_backend(device)
    if has_graphs(backend) and backend.nonfinite is None:
        backend.nonfinite = backend.zeros((), dtype=backend.dtypes["int32"])


def check_losses(epoch: int, train: float, validation: float | None, autocast: str | None) -> None:
    """Raise NonFiniteLossError unless the losses of an epoch are finite."""
    advice = "try bfloat16 or float32, since float16 ends at 65504; else " if autocast == "float16" else ""
    for name, value in (("loss", train), ("validation loss", validation)):
        if value is not None and not math.isfinite(value):
            raise NonFiniteLossError(f"the {name} became {value} in epoch {epoch}; {advice}{_ADVICE}")


def check_weights(epoch: int, optimizer: Optimizer) -> None:
    """Raise NonFiniteLossError unless all parameters are finite, after the flag was raised; then it is lowered.

    Another run on the device may have raised it. A parameter that is not finite stays so, whatever its next gradients.
    """
    parameters = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    finite = gf.stack([gf.all(gf.isfinite(p)) for p in parameters]).tolist()
    if not all(finite):
        shapes = ", ".join(str(p.shape) for p, is_finite in zip(parameters, finite, strict=True) if not is_finite)
        raise NonFiniteLossError(
            f"parameters became NaN or infinite by epoch {epoch}, although the loss is finite, of shape {shapes}; "
            f"an activation such as ReLU can hide a NaN; {_ADVICE}"
        )
    backend = parameters[0].backend
    backend.setitem(backend.nonfinite, ..., 0)
