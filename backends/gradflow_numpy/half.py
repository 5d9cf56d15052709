"""Half floats in NumPy: which dtypes they are. bfloat16 is that of ml_dtypes, imported when it is first asked for.

Kernels test `x.itemsize == 2` before they ask `is_half`, which costs less than a comparison of dtypes.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

FLOAT16 = np.dtype(np.float16)
_HALVES: list[Any] = [FLOAT16]


def is_half(x: Any) -> bool:
    """Whether an array is of a half float."""
    return x.dtype in _HALVES


def bfloat16() -> Any:
    """The dtype bfloat16; None without ml_dtypes."""
    try:
        found = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        return None
    if found not in _HALVES:
        _HALVES.append(found)
    return found
