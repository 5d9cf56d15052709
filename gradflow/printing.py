"""Tensors as text: `repr`, `format`, and the short description that error messages use."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradflow.tensor import Tensor

_ARRAY_TEXT = re.compile(r"^array\((.*?)(?:,\s*shape=\([\d, ]*\))?(?:,\s*dtype=\w+)?\)$", re.DOTALL)


def describe(t: Tensor) -> str:
    """The shape, the dtype and the device of a tensor, as in "tensor of shape (2, 3), float32 on cpu"."""
    return f"tensor of shape {t.shape}, {t.dtype} on {t.device}"


def tensor_text(t: Tensor) -> str:
    """The values of a tensor as NumPy prints them, its dtype and its device. Waits for the device."""
    if hasattr(t.array, "level"):
        return f"tensor(one of {t.array.level.count} in vmap, shape={t.shape}, dtype={t.dtype}, device={t.device})"
    text = repr(t.backend.to_host(t.array))
    found = _ARRAY_TEXT.match(text)
    values = (found.group(1) if found else text).replace("\n", "\n ")
    parts = [values, f"dtype={t.dtype}", f"device={t.device}"]
    if 0 in t.shape or "..." in values:
        parts.insert(1, f"shape={t.shape}")
    if t._node is not None:
        parts.append("requires_grad=True" if t._node.op is None else f"op={t._node.op.name}")
    return f"tensor({', '.join(parts)})"


def formatted(t: Tensor, spec: str) -> str:
    """`format(t, spec)`: the formatted element of a tensor of one element, else the formatted text of the tensor.

    Raises TypeError for several elements and a format of numbers.
    """
    if spec and t.size == 1:
        return format(t.item(), spec)
    try:
        return format(str(t), spec)
    except ValueError:
        raise TypeError(
            f"the format {spec!r} is for a tensor of one element; this is a {describe(t)}: format the elements of "
            ".tolist(), or round the values first with .numpy().round(2)"
        ) from None
