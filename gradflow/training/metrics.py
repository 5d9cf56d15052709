"""The metrics of an epoch: what outputs and targets are, told by the loss and the shapes, and the figures that suit it.

There are four kinds:

- "classes": outputs (n, C) or (n, C, ...), logits or log-probabilities, and integer labels (n,) or (n, ...). The losses
  are `cross_entropy` and `nll_loss`, or one of the user's with integer targets.
- "probabilities": logits (n, C) or (n, C, ...), and class probabilities or one-hot rows of the same shape. The loss is
  `cross_entropy` with floating-point targets.
- "binary": logits of class 1 and targets above 0.5 for class 1, of the same shape. The loss is
  `binary_cross_entropy_with_logits`, or `binary_cross_entropy`, whose outputs are probabilities in place of logits. A
  figure of several columns is the mean of their figures.
- "values": outputs and targets of the same shape. The losses are `mse_loss`, `l1_loss`, `smooth_l1_loss` and
  `huber_loss`, or another one with floating-point targets.

Other shapes raise an error: outputs and targets are never broadcast. Accuracy, R² and RMSE are summed on the device,
batch by batch. The others come from `host_metrics`, with one transfer of all outputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import gradflow as gf
from gradflow.data import Batches
from gradflow.dtypes import as_dtype
from gradflow.text import did_you_mean
from gradflow.training.host_metrics import host_figures, import_scikit_learn

KINDS = ("classes", "probabilities", "binary", "values")
"""What outputs and targets can be; see the module."""

ON_DEVICE = ("accuracy", "r2", "rmse")
"""The metrics that are summed on the device. The others need scikit-learn, and the outputs of the whole epoch."""

METRICS = {
    "accuracy": ("classification", 1),
    "auroc": ("classification", 1),
    "average_precision": ("classification", 1),
    "balanced_accuracy": ("classification", 1),
    "calibration_error": ("classification", -1),
    "f1": ("classification", 1),
    "log_loss": ("classification", -1),
    "precision": ("classification", 1),
    "recall": ("classification", 1),
    "r2": ("regression", 1),
    "rmse": ("regression", -1),
    "mae": ("regression", -1),
}
"""The metrics by name: the task that each suits, and 1 if larger is better, else -1."""

_LOSSES = (
    (gf.cross_entropy, gf.nn.CrossEntropyLoss, "classes or probabilities"),
    (gf.nll_loss, gf.nn.NLLLoss, "classes"),
    (gf.binary_cross_entropy_with_logits, gf.nn.BCEWithLogitsLoss, "binary"),
    (gf.binary_cross_entropy, gf.nn.BCELoss, "binary"),
    (gf.mse_loss, gf.nn.MSELoss, "values"),
    (gf.l1_loss, gf.nn.L1Loss, "values"),
    (gf.smooth_l1_loss, gf.nn.SmoothL1Loss, "values"),
    (gf.huber_loss, gf.nn.HuberLoss, "values"),
)


def kind_of(loss: Any, targets: Any) -> str:
    """Return the kind of outputs and targets, one of `KINDS`.

    loss: a loss of gradflow, as a function, a module or in a `functools.partial`; any other function of outputs and
        targets; or a kind, which is returned.
    targets: a tensor or an array; only its dtype matters.

    Raises TypeError for targets of a dtype that the loss does not take, or that does not tell the kind, and ValueError
    for an unknown kind.
    """
    name, kind = known_loss(loss)
    dtype = as_dtype(targets.dtype)
    if kind in ("binary", "probabilities", "values"):
        return kind
    if dtype.kind in ("int", "uint"):
        return "classes"
    if dtype.is_floating and kind != "classes":
        return "probabilities" if kind else "values"
    supported = {"classes": "integer labels", "": "integer labels or floating-point values"}
    what = supported.get(kind, "integer labels or floating-point class probabilities")
    whose = f"{name} needs" if name else "metrics of a loss that is not one of gradflow's need"
    raise TypeError(f"{whose} {what} as targets; got {dtype}: convert them with targets.astype(...)")


def unwrapped(loss: Any) -> Any:
    """The function in a `functools.partial`, or the loss itself."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss


def known_loss(loss: Any) -> tuple[str, str]:
    """The name and the kind of a loss of gradflow, or of a kind itself; two empty strings for another loss."""
    if isinstance(loss, str):
        if loss not in KINDS:
            raise ValueError(f"unknown kind {loss!r}; there are {', '.join(KINDS)}")
        return loss, loss
    loss = unwrapped(loss)
    for function, module, kind in _LOSSES:
        if loss is function or isinstance(loss, module):
            return function.__name__, kind
    return "", ""


def default_metric(loss: Any, targets: Any) -> str:
    """Return "r2" for values, "accuracy" for the other kinds. Arguments and errors as for `kind_of`."""
    return "r2" if kind_of(loss, targets) == "values" else "accuracy"


def better(name: str) -> int:
    """Return 1 if a larger figure of this metric is better, -1 if a smaller one is, as for "loss".

    Raises ValueError for an unknown name.
    """
    return -1 if name == "loss" else _known(name)[1]


def metric_names(metrics: Any) -> tuple[str, ...]:
    """Return the names of metrics, each once. Raises TypeError unless it is a list, ValueError for an unknown name."""
    if isinstance(metrics, str) or not isinstance(metrics, Iterable):
        hint = f": write [{metrics!r}]" if isinstance(metrics, str) else ""
        raise TypeError(f"metrics is a list of names; got {metrics!r}{hint}")
    names = tuple(dict.fromkeys(metrics))
    for name in names:
        _known(name)
    return names


def _known(name: str) -> tuple[str, int]:
    if name == "loss":
        raise ValueError("the loss is always among the figures: leave it out of the metrics")
    if not isinstance(name, str) or name not in METRICS:
        hint = did_you_mean(name, METRICS) if isinstance(name, str) else ""
        there_are = f"; there are {', '.join(METRICS)}"
        raise ValueError(f"unknown metric {name!r}{hint or there_are}")
    return METRICS[name]


class Metrics:
    """The metrics of an epoch: `partial` on the device after each batch, `figures` at the end.

    names: names in `METRICS`; without names there is nothing to compute, and no requirement of the loss.
    loss: as for `kind_of`.
    batches: the batches of the epoch; of these, the targets are used.

    Raises ValueError for an unknown metric or one that does not suit the kind, TypeError as `kind_of`, and
    ModuleNotFoundError if a metric needs scikit-learn and it is not installed.
    """

    def __init__(self, names: Iterable[str], loss: Any, batches: Batches) -> None:
        self.names = metric_names(names)
        if not self.names:
            return
        self.kind = kind_of(loss, batches.targets)
        self._are_probabilities = known_loss(loss)[0] == gf.binary_cross_entropy.__name__
        task = "regression" if self.kind == "values" else "classification"
        for name in self.names:
            if METRICS[name][0] != task:
                fitting = ", ".join(other for other, (suits, _) in METRICS.items() if suits == task)
                dtype = as_dtype(batches.targets.dtype)
                told = (
                    "" if known_loss(loss)[1] else f", which {dtype} targets are for a loss that is not gradflow's own"
                )
                raise ValueError(f"the metric {name} does not suit {_described(self.kind)}{told}; there are {fitting}")
        self._host_names = [name for name in self.names if name not in ON_DEVICE]
        import_scikit_learn(self._host_names)
        self._samples = batches.samples
        self._elements = math.prod(batches.targets.shape[2 if self.kind == "probabilities" else 1 :])
        if "r2" in self.names:  # the squares of deviations from about the mean lose no digits
            first = gf.tensor(batches.targets[:_CENTRED], device=batches.device)
            self._centre = gf.reshape(gf.mean(_wide(first), axis=0), (1, -1))

    def partial(
        self, outputs: gf.Tensor, targets: gf.Tensor, weights: gf.Tensor | None = None
    ) -> tuple[gf.Tensor, ...]:
        """Return what the figures need of one batch: tensors on its device, which can be joined along their first axis.

        outputs, targets: of the shapes that the module lists.
        weights: (n,), the weights of the samples, as scikit-learn's `sample_weight` (default: all equal).

        Reads no values, and can be replayed in a captured step. Raises ValueError for other shapes.
        """
        if not self.names:
            return ()
        _check_shapes(self.kind, outputs.shape, targets, weights)
        outputs, n = outputs.detach(), len(targets)
        parts: list[gf.Tensor] = []
        if weights is not None and len(self._host_names) < len(self.names):
            parts.append(weights)
        if "accuracy" in self.names:  # for each sample: `figures` sums once an epoch, since a sum takes long in a step
            right = _matches(self.kind, outputs, targets, threshold=0.5 if self._are_probabilities else 0.0)
            parts.append(_weighted(right if right.ndim == 1 else gf.sum(gf.reshape(right, (n, -1)), axis=1), weights))
        if "r2" in self.names or "rmse" in self.names:
            values, wanted = gf.reshape(_wide(outputs), (n, -1)), gf.reshape(_wide(targets), (n, -1))
            terms = [gf.square(values - wanted)]
            if "r2" in self.names:
                deviations = wanted - self._centre
                terms += [gf.square(deviations), deviations]
            sums = [gf.sum(_weighted(term, weights), axis=0) for term in terms]
            parts.append(gf.expand_dims(gf.stack(sums), 0))
        if self._host_names:
            parts += [outputs, targets] if weights is None else [outputs, targets, weights]
        return tuple(parts)

    def figures(self, partials: Sequence[tuple[gf.Tensor, ...]]) -> dict[str, float]:
        """Return the figures of an epoch by name, in the order of the names, with one transfer from the device.

        partials: what `partial` returned for each batch, at least one; or the same tensors, some of them joined.

        A figure that is undefined is NaN: R² of one sample or of squares that overflow, AUROC and average precision
        without samples of a class, and every metric that scikit-learn would compute from outputs that are not finite.
        """
        if not self.names:
            return {}
        slots = [gf.concat(parts) for parts in zip(*partials, strict=True)]
        summed = len(self._host_names) < len(self.names)
        weighted = len(slots) > summed + 2 * bool(self._host_names)
        own = summed * (1 + weighted)  # the slots that are summed; the others are for scikit-learn
        values = _read([gf.sum(_double(x), axis=0) for x in slots[:own]] + slots[own:])
        found: dict[str, float] = {}
        if summed:
            total, sums = float(values[0]) if weighted else self._samples, values[own - 1]
            if "accuracy" in self.names:
                found["accuracy"] = float(sums) / (total * self._elements) if total else math.nan
            if "rmse" in self.names:
                found["rmse"] = math.sqrt(sums[0].sum() / (total * self._elements)) if total else math.nan
            if "r2" in self.names:
                found["r2"] = _r2(total, sums) if self._samples > 1 and total else math.nan
        if self._host_names:
            outputs, *rest = values[own:]
            found |= host_figures(
                self._host_names, self.kind, _logits(outputs) if self._are_probabilities else outputs, *rest
            )
        return {name: found[name] for name in self.names}


def figures_of(
    names: Iterable[str], kind: str, predictions: Any, targets: Any, weights: Any = None
) -> dict[str, float]:
    """Return the figures of predictions on the host, by name: the same as `Metrics` has for the outputs of a model.

    names: names in `METRICS`. kind: one of `KINDS`.
    predictions: (n, C) or (n, C, ...) probabilities of the classes, probabilities of class 1 for "binary", or values.
    targets, weights: as for `Metrics.partial`.

    Raises as `Metrics` and `Metrics.partial`, and ValueError for probabilities outside [0, 1].

    >>> figures_of(["accuracy"], "classes", [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]], [0, 1, 1])
    {'accuracy': 0.6666666666666666}
    """
    outputs, targets = np.asarray(predictions, dtype=np.float64), np.asarray(targets)
    if kind != "values":
        if ((outputs < 0) | (outputs > 1)).any():
            raise ValueError(f"probabilities must be in [0, 1]; got {outputs.min()} to {outputs.max()}")
        with np.errstate(divide="ignore"):  # logits, of which the probabilities are those that were given
            outputs = _logits(outputs) if kind == "binary" else np.log(outputs)
    batches = Batches(outputs, targets, len(outputs), shuffle=False, device="cpu", weights=weights)
    metrics = Metrics(names, kind, batches)
    return metrics.figures([metrics.partial(batches.inputs, batches.targets, batches.weights)])


# ---------------------------------------------------------------------- on the device


_CENTRED = 1 << 16
"""The number of targets whose mean is near enough to that of all: it only keeps digits of their squares."""


def _described(kind: str) -> str:
    return {"classes": "class labels", "probabilities": "class probabilities", "binary": "binary logits"}.get(
        kind, kind
    )


def _check_shapes(kind: str, shape: tuple[int, ...], targets: gf.Tensor, weights: gf.Tensor | None) -> None:
    """Raise ValueError unless outputs of this shape and the targets are of the kind."""
    n, wanted = len(targets), targets.shape
    if kind == "classes":
        wanted = (n, *shape[1:2], *wanted[1:])
    if shape != wanted or (kind in ("classes", "probabilities") and (len(shape) < 2 or shape[1] < 2)):
        need = {
            "classes": "outputs (n, C, ...) of at least 2 classes C for integer labels of shape (n, ...)",
            "probabilities": "outputs (n, C, ...) of at least 2 classes C and targets of the same shape",
        }.get(kind, "outputs and targets of the same shape")
        fits = kind != "classes" and math.prod(shape) == targets.size
        advice = f": reshape the targets with targets.reshape({(-1, *shape[1:])})" if fits else ""
        if kind == "classes" and shape == targets.shape:
            advice = (
                "; for binary logits, use gradflow.binary_cross_entropy_with_logits itself as the loss; "
                "for values, floating-point targets"
            )
        raise ValueError(
            f"metrics of {_described(kind)} need {need}; got outputs {shape} and {targets.dtype} targets "
            f"{targets.shape}{advice}"
        )
    if weights is not None and weights.shape != (n,):
        raise ValueError(f"metrics need one weight for each of the {n} samples; got shape {weights.shape}")


def _logits(probabilities: Any) -> Any:
    """The logits of probabilities of class 1, infinite for 0 and 1; NumPy arrays."""
    with np.errstate(divide="ignore"):
        return np.log(probabilities) - np.log1p(-probabilities)


def _matches(kind: str, outputs: gf.Tensor, targets: gf.Tensor, threshold: float) -> gf.Tensor:
    """Whether each prediction is right; class 1 of two is predicted above the threshold."""
    if kind == "binary":
        return gf.equal(gf.greater(outputs, threshold), gf.greater(_wide(targets), 0.5))
    labels = gf.argmax(targets, axis=1) if kind == "probabilities" else gf.astype(targets, "int64")
    return gf.equal(gf.argmax(outputs, axis=1), labels)


def _weighted(x: gf.Tensor, weights: gf.Tensor | None) -> gf.Tensor:
    return x if weights is None else x * aligned(weights, x)


def aligned(x: gf.Tensor, like: gf.Tensor) -> gf.Tensor:
    """x with further axes of length 1 at its end, as many as `like` has."""
    return x if x.ndim == like.ndim else gf.reshape(x, (*x.shape, *[1] * (like.ndim - x.ndim)))


def _wide(x: gf.Tensor) -> gf.Tensor:
    """The tensor in float32, or in float64 if it is already."""
    return x if x.dtype in (gf.float32, gf.float64) else gf.astype(x, "float32")


def _double(x: gf.Tensor) -> gf.Tensor:
    """The tensor in float64, which counts exactly, where the device has it."""
    return gf.astype(x, "float64" if x.backend.supports("float64") else "float32")


def _read(tensors: Sequence[gf.Tensor]) -> list[Any]:
    """The values as NumPy arrays, with one transfer."""
    flat = gf.concat([gf.reshape(_double(x), (-1,)) for x in tensors]).numpy()
    parts = np.split(flat, np.cumsum([x.size for x in tensors])[:-1])
    return [part.reshape(x.shape) for part, x in zip(parts, tensors, strict=True)]


def _r2(total: float, sums: Any) -> float:
    """R² as scikit-learn's `r2_score`: the mean over the columns, where one with equal targets has 1 or 0."""
    if not np.isfinite(sums).all():
        return math.nan
    errors, squares, deviations = sums
    spread = squares - deviations**2 / total
    constant = spread <= 1e-6 * squares  # less is what float32 cannot tell from 0
    return float(np.mean(np.where(constant, errors == 0, 1.0 - errors / np.where(constant, 1.0, spread))))
