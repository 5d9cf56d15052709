"""Matrix products by cuBLASLt, called through ctypes: with bias and activation in the product's own launch.

CuPy refuses its own products while a stream is captured, and its cuBLAS handle has a workspace that is not ours, so
this module creates one cuBLASLt handle for each device. The workspace of a product is allocated from CuPy's memory
pool, and freed as soon as the product is queued: only later work of the same stream can reuse it, and a graph keeps its
own pool. Arrays are row-major, as everywhere in gradflow. cuBLASLt reads a row-major matrix as the transpose of a
column-major one, so it is asked for out^T = b^T a^T, and nothing is copied.

What cuBLASLt needs for one kind of product is a `Plan`, which is made once and kept. `call` is the only place where
`cublasLtMatmul` is called: tests replace it to emulate, count or record products. A product of half floats adds up in
float32; that of float32 multiplies in TF32 if `gradflow.set_matmul_precision("tf32")` says so.
"""

from __future__ import annotations

import os
import threading
from ctypes import addressof, byref, c_void_p
from typing import Any

from gradflow.backend import Array, get_matmul_precision, launch_counters, launched
from gradflow_cupy.cublaslt_library import (
    CUBLAS_COMPUTE_32F,
    CUBLAS_COMPUTE_32F_FAST_TF32,
    CUBLAS_COMPUTE_64F,
    CUBLAS_STATUS_NOT_SUPPORTED,
    CUBLASLT_EPILOGUE_BIAS,
    CUBLASLT_EPILOGUE_DEFAULT,
    CUBLASLT_EPILOGUE_GELU_AUX,
    CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
    CUBLASLT_EPILOGUE_RELU,
    CUBLASLT_EPILOGUE_RELU_BIAS,
    CUBLASLT_MATMUL_DESC_BIAS_POINTER,
    CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER,
    CUDA_R_16BF,
    CUDA_R_16F,
    CUDA_R_32F,
    CUDA_R_64F,
    Algorithm,
    Kind,
    Plan,
    failure,
    find,
    load,
)
from gradflow_cupy.tuning import CANDIDATES, VARIABLE, Tuner

ALIGNMENT = 256
"""The alignment of CuPy's arrays that counts: plans for it suit all of them, and have the fastest algorithms."""
MOST_PLANS = 4096
"""The number of plans that are kept; when there are more, all are made again as they are needed."""

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
RELU = (CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_RELU_BIAS)
_UNKNOWN: Any = object()
"""The plan of a kind that was not seen yet."""


def _layout(x: Array) -> tuple[bool, int] | None:
    """Whether a matrix, or each of a stack, is stored by columns, and its leading dimension; None for neither way."""
    (rows, columns), (down, right), size = x.shape[-2:], x.strides[-2:], x.dtype.itemsize
    if x.ndim == 3 and (x.strides[0] < 0 or x.strides[0] % size):
        return None
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
    """cuBLASLt on CuPy's current device: a handle, and the plans.

    dtypes: the dtype objects of the backend, by gradflow's names.

    Raises CublasLtError if the library is not there or does not start, VariableError for a `GRADFLOW_TUNING_FILE`
    that is something else.
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
        self._keep_nan: dict[Kind, bool] = {}  # of kinds with ReLU, whatever their alignment
        self.lock = threading.Lock()
        """Held while pointers lie in a descriptor."""
        self._tuner: Tuner | None = None
        if os.environ.get(VARIABLE):
            properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
            name = properties["name"]
            name = name.decode() if isinstance(name, bytes) else name
            self._tuner = Tuner(cupy, os.environ[VARIABLE], f"{name}, cuBLASLt {self.version}")

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

        Where it returns False, nothing was written. All arrays are 2-D, except `bias`; or a, b and out are stacks of
        equally many matrices, and there is neither bias nor activation.

        a, b: of one dtype, (M, K) and (K, N), or (K, M) and (N, K) to be transposed. They may be strided; what is
            stored neither by rows nor by columns is copied.
        out: (M, N) of the same dtype, or of float32 if the dtype is a half float; stored by rows. Overlaps no operand.
        accumulate: add the product to `out` instead (without bias and activation).
        bias: (N,), contiguous, with the dtype of `out`.
        activation: None, "relu", or "gelu", the tanh form, which needs `aux`.
        aux: (M, N) like `out`, to which the input of "gelu" is written.
        """
        rows, columns = out.shape[-2:]
        inner = a.shape[-2] if transpose_a else a.shape[-1]
        kind, out_kind = self.types.get(a.dtype), self.types.get(out.dtype)
        if kind is None or out_kind is None or b.dtype != a.dtype or not inner:
            return False
        if not out.size:
            return True
        first, second, target = _layout(a), _layout(b), _layout(out)
        if target is None or target[0]:
            return False
        if first is None:
            a = self.cupy.ascontiguousarray(a)
            first = False, a.shape[-1]
        if second is None:
            b = self.cupy.ascontiguousarray(b)
            second = False, b.shape[-1]
        compute = CUBLAS_COMPUTE_64F if kind == CUDA_R_64F else CUBLAS_COMPUTE_32F
        if kind == CUDA_R_32F and get_matmul_precision() == "tf32":
            compute = CUBLAS_COMPUTE_32F_FAST_TF32
        bits = a.data.ptr | b.data.ptr | out.data.ptr | ALIGNMENT
        if bias is not None:
            bits |= bias.data.ptr
        aux_ld, stack = 0, ()
        if aux is not None:
            aux_ld, bits = aux.shape[1], bits | aux.data.ptr
        if out.ndim == 3:
            steps = [x.strides[0] for x in (b, a, out)]
            bits |= steps[0] | steps[1] | steps[2]
            stack = len(out), *(step // x.dtype.itemsize for step, x in zip(steps, (b, a, out), strict=True))
        key = (
            second[0] != transpose_b, first[0] != transpose_a, columns, rows, inner, second[1], first[1], target[1],
            kind, out_kind, compute, EPILOGUES[bias is not None, activation], aux_ld, bits & -bits, stack,
        )  # fmt: skip
        plan = self.plans.get(key, _UNKNOWN)
        if plan is _UNKNOWN:
            plan = self._make(Kind(*key), a, b, out, bias, aux)
        if plan is None:
            return False
        status = call(self, plan, a, b, out, accumulate, bias, aux, self._workspace(plan.algorithm.workspace))
        if status == CUBLAS_STATUS_NOT_SUPPORTED:  # some combinations are refused only when they are called
            self.plans[key] = None
            return False
        if status:
            raise failure(self.library, f"cublasLtMatmul of {plan.kind}", status)
        if launch_counters:
            launched("product")
        return True

    def _make(self, kind: Kind, a: Array, b: Array, out: Array, bias: Array | None, aux: Array | None) -> Plan | None:
        """Make the plan for a kind of product, for the arrays of a call: their pointers count for some algorithms."""
        plan = Plan(self.library, kind)
        with self.lock:
            _point(plan, bias, aux)
            found = plan.candidates(self.handle, 1 if self._tuner is None else CANDIDATES)
        if found:
            plan.algorithm = found[0]
        if self._tuner is not None and len(found) > 1 and not kind.stack:
            target = self.cupy.empty((kind.n, kind.ldd), dtype=out.dtype)[:, : kind.m]
            aside = None if aux is None else self.cupy.empty(aux.shape, dtype=aux.dtype)
            workspace = self._workspace(max(algorithm.workspace for algorithm in found))

            def run(algorithm: Algorithm) -> bool:
                plan.algorithm = algorithm
                return call(self, plan, a, b, target, False, bias, aside, workspace) == 0

            plan.algorithm = self._tuner.choose(kind[:-1], found, run)
        usable = bool(found)
        if usable and kind.epilogue in RELU:
            anywhere = kind._replace(alignment=0)
            if anywhere in self._keep_nan:
                usable = self._keep_nan[anywhere]
            elif self.cupy.cuda.get_current_stream().is_capturing():  # trying it would wait for the device
                usable = False
            else:
                usable = self._keep_nan[anywhere] = self._keeps_nan(plan, a, b, out, bias)
        if len(self.plans) >= MOST_PLANS:
            self.plans.clear()
        made = self.plans[kind] = plan if usable else None
        return made

    def _keeps_nan(self, plan: Plan, a: Array, b: Array, out: Array, bias: Array | None) -> bool:
        """Whether ReLU of NaN is NaN with the algorithm of a plan, as everywhere in gradflow; `out` is overwritten.

        NVIDIA does not document it. With cuBLASLt 13.1 on an H200, it depends on the algorithm: of 280 shapes, NaN
        became 0 in 114 in float16, in 38 in bfloat16, in 31 in TF32, and in none in float32 and float64.
        """
        workspace = self._workspace(plan.algorithm.workspace)
        status = call(self, plan, a, b, out, False, bias, None, workspace, plan.nan)
        bits = out.view(self.cupy.dtype(f"u{out.dtype.itemsize}"))  # 0 is 0 in every dtype
        return status == 0 and bool(self.cupy.asnumpy(self.cupy.all(bits != 0)))

    def _workspace(self, size: int) -> Array | None:
        """The memory for so many bytes of workspace, if any."""
        return self.cupy.empty((size,), dtype=self.cupy.dtype("uint8")) if size else None


def _point(plan: Plan, bias: Array | None, aux: Array | None) -> None:
    """Let the descriptor point to these arrays."""
    for attribute, array in (
        (CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias),
        (CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux),
    ):
        if array is not None and plan.pointers.get(attribute) != array.data.ptr:
            plan.pointers[attribute] = array.data.ptr
            plan.set(attribute, c_void_p(array.data.ptr))


def call(
    lt: CublasLt, plan: Plan, a: Array, b: Array, out: Array, accumulate: bool, bias: Array | None, aux: Array | None,
    workspace: Array | None, factor: Any = None,
) -> int:  # fmt: skip
    """Queue a product in the current stream; returns cuBLASLt's status. The only caller of `cublasLtMatmul`.

    The arrays are as in `CublasLt.product`, in the layouts of the plan; workspace: bytes, as many as the algorithm of
    the plan needs; factor: one of the plan's numbers, which multiplies the product (default 1). What emulates a GPU,
    or records what is queued, replaces this function in its module: `product` looks it up at each call.
    """
    beta = plan.one if accumulate else plan.zero
    target, alpha = out.data.ptr, plan.one if factor is None else factor
    address, size = (0, 0) if workspace is None else (workspace.data.ptr, workspace.nbytes)
    with lt.lock:
        _point(plan, bias, aux)
        return int(
            lt.library.cublasLtMatmul(
                lt.handle, plan.descriptor, addressof(alpha), b.data.ptr, plan.a, a.data.ptr, plan.b,
                addressof(beta), target, plan.d, target, plan.d, addressof(plan.algorithm), address, size,
                lt.cupy.cuda.get_current_stream().ptr,
            )
        )  # fmt: skip
