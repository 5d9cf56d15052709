"""What training minimizes: the mean loss of a batch, with weights of samples and classes."""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gradflow as gf
from gradflow.data import Batches
from gradflow.training.metrics import aligned, kind_of, known_loss, unwrapped

Loss = Callable[..., gf.Tensor]
"""A loss of outputs and targets, averaged over the batch, such as `gradflow.cross_entropy` or `nn.MSELoss()`."""
ClassWeight = str | Sequence[float] | Mapping[int, float] | None
"""The weights of classes: "balanced", one number for each class, or numbers by class (others: 1)."""


class Objective:
    """The mean loss over the samples of a `Batches`: `objective(outputs, targets)`, a tensor of shape ().

    loss: see `Loss`. batches: where outputs and targets come from.
    class_weights: one number for each class, or None.

    A sample with the weight w and the label c counts w * class_weights[c], scaled so that the mean over the batches is
    1, which reads the targets and weights once. The loss of n samples is the sum of the weighted losses, divided by n:
    so a sample of weight 2 in a batch counts like two, and the losses of batches add up to the loss of their union.

    Raises TypeError for weights with a loss that cannot return the losses of the samples, ValueError for weights that
    are all 0.
    """

    def __init__(self, loss: Loss, batches: Batches, class_weights: Sequence[float] | None = None) -> None:
        self.loss = loss
        self._table: gf.Tensor | None = None
        self._scale = 1.0
        if class_weights is None and batches.weights is None:
            return
        self.loss = _without_reduction(loss)
        self._kind = kind_of(loss, batches.targets)
        if class_weights is not None and self._kind == "binary":
            class_weights = [class_weights[0], class_weights[1] - class_weights[0]]
        table = None if class_weights is None else gf.tensor(class_weights, "float64", "cpu")
        weights = None if batches.weights is None else _on_cpu(batches.weights)
        factors = gf.astype(self._factors(_on_cpu(batches.targets), weights, table), "float64")
        mean = float(gf.mean(factors))
        if not 0.0 < mean < math.inf:
            raise ValueError("the weights of the samples times those of their classes are 0 for every sample")
        if table is None:
            self._scale = 1.0 / mean
        else:
            dtype = gf.float64 if str(batches.inputs.dtype).endswith("float64") else gf.float32
            self._table = gf.multiply(table, 1.0 / mean).to(device=batches.device, dtype=dtype)

    def __call__(self, outputs: gf.Tensor, targets: gf.Tensor, weights: gf.Tensor | None = None) -> gf.Tensor:
        if weights is None and self._table is None:
            return self.loss(outputs, targets)
        losses = self.loss(outputs, targets)
        factors = self._factors(targets, weights, self._table)
        if self._table is None:
            factors = gf.multiply(factors, self._scale)
        return gf.mean(gf.multiply(losses, aligned(factors, losses)))

    def _factors(self, targets: gf.Tensor, weights: gf.Tensor | None, table: gf.Tensor | None) -> gf.Tensor:
        """The weight of each loss, before scaling; at least one of the arguments is not None.

        table: the weights of the classes; of two classes in a binary loss, the first and the difference of the second.
        """
        if table is None:
            assert weights is not None
            return weights
        if self._kind == "classes":
            factors = gf.take(table, gf.reshape(targets, (-1,)), axis=0).reshape(targets.shape)
        elif self._kind == "probabilities":
            factors = gf.sum(gf.multiply(targets, aligned(gf.reshape(table, (1, -1)), targets)), axis=1)
        else:  # binary
            factors = gf.add(table[0], gf.multiply(targets, table[1]))
        return factors if weights is None else gf.multiply(factors, aligned(weights, factors))


def _on_cpu(x: Any) -> gf.Tensor:
    return x.detach().cpu() if isinstance(x, gf.Tensor) else gf.asarray(x, device="cpu")


# ---------------------------------------------------------------------- losses


def check_loss(loss: Any) -> None:
    """Raise TypeError unless the loss is a function, ValueError if it does not average over the batch."""
    if isinstance(loss, type):
        raise TypeError(f"the loss is the class {loss.__name__}: pass {loss.__name__}()")
    if not callable(loss):
        raise TypeError(f"the loss is a function of outputs and targets, such as gradflow.mse_loss; got {loss!r}")
    reduction = _option(loss, "reduction")
    if reduction not in (None, "mean"):
        raise ValueError(f"the loss must average over the batch: its reduction must be 'mean'; got {reduction!r}")


def divides_by_weights(loss: Any) -> bool:
    """Whether this is a loss of gradflow that divides by the weights of the classes in its batch."""
    is_mean = _option(loss, "reduction") in (None, "mean")
    return is_mean and known_loss(loss)[1].startswith("classes") and _option(loss, "weight") is not None


def _option(loss: Any, name: str) -> Any:
    """An option that a loss was given as a module or in a `functools.partial`, or None."""
    if isinstance(loss, partial) and name in loss.keywords:
        return loss.keywords[name]
    loss = unwrapped(loss)
    return getattr(loss, name, None) if isinstance(loss, gf.nn.Module) else None


def _without_reduction(loss: Loss) -> Loss:
    """The loss that returns the losses of the samples. Raises TypeError if there is none."""
    if isinstance(loss, gf.nn.Module):
        if hasattr(loss, "reduction"):
            loss = copy.copy(loss)
            loss.reduction = "none"
            return loss
    elif "reduction" in inspect.signature(loss).parameters:
        return partial(loss, reduction="none")
    raise TypeError(
        "weights of samples or classes need the loss of each sample: a loss with reduction='none', as gradflow's have; "
        f"{describe_loss(loss)} has no `reduction`"
    )


def describe_loss(loss: Any) -> str:
    """A loss in words, equal for equal losses: the name of a function, with its options in a `functools.partial`."""
    if isinstance(loss, partial):
        options = [*map(_described, loss.args), *(f"{k}={_described(v)}" for k, v in sorted(loss.keywords.items()))]
        return f"{describe_loss(loss.func)}({', '.join(options)})"
    if isinstance(loss, gf.nn.Module):
        tensors = [f", {k}={_described(v)}" for k, v in sorted(vars(loss).items()) if isinstance(v, gf.Tensor)]
        return repr(loss) + "".join(tensors)
    return str(getattr(loss, "__qualname__", type(loss).__qualname__))


def _described(option: Any) -> str:
    return str(option.tolist()) if isinstance(option, gf.Tensor) else in_words(repr(option))


def in_words(text: str) -> str:
    """A repr without addresses, so that it is the same in another process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def class_weights_of(class_weight: ClassWeight, loss: Loss, batches: Batches, outputs: gf.Tensor) -> list[float] | None:
    """The weight of each class, or None. outputs: those of some samples.

    "balanced" is n / (k * n_c) for n samples, of which n_c are of class c, and k classes that have samples: each of
    these has the same total (as in scikit-learn). Reads the targets.

    Raises ValueError for targets that are not classes, numbers that are negative or not finite, or too many or too few.
    """
    if class_weight is None:
        return None
    kind = kind_of(loss, batches.targets)
    columns = outputs.shape[1] if outputs.ndim > 1 else 1
    if kind in ("classes", "probabilities") and columns < 2:
        raise ValueError(f"class_weight needs outputs of at least 2 classes; got outputs of shape {outputs.shape}")
    if kind == "values" or (kind == "binary" and columns != 1):
        what = "values" if kind == "values" else f"the {columns} columns of a binary loss"
        raise ValueError(f"class_weight needs targets that are classes; these are {what}")
    classes = 2 if kind == "binary" else columns
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f"class_weight is 'balanced' or one number for each class; got {class_weight!r}")
        return _balanced(kind, _on_cpu(batches.targets), classes)
    if isinstance(class_weight, Mapping):
        unknown = [c for c in class_weight if c not in range(classes)]
        if unknown:
            raise ValueError(f"class_weight has the class {unknown[0]!r}; the classes are 0 to {classes - 1}")
        class_weight = [class_weight.get(c, 1.0) for c in range(classes)]
    try:
        weights = [float(w) for w in class_weight]
    except (TypeError, ValueError):
        raise ValueError(f"class_weight is 'balanced' or one number for each class; got {class_weight!r}") from None
    if len(weights) != classes:
        raise ValueError(f"class_weight needs one number for each of {classes} classes; got {len(weights)}")
    if not all(0.0 <= w < math.inf for w in weights):
        raise ValueError(f"class_weight needs finite numbers of at least 0; got {weights}")
    return weights


def _balanced(kind: str, targets: gf.Tensor, classes: int) -> list[float]:
    labels = targets
    if kind == "probabilities":
        labels = gf.argmax(targets, axis=1)
    elif kind == "binary":
        labels = gf.greater(targets, 0.5)
    flat = labels.numpy().reshape(-1)
    counts = [int((flat == c).sum()) for c in range(classes)]
    present = sum(1 for n in counts if n)
    return [flat.size / (present * n) if n else 1.0 for n in counts]
