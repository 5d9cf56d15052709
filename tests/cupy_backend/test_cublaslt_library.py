"""What gradflow_cupy tells cuBLASLt, read back from the library: the stand-in, and NVIDIA's, which needs no driver.

NVIDIA's library and its headers come with the extra `cublas-check` (550 MB). They show that constants, sizes and
parameters are those of the library; products need a GPU.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cublaslt_stand_in import path as stand_in_path
from emulated_device import needs_compiler
from gradflow_cupy import cublaslt_library as cublaslt
from gradflow_cupy.cublaslt import EPILOGUES, _point
from gradflow_cupy.cublaslt_library import WORKSPACE, Algorithm, CublasLtError, Kind, Plan

CONSTANTS = sorted(name for name in vars(cublaslt) if name.startswith(("CUBLAS", "CUDA_R_")))
SCALE = {cublaslt.CUBLAS_COMPUTE_64F: cublaslt.CUDA_R_64F}


@cache
def installed() -> tuple[str, str]:
    """The path of NVIDIA's library, and why there is none."""
    try:
        return cublaslt.find(), ""
    except CublasLtError as error:
        return "", f"no cuBLASLt (the extra cublas-check has it): {error}"


@pytest.fixture(params=[pytest.param("stand-in", marks=needs_compiler), "NVIDIA"])
def library(request: pytest.FixtureRequest) -> Any:
    if request.param == "stand-in":
        return cublaslt.load(stand_in_path())
    path, reason = installed()
    if not path:
        pytest.skip(reason)
    return cublaslt.load(path)


def reader(function: Any, of: c_void_p) -> Callable[[int, int], int]:
    """A function that reads the attribute of a descriptor, layout or preference, an integer of so many bytes."""

    def read(attribute: int, size: int) -> int:
        value, written = c_uint64(0), c_size_t(0)
        assert function(of, c_int(attribute), byref(value), c_size_t(size), byref(written)) == 0
        assert written.value in (0, size), f"attribute {attribute} has {written.value} bytes"
        return value.value

    return read


def kinds() -> list[Kind]:
    """Every type with every epilogue that it has, transposed or not, with leading dimensions of views."""
    found = []
    F32, F64, F16, BF16 = cublaslt.CUDA_R_32F, cublaslt.CUDA_R_64F, cublaslt.CUDA_R_16F, cublaslt.CUDA_R_16BF
    single, tf32 = cublaslt.CUBLAS_COMPUTE_32F, cublaslt.CUBLAS_COMPUTE_32F_FAST_TF32
    for type_, out_type, compute in (
        (F32, F32, single), (F32, F32, tf32), (F16, F16, single), (BF16, BF16, single), (F16, F32, single),
        (BF16, F32, single), (F64, F64, cublaslt.CUBLAS_COMPUTE_64F),
    ):  # fmt: skip
        for epilogue in EPILOGUES.values() if type_ != F64 else [cublaslt.CUBLASLT_EPILOGUE_DEFAULT]:
            aux_ld = 512 if epilogue & 128 else 0
            for ta, tb, stack in ((True, False, ()), (False, False, ()), (False, True, (7, 2**35, 0, 2000))):
                shape = 500, 3, 2**33  # a length that does not fit in 32 bits
                found.append(
                    Kind(ta, tb, *shape, 2**34, 2**34 + 1, 600, type_, out_type, compute, epilogue, aux_ld, 16, stack)
                )
    return found


def test_a_plan_is_what_was_asked_for(library: Any) -> None:
    """All attributes of the descriptor and the layouts, read back with their documented sizes."""
    for kind in kinds():
        plan = Plan(library, kind)
        _point(plan, pointing(0x7F0000001230), pointing(0x7F0000004560))
        descriptor = reader(library.cublasLtMatmulDescGetAttribute, plan.descriptor)
        scale = SCALE.get(kind.compute, cublaslt.CUDA_R_32F)
        assert (descriptor(0, 4), descriptor(1, 4), descriptor(2, 4)) == (kind.compute, scale, 0), (
            "pointers to the host"
        )
        transposes = cublaslt.CUBLASLT_MATMUL_DESC_TRANSA, cublaslt.CUBLASLT_MATMUL_DESC_TRANSB
        assert tuple(descriptor(each, 4) for each in transposes) == (kind.transpose_a, kind.transpose_b)
        assert descriptor(cublaslt.CUBLASLT_MATMUL_DESC_EPILOGUE, 4) == kind.epilogue
        assert descriptor(cublaslt.CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, 8) == kind.aux_ld
        assert descriptor(cublaslt.CUBLASLT_MATMUL_DESC_BIAS_POINTER, 8) == 0x7F0000001230
        assert descriptor(cublaslt.CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, 8) == 0x7F0000004560
        m, n, k = kind.m, kind.n, kind.k
        count, *offsets = kind.stack or (1, 0, 0, 0)
        for layout, shape, offset in (
            (plan.a, (kind.type, *((k, m) if kind.transpose_a else (m, k)), kind.lda), offsets[0]),
            (plan.b, (kind.type, *((n, k) if kind.transpose_b else (k, n)), kind.ldb), offsets[1]),
            (plan.d, (kind.out_type, m, n, kind.ldd), offsets[2]),
        ):
            read = reader(library.cublasLtMatrixLayoutGetAttribute, layout)
            assert (read(0, 4), read(2, 8), read(3, 8), read(4, 8)) == shape
            assert read(1, 4) == 0, "stored by columns"
            assert (read(5, 4), read(6, 8)) == (count, offset)


def pointing(address: int) -> Any:
    return type("Array", (), {"data": type("Memory", (), {"ptr": address})})


def test_a_preference_is_what_was_asked_for(library: Any) -> None:
    for kind in kinds():
        preference = Plan(library, kind).preference()
        read = reader(library.cublasLtMatmulPreferenceGetAttribute, preference)
        assert read(cublaslt.CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, 8) == WORKSPACE
        assert [read(each, 4) for each in cublaslt._ALIGNMENTS] == [kind.alignment] * 4
        if kind.out_type in (cublaslt.CUDA_R_16F, cublaslt.CUDA_R_16BF):
            mask = cublaslt.CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
            assert read(cublaslt.CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, 4) == mask
        library.cublasLtMatmulPreferenceDestroy(preference)


def test_a_status_is_an_error(library: Any) -> None:
    """An attribute of the wrong size, which both libraries refuse."""
    plan = Plan(library, kinds()[0])
    with pytest.raises(
        CublasLtError, match=r"^cublasLtMatmulDescSetAttribute failed: an unsupported value .* \(status 7\)$"
    ):
        plan.set(cublaslt.CUBLASLT_MATMUL_DESC_EPILOGUE, ctypes.c_uint8(1))


def test_the_version(library: Any) -> None:
    assert 110_000 <= library.cublasLtGetVersion() < 1_000_000


# ------------------------------------------------------------------ the headers


@cache
def headers() -> tuple[dict[str, str], str]:
    """The text of each enumerator in NVIDIA's headers beside the library, and all text."""
    path, reason = installed()
    folder = Path(path).parent.parent / "include"
    if not path:
        pytest.skip(reason)
    if not (folder / "cublasLt.h").exists():
        pytest.skip(f"the library {path} has no header cublasLt.h beside it")
    names = ("cublasLt.h", "cublas_api.h", "library_types.h")
    text = "\n".join((folder / name).read_text("utf-8") for name in names if (folder / name).exists())
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    return dict(re.findall(r"\b((?:CUBLAS|CUDA_R_)\w+)\s*=\s*([^,}]+)", text)), text


def number(expression: str, known: dict[str, str]) -> int:
    """The value of an enumerator: integers and names, joined by |."""
    parts = [part.strip(" ()\n") for part in expression.split("|")]
    values = [number(known[part], known) if part in known else int(part, 0) for part in parts]
    return sum(values) if len(set(values)) == len(values) else max(values)


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_is_that_of_the_headers(name: str) -> None:
    known, _ = headers()
    if name.startswith("CUDA_R_") and name not in known:
        pytest.skip("the header library_types.h is not there (it comes with CUDA's runtime)")
    assert number(known[name], known) == getattr(cublaslt, name)


def test_a_result_of_the_heuristic_is_that_of_the_headers() -> None:
    """The fields, and their sizes; the algorithm is 8 numbers of 8 bytes."""
    _, text = headers()
    fields = re.search(r"typedef struct \{([^}]*)\} cublasLtMatmulHeuristicResult_t;", text)
    assert fields is not None
    assert [" ".join(line.split()) for line in fields[1].split(";") if line.strip()] == [
        "cublasLtMatmulAlgo_t algo", "size_t workspaceSize", "cublasStatus_t state", "float wavesCount",
        "int reserved[4]",
    ]  # fmt: skip
    assert re.search(r"typedef struct \{\s*uint64_t data\[8\];\s*\} cublasLtMatmulAlgo_t;", text)
    assert ctypes.sizeof(Algorithm) == 96


@pytest.mark.parametrize("name", [*cublaslt._SIGNATURES, "cublasLtMatmul"])
def test_a_function_has_the_parameters_of_the_headers(name: str) -> None:
    """As many, each a pointer or a number of its size."""
    _, text = headers()
    declared = re.search(rf"\b{name}\s*\(([^)]*)\);", text)
    assert declared is not None
    sizes = {"cublasComputeType_t": 4, "cudaDataType": 4, "cudaDataType_t": 4, "int": 4, "uint64_t": 8, "int64_t": 8,
             "size_t": 8}  # fmt: skip
    expected = []
    for parameter in declared[1].split(","):
        kind = re.sub(r"\bconst\b|\w+(\[\])?\s*$", "", parameter.strip()).strip()
        expected.append(8 if "*" in parameter or "[]" in parameter else sizes.get(kind.split()[0], 4))
    handles = ("cublasLtHandle_t", "cublasLtMatmulDesc_t", "cublasLtMatrixLayout_t", "cublasLtMatmulPreference_t",
               "cudaStream_t")  # fmt: skip
    expected = [8 if any(h in p for h in handles) else n for p, n in zip(declared[1].split(","), expected, strict=True)]
    own = cublaslt._SIGNATURES.get(name) or [*(c_void_p,) * 14, c_size_t, c_void_p]
    assert [ctypes.sizeof(each) for each in own] == expected
