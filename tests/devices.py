"""The devices that tests run on: NumPy, `fake`, array-api-strict, PyTorch arrays, CUDA; unavailable ones are skipped.

`fake` hides its values and `strict` refuses implicit conversions. Neither has native kernels, so the composed defaults
run in all tests too.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest

import gradflow as gf
import gradflow.testing
from gradflow.backend import discovery

BACKENDS = {"strict": ("strict", "StrictBackend"), "torch": ("torch_arrays", "TorchBackend")}
"""The backends in `tests/backends/`, which are only for tests: for each device, a module and its class."""
LIBRARIES = {"strict": "array_api_strict", "torch": "torch"}

sys.path.insert(0, str(Path(__file__).parent / "backends"))

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = [*os.environ.get("GRADFLOW_TEST_DEVICES", "cpu").split(","), GPU]
"""The devices that the tests of the core run on. GRADFLOW_TEST_DEVICES=cpu,fake,strict takes about 13 minutes."""
OTHERS = ["fake", "strict", "torch", GPU]
"""The devices that the table of operations runs on, besides the CPU."""


def require_gpu() -> None:
    """Skip the test if CUDA cannot be used; with GRADFLOW_REQUIRE_GPU=1, fail it."""
    diagnosis = gf.diagnose("cuda")
    if not diagnosis.usable:
        if os.environ.get("GRADFLOW_REQUIRE_GPU") == "1":
            pytest.fail(f"GRADFLOW_REQUIRE_GPU=1, but no CUDA device: {diagnosis}", pytrace=False)
        pytest.skip(f"no CUDA device: {diagnosis}")


def require(device: str) -> None:
    """Register the device, or skip the test if it cannot be used."""
    if device == "cuda":
        require_gpu()
    elif device in BACKENDS and device not in discovery._registered:
        pytest.importorskip(LIBRARIES[device], reason=f"{LIBRARIES[device]}, of the device {device}, is not installed")
        module, name = BACKENDS[device]
        gf.register_backend(device, getattr(importlib.import_module(module), name))


def replays(status: str) -> bool:
    """Whether a captured step with this status was replayed, and as a graph if the device has them.

    On the CPU, the status also says what a replay does in Python, in words after a comma.
    """
    return status.split(",")[0] == "replaying"
