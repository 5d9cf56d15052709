"""Layers that treat each column of a table on its own: piecewise-linear encoding, and a linear layer for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gradflow import ops
from gradflow.backend.registry import DeviceLike
from gradflow.dtypes import default_dtype
from gradflow.nn import init
from gradflow.nn.constructors import positive, read_only
from gradflow.nn.module import Module
from gradflow.nn.parameter import Parameter
from gradflow.pytorch_names import explains_arguments
from gradflow.random.generator import Generator
from gradflow.tensor import Tensor


@explains_arguments
class PiecewiseLinear(Module):
    """The piecewise-linear encoding of numbers: how far each number has passed through each bin of its column.

    edges: for each column, the edges b_0 < b_1 < ... < b_T of its T bins, at least one bin. Columns may have different
        numbers of bins; those with fewer are filled up with zeros.
    device, dtype: of the buffers (default, the current device and float32).

    The component of bin t of a number x is (x - b_{t-1}) / (b_t - b_{t-1}), but at least 0 except in the first bin, and
    at most 1 except in the last. So the bins below that of x are 1, those above are 0, and numbers beyond the outer
    edges are extrapolated. Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep Learning",
    eq. 1.

    Buffers, (columns, bins): starts, the lower edges; scales, 1 / (b_t - b_{t-1}); least and greatest, the limits.
    Raises ValueError for edges that do not increase, are not finite, or are too few.

    >>> import gradflow as gf
    >>> encode = gf.nn.PiecewiseLinear([[0, 1, 3], [-1, 1]])
    >>> encode(gf.tensor([[2.0, 0.0], [-1.0, 2.0]])).tolist()
    [[[1.0, 0.5], [0.5, 0.0]], [[-1.0, 0.0], [1.5, 0.0]]]
    """

    def __init__(self, edges: Sequence[Sequence[float]], device: DeviceLike | None = None, dtype: Any = None) -> None:
        super().__init__()
        columns = [[float(b) for b in column] for column in edges]
        if not columns:
            raise ValueError("PiecewiseLinear needs the edges of at least one column; got none")
        for i, column in enumerate(columns):
            if len(column) < 2 or not all(map(math.isfinite, column)) or any(a >= b for a, b in pairwise(column)):
                raise ValueError(
                    f"the edges of column {i} must be at least two finite, increasing numbers; got {column}"
                )
        bins = max(map(len, columns)) - 1
        rows: dict[str, list[list[float]]] = {"starts": [], "scales": [], "least": [], "greatest": []}
        for column in columns:
            used = len(column) - 1
            values = {
                "starts": column[:-1],
                "scales": [1.0 / (b - a) for a, b in pairwise(column)],
                "least": [-math.inf] + [0.0] * (used - 1),
                "greatest": [1.0] * (used - 1) + [math.inf],
            }
            for name, row in values.items():
                rows[name].append(row + [0.0] * (bins - used))
        for name, table in rows.items():
            self.register_buffer(name, ops.tensor(table, default_dtype.get() if dtype is None else dtype, device))

    columns = read_only("columns", lambda self: self.starts.shape[0], "The number of columns.")
    bins = read_only("bins", lambda self: self.starts.shape[1], "The largest number of bins of a column.")

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., columns); the result: (..., columns, bins)."""
        if not x.ndim or x.shape[-1] != self.columns:
            raise ValueError(f"PiecewiseLinear of {self.columns} columns takes (..., {self.columns}); got {x.shape}")
        passed = (ops.expand_dims(x, -1) - self.starts) * self.scales
        return ops.minimum(ops.maximum(passed, self.least), self.greatest)

    def extra_repr(self) -> str:
        return f"columns={self.columns}, bins={self.bins}"


@explains_arguments
class ColumnLinear(Module):
    """A linear layer of its own for each column: x[:, i] @ weight[i] + bias[i], as one batched product.

    columns: their number. in_features, out_features: the widths of the input and of the result of each column.
    bias: whether to add a bias (default True).
    device, dtype: of the parameters (default, the current device and float32).
    generator: draws the initial values (default, the global generator).

    Parameters: weight, (columns, in_features, out_features), and bias, (columns, out_features) or None. Both start as
    U(-b, b) with b = 1 / sqrt(in_features), as those of `Linear`. Raises ValueError for a size below 1.

    >>> import gradflow as gf
    >>> layer = gf.nn.ColumnLinear(columns=3, in_features=4, out_features=2)
    >>> layer(gf.ones((5, 3, 4))).shape
    (5, 3, 2)
    """

    def __init__(
        self,
        columns: int,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: DeviceLike | None = None,
        dtype: Any = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        k = positive("columns", columns)
        n, m = positive("in_features", in_features), positive("out_features", out_features)
        self.weight = Parameter(ops.zeros((k, n, m), dtype, device))
        self.register_parameter("bias", Parameter(ops.zeros((k, m), dtype, device)) if bias else None)
        bound = 1.0 / math.sqrt(n)
        for parameter in self.parameters():
            init.uniform_(parameter, -bound, bound, generator)

    columns = read_only("columns", lambda self: self.weight.shape[0], "The number of columns.")
    in_features = read_only("in_features", lambda self: self.weight.shape[1], "The width of each column's input.")
    out_features = read_only("out_features", lambda self: self.weight.shape[2], "The width of each column's result.")

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., columns, in_features); the result: (..., columns, out_features)."""
        k, n, m = self.weight.shape
        if x.shape[-2:] != (k, n):
            raise ValueError(f"ColumnLinear of {k} columns takes (..., {k}, {n}); got {x.shape}")
        stack = ops.swapaxes(ops.reshape(x, (-1, k, n)), 0, 1) @ self.weight
        out = ops.reshape(ops.swapaxes(stack, 0, 1), (-1, k * m))  # in order in memory, as what follows needs it
        if self.bias is not None:
            out = out + ops.reshape(self.bias, (k * m,))
        return ops.reshape(out, (*x.shape[:-1], m))

    def extra_repr(self) -> str:
        sizes = f"columns={self.columns}, in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}"
