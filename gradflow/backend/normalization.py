"""The kernels of normalization, composed of array functions. Each default is the specification of its kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradflow.backend.array_functions import Array
from gradflow.backend.half_floats import in_float32
from gradflow.backend.kernels import KernelBase, kernel

Running = tuple[Array, Array, Array | None]
"""Running statistics: the means and the variances, (columns,), and how often they moved, () of int64, or None."""


class NormalizationKernels(KernelBase):
    """The composed kernels of normalization."""

    # ------------------------------------------------------------------ kernels: normalization

    @kernel
    @in_float32
    def layer_norm(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        axes: tuple[int, ...],
        epsilon: float,
        centred: bool = True,
    ) -> tuple[Array, Any]:
        """(x - mean) / sqrt(var + epsilon) over the trailing `axes`, times weight plus bias; and a residual.

        weight, bias: arrays with the shape of those axes, or None. centred: whether to subtract the mean (default
        True); if not, the mean counts as 0, also in the variance: RMS norm (Zhang and Sennrich 2019, eq. 4). The
        residual shares no memory with the result. Ba et al. 2016, "Layer Normalization", eq. 4.
        """
        normal, scale, _, _ = _normalize(self, x, axes, epsilon, centred)
        return _affine(self, normal, weight, bias), (normal, scale)

    @kernel
    @in_float32
    def layer_norm_backward(
        self,
        g: Array,
        x: Array,
        weight: Array | None,
        axes: tuple[int, ...],
        epsilon: float,
        residual: Any,
        needs: Sequence[bool],
        into: Sequence[Array | None] = (None, None, None),
        centred: bool = True,
    ) -> tuple[Array | None, Array | None, Array | None]:
        """The VJP of `layer_norm` for x, weight and bias; None where `needs` is false.

        residual: that of `layer_norm`, or None to recompute it. A gradient of weight or bias with a buffer in `into`
        may be written to it; then the buffer is returned.
        """
        normal, scale = residual if residual is not None else _normalize(self, x, axes, epsilon, centred)[:2]
        leading = tuple(range(x.ndim - len(axes)))
        return _backward(self, g, weight, normal, scale, axes, leading, centred, needs, into)

    @kernel
    def batch_norm(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        epsilon: float,
        running: Running | None = None,
        momentum: float | None = None,
    ) -> tuple[Array, Any]:
        """(x - mean) / sqrt(var + epsilon) for each column of x, times weight plus bias; and a residual.

        x: (rows, columns), with at least two rows. weight, bias: (columns,) or None, with the dtype of x, but of
        float32 where x is of half floats. running, momentum: None, or what moves to the mean and the unbiased variance
        of each column, see `move_statistics`. The residual shares no memory with the result. Ioffe and Szegedy 2015,
        "Batch Normalization", algorithm 1.
        """
        wide = self.astype(x, self.single) if x.dtype in self.half_dtypes else x
        normal, scale, mean, variance = _normalize(self, wide, (0,), epsilon)
        if running is not None:
            rows = x.shape[0]
            unbiased = self.multiply(variance, rows / (rows - 1.0))
            self.move_statistics(running, self.squeeze(mean, axis=0), self.squeeze(unbiased, axis=0), momentum)
        out = _affine(self, normal, weight, bias)
        return (out if wide is x else self.astype(out, x.dtype)), (normal, scale)

    @kernel
    def batch_norm_backward(
        self,
        g: Array,
        x: Array,
        weight: Array | None,
        epsilon: float,
        residual: Any,
        needs: Sequence[bool],
        into: Sequence[Array | None] = (None, None, None),
    ) -> tuple[Array | None, Array | None, Array | None]:
        """The VJP of `batch_norm` for x, weight and bias; None where `needs` is false.

        residual: that of `batch_norm`, or None to recompute it. A gradient of weight or bias with a buffer in `into`
        may be written to it; then the buffer is returned.
        """
        half = x.dtype in self.half_dtypes
        if half:
            g, x = self.astype(g, self.single), self.astype(x, self.single)
        normal, scale = residual if residual is not None else _normalize(self, x, (0,), epsilon)[:2]
        gx, gw, gb = _backward(self, g, weight, normal, scale, (0,), (0,), True, needs, into)
        return gx, gw, gb

    @kernel
    def normalize_columns(
        self,
        x: Array,
        mean: Array,
        variance: Array,
        weight: Array | None,
        bias: Array | None,
        epsilon: float,
    ) -> Array:
        """(x - mean) / sqrt(variance + epsilon) for each column of x, times weight plus bias, as a new array.

        x: (rows, columns). The others: (columns,), with the dtype of x, but of float32 where x is of half floats;
        weight and bias may be None.
        """
        wide = self.astype(x, self.single) if x.dtype in self.half_dtypes else x
        scale = self.divide(1.0, self.sqrt(self.add(variance, epsilon)))
        scale = scale if weight is None else self.multiply(scale, weight)
        out = self.multiply(self.subtract(wide, mean), scale)
        out = out if bias is None else self.add(out, bias)
        return out if wide is x else self.astype(out, x.dtype)

    @kernel
    def move_statistics(self, running: Running, mean: Array, variance: Array, momentum: float | None) -> None:
        """Move running means and variances to those of a batch, in place.

        running: means, variances, (columns,), and their count, () of int64, which grows by 1, or None. Each value r
        becomes (1 - momentum) * r + momentum * new; momentum None is 1 / count, so that r is the mean of all so far.
        """
        means, variances, count = running
        if count is not None:
            self.setitem(count, ..., self.add(count, 1))
        rate: Any = momentum
        if momentum is None:
            rate = self.divide(1.0, self.astype(count, mean.dtype))
        keep = self.subtract(1.0, rate) if momentum is None else 1.0 - momentum
        for old, new in ((means, mean), (variances, variance)):
            wide = self.astype(old, new.dtype, copy=False)
            moved = self.add(self.multiply(wide, keep), self.multiply(new, rate))
            self.setitem(old, ..., self.astype(moved, old.dtype, copy=False))


def _normalize(
    F: Any, x: Array, axes: tuple[int, ...], epsilon: float, centred: bool = True
) -> tuple[Array, Array, Array, Array]:
    """x normalized over `axes`, the factor of it, and the mean and variance there."""
    mean = F.mean(x, axis=axes, keepdims=True) if centred else None
    away = F.subtract(x, mean) if centred else x
    variance = F.mean(F.square(away), axis=axes, keepdims=True)
    scale = F.divide(1.0, F.sqrt(F.add(variance, epsilon)))
    return F.multiply(away, scale), scale, mean, variance


def _affine(F: Any, normal: Array, weight: Array | None, bias: Array | None) -> Array:
    """normal * weight + bias, as a new array."""
    out = F.copy(normal) if weight is None else F.multiply(normal, weight)
    return out if bias is None else F.add(out, bias)


def _backward(
    F: Any,
    g: Array,
    weight: Array | None,
    normal: Array,
    scale: Array,
    axes: tuple[int, ...],
    shared: tuple[int, ...],
    centred: bool,
    needs: Sequence[bool],
    into: Sequence[Array | None],
) -> tuple[Array | None, Array | None, Array | None]:
    """The VJP of x normalized over `axes`, times weight plus bias. shared: the axes along which these repeat."""
    need_x, need_weight, need_bias = needs
    gx = gw = gb = None
    if need_x:
        gn = g if weight is None else F.multiply(g, weight)
        gx = F.multiply(normal, F.mean(F.multiply(gn, normal), axis=axes, keepdims=True))
        gx = F.subtract(F.subtract(gn, F.mean(gn, axis=axes, keepdims=True)) if centred else gn, gx)
        gx = F.multiply(gx, scale)
    if need_weight:
        gw = F.multiply(g, normal)
        gw = F.sum(gw, axis=shared) if shared else gw
    if need_bias:
        gb = F.sum(g, axis=shared) if shared else g
    if gw is not None and into[1] is not None:
        into[1][...] = gw
        gw = into[1]
    if gb is not None and into[2] is not None:
        into[2][...] = gb
        gb = into[2]
    return gx, gw, gb
