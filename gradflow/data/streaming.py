"""Samples that stay on the host: gathered into page-locked memory, and copied to the device while it computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradflow as gf
from gradflow.backend import Backend


def streamed(
    backend: Backend, data: Sequence[Any], order: Any, parts: Sequence[slice]
) -> Iterator[tuple[gf.Tensor, ...]]:
    """The rows of each part of an epoch as tensors on the device, of which the next ones are copied ahead.

    data: arrays on the host. order: the row at each position of the epoch, or None if they are in order. parts: slices
    of the positions.
    """
    for part in parts:
        rows = part if order is None else order[part]
        yield tuple(gf.tensor(x[rows], device=backend.device) for x in data)
