"""The CUDA sources of this package: which kernels they hold, and launching one.

Kernels are templates over the element type. A source is compiled with all its kernels when the first of them is
launched (CuPy keeps the binary on disk for later processes), and a kernel that was found is kept: a launch then costs
one dictionary look-up beside CuPy's own price.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from operator import index
from pathlib import Path
from typing import Any

THREADS = 256
"""Threads of a block; MAX_THREADS in common.cuh."""
TILE_COLUMNS = 32
"""Columns of a block that sums over rows; also in common.cuh."""
MAX_BLOCKS = 1 << 16
"""Blocks of a grid at most; kernels loop over what is beyond."""
PARTIAL_BLOCKS = 1024
"""Blocks at most of a sum over all elements; a last block adds up one number of each."""
SUM_THREADS = 1 << 17
"""Threads that a sum over rows is shared out to where there are enough rows."""
CHUNK_ROWS = 256
"""Rows that one block adds up in a sum over rows."""

REAL_TYPES = {"f": "float", "d": "double"}
"""The C++ types of the element types, by dtype character, that kernels are compiled for."""

SOURCES: dict[str, tuple[str, ...]] = {
    "activations.cu": ("activate", "activate_backward", "bias_activation", "bias_backward"),
    "layer_norm.cu": ("layer_norm", "layer_norm_backward", "layer_norm_columns"),
    "losses.cu": ("squared_error", "squared_error_backward", "sum_all", "one_hot"),
    "optimizers.cu": ("sgd_step", "adam_step", "rmsprop_step", "square_sums", "clip_factor", "scale_by"),
    "philox.cu": ("random_bits", "dropout", "dropout_backward"),
    "softmax.cu": ("softmax", "log_softmax", "cross_entropy", "cross_entropy_backward"),
    "sums.cu": ("sum_rows",),
}
"""The kernels of each source."""
UNTYPED = ("random_bits",)
"""The kernels that are no templates."""
OPTIONS = ("-std=c++17",)
"""Options of the compiler. Never -use_fast_math: results are compared with the CPU's to a few ulp."""

_SOURCE_OF = {name: source for source, names in SOURCES.items() for name in names}

Grid = tuple[int, ...]


def source_text(source: str) -> str:
    """The text of a source, what all share before it."""
    folder = Path(__file__).resolve().parent
    return (folder / "common.cuh").read_text("utf-8") + (folder / source).read_text("utf-8")


def expressions(source: str) -> tuple[str, ...]:
    """The C++ names of the kernels of a source, one for each type that it is compiled for."""
    names: list[str] = []
    for name in SOURCES[source]:
        names += [name] if name in UNTYPED else [f"{name}<{real}>" for real in REAL_TYPES.values()]
    return tuple(names)


_KERNEL = re.compile(r"__global__ void (\w+)\(([^)]*)\)")


@cache
def parameter_types(source: str) -> dict[str, tuple[str, ...]]:
    """The C++ types of the parameters of each kernel of a source, as in "const T*" and "index_t"."""
    found = {}
    for name, parameters in _KERNEL.findall(source_text(source)):
        found[name] = tuple(re.sub(r"\w+$", "", p.strip()).strip() for p in parameters.split(","))
    return found


@cache
def conversions() -> dict[str, Callable[[Any], Any]]:
    """What makes a scalar one of a C++ type; OverflowError where it does not fit."""
    import numpy

    def integer(kind: Callable[[int], Any]) -> Callable[[Any], Any]:
        def convert(value: Any) -> Any:
            if type(value) is not int:
                value = int(value) if isinstance(value, (bool, numpy.bool_)) else index(value)
            return kind(value)

        return convert

    return {
        "double": float, "int": integer(numpy.int32), "unsigned int": integer(numpy.uint32),
        "index_t": integer(numpy.int64), "word_t": integer(numpy.uint64),
    }  # fmt: skip


_kernels: dict[tuple[str, str], tuple[Any, int, tuple[tuple[int, Callable[[Any], Any]], ...]]] = {}
"""Each kernel that was launched, the number of its parameters, and the conversions of those that are scalars."""


@cache
def _module(source: str) -> Any:
    import cupy

    return cupy.RawModule(code=source_text(source), options=OPTIONS, name_expressions=expressions(source))


def launch(name: str, dtype: str, grid: Grid, block: Grid, *arguments: Any) -> None:
    """Launch a kernel for elements of the dtype with the character `dtype` on the current device and stream.

    Arguments: arrays, None for an array left out, and numbers, which become of the type of their parameter: CuPy hands
    a number over in its own size, and a kernel reads as many bytes as its parameter has. Nothing is launched for an
    empty grid. Raises TypeError for a number of another kind or another count of arguments, and OverflowError for a
    number that does not fit.
    """
    if 0 in grid:
        return
    found = _kernels.get((name, dtype))
    if found is None:
        expression = name if name in UNTYPED else f"{name}<{REAL_TYPES[dtype]}>"
        kernel = _module(_SOURCE_OF[name]).get_function(expression)
        types = parameter_types(_SOURCE_OF[name])[name]
        convert = tuple((i, conversions()[t]) for i, t in enumerate(types) if not t.endswith("*"))
        found = _kernels[name, dtype] = kernel, len(types), convert
    kernel, count, convert = found
    if len(arguments) != count:
        raise TypeError(f"the kernel {name} takes {count} arguments; got {len(arguments)}")
    converted = list(arguments)
    for i, to in convert:
        converted[i] = to(converted[i])
    kernel(grid, block, tuple(converted))


def per_element(n: int, at_most: int = MAX_BLOCKS) -> tuple[Grid, Grid]:
    """Grid and block for a kernel that works element by element."""
    return (min((n + THREADS - 1) // THREADS, at_most),), (THREADS,)


def _fitting(columns: int) -> int:
    threads = 32
    while threads < columns and threads < THREADS:
        threads *= 2
    return threads


def per_row(rows: int, columns: int) -> tuple[Grid, Grid]:
    """Grid and block for a kernel that gives a block to each row."""
    return (min(rows, MAX_BLOCKS),), (_fitting(columns),)


def per_cell(rows: int, columns: int) -> tuple[Grid, Grid]:
    """Grid and block for a kernel whose threads each have a column and go down the rows."""
    threads = _fitting(columns)
    return ((columns + threads - 1) // threads, min(rows, MAX_BLOCKS - 1)), (threads,)


def per_tile(rows: int, columns: int) -> tuple[Grid, Grid, int]:
    """Grid and block for a kernel that sums over rows, and the rows of a chunk."""
    chunk = max(CHUNK_ROWS, (rows + MAX_BLOCKS - 2) // (MAX_BLOCKS - 1))
    return ((columns + TILE_COLUMNS - 1) // TILE_COLUMNS, (rows + chunk - 1) // chunk), (THREADS,), chunk


def sum_parts(many: int, rows: int, columns: int) -> int:
    """The sums that `sum_rows` leaves of so many rows: enough to occupy the device, each of 64 rows or more."""
    enough = max(SUM_THREADS // (many * columns), 32 // columns, 1)  # and neighbouring threads read neighbours
    return min(enough, (rows + 63) // 64)
