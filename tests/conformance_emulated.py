"""The device `emulated` for the conformance kit: the CuPy backend on the emulated CuPy, without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import gradflow as gf
from gradflow.backend import discovery

sys.path.insert(0, str(Path(__file__).parent / "cupy_backend"))
discovery.backend_class("cuda")  # makes the package importable from an uninstalled checkout

import emulated_cupy  # noqa: E402
from emulated_device import EmulatedBackend  # noqa: E402

emulated_cupy.install(pytest.MonkeyPatch())  # for the rest of the process
gf.register_backend("emulated", EmulatedBackend)
