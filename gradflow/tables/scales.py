"""The scales of the columns of numbers of a table, applied to all of them at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.tables.treatments import Part

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_ALL = slice(None)


def magnitude(values: Array) -> float:
    """Return a power of two near the largest of some numbers; 1.0 if all are 0.

    Numbers that are divided by it are at most 2: no sum of their squares overflows. Their digits stay.

    >>> import numpy as np
    >>> from gradflow.tables.scales import magnitude
    >>> magnitude(np.array([-5.0, 3.0])), magnitude(np.array([0.0]))
    (4.0, 1.0)
    """
    largest = float(np.abs(values).max())
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest else 1.0


class Scales:
    """The scales of columns of numbers: one `Part` for each.

    dtype: "float32" or "float64", of the scaled numbers.

    >>> import numpy as np
    >>> from gradflow.tables.scales import Scales
    >>> from gradflow.tables.treatments import Part
    >>> scales = Scales([Part("", median=3.0, mean=2.0, deviation=4.0, low=0.0, high=9.0)], "float32")
    >>> scales.apply(np.array([[10.0, np.nan]])), scales.outside(np.array([[10.0, np.nan]]))
    (array([[2.  , 0.25]], dtype=float32), array([[ True, False]]))
    """

    def __init__(self, parts: Sequence[Part], dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        names = ("median", "mean", "deviation", "low", "high")
        table = np.array([[getattr(part, name) for part in parts] for name in names], np.float64)
        self._median, self._mean, self._deviation, self._low, self._high = table[:, :, None]
        bins = np.array([[bool(part.edges)] for part in parts], bool).reshape(-1, 1)
        self._least, self._greatest = np.where(bins, self._low, -np.inf), np.where(bins, self._high, np.inf)

    def apply(self, values: Floats, places: slice = _ALL) -> Array:
        """Return numbers (columns, rows), NaN where they are missing, on their scales.

        places: of these columns among all (default: all).

        They are centered in float64. With bins, numbers beyond the range count as its ends. All are finite.
        """
        scaled = np.where(np.isnan(values), self._median[places], values)
        np.clip(scaled, self._least[places], self._greatest[places], out=scaled)
        limit = float(np.finfo(self._dtype).max)
        with np.errstate(over="ignore"):
            scaled -= self._mean[places]
            scaled /= self._deviation[places]
        np.clip(scaled, -limit, limit, out=scaled)
        return scaled.astype(self._dtype, copy=False)

    def outside(self, values: Floats, places: slice = _ALL) -> npt.NDArray[np.bool_]:
        """Return which numbers (columns, rows) are outside of the range of their column in training."""
        outside: npt.NDArray[np.bool_] = (values < self._low[places]) | (values > self._high[places])
        return outside
