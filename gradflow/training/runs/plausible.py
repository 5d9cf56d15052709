"""Whether inputs are on the scale of the training samples: of others, a model predicts nonsense, and is sure of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.data.scaling import Standardizer
from gradflow.data.splits import LIMIT

FEWEST = 10
"""Of fewer samples, nothing is said about their spread."""

_MOST = 1000  # samples that are looked at, evenly spaced
_FACTOR = 20.0
_SHARE = 0.2


def doubt(inputs: npt.NDArray[Any], scale: Standardizer) -> str:
    """Return why inputs are probably on another scale than the training samples, or "".

    inputs: real numbers (samples, features), as they are in the data. scale: that of the training samples.

    The reasons: most features that vary at all vary 20 times less, or more, than in training; or a fifth of the values
    is more than 3 standard deviations from the training mean.
    """
    if len(inputs) < FEWEST:
        return ""
    rows = np.asarray(inputs[:: -(-len(inputs) // _MOST)], np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = (rows - scale.mean) / scale.deviation
        spread = scaled.std(axis=0)
    beyond = float((np.abs(scaled) > LIMIT).mean())
    spread = spread[spread > np.finfo(np.float32).eps]
    usual = float(np.median(spread)) if len(spread) else 1.0
    if usual < 1 / _FACTOR:
        found = f"the inputs vary {1 / usual:,.0f} times less than those of the training"
    elif usual > _FACTOR:
        found = f"the inputs vary {usual:,.0f} times more than those of the training"
    elif beyond > _SHARE:
        found = f"{beyond:.0%} of the inputs lie more than {LIMIT:g} standard deviations from the training means"
    else:
        return ""
    return f"{found}: are they on the same scale?"
