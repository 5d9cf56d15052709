"""Tensors as text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradflow.tensor import Tensor


_ARRAY_TEXT = re.compile(r"^array\((.*?)(?:,\s*shape=\([\d, ]*\))?(?:,\s*dtype=\w+)?\)$", re.DOTALL)


def _describe(t: Tensor) -> str:
    return f"tensor of shape {t.shape}, {t.dtype} on {t.device}"
