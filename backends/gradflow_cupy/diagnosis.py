"""Why a GPU can be used or not: one plain sentence, and what to type.

`import cupy` succeeds on a machine without a driver, and its `is_available()` is true without the CUDA libraries that
it compiles and multiplies with. So the diagnosis goes from the package to the driver to the device, and ends by
running one tiny kernel and one tiny product.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import metadata
from typing import Any

from gradflow.backend import Diagnosis

CUPY_DISTRIBUTIONS = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")

INSTALL = (
    'type, in the clone of gradflow: pip install -e ".[cuda12]", or ".[cuda13]" if nvidia-smi says "CUDA Version: 13"'
)
_LIBRARIES = ("nvrtc", "cublas", "curand", "cusolver", "cusparse", "cufft", "cudart", "nvjitlink")
_MISMATCHED = {
    803: "the driver and the CUDA libraries do not match",
    804: "the CUDA compatibility package does not fit this GPU and driver",
    34: "the driver library is a stub, made for building and not for running",
    999: "the driver fails with an unknown error",
}


@cache
def diagnose() -> Diagnosis:
    """The state of CUDA in this process. Never raises. The result is kept; `diagnose.cache_clear()` forgets it."""
    try:
        return _diagnose()
    except Exception as error:
        return Diagnosis(False, f"the check of the GPU failed with {_first_line(error)}", "type: nvidia-smi")


def installed() -> list[str]:
    """The distributions installed here that hold CuPy."""
    found = []
    for name in CUPY_DISTRIBUTIONS:
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def _diagnose() -> Diagnosis:
    packages = installed()
    if len(packages) > 1:
        return Diagnosis(
            False,
            f"{len(packages)} packages of CuPy are installed and overwrite each other's files: {', '.join(packages)}",
            f"type: pip uninstall -y {' '.join(packages)}; then {INSTALL}",
        )
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name == "cupy" and not packages:
            return Diagnosis(False, "CuPy is not installed", INSTALL)
        return _broken(error, packages)
    except Exception as error:
        return _broken(error, packages)
    return _ask_driver(cupy) or _try_out(cupy)


def _broken(error: Exception, packages: list[str]) -> Diagnosis:
    package = packages[0] if packages else "cupy-cuda12x"
    return Diagnosis(
        False,
        f"CuPy is installed and its import fails: {_first_line(error)}",
        f"type: pip install --force-reinstall {package}",
    )


def _ask_driver(cupy: Any) -> Diagnosis | None:
    """What is wrong with the driver or the devices, or None."""
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        status = int(error.status)
    else:
        status = 0 if count > 0 else 100
    if status == 0:
        return None
    if status == 35:
        version = _driver_version(runtime)
        if version == 0:
            return Diagnosis(
                False,
                "there is no NVIDIA driver",
                "install the driver of your GPU, then type: nvidia-smi (in a container: start it with --gpus all)",
            )
        return Diagnosis(
            False,
            f"the NVIDIA driver is too old: it supports CUDA {_dotted(version)}, and this CuPy needs CUDA "
            f"{_dotted(runtime.runtimeGetVersion())}",
            'update the driver, or type: pip install -e ".[cuda12]" for a driver of CUDA 12',
        )
    if status == 100:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            return Diagnosis(
                False,
                f"the driver shows no GPU, and CUDA_VISIBLE_DEVICES is set to {hidden!r}",
                "type: unset CUDA_VISIBLE_DEVICES, or set it to an index that `nvidia-smi -L` lists",
            )
        return Diagnosis(
            False,
            "there is an NVIDIA driver and no GPU that it can use",
            "type: nvidia-smi -L (in a container: start it with --gpus all)",
        )
    if status in _MISMATCHED:
        fix = "restart the machine, so that the loaded driver is the installed one; then type: nvidia-smi"
        if status in (34, 804):
            fix = "take stubs and compat folders of CUDA out of LD_LIBRARY_PATH; then type: nvidia-smi"
        return Diagnosis(False, f"{_MISMATCHED[status]} (CUDA error {status})", fix)
    if status == 2:
        return _full(None)
    return Diagnosis(False, f"the driver answers with CUDA error {status}", "type: nvidia-smi")


def _try_out(cupy: Any) -> Diagnosis:
    """Run one tiny kernel, which needs the compiler, and one tiny product, which needs cuBLAS."""
    try:
        ones = cupy.ones((2, 2), dtype=cupy.float32)
        cupy.RawKernel(_TINY, "gradflow_tiny", ("-std=c++17",))((1,), (4,), (ones,))
        product = cupy.matmul(ones, ones)
        value = float(product[0, 0])
    except Exception as error:
        return _failed(error)
    if value != 8.0:
        return Diagnosis(
            False, f"the GPU computes wrongly: a sum that is 8 came out as {value}", "type: nvidia-smi -q -d ECC"
        )
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"]
    name = name.decode() if isinstance(name, bytes) else str(name)
    return Diagnosis(True, f"{name}, CuPy {cupy.__version__}, CUDA {_dotted(cupy.cuda.runtime.runtimeGetVersion())}")


_TINY = 'extern "C" __global__ void gradflow_tiny(float* x) { x[threadIdx.x] += 1.0f; }'


def _failed(error: Exception) -> Diagnosis:
    text = f"{type(error).__name__}: {error}".lower()
    status = getattr(error, "status", None)
    if isinstance(error, MemoryError) or "outofmemory" in text or "out of memory" in text or status == 2:
        return _full(error)
    missing = [name for name in _LIBRARIES if name in text]
    if isinstance(error, ImportError) or "notfound" in type(error).__name__.lower() or (
        missing and ("cannot open" in text or "not found" in text or "no such file" in text)
    ):  # fmt: skip
        which = ", ".join(missing) if missing else "one of them"
        return Diagnosis(
            False,
            f"CuPy is there and libraries of the CUDA toolkit are not ({which}): {_first_line(error)}",
            f'type: pip install "{_with_toolkit()}"',
        )
    return Diagnosis(False, f"the GPU is there and a first kernel fails: {_first_line(error)}", "type: nvidia-smi")


def _with_toolkit() -> str:
    for name in installed():
        if name != "cupy":
            return f"{name}[ctk]"
    return "cupy-cuda12x[ctk]"


def _full(error: Exception | None) -> Diagnosis:
    return Diagnosis(
        False,
        "the memory of the GPU is full" + (f": {_first_line(error)}" if error is not None else ""),
        "type: nvidia-smi, and end the processes that hold the memory, or choose another GPU with CUDA_VISIBLE_DEVICES",
    )


def _driver_version(runtime: Any) -> int:
    try:
        return int(runtime.driverGetVersion())
    except runtime.CUDARuntimeError:
        return 0


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" \t=-*")]
    if "Original error:" in lines[:-1]:  # of CuPy's message for an import that fails
        return lines[lines.index("Original error:") + 1].rstrip(".")
    return (f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__).rstrip(".")
