"""Losses of probability distributions, with PyTorch's names and semantics."""

from __future__ import annotations

import math
from typing import Any

from gradflow.autograd.grad_mode import autocast_dtype
from gradflow.backend import Array, Backend
from gradflow.interception import opaque_call
from gradflow.ops.checks import check_tensors, flag, number
from gradflow.ops.elementwise import add, divide, equal, exp, less, log, multiply, square, subtract, where
from gradflow.ops.losses import check_pair, reduced
from gradflow.ops.reductions import sum as sum_
from gradflow.ops.shape import expand_dims
from gradflow.ops.table import apply, defop, in_float32, promoted
from gradflow.tensor import Tensor

__all__ = ["binary_cross_entropy", "gaussian_nll_loss", "kl_div"]

_LEAST_LOG, _LEAST_VARIANCE = -100.0, 1e-12
"""What PyTorch's binary cross-entropy takes for log(0), and at least for p (1 - p) in its gradient."""


def _log_or_least(F: Any, log_of: Any, x: Array, zero: float) -> Array:
    """log_of(x), at least -100: also where x is `zero`, at which the logarithm is -inf."""
    at_zero = F.equal(x, zero)
    finite = log_of(F.where(at_zero, 0.5, x))
    return F.where(at_zero, _LEAST_LOG, F.where(F.less(finite, _LEAST_LOG), _LEAST_LOG, finite))


def _binary_forward(F: Any, p: Array, target: Array) -> Array:
    positive = F.multiply(target, _log_or_least(F, F.log, p, 0.0))
    other = F.multiply(F.subtract(1.0, target), _log_or_least(F, lambda x: F.log1p(F.negative(x)), p, 1.0))
    return F.negative(F.add(positive, other))


def _binary_rule(F: Any, g: Any, _out: Any, p: Any, target: Any) -> Any:
    variance = F.multiply(F.subtract(1.0, p), p)
    variance = F.where(F.less(variance, _LEAST_VARIANCE), _LEAST_VARIANCE, variance)
    return F.divide(F.multiply(g, F.subtract(p, target)), variance)


_BINARY_CROSS_ENTROPY = defop(
    "binary_cross_entropy",
    _binary_rule,
    lambda F, g, _out, p, target: F.multiply(g, F.subtract(F.log1p(F.negative(p)), F.log(p))),
    forward=_binary_forward,
)


@opaque_call
def _check_probabilities(name: str, backend: Backend, x: Array) -> None:
    values = backend.host_values(x)
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high <= 1):  # also for NaN
        advice = ": apply gradflow.sigmoid, or use binary_cross_entropy_with_logits" if name == "input" else ""
        raise ValueError(
            f"binary_cross_entropy needs probabilities in [0, 1] as its {name}; got numbers from {low:g} to {high:g}"
            f"{advice}"
        )


@in_float32
def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """-(target * log(input) + (1 - target) * log(1 - input)), with logarithms of at least -100.

    `binary_cross_entropy_with_logits` of the values in front of a sigmoid is more accurate.

    input, target: probabilities, of equal shapes.
    weight: a factor for each element, of a shape that broadcasts to that of the input, or None (default).
    reduction: "mean" over all elements (default), "sum" or "none".

    The gradient of the input is (input - target) / max(input * (1 - input), 1e-12), as in PyTorch.

    Raises ValueError for different shapes, an unknown reduction, or numbers beyond [0, 1], which are looked for on the
    CPU only; RuntimeError under `autocast`, as PyTorch does: float16 does not hold probabilities close to 0.

    >>> import gradflow as gf
    >>> p = gf.tensor([0.5, 0.0], requires_grad=True)
    >>> loss = gf.binary_cross_entropy(p, gf.tensor([1.0, 1.0]), reduction="sum")
    >>> round(loss.item(), 3)
    100.693
    """
    check_pair("binary_cross_entropy", input, target, reduction)
    if autocast_dtype.get() is not None:
        raise RuntimeError(
            "binary_cross_entropy is not computed under autocast: float16 does not hold probabilities close to 0; "
            "leave out the sigmoid and use binary_cross_entropy_with_logits"
        )
    input, target = promoted("binary_cross_entropy", input, target, True)
    if input.size and input.backend.device.type == "cpu":
        _check_probabilities("input", input.backend, input.array)
        _check_probabilities("target", target.backend, target.array)
    losses = apply(_BINARY_CROSS_ENTROPY, (input, target))
    return reduced(losses if weight is None else multiply(losses, weight), reduction)


@in_float32
def kl_div(input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """The Kullback-Leibler divergence of `target` from exp(input): target * (log(target) - input) for each element.

    input: log-probabilities, such as those of `log_softmax`.
    target: probabilities, or with `log_target` their logarithms, of the shape of the input.
    reduction: "mean" over all elements (default), "batchmean", the sum divided by the length of the first axis, which
    is the divergence of a batch of distributions, "sum" or "none".
    log_target: whether `target` is a logarithm (default False).

    Kullback and Leibler 1951, "On Information and Sufficiency". Raises ValueError for different shapes, an unknown
    reduction, or "batchmean" of no axis or no samples.

    >>> import gradflow as gf
    >>> p, q = gf.tensor([[0.5, 0.5]]), gf.tensor([[0.25, 0.75]])
    >>> round(gf.kl_div(gf.log(q), p, reduction="batchmean").item(), 4)
    0.1438
    """
    over_batch = isinstance(reduction, str) and reduction == "batchmean"
    check_pair("kl_div", input, target, "sum" if over_batch else reduction)
    if over_batch and not (input.shape and input.shape[0]):
        raise ValueError(f'"batchmean" divides by the length of the first axis; got shape {input.shape}')
    input, target = promoted("kl_div", input, target, True)
    if flag("log_target of kl_div", log_target):
        losses = multiply(exp(target), subtract(target, input))
    else:
        positive = where(equal(target, 0.0), 1.0, target)  # 0 * log(0) is 0
        losses = multiply(target, subtract(log(positive), input))
    return divide(sum_(losses), float(input.shape[0])) if over_batch else reduced(losses, reduction)


@in_float32
def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Tensor, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """The negative log-likelihood of a normal distribution: (log(var) + (input - target)^2 / var) / 2.

    input, target: the means and the observed values, of equal shapes.
    var: variances >= 0, of that shape, or one for each row: without its last axis, or with a 1 in place of one axis.
    full: whether to add the constant log(2 pi) / 2 (default False).
    eps: what smaller variances are replaced by, a finite number > 0 (default 1e-6). As in PyTorch, the gradient of
    `var` is that at eps then.
    reduction: "mean" over all elements (default), "sum" or "none".

    Nix and Weigend 1994, "Estimating the Mean and Variance of the Target Probability Distribution". Raises ValueError
    for shapes that do not fit, an invalid eps, an unknown reduction, or negative variances, which are looked for on the
    CPU only.

    >>> import gradflow as gf
    >>> gf.gaussian_nll_loss(gf.tensor([1.0, 2.0]), gf.tensor([1.0, 4.0]), gf.ones(2)).item()
    1.0
    """
    check_pair("gaussian_nll_loss", input, target, reduction)
    check_tensors("gaussian_nll_loss", input, target, var)
    if not 0 < number("eps of gaussian_nll_loss", eps) < math.inf:
        raise ValueError(f"gaussian_nll_loss needs a finite eps > 0; got {eps}")
    if var.ndim + 1 == input.ndim and var.shape == input.shape[:-1]:
        var = expand_dims(var, -1)
    other = [n for n, wanted in zip(var.shape, input.shape, strict=False) if n != wanted]
    if var.ndim != input.ndim or other not in ([], [1]):
        raise ValueError(
            f"gaussian_nll_loss needs variances of the input's shape {input.shape}, or one for each row; got "
            f"shape {var.shape}"
        )
    if var.size and var.backend.device.type == "cpu":
        _check_variances(var.backend, var.array)
    input, target = promoted("gaussian_nll_loss", input, target, True)
    input, var = promoted("gaussian_nll_loss", input, var, True)
    fixed = var.detach()
    var = where(less(fixed, eps), add(subtract(var, fixed), eps), var)
    losses = multiply(add(log(var), divide(square(subtract(input, target)), var)), 0.5)
    if flag("full of gaussian_nll_loss", full):
        losses = add(losses, 0.5 * math.log(2 * math.pi))
    return reduced(losses, reduction)


@opaque_call
def _check_variances(backend: Backend, var: Array) -> None:
    least = backend.host_values(var).min().item()
    if least < 0:
        raise ValueError(f"gaussian_nll_loss needs variances >= 0; got {least:g}: apply gradflow.softplus or exp")
