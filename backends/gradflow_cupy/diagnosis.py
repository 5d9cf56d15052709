"""Why a GPU can be used or not: one plain sentence, and what to type.

`import cupy` succeeds on a machine without a driver, and its `is_available()` is true without the CUDA libraries that
it compiles and multiplies with. So the diagnosis goes from the package to the driver to the device, and ends by
running one tiny kernel and one tiny product. Each state has a code of its own, in `CODES`.
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
"""The states that are told apart, in the order in which they are looked for."""

KERNEL_DRIVER = "/proc/driver/nvidia/version"
"""There on Linux when the kernel has loaded NVIDIA's driver, whether the library to reach it is there or not."""

_LIBRARIES = ("nvrtc", "cublas", "curand", "cusolver", "cusparse", "cufft", "cudart", "nvjitlink")
_ANSWERS = {
    803: (
        "driver-mismatch",
        "the driver's library does not match the driver that the system has loaded",
        "type: sudo reboot, so that the installed driver is loaded (in a container: use the host's libcuda, and none "
        "from the image)",
    ),
    804: (
        "compat-unsupported",
        "CUDA's compatibility package is in use, and this GPU or driver does not support it",
        "take folders called compat out of LD_LIBRARY_PATH; type: unset LD_LIBRARY_PATH (in a container, type: "
        "apt-get remove 'cuda-compat-*')",
    ),
    34: (
        "stub-library",
        "the driver's library is a stub, made for building and not for running",
        "take folders called stubs out of LD_LIBRARY_PATH; type: unset LD_LIBRARY_PATH",
    ),
    999: (
        "driver-unknown-error",
        "the driver fails with an unknown error, as it does after a suspend",
        "type: sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm, or: sudo reboot",
    ),
    802: (
        "system-not-ready",
        "the GPUs are not ready, as where NVSwitch has no fabric manager",
        "type: sudo systemctl restart nvidia-fabricmanager",
    ),
    46: (
        "device-busy",
        "the GPU is busy: another process holds it for itself alone",
        "type: nvidia-smi, and end that process, or: sudo nvidia-smi -c DEFAULT",
    ),
    3: (
        "driver-not-initialized",
        "the driver cannot be initialized",
        "type: nvidia-smi (in a process that was forked after CUDA was used: start it with the method spawn)",
    ),
}
"""For what the driver answers: the code of the state, what it means, and what to type."""


def _install() -> str:
    other = to_install("cuda13").rpartition(" ")[2]
    return f'{to_install("cuda12")}, or {other} if nvidia-smi says "CUDA Version: 13"'


@cache
def diagnose() -> Diagnosis:
    """The state of CUDA in this process. Never raises. The result is kept; `diagnose.cache_clear()` forgets it."""
    try:
        return _diagnose()
    except Exception as error:
        return Diagnosis(
            False, f"the check of the GPU failed with {_first_line(error)}", "type: nvidia-smi", "check-failed"
        )


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
            f"type: pip uninstall -y {' '.join(packages)}; then {_install()}",
            "two-packages",
        )
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name == "cupy" and not packages:
            return Diagnosis(False, "CuPy is not installed", _install(), "not-installed")
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
        "import-broken",
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
        return _no_driver(_driver_version(runtime), int(runtime.runtimeGetVersion()))
    if status == 100:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            return Diagnosis(
                False,
                f"the driver shows no GPU, and CUDA_VISIBLE_DEVICES is set to {hidden!r}",
                "type: unset CUDA_VISIBLE_DEVICES, or set it to an index that `nvidia-smi -L` lists",
                "device-hidden",
            )
        return Diagnosis(
            False,
            "there is an NVIDIA driver and no GPU that it can use",
            "type: nvidia-smi -L (in a container: start it with --gpus all)",
            "no-device",
        )
    if status in _ANSWERS:
        code, state, fix = _ANSWERS[status]
        return Diagnosis(False, f"{state} (CUDA error {status})", fix, code)
    if status == 2:
        return _full(None)
    return Diagnosis(False, f"the driver answers with CUDA error {status}", "type: nvidia-smi", "driver-error")


def _no_driver(version: int, runtime: int) -> Diagnosis:
    """CUDA's status 35, which says "driver too old" also where there is none: then its version is 0."""
    if version == 0 and os.path.exists(KERNEL_DRIVER):
        return Diagnosis(
            False,
            "the system has loaded an NVIDIA driver, and its library libcuda.so.1 is not found",
            "install the driver's package of libraries, like libnvidia-compute (in a container: start it with "
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
        fix += f"; or stay with it and type: pip uninstall -y {_package()}, then {install}"
    return Diagnosis(
        False,
        f"the NVIDIA driver is too old: it supports CUDA {_dotted(version)}, and this CuPy needs CUDA "
        f"{runtime // 1000} (it was built with {_dotted(runtime)})",
        fix,
        "driver-too-old",
    )


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
            False,
            f"the GPU computes wrongly: a sum that is 8 came out as {value}",
            "type: nvidia-smi -q -d ECC",
            "wrong-result",
        )
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"]
    name = name.decode() if isinstance(name, bytes) else str(name)
    version = _dotted(cupy.cuda.runtime.runtimeGetVersion())
    return Diagnosis(True, f"{name}, CuPy {cupy.__version__}, CUDA {version}", code="fine")


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
        code = next((f"no-{name}" for name in ("nvrtc", "cublas") if name in missing), "no-library")
        return Diagnosis(
            False,
            f"CuPy is there and libraries of the CUDA toolkit are not ({which}): {_first_line(error)}",
            f'type: pip install "{_package()}[ctk]"',
            code,
        )
    if status == 209 or "no kernel image" in text:
        return Diagnosis(
            False,
            f"this CuPy has no code for this GPU, which is too old or too new for it: {_first_line(error)}",
            f"type: nvidia-smi --query-gpu=name,compute_cap --format=csv, and: pip install --upgrade {_package()}",
            "no-kernel-image",
        )
    return Diagnosis(
        False, f"the GPU is there and a first kernel fails: {_first_line(error)}", "type: nvidia-smi", "kernel-failed"
    )


def _package() -> str:
    """The wheel of CuPy that is installed, or else the one to install."""
    return next((name for name in installed() if name != "cupy"), "cupy-cuda12x")


def _full(error: Exception | None) -> Diagnosis:
    return Diagnosis(
        False,
        "the memory of the GPU is full" + (f": {_first_line(error)}" if error is not None else ""),
        "type: nvidia-smi, and end the processes that hold the memory, or choose another GPU with CUDA_VISIBLE_DEVICES",
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
    if "Original error:" in lines[:-1]:  # of CuPy's message for an import that fails
        return lines[lines.index("Original error:") + 1].rstrip(".")
    return (f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__).rstrip(".")
