"""The device `emulated`: the CuPy backend on the emulated CuPy, and comparing its results. EMULATED: no GPU."""

from __future__ import annotations

from typing import Any

import emulated_cupy
import numpy as np
import pytest
from gradflow_cupy import CupyBackend
from host_kernels import COMPILER, NO_COMPILER

import gradflow as gf
from gradflow.backend import Backend, Diagnosis

needs_compiler = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

REALS = [pytest.param(np.float32, id="float32"), pytest.param(np.float64, id="float64")]


class EmulatedBackend(CupyBackend):
    """The CuPy backend under its own name, so that nothing mistakes it for a GPU."""

    name = "emulated"

    @classmethod
    def diagnose(cls) -> Diagnosis:
        return Diagnosis(True, "EMULATED on the CPU: no GPU")

    @classmethod
    def device_count(cls) -> int:
        return emulated_cupy.State.devices


def numbers(shape: tuple[int, ...], real: Any = np.float32, seed: int = 0) -> Any:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), real)


def on_device(backend: Backend, x: Any) -> Any:
    """An array, or those of a tuple or a list, moved with its layout; anything else as it is."""
    if type(x) in (tuple, list):
        return type(x)(on_device(backend, part) for part in x)
    if not isinstance(x, np.ndarray):
        return x
    if x.ndim == 2 and not x.flags.c_contiguous:
        return backend.matrix_transpose(backend.from_host(x.T))
    return backend.from_host(x)


def losses_of(sizes: list[int], rows: int, optimizer: Any, calls: int, captured: bool) -> list[float]:
    """The losses of so many steps of an MLP on one batch, plain or captured. optimizer: makes it of the parameters."""
    gf.manual_seed(0)
    with gf.use_device("emulated"):
        model = gf.nn.MLP(sizes)
        update = optimizer(model.parameters())
        x, y = gf.random.normal((rows, sizes[0])), gf.tensor(np.arange(rows) % sizes[-1])

        def step(x: Any, y: Any) -> Any:
            update.zero_grad()
            loss = gf.cross_entropy(model(x), y)
            loss.backward()
            update.step()
            return loss

        run = gf.capture(step) if captured else step
        found = [run(x, y).item() for _ in range(calls)]
        assert not captured or run.status == "replaying"
        return found


def agree(backend: Backend, actual: Any, expected: Any, ulp: float = 32) -> None:
    """Equal in structure, shape and dtype, and to `ulp` units in the last place of the largest value."""
    if isinstance(expected, (tuple, list)):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            agree(backend, a, e, ulp)
        return
    if expected is None:
        assert actual is None
        return
    found = backend.to_host(actual)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if found.dtype.kind == "f":
        finite = np.isfinite(expected)
        assert np.array_equal(found[~finite], expected[~finite], equal_nan=True)
        size = np.abs(expected[finite]).max(initial=0)
        assert np.abs(found[finite] - expected[finite]).max(initial=0) <= ulp * np.finfo(found.dtype).eps * size
    else:
        assert np.array_equal(found, expected)
