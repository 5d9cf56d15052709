"""Losses as modules, with PyTorch's names and semantics; they call the functions of `gradflow.ops.losses`.

Each takes `reduction`: "mean", the average (default); "sum"; or "none", the separate losses. Any other value raises
ValueError.
"""

from __future__ import annotations

import inspect

from gradflow import ops
from gradflow.nn.module import Module
from gradflow.ops.losses import check_ignore_index, check_reduction
from gradflow.pytorch_names import explains_arguments
from gradflow.tensor import Tensor


class _Loss(Module):
    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        if not (reduction == "batchmean" and isinstance(self, KLDivLoss)):
            check_reduction(type(self).__name__, reduction)
        self.reduction = reduction

    def extra_repr(self) -> str:
        shown = []
        for name, parameter in list(inspect.signature(type(self).__init__).parameters.items())[1:]:
            value = getattr(self, name, parameter.default)
            if isinstance(value, Tensor):
                shown.append(f"{name}=tensor of shape {value.shape}")
            elif value != parameter.default:
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)


@explains_arguments
class MSELoss(_Loss):
    """(input - target)^2 for each element.

    reduction: "mean" over all elements (default), "sum" or "none".

    >>> import gradflow as gf
    >>> gf.nn.MSELoss()(gf.tensor([1.0, -2.0]), gf.zeros(2)).item()
    2.5
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input, target: of one shape. The result has shape (), or theirs for reduction "none"."""
        return ops.mse_loss(input, target, self.reduction)


@explains_arguments
class L1Loss(_Loss):
    """|input - target| for each element.

    reduction: "mean" over all elements (default), "sum" or "none".

    >>> import gradflow as gf
    >>> gf.nn.L1Loss(reduction="sum")(gf.tensor([1.0, -2.0]), gf.zeros(2)).item()
    3.0
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input, target: of one shape. The result has shape (), or theirs for reduction "none"."""
        return ops.l1_loss(input, target, self.reduction)


@explains_arguments
class HuberLoss(_Loss):
    """e^2 / 2 where |e| < delta, else delta * (|e| - delta / 2), for each element's error e = input - target.

    reduction: "mean" over all elements (default), "sum" or "none".
    delta: where the loss changes from quadratic to linear, above 0 (default 1); else ValueError.

    Huber 1964, "Robust Estimation of a Location Parameter".

    >>> import gradflow as gf
    >>> loss = gf.nn.HuberLoss(reduction="none", delta=2.0)
    >>> loss(gf.tensor([1.0, 10.0]), gf.zeros(2)).tolist()
    [0.5, 18.0]
    """

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        if not delta > 0:
            raise ValueError(f"HuberLoss needs delta > 0; got {delta}")
        self.delta = delta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input, target: of one shape. The result has shape (), or theirs for reduction "none"."""
        return ops.huber_loss(input, target, self.reduction, self.delta)


@explains_arguments
class SmoothL1Loss(_Loss):
    """e^2 / (2 beta) where |e| < beta, else |e| - beta / 2, for each element's error e = input - target.

    reduction: "mean" over all elements (default), "sum" or "none".
    beta: where the loss changes from quadratic to linear, at least 0 (default 1); else ValueError. 0 makes `L1Loss`.

    See `gradflow.smooth_l1_loss`.

    >>> import gradflow as gf
    >>> loss = gf.nn.SmoothL1Loss(reduction="none", beta=0.5)
    >>> loss(gf.tensor([0.5, 10.0]), gf.zeros(2)).tolist()
    [0.25, 9.75]
    """

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        if not beta >= 0:
            raise ValueError(f"SmoothL1Loss needs beta >= 0; got {beta}")
        self.beta = beta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input, target: of one shape. The result has shape (), or theirs for reduction "none"."""
        return ops.smooth_l1_loss(input, target, self.reduction, self.beta)


@explains_arguments
class CrossEntropyLoss(_Loss):
    """-sum(p * log(softmax(input))) over the classes, where p is the target; see `gradflow.cross_entropy`.

    weight: (C,), a factor for the loss of each class, or None (default).
    reduction: "mean" (default; for labels, divides by the sum of their weights), "sum" or "none".
    label_smoothing: the share in [0, 1] of the target that is spread evenly over all classes (default 0); else
        ValueError.
    ignore_index: the label of samples that do not count (default -100). `Trainer`, whose metrics count all samples,
        takes labels of classes only: it ignores the samples that `gradflow.data.Batches` gives the weight 0.

    >>> import gradflow as gf
    >>> loss = gf.nn.CrossEntropyLoss(weight=gf.tensor([1.0, 3.0]), reduction="none")
    >>> [round(v, 4) for v in loss(gf.zeros((2, 2)), gf.tensor([0, 1], dtype="int64")).tolist()]
    [0.6931, 2.0794]
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction)
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1]; got {label_smoothing}")
        self.register_buffer("weight", weight)
        self.label_smoothing = label_smoothing
        self.ignore_index = check_ignore_index(ignore_index)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input: logits (N, C), (C,) or (N, C, ...). target: integer labels, without the axis C, or probabilities."""
        return ops.cross_entropy(input, target, self.weight, self.reduction, self.label_smoothing, self.ignore_index)


@explains_arguments
class NLLLoss(_Loss):
    """-input at the label, where input are log-probabilities; see `gradflow.nll_loss`.

    weight: (C,), a factor for the loss of each class, or None (default).
    reduction: "mean" (default; divides by the sum of the labels' weights), "sum" or "none".
    ignore_index: the label of samples that do not count (default -100).

    >>> import gradflow as gf
    >>> log_probabilities = gf.nn.LogSoftmax()(gf.zeros((1, 4)))
    >>> round(gf.nn.NLLLoss()(log_probabilities, gf.tensor([2], dtype="int64")).item(), 4)
    1.3863
    """

    def __init__(self, weight: Tensor | None = None, reduction: str = "mean", ignore_index: int = -100) -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)
        self.ignore_index = check_ignore_index(ignore_index)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input: log-probabilities (N, C), (C,) or (N, C, ...). target: integer labels, without the axis C."""
        return ops.nll_loss(input, target, self.weight, self.reduction, self.ignore_index)


@explains_arguments
class BCEWithLogitsLoss(_Loss):
    """-(y * log(p) + (1 - y) * log(1 - p)) for each element, where p = sigmoid(input) and y is the target.

    weight: a factor for the loss of each element, of a shape that broadcasts to the input's, or None (default).
    reduction: "mean" over all elements (default), "sum" or "none".
    pos_weight: a factor for the term of y, of such a shape, or None (default).

    See `gradflow.binary_cross_entropy_with_logits`.

    >>> import gradflow as gf
    >>> loss = gf.nn.BCEWithLogitsLoss(pos_weight=gf.tensor(3.0), reduction="none")
    >>> [round(v, 4) for v in loss(gf.zeros(2), gf.tensor([1.0, 0.0])).tolist()]
    [2.0794, 0.6931]
    """

    def __init__(self, weight: Tensor | None = None, reduction: str = "mean", pos_weight: Tensor | None = None) -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input: logits. target: probabilities of its shape. The result has shape (), or theirs for "none"."""
        return ops.binary_cross_entropy_with_logits(input, target, self.weight, self.reduction, self.pos_weight)


@explains_arguments
class BCELoss(_Loss):
    """-(y * log(p) + (1 - y) * log(1 - p)) for each element, where p is the input and y the target: probabilities.

    `BCEWithLogitsLoss` of the values in front of a sigmoid is more accurate, and runs under `autocast`.

    weight: a factor for the loss of each element, of a shape that broadcasts to the input's, or None (default).
    reduction: "mean" over all elements (default), "sum" or "none".

    See `gradflow.binary_cross_entropy`.

    >>> import gradflow as gf
    >>> round(gf.nn.BCELoss()(gf.tensor([0.5, 0.75]), gf.tensor([1.0, 1.0])).item(), 4)
    0.4904
    """

    def __init__(self, weight: Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input, target: probabilities of one shape. The result has shape (), or theirs for "none"."""
        return ops.binary_cross_entropy(input, target, self.weight, self.reduction)


@explains_arguments
class KLDivLoss(_Loss):
    """target * (log(target) - input) for each element, where input are log-probabilities; see `gradflow.kl_div`.

    reduction: "mean" over all elements (default), "batchmean" (the sum divided by the samples), "sum" or "none".
    log_target: whether targets are log-probabilities, too (default False).

    >>> import gradflow as gf
    >>> loss = gf.nn.KLDivLoss(reduction="batchmean")
    >>> round(loss(gf.log(gf.tensor([[0.25, 0.75]])), gf.tensor([[0.5, 0.5]])).item(), 4)
    0.1438
    """

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        super().__init__(reduction)
        self.log_target = log_target

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input: log-probabilities. target: of its shape. The result has shape (), or theirs for "none"."""
        return ops.kl_div(input, target, self.reduction, self.log_target)


@explains_arguments
class GaussianNLLLoss(_Loss):
    """(log(var) + (input - target)^2 / var) / 2 for each element; see `gradflow.gaussian_nll_loss`.

    full: whether to add the constant log(2 pi) / 2 (default False).
    eps: what smaller variances are replaced by, above 0 (default 1e-6); else ValueError.
    reduction: "mean" over all elements (default), "sum" or "none".

    >>> import gradflow as gf
    >>> gf.nn.GaussianNLLLoss()(gf.tensor([1.0, 2.0]), gf.tensor([1.0, 4.0]), gf.ones(2)).item()
    1.0
    """

    def __init__(self, *, full: bool = False, eps: float = 1e-6, reduction: str = "mean") -> None:
        super().__init__(reduction)
        if not eps > 0:
            raise ValueError(f"GaussianNLLLoss needs eps > 0; got {eps}")
        self.full, self.eps = full, eps

    def forward(self, input: Tensor, target: Tensor, var: Tensor) -> Tensor:
        """input, target: of one shape. var: of that shape, or one for each row. The result has shape (), or theirs."""
        return ops.gaussian_nll_loss(input, target, var, self.full, self.eps, self.reduction)
