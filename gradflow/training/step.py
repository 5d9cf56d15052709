"""The training step: the gradient of a batch, and the update; whether they can be captured, and how many at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import gradflow as gf
from gradflow import nn
from gradflow.data import Batches
from gradflow.distributed.reduction import GradientReduction
from gradflow.interception import opaque_call
from gradflow.optim import Optimizer, clip_grad_norm_
from gradflow.optim.averaging import WeightAverage
from gradflow.replay.batches import CapturedRun, has_graphs
from gradflow.training.evaluation import Partial
from gradflow.training.metrics import unwrapped
from gradflow.training.objective import Objective
from gradflow.training.precision import Precision

Gradient = Callable[..., tuple[gf.Tensor, Partial]]
_MOST_AT_ONCE = 32
"""The largest number of steps at once: with more, a GPU gains nothing, and Ctrl-C waits for all of them."""
_ELEMENTS_AT_ONCE = 1 << 22
"""The largest number of elements in the batches of steps at once, which are in the memory of the device together."""
_PRODUCTS_AT_ONCE = 1 << 35
"""The largest number of samples times parameters in steps at once: by estimate, 40 ms at 5 TFLOP/s."""
_FEW = 64
"""A step with fewer samples takes about as long, since it reads all parameters."""


class TrainingStep:
    """The step of a model: `whole(*batch)`; or `zero_grad()`, `gradient(*batch, scale=...)` for each batch, `update()`.

    partial_of: what the metrics need of a batch, see `Metrics.partial`.
    clip_norm: the largest norm of the gradients, or None.
    average: the average of the weights, or None.
    precision: in which dtype to compute.
    capture: whether to capture `whole` and `gradient`.
    batches: those of an epoch with a step each, or None.
    reduction: what sums the gradients over ranks, or None.

    `whole` and `gradient` return the loss and the result of `partial_of`, without a graph. `scale` is a factor of the
    gradient, a tensor of shape (). `run` does several steps at once, where the device gains from it, else it is None.
    `scales_loss` says whether the gradients are those of a scaled loss until `update`.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        partial_of: Callable[..., Partial],
        clip_norm: float | None,
        average: WeightAverage | None,
        precision: Precision,
        capture: bool,
        batches: Batches | None,
        reduction: GradientReduction | None = None,
    ) -> None:
        mode, scaler = precision.mode, precision.scaler

        def gradient(
            inputs: gf.Tensor, targets: gf.Tensor, weights: gf.Tensor | None = None, *, scale: gf.Tensor | None = None
        ) -> tuple[gf.Tensor, Partial]:
            with mode:
                outputs = model(inputs)
                loss = objective(outputs, targets, weights)
            (loss if scaler is None else scaler.scale(loss)).backward(scale)
            return loss.detach(), partial_of(outputs.detach(), targets, weights)

        def update() -> None:
            if reduction is not None:
                reduction.finish()
            if clip_norm is not None:
                if scaler is not None:
                    scaler.unscale_(optimizer)
                _clip(optimizer, clip_norm)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            if average is not None:
                average.update()

        def whole(*batch: gf.Tensor, **scale: gf.Tensor) -> tuple[gf.Tensor, Partial]:
            optimizer.zero_grad()
            with contextlib.nullcontext() if reduction is None else reduction.during_backward():
                results = gradient(*batch, **scale)
            update()
            return results

        self.run: CapturedRun[tuple[gf.Tensor, Partial]] | None = None
        if capture and batches is not None and (steps := steps_at_once(model, batches)) > 1:
            self.run = gf.capture(whole, batches=batches, steps=steps)
        self.whole: Gradient = self.run.step if self.run is not None else gf.capture(whole) if capture else whole
        self.gradient: Gradient = gf.capture(gradient) if capture else gradient
        self.update = update
        self.scales_loss = scaler is not None
        self.zero_grad = optimizer.zero_grad


@opaque_call
def _clip(optimizer: Optimizer, norm: float) -> None:
    """Clip the gradients of the optimizer's present parameters."""
    clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], norm)


def steps_at_once(model: nn.Module, batches: Batches) -> int:
    """How many steps one call of the host may start: 1 if the device has no graphs, or steps are too large to gain."""
    data = batches.on_device()
    if data is None or not has_graphs(gf.get_backend(batches.device)):
        return 1
    elements = batches.batch_size * sum(x.size for x in data) // len(data[0])
    products = max(batches.batch_size, _FEW) * sum(p.size for p in model.parameters())
    return max(1, min(_MOST_AT_ONCE, _ELEMENTS_AT_ONCE // max(1, elements), _PRODUCTS_AT_ONCE // max(1, products)))


def is_own(model: nn.Module, loss: Any) -> bool:
    """Whether model and loss are gradflow's own. A replay does not run the Python of a user's module, hook or loss."""
    return _is_own_loss(loss) and is_own_model(model)


def is_own_model(model: nn.Module) -> bool:
    """Whether a model is made of gradflow's own modules, without hooks."""
    return all(map(_is_own, model.modules()))


def _is_own(module: nn.Module) -> bool:
    hooked = module._hooked or any(getattr(p._node, "hooks", None) for p in module.parameters())
    return type(module).__module__.startswith("gradflow.") and not hooked and "forward" not in vars(module)


def _is_own_loss(loss: Any) -> bool:
    loss = unwrapped(loss)
    if isinstance(loss, nn.Module):
        return all(map(_is_own, loss.modules()))
    return any(loss is getattr(gf, name) for name in gf.ops.losses.__all__)
