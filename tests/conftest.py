"""Devices for tests: `device` is cpu, and cuda where there is one (else skipped, with the diagnosis as the reason)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import gradflow as gf

DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]


def require_gpu() -> None:
    """Skip the test where CUDA cannot be used; with GRADFLOW_REQUIRE_GPU=1, fail it."""
    diagnosis = gf.diagnose("cuda")
    if not diagnosis.usable:
        if os.environ.get("GRADFLOW_REQUIRE_GPU") == "1":
            pytest.fail(f"GRADFLOW_REQUIRE_GPU=1, but no CUDA device: {diagnosis}", pytrace=False)
        pytest.skip(f"no CUDA device: {diagnosis}")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a device, current during the test."""
    if request.param == "cuda":
        require_gpu()
    with gf.use_device(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    gf.manual_seed(0)
