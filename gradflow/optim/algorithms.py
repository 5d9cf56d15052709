"""The optimizers: SGD, Adam, AdamW, RMSprop, with PyTorch's names, defaults and formulas.

The formulas are the kernels `sgd_step`, `adam_step` and `rmsprop_step` of `gradflow.backend`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradflow.backend import (
    AdamOptions,
    AdamScalars,
    Array,
    Backend,
    RMSpropOptions,
    RMSpropScalars,
    SGDOptions,
    SGDScalars,
)
from gradflow.optim.optimizer import Optimizer, Parameters, check_numbers, check_rate, number
from gradflow.optim.schedules import Schedule


def _check_eps(group: dict[str, Any]) -> None:
    check_numbers(group, "eps")
    if group["eps"] == 0:
        raise ValueError("eps is a number above 0: where a gradient is 0, a step divides by it")


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum (Sutskever et al. 2013), Nesterov's included, and weight decay.

    Raises ValueError for a hyperparameter out of range, or Nesterov's without momentum or with dampening.
    """

    _known_state = ("momentum_buffer",)

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov
        }  # fmt: skip
        super().__init__(parameters, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        check_rate(group)
        check_numbers(group, "momentum", "weight_decay")
        check_numbers(group, "dampening", low=-math.inf)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("Nesterov's momentum needs momentum > 0 and dampening = 0")

    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _update(
        self,
        backend: Backend,
        values: Array,
        gradients: Array,
        state: dict[str, Array],
        lr: float,
        step: int,
        fresh: bool,
        group: Mapping[str, Any],
    ) -> None:
        options = SGDOptions(group["momentum"], group["dampening"], group["weight_decay"], group["nesterov"])
        scalars = SGDScalars(lr, float(fresh))
        backend.sgd_step(values, gradients, state.get("momentum_buffer"), options, scalars)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), its weight decay added to the gradient.

    betas: the decays of the mean and of the mean square of gradients. ValueError for a hyperparameter out of range.
    """

    _known_state = ("exp_avg", "exp_avg_sq")
    _decoupled = False

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _check(self, group: dict[str, Any]) -> None:
        check_rate(group)
        try:
            betas = tuple(group["betas"])
        except TypeError:
            raise TypeError(f"betas are two numbers, such as (0.9, 0.999); got {group['betas']!r}") from None
        if len(betas) != 2:
            raise ValueError(f"betas are two numbers, such as (0.9, 0.999); got {betas}")
        group["betas"] = tuple(number("each of betas", beta, 0.0, 1.0) for beta in betas)
        check_numbers(group, "weight_decay")
        _check_eps(group)

    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _update(
        self,
        backend: Backend,
        values: Array,
        gradients: Array,
        state: dict[str, Array],
        lr: float,
        step: int,
        fresh: bool,
        group: Mapping[str, Any],
    ) -> None:
        beta1, beta2 = group["betas"]
        decay = group["weight_decay"]
        options = AdamOptions(beta1, beta2, group["eps"], 0.0 if self._decoupled else decay)
        scalars = AdamScalars.at(step, lr, beta1, beta2, decay if self._decoupled else 0.0)
        backend.adam_step(values, gradients, state["exp_avg"], state["exp_avg_sq"], options, scalars)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019). ValueError for a hyperparameter out of range."""

    _decoupled = True

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)


class RMSprop(Optimizer):
    """RMSprop (Tieleman & Hinton 2012), with momentum, and centred (Graves 2013) if asked for.

    alpha: the decay of the mean square. Raises ValueError for a hyperparameter out of range.
    """

    _known_state = ("square_avg", "grad_avg", "momentum_buffer")

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum,
            "centered": centered,
        }  # fmt: skip
        super().__init__(parameters, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        check_rate(group)
        check_numbers(group, "alpha", high=1.0)
        check_numbers(group, "weight_decay", "momentum")
        _check_eps(group)

    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        names = ("square_avg", "grad_avg") if group["centered"] else ("square_avg",)
        return (*names, "momentum_buffer") if group["momentum"] else names

    def _update(
        self,
        backend: Backend,
        values: Array,
        gradients: Array,
        state: dict[str, Array],
        lr: float,
        step: int,
        fresh: bool,
        group: Mapping[str, Any],
    ) -> None:
        options = RMSpropOptions(group["alpha"], group["eps"], group["weight_decay"], group["momentum"])
        square, mean, velocity = state["square_avg"], state.get("grad_avg"), state.get("momentum_buffer")
        backend.rmsprop_step(values, gradients, square, mean, velocity, options, RMSpropScalars(lr))
