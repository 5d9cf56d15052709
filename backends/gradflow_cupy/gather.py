"""The kernel that gathers batches: one launch for inputs, targets and weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradflow.backend import Array, Backend
from gradflow_cupy.kernels import launch, per_row

_TOGETHER = 3
"""The number of arrays that one launch gathers from."""
_ALIGNMENT = 256
"""Each batch begins at a multiple of so many bytes, so that its products are computed as those of any other batch."""
_NO_ARRAY = (None, None, 0, 1, 0)


class GatherKernels(Backend):
    """The gathering of batches in CUDA."""

    cupy: Any

    def take_rows(self, arrays: Sequence[Array], rows: Array) -> list[Array]:
        if not all(x.size and x.flags.c_contiguous for x in (*arrays, rows)):
            return Backend.take_rows(self, arrays, rows)
        found, (batches, size) = [], rows.shape
        for start in range(0, len(arrays), _TOGETHER):
            parameters, longest = [], 1
            for x in arrays[start : start + _TOGETHER]:
                row = x.nbytes // len(x)
                step = _ALIGNMENT // math.gcd(_ALIGNMENT, row)  # as many rows end at a multiple of the alignment
                stride = (size + step - 1) // step * step
                out = self.cupy.empty((batches, stride, *x.shape[1:]), dtype=x.dtype)
                width = math.gcd(16, row, x.data.ptr)
                parameters += [x, out, row // width, width, stride]
                longest = max(longest, row // width)
                found.append(out[:, :size])
            parameters += _NO_ARRAY * (_TOGETHER - len(parameters) // len(_NO_ARRAY))
            launch("take_rows", None, *per_row(rows.size, longest), rows, rows.size, size, *parameters)
        return found
