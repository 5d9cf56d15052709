"""The training step: the gradient of a batch, and the update; whether they can be captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradflow as gf
from gradflow import nn
from gradflow.interception import opaque_call
from gradflow.optim import Optimizer, clip_grad_norm_
from gradflow.optim.averaging import WeightAverage
from gradflow.training.evaluation import Partial
from gradflow.training.metrics import unwrapped
from gradflow.training.objective import Objective

Gradient = Callable[..., tuple[gf.Tensor, Partial]]


class TrainingStep:
    """The step of a model: `whole(*batch)`; or `zero_grad()`, `gradient(*batch, scale=...)` for each batch, `update()`.

    partial_of: what the metrics need of a batch, see `Metrics.partial`.
    clip_norm: the largest norm of the gradients, or None.
    average: the average of the weights, or None.
    capture: whether to capture `whole` and `gradient`.

    `whole` and `gradient` return the loss and the result of `partial_of`, without a graph. `scale` is a factor of the
    gradient, a tensor of shape ().
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        partial_of: Callable[..., Partial],
        clip_norm: float | None,
        average: WeightAverage | None,
        capture: bool,
    ) -> None:
        def gradient(
            inputs: gf.Tensor, targets: gf.Tensor, weights: gf.Tensor | None = None, *, scale: gf.Tensor | None = None
        ) -> tuple[gf.Tensor, Partial]:
            outputs = model(inputs)
            loss = objective(outputs, targets, weights)
            loss.backward(scale)
            return loss.detach(), partial_of(outputs.detach(), targets, weights)

        def update() -> None:
            if clip_norm is not None:
                _clip(optimizer, clip_norm)
            optimizer.step()
            if average is not None:
                average.update()

        def whole(*batch: gf.Tensor) -> tuple[gf.Tensor, Partial]:
            optimizer.zero_grad()
            results = gradient(*batch)
            update()
            return results

        self.whole: Gradient = gf.capture(whole) if capture else whole
        self.gradient: Gradient = gf.capture(gradient) if capture else gradient
        self.update = update
        self.zero_grad = optimizer.zero_grad


@opaque_call
def _clip(optimizer: Optimizer, norm: float) -> None:
    """Clip the gradients of the optimizer's present parameters."""
    clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], norm)


def is_own(model: nn.Module, loss: Any) -> bool:
    """Whether model and loss are gradflow's own. A replay does not run the Python of a user's module, hook or loss."""
    return _is_own_loss(loss) and is_own_model(model)


def is_own_model(model: nn.Module) -> bool:
    """Whether a model is made of gradflow's own modules, without hooks."""
    return all(map(_is_own, model.modules()))


def _is_own(module: nn.Module) -> bool:
    hooked = module._forward_hooks or any(getattr(p._node, "hooks", None) for p in module.parameters())
    return type(module).__module__.startswith("gradflow.nn.") and not hooked and "forward" not in vars(module)


def _is_own_loss(loss: Any) -> bool:
    loss = unwrapped(loss)
    if isinstance(loss, nn.Module):
        return all(map(_is_own, loss.modules()))
    return any(loss is getattr(gf, name) for name in gf.ops.losses.__all__)
