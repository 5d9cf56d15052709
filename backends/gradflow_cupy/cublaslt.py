"""Matrix products by cuBLASLt, called through ctypes: with bias and activation in the product's own launch.

CuPy refuses its own products while a stream is captured, and its handle has a workspace that is not ours, so a device
has a handle here, and each of its streams a workspace. Arrays are row-major, as everywhere in gradflow. cuBLASLt reads
a row-major matrix as the transpose of a column-major one, so it is asked for out^T = b^T a^T, and nothing is copied.

What cuBLASLt needs for one kind of product is a `Plan`, which is made once and kept. `call` is the only place where
`cublasLtMatmul` is called: tests replace it to emulate, count or record products. The constants have their names in
cuBLASLt's headers. A product of half floats adds up in float32; that of float32 multiplies in TF32 if
`gradflow.set_matmul_precision("tf32")` says so.
"""

from __future__ import annotations

import ctypes
import threading
from ctypes import POINTER, addressof, byref, c_char_p, c_double, c_float, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any, NamedTuple

from gradflow.backend import Array, get_matmul_precision, launch_counters, launched

WORKSPACE = 32 * 2**20 + 16
"""The bytes of a stream's workspace: NVIDIA recommends 32 MiB for Hopper; some epilogues need 16 bytes more."""
MOST_PLANS = 4096
"""The number of plans that are kept; when there are more, all are made again as they are needed."""

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

TYPES = {"float32": CUDA_R_32F, "float64": CUDA_R_64F, "float16": CUDA_R_16F, "bfloat16": CUDA_R_16BF}
EPILOGUES = {
    (False, None): CUBLASLT_EPILOGUE_DEFAULT,
    (True, None): CUBLASLT_EPILOGUE_BIAS,
    (False, "relu"): CUBLASLT_EPILOGUE_RELU,
    (True, "relu"): CUBLASLT_EPILOGUE_RELU_BIAS,
    (False, "gelu"): CUBLASLT_EPILOGUE_GELU_AUX,
    (True, "gelu"): CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
}
"""The epilogue for whether there is a bias, and the activation."""
_UNKNOWN: Any = object()
"""The plan of a kind that was not seen yet."""
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


_OBJECT, _NEW = c_void_p, POINTER(c_void_p)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (_NEW,),
    "cublasLtMatmulDescCreate": (_NEW, c_int, c_int),
    "cublasLtMatmulDescSetAttribute": (_OBJECT, c_int, c_void_p, c_size_t),
    "cublasLtMatmulDescDestroy": (_OBJECT,),
    "cublasLtMatrixLayoutCreate": (_NEW, c_int, c_uint64, c_uint64, ctypes.c_int64),
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

        return str(load_nvidia_dynamic_lib("cublasLt").abs_path)
    except (ImportError, RuntimeError) as error:
        raise CublasLtError(f"cuBLASLt was not found: {' '.join(str(error).split())}") from error


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
    """The descriptor and the layouts for one kind of product, the algorithm, and the factors 1 and 0."""

    def __init__(self, library: Any, kind: Kind) -> None:
        self.library, self.kind = library, kind
        self.a, self.b, self.d, self.descriptor = (c_void_p() for _ in range(4))
        self.algorithm = Algorithm()
        double = kind.type == CUDA_R_64F
        scale = CUDA_R_64F if double else CUDA_R_32F
        self.one, self.zero = _SCALES[scale](1), _SCALES[scale](0)
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


def _layout(x: Array) -> tuple[bool, int] | None:
    """Whether the 2-D array x is stored by columns, and its leading dimension; None if it is stored in neither way."""
    (rows, columns), (down, right), size = x.shape, x.strides, x.dtype.itemsize
    if right == size or columns == 1:
        leading = columns if rows == 1 else down // size
        if leading >= columns and (rows == 1 or not down % size):
            return False, leading
    if down == size or rows == 1:
        leading = rows if columns == 1 else right // size
        if leading >= rows and (columns == 1 or not right % size):
            return True, leading
    return None


class CublasLt:
    """cuBLASLt on CuPy's current device: a handle, the plans, and a workspace for each stream.

    dtypes: the dtype objects of the backend, by gradflow's names.

    Raises CublasLtError if the library is not there or does not start.
    """

    def __init__(self, cupy: Any, dtypes: dict[str, Any]) -> None:
        self.cupy = cupy
        self.library = load(find())
        self.handle = c_void_p()
        self.library.cublasLtCreate(byref(self.handle))
        version = int(self.library.cublasLtGetVersion())
        self.version = f"{version // 10000}.{version // 100 % 100}.{version % 100}"
        self.types = {dtypes[name]: number for name, number in TYPES.items() if name in dtypes}
        self.plans: dict[tuple[Any, ...], Plan | None] = {}
        self.workspaces: dict[int, Array] = {}
        """By the address of the stream. A graph keeps that of its stream."""
        self.lock = threading.Lock()
        """Held while a plan is made, and while pointers lie in a descriptor."""

    def product(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        accumulate: bool = False,
        bias: Array | None = None,
        activation: str | None = None,
        aux: Array | None = None,
    ) -> bool:
        """Write activation(a @ b + bias) to `out`, in the current stream; False if cuBLASLt has no algorithm for it.

        Where it returns False, nothing was written. All arrays are 2-D, except `bias`.

        a, b: of one dtype, (M, K) and (K, N), or (K, M) and (N, K) to be transposed. They may be strided; what is
            stored neither by rows nor by columns is copied.
        out: (M, N) of the same dtype, or of float32 if the dtype is a half float; stored by rows. Overlaps no operand.
        accumulate: add the product to `out` instead (without bias and activation).
        bias: (N,), contiguous, with the dtype of `out`.
        activation: None, "relu", or "gelu", the tanh form, which needs `aux`.
        aux: (M, N) like `out`, to which the input of "gelu" is written.
        """
        rows, columns = out.shape
        inner = a.shape[0] if transpose_a else a.shape[1]
        kind, out_kind = self.types.get(a.dtype), self.types.get(out.dtype)
        if kind is None or out_kind is None or b.dtype != a.dtype or not inner:
            return False
        if not (rows and columns):
            return True
        first, second, target = _layout(a), _layout(b), _layout(out)
        if first is None:
            a = self.cupy.ascontiguousarray(a)
            first = False, a.shape[1]
        if second is None:
            b = self.cupy.ascontiguousarray(b)
            second = False, b.shape[1]
        if target is None or target[0]:
            return False
        compute = CUBLAS_COMPUTE_64F if kind == CUDA_R_64F else CUBLAS_COMPUTE_32F
        if kind == CUDA_R_32F and get_matmul_precision() == "tf32":
            compute = CUBLAS_COMPUTE_32F_FAST_TF32
        bits = a.data.ptr | b.data.ptr | out.data.ptr | 256
        if bias is not None:
            bits |= bias.data.ptr
        aux_ld = 0
        if aux is not None:
            aux_ld, bits = aux.shape[1], bits | aux.data.ptr
        key = (
            second[0] != transpose_b, first[0] != transpose_a, columns, rows, inner, second[1], first[1], target[1],
            kind, out_kind, compute, EPILOGUES[bias is not None, activation], aux_ld, bits & -bits,
        )  # fmt: skip
        plan = self.plans.get(key, _UNKNOWN)
        if plan is _UNKNOWN:
            plan = self._make(Kind(*key), bias, aux)
        if plan is None:
            return False
        status = call(self, plan, a, b, out, accumulate, bias, aux)
        if status == CUBLAS_STATUS_NOT_SUPPORTED:  # some combinations are refused only when they are called
            self.plans[key] = None
            return False
        if status:
            raise failure(self.library, f"cublasLtMatmul of {plan.kind}", status)
        if launch_counters:
            launched("product")
        return True

    def _make(self, kind: Kind, bias: Array | None, aux: Array | None) -> Plan | None:
        """Make the plan for a kind of product, with the pointers of a call, which some algorithms are chosen by."""
        with self.lock:
            if len(self.plans) >= MOST_PLANS:
                self.plans.clear()
            plan = Plan(self.library, kind)
            _point(plan, bias, aux)
            found = plan.candidates(self.handle, 1)
            if found:
                plan.algorithm = found[0]
            made = self.plans[kind] = plan if found else None
            return made

    def workspace(self, stream: Any) -> Array:
        """The workspace of a stream, made when it is first needed."""
        found = self.workspaces.get(stream.ptr)
        if found is None:
            found = self.workspaces[stream.ptr] = self.cupy.empty((WORKSPACE,), dtype=self.cupy.dtype("uint8"))
        return found


def _point(plan: Plan, bias: Array | None, aux: Array | None) -> None:
    if bias is not None:
        plan.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, c_void_p(bias.data.ptr))
    if aux is not None:
        plan.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, c_void_p(aux.data.ptr))


def call(
    lt: CublasLt, plan: Plan, a: Array, b: Array, out: Array, accumulate: bool, bias: Array | None, aux: Array | None
) -> int:
    """Queue a product in the current stream; returns cuBLASLt's status. The only caller of `cublasLtMatmul`.

    The arrays are as in `CublasLt.product`, in the layouts of the plan. What emulates a GPU, or records what is queued,
    replaces this function in its module: `product` looks it up at each call.
    """
    stream = lt.cupy.cuda.get_current_stream()
    needed = plan.algorithm.workspace
    workspace = lt.workspace(stream).data.ptr if needed else 0
    beta = plan.one if accumulate else plan.zero
    target = out.data.ptr
    with lt.lock:
        _point(plan, bias, aux)
        return int(
            lt.library.cublasLtMatmul(
                lt.handle, plan.descriptor, addressof(plan.one), b.data.ptr, plan.a, a.data.ptr, plan.b,
                addressof(beta), target, plan.d, target, plan.d, addressof(plan.algorithm), workspace,
                WORKSPACE if needed else 0, stream.ptr,
            )
        )  # fmt: skip
