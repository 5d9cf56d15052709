"""Accurate sums for libraries whose own sums are less accurate than the contract requires."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gradflow.backend.array_functions import Array
from gradflow.backend.contract import Backend
from gradflow.backend.half_floats import in_float32
from gradflow.shapes import axes_of


class AccurateSums(Backend):
    """The base class, instead of `Backend`, for libraries whose own sums are less accurate than the contract requires.

    It composes `sum`, `mean`, `var`, `std` and `cumulative_sum` of other array functions, of `own_sum`, called for at
    most 32 numbers at a time, and of `own_cumulative_sum`. These two are `sum` and `cumulative_sum` of the namespace,
    unless the class defines them. Cumulative sums need float64.
    """

    own_sum: Callable[..., Array]
    own_cumulative_sum: Callable[..., Array]

    def __init__(self, namespace: Any, index: int = 0) -> None:
        for name in ("sum", "cumulative_sum"):
            if not hasattr(type(self), f"own_{name}"):
                setattr(self, f"own_{name}", getattr(namespace, name))
        super().__init__(namespace, index)

    @in_float32
    def sum(self, x: Array, /, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        """The sum over `axis`: sums of 32 numbers each, then of 8 of those sums each, until one is left."""
        axes = axes_of(axis, x.ndim)
        n, step = math.prod(x.shape[a] for a in axes), 32
        if n <= step or 0 in x.shape or self.dtype_name(x.dtype) not in ("float32", "float64"):
            return self.own_sum(x, axis=axis, keepdims=keepdims)
        kept = tuple(a for a in range(x.ndim) if a not in axes)
        rows = self.reshape(self.permute_dims(x, axes + kept), (n, -1))
        while n > step:
            whole = n - n % step
            parts = [self.own_sum(self.reshape(rows[:whole, :], (whole // step, step, -1)), axis=1)]
            if whole < n:
                parts.append(self.own_sum(rows[whole:, :], axis=0, keepdims=True))
            rows = self.concat(parts, axis=0)
            n, step = rows.shape[0], 8
        shape = tuple(1 if a in axes else m for a, m in enumerate(x.shape) if keepdims or a not in axes)
        return self.reshape(self.own_sum(rows, axis=0), shape)

    @in_float32
    def mean(self, x: Array, /, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        """The sum over `axis`, divided by the number of terms."""
        n = math.prod(x.shape[a] for a in axes_of(axis, x.ndim))
        return self.divide(self.sum(x, axis=axis, keepdims=keepdims), float(n))

    @in_float32
    def var(
        self, x: Array, /, *, axis: int | tuple[int, ...] | None = None, correction: float = 0.0, keepdims: bool = False
    ) -> Array:
        """The sum of the squared deviations from the mean, divided by their number less `correction`."""
        n = math.prod(x.shape[a] for a in axes_of(axis, x.ndim))
        squares = self.square(self.subtract(x, self.mean(x, axis=axis, keepdims=True)))
        return self.divide(self.sum(squares, axis=axis, keepdims=keepdims), max(n - correction, 0.0))

    @in_float32
    def std(
        self, x: Array, /, *, axis: int | tuple[int, ...] | None = None, correction: float = 0.0, keepdims: bool = False
    ) -> Array:
        """The square root of the variance."""
        return self.sqrt(self.var(x, axis=axis, correction=correction, keepdims=keepdims))

    @in_float32
    def cumulative_sum(self, x: Array, /, *, axis: int | None = None) -> Array:
        """The cumulative sum along `axis`, computed in float64; for float64, with its rounding errors compensated."""
        name = self.dtype_name(x.dtype)
        if name == "float32":
            wide = self.astype(x, self.dtypes["float64"])
            return self.astype(self.own_cumulative_sum(wide, axis=axis), x.dtype)
        sums = self.own_cumulative_sum(x, axis=axis)
        if name != "float64" or 0 in x.shape:
            return sums
        (along,) = axes_of(axis, x.ndim)
        start = tuple(1 if a == along else n for a, n in enumerate(x.shape))
        but_last = sums[tuple(slice(n - 1 if a == along else n) for a, n in enumerate(x.shape))]
        before = self.concat([self.zeros(start, dtype=x.dtype), but_last], axis=along)
        # the rounding error of each addition: Knuth 1997, volume 2, section 4.2.2, theorem B
        step = self.subtract(sums, before)
        back = self.subtract(step, sums)
        lost = self.subtract(self.subtract(sums, self.subtract(step, back)), self.add(before, back))
        missing = self.subtract(self.subtract(x, step), lost)
        missing = self.where(self.isfinite(missing), missing, 0.0)  # the errors of infinite sums are NaN
        return self.add(sums, self.own_cumulative_sum(missing, axis=axis))
