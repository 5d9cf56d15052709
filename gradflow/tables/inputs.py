"""The first module of the model of a table: from its columns, as numbers and codes, to the inputs of a perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import gradflow as gf
from gradflow.backend.registry import DeviceLike
from gradflow.tables.entries import entry


@dataclass(frozen=True)
class InputSettings:
    """How `ColumnInputs` makes features of columns.

    width: the features of each column of numbers that has bins (default 24).
    embedding_dim: the features of each column of categories that is embedded (default 16).
    most_one_hot: columns of categories with at most so many levels become one-hot, those with more are embedded
        (default 32).
    limit: numbers that have no bins are clipped to so many standard deviations (default 10.0).
    """

    width: int = 24
    embedding_dim: int = 16
    most_one_hot: int = 32
    limit: float = 10.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.embedding_dim < 1 or self.most_one_hot < 0 or not self.limit > 0:
            raise ValueError(f"widths are at least 1, and the limit is above 0; got {self}")

    @classmethod
    def from_dict(cls, tree: Any) -> InputSettings:
        """Return the settings of a dict of them. Raises ValueError for anything else."""
        sizes = {name: entry(tree, name, int) for name in ("width", "embedding_dim", "most_one_hot")}
        return cls(**sizes, limit=entry(tree, "limit", float))


DEFAULTS = InputSettings()
"""The settings that new models have."""


class ColumnInputs(gf.nn.Module):
    """Encodes the columns of a table, (rows, columns), as features, (rows, out_features).

    numbers: how many columns of numbers there are; they come first, centered and scaled.
    indicators: how many columns of 0 and 1 follow (default 0); they stay as they are.
    levels: for each column of categories, which come last, the number of its levels (default: no such columns). Its
        values are the codes 0, 1, ..., levels - 1, as floats.
    edges: for each column of numbers, the edges of its bins. Numbers then become relu(W e + b), where e is their
        `PiecewiseLinear` encoding, and W and b belong to their column. None (default): they are clipped.
    settings: the widths of these features; see `InputSettings`.
    device, dtype, generator: as for `gradflow.nn.Linear`.

    Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep Learning", section 3.

    >>> import gradflow as gf
    >>> from gradflow.tables.inputs import ColumnInputs
    >>> inputs = ColumnInputs(numbers=1, indicators=1, levels=[3])
    >>> inputs(gf.tensor([[0.5, 1.0, 2.0], [-99.0, 0.0, 0.0]])).tolist()
    [[0.5, 1.0, 0.0, 0.0, 1.0], [-10.0, 0.0, 1.0, 0.0, 0.0]]
    """

    def __init__(
        self,
        numbers: int,
        indicators: int = 0,
        levels: Sequence[int] = (),
        edges: Sequence[Sequence[float]] | None = None,
        settings: InputSettings = DEFAULTS,
        device: DeviceLike | None = None,
        dtype: Any = None,
        generator: gf.Generator | None = None,
    ) -> None:
        super().__init__()
        self.numbers, self.limit = numbers, settings.limit
        self.columns = numbers + indicators + len(levels)
        self.out_features = numbers
        self.encode = self.linear = self.embed = None
        if edges:
            self.encode = gf.nn.PiecewiseLinear(edges, device, dtype)
            self.linear = gf.nn.ColumnLinear(numbers, self.encode.bins, settings.width, True, device, dtype, generator)
            self.out_features = numbers * settings.width
        places = {numbers + i: [1] for i in range(indicators)}  # for each column, the values that have a feature
        embedded = []
        for i, count in enumerate(levels, numbers + indicators):
            if count <= settings.most_one_hot:
                places[i] = list(range(count))
            else:
                embedded.append((i, count))
        hot = [(column, value) for column, values in places.items() for value in values]
        self.out_features += len(hot) + len(embedded) * settings.embedding_dim
        where: Any = {"dtype": "int64", "device": device}
        taken = [column for column, _ in [*hot, *embedded]]
        self.register_buffer("taken", gf.tensor(taken, **where) if taken else None)
        self.register_buffer("hot_values", gf.tensor([value for _, value in hot], dtype, device) if hot else None)
        starts = [0, *accumulate(count for _, count in embedded)]
        self.register_buffer("embedded_starts", gf.tensor(starts[:-1], **where) if embedded else None)
        if embedded:
            self.embed = gf.nn.Embedding(starts[-1], settings.embedding_dim, device, dtype, generator)

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        """x: (rows, columns); the result: (rows, out_features)."""
        parts = []
        if self.numbers:
            numbers = x[:, : self.numbers]
            if self.encode is None or self.linear is None:
                parts.append(gf.clip(numbers, -self.limit, self.limit))
            else:
                parts.append(_flat(gf.relu(self.linear(self.encode(numbers)))))
        if self.taken is not None:
            taken, hot = gf.take(x, self.taken, axis=1), 0
            if self.hot_values is not None:
                hot = len(self.hot_values)
                parts.append(gf.astype(gf.equal(taken[:, :hot], self.hot_values), x.dtype))
            if self.embed is not None:
                codes = gf.astype(taken[:, hot:], "int64") + self.embedded_starts
                parts.append(_flat(self.embed(codes)))
        return parts[0] if len(parts) == 1 else gf.concat(parts, axis=1)


def _flat(x: gf.Tensor) -> gf.Tensor:
    rows, columns, width = x.shape
    return gf.reshape(x, (rows, columns * width))
