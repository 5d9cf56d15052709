"""The scale of features and of regression targets, learned from the training samples and kept with the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_CHUNK = 1 << 20
"""The numbers that are converted to float64 at once: the memory that scaling takes beyond its result is bounded."""


@dataclass(frozen=True, eq=False, repr=False)
class Standardizer:
    """(x - mean) / deviation, clipped to `limit` deviations: the same affine map for every sample.

    mean, deviation: float64 (columns,). A column that was constant has the deviation 1: it is only shifted.
    limit: in deviations; infinity for no clipping. A limit keeps a pixel that hardly varied in training from being huge
    elsewhere.

    >>> import numpy as np
    >>> from gradflow.data import Standardizer
    >>> scale = Standardizer.fit(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> scale.apply(np.array([[2.0, 6.0], [5.0, 5.0]])).tolist()
    [[0.0, 1.0], [3.0, 0.0]]
    """

    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]
    limit: float = np.inf

    def __repr__(self) -> str:
        return f"Standardizer({len(self.mean)} columns, limit={self.limit})"

    @classmethod
    def fit(cls, values: Array, rows: npt.NDArray[np.int64] | None = None, limit: float = np.inf) -> Standardizer:
        """Return the scale of the columns of `values`, real numbers (samples, columns).

        rows: the samples to learn from (default: all).
        limit: see `Standardizer`.

        Mean and deviation are those of all samples (divided by their number), computed in float64 in two passes, the
        second of which corrects the mean of the first (Chan, Golub and LeVeque, "Algorithms for computing the sample
        variance", 1983). Raises ValueError for no samples, and for a column whose squares exceed float64.
        """
        n = len(values) if rows is None else len(rows)
        if not n:
            raise ValueError("a scale is learned from at least one sample; got none")
        total, first, second = np.zeros((3, values.shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):  # told below
            for chunk in _chunks(values, rows):
                total += chunk.sum(axis=0)
            mean = total / n
            for chunk in _chunks(values, rows):
                chunk -= mean
                first += chunk.sum(axis=0)
                second += np.einsum("ij,ij->j", chunk, chunk)
            mean += first / n
            deviation = np.sqrt(np.maximum(second - first * first / n, 0) / n)
        deviation[deviation <= np.finfo(np.float64).eps * np.abs(mean)] = 1.0  # constant, but for rounding
        if not np.isfinite(deviation).all():
            worst = int(np.flatnonzero(~np.isfinite(deviation))[0])
            raise ValueError(f"the numbers of column {worst} are too large for their deviation: divide them first")
        return cls(mean, deviation, limit)

    def apply(self, values: Array, rows: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.float32]:
        """Return the samples (rows of `values`, by default all) on this scale, as float32 (samples, columns).

        They are centered in float64: in float32, times in seconds since 1970 would keep half of their distinct values.
        Raises ValueError for another number of columns.
        """
        if values.ndim != 2 or values.shape[1] != len(self.mean):
            raise ValueError(f"this scale is of {len(self.mean)} columns; got values of shape {values.shape}")
        scaled = np.empty((len(values) if rows is None else len(rows), values.shape[1]), np.float32)
        start = 0
        for chunk in _chunks(values, rows):
            chunk -= self.mean
            chunk /= self.deviation
            np.clip(chunk, -self.limit, self.limit, out=chunk)
            with np.errstate(over="ignore"):  # infinite in float32, which `Batches` finds
                scaled[start : start + len(chunk)] = chunk
            start += len(chunk)
        return scaled

    def undo(self, scaled: Array) -> npt.NDArray[np.float64]:
        """Return values (samples, columns) in their own units, as float64, of values on this scale."""
        return np.asarray(scaled, np.float64) * self.deviation + self.mean

    def state(self) -> dict[str, Any]:
        """Return the scale as a dict of plain numbers and lists, for `gradflow.save`."""
        kind = {"kind": "standardizer", "limit": float(self.limit)}
        return {**kind, "mean": self.mean.tolist(), "deviation": self.deviation.tolist()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Standardizer:
        """Return the scale of a `state`. Raises ValueError for anything else."""
        try:
            if state["kind"] != "standardizer":
                raise ValueError(f"of the kind {state['kind']!r}")
            mean, deviation = (np.array(state[name], np.float64) for name in ("mean", "deviation"))
            limit = float(state["limit"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is not the state of a Standardizer: {error}") from None
        if mean.ndim != 1 or mean.shape != deviation.shape or not (np.isfinite(mean).all() and limit > 0):
            raise ValueError("the state of a Standardizer holds a finite mean and a deviation of one length")
        if not (np.isfinite(deviation).all() and (deviation > 0).all()):
            raise ValueError("the deviations of a Standardizer are finite and above 0")
        return cls(mean, deviation, limit)


def _rows_at_once(columns: int) -> int:
    """Return how many rows of this many columns make one chunk."""
    return max(1, _CHUNK // max(1, columns))


def _chunks(values: Array, rows: npt.NDArray[np.int64] | None) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the rows of an array, some at a time, as new float64 arrays."""
    step = _rows_at_once(values.shape[1])
    for start in range(0, len(values) if rows is None else len(rows), step):
        part = slice(start, start + step)
        yield np.array(values[part if rows is None else rows[part]], np.float64)
