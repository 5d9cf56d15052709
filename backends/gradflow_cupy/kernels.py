"""The CUDA sources of this package, their kernels, and how to launch one.

Kernels are templates over the element type. A source is compiled for an element type, with all its kernels, when the
first of them is launched; CuPy caches the binary on disk for later processes. Compiled kernels are kept in a
dictionary, so a launch costs one look-up on top of the driver's launch.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from functools import cache
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

from gradflow.backend import Array, launch_counters, launched

THREADS = 256
"""The largest number of threads per block: MAX_THREADS in common.cuh."""
BLOCKS = 4096
"""The number of blocks that occupies any device several times, so that no more of them are needed."""
MAX_BLOCKS = 1 << 16
"""The largest number of blocks per grid; kernels loop over the remaining elements."""
PARTIAL_BLOCKS = 1024
"""The largest number of blocks that share one sum: the last one to finish adds up the sums of all."""
SUM_BLOCKS = 320
"""The number of blocks in sums over rows, if there are enough of them: twice the multiprocessors of a large GPU."""
AT_ONCE = 4
"""The rows that a thread of a sum over rows loads at once: AT_ONCE in common.cuh."""
SCRATCH_BYTES = 4096 + 2 * (2 * SUM_BLOCKS * 32) * 8
"""The scratch memory of sums over several blocks: TICKETS in common.cuh, and two sums of 32 columns for each block."""
SORTED_ROWS = 32
"""The number of sorted rows that one thread sums in `scatter_rows`."""

REAL_TYPES = {"f": "float", "d": "double"}
"""The element types that all kernels are compiled for: the C++ type for each dtype character."""
ELEMENT_TYPES = {**REAL_TYPES, "e": "__half", "E": "__nv_bfloat16"}
"""The element types of the kernels in `WITH_HALVES`, which compute half floats in float and round them once."""

SOURCES: dict[str, tuple[str, ...]] = {
    "activations.cu": ("activate", "activate_backward", "bias_activation", "bias_backward"),
    "gather.cu": ("take_rows",),
    "graph.cu": ("next_row",),
    "losses.cu": ("squared_error", "one_hot"),
    "normalization.cu": ("layer_norm", "layer_norm_backward", "layer_norm_columns", "batch_norm",
                         "batch_norm_backward", "normalize_columns"),
    "optimizers.cu": ("sgd_step", "adam_step", "rmsprop_step", "moment_step", "square_sums", "scale_by", "unscale",
                      "update_scale", "count_step"),
    "philox.cu": ("random_bits", "dropout", "dropout_backward"),
    "scatter.cu": ("scatter_rows",),
    "softmax.cu": ("softmax", "log_softmax", "cross_entropy"),
    "sums.cu": ("sum_rows",),
}  # fmt: skip
"""The kernels in each source."""
WITH_HALVES = (
    "activations.cu", "losses.cu", "normalization.cu", "optimizers.cu", "philox.cu", "softmax.cu", "sums.cu"
)  # fmt: skip
"""The sources whose kernels are also compiled for half floats."""
UNTYPED = ("count_step", "next_row", "random_bits", "take_rows", "update_scale")
"""The kernels that are not templates."""
OPTIONS = ("-std=c++17",)
"""Compiler options. Never -use_fast_math: results must agree with the CPU's to a few ulp."""

_SOURCE_OF = {name: source for source, names in SOURCES.items() for name in names}

Grid = tuple[int, ...]


def source_text(source: str) -> str:
    """The text of a source, after that of common.cuh."""
    folder = Path(__file__).resolve().parent
    return (folder / "common.cuh").read_text("utf-8") + (folder / source).read_text("utf-8")


def expression(name: str, dtype: str | None) -> str:
    """The C++ name of a kernel for the elements with this dtype character; None: of one that is not a template."""
    return name if dtype is None else f"{name}<{ELEMENT_TYPES[dtype]}>"


def expressions(source: str, dtypes: Iterable[str | None] | None = None) -> tuple[str, ...]:
    """The C++ names of the kernels in a source: each template once for each of the dtype characters (default: all)."""
    if dtypes is None:
        dtypes = (None, *(ELEMENT_TYPES if source in WITH_HALVES else REAL_TYPES))
    return tuple(expression(k, d) for k in SOURCES[source] for d in dtypes if (k in UNTYPED) == (d is None))


_KERNEL = re.compile(r"__global__ void (\w+)\(([^)]*)\)")


@cache
def parameter_types(source: str) -> dict[str, tuple[str, ...]]:
    """The C++ parameter types of each kernel in a source, such as "const T*" and "index_t"."""
    found = {}
    for name, parameters in _KERNEL.findall(source_text(source)):
        found[name] = tuple(re.sub(r"\w+$", "", p.strip()).strip() for p in parameters.split(","))
    return found


class Scalar(NamedTuple):
    """A parameter that is a number: its position, its Python type, and its range."""

    position: int
    kind: type
    low: float
    high: float


_INFINITY = float("inf")
SCALARS: dict[str, tuple[type, float, float]] = {
    "double": (float, -_INFINITY, _INFINITY),
    "int": (int, -(1 << 31), (1 << 31) - 1),
    "unsigned int": (int, 0, (1 << 32) - 1),
    "index_t": (int, -(1 << 63), (1 << 63) - 1),
    "word_t": (int, 0, (1 << 64) - 1),
}
"""For each C++ type of a number, the Python type that CuPy passes to it, and its range.

CuPy passes a Python int in 8 bytes, of which a kernel reads the lower ones that its parameter has, and a Python float
as double. It would pass a number of NumPy, or a bool, in a size of its own.
"""


def _converted(name: str, scalars: tuple[Scalar, ...], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with numbers as `SCALARS` says. Raises TypeError for something else, OverflowError out of range."""
    import numpy

    converted = list(arguments)
    for i, kind, low, high in scalars:
        value = arguments[i]
        if kind is float:
            converted[i] = float(value)
            continue
        converted[i] = number = int(value) if isinstance(value, (bool, numpy.bool_)) else index(value)
        if not low <= number <= high:
            raise OverflowError(f"argument {i} of the kernel {name} is between {low} and {high}; got {number}")
    return tuple(converted)


_kernels: dict[tuple[str, str | None], tuple[Any, int, tuple[Scalar, ...]]] = {}
"""For each kernel launched so far: the kernel, its number of parameters, and those that are numbers."""


@cache
def _module(source: str, dtype: str | None) -> Any:
    import cupy

    return cupy.RawModule(code=source_text(source), options=OPTIONS, name_expressions=expressions(source, (dtype,)))


def _function(name: str, dtype: str | None) -> Any:
    """A compiled kernel. On a single GPU this is the function of its module: it need not ask for the device."""
    import cupy

    kernel = _module(_SOURCE_OF[name], dtype).get_function(expression(name, dtype))
    return kernel.kernel if cupy.cuda.runtime.getDeviceCount() == 1 else kernel


def kernel_dtype(*arrays: Array | None, types: Container[str] = REAL_TYPES) -> str | None:
    """The dtype character of the arrays; None unless it is one of `types` (default: "f" and "d") and all have it.

    The first array is not None. types: `ELEMENT_TYPES` for kernels in `WITH_HALVES`.
    """
    dtype = arrays[0].dtype  # type: ignore[union-attr]
    if dtype.char not in types:
        return None
    for x in arrays:
        if x is not None and x.dtype is not dtype and x.dtype != dtype:
            return None
    return dtype.char  # type: ignore[no-any-return]


def launch(name: str, dtype: str | None, grid: Grid, block: Grid, *arguments: Any) -> None:
    """Launch a kernel on the current device and stream, unless the grid is empty.

    dtype: the dtype character of the elements; None for a kernel that is not a template.
    arguments: arrays, None for an optional array, and numbers, which are passed as `SCALARS` says.

    Raises TypeError for a wrong number of arguments or a number of another kind, OverflowError for one out of range.
    """
    if 0 in grid:
        return
    found = _kernels.get((name, dtype))
    if found is None:
        types = parameter_types(_SOURCE_OF[name])[name]
        scalars = tuple(Scalar(i, *SCALARS[t]) for i, t in enumerate(types) if not t.endswith("*"))
        found = _kernels[name, dtype] = _function(name, dtype), len(types), scalars
    kernel, count, scalars = found
    if len(arguments) != count:
        raise TypeError(f"the kernel {name} takes {count} arguments; got {len(arguments)}")
    for i, kind, low, high in scalars:
        value = arguments[i]
        if type(value) is not kind or not low <= value <= high:  # type: ignore[operator]
            arguments = _converted(name, scalars, arguments)
            break
    kernel(grid, block, arguments)
    if launch_counters:
        launched(name)


def per_element(n: int, at_most: int = MAX_BLOCKS) -> tuple[Grid, Grid]:
    """Grid and block for an elementwise kernel of n elements."""
    return (min((n + THREADS - 1) // THREADS, at_most),), (THREADS,)


def per_pack(x: Array, at_most: int = MAX_BLOCKS) -> tuple[Grid, Grid]:
    """Grid and block for a kernel with one thread for each 16 bytes of an array: a `Pack` in common.cuh."""
    return per_element((x.nbytes + 15) // 16, at_most)


def _block_for(rows: int, columns: int) -> Grid:
    """A block that works on rows: a power of two of threads for each, and several rows if they are narrow and many."""
    threads = min(_power_of_two(columns), THREADS)
    return threads, max(min(THREADS // threads, rows // 512), 1)


def per_row(rows: int, columns: int, at_most: int = MAX_BLOCKS) -> tuple[Grid, Grid]:
    """Grid and block for a kernel in which the threads of a row work together."""
    block = _block_for(rows, columns)
    return (min((rows + block[1] - 1) // block[1], at_most),), block


def per_cell(rows: int, columns: int) -> tuple[Grid, Grid]:
    """Grid and block for a kernel with one thread per column, which loops over rows."""
    block = _block_for(rows, columns)
    across = (columns + block[0] - 1) // block[0]
    return (across, min((rows + block[1] - 1) // block[1], BLOCKS // max(across, 1) or 1)), block


def per_sum(many: int, rows: int, columns: int, itemsize: int) -> tuple[Grid, Grid, int]:
    """Grid and block for a kernel that sums the rows of `many` matrices, and the rows that each block sums.

    Threads with the same x sum a column; adjacent ones read adjacent elements, at least the 32 bytes that the GPU loads
    together. There are SUM_BLOCKS blocks, unless each thread would load fewer than AT_ONCE rows.
    """
    outputs = many * columns
    across = 32 if rows <= 256 else min(_power_of_two(columns), 32)  # short rows stay in the cache until they are read
    across = min(across, _power_of_two(outputs))
    while across * itemsize > 32 and (outputs + across - 1) // across < SUM_BLOCKS:
        across //= 2
    down = min(THREADS // across, _power_of_two((rows + AT_ONCE - 1) // AT_ONCE))
    tiles = (outputs + across - 1) // across
    chunks = min((SUM_BLOCKS + tiles - 1) // tiles, (rows + AT_ONCE * down - 1) // (AT_ONCE * down))
    chunk = (rows + chunks - 1) // chunks
    return (tiles, (rows + chunk - 1) // chunk), (across, down), chunk


def per_columns(rows: int, columns: int, itemsize: int) -> tuple[Grid, Grid]:
    """Grid and block for a kernel in which the threads with the same x share a column.

    A block has the columns of the 32 bytes that the GPU loads together, or fewer where there would be fewer blocks than
    multiprocessors: several blocks then load the same bytes, but from the cache.
    """
    across = min(32 // itemsize, _power_of_two(columns))
    while across > 1 and (columns + across - 1) // across < SUM_BLOCKS // 2:
        across //= 2
    down = min(THREADS // across, _power_of_two((rows + AT_ONCE - 1) // AT_ONCE))
    return ((columns + across - 1) // across,), (across, down)


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least n > 0."""
    return 1 << (n - 1).bit_length()
