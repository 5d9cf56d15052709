"""Each state of CUDA is distinguished from the others, and names what to type.

A fake module in place of CuPy produces the states; the real state of this machine is diagnosed once.
"""

from __future__ import annotations

import builtins
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gradflow_cupy import CupyBackend, diagnosis

import gradflow as gf
from gradflow.backend import Diagnosis


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int, text: str = "") -> None:
        self.status = status
        super().__init__(text or f"cudaError{status}")


class OutOfMemoryError(MemoryError):
    """Like `cupy.cuda.memory.OutOfMemoryError`."""


class DynamicLibNotFoundError(RuntimeError):
    """Like the error of cuda.pathfinder."""


def raises(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


def fake_cupy(
    count: Any = 1, driver: int = 12090, kernel: BaseException | None = None, matmul: BaseException | None = None
) -> ModuleType:
    """A working CuPy except for the given parts; `count` is a number or an error."""
    module = ModuleType("cupy")

    class RawKernel:
        def __init__(self, code: str, name: str, options: tuple[str, ...] = ()) -> None:
            assert name in code

        def __call__(self, grid: Any, block: Any, arguments: Any) -> None:
            if kernel is not None:
                raise kernel
            arguments[0][...] += 1

    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=raises(count) if isinstance(count, BaseException) else lambda: count,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: 12090,
        getDeviceProperties=lambda index: {"name": b"NVIDIA Test"},
    )
    module.__dict__.update(
        __version__="14.2.0", cuda=SimpleNamespace(runtime=runtime), RawKernel=RawKernel, ones=np.ones,
        float32=np.float32, matmul=np.matmul if matmul is None else raises(matmul),
    )  # fmt: skip
    return module


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`state(module, installed)`: the diagnosis if that module is CuPy and those distributions are installed."""
    diagnosis.diagnose.cache_clear()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def ask(module: ModuleType | None, installed: tuple[str, ...] = ("cupy-cuda12x",)) -> Diagnosis:
        def distribution(name: str) -> Any:
            if name not in installed:
                raise importlib.metadata.PackageNotFoundError(name)
            return object()

        monkeypatch.setattr(importlib.metadata, "distribution", distribution)
        monkeypatch.setitem(sys.modules, "cupy", module)
        found = CupyBackend.diagnose()
        assert CupyBackend.diagnose() is found  # kept
        assert found.usable == (CupyBackend.device_count() > 0)
        assert not found.state.endswith(".")
        assert "\n" not in str(found)
        assert found.usable or found.fix
        assert found.code in diagnosis.CODES
        return found

    yield ask
    diagnosis.diagnose.cache_clear()


def broken_import(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    original = builtins.__import__

    def importer(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "cupy":
            raise error
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", importer)


def test_fine(state: Any) -> None:
    found = state(fake_cupy(2))
    assert found == Diagnosis(True, "NVIDIA Test, CuPy 14.2.0, CUDA 12.9", code="fine")
    assert CupyBackend.device_count() == 2


def test_not_installed(state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_import(monkeypatch, ModuleNotFoundError("No module named 'cupy'", name="cupy"))
    found = state(None, ())
    assert (found.code, found.state) == ("not-installed", "CuPy is not installed")
    assert '".[cuda12]"' in found.fix
    assert '".[cuda13]"' in found.fix


def test_two_packages(state: Any) -> None:
    found = state(fake_cupy(), ("cupy-cuda12x", "cupy-cuda13x"))
    assert found.code == "two-packages"
    assert "2 CuPy packages" in found.state
    assert "cupy-cuda12x, cupy-cuda13x" in found.state
    assert "pip uninstall -y cupy-cuda12x cupy-cuda13x" in found.fix


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ImportError("libfoo.so: undefined symbol: bar"), "undefined symbol"),
        (ImportError("====\nFailed to import CuPy.\n\nOriginal error:\n  ImportError: no glibc.\n===="), "no glibc"),
        (ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock"), "fastrlock"),
        (AttributeError("module 'numpy' has no attribute 'x'"), "no attribute 'x'"),
    ],
)
def test_broken_import(state: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, text: str) -> None:
    broken_import(monkeypatch, error)
    found = state(None)
    assert found.code == "import-broken"
    assert "import fails" in found.state
    assert text in found.state
    assert "cupy-cuda12x" in found.fix


@pytest.fixture
def kernel_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The path at which the diagnosis looks for a loaded kernel driver; no file is there yet."""
    path = tmp_path / "version"
    monkeypatch.setattr(diagnosis, "KERNEL_DRIVER", str(path))
    return path


def test_no_driver(state: Any, kernel_driver: Path) -> None:
    found = state(fake_cupy(CUDARuntimeError(35), driver=0))
    assert (found.code, found.state) == ("no-driver", "there is no NVIDIA driver")


def test_a_driver_without_its_library(state: Any, kernel_driver: Path) -> None:
    kernel_driver.touch()
    found = state(fake_cupy(CUDARuntimeError(35), driver=0))
    assert found.code == "no-driver-library"
    assert "libcuda.so.1 is not found" in found.state
    assert "NVIDIA_DRIVER_CAPABILITIES" in found.fix


@pytest.mark.parametrize(("driver", "version"), [(11040, "11.4"), (12080, "12.8")])
def test_driver_too_old(state: Any, kernel_driver: Path, driver: int, version: str) -> None:
    kernel_driver.touch()
    module = fake_cupy(CUDARuntimeError(35), driver=driver)
    module.__dict__["cuda"].runtime.runtimeGetVersion = lambda: 13000
    found = state(module, ("cupy-cuda13x",))
    assert found.code == "driver-too-old"
    assert "too old" in found.state
    assert f"CUDA {version}," in found.state
    assert "needs CUDA 13 " in found.state
    assert ("pip uninstall -y cupy-cuda13x" in found.fix) == (version == "12.8"), "CuPy 14 has no wheel for CUDA 11"


@pytest.mark.parametrize("count", [CUDARuntimeError(100), 0], ids=["status 100", "count 0"])
@pytest.mark.parametrize("visible", [None, "", "7"])
def test_no_device(state: Any, monkeypatch: pytest.MonkeyPatch, count: Any, visible: str | None) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = state(fake_cupy(count))
    assert found.code == ("no-device" if visible is None else "device-hidden")
    assert "no GPU" in found.state
    assert ("CUDA_VISIBLE_DEVICES" in found.state) == (visible is not None)


ANSWERS = {
    803: ("driver-mismatch", "sudo reboot"),
    804: ("compat-unsupported", "cuda-compat"),
    34: ("stub-library", "stubs"),
    999: ("driver-unknown-error", "nvidia_uvm"),
    802: ("system-not-ready", "fabricmanager"),
    46: ("device-busy", "nvidia-smi -c DEFAULT"),
    3: ("driver-not-initialized", "spawn"),
    1: ("driver-error", "nvidia-smi"),
}
"""For each status of the driver: the code of the state, and a part of the fix."""


@pytest.mark.parametrize("status", ANSWERS)
def test_what_the_driver_answers(state: Any, status: int) -> None:
    found = state(fake_cupy(CUDARuntimeError(status)))
    code, word = ANSWERS[status]
    assert found.code == code
    assert f"CUDA error {status}" in found.state
    assert word in found.fix


def test_no_two_states_have_the_same_words() -> None:
    entries = list(diagnosis._DRIVER_ERRORS.values())
    for part in zip(*entries, strict=True):
        assert len(set(part)) == len(entries)
    assert len(set(diagnosis.CODES)) == len(diagnosis.CODES)


@pytest.mark.parametrize(
    ("which", "error", "library"),
    [
        ("kernel", DynamicLibNotFoundError('Failure finding "libnvrtc.so.12"'), "nvrtc"),
        ("kernel", RuntimeError("CuPy failed to load libnvrtc.so.12: cannot open shared object file"), "nvrtc"),
        ("matmul", ImportError("libcublas.so.12: cannot open shared object file: No such file or directory"), "cublas"),
        ("matmul", ImportError("libcusolver.so.11: cannot open shared object file"), "cusolver"),
    ],
)
def test_missing_libraries(state: Any, which: str, error: Exception, library: str) -> None:
    found = state(fake_cupy(**{which: error}))
    assert found.code == {"nvrtc": "no-nvrtc", "cublas": "no-cublas"}.get(library, "no-library")
    assert "libraries of the CUDA toolkit" in found.state
    assert library in found.state
    assert "cupy-cuda12x[ctk]" in found.fix


def real_cupy() -> Any:
    module = pytest.importorskip("cupy", reason="CuPy is not installed")
    if "EMULATED" in module.__version__:
        pytest.fail("the emulated CuPy was left behind")
    return module


def test_the_error_of_cupy_without_cublas(state: Any) -> None:
    """With CuPy's own message, from an import that fails here because the library is missing."""
    real_cupy()
    try:
        importlib.import_module("cupy.cublas")
    except ImportError as error:
        found = state(fake_cupy(matmul=error))
        assert found.code == "no-cublas", found
    else:
        pytest.skip("cuBLAS is installed")


def test_the_error_of_cupy_without_nvrtc(state: Any) -> None:
    """With CuPy's own message, in a Python that finds neither NVIDIA's wheels nor a toolkit."""
    real_cupy()
    code = """
import sys
import cupy
from cuda import pathfinder
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "nvidia":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Hidden())
sys.path[:] = [p for p in sys.path if "site-packages" not in p]
import site
site.getsitepackages = lambda: []
try:
    cupy.cuda.nvrtc.getVersion()
except Exception as error:
    print(type(error).__name__)
    print(" ".join(str(error).split()))
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("LD_LIBRARY_PATH", "CUDA_PATH", "CUDA_HOME")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    if not done.stdout:
        pytest.skip("this system has NVRTC outside of the wheels")
    kind, words = done.stdout.splitlines()
    error = type(kind, (RuntimeError,), {})(words)
    assert state(fake_cupy(kernel=error)).code == "no-nvrtc", words


@pytest.mark.parametrize(
    "error", [OutOfMemoryError("Out of memory allocating 512 bytes"), CUDARuntimeError(2, "cudaErrorMemoryAllocation")]
)
def test_out_of_memory(state: Any, error: BaseException) -> None:
    found = state(fake_cupy(kernel=error))
    assert found.code == "out-of-memory"
    assert "the GPU's memory is full" in found.state
    diagnosis.diagnose.cache_clear()
    assert state(fake_cupy(matmul=error)).code == "out-of-memory"


def test_the_errors_of_cupy_without_memory(state: Any) -> None:
    cupy = real_cupy()
    for error in (cupy.cuda.memory.OutOfMemoryError(512, 1024), cupy.cuda.runtime.CUDARuntimeError(2)):
        diagnosis.diagnose.cache_clear()
        assert state(fake_cupy(kernel=error)).code == "out-of-memory", error


def test_out_of_memory_before_the_first_array(state: Any) -> None:
    assert state(fake_cupy(CUDARuntimeError(2))).code == "out-of-memory"


def test_a_gpu_that_this_cupy_has_no_code_for(state: Any) -> None:
    found = state(fake_cupy(kernel=CUDARuntimeError(209, "cudaErrorNoKernelImageForDevice: no kernel image")))
    assert found.code == "no-kernel-image"
    assert "pip install --upgrade cupy-cuda12x" in found.fix


def test_a_kernel_that_fails(state: Any) -> None:
    found = state(fake_cupy(kernel=CUDARuntimeError(719, "unspecified launch failure")))
    assert found.code == "kernel-failed"
    assert "unspecified launch failure" in found.state


def test_a_gpu_that_computes_wrongly(state: Any) -> None:
    module = fake_cupy()
    module.__dict__["matmul"] = lambda a, b: a * 3
    found = state(module)
    assert found.code == "wrong-result"
    assert "computes wrong results" in found.state


def test_it_never_raises(state: Any) -> None:
    module = fake_cupy()
    del module.__dict__["cuda"]
    found = state(module)
    assert found.code == "check-failed"
    assert "failed with" in found.state


def test_this_machine() -> None:
    """The real state of this machine has a sentence and, unless CUDA is usable, a command."""
    diagnosis.diagnose.cache_clear()
    found = gf.diagnose("cuda")
    assert isinstance(found.usable, bool)
    assert found.state
    assert found.usable or found.fix
    if "cupy" not in sys.modules:
        assert not found.usable
