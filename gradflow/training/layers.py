"""What is known of a model's layers after an epoch: how weights and gradients are spread, what a step changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_PER_DECADE, _LOWEST, _HIGHEST = 16, -12, 3
_SIZES = (_HIGHEST - _LOWEST) * _PER_DECADE + 1

_POSITIVE = 10.0 ** ((np.arange(_SIZES + 1) - 0.5) / _PER_DECADE + _LOWEST)
EDGES: Array = np.concatenate([-_POSITIVE[::-1], _POSITIVE])
"""The edges of the bins of all histograms, so that histograms of all layers and epochs can be compared.

Bins are logarithmic, 16 to a decade from 1e-12 to 1e3, for both signs; the middle bin is what is nearer to 0. The
outermost bins hold also what is beyond them.
"""


def histograms(values: Array, lengths: Sequence[int]) -> Array:
    """Return how many values of each array lie in each bin of `EDGES`, uint16 (arrays, bins).

    values: float32, those of one array after those of another. lengths: how many each array has.

    Values that are not finite are in no bin.

    >>> (counts,) = histograms(np.array([0.0, 0.5, -2.0, -2.0, np.nan], np.float32), [5])
    >>> [(int(counts[i]), float(EDGES[i].round(2)), float(EDGES[i + 1].round(2))) for i in counts.nonzero()[0]]
    [(2, -2.21, -1.91), (1, -0.0, 0.0), (1, 0.45, 0.52)]
    """
    bins = len(EDGES) - 1
    with np.errstate(all="ignore"):
        sizes = np.floor((np.log10(np.abs(values)) - _LOWEST) * _PER_DECADE + 1.5)
        places = _SIZES + np.sign(values) * np.clip(sizes, 0, _SIZES)
    finite = np.isfinite(values)
    rows = np.repeat(np.arange(len(lengths)) * bins, lengths)
    found = np.bincount((rows + np.where(finite, places, 0).astype(np.int64))[finite], minlength=len(lengths) * bins)
    return found.astype(np.uint16).reshape(len(lengths), bins)


@dataclass(frozen=True, eq=False)
class Spread:
    """How the numbers of an array are spread.

    rms: the root of the mean of their squares; not finite if one of them is not.
    counts: for each bin of `EDGES`, how many of at most 4096 of the numbers lie in it, evenly spaced; None if it was
        dropped, see `Watch`.
    """

    rms: float
    counts: Array | None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What is known of a model's layers after an epoch. `str()` is a table.

    epoch: its number. step: that of its last step. learning_rate: of this step, in the first parameter group.
    weights, gradients: by the name of the parameter, after the last step of the epoch, and of this step: as the
        optimizer got them, summed over the accumulated batches and clipped. A gradient that does not exist has the RMS
        NaN.
    ratios: by the name of the parameter, the RMS of what the last step changed, divided by that of the parameter before
        it: about 0.001 is usual (Karpathy, CS231n, "Ratio of weights:updates"). 0 where nothing changed.
    dead: by the name of the layer, the share of its rectified units (of `relu`, not of `maximum(x, 0)`) that are 0 for
        each of at most 1024 samples.
    """

    epoch: int
    step: int
    learning_rate: float
    weights: Mapping[str, Spread]
    gradients: Mapping[str, Spread]
    ratios: Mapping[str, float]
    dead: Mapping[str, float]

    def __str__(self) -> str:
        head = ("parameter", "RMS", "RMS of the gradient", "update / weight")
        rows = [
            (name, *(f"{x:.3g}" for x in (spread.rms, self.gradients[name].rms, self.ratios[name])))
            for name, spread in self.weights.items()
        ]
        wide = max(map(len, [head[0], *(row[0] for row in rows)]))
        lines = [f"epoch {self.epoch}, step {self.step}"]
        for name, *values in (head, *rows):
            cells = (f"{v:>{max(9, len(h))}}" for h, v in zip(head[1:], values, strict=True))
            lines.append("  ".join([name.ljust(wide), *cells]))
        if self.dead:
            lines.append("dead units: " + ", ".join(f"{name} {share:.1%}" for name, share in self.dead.items()))
        return "\n".join(lines)
