"""Why a GPU can or cannot be used: one sentence, and the command that fixes it.

`import cupy` succeeds without a driver, and CuPy's `is_available()` is true without the CUDA libraries that compile
kernels and multiply matrices. So the diagnosis checks the package, then the driver, then the devices, and finally runs
a tiny kernel and a tiny matrix product. `CODES` lists the possible states.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import metadata
from typing import Any

from gradflow.backend import Diagnosis
from gradflow.environment import to_install

CUPY_DISTRIBUTIONS = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")

CODES = (
    "not-installed", "two-packages", "import-broken",
    "no-driver", "no-driver-library", "driver-too-old", "no-device", "device-hidden",
    "driver-mismatch", "compat-unsupported", "stub-library", "driver-unknown-error", "system-not-ready", "device-busy",
    "driver-not-initialized", "driver-error",
    "no-nvrtc", "no-cublas", "no-library", "out-of-memory", "no-kernel-image", "kernel-failed", "wrong-result",
    "check-failed", "fine",
)  # fmt: skip
"""The codes of all states, in the order in which they are checked."""

KERNEL_DRIVER = "/proc/driver/nvidia/version"
"""A file that exists on Linux if NVIDIA's kernel driver is loaded, with or without the library libcuda.so.1."""

_LIBRARIES = ("nvrtc", "cublas", "curand", "cusolver", "cusparse", "cufft", "cudart", "nvjitlink")
_DRIVER_ERRORS = {
    803: (
        "driver-mismatch",
        "the driver library libcuda.so.1 does not match the loaded kernel driver",
        "type: sudo reboot, to load the installed driver (in a container: use the host's libcuda, not the image's)",
    ),
    804: (
        "compat-unsupported",
        "CUDA's compatibility package is in use, but this GPU or driver does not support it",
        "remove folders named compat from LD_LIBRARY_PATH; type: unset LD_LIBRARY_PATH (in a container, type: "
        "apt-get remove 'cuda-compat-*')",
    ),
    34: (
        "stub-library",
        "the driver library libcuda.so.1 is a stub, which is for linking only",
        "remove folders named stubs from LD_LIBRARY_PATH; type: unset LD_LIBRARY_PATH",
    ),
    999: (
        "driver-unknown-error",
        "the driver fails with an unknown error, which often happens after a suspend",
        "type: sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm, or: sudo reboot",
    ),
    802: (
        "system-not-ready",
        "the GPUs are not ready, as on NVSwitch machines without a running fabric manager",
        "type: sudo systemctl restart nvidia-fabricmanager",
    ),
    46: (
        "device-busy",
        "the GPU is busy: another process uses it exclusively",
        "type: nvidia-smi, and end that process, or: sudo nvidia-smi -c DEFAULT",
    ),
    3: (
        "driver-not-initialized",
        "the driver cannot be initialized",
        "type: nvidia-smi (in a process that was forked after CUDA was used: start it with the method spawn)",
    ),
}
"""For each CUDA status of the driver: the code of the state, its description, and the fix."""


def _install() -> str:
    other = to_install("cuda13").rpartition(" ")[2]
    return f'{to_install("cuda12")}, or {other} if nvidia-smi says "CUDA Version: 13"'


@cache
def diagnose() -> Diagnosis:
    """Whether CUDA can be used in this process. Never raises. Cached; `diagnose.cache_clear()` empties the cache."""
    try:
        return _diagnose()
    except Exception as error:
        return Diagnosis(
            False, f"checking the GPU failed with {_first_line(error)}", "type: nvidia-smi", "check-failed"
        )


def installed() -> list[str]:
    """The names of the installed CuPy distributions."""
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
            f"{len(packages)} CuPy packages are installed and overwrite each other's files: {', '.join(packages)}",
            f"type: pip uninstall -y {' '.join(packages)}; then {_install()}",
            "two-packages",
        )
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name == "cupy" and not packages:
            return Diagnosis(False, "CuPy is not installed", _install(), "not-installed")
        return _import_failed(error, packages)
    except Exception as error:
        return _import_failed(error, packages)
    return _check_driver(cupy) or _try_kernels(cupy)


def _import_failed(error: Exception, packages: list[str]) -> Diagnosis:
    package = packages[0] if packages else "cupy-cuda12x"
    return Diagnosis(
        False,
        f"CuPy is installed, but its import fails: {_first_line(error)}",
        f"type: pip install --force-reinstall {package}",
        "import-broken",
    )


def _check_driver(cupy: Any) -> Diagnosis | None:
    """What is wrong with the driver or the devices; None if nothing is."""
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
        return _no_driver(_driver_version(runtime), int(runtime.runtimeGetVersion()))
    if status == 100:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            return Diagnosis(
                False,
                f"the driver finds no GPU, and CUDA_VISIBLE_DEVICES is set to {hidden!r}",
                "type: unset CUDA_VISIBLE_DEVICES, or set it to an index that `nvidia-smi -L` lists",
                "device-hidden",
            )
        return Diagnosis(
            False,
            "there is an NVIDIA driver, but no GPU that it can use",
            "type: nvidia-smi -L (in a container: start it with --gpus all)",
            "no-device",
        )
    if status in _DRIVER_ERRORS:
        code, state, fix = _DRIVER_ERRORS[status]
        return Diagnosis(False, f"{state} (CUDA error {status})", fix, code)
    if status == 2:
        return _out_of_memory(None)
    return Diagnosis(False, f"the driver returns CUDA error {status}", "type: nvidia-smi", "driver-error")


def _no_driver(version: int, runtime: int) -> Diagnosis:
    """CUDA status 35, "driver too old". CUDA also returns it if there is no driver: then the driver version is 0."""
    if version == 0 and os.path.exists(KERNEL_DRIVER):
        return Diagnosis(
            False,
            "the NVIDIA kernel driver is loaded, but its library libcuda.so.1 is not found",
            "install the driver's libraries, such as the package libnvidia-compute (in a container: start it with "
            "--gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility); then type: ldconfig -p | grep libcuda",
            "no-driver-library",
        )
    if version == 0:
        return Diagnosis(
            False,
            "there is no NVIDIA driver",
            "install the driver of your GPU, then type: nvidia-smi (in a container: start it with --gpus all)",
            "no-driver",
        )
    fix = "update the driver of your GPU, then type: nvidia-smi"
    if version // 1000 == 12:
        install = to_install("cuda12").rpartition(": ")[2]
        fix += f"; or keep the driver and type: pip uninstall -y {_package()}, then {install}"
    return Diagnosis(
        False,
        f"the NVIDIA driver is too old: it supports CUDA {_dotted(version)}, but this CuPy needs CUDA "
        f"{runtime // 1000} (it was built with {_dotted(runtime)})",
        fix,
        "driver-too-old",
    )


def _try_kernels(cupy: Any) -> Diagnosis:
    """Run a tiny kernel, which needs the compiler (NVRTC), and a tiny matrix product, which needs cuBLAS."""
    try:
        ones = cupy.ones((2, 2), dtype=cupy.float32)
        cupy.RawKernel(_TINY_KERNEL, "gradflow_tiny", ("-std=c++17",))((1,), (4,), (ones,))
        product = cupy.matmul(ones, ones)
        value = float(product[0, 0])
    except Exception as error:
        return _kernel_failed(error)
    if value != 8.0:
        return Diagnosis(
            False,
            f"the GPU computes wrong results: a sum came out as {value} instead of 8",
            "type: nvidia-smi -q -d ECC",
            "wrong-result",
        )
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"]
    name = name.decode() if isinstance(name, bytes) else str(name)
    version = _dotted(cupy.cuda.runtime.runtimeGetVersion())
    return Diagnosis(True, f"{name}, CuPy {cupy.__version__}, CUDA {version}", code="fine")


_TINY_KERNEL = 'extern "C" __global__ void gradflow_tiny(float* x) { x[threadIdx.x] += 1.0f; }'


def _kernel_failed(error: Exception) -> Diagnosis:
    text = f"{type(error).__name__}: {error}".lower()
    status = getattr(error, "status", None)
    if isinstance(error, MemoryError) or "outofmemory" in text or "out of memory" in text or status == 2:
        return _out_of_memory(error)
    missing = [name for name in _LIBRARIES if name in text]
    if isinstance(error, ImportError) or "notfound" in type(error).__name__.lower() or (
        missing and ("cannot open" in text or "not found" in text or "no such file" in text)
    ):  # fmt: skip
        which = ", ".join(missing) if missing else "names unknown"
        code = next((f"no-{name}" for name in ("nvrtc", "cublas") if name in missing), "no-library")
        return Diagnosis(
            False,
            f"CuPy is installed, but libraries of the CUDA toolkit are missing ({which}): {_first_line(error)}",
            f'type: pip install "{_package()}[ctk]"',
            code,
        )
    if status == 209 or "no kernel image" in text:
        return Diagnosis(
            False,
            f"this GPU is too old or too new for this CuPy: {_first_line(error)}",
            f"type: nvidia-smi --query-gpu=name,compute_cap --format=csv, and: pip install --upgrade {_package()}",
            "no-kernel-image",
        )
    return Diagnosis(
        False, f"the GPU is found, but a first kernel fails: {_first_line(error)}", "type: nvidia-smi", "kernel-failed"
    )


def _package() -> str:
    """The installed CuPy wheel, or the one to install."""
    return next((name for name in installed() if name != "cupy"), "cupy-cuda12x")


def _out_of_memory(error: Exception | None) -> Diagnosis:
    return Diagnosis(
        False,
        "the GPU's memory is full" + (f": {_first_line(error)}" if error is not None else ""),
        "type: nvidia-smi, and end the processes that use the memory, or choose another GPU with CUDA_VISIBLE_DEVICES",
        "out-of-memory",
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
    if "Original error:" in lines[:-1]:  # CuPy's message for a failed import
        return lines[lines.index("Original error:") + 1].rstrip(".")
    return (f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__).rstrip(".")
