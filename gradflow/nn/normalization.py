"""Normalization layers, with PyTorch's names and semantics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gradflow import ops
from gradflow.backend.registry import DeviceLike
from gradflow.nn.constructors import positive, read_only
from gradflow.nn.module import Module
from gradflow.nn.parameter import Parameter
from gradflow.ops.normalization import check_epsilon, check_momentum
from gradflow.pytorch_names import explains_arguments
from gradflow.tensor import Tensor


@explains_arguments
class LayerNorm(Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias; mean and variance are over the trailing axes.

    normalized_shape: the lengths of these axes, or of the last axis alone; each at least 1.
    eps: added to the variance, at least 0 (default 1e-5).
    elementwise_affine: whether there are a weight, which starts at 1, and a bias, which starts at 0, both of shape
        normalized_shape (default True).
    device, dtype: of the parameters (default, the current device and float32).

    Ba et al. 2016. Raises ValueError for a length below 1 or a negative eps.

    >>> import gradflow as gf
    >>> layer = gf.nn.LayerNorm(2)
    >>> [[round(v, 3) for v in row] for row in layer(gf.tensor([[1.0, 3.0], [10.0, 30.0]])).tolist()]
    [[-1.0, 1.0], [-1.0, 1.0]]
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        device: DeviceLike | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        shape = self.normalized_shape = _lengths(normalized_shape)
        check_epsilon(eps)
        self.eps = eps
        affine = elementwise_affine
        self.register_parameter("weight", Parameter(ops.ones(shape, dtype, device)) if affine else None)
        self.register_parameter("bias", Parameter(ops.zeros(shape, dtype, device)) if affine else None)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., *normalized_shape); the result has the shape of x."""
        return ops.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.weight is not None}"


@explains_arguments
class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) * weight; the mean is over the trailing axes.

    normalized_shape: the lengths of these axes, or of the last axis alone; each at least 1.
    eps: at least 0 (default None: as in `gradflow.rms_norm`, 2^-23 in float32).
    elementwise_affine: whether there is a weight, which starts at 1, of shape normalized_shape (default True).
    device, dtype: of the weight (default, the current device and float32).

    Zhang and Sennrich 2019. Raises ValueError for a length below 1 or a negative eps.

    >>> import gradflow as gf
    >>> [round(v, 3) for v in gf.nn.RMSNorm(2)(gf.tensor([3.0, 4.0])).tolist()]
    [0.849, 1.131]
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: DeviceLike | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        shape = self.normalized_shape = _lengths(normalized_shape)
        if eps is not None:
            check_epsilon(eps)
        self.eps = eps
        self.register_parameter("weight", Parameter(ops.ones(shape, dtype, device)) if elementwise_affine else None)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., *normalized_shape); the result has the shape of x."""
        return ops.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.weight is not None}"


@explains_arguments
class BatchNorm1d(Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias; mean and variance are those of each feature in the batch.

    num_features: the number C of features, at least 1.
    eps: added to the variance, at least 0 (default 1e-5).
    momentum: how far the running statistics move to those of each batch, in [0, 1] (default 0.1); None for their mean
        over all batches.
    affine: whether there are a weight, which starts at 1, and a bias, which starts at 0 (default True).
    track_running_stats: whether there are running statistics (default True). Evaluation mode normalizes by these, so
        that a result does not depend on the other samples; without them, by the batch.
    device, dtype: of parameters and buffers (default, the current device and float32).

    Buffers: running_mean, running_var (of unbiased variances), (C,), and num_batches_tracked, of int64. In training
    mode, each forward pass updates them in place, also in a captured step; the second run of a `gradflow.checkpoint`
    does not. With half floats, statistics are computed in float32. Of several ranks (see `Trainer`), all have the
    statistics of the whole batch. An average of weights does not average buffers: it uses the model's.

    Ioffe and Szegedy 2015, "Batch Normalization". Raises ValueError for num_features below 1, a negative eps or
    another momentum.

    >>> import gradflow as gf
    >>> layer = gf.nn.BatchNorm1d(2)
    >>> x = gf.tensor([[1.0, 10.0], [3.0, 30.0]])
    >>> [[round(v, 3) for v in row] for row in layer(x).tolist()]
    [[-1.0, -1.0], [1.0, 1.0]]
    >>> [round(v, 2) for v in layer.running_mean.tolist()], layer.eval()(x).shape
    ([0.2, 2.0], (2, 2))
    """

    weight: Parameter | None
    bias: Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: DeviceLike | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        n = self._features = positive("num_features", num_features)
        check_epsilon(eps)
        check_momentum(momentum)
        self.eps, self.momentum = eps, momentum
        self.register_parameter("weight", Parameter(ops.ones(n, dtype, device)) if affine else None)
        self.register_parameter("bias", Parameter(ops.zeros(n, dtype, device)) if affine else None)
        tracks = track_running_stats
        self.register_buffer("running_mean", ops.zeros(n, dtype, device) if tracks else None)
        self.register_buffer("running_var", ops.ones(n, dtype, device) if tracks else None)
        self.register_buffer("num_batches_tracked", ops.zeros((), "int64", device) if tracks else None)

    num_features = read_only("num_features", lambda self: self._features, "The number of features.")

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C) or (N, C, L); the result has the shape of x."""
        if x.ndim not in (2, 3) or x.shape[1] != self._features:
            n = self._features
            raise ValueError(f"BatchNorm1d needs an input of shape (N, {n}) or (N, {n}, L); got {x.shape}")
        return ops.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or self.running_mean is None, self.momentum, self.eps, self.num_batches_tracked,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"{self._features}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}, "
            f"track_running_stats={self.running_mean is not None}"
        )


def _lengths(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    lengths = normalized_shape if isinstance(normalized_shape, Iterable) else (normalized_shape,)
    shape = tuple(positive("a length of normalized_shape", n) for n in lengths)
    if not shape:
        raise ValueError("normalized_shape must have at least one length; got none")
    return shape
