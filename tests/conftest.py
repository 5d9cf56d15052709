"""Fixtures: `device` is each of the devices of `devices.py`, current during the test."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before NumPy is imported: the workers have the cores already
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from devices import BACKENDS, DEVICES, LIBRARIES, OTHERS, require

import gradflow as gf

collect_ignore = [
    f"backends/{BACKENDS[name][0]}.py" for name, library in LIBRARIES.items() if not importlib.util.find_spec(library)
]
collect_ignore.append("conformance_emulated.py")  # puts an emulated CuPy in the place of the real one when imported


def pytest_configure(config: pytest.Config) -> None:
    """Say what was skipped in a line a reason."""
    config.pluginmanager.import_plugin("gradflow.testing.reasons")


def _current(device: str) -> Iterator[str]:
    require(device)
    with gf.use_device(device):
        yield device


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a device, current during the test."""
    yield from _current(request.param)


@pytest.fixture(params=OTHERS)
def other_device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a device that is not the CPU, current during the test."""
    yield from _current(request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    gf.manual_seed(0)
