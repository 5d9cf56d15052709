"""Normalization: of each sample over its last axes (layer norm, RMS norm), and of each channel over a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

from gradflow.autograd.grad_mode import repeating
from gradflow.autograd.graph import Operation
from gradflow.dtypes import float32, float64
from gradflow.interception import opaque_call
from gradflow.ops.checks import check_tensors, number
from gradflow.ops.elementwise import square
from gradflow.ops.network import dtypes_differ
from gradflow.ops.reductions import sum as sum_
from gradflow.ops.shape import permute_dims, reshape
from gradflow.ops.table import apply, are_autocast, cast, defop, floating
from gradflow.random.shares import Share, current_share
from gradflow.shapes import integers
from gradflow.tensor import Tensor

__all__ = ["batch_norm", "layer_norm", "rms_norm"]


def check_epsilon(eps: float) -> None:
    """Raise ValueError for an eps that is negative or non-finite."""
    if isinstance(eps, bool) or not isinstance(eps, Real) or not 0.0 <= eps < math.inf:
        raise ValueError(f"eps is a finite number >= 0; got {eps!r}")


def _layer_norm_backward(F: Any, g: Any, out: Any, x: Any, weight: Any, bias: Any, **options: Any) -> Any:
    return F.layer_norm_backward(g, x, weight, **options)


_LAYER_NORM = defop("layer_norm", joint=_layer_norm_backward, residual=True, writes_into=True, autocast="float32")


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, with the mean and the variance over the last axes of x.

    normalized_shape: the lengths of those axes.
    weight, bias: of that shape and the dtype of x, or None.
    eps: a number >= 0 (default 1e-5).

    Ba et al. 2016, "Layer Normalization", eq. 4. Raises ValueError for shapes that do not fit or a negative eps,
    TypeError for different dtypes.

    >>> import gradflow as gf
    >>> y = gf.layer_norm(gf.tensor([[1.0, 3.0], [10.0, 30.0]]), 2)
    >>> [[round(v, 3) for v in row] for row in y.tolist()]
    [[-1.0, 1.0], [-1.0, 1.0]]
    """
    axes = _checked_axes("layer_norm", x, normalized_shape, [("weight", weight), ("bias", bias)])
    check_epsilon(eps)
    return apply(_LAYER_NORM, (floating(x), weight, bias), {"axes": axes, "epsilon": float(eps)})


def _checked_axes(
    name: str, x: Tensor, normalized_shape: int | Sequence[int], weights: Sequence[tuple[str, Tensor | None]]
) -> tuple[int, ...]:
    """The last axes of x, of this shape, over which it is normalized."""
    given = [t for _, t in weights if t is not None]
    check_tensors(name, x, *given)
    shape = integers("normalized_shape", normalized_shape)
    if not shape or x.shape[-len(shape) :] != shape:
        raise ValueError(f"{name} over {shape} needs an input whose last axes are these; its shape is {x.shape}")
    for t in given:
        if t.shape != shape:
            raise ValueError(f"{name} over {shape} needs weights of that shape; got {t.shape}")
        if t.dtype != x.dtype and not are_autocast(x, t):
            raise dtypes_differ(name, x, weights)
    return tuple(range(x.ndim - len(shape), x.ndim))


def _rms_norm(F: Any, x: Any, weight: Any, axes: tuple[int, ...], epsilon: float) -> Any:
    return F.layer_norm(x, weight, None, axes, epsilon, centred=False)


def _rms_norm_backward(F: Any, g: Any, out: Any, x: Any, weight: Any, needs: Any, into: Any, **options: Any) -> Any:
    more = {"needs": (*needs, False), "into": (*into, None), "centred": False}
    return F.layer_norm_backward(g, x, weight, **options, **more)[:2]


_RMS_NORM = defop(
    "rms_norm", forward=_rms_norm, joint=_rms_norm_backward, residual=True, writes_into=True, autocast="float32"
)


def rms_norm(
    x: Tensor, normalized_shape: int | Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, with the mean over the last axes of x.

    normalized_shape: the lengths of those axes.
    weight: of that shape and the dtype of x, or None.
    eps: a number >= 0; by default the distance from 1 to the next number: 2^-52 in float64, and else 2^-23, that of
        float32, in which half floats are computed.

    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4. Raises as `layer_norm`.

    >>> import gradflow as gf
    >>> [round(v, 3) for v in gf.rms_norm(gf.tensor([3.0, 4.0]), 2).tolist()]
    [0.849, 1.131]
    """
    axes = _checked_axes("rms_norm", x, normalized_shape, [("weight", weight)])
    if eps is None:
        eps = 2.0**-52 if x.dtype is float64 else 2.0**-23
    check_epsilon(eps)
    return apply(_RMS_NORM, (floating(x), weight), {"axes": axes, "epsilon": float(eps)})


# ---------------------------------------------------------------------- over a batch


def check_momentum(momentum: float | None) -> None:
    """Raise ValueError or TypeError unless it is None, or a number in [0, 1]."""
    if momentum is not None and not 0.0 <= number("momentum", momentum) <= 1.0:
        raise ValueError(f"momentum is a number in [0, 1], or None; got {momentum!r}")


def _batch_norm_backward(
    F: Any, g: Any, out: Any, x: Any, weight: Any, bias: Any, running: Any, momentum: Any, **options: Any
) -> Any:
    return F.batch_norm_backward(g, x, weight, **options)


_BATCH_NORM = defop("batch_norm", joint=_batch_norm_backward, residual=True, writes_into=True)


class _Moving:
    """The running statistics that a step moves: what `gradflow.capture` needs to know of them."""

    def __init__(self, *tensors: Tensor | None) -> None:
        self.tensors = [x for x in tensors if x is not None]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Moving) and [*map(id, self.tensors)] == [*map(id, other.tensors)]

    __hash__ = object.__hash__

    def _stepped(self) -> Iterator[tuple[Any, str]]:
        """The attributes that a move changes: see `gradflow.replay.host_state`."""
        for x in self.tensors:
            yield x._shared_memory(), "changed"

    def state_dict(self) -> dict[str, Tensor]:
        return {str(i): x.clone() for i, x in enumerate(self.tensors)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for x, value in zip(self.tensors, state.values(), strict=True):
            x._assign(value.array)


@opaque_call
def _record_move(moving: _Moving) -> None:
    for x in moving.tensors:
        x._bump()


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, with the mean and the variance of each channel of a batch.

    x: (N, C), or (N, C, ...): C channels, each with the values of all N samples.
    running_mean, running_var: (C,), or None for both. They take the place of mean and variance, unless `training`.
    weight, bias: (C,), or None.
    training: whether to normalize by the batch (default False). Then the running statistics r are updated in place,
        without a gradient: r = (1 - momentum) * r + momentum * new, with the unbiased variance of the batch.
    momentum: a number in [0, 1] (default 0.1), or None for 1 / num_batches_tracked: then r is the mean of all so far.
    eps: a number >= 0 (default 1e-5).
    num_batches_tracked: the number of updates, an int64 tensor of shape (), which grows by 1 in each; or None.

    All have the dtype of x; for half floats, the others may be float32, in which it is computed anyway.

    Ioffe and Szegedy 2015, "Batch Normalization", algorithms 1 and 2. Raises ValueError for shapes that do not fit, for
    a single value per channel in training, and without running statistics otherwise; TypeError for different dtypes.

    >>> import gradflow as gf
    >>> x, mean, var = gf.tensor([[1.0, 10.0], [3.0, 30.0]]), gf.zeros(2), gf.ones(2)
    >>> [[round(v, 3) for v in row] for row in gf.batch_norm(x, mean, var, training=True).tolist()]
    [[-1.0, -1.0], [1.0, 1.0]]
    >>> [[round(v, 2) for v in r.tolist()] for r in (mean, var)]
    [[0.2, 2.0], [1.1, 20.9]]
    """
    own = [(what, t) for what, t in (("running_mean", running_mean), ("running_var", running_var), ("weight", weight),
                                     ("bias", bias)) if t is not None]  # fmt: skip
    check_tensors("batch_norm", x, *[t for _, t in own], *[num_batches_tracked] * (num_batches_tracked is not None))
    check_epsilon(eps)
    x = floating(x)
    _check_batch(x, own, running_mean, running_var, num_batches_tracked)
    half = x.dtype.itemsize == 2
    weight, bias = (t if t is None or not half else cast(t, float32) for t in (weight, bias))
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("batch_norm needs running_mean and running_var, unless training=True")
        return _by_statistics(x, running_mean, running_var, weight, bias, eps)
    check_momentum(momentum)
    if momentum is None and running_mean is not None and num_batches_tracked is None:
        raise ValueError("batch_norm with momentum=None needs num_batches_tracked, whose inverse it is then")
    share = current_share.get()
    n = _values_per_channel(x, share)
    statistics = running_mean, running_var, num_batches_tracked
    moving = None if running_mean is None or repeating.get() else _Moving(*statistics)
    running = None if moving is None else tuple(map(_writable, statistics))
    if share is not None and share.communicator is not None:
        out = _over_ranks(x, n, share, running, weight, bias, momentum, eps)
    else:
        options = {"running": running, "momentum": None if momentum is None else float(momentum), "epsilon": float(eps)}
        out = _of_rows(x, lambda rows: apply(_BATCH_NORM, (rows, weight, bias), options))
    if moving is not None:
        _record_move(moving)
    return out


def _check_batch(
    x: Tensor, own: Sequence[tuple[str, Tensor]], mean: Tensor | None, variance: Tensor | None, count: Tensor | None
) -> None:
    if x.ndim < 2:
        raise ValueError(f"batch_norm needs an input of shape (N, C) or (N, C, ...); got {x.shape}")
    if (mean is None) is not (variance is None):
        raise ValueError("batch_norm needs both running_mean and running_var, or neither")
    for what, t in own:
        if t.shape != x.shape[1:2]:
            raise ValueError(f"batch_norm of shape {x.shape} needs a {what} of shape {x.shape[1:2]}; got {t.shape}")
        if t.dtype is not x.dtype and not (x.dtype.itemsize == 2 and t.dtype is float32):
            raise dtypes_differ("batch_norm", x, own)
    if count is not None and (count.shape, count.dtype.name) != ((), "int64"):
        raise ValueError(f"num_batches_tracked is an int64 tensor of shape (); got {count.dtype} {count.shape}")


def _values_per_channel(x: Tensor, share: Share | None) -> int:
    """How many values each channel has in the batch, also those of other ranks."""
    rows, n = x.shape[0], x.size // max(x.shape[1], 1)
    if share is not None:
        if rows % share.rows:
            raise ValueError(
                f"statistics of a batch of {share.total} samples, of which this rank has {share.rows}, need a tensor "
                f"whose first axis is the batch; got shape {x.shape}"
            )
        n = n // share.rows * share.total
    if n < 2:
        raise ValueError(
            f"batch_norm in training needs more than one value per channel; an input of shape {x.shape} has {n}: use "
            "larger batches, without a last one of one sample (drop_last), or evaluation mode"
        )
    return n


def _writable(x: Tensor | None) -> Any:
    """The array of a tensor, which can be changed in place."""
    if x is not None and not hasattr(x.array, "__setitem__"):  # a NumPy scalar
        x.array = x.backend.copy(x.array)
    return None if x is None else x.array


def _of_rows(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of (rows, channels) applied to (N, channels, ...)."""
    if x.ndim == 2:
        return function(x)
    last = permute_dims(x, (0, *range(2, x.ndim), 1))
    out = reshape(function(reshape(last, (-1, last.shape[-1]))), last.shape)
    return permute_dims(out, (0, x.ndim - 1, *range(1, x.ndim - 1)))


def _factors(F: Any, variance: Any, weight: Any, epsilon: float) -> tuple[Any, Any]:
    """1 / sqrt(variance + epsilon), and that times the weight."""
    scale = F.divide(1.0, F.sqrt(F.add(variance, epsilon)))
    return scale, scale if weight is None else F.multiply(scale, weight)


def _rule_of_x(
    F: Any, g: Any, _out: Any, _x: Any, _mean: Any, variance: Any, weight: Any, _bias: Any, epsilon: float
) -> Any:
    return F.multiply(g, _factors(F, variance, weight, epsilon)[1])


def _rule_of_mean(
    F: Any, g: Any, _out: Any, _x: Any, _mean: Any, variance: Any, weight: Any, _bias: Any, epsilon: float
) -> Any:
    return F.multiply(g, F.negative(_factors(F, variance, weight, epsilon)[1]))


def _rule_of_variance(
    F: Any, g: Any, _out: Any, x: Any, mean: Any, variance: Any, weight: Any, _bias: Any, epsilon: float
) -> Any:
    scale, factor = _factors(F, variance, weight, epsilon)
    return F.multiply(F.multiply(g, F.subtract(x, mean)), F.multiply(F.multiply(F.square(scale), factor), -0.5))


def _rule_of_weight(
    F: Any, g: Any, _out: Any, x: Any, mean: Any, variance: Any, _weight: Any, _bias: Any, epsilon: float
) -> Any:
    return F.multiply(F.multiply(g, F.subtract(x, mean)), _factors(F, variance, None, epsilon)[0])


_NORMALIZE_COLUMNS = defop(
    "normalize_columns",
    _rule_of_x,
    _rule_of_mean,
    _rule_of_variance,
    _rule_of_weight,
    lambda F, g, _out, _x, _mean, _variance, _weight, _bias, epsilon: g,
)


def _by_statistics(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Normalize by statistics that are given."""
    if x.dtype.itemsize == 2:
        mean, variance = cast(mean, float32), cast(variance, float32)
    given = mean, variance, weight, bias
    return _of_rows(x, lambda rows: apply(_NORMALIZE_COLUMNS, (rows, *given), {"epsilon": float(eps)}))


# ---------------------------------------------------------------------- over a batch that several ranks share


@opaque_call
def _all_reduce(x: Tensor, communicator: Any) -> Tensor:
    total: Tensor = communicator.all_reduce(x)
    return total


def _of_all_ranks(F: Any, x: Any, communicator: Any) -> Any:
    return _all_reduce(Tensor(x, F), communicator).array


def _sum_rule(F: Any, g: Any, _out: Any, _x: Any, communicator: Any) -> Any:
    """The sum counts in the losses of all ranks, so its gradient is that of all of them."""
    return _sum_over_ranks(g, communicator) if isinstance(g, Tensor) else _of_all_ranks(F, g, communicator)


_SUM_OVER_RANKS = Operation("sum_over_ranks", _of_all_ranks, [_sum_rule])


def _sum_over_ranks(x: Tensor, communicator: Any) -> Tensor:
    """The sum of the tensors of all ranks, recorded. All ranks come to the same sums in the same order."""
    return apply(_SUM_OVER_RANKS, (x,), {"communicator": communicator})


def _over_ranks(
    x: Tensor,
    n: int,
    share: Share,
    running: Any,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float | None,
    eps: float,
) -> Tensor:
    """Normalize by the statistics of all ranks, of n values per channel. A sample that does not count adds nothing."""
    axes, shape = (0, *range(2, x.ndim)), (-1, *(1,) * (x.ndim - 2))
    wide, part = cast(x, float32) if x.dtype.itemsize == 2 else x, (1.0 if share.counted else 0.0) / n
    mean = _sum_over_ranks(sum_(wide, axis=axes) * part, share.communicator)
    squares = sum_(square(wide - reshape(mean, shape)), axis=axes)
    variance = _sum_over_ranks(squares * part, share.communicator)
    if running is not None:
        F = x.backend
        F.move_statistics(running, mean.array, F.multiply(variance.array, n / (n - 1.0)), momentum)
    return _by_statistics(x, mean, variance, weight, bias, eps)
