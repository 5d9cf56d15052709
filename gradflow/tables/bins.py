"""Bins of a column of numbers: those of a decision tree on this column alone, or of equal weight."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.tables.scales import magnitude

Floats = npt.NDArray[np.floating[Any]]

_LARGEST = 1 << 24
"""The most sums, of rows and outputs, that a tree is grown from; of more rows, evenly spaced ones are taken."""


def column_edges(
    values: Floats, targets: Floats, most: int, smallest: int = 1, weights: Floats | None = None
) -> Floats:
    """Return the edges of at most `most` bins of a column: the cuts of a decision tree, between the extremes.

    values: (rows,), float32 or float64 like the edges, finite, not all equal.
    targets: (rows,) or (rows, outputs), finite; those of classes are one-hot rows.
    smallest: the least number of rows in a bin (default 1).
    weights: one number of at least 0 for each row, not all 0 (default: all equal).

    Where the tree finds no cut that tells the targets apart, the bins are those of `quantile_edges`. Bins whose width
    has an infinite reciprocal become part of the next one. Gorishniy et al. 2022, "On Embeddings for
    Numerical Features in Tabular Deep Learning", section 3.2.

    >>> import numpy as np
    >>> from gradflow.tables.bins import column_edges
    >>> column_edges(np.arange(8.0), np.array([0, 0, 5, 5, 5, 5, 1, 1.0]), most=3).tolist()
    [0.0, 1.5, 5.5, 7.0]
    """
    used = slice(None) if weights is None else weights > 0
    inner: Floats = tree_cuts(values, targets, most, smallest, weights)
    if not len(inner):
        inner = quantile_edges(values, most, weights)
    ends = [values[used].min(), values[used].max()]
    edges = np.unique(np.concatenate([inner, ends]).astype(values.dtype))
    wanted: Floats = edges[np.append(wide(edges), True)]
    return wanted


def wide(edges: Floats) -> npt.NDArray[np.bool_]:
    """Return which bins between edges are so wide that the reciprocal of their width is finite, also on a GPU.

    >>> import numpy as np
    >>> from gradflow.tables.bins import wide
    >>> wide(np.array([0.0, 1e-40, 1.0], np.float32))
    array([False,  True])
    """
    with np.errstate(over="ignore"):
        return np.asarray(np.diff(edges) >= np.finfo(edges.dtype).tiny)


def are_edges(values: Sequence[float], dtype: str) -> bool:
    """Whether these are the edges of bins in a dtype: at least two finite numbers, and wide bins between them."""
    with np.errstate(over="ignore"):
        edges = np.array(values, dtype)
    return len(edges) > 1 and bool(np.isfinite(edges).all() and wide(edges).all())


def quantile_edges(values: Floats, most: int, weights: Floats | None = None) -> Floats:
    """Return the edges of at most `most` bins that hold about the same number of rows each, or the same weight.

    values, weights: as for `column_edges`. Values that occur often make bins fewer.

    >>> import numpy as np
    >>> from gradflow.tables.bins import quantile_edges
    >>> quantile_edges(np.array([0, 0, 0, 1, 2, 3, 4, 5.0]), most=4).tolist()
    [0.0, 1.0, 3.0, 5.0]
    """
    order = np.argsort(values, kind="stable")
    passed = np.cumsum(np.ones(len(values)) if weights is None else weights[order] / magnitude(weights))
    shares = np.linspace(0.0, passed[-1], most + 1)
    shares[0] = np.nextafter(0.0, 1.0)  # rows of weight 0 are in no bin
    places = np.searchsorted(passed, shares * (1 - 1e-12))
    return np.unique(values[order][np.minimum(places, len(values) - 1)])


def tree_cuts(
    values: Floats, targets: Floats, most: int, smallest: int = 1, weights: Floats | None = None
) -> npt.NDArray[np.float64]:
    """Return the cuts of a decision tree of at most `most` leaves, increasing, halfway between values.

    The arguments are those of `column_edges`. The leaf that is split next is the one whose best split lowers the
    weighted squared error of the targets the most; of one-hot targets, this is the Gini impurity. No split leaves fewer
    than `smallest` rows on a side. Breiman et al. 1984, "Classification and Regression Trees".

    >>> import numpy as np
    >>> from gradflow.tables.bins import tree_cuts
    >>> tree_cuts(np.array([1, 2, 3, 10.0]), np.array([0, 0, 1, 1.0]), most=8).tolist()
    [2.5]
    """
    targets = targets.reshape(len(targets), -1)
    step = -(-targets.size // _LARGEST)
    x, y = values[::step], targets[::step].astype(np.float64)
    y /= magnitude(y)  # so that no square overflows, or is 0
    w: Floats = np.ones(len(x))
    if weights is not None:
        w = weights[::step] / magnitude(weights)
        x, y, w = x[w > 0], y[w > 0], w[w > 0]
    order = np.argsort(x, kind="stable")
    x, y, w = x[order], y[order], w[order]
    firsts = np.append(np.flatnonzero(np.append(True, x[1:] != x[:-1])), len(x))  # of each distinct value
    distinct = x[firsts[:-1]]
    y = (y - np.average(y, axis=0, weights=w)) * w[:, None]  # centered: sums of large targets would lose digits
    error = float((y / w[:, None] * y).sum())
    sums = np.add.reduceat(np.concatenate([w[None], y.T]), firsts[:-1], axis=1)  # of weights, and of each output

    def explained(sums: npt.NDArray[np.float64]) -> Any:
        """How much of the error is explained by the means of leaves. sums: of each leaf, as above."""
        return np.einsum("i...,i...->...", sums[1:] / sums[0], sums[1:])

    def best_split(start: int, stop: int) -> tuple[float, int] | None:
        """The largest decrease of the error by a cut within a range of distinct values, and its place."""
        low = max(int(np.searchsorted(firsts, firsts[start] + smallest)), start + 1) - start
        high = min(int(np.searchsorted(firsts, firsts[stop] - smallest, side="right")), stop) - start
        if low >= high:
            return None
        part = sums[:, start:stop]  # a difference of sums from the first row on would lose light rows beside heavy ones
        left = np.cumsum(part, axis=1)[:, low - 1 : high - 1]
        right = np.cumsum(part[:, ::-1], axis=1)[:, ::-1][:, low:high]
        split = explained(left) + explained(right)
        best = int(split.argmax())
        return float(split[best] - explained(left[:, best] + right[:, best])), start + low + best

    cuts: list[int] = []
    leaves: list[tuple[float, int, int, int]] = []

    def grow(start: int, stop: int) -> None:
        found = best_split(start, stop)
        if found is not None and found[0] > 1e-12 * error:
            heapq.heappush(leaves, (-found[0], start, stop, found[1]))

    grow(0, len(distinct))
    while leaves and len(cuts) < most - 1:
        _, start, stop, place = heapq.heappop(leaves)
        cuts.append(place)
        grow(start, place)
        grow(place, stop)
    places = np.sort(np.array(cuts, np.int64))
    below, above = (distinct[p].astype(np.float64) for p in (places - 1, places))
    middle: npt.NDArray[np.float64] = below + (above - below) / 2
    return middle
