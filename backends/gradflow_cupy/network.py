"""Kernels of networks: activations, softmax, dropout, random bits, scatter.

They take float32 and float64, and most of them half floats, which they compute in float32 and round once; arrays of any
other dtype go to the composed default. Non-contiguous arrays are copied first. The residual of a kernel holds exactly
what its backward kernel reads.
"""

from __future__ import annotations

import functools
import math
from threading import get_ident
from typing import Any

from gradflow.backend import AccurateSums, Array, Backend, axes_of, dropout_threshold
from gradflow_cupy.kernels import (
    ELEMENT_TYPES,
    SCRATCH_BYTES,
    SORTED_ROWS,
    kernel_dtype,
    launch,
    per_element,
    per_pack,
    per_row,
    per_sum,
)

IDENTITY = 0
CODES = {"relu": 1, "leaky_relu": 2, "elu": 3, "gelu": 4, "silu": 5, "sigmoid": 6, "softplus": 7, "tanh": 8,
         "gelu_exact": 9, "selu": 10, "mish": 11, "hardtanh": 12, "softsign": 13}  # fmt: skip
"""The number of each activation, as in `enum Activation` of activations.cu."""

ERF = 14
"""The number of the error function, which the kernel of activations computes, too."""

_WORD_MASK = (1 << 64) - 1
_PER_THREAD = 2
"""The address of the default stream of a thread, cudaStreamPerThread: each thread has another under it."""


class NetworkKernels(AccurateSums):
    """Network kernels in CUDA, and accurate sums: CuPy's own add many terms one after another in each thread."""

    cupy: Any
    cupyx: Any

    def _contiguous(self, x: Array) -> Array:
        return x if x.flags.c_contiguous else self.cupy.ascontiguousarray(x)

    def _labels(self, labels: Array) -> Array:
        return self._contiguous(labels.astype(self.dtypes["int64"], copy=False))

    def _empty(self, shape: tuple[int, ...], like: Array) -> Array:
        return self.cupy.empty(shape, dtype=like.dtype)

    @functools.cached_property
    def _scratches(self) -> dict[tuple[int, int], Array]:
        return {}

    def _scratch(self) -> Array:
        """The memory for sums over several blocks, all zeros between launches.

        Each stream has its own, also the one that a graph was captured on: its kernels run one after another.
        """
        address = self.cupy.cuda.get_current_stream().ptr
        key = address, get_ident() if address == _PER_THREAD else 0
        found = self._scratches.get(key)
        if found is None:  # of two threads, the second to come here uses what the first has made
            found = self._scratches.setdefault(key, self.cupy.zeros((SCRATCH_BYTES,), dtype=self.dtypes["uint8"]))
        return found

    # ------------------------------------------------------------------ sums

    def sum(self, x: Array, /, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        """As in the contract. Of floats in one launch, in a fixed order: the same input gives the same bits."""
        dtype = kernel_dtype(x, types=ELEMENT_TYPES)
        axes = axes_of(axis, x.ndim)
        rows = math.prod(x.shape[a] for a in axes)
        if dtype is None or rows <= 32 or not x.size:
            return super().sum(x, axis=axis, keepdims=keepdims)
        shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes)
        start, stop = min(axes), max(axes) + 1
        if x.flags.c_contiguous and stop - start == len(axes):
            many, columns = math.prod(x.shape[:start]), math.prod(x.shape[stop:])
        else:
            x = self._contiguous(self.cupy.permute_dims(x, axes + tuple(a for a in range(x.ndim) if a not in axes)))
            many, columns = 1, x.size // rows
        grid, block, chunk = per_sum(many, rows, columns, x.dtype.itemsize)
        out = self._empty(shape, x)
        launch("sum_rows", dtype, grid, block, x, out, self._scratch(), many, rows, columns, chunk)
        return out

    # ------------------------------------------------------------------ activations

    def activate(self, x: Array, name: str, parameter: float) -> Array:
        dtype = kernel_dtype(x, types=ELEMENT_TYPES)
        if dtype is None:
            return Backend.activate(self, x, name, parameter)
        return self._mapped(x, dtype, CODES[name], parameter)

    def erf(self, x: Array) -> Array:
        dtype = kernel_dtype(x, types=ELEMENT_TYPES)
        return Backend.erf(self, x) if dtype is None else self._mapped(x, dtype, ERF, 0.0)

    def _mapped(self, x: Array, dtype: str, code: int, parameter: float) -> Array:
        x = self._contiguous(x)
        out = self._empty(x.shape, x)
        launch("activate", dtype, *per_pack(x), x, out, x.size, code, parameter)
        return out

    def activate_backward(self, g: Array, saved: Array, name: str, parameter: float) -> Array:
        dtype = kernel_dtype(g, saved, types=ELEMENT_TYPES)
        if dtype is None or g.shape != saved.shape:
            return Backend.activate_backward(self, g, saved, name, parameter)
        g, saved = self._contiguous(g), self._contiguous(saved)
        out = self._empty(g.shape, g)
        launch("activate_backward", dtype, *per_pack(g), g, saved, out, g.size, CODES[name], parameter)
        return out

    def softmax(self, x: Array, axis: int) -> Array:
        dtype = kernel_dtype(x, types=ELEMENT_TYPES)
        if dtype is None or not _is_last_axis(x, axis):
            return Backend.softmax(self, x, axis)
        return self._rowwise("softmax", dtype, x)

    def log_softmax(self, x: Array, axis: int) -> Array:
        dtype = kernel_dtype(x, types=ELEMENT_TYPES)
        if dtype is None or not _is_last_axis(x, axis):
            return Backend.log_softmax(self, x, axis)
        return self._rowwise("log_softmax", dtype, x)

    def _rowwise(self, name: str, dtype: str, x: Array) -> Array:
        x = self._contiguous(x)
        out, columns = self._empty(x.shape, x), x.shape[-1]
        rows = x.size // columns
        launch(name, dtype, *per_row(rows, columns), x, out, rows, columns)
        return out

    # ------------------------------------------------------------------ sums over rows

    def _sum_rows(
        self,
        dtype: str,
        rows: Array,
        saved: Array | None,
        dz: Array | None,
        sums: Array,
        code: int = IDENTITY,
        parameter: float = 0.0,
    ) -> None:
        """Write the sum over `rows` to `sums`, in one launch; for half floats, `sums` may be of float32.

        With an activation (`code`), first multiply by its derivative, which needs `saved`, and write that to `dz`.
        """
        n, columns = rows.shape
        if not rows.size:
            sums[...] = 0
            return
        grid, block, chunk = per_sum(1, n, columns, rows.dtype.itemsize)
        outputs = (sums, None) if sums.dtype == rows.dtype else (None, sums)
        launch(
            "bias_backward", dtype, grid, block,
            rows, saved, dz, *outputs, self._scratch(), n, columns, chunk, code, parameter,
        )  # fmt: skip

    def _target(self, buffer: Array | None, shape: tuple[int, ...], like: Array) -> Array:
        """The buffer, if a kernel can write to it, else a new array with the dtype of `like`."""
        if buffer is not None and buffer.dtype == like.dtype and buffer.flags.c_contiguous:
            return buffer
        return self._empty(shape, like)

    def _sums_target(self, buffer: Array | None, shape: tuple[int, ...], like: Array) -> Array:
        """As `_target`, for sums, which may be of float32 where `like` is of half floats."""
        if buffer is not None and buffer.dtype == self.single and like.dtype in self.half_dtypes:
            return self._target(buffer, shape, buffer)
        return self._target(buffer, shape, like)

    # ------------------------------------------------------------------ randomness

    @staticmethod
    def _philox_words(key: int | None, counter: Any) -> tuple[Any, ...]:
        """The counter of the first block (`counter` + 1) and the key, as 64-bit words, the lowest first.

        And None; or, with the words on the device, zeros and these.
        """
        if key is None:
            return *(0,) * 6, counter
        first = counter + 1
        words = [first >> shift for shift in (0, 64, 128, 192)] + [key, key >> 64]
        return *(word & _WORD_MASK for word in words), None

    def random_bits(self, key: int | None, counter: Any, n: int) -> Array:
        out = self.cupy.empty((n,), dtype=self.dtypes["uint64"])
        launch("random_bits", None, *per_element((n + 3) // 4), out, n, *self._philox_words(key, counter))
        return out

    def dropout(self, x: Array, p: float, key: int | None, counter: Any, skip: int = 0) -> tuple[Array, Any]:
        dtype = kernel_dtype(x, types=ELEMENT_TYPES)
        if dtype is None:
            return Backend.dropout(self, x, p, key, counter, skip)
        x = self._contiguous(x)
        out, mask = self._empty(x.shape, x), self.cupy.empty(x.shape, dtype=self.dtypes["bool"])
        grid = per_element((x.size + skip + 7) // 8 if x.size else 0)
        launch(
            "dropout", dtype, *grid,
            x, out, mask, x.size, skip, dropout_threshold(p), 1.0 / (1.0 - p), *self._philox_words(key, counter),
        )  # fmt: skip
        return out, mask

    def dropout_backward(self, g: Array, mask: Array, p: float) -> Array:
        dtype = kernel_dtype(g, types=ELEMENT_TYPES)
        if dtype is None or g.shape != mask.shape:
            return Backend.dropout_backward(self, g, mask, p)
        g, mask = self._contiguous(g), self._contiguous(mask)
        out = self._empty(g.shape, g)
        launch("dropout_backward", dtype, *per_pack(g), g, mask, out, g.size, 1.0 / (1.0 - p))
        return out

    # ------------------------------------------------------------------ scatter

    def scatter_add(self, values: Array, key: Any, shape: tuple[int, ...], into: Array | None = None) -> Array:
        """As in the contract. Repeated indices are added in a fixed order: the same input gives the same bits."""
        parts = key if isinstance(key, tuple) else (key,)
        arrays = [k for k in parts if hasattr(k, "dtype")]
        dtype = values.dtype
        if not arrays or (len(arrays) == 1 and arrays[0].dtype.kind == "b"):
            out = self.cupy.zeros(shape, dtype=dtype) if into is None else into
            out[key] = values if into is None else out[key] + values
            return out
        wide = dtype
        if dtype.char not in "fdiqILQl":  # half floats are summed in float32, other integers as CuPy can add them
            wide = self.dtypes["float32" if dtype in self.half_dtypes else "int64"]
        if wide != dtype:
            start = None if into is None else into.astype(wide)
            found = self.scatter_add(values.astype(wide), key, shape, start).astype(dtype)
            if into is None:
                return found
            into[...] = found
            return into
        out = self.cupy.zeros(shape, dtype=dtype) if into is None else into
        if dtype.kind != "f":
            self.cupy.add.at(out, key, values)  # atomically, which is exact for integers
        elif out.flags.c_contiguous:
            self._scatter_rows(values, parts, out)
        else:
            out[...] = self.cupy.add(out, self.scatter_add(values, key, shape))
        return out

    def _scatter_rows(self, values: Array, parts: tuple[Any, ...], out: Array) -> None:
        """Add `values` at an index of arrays to `out`: sort its positions, then sum what has the same one.

        Axes that the index does not name are last in `out` and in `values`, so all their elements move together.
        """
        if parts[-1] is Ellipsis:
            parts = parts[:-1]
        named = out.ndim if any(k is Ellipsis for k in parts) else sum(k is not None for k in parts)
        rows, rest = math.prod(out.shape[:named]), out.shape[named:]
        positions = self.cupy.arange(rows, dtype=self.dtypes["int64"]).reshape(out.shape[:named])[parts]
        n, columns = positions.size, math.prod(rest)
        if not n or not columns:
            return
        values = self._contiguous(self.cupy.broadcast_to(values, positions.shape + rest))
        positions = positions.reshape((n,))
        order = self.cupy.argsort(positions)  # stable
        targets = positions[order]
        while True:  # each launch leaves the sums of the runs that may go on: two rows for SORTED_ROWS of them
            threads = (n + SORTED_ROWS - 1) // SORTED_ROWS
            sums = ends = None
            if threads > 1:
                sums, ends = self._empty((2 * threads, columns), values), self._empty((2 * threads,), targets)
            launch(
                "scatter_rows", values.dtype.char, *per_element(threads * columns),
                values, order, targets, out, sums, ends, n, columns, SORTED_ROWS,
            )  # fmt: skip
            if threads == 1:
                return
            values, order, targets, n = sums, None, ends, 2 * threads


def as_rows(x: Array) -> Array:
    """x as a matrix whose columns are its last axis."""
    return x if x.ndim == 2 else x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))


def _is_last_axis(x: Array, axis: int) -> bool:
    return bool(x.ndim) and axis in (-1, x.ndim - 1) and x.shape[-1] > 0
