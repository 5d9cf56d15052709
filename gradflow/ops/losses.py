"""Losses, with PyTorch's names and semantics: by default they average over the batch."""

from __future__ import annotations

import math
from itertools import product
from numbers import Integral
from typing import Any

from gradflow.autograd.grad_mode import OFF, grad_enabled
from gradflow.interception import opaque_call
from gradflow.ops.activations import softplus
from gradflow.ops.checks import check_tensors, number
from gradflow.ops.creation import one_hot, ones_like
from gradflow.ops.elementwise import abs as abs_
from gradflow.ops.elementwise import add, astype, divide, less, multiply, negative, not_equal, square, subtract, where
from gradflow.ops.indexing import take, take_along_axis
from gradflow.ops.reductions import mean
from gradflow.ops.reductions import sum as sum_
from gradflow.ops.shape import expand_dims, permute_dims, reshape, squeeze
from gradflow.ops.table import apply, defop, in_float32, is_half, promoted
from gradflow.tensor import Tensor

__all__ = [
    "binary_cross_entropy_with_logits", "cross_entropy", "huber_loss", "l1_loss", "mse_loss", "nll_loss",
    "smooth_l1_loss",
]  # fmt: skip

REDUCTIONS = ("mean", "sum", "none")


def check_pair(name: str, input: Tensor, target: Tensor, reduction: str) -> None:
    """Raise TypeError or ValueError unless a loss can compare these: tensors of one shape."""
    check_reduction(name, reduction)
    check_tensors(name, input, target)
    if input.array.shape != target.array.shape:
        raise ValueError(
            f"{name} needs an input and a target of equal shapes; got {input.shape} and {target.shape}: "
            "reshape or broadcast one first"
        )


def check_reduction(name: str, reduction: str) -> None:
    """Raise ValueError unless `reduction` is the name of a reduction."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"{name} takes the reductions {', '.join(REDUCTIONS)}; got {reduction!r}")


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """Their mean or their sum, or the losses themselves for "none"."""
    if reduction == "none":
        return losses
    return mean(losses) if reduction == "mean" else sum_(losses)


def _squared_error_backward(F: Any, g: Any, out: Any, x: Any, target: Any, **options: Any) -> Any:
    return F.squared_error_backward(g, x, target, **options)


_SQUARED_ERROR = defop(
    "mse_loss",
    forward=lambda F, x, target, reduction: F.squared_error(x, target, reduction, grad_enabled.get() is not OFF),
    joint=_squared_error_backward,
    residual=True,
    autocast="float32",
)


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """The mean squared error.

    input, target: of equal shapes.
    reduction: "mean" over all elements (default), "sum", or "none" for the squared errors themselves.

    Raises ValueError for different shapes or an unknown reduction.

    >>> import gradflow as gf
    >>> x, y = gf.tensor([1.0, 2.0], requires_grad=True), gf.tensor([1.0, 4.0])
    >>> loss = gf.mse_loss(x, y)
    >>> loss.backward()
    >>> loss.item(), x.grad.tolist()
    (2.0, [0.0, -2.0])
    """
    check_pair("mse_loss", input, target, reduction)
    input, target = promoted("mse_loss", input, target, True)
    if reduction == "mean" and 0 in input.array.shape:
        raise ValueError("the mean of no losses is undefined: the input is empty")
    return apply(_SQUARED_ERROR, (input, target), {"reduction": reduction})


@in_float32
def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """The mean absolute error. Arguments and errors as for `mse_loss`.

    >>> import gradflow as gf
    >>> gf.l1_loss(gf.tensor([1.0, 2.0]), gf.tensor([1.0, 4.0]), reduction="none").tolist()
    [0.0, 2.0]
    """
    check_pair("l1_loss", input, target, reduction)
    input, target = promoted("l1_loss", input, target, True)
    return reduced(abs_(subtract(input, target)), reduction)


@in_float32
def huber_loss(input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """Half the squared error where |error| < delta, else delta * (|error| - delta / 2).

    input, target, reduction: as for `mse_loss`.
    delta: a finite number > 0 (default 1.0).

    Huber 1964, "Robust Estimation of a Location Parameter". Raises ValueError for an invalid delta, and as `mse_loss`.

    >>> import gradflow as gf
    >>> gf.huber_loss(gf.tensor([0.5, 10.0]), gf.zeros(2), reduction="none").tolist()
    [0.125, 9.5]
    """
    if not 0 < number("delta of huber_loss", delta) < math.inf:
        advice = ": use half of mse_loss, which is the same" if delta == math.inf else ""
        raise ValueError(f"huber_loss needs a finite delta > 0; got {delta}{advice}")
    return _huber("huber_loss", input, target, reduction, delta, delta)


@in_float32
def smooth_l1_loss(input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """The squared error / (2 beta) where |error| < beta, else |error| - beta / 2: `huber_loss` / beta.

    input, target, reduction: as for `mse_loss`.
    beta: a finite number >= 0 (default 1.0); for 0 it is `l1_loss`.

    Girshick 2015, "Fast R-CNN", equation 3. Raises ValueError for an invalid beta, and as `mse_loss`.

    >>> import gradflow as gf
    >>> gf.smooth_l1_loss(gf.tensor([0.5, 10.0]), gf.zeros(2), reduction="none", beta=0.5).tolist()
    [0.25, 9.75]
    """
    if not 0 <= number("beta of smooth_l1_loss", beta) < math.inf:
        raise ValueError(f"smooth_l1_loss needs a finite beta >= 0; got {beta}")
    if beta == 0:
        return l1_loss(input, target, reduction)
    return _huber("smooth_l1_loss", input, target, reduction, beta, 1.0)


def _huber(name: str, input: Tensor, target: Tensor, reduction: str, delta: float, slope: float) -> Tensor:
    """The loss that is quadratic where |error| < delta, and linear elsewhere, where its derivative is +-slope."""
    check_pair(name, input, target, reduction)
    input, target = promoted(name, input, target, True)
    difference = subtract(input, target)
    size = abs_(difference)
    near = less(size, delta)
    # `difference` and not `size`, whose second derivative at 0 is 0; `where` avoids infinities, since 0 * inf is NaN
    inner = where(near, difference, 0.0)
    outer = subtract(size, 0.5 * delta)
    outer = outer if slope == 1.0 else multiply(outer, slope)
    return reduced(where(near, multiply(square(inner), 0.5 * slope / delta), outer), reduction)


def _cross_entropy_backward(F: Any, g: Any, out: Any, logits: Any, target: Any, **options: Any) -> Any:
    return F.softmax_cross_entropy_backward(g, logits, target, **options)


_CROSS_ENTROPY = defop(
    "cross_entropy",
    forward=lambda F, logits, target, reduction, **options: F.softmax_cross_entropy(
        logits, target, reduction, grad_enabled.get() is not OFF, **options
    ),
    joint=_cross_entropy_backward,
    residual=True,
    autocast="float32",
)


def _classes_last(name: str, input: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The input as rows of classes (N, C), and the shape of the losses. The axis of classes is 1, or 0 of a vector."""
    shape = input.shape
    if not shape:
        raise ValueError(f"{name} needs an input of shape (C,), (N, C) or (N, C, ...); got {shape}")
    if not input.dtype.is_floating:
        raise TypeError(f"{name} needs a floating-point input; got {input.dtype}")
    if not shape[min(1, len(shape) - 1)]:
        raise ValueError(f"{name} needs at least one class; the input has shape {shape}")
    if len(shape) == 1:
        return reshape(input, (1, -1)), ()
    if len(shape) == 2:
        return input, shape[:1]
    axes = (0, *range(2, len(shape)), 1)
    rows = permute_dims(input, axes)
    return reshape(rows, (rows.size // shape[1], shape[1])), rows.shape[:-1]


def _check_labels(
    name: str, target: Tensor, shape: tuple[int, ...], classes: int, ignore_index: int
) -> tuple[Tensor, int | None]:
    """The labels as a vector, and `ignore_index`, or None if their dtype does not hold it.

    Their values are checked on the CPU only: elsewhere that would wait for the device.
    """
    if target.dtype.kind not in ("int", "uint", "bool") or (target.dtype.kind == "bool" and target.shape == shape):
        raise TypeError(
            f"{name} takes integer labels; got {target.dtype}: make them with gradflow.tensor(labels, dtype='int64')"
        )
    if target.shape != shape:
        advice = f": reshape them with target.reshape({shape})" if target.size == math.prod(shape) else ""
        if target.ndim == len(shape) + 1 and classes in target.shape[min(1, len(shape)) :][:1]:
            what = ", or to probabilities with target.astype('float32')" if name == "cross_entropy" else ""
            advice = f"; convert one-hot rows to labels with target.argmax(axis={min(1, len(shape))}){what}"
        raise ValueError(
            f"{name} needs labels of shape {shape} for this input; got {target.dtype} {target.shape}{advice}"
        )
    if target.size and target.backend.device.type == "cpu":
        _check_label_values(name, target, classes, ignore_index)
    low, high = target.dtype.limits
    ignored = ignore_index if low <= ignore_index <= high else None
    return (target if target.ndim == 1 else reshape(target, (target.size,))), ignored


@opaque_call
def _check_label_values(name: str, target: Tensor, classes: int, ignore_index: int) -> None:
    """Raise ValueError for a label, in host memory, that is neither in [0, classes) nor `ignore_index`."""
    values = target.backend.host_values(target.array)
    positive = values.astype("uint64")  # negative labels become huge
    if positive.max() >= classes:
        wrong = (positive >= classes) & (values != ignore_index)
        if wrong.any():
            places = product(*map(range, values.shape))
            place = next(p for p, w in zip(places, wrong.reshape(-1).tolist(), strict=True) if w)
            at, label = f" at index {place[0] if len(place) == 1 else place}" if place else "", values[place].item()
            raise ValueError(f"{name} of {classes} classes needs labels in [0, {classes}); got {label}{at}")


def check_ignore_index(ignore_index: Any) -> int:
    """Return it as an int. Raises TypeError unless it is an integer."""
    if ignore_index.__class__ is not int and (isinstance(ignore_index, bool) or not isinstance(ignore_index, Integral)):
        raise TypeError(f"ignore_index is a label, an integer; got {ignore_index!r}")
    return int(ignore_index)


def _known(labels: Tensor, ignored: int | None) -> Tensor:
    """The labels, with 0 in place of `ignored`."""
    return labels if ignored is None else where(not_equal(labels, ignored), labels, 0)


def _averaged(
    losses: Tensor, labels: Tensor, weight: Tensor | None, reduction: str, shape: tuple[int, ...], ignored: int | None
) -> Tensor:
    """The losses of labels, reduced: 0 for the label `ignored`. The mean divides by the weights of the other labels.

    The losses are multiplied by the weights already.
    """
    kept = None if ignored is None else not_equal(labels, ignored)
    losses = losses if kept is None else where(kept, losses, 0.0)
    if reduction == "none":
        return reshape(losses, shape)
    if reduction == "sum" or (weight is None and kept is None):
        return reduced(losses, reduction)
    factors = ones_like(losses) if weight is None else take(weight, _known(labels, ignored))
    return divide(sum_(losses), sum_(factors if kept is None else where(kept, factors, 0.0)))


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """The cross-entropy of softmax(input) relative to `target`, finite for every finite logit.

    input: logits, (C,), (N, C) or (N, C, ...).
    target: integer labels in [0, C), of the shape of the input without its axis of classes; or class probabilities of
    the shape of the input.
    weight: (C,), a factor for each class. The mean over labels divides by the sum of their weights.
    reduction: "mean" over the batch (default), "sum" or "none".
    label_smoothing: in [0, 1] (default 0), the probability that is spread over all classes (Szegedy et al. 2016,
    "Rethinking the Inception Architecture", section 7).
    ignore_index: a label (default -100) whose loss and gradients are 0. The mean is that of the other labels, NaN if
    there are none.

    Raises ValueError or TypeError for arguments that do not fit. Labels are checked on the CPU only.

    >>> import gradflow as gf
    >>> logits = gf.zeros((2, 4), requires_grad=True)
    >>> loss = gf.cross_entropy(logits, gf.tensor([0, 3], dtype="int64"))
    >>> loss.backward()
    >>> round(loss.item(), 4), logits.grad.tolist()[0]
    (1.3863, [-0.375, 0.125, 0.125, 0.125])
    """
    check_reduction("cross_entropy", reduction)
    check_tensors("cross_entropy", *((input, target) if weight is None else (input, target, weight)))
    if not 0.0 <= number("label_smoothing", label_smoothing) <= 1.0:
        raise ValueError(f"label_smoothing is a share in [0, 1]; got {label_smoothing}")
    ignore_index = check_ignore_index(ignore_index)
    if (weight is not None or label_smoothing) and is_half(input):  # otherwise the kernel computes in float32
        return _cross_entropy_in_float32(input, target, weight, reduction, label_smoothing, ignore_index)
    rows, shape = _classes_last("cross_entropy", input)
    n, classes = rows.shape
    if reduction == "mean" and not n:
        raise ValueError("the mean of no losses is undefined: the input is empty")
    if weight is not None and weight.shape != (classes,):
        raise ValueError(f"cross_entropy of {classes} classes needs a weight of shape ({classes},); got {weight.shape}")
    options: dict[str, Any] = {"reduction": reduction}
    labels: Tensor | None = None
    ignored: int | None = None
    if not target.dtype.is_floating:
        labels, ignored = _check_labels("cross_entropy", target, shape, classes, ignore_index)
        if ignored is not None:
            options["ignore_index"] = ignored
        if weight is None:
            if label_smoothing:
                options["smoothing"] = label_smoothing
            loss = apply(_CROSS_ENTROPY, (rows, labels), options)
            return reshape(loss, shape) if reduction == "none" else loss
        if not label_smoothing:
            # the weight multiplies the loss: if it multiplied the target, 0 * inf would be NaN
            losses = apply(_CROSS_ENTROPY, (rows, labels), {**options, "reduction": "none"})
            losses = multiply(losses, take(weight, _known(labels, ignored)))
            return _averaged(losses, labels, weight, reduction, shape, ignored)
        target = one_hot(_known(labels, ignored), classes, input.dtype)
    elif ignore_index >= 0:
        raise ValueError(f"cross_entropy takes ignore_index={ignore_index} with integer labels; got {target.dtype}")
    elif target.shape == input.shape:
        target = astype(_classes_last("cross_entropy", target)[0], input.dtype)
    else:
        raise ValueError(
            f"cross_entropy takes class probabilities of the input's shape {input.shape}, or integer labels, made with "
            f"gradflow.tensor(labels, dtype='int64'), of shape {shape}; got {target.dtype} of shape {target.shape}"
        )
    if label_smoothing:
        target = add(multiply(target, 1.0 - label_smoothing), label_smoothing / classes)
    if weight is not None:
        target = multiply(target, weight)
    if labels is not None:
        losses = apply(_CROSS_ENTROPY, (rows, target), {"reduction": "none"})
        return _averaged(losses, labels, weight, reduction, shape, ignored)
    loss = apply(_CROSS_ENTROPY, (rows, target), {"reduction": reduction})
    return reshape(loss, shape) if reduction == "none" else loss


_cross_entropy_in_float32 = in_float32(cross_entropy)


@in_float32
def nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean", ignore_index: int = -100
) -> Tensor:
    """The negative log-likelihood: -input at each label.

    input: log-probabilities, such as those of `log_softmax`.
    target: integer labels. Shapes, weight, reduction, ignore_index and errors are those of `cross_entropy`.

    >>> import gradflow as gf
    >>> probabilities = gf.tensor([[0.5, 0.25, 0.25]])
    >>> loss = gf.nll_loss(gf.log(probabilities), gf.tensor([1], dtype="int64"))
    >>> round(loss.item(), 4)
    1.3863
    """
    check_reduction("nll_loss", reduction)
    check_tensors("nll_loss", *((input, target) if weight is None else (input, target, weight)))
    rows, shape = _classes_last("nll_loss", input)
    if reduction == "mean" and not rows.shape[0]:
        raise ValueError("the mean of no losses is undefined: the input is empty")
    if weight is not None and weight.shape != (rows.shape[1],):
        raise ValueError(f"nll_loss of {rows.shape[1]} classes needs a weight of that many; got shape {weight.shape}")
    labels, ignored = _check_labels("nll_loss", target, shape, rows.shape[1], check_ignore_index(ignore_index))
    known = _known(labels, ignored)
    losses = negative(squeeze(take_along_axis(rows, expand_dims(known, 1), axis=1), 1))
    if weight is not None:
        losses = multiply(losses, take(weight, known))
    return _averaged(losses, labels, weight, reduction, shape, ignored)


@in_float32
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """-(target * log(sigmoid(input)) + (1 - target) * log(1 - sigmoid(input))), finite for every finite logit.

    target: probabilities, of the shape of the input.
    weight: a factor for each element. pos_weight: a factor for the first term. Both broadcast.
    reduction: "mean" over all elements (default), "sum" or "none".

    Raises ValueError for different shapes or an unknown reduction.

    >>> import gradflow as gf
    >>> logits = gf.tensor([0.0, 100.0], requires_grad=True)
    >>> loss = gf.binary_cross_entropy_with_logits(logits, gf.tensor([1.0, 0.0]), reduction="sum")
    >>> loss.backward()
    >>> round(loss.item(), 3), logits.grad.tolist()
    (100.693, [-0.5, 1.0])
    """
    check_pair("binary_cross_entropy_with_logits", input, target, reduction)
    positive = multiply(target, softplus(negative(input)))  # softplus(-x) = -log(sigmoid(x))
    if pos_weight is not None:
        positive = multiply(positive, pos_weight)
    losses = add(positive, multiply(subtract(1.0, target), softplus(input)))
    if weight is not None:
        losses = multiply(losses, weight)
    return reduced(losses, reduction)
