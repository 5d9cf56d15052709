"""The devices that tests run on: NumPy, `fake`, array-api-strict, PyTorch arrays, and CUDA; an absent one is a skip.

`fake` hides its values, `strict` refuses implicit conversions, and neither has kernels of its own: so the composed
defaults run through everything, too.
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
"""The backends that are for tests alone, in `backends/`: for each device, a module and its class."""
LIBRARIES = {"strict": "array_api_strict", "torch": "torch"}

sys.path.insert(0, str(Path(__file__).parent / "backends"))

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
DEVICES = [*os.environ.get("GRADFLOW_TEST_DEVICES", "cpu").split(","), GPU]
"""Where the tests of the core run; GRADFLOW_TEST_DEVICES=cpu,fake,strict for all of them, in about 13 minutes."""
OTHERS = ["fake", "strict", "torch", GPU]
"""Where the table of operations runs, besides the CPU."""


def require_gpu() -> None:
    """Skip the test where CUDA cannot be used; with GRADFLOW_REQUIRE_GPU=1, fail it."""
    diagnosis = gf.diagnose("cuda")
    if not diagnosis.usable:
        if os.environ.get("GRADFLOW_REQUIRE_GPU") == "1":
            pytest.fail(f"GRADFLOW_REQUIRE_GPU=1, but no CUDA device: {diagnosis}", pytrace=False)
        pytest.skip(f"no CUDA device: {diagnosis}")


def require(device: str) -> None:
    """Make the device known, or skip the test where it cannot be used."""
    if device == "cuda":
        require_gpu()
    elif device in BACKENDS and device not in discovery._registered:
        pytest.importorskip(LIBRARIES[device], reason=f"{LIBRARIES[device]}, of the device {device}, is not installed")
        module, name = BACKENDS[device]
        gf.register_backend(device, getattr(importlib.import_module(module), name))
