"""The optimizers Adagrad, NAdam, RAdam and Lion, whose steps are the kernel `moment_step` of `gradflow.backend`.

Names, defaults and formulas are PyTorch's; those of Lion, which PyTorch lacks, are the paper's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from gradflow.backend import MomentOptions, MomentScalars
from gradflow.optim.flat import FlatArrays
from gradflow.optim.groups import Parameters
from gradflow.optim.hyperparameters import check_betas, check_eps, check_numbers
from gradflow.optim.optimizer import Optimizer
from gradflow.optim.schedules import Schedule
from gradflow.pytorch_names import explains_arguments

_options: Callable[..., MomentOptions] = functools.lru_cache(MomentOptions)


def _decays(group: Mapping[str, Any], lr: float) -> tuple[float, float]:
    """The weight decay that is added to the gradient, and the factor of the parameter: one of them does nothing."""
    decay = group["weight_decay"]
    return (0.0, 1.0 - lr * decay) if group["decoupled_weight_decay"] else (decay, 1.0)


@explains_arguments
class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011): the rate of an element falls with the root of the sum of its squared gradients.

    parameters: tensors or parameter groups, as for every `Optimizer`.
    lr: learning rate, a number or a schedule (default 1e-2).
    lr_decay: step t = 1, 2, ... divides the learning rate by 1 + (t - 1) * lr_decay (default 0).
    weight_decay: L2 penalty: weight_decay * p is added to the gradient of a parameter p (default 0).
    eps: what is added to the root of the sum before dividing by it, above 0 in the dtype (default 1e-10).
    maximize: whether to go up the gradient instead of down (default False).

    Raises ValueError for a hyperparameter out of range, and whatever `Optimizer` raises.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0], requires_grad=True)
    >>> optimizer = gf.optim.Adagrad([x], lr=0.1)
    >>> for _ in range(2):
    ...     optimizer.zero_grad()
    ...     x.sum().backward()
    ...     optimizer.step()
    ...     print(round(x.item(), 4))
    0.9
    0.8293
    """

    state_names = ("sum",)
    _passes_options = True
    nonnegative_state = ("sum",)

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        *,
        eps: float = 1e-10,
        maximize: bool = False,
    ) -> None:
        defaults = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps, "maximize": maximize}
        super().__init__(parameters, defaults)

    def check_hyperparameters(self, group: dict[str, Any]) -> None:
        check_numbers(group, "lr_decay", "weight_decay")
        check_eps(group)

    def update(self, flat: FlatArrays, group: Mapping[str, Any], lr: float, step: int, first: bool) -> None:
        options = _options(0.0, 1.0, 1.0, group["weight_decay"])
        rate = lr / (1.0 + (step - 1) * group["lr_decay"])
        scalars = MomentScalars(rate, 0.0, 1.0, 1.0, group["eps"], 1.0)
        arrays = flat.parameters, flat.gradients, None, flat.state["sum"], None
        flat.backend.moment_step(*arrays, options, scalars, **flat.options)


class _TwoMeans(Optimizer):
    """What NAdam and RAdam have in common."""

    state_names = ("exp_avg", "exp_avg_sq")
    _passes_options = True
    nonnegative_state = ("exp_avg_sq",)

    def check_hyperparameters(self, group: dict[str, Any]) -> None:
        check_betas(group)
        check_numbers(group, "weight_decay")
        check_eps(group)


@functools.lru_cache(64)
def _products(beta1: float, momentum_decay: float) -> dict[int, float]:
    """The products of the first momenta of NAdam, by their number, as far as they are known."""
    return {0: 1.0}


def _momentum(beta1: float, momentum_decay: float, step: int) -> float:
    return beta1 * (1.0 - 0.5 * math.pow(0.96, step * momentum_decay))


def _momentum_product(beta1: float, momentum_decay: float, step: int) -> float:
    """The product of the momenta of NAdam's steps 1 to `step`; one below 2^-54 stands for all that follow."""
    products = _products(beta1, momentum_decay)
    k = len(products) - 1
    while k < step and products[k] > 2.0**-54:
        products[k + 1] = products[k] * _momentum(beta1, momentum_decay, k + 1)
        k += 1
    return products[min(step, k)]


@explains_arguments
class NAdam(_TwoMeans):
    """Adam with Nesterov's momentum (Dozat 2016).

    parameters: tensors or parameter groups, as for every `Optimizer`.
    lr: learning rate, a number or a schedule (default 2e-3).
    betas: the decay factors of the running means of the gradient and of its square, each in [0, 1)
    (default (0.9, 0.999)).
    eps: what is added to the root of the mean square before dividing by it, above 0 in the dtype (default 1e-8).
    weight_decay: L2 penalty: weight_decay * p is added to the gradient of a parameter p (default 0).
    momentum_decay: the momentum of step t is betas[0] * (1 - 0.96**(t * momentum_decay) / 2) (default 4e-3).
    decoupled_weight_decay: whether each step multiplies the parameters by 1 - lr * weight_decay instead, as in `AdamW`
    (default False).
    maximize: whether to go up the gradient instead of down (default False).

    The product of the momenta so far is a function of the step, so it is no state, unlike mu_product in PyTorch.

    Raises ValueError for a hyperparameter out of range, TypeError for betas that are not two numbers, and
    whatever `Optimizer` raises.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0, 1.0], requires_grad=True)
    >>> optimizer = gf.optim.NAdam([x], lr=0.1)
    >>> (x * gf.tensor([1.0, 1000.0])).sum().backward()
    >>> optimizer.step()
    >>> [round(v, 3) for v in x.tolist()]
    [0.894, 0.894]
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize,
        }  # fmt: skip
        super().__init__(parameters, defaults)

    def check_hyperparameters(self, group: dict[str, Any]) -> None:
        super().check_hyperparameters(group)
        check_numbers(group, "momentum_decay")

    def update(self, flat: FlatArrays, group: Mapping[str, Any], lr: float, step: int, first: bool) -> None:
        beta1, beta2 = group["betas"]
        decay, factor = _decays(group, lr)
        now = _momentum(beta1, group["momentum_decay"], step)
        following = _momentum(beta1, group["momentum_decay"], step + 1)
        product = _momentum_product(beta1, group["momentum_decay"], step)
        of_mean, of_gradient = following / (1.0 - product * following), (1.0 - now) / (1.0 - product)
        root_factor = 1.0 / math.sqrt(1.0 - beta2**step)
        from_mean, from_gradient = of_mean * beta1, of_mean * (1.0 - beta1) + of_gradient
        scalars = MomentScalars(lr, from_mean, from_gradient, root_factor, group["eps"], factor)
        arrays = flat.parameters, flat.gradients, flat.state["exp_avg"], flat.state["exp_avg_sq"], None
        flat.backend.moment_step(*arrays, _options(beta1, beta2, 1.0 - beta2, decay), scalars, **flat.options)


@explains_arguments
class RAdam(_TwoMeans):
    """Adam whose first steps wait for a reliable mean square (Liu et al. 2020): a warm-up without a schedule.

    parameters: tensors or parameter groups, as for every `Optimizer`.
    lr: learning rate, a number or a schedule (default 1e-3).
    betas: the decay factors of the running means of the gradient and of its square, each in [0, 1)
    (default (0.9, 0.999)).
    eps: what is added to the root of the mean square before dividing by it, above 0 in the dtype (default 1e-8).
    weight_decay: L2 penalty: weight_decay * p is added to the gradient of a parameter p (default 0).
    decoupled_weight_decay: whether each step multiplies the parameters by 1 - lr * weight_decay instead, as in `AdamW`
    (default False).
    maximize: whether to go up the gradient instead of down (default False).

    Raises ValueError for a hyperparameter out of range, TypeError for betas that are not two numbers, and
    whatever `Optimizer` raises.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0, 1.0], requires_grad=True)
    >>> optimizer = gf.optim.RAdam([x], lr=0.1)
    >>> (x * gf.tensor([1.0, 2.0])).sum().backward()
    >>> optimizer.step()  # of the first five, which do not divide by the root
    >>> [round(v, 3) for v in x.tolist()]
    [0.9, 0.8]
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize,
        }  # fmt: skip
        super().__init__(parameters, defaults)

    def update(self, flat: FlatArrays, group: Mapping[str, Any], lr: float, step: int, first: bool) -> None:
        beta1, beta2 = group["betas"]
        decay, factor = _decays(group, lr)
        correction1, correction2 = 1.0 - beta1**step, 1.0 - beta2**step
        limit = 2.0 / (1.0 - beta2) - 1.0  # the length of the average, and what it is at this step
        length = limit - 2.0 * step * beta2**step / correction2
        if length > 5.0:
            rectification = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
            size, root_factor, eps = math.sqrt(rectification * correction2) / correction1, 1.0, group["eps"]
        else:
            size, root_factor, eps = 1.0 / correction1, 0.0, 1.0
        scalars = MomentScalars(lr, size * beta1, size * (1.0 - beta1), root_factor, eps, factor)
        arrays = flat.parameters, flat.gradients, flat.state["exp_avg"], flat.state["exp_avg_sq"], None
        flat.backend.moment_step(*arrays, _options(beta1, beta2, 1.0 - beta2, decay), scalars, **flat.options)


@explains_arguments
class Lion(Optimizer):
    """Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2): steps of equal size.

    parameters: tensors or parameter groups, as for every `Optimizer`.
    lr: learning rate, a number or a schedule (default 1e-4): a third to a tenth of that of `AdamW`.
    betas: the decay factors of the running mean of the gradient, in the direction of a step and for the next steps,
    each in [0, 1) (default (0.9, 0.99)).
    weight_decay: each step multiplies the parameters by 1 - lr * weight_decay (default 0).
    maximize: whether to go up the gradient instead of down (default False).

    Raises ValueError for a hyperparameter out of range, TypeError for betas that are not two numbers, and
    whatever `Optimizer` raises.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0, 1.0], requires_grad=True)
    >>> optimizer = gf.optim.Lion([x], lr=0.1)
    >>> (x * gf.tensor([1.0, -1000.0])).sum().backward()
    >>> optimizer.step()
    >>> [round(v, 4) for v in x.tolist()]
    [0.9, 1.1]
    """

    state_names = ("exp_avg",)
    _passes_options = True

    def __init__(
        self,
        parameters: Parameters,
        lr: float | Schedule = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize})

    def check_hyperparameters(self, group: dict[str, Any]) -> None:
        check_betas(group)
        check_numbers(group, "weight_decay")

    def update(self, flat: FlatArrays, group: Mapping[str, Any], lr: float, step: int, first: bool) -> None:
        beta1, beta2 = group["betas"]
        scalars = MomentScalars(lr, beta1, 1.0 - beta1, 0.0, 0.0, 1.0 - lr * group["weight_decay"])
        arrays = flat.parameters, flat.gradients, flat.state["exp_avg"], None, None
        flat.backend.moment_step(*arrays, _options(beta2, 0.0, 0.0, 0.0), scalars, **flat.options)
