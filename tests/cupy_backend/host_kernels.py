"""Compiles the CUDA sources with g++ and `cuda_on_host.h`, and calls the kernels through ctypes: CUDA on the CPU."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import math
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gradflow_cupy.kernels import SOURCES, expressions, parameter_types, source_text

HERE = Path(__file__).resolve().parent
KEPT = HERE / "__pycache__"
COMPILER = shutil.which("g++")
NO_COMPILER = "there is no g++ to compile the CUDA sources for the CPU with"

_NOT_OF_C = ("-Wno-unused-variable", "-Wno-unknown-pragmas")
# no contraction of a * b + c, so that a result that is exact by its formula is exact here
_OPTIONS = ("-O2", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Werror", *_NOT_OF_C)


def _symbol(expression: str) -> str:
    return "host_" + re.sub(r"\W+", "_", expression).strip("_")


def _wrappers(source: str) -> str:
    """A C function for each kernel that takes its arguments as cuLaunchKernel does, by their addresses.

    Kernels that compute in float flush subnormals, as CuPy has them compiled.
    """
    lines = []
    for expression in expressions(source):
        name, _, real = expression.rstrip(">").partition("<")
        types = [re.sub(r"\bT\b", real, t) for t in parameter_types(source)[name]]
        flush = str(real != "double").lower()
        values = ", ".join(f"*({t}*)a[{i}]" for i, t in enumerate(types))
        lines.append(
            f'extern "C" int {_symbol(expression)}(const unsigned int* grid, const unsigned int* block, void** a) '
            f"{{ return host::launch(grid, block, {flush}, [&] {{ {expression}({values}); }}); }}\n"
            f'extern "C" int {_symbol(expression)}_arity() {{ return {len(types)}; }}'
        )
    return "\n".join(lines)


def _poisoned(text: str) -> str:
    """The text of a source, with the shared memory of each block filled with NaN."""

    def poison(declaration: re.Match[str]) -> str:
        names = re.findall(r"(\w+)\[", declaration[1])
        return declaration[0] + "".join(
            f" static size_t {n}_of; host::poison({n}, sizeof({n}), {n}_of);" for n in names
        )

    return re.sub(r"__shared__ ([^;]+);", poison, text)


@cache
def compiled(text: str, *options: str) -> Path:
    """The library of a C++ text. It is kept beside the tests, for the other processes and the next runs.

    The first process that needs it compiles it, while the others wait.
    """
    assert COMPILER is not None
    header, version = (HERE / "cuda_on_host.h").read_text("utf-8"), subprocess.check_output([COMPILER, "--version"])
    key = hashlib.sha256(repr((text, options, header, version)).encode()).hexdigest()[:16]
    KEPT.mkdir(exist_ok=True)
    library = KEPT / f"{key}.so"
    with (KEPT / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            part = KEPT / f"{key}.part"
            command = [COMPILER, *options, f"-I{HERE}", "-x", "c++", "-", "-o", str(part)]
            result = subprocess.run(command, input=text, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            part.replace(library)
    return library


@cache
def _library(source: str) -> ctypes.CDLL:
    cuda = re.sub("#include <cuda_.*>", "", _poisoned(source_text(source)))
    return ctypes.CDLL(str(compiled(f'#include "cuda_on_host.h"\n{cuda}\n{_wrappers(source)}\n', *_OPTIONS)))


def _slot(value: Any) -> Any:
    """The memory that CuPy passes for a value: the bytes of its own type, followed by unrelated bytes."""
    if value is None:
        held = np.uint64(0)
    elif isinstance(value, bool):
        held = np.bool_(value)
    elif isinstance(value, int):
        held = np.uint64(value) if value >= 2**63 else np.int64(value)
    elif isinstance(value, float):
        held = np.float64(value)
    elif isinstance(value, np.generic):
        held = value
    else:
        raise TypeError(f"Unsupported type {type(value)}")
    return ctypes.create_string_buffer(held.tobytes() + b"\xcd" * 16)


def host_kernel(expression: str) -> Any:
    """The kernel of a C++ name, as `kernel(grid, block, arguments)`; an array argument is its address."""
    name = expression.partition("<")[0]
    library = _library(next(source for source, names in SOURCES.items() if name in names))
    function = getattr(library, _symbol(expression))
    arity = getattr(library, _symbol(expression) + "_arity")()

    def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        if len(arguments) != arity:
            raise TypeError(f"{expression} takes {arity} arguments; got {len(arguments)}")
        assert block[0] in [2**i for i in range(9)], "what common.cuh asks for"
        assert 0 < math.prod(block) <= 256
        assert 0 < grid[0] < 2**31
        assert all(0 < n < 2**16 for n in grid[1:]), "CUDA's limit for the second dimension of a grid"
        slots = [_slot(a) for a in arguments]
        addresses = (ctypes.c_void_p * arity)(*(ctypes.addressof(s) for s in slots))
        sizes = ctypes.c_uint * 3
        diverged = function(sizes(*(*grid, 1, 1)[:3]), sizes(*(*block, 1, 1)[:3]), addresses)
        assert not diverged, f"the threads of a block of {expression} do not meet at the same barriers"

    return launch
