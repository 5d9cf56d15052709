"""NVIDIA's library cuBLASLt through ctypes: its constants and functions, and plans for one kind of product each.

The constants have their names in NVIDIA's headers (`tests/cupy_backend/test_cublaslt_library.py` compares them).
"""

from __future__ import annotations

import ctypes
import math
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any, NamedTuple

WORKSPACE = 32 * 2**20 + 16
"""The bytes of the largest workspace: NVIDIA recommends 32 MiB for Hopper; some epilogues need 16 bytes more."""

CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_16BF = 0, 1, 2, 14
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_COMPUTE_64F = 68, 77, 70
CUBLAS_STATUS_NOT_SUPPORTED = 15
CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB = 3, 4
CUBLASLT_MATMUL_DESC_EPILOGUE = 7
CUBLASLT_MATMUL_DESC_BIAS_POINTER = 8
CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD = 11, 12
CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS = 1, 4
CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_RELU_BIAS = 2, 6
CUBLASLT_EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX_BIAS = 160, 164
CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 5, 6
CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1
CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3
CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES = 5, 6
CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES = 7, 8
CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2
_ALIGNMENTS = (
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
)

_SCALES: dict[int, Any] = {CUDA_R_32F: c_float, CUDA_R_64F: c_double}
"""The types of the factors of a product."""


class CublasLtError(RuntimeError):
    """cuBLASLt is not there, or a call of it failed; the message says which, with the status in words.

    status: what the call returned; 0 if there was none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Algorithm(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t: an algorithm, and the bytes of workspace that it needs."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


class Kind(NamedTuple):
    """What a plan is made for, in cuBLASLt's column-major terms: D (m, n) = op(A) (m, k) op(B) (k, n).

    alignment: a power of two, at most 256, that all pointers are multiples of. aux_ld: 0 without auxiliary output.
    stack: for stacks of matrices, how many there are, and the elements from one to the next in A, B and D; else ().
    """

    transpose_a: bool
    transpose_b: bool
    m: int
    n: int
    k: int
    lda: int
    ldb: int
    ldd: int
    type: int
    out_type: int
    compute: int
    epilogue: int
    aux_ld: int
    alignment: int
    stack: tuple[int, ...] = ()


_OBJECT, _NEW = c_void_p, POINTER(c_void_p)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (_NEW,),
    "cublasLtMatmulDescCreate": (_NEW, c_int, c_int),
    "cublasLtMatmulDescSetAttribute": (_OBJECT, c_int, c_void_p, c_size_t),
    "cublasLtMatmulDescDestroy": (_OBJECT,),
    "cublasLtMatrixLayoutCreate": (_NEW, c_int, c_uint64, c_uint64, ctypes.c_int64),
    "cublasLtMatrixLayoutSetAttribute": (_OBJECT, c_int, c_void_p, c_size_t),
    "cublasLtMatrixLayoutDestroy": (_OBJECT,),
    "cublasLtMatmulPreferenceCreate": (_NEW,),
    "cublasLtMatmulPreferenceSetAttribute": (_OBJECT, c_int, c_void_p, c_size_t),
    "cublasLtMatmulPreferenceDestroy": (_OBJECT,),
    "cublasLtMatmulAlgoGetHeuristic": (*(_OBJECT,) * 7, c_int, POINTER(Algorithm), POINTER(c_int)),
}
"""The functions that return a status, which is an error unless it is 0, and their parameters."""


def find() -> str:
    """The path of the library that CuPy uses. Raises CublasLtError if there is none."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        path = load_nvidia_dynamic_lib("cublasLt").abs_path
    except (ImportError, RuntimeError) as error:
        raise CublasLtError(f"cuBLASLt was not found: {' '.join(str(error).split())}") from error
    if path is None:
        raise CublasLtError("cuBLASLt was loaded from a place that is not known")
    return str(path)


@cache
def load(path: str) -> Any:
    """The library at a path, whose functions raise CublasLtError."""
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise CublasLtError(f"cuBLASLt cannot be loaded: {error}") from error

    def check(status: int, function: Any, arguments: tuple[Any, ...]) -> None:
        if status:
            raise failure(library, function.__name__, status)

    for name, parameters in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.errcheck = parameters, check
    library.cublasLtGetVersion.restype = c_size_t
    library.cublasLtGetStatusString.restype = c_char_p
    library.cublasLtMatmul.argtypes = [*(c_void_p,) * 14, c_size_t, c_void_p]
    return library


def failure(library: Any, function: str, status: int) -> CublasLtError:
    """The error for a status, as in "cublasLtMatmul failed: the resource allocation failed (status 3)"."""
    meaning = library.cublasLtGetStatusString(status).decode()
    return CublasLtError(f"{function} failed: {meaning} (status {status})", status)


class Plan:
    """The descriptor and the layouts for one kind of product, the algorithm, and the factors 1, 0 and NaN."""

    def __init__(self, library: Any, kind: Kind) -> None:
        self.library, self.kind = library, kind
        self.a, self.b, self.d, self.descriptor = (c_void_p() for _ in range(4))
        self.algorithm = Algorithm()
        self.pointers: dict[int, int] = {}  # those in the descriptor
        double = kind.type == CUDA_R_64F
        scale = CUDA_R_64F if double else CUDA_R_32F
        self.one, self.zero, self.nan = map(_SCALES[scale], (1, 0, math.nan))
        library.cublasLtMatmulDescCreate(byref(self.descriptor), kind.compute, scale)
        self.set(CUBLASLT_MATMUL_DESC_TRANSA, c_int(kind.transpose_a))
        self.set(CUBLASLT_MATMUL_DESC_TRANSB, c_int(kind.transpose_b))
        self.set(CUBLASLT_MATMUL_DESC_EPILOGUE, c_uint32(kind.epilogue))
        if kind.aux_ld:
            self.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, ctypes.c_int64(kind.aux_ld))
        m, n, k = kind.m, kind.n, kind.k
        layout = library.cublasLtMatrixLayoutCreate
        layout(byref(self.a), kind.type, *((k, m) if kind.transpose_a else (m, k)), kind.lda)
        layout(byref(self.b), kind.type, *((n, k) if kind.transpose_b else (k, n)), kind.ldb)
        layout(byref(self.d), kind.out_type, m, n, kind.ldd)
        for made, offset in zip((self.a, self.b, self.d), kind.stack[1:], strict=False):
            for attribute, value in (
                (CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, c_int(kind.stack[0])),
                (CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, ctypes.c_int64(offset)),
            ):
                library.cublasLtMatrixLayoutSetAttribute(made, attribute, byref(value), ctypes.sizeof(value))

    def set(self, attribute: int, value: Any) -> None:
        """Set an attribute of the descriptor to a number of ctypes."""
        self.library.cublasLtMatmulDescSetAttribute(self.descriptor, attribute, byref(value), ctypes.sizeof(value))

    def preference(self) -> c_void_p:
        """A new preference: the workspace, the alignment, and that half floats are never added up in half."""
        library, kind, made = self.library, self.kind, c_void_p()
        library.cublasLtMatmulPreferenceCreate(byref(made))
        wanted: dict[int, Any] = {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: c_uint64(WORKSPACE)}
        if kind.out_type in (CUDA_R_16F, CUDA_R_16BF):
            mask = c_uint32(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)
            wanted[CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK] = mask
        for attribute in range(
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES + 1
        ):
            wanted[attribute] = c_uint32(kind.alignment)
        for attribute, value in wanted.items():
            library.cublasLtMatmulPreferenceSetAttribute(made, attribute, byref(value), ctypes.sizeof(value))
        return made

    def candidates(self, handle: c_void_p, most: int) -> list[Algorithm]:
        """The algorithms that cuBLASLt suggests, the one that it expects to be fastest first; none if it has none."""
        library, results, found = self.library, (Algorithm * most)(), c_int()
        preference = self.preference()
        try:
            library.cublasLtMatmulAlgoGetHeuristic(
                handle, self.descriptor, self.a, self.b, self.d, self.d, preference, most, results, byref(found)
            )
        except CublasLtError as error:
            if error.status != CUBLAS_STATUS_NOT_SUPPORTED:
                raise
        finally:
            library.cublasLtMatmulPreferenceDestroy(preference)
        return [result for result in results[: found.value] if not result.state]

    def __del__(self) -> None:
        if self.descriptor:
            self.library.cublasLtMatmulDescDestroy(self.descriptor)
        for layout in (self.a, self.b, self.d):
            if layout:
                self.library.cublasLtMatrixLayoutDestroy(layout)
