"""Losses as modules, with PyTorch's names and semantics; the functions are in `gradflow.ops.losses`."""

from __future__ import annotations

import inspect

from gradflow import ops
from gradflow.nn.module import Module, speaks_for_itself
from gradflow.ops.losses import check_reduction
from gradflow.tensor import Tensor


class _Loss(Module):
    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
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


class MSELoss(_Loss):
    """(input - target)^2, averaged over all elements ("mean"), summed ("sum") or not ("none")."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of an input and a target of one shape."""
        return ops.mse_loss(input, target, self.reduction)


class L1Loss(_Loss):
    """|input - target|, averaged over all elements ("mean"), summed ("sum") or not ("none")."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of an input and a target of one shape."""
        return ops.l1_loss(input, target, self.reduction)


class HuberLoss(_Loss):
    """Half the squared error below `delta`, else delta * (|error| - delta / 2). ValueError for delta <= 0."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        if not delta > 0:
            raise ValueError(f"HuberLoss needs delta > 0; got {delta}")
        self.delta = delta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of an input and a target of one shape."""
        return ops.huber_loss(input, target, self.reduction, self.delta)


class CrossEntropyLoss(_Loss):
    """The cross-entropy of softmax(logits) from labels or class probabilities; see `gradflow.cross_entropy`.

    weight: (C,), a factor for each class. label_smoothing in [0, 1], else ValueError.
    """

    def __init__(self, weight: Tensor | None = None, reduction: str = "mean", label_smoothing: float = 0.0) -> None:
        super().__init__(reduction)
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing is a share in [0, 1]; got {label_smoothing}")
        self.register_buffer("weight", weight)
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (N, C) and integer labels (N,) or probabilities (N, C)."""
        return ops.cross_entropy(input, target, self.weight, self.reduction, self.label_smoothing)


class NLLLoss(_Loss):
    """-input at each label, of log-probabilities; see `gradflow.nll_loss`. weight: (C,), a factor for each class."""

    def __init__(self, weight: Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of log-probabilities (N, C) and integer labels (N,)."""
        return ops.nll_loss(input, target, self.weight, self.reduction)


class BCEWithLogitsLoss(_Loss):
    """Binary cross-entropy of sigmoid(logits); see `gradflow.binary_cross_entropy_with_logits`."""

    def __init__(self, weight: Tensor | None = None, reduction: str = "mean", pos_weight: Tensor | None = None) -> None:
        super().__init__(reduction)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits and probabilities of one shape."""
        return ops.binary_cross_entropy_with_logits(input, target, self.weight, self.reduction, self.pos_weight)


for _cls in (MSELoss, L1Loss, HuberLoss, CrossEntropyLoss, NLLLoss, BCEWithLogitsLoss):
    speaks_for_itself(_cls)
