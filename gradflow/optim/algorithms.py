"""The optimizers SGD, Adam, AdamW and RMSprop, with PyTorch's names, defaults and formulas.

The formulas are those of the kernels `sgd_step`, `adam_step` and `rmsprop_step` of `gradflow.backend`, and of
`moment_step` for AMSGrad.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from gradflow.backend import (
    AdamOptions,
    AdamScalars,
    MomentOptions,
    MomentScalars,
    RMSpropOptions,
    RMSpropScalars,
    SGDOptions,
    SGDScalars,
)
from gradflow.optim.flat import FlatArrays
from gradflow.optim.groups import Parameters
from gradflow.optim.hyperparameters import check_betas, check_eps, check_numbers
from gradflow.optim.optimizer import Optimizer
from gradflow.optim.schedules import Schedule
from gradflow.pytorch_names import explains_arguments

# options stay the same from step to step, and looking them up is faster than making them
_sgd_options: Callable[..., SGDOptions] = functools.lru_cache(SGDOptions)
_adam_options: Callable[..., AdamOptions] = functools.lru_cache(AdamOptions)
_moment_options: Callable[..., MomentOptions] = functools.lru_cache(MomentOptions)
_rmsprop_options: Callable[..., RMSpropOptions] = functools.lru_cache(RMSpropOptions)


@explains_arguments
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum (Sutskever et al. 2013), also Nesterov's, and weight decay.

    parameters: tensors or parameter groups, as for every `Optimizer`.
    lr: learning rate, a number or a schedule (default 1e-3).
    momentum: the factor by which the velocity decays each step, at least 0 (default 0: no velocity).
    dampening: each step adds 1 - dampening times the gradient to the velocity (default 0).
    weight_decay: L2 penalty: weight_decay * p is added to the gradient of a parameter p (default 0).
    nesterov: Nesterov's momentum, which needs momentum > 0 and dampening 0 (default False).
    maximize: whether to go up the gradient instead of down (default False).

    Raises ValueError for a hyperparameter out of range, and whatever `Optimizer` raises.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0], requires_grad=True)
    >>> optimizer = gf.optim.SGD([x], lr=0.1, momentum=0.5)
    >>> for _ in range(2):
    ...     optimizer.zero_grad()
    ...     x.sum().backward()
    ...     optimizer.step()
    ...     print(round(x.item(), 4))
    0.9
    0.75
    """

    state_names = ("momentum_buffer",)
    _passes_options = True

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov,
            "maximize": maximize,
        }  # fmt: skip
        super().__init__(parameters, defaults)

    def check_hyperparameters(self, group: dict[str, Any]) -> None:
        check_numbers(group, "momentum", "weight_decay")
        check_numbers(group, "dampening", low=-math.inf)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("Nesterov's momentum needs momentum > 0 and dampening = 0")

    def needed_state(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def update(self, flat: FlatArrays, group: Mapping[str, Any], lr: float, step: int, first: bool) -> None:
        options = _sgd_options(group["momentum"], group["dampening"], group["weight_decay"], group["nesterov"])
        velocity = flat.state.get("momentum_buffer")
        flat.backend.sgd_step(flat.parameters, flat.gradients, velocity, options, SGDScalars(lr, first), **flat.options)

    def _scalars(self, group: Mapping[str, Any], lr: float, step: int, first: bool) -> tuple[float, ...]:
        return lr, first


@explains_arguments
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), with weight decay added to the gradient.

    parameters: tensors or parameter groups, as for every `Optimizer`.
    lr: learning rate, a number or a schedule (default 1e-3).
    betas: the decay factors of the running means of the gradient and of its square, each in [0, 1)
    (default (0.9, 0.999)).
    eps: what is added to the root of the mean square before dividing by it, above 0 in the dtype (default 1e-8).
    weight_decay: L2 penalty: weight_decay * p is added to the gradient of a parameter p (default 0).
    amsgrad: whether to divide by the root of the largest mean square so far (Reddi et al. 2018) (default False).
    maximize: whether to go up the gradient instead of down (default False).

    Raises ValueError for a hyperparameter out of range, TypeError for betas that are not two numbers, and
    whatever `Optimizer` raises.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0, 1.0], requires_grad=True)
    >>> optimizer = gf.optim.Adam([x], lr=0.1)
    >>> (x * gf.tensor([1.0, 1000.0])).sum().backward()
    >>> optimizer.step()
    >>> [round(v, 4) for v in x.tolist()]
    [0.9, 0.9]
    """

    state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    _passes_options = True
    nonnegative_state = ("exp_avg_sq", "max_exp_avg_sq")
    _decoupled = False

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize,
        }  # fmt: skip
        super().__init__(parameters, defaults)

    def check_hyperparameters(self, group: dict[str, Any]) -> None:
        check_betas(group)
        check_numbers(group, "weight_decay")
        check_eps(group, math.sqrt(1.0 - group["betas"][1]))

    def needed_state(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return self.state_names if group["amsgrad"] else self.state_names[:2]

    def update(self, flat: FlatArrays, group: Mapping[str, Any], lr: float, step: int, first: bool) -> None:
        beta1, beta2 = group["betas"]
        decay = 0.0 if self._decoupled else group["weight_decay"]
        scalars = self._scalars(group, lr, step, first)
        mean, square = flat.state["exp_avg"], flat.state["exp_avg_sq"]
        if group["amsgrad"]:
            arrays = flat.parameters, flat.gradients, mean, square, flat.state["max_exp_avg_sq"]
            amsgrad = _moment_options(beta1, beta2, 1.0 - beta2, decay)
            flat.backend.moment_step(*arrays, amsgrad, MomentScalars._make(scalars), **flat.options)
            return
        options, numbers = _adam_options(beta1, beta2, group["eps"], decay), AdamScalars._make(scalars)
        flat.backend.adam_step(flat.parameters, flat.gradients, mean, square, options, numbers, **flat.options)

    def _scalars(self, group: Mapping[str, Any], lr: float, step: int, first: bool) -> tuple[float, ...]:
        beta1, beta2 = group["betas"]
        decay = group["weight_decay"] if self._decoupled else 0.0
        scalars = AdamScalars.numbers(step, lr, beta1, beta2, decay)
        if not group["amsgrad"]:
            return scalars
        _, correction1, correction2_root, factor = scalars
        return lr, beta1 / correction1, (1.0 - beta1) / correction1, 1.0 / correction2_root, group["eps"], factor


@explains_arguments
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019): each step first shrinks the parameters.

    Arguments as for `Adam`, except weight_decay: each step multiplies the parameters by 1 - lr * weight_decay
    (default 1e-2). Raises like `Adam`.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0, 100.0], requires_grad=True)
    >>> optimizer = gf.optim.AdamW([x], lr=0.1, weight_decay=0.1)
    >>> x.sum().backward()
    >>> optimizer.step()
    >>> [round(v, 3) for v in x.tolist()]
    [0.89, 98.9]
    """

    _decoupled = True

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)


@explains_arguments
class RMSprop(Optimizer):
    """RMSprop (Tieleman & Hinton 2012), with momentum, and centered (Graves 2013).

    parameters: tensors or parameter groups, as for every `Optimizer`.
    lr: learning rate, a number or a schedule (default 1e-2).
    alpha: the decay factor of the running mean of the squared gradient, in [0, 1) (default 0.99).
    eps: what is added to the root of the mean square before dividing by it, above 0 in the dtype (default 1e-8).
    weight_decay: L2 penalty: weight_decay * p is added to the gradient of a parameter p (default 0).
    momentum: the factor by which the velocity decays each step, at least 0 (default 0: no velocity).
    centered: divide by the standard deviation of the gradient instead of its root mean square (default False).
    maximize: whether to go up the gradient instead of down (default False).

    Raises ValueError for a hyperparameter out of range, and whatever `Optimizer` raises.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0, 1.0], requires_grad=True)
    >>> optimizer = gf.optim.RMSprop([x], lr=0.01)
    >>> (x * gf.tensor([1.0, 1000.0])).sum().backward()
    >>> optimizer.step()
    >>> [round(v, 3) for v in x.tolist()]
    [0.9, 0.9]
    """

    state_names = ("square_avg", "grad_avg", "momentum_buffer")
    _passes_options = True
    nonnegative_state = ("square_avg",)

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum,
            "centered": centered, "maximize": maximize,
        }  # fmt: skip
        super().__init__(parameters, defaults)

    def check_hyperparameters(self, group: dict[str, Any]) -> None:
        check_numbers(group, "alpha", high=1.0)
        check_numbers(group, "weight_decay", "momentum")
        check_eps(group)

    def needed_state(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        names = ("square_avg", "grad_avg") if group["centered"] else ("square_avg",)
        return (*names, "momentum_buffer") if group["momentum"] else names

    def update(self, flat: FlatArrays, group: Mapping[str, Any], lr: float, step: int, first: bool) -> None:
        options = _rmsprop_options(group["alpha"], group["eps"], group["weight_decay"], group["momentum"])
        state = flat.state
        mean, velocity = state.get("grad_avg"), state.get("momentum_buffer")
        flat.backend.rmsprop_step(
            flat.parameters,
            flat.gradients,
            state["square_avg"],
            mean,
            velocity,
            options,
            RMSpropScalars(lr),
            **flat.options,
        )
