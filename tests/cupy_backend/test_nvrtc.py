"""The CUDA sources compile with NVRTC for the architectures in use, and contain each kernel that Python launches.

This needs no driver and no GPU. It proves that the sources are valid CUDA; what they compute is tested on the host by
`test_host_kernels.py`, and on a GPU by the tests marked `gpu`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple

import pytest
from gradflow_cupy.kernels import OPTIONS, SOURCES, UNTYPED, expressions, source_text

pytestmark = pytest.mark.slow

ARCHITECTURES = (70, 75, 80, 89, 90, 100, 120)
"""Volta, Turing, Ampere, Ada, Hopper, Blackwell for servers and for others. CUDA 13 has dropped the first."""


OF_CUPY = ("-ftz=true", "--device-as-default-execution-space")
"""The options that CuPy adds to those of a RawModule, besides include folders."""


VERBOSE = ("--ptxas-options=-v",)
"""So that the assembler reports what each kernel uses."""


class Usage(NamedTuple):
    """What a kernel uses: registers of a thread, bytes of shared memory of a block, and bytes of registers spilled."""

    registers: int
    shared: int
    spilled: int


def usages(log: str) -> dict[str, Usage]:
    """What each kernel uses, by its name in the binary."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", part)
        registers, shared = re.search(r"Used (\d+) registers", part), re.search(r"(\d+) bytes smem", part)
        assert registers is not None, part
        assert len(spills) == 2, part
        found[part.partition("'")[0]] = Usage(int(registers[1]), int(shared[1]) if shared else 0, sum(map(int, spills)))
    return found


def includes() -> list[str]:
    """The include folders that CuPy adds: of cuda_fp16.h and cuda_bf16.h, too."""
    import cupy

    return [o for o in cupy._core.core.assemble_cupy_compiler_options(()) if o.startswith("-I")]


@pytest.fixture(scope="module")
def nvrtc() -> Any:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f"no NVRTC: {error}")
    return cupy.cuda.nvrtc


def compile_source(nvrtc: Any, source: str, architecture: str) -> tuple[Any, dict[str, str]]:
    program = nvrtc.createProgram(source_text(source), source, (), ())
    names = expressions(source)
    for name in names:
        nvrtc.addNameExpression(program, name)
    try:
        nvrtc.compileProgram(program, (f"-arch={architecture}", *OPTIONS, *OF_CUPY, *includes(), *VERBOSE))
    except nvrtc.NVRTCError:
        pytest.fail(f"{source} for {architecture}:\n{nvrtc.getProgramLog(program)}", pytrace=False)
    return program, {name: nvrtc.getLoweredName(program, name) for name in names}


def bodies(nvrtc: Any, source: str) -> dict[str, str]:
    """The PTX of each kernel of a source."""
    program, lowered = compile_source(nvrtc, source, "compute_90")
    ptx = nvrtc.getPTX(program)
    ptx = ptx.decode() if isinstance(ptx, bytes) else ptx
    return {name: ptx[ptx.index(f"entry {mangled}(") :].split(".entry")[0] for name, mangled in lowered.items()}


def test_every_generation_is_compiled(nvrtc: Any) -> None:
    """For each generation that the installed NVRTC supports, from Volta on, at least one architecture is tested."""
    known = {number // 10 for number in nvrtc.getSupportedArchs() if number >= 70}
    assert known <= {number // 10 for number in ARCHITECTURES} | {11}, "11: Jetson boards alone"
    assert len([number for number in ARCHITECTURES if number in nvrtc.getSupportedArchs()]) >= 5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_compiles(nvrtc: Any, source: str, architecture: int) -> None:
    if architecture not in nvrtc.getSupportedArchs():
        pytest.skip(f"NVRTC {'.'.join(map(str, nvrtc.getVersion()))} does not know sm_{architecture}")
    program, lowered = compile_source(nvrtc, source, f"sm_{architecture}")
    binary = nvrtc.getCUBIN(program)
    assert len(binary) > 1000
    for name, mangled in lowered.items():
        assert mangled.encode() in binary, name
    log = nvrtc.getProgramLog(program)
    assert "warning #" not in log  # sm_70 alone is remarked on, as deprecated
    used = {name: usages(log)[mangled] for name, mangled in lowered.items()}
    for name, usage in used.items():
        assert not usage.spilled, (name, usage)
        # so that two blocks of 256 threads fit on a multiprocessor with 65536 registers
        assert usage.registers <= (128 if "double" in name else 96), (name, usage)


def test_what_a_kernel_uses_is_read_from_the_log(nvrtc: Any) -> None:
    """A kernel with more live values than registers spills some, and that shows."""
    text = """__global__ __launch_bounds__(1024) void f(double* x, int n) {
        double v[128];
        #pragma unroll
        for (int i = 0; i < 128; i++) v[i] = x[i];
        for (int k = 0; k < n; k++) {
            #pragma unroll
            for (int i = 0; i < 128; i++) v[i] = v[i] * v[(i + 1) % 128] + x[k];
        }
        #pragma unroll
        for (int i = 0; i < 128; i++) x[i] = v[i];
    }"""
    program = nvrtc.createProgram(text, "f.cu", (), ())
    nvrtc.compileProgram(program, ("-arch=sm_90", *VERBOSE))
    (usage,) = usages(nvrtc.getProgramLog(program)).values()
    assert usage.spilled > 0
    assert usage.registers <= 64


@pytest.mark.parametrize("source", ["philox.cu", "sums.cu"])
def test_cupy_compiles(nvrtc: Any, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy's own compilation, with its options and include folders; only the device's architecture is given."""
    import cupy

    seen: list[str] = []
    compiler, compile_program = cupy.cuda.compiler, nvrtc.compileProgram
    monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", lambda arch: (f"-arch=sm_{arch}", "cubin"))
    monkeypatch.setattr(nvrtc, "compileProgram", lambda p, options: (seen.extend(options), compile_program(p, options)))
    options = cupy._core.core.assemble_cupy_compiler_options(OPTIONS)
    binary, mapping = compiler.compile_using_nvrtc(
        source_text(source), (*options, "-ftz=true"), "90", source, expressions(source)
    )
    assert set(mapping) == set(expressions(source))
    assert all(mangled.encode() in binary for mangled in mapping.values())
    added = {o for o in seen if not o.startswith(("-I", "-arch"))} - set(OPTIONS)
    assert added == set(OF_CUPY)


@pytest.mark.parametrize("source", SOURCES)
def test_kernels_of_float_compute_in_float(nvrtc: Any, source: str) -> None:
    """A kernel of float or of half floats calls no double function: a missed overload would silently cost speed."""
    for name, body in bodies(nvrtc, source).items():
        if "<" in name and "double" not in name:
            found = re.findall(r"\b(?:add|sub|mul|fma|div|rcp|sqrt)\.\w*\.?f64|\bex2\S*f64", body)
            by_one_thread = ["div.rn.f64", "rcp.rn.f64"] if name.startswith("adam_step") else []  # for all of its block
            assert not Counter(found) - Counter(by_one_thread), (name, found)


def test_the_compiler_keeps_the_errors_of_a_sum(nvrtc: Any) -> None:
    """The error of each term takes four subtractions and an addition, which an algebraic optimiser would remove."""
    for name, body in bodies(nvrtc, "sums.cu").items():
        assert len(re.findall(r"\bsub\.\S*f(?:32|64)\s", body)) >= 4, name


PACKED = {
    "optimizers.cu": {"sgd_step": (3, 2), "adam_step": (4, 3), "rmsprop_step": (5, 4), "moment_step": (5, 4),
                      "square_sums": (1, 0),
                      "scale_by": (1, 1), "unscale": (1, 1)},
    "activations.cu": {"activate": (1, 1), "activate_backward": (2, 1)},
    "philox.cu": {"dropout_backward": (1, 1)},
}  # fmt: skip
"""How often these kernels load and store 16 bytes, besides half copies."""


@pytest.mark.parametrize("source", PACKED)
def test_packs_are_loaded_and_stored_at_once(nvrtc: Any, source: str) -> None:
    for name, body in bodies(nvrtc, source).items():
        if expected := PACKED[source].get(name.partition("<")[0]):
            loads, stores = (len(re.findall(rf"{kind}.global.v(?:4.[fu]32|2.f64)", body)) for kind in ("ld", "st"))
            assert loads >= expected[0], name
            assert stores >= expected[1], name


@pytest.mark.parametrize(("source", "kernel"), [("losses.cu", "squared_error"), ("activations.cu", "bias_backward")])
def test_blocks_see_what_others_wrote(nvrtc: Any, source: str, kernel: str) -> None:
    """A block's sum is written before its ticket is drawn, and the last block reads the sums of others from memory."""
    for name, body in bodies(nvrtc, source).items():
        if name.startswith(kernel):
            order = r"st\.volatile\.global", r"(?:membar\.gl|fence\.)", r"atom\.\S*inc", r"ld\.volatile\.global"
            assert re.search(r"[\s\S]*?".join(order), body), name


def test_every_kernel_in_a_source_is_listed() -> None:
    for source, names in SOURCES.items():
        text = source_text(source)
        defined = re.findall(r"(template <typename T>\s*)?__global__ void (\w+)\(", text)
        assert sorted(name for _, name in defined) == sorted(names), source
        assert {name for template, name in defined if not template} == set(names) & set(UNTYPED), source
