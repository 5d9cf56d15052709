"""Each state of CUDA is told from the others, and names what to type.

The states are made by a fake module in the place of CuPy, which answers as CuPy does; the real state of the machine at
hand is asked once.
"""

from __future__ import annotations

import builtins
import importlib.metadata
import sys
from collections.abc import Callable
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
    """As `cupy.cuda.memory.OutOfMemoryError`."""


class DynamicLibNotFoundError(RuntimeError):
    """As that of cuda.pathfinder."""


def raises(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


def fake_cupy(
    count: Any = 1, driver: int = 12090, kernel: BaseException | None = None, matmul: BaseException | None = None
) -> ModuleType:
    """A working CuPy, but for what is given: `count` is a number or an error."""
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
    """`state(module, installed)`: the diagnosis where that module is CuPy and those distributions are installed."""
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
    assert found == Diagnosis(True, "NVIDIA Test, CuPy 14.2.0, CUDA 12.9")
    assert CupyBackend.device_count() == 2


def test_not_installed(state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_import(monkeypatch, ModuleNotFoundError("No module named 'cupy'", name="cupy"))
    found = state(None, ())
    assert found.state == "CuPy is not installed"
    assert '".[cuda12]"' in found.fix
    assert '".[cuda13]"' in found.fix


def test_two_packages(state: Any) -> None:
    found = state(fake_cupy(), ("cupy-cuda12x", "cupy-cuda13x"))
    assert "2 packages" in found.state
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
    assert "import fails" in found.state
    assert text in found.state
    assert "cupy-cuda12x" in found.fix


def test_no_driver(state: Any) -> None:
    assert state(fake_cupy(CUDARuntimeError(35), driver=0)).state == "there is no NVIDIA driver"


def test_driver_too_old(state: Any) -> None:
    found = state(fake_cupy(CUDARuntimeError(35), driver=11040))
    assert "too old" in found.state
    assert "CUDA 11.4" in found.state
    assert "CUDA 12.9" in found.state


@pytest.mark.parametrize("count", [CUDARuntimeError(100), 0], ids=["status 100", "count 0"])
@pytest.mark.parametrize("visible", [None, "", "7"])
def test_no_device(state: Any, monkeypatch: pytest.MonkeyPatch, count: Any, visible: str | None) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = state(fake_cupy(count))
    assert "no GPU" in found.state
    assert ("CUDA_VISIBLE_DEVICES" in found.state) == (visible is not None)


@pytest.mark.parametrize("status", [803, 804, 34, 999])
def test_mismatch(state: Any, status: int) -> None:
    assert f"CUDA error {status}" in state(fake_cupy(CUDARuntimeError(status))).state


def test_mismatches_are_told_apart(state: Any) -> None:
    found = set()
    for status in (803, 804, 34, 999):
        diagnosis.diagnose.cache_clear()
        found.add(state(fake_cupy(CUDARuntimeError(status))).state)
    assert len(found) == 4


def test_another_status(state: Any) -> None:
    assert "CUDA error 46" in state(fake_cupy(CUDARuntimeError(46))).state


@pytest.mark.parametrize(
    ("which", "error", "library"),
    [
        ("kernel", DynamicLibNotFoundError('Failure finding "libnvrtc.so.12"'), "nvrtc"),
        ("kernel", RuntimeError("CuPy failed to load libnvrtc.so.12: cannot open shared object file"), "nvrtc"),
        ("matmul", ImportError("libcublas.so.12: cannot open shared object file: No such file or directory"), "cublas"),
    ],
)
def test_missing_libraries(state: Any, which: str, error: Exception, library: str) -> None:
    found = state(fake_cupy(**{which: error}))
    assert "libraries of the CUDA toolkit" in found.state
    assert library in found.state
    assert "cupy-cuda12x[ctk]" in found.fix


@pytest.mark.parametrize(
    "error", [OutOfMemoryError("Out of memory allocating 512 bytes"), CUDARuntimeError(2, "cudaErrorMemoryAllocation")]
)
def test_out_of_memory(state: Any, error: BaseException) -> None:
    assert "memory of the GPU is full" in state(fake_cupy(kernel=error)).state
    diagnosis.diagnose.cache_clear()
    assert "memory of the GPU is full" in state(fake_cupy(matmul=error)).state


def test_out_of_memory_before_the_first_array(state: Any) -> None:
    assert "memory of the GPU is full" in state(fake_cupy(CUDARuntimeError(2))).state


def test_a_kernel_that_fails(state: Any) -> None:
    found = state(fake_cupy(kernel=CUDARuntimeError(209, "no kernel image is available")))
    assert "no kernel image" in found.state


def test_a_gpu_that_computes_wrongly(state: Any) -> None:
    module = fake_cupy()
    module.__dict__["matmul"] = lambda a, b: a * 3
    assert "computes wrongly" in state(module).state


def test_it_never_raises(state: Any) -> None:
    module = fake_cupy()
    del module.__dict__["cuda"]
    assert "failed with" in state(module).state


def test_this_machine() -> None:
    """The real state: whatever it is, it is a sentence and, unless all is fine, a command."""
    diagnosis.diagnose.cache_clear()
    found = gf.diagnose("cuda")
    assert isinstance(found.usable, bool)
    assert found.state
    assert found.usable or found.fix
    if "cupy" not in sys.modules:
        assert not found.usable
