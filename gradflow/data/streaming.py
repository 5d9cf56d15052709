"""Samples that stay on the host: gathered into page-locked memory, and copied to the device while it computes.

While the device works through one part of an epoch, the next one is on its way. Two buffers take turns: the host fills
one again when the device has copied from it, which is the only time that it waits. No thread is needed, since the host
queues the work on a part before it gathers the next one, and the device goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import gradflow as gf
from gradflow.backend import Backend, Event


def streamed(
    backend: Backend, data: Sequence[Any], order: Any, parts: Sequence[slice]
) -> Iterator[tuple[gf.Tensor, ...]]:
    """The rows of each part of an epoch as tensors on the device; the next part is copied ahead.

    data: arrays on the host, of any layout and byte order. order: the row at each position of the epoch, or None if the
    rows are in order. parts: slices of the positions.
    """
    rows = max((part.stop - part.start for part in parts), default=0)
    shapes = [((rows, *x.shape[1:]), x.dtype.newbyteorder("=")) for x in data]
    buffers = [[backend.pin(np.empty(*shape)) for shape in shapes] for _ in parts[:2]]
    copied = [Event(backend)] * 2  # from each buffer
    ahead: tuple[list[Any], Event] | None = None
    try:
        for i, part in enumerate(parts):
            copied[i % 2].synchronize()
            following = backend.from_host_ahead(
                [_gathered(x, order, part, buffer) for x, buffer in zip(data, buffers[i % 2], strict=True)]
            )
            copied[i % 2] = following[1]
            if ahead is not None:
                yield _arrived(backend, *ahead)
            ahead = following
        if ahead is not None:
            yield _arrived(backend, *ahead)
    finally:
        for copy in copied:  # the buffers and the arrays may be freed
            copy.synchronize()


def _gathered(x: Any, order: Any, part: slice, buffer: Any) -> Any:
    """Rows of x, in the first rows of a buffer. Only these rows are read, also from a file."""
    out = buffer[: part.stop - part.start]
    if order is None:
        out[...] = x[part]
    elif x.flags.c_contiguous and x.flags.aligned:
        np.take(x, order[part], axis=0, out=out, mode="clip")  # of other arrays, it would make a copy first
    else:
        out[...] = x[order[part]]
    return out


def _arrived(backend: Backend, arrays: Sequence[Any], copied: Event) -> tuple[gf.Tensor, ...]:
    copied.wait()
    return tuple(gf.Tensor(x, backend) for x in arrays)
