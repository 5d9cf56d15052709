"""Activations as native kernels: against NumPy's, on special values, any shape, any range of items, and every width."""

from __future__ import annotations

import ctypes
import math
from threading import get_ident
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from emitting import TARGETS
from gradflow_numpy import NumpyBackend
from gradflow_numpy.native import activations, kernels, llvm
from gradflow_numpy.native.activations import ActivationKernels

from gradflow.backend import ACTIVATIONS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),  # of infinities and NaN
    pytest.mark.skipif(not kernels.is_supported(), reason="this processor has no kernels"),
]
EXACT = ("relu", "leaky_relu", "hardtanh", "softsign")
"""The activations that only use operations that IEEE 754 rounds exactly."""
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-40, -1e-40, 1e30, -1e30, 88.0, -88.0, 104.0, -104.0, 709.0]

native, numpy = ActivationKernels(), NumpyBackend()
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
names = pytest.mark.parametrize("name", ACTIVATIONS)


def normal(shape: Any, dtype: str, seed: int = 0) -> Any:
    return (3 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def both(backend: NumpyBackend, name: str, g: Any, x: Any) -> tuple[Any, Any]:
    """The activation and its VJP."""
    p = ACTIVATIONS[name].parameter
    out = backend.activate(x, name, p)
    return out, backend.activate_backward(g, out if ACTIVATIONS[name].saves == "out" else x, name, p)


def launches(call: Any, *arguments: Any) -> int:
    """How many kernels a call launches."""
    seen: list[Any] = []
    kernels.recorders[get_ident()] = seen.append
    try:
        call(*arguments)
    finally:
        del kernels.recorders[get_ident()]
    return len(seen)


@dtypes
@names
def test_an_activation_and_its_vjp_are_those_of_float64_up_to_rounding(name: str, dtype: str) -> None:
    x, g = normal((400, 7), dtype), normal((400, 7), dtype, 1)
    out, slope = both(native, name, g, x)
    exact, exact_slope = both(numpy, name, g.astype("float64"), x.astype("float64"))
    eps = np.finfo(dtype).eps
    assert out.dtype == slope.dtype == dtype
    assert np.all(np.abs(out - exact) <= 8 * eps * (np.abs(exact) + np.abs(x)))
    assert np.all(np.abs(slope - exact_slope) <= 16 * eps * np.abs(g) * (1 + np.abs(x)))


@dtypes
@names
def test_activations_of_special_values_are_finite_or_not_as_in_numpy(name: str, dtype: str) -> None:
    x = np.array(SPECIAL, dtype)
    g = np.array([1.0, -2.0] * 8, dtype)
    for found, expected in zip(both(native, name, g, x), both(numpy, name, g, x), strict=True):
        assert np.array_equal(np.isnan(found), np.isnan(expected))
        assert np.array_equal(np.isinf(found), np.isinf(expected))
        finite = np.isfinite(expected)
        limit = np.maximum(1, np.abs(expected)) * np.maximum(1, np.fmin(np.abs(x), 1000))
        assert np.all(np.abs(found - expected)[finite] <= 16 * np.finfo(dtype).eps * limit[finite])


@dtypes
@pytest.mark.parametrize("name", EXACT)
def test_activations_of_exact_operations_are_equal_to_numpys(name: str, dtype: str) -> None:
    x, g = normal(1001, dtype), normal(1001, dtype, 1)
    x[::7], g[::5], g[1::5] = 0, np.nan, -np.inf
    for found, expected in zip(both(native, name, g, x), both(numpy, name, g, x), strict=True):
        assert np.array_equal(found, expected, equal_nan=True)


@dtypes
@pytest.mark.parametrize("name", ["relu", "elu", "hardtanh"])
def test_the_gradient_passes_where_what_was_saved_is_nan(name: str, dtype: str) -> None:
    g, saved = np.array([3, -2, np.inf], dtype), np.full(3, np.nan, dtype)
    assert np.array_equal(native.activate_backward(g, saved, name, 1.0), g)


@dtypes
def test_erf_is_within_four_units_in_the_last_place(dtype: str) -> None:
    x = np.concatenate([np.linspace(-7, 7, 20001), 10 ** np.linspace(-30, 0, 2000)]).astype(dtype)
    exact = np.array([math.erf(v) for v in x.tolist()])
    unit = np.spacing(np.abs(exact.astype(dtype))).astype("float64")
    assert np.all(np.abs(native.erf(x) - exact) <= (4 if dtype == "float32" else 5) * unit)  # math.erf has its own
    edges = native.erf(np.array([np.inf, -np.inf, np.nan, -0.0], dtype))
    assert np.array_equal(edges, np.array([1, -1, np.nan, 0], dtype), equal_nan=True)


@names
def test_every_activation_is_one_kernel_forward_and_one_backward(name: str) -> None:
    x = normal((3, 4), "float32")
    p = ACTIVATIONS[name].parameter
    assert launches(native.activate, x, name, p) == 1
    assert launches(native.activate_backward, x, x, name, p) == 1


@pytest.mark.parametrize("name", ["gelu_exact", "silu", "mish", "relu"])  # whose formulas use other kernels
def test_what_does_not_fit_launches_no_kernel_at_all(name: str) -> None:
    whole, half = normal((4, 6), "float32"), normal((4, 6), "float16")
    for x in (whole.T, whole[:, ::2], half, np.broadcast_to(whole[0, :1], (4, 6))):
        assert launches(native.activate, x, name, 0.0) == 0
        assert launches(native.activate_backward, x, x, name, 0.0) == 0
        assert np.array_equal(native.activate(x, name, 0.0), numpy.activate(x, name, 0.0))
    assert launches(native.activate_backward, whole, whole.astype("float64"), name, 0.0) == 0


@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (0, 3), (3, 0), (1, 1), (33, 1), (2, 3, 5), (7, 16), (1, 129)])
def test_an_activation_takes_any_shape(shape: tuple[int, ...]) -> None:
    x = np.array(normal(shape, "float32"))
    g = np.array(normal(shape, "float32", 1))
    for found, expected in zip(both(native, "leaky_relu", g, x), both(numpy, "leaky_relu", g, x), strict=True):
        assert found.shape == shape
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@dtypes
@pytest.mark.parametrize("name", ["gelu", "mish", "softplus"])
def test_the_bits_depend_neither_on_the_ranges_of_items_nor_on_the_width(name: str, dtype: str, target: Any) -> None:
    x, p = normal((29, 11), dtype), ACTIVATIONS[name].parameter
    expected = native.activate(x, name, p)
    kernel = activations._kernels(name)[0]
    library = llvm.Library(llvm.object_code(kernels.module_text(kernel.group, dtype, target)))
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(library.address(f"kernel_{kernel.name}"))
    out = np.zeros_like(x)
    words = kernels.Launch(kernel, x.dtype, 29, 1.0, (x, p, out, 11)).words()
    for start, stop in ((20, 29), (0, 1), (1, 4), (4, 4), (4, 20)):
        before = out.copy()
        function(words.ctypes.data, start, stop, 0)
        assert np.array_equal(out[:start], before[:start])
        assert np.array_equal(out[stop:], before[stop:])
    assert out.tobytes() == expected.tobytes()
