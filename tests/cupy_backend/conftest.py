"""The device `emulated` for tests; and the packages of the backends, importable also from an uninstalled checkout."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

import gradflow as gf
from gradflow.backend import Backend, discovery
from gradflow.backend import registry as device_module

discovery.backend_class("cpu")
discovery.backend_class("cuda")


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The emulated CuPy, and the device `emulated` on it, until the end of the test."""
    import emulated_cupy
    from emulated_device import EmulatedBackend

    emulated_cupy.install(monkeypatch)
    monkeypatch.setitem(discovery._registered, "emulated", EmulatedBackend)
    yield sys.modules["cupy"]
    for device in [d for d in device_module._backends if d.type == "emulated"]:
        del device_module._backends[device]


@pytest.fixture
def backend(cupy: Any) -> Backend:
    """The backend of the device `emulated`."""
    return gf.get_backend("emulated")


@pytest.fixture
def reference() -> Backend:
    """NumPy's backend."""
    return gf.get_backend("cpu")
