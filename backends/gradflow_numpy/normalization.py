"""Kernels of batch norm in NumPy, which compute in place on arrays that they created themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.backend import Array, Backend
from gradflow_numpy.half import is_half
from gradflow_numpy.network import SMALL, NetworkKernels, sum_of_rows


class NormalizationKernels(NetworkKernels):
    """The kernels of batch norm."""

    def batch_norm(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        epsilon: float,
        running: Any = None,
        momentum: float | None = None,
    ) -> tuple[Array, Any]:
        rows = x.shape[0]
        if rows < 2 or (x.itemsize == 2 and is_half(x)):
            return Backend.batch_norm(self, x, weight, bias, epsilon, running, momentum)
        mean = self._column_sums(x) / rows
        normal = np.subtract(x, mean)
        out = np.square(normal)
        squares = self._column_sums(out)
        scale = 1 / np.sqrt(squares / rows + epsilon)
        normal *= scale
        if running is not None:
            self.move_statistics(running, mean, squares / (rows - 1), momentum)
        if weight is None:
            out[...] = normal
        else:
            np.multiply(normal, weight, out=out)
        if bias is not None:
            out += bias
        return out, (normal, scale)

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
        if residual is None or (x.itemsize == 2 and is_half(x)):
            return Backend.batch_norm_backward(self, g, x, weight, epsilon, residual, needs, into)
        (normal, scale), rows = residual, x.shape[0]
        gx = np.multiply(g, normal)
        found = None, self._column_sums(gx), self._column_sums(g)
        if needs[0]:
            np.multiply(normal, found[1] / rows, out=gx)
            np.subtract(g, gx, out=gx)
            gx -= found[2] / rows
            gx *= scale if weight is None else scale * weight
        _, gw, gb = (
            self._stored(total, g.dtype, b) if n else None for total, n, b in zip(found, needs, into, strict=True)
        )
        return gx if needs[0] else None, gw, gb

    def _column_sums(self, x: Array) -> Array:
        """The sums over the rows."""
        if x.size <= SMALL:
            return self.product(self._constant(np.full, x.shape[0], 1, x.dtype), x)
        return sum_of_rows(x, None)
