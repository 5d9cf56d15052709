"""The lower bound for all rows: the matrix products of a training step and nothing else."""

from __future__ import annotations

import ctypes
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.peer import Peer, UnavailableError
from benchmarks.workloads import Workload


def products(workload: Workload) -> list[list[tuple[Any, Any, Any]]]:
    """Return, for each batch, the products of a step as (left, right, array for the result)."""
    weights = workload.weights()[::2]
    rng = np.random.default_rng(0)

    def buffer(width: int) -> Any:
        return rng.standard_normal((workload.batch, width), dtype=np.float32)

    outputs, differences = ([buffer(len(w)) for w in weights] for _ in range(2))
    gradients = [np.empty_like(w) for w in weights]
    found = []
    for x, _ in workload.slices():
        inputs = [x, *outputs]
        forward = [(h, w.T, out) for h, w, out in zip(inputs, weights, outputs, strict=False)]
        backward = []
        for i in reversed(range(len(weights))):
            backward.append((differences[i].T, inputs[i], gradients[i]))
            if i:
                backward.append((differences[i], weights[i], differences[i - 1]))
        found.append(forward + backward)
    return found


class NumpyGemms(Peer):
    """The products, computed by NumPy's BLAS."""

    trains = False

    def __init__(self, workload: Workload) -> None:
        self.batches = [(each,) for each in products(workload)]

    def step(self, calls: list[tuple[Any, Any, Any]]) -> None:
        for left, right, out in calls:
            np.matmul(left, right, out=out)

    def restore(self) -> None:
        """Nothing to restore: steps change only values, which do not affect the time."""


def load_mkl() -> Any:
    """Return MKL's single dynamic library, from the package or from a conda environment."""
    try:
        paths = [Path(str(file.locate())) for file in files("mkl") or []]
    except PackageNotFoundError:
        paths = [path for folder in ("lib", "Library/bin") for path in Path(sys.prefix, folder).glob("*mkl_rt*")]
    found = [path for path in paths if "mkl_rt" in path.name and path.suffix != ".lib"]
    if not found:
        raise UnavailableError("MKL is not installed: pip install mkl")
    return ctypes.CDLL(str(found[0]))


def sgemm_arguments(left: Any, right: Any, out: Any) -> tuple[Any, ...]:
    """Return the arguments of cblas_sgemm for `left @ right`, both with contiguous rows or contiguous columns."""
    row_major, as_is, transposed = 101, 111, 112

    def operand(a: Any) -> tuple[int, ctypes.c_void_p, int]:
        if a.flags.c_contiguous:
            return as_is, ctypes.c_void_p(a.ctypes.data), a.shape[1]
        return transposed, ctypes.c_void_p(a.ctypes.data), a.shape[0]

    (form_a, a, lda), (form_b, b, ldb), (_, c, ldc) = operand(left), operand(right), operand(out)
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    return row_major, form_a, form_b, *out.shape, left.shape[1], one, a, lda, b, ldb, zero, c, ldc


class MklGemms(NumpyGemms):
    """The products, computed by MKL's cblas_sgemm."""

    def __init__(self, workload: Workload) -> None:
        self._sgemm = load_mkl().cblas_sgemm
        self._arrays = products(workload)
        self.batches = [([sgemm_arguments(*arrays) for arrays in each],) for each in self._arrays]
        for arrays, arguments in zip(self._arrays[0], *self.batches[0], strict=True):
            expected = arrays[0] @ arrays[1]
            self._sgemm(*arguments)
            assert np.allclose(arrays[2], expected, rtol=1e-3, atol=1e-3), "MKL's product differs from NumPy's"

    def step(self, calls: list[tuple[Any, ...]]) -> None:
        for arguments in calls:
            self._sgemm(*arguments)
