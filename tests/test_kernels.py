"""What the conformance kit does not check about kernels: which are native, and whether the composed defaults are right.

The kit (`gradflow/testing/conformance`) compares every kernel with its composed default on NumPy. Here those defaults
are compared with plain NumPy, and the results of `kernels()` with the native kernels.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradflow_numpy import FastNumpyBackend, NumpyBackend

import gradflow as gf
from gradflow.backend import KERNELS, Backend, RMSpropOptions, RMSpropScalars
from gradflow.testing.conformance.harness import REFERENCE, cast
from gradflow.testing.conformance.kernel_cases import CASES
from gradflow.testing.conformance.kernel_cases.gather import take_rows_values
from gradflow.testing.conformance.kernel_cases.layer_norm import norm_parts
from gradflow.testing.conformance.kernel_cases.scatter import along
from gradflow.testing.conformance.kernel_cases.softmax import softmax_parts

ROOT = Path(__file__).resolve().parent.parent
NUMPY_NATIVE = {
    "activate", "activate_backward", "softmax", "gemm", "linear", "linear_backward", "one_hot",
    "softmax_cross_entropy", "softmax_cross_entropy_backward", "squared_error", "random_bits", "dropout",
    "dropout_backward", "erf", "scatter_add", "sgd_step", "adam_step", "rmsprop_step", "clip_global_norm",
    "moment_step", "squared_error_backward", "batch_norm", "batch_norm_backward",
}  # fmt: skip
NATIVE = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
"""The devices whose backends have kernels of their own."""


def test_a_composed_default_uses_no_native_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference of a case is really composed, so that no native kernel is compared with itself."""
    native = type(gf.get_backend("cpu"))

    def refuse(*_: Any) -> Any:
        raise AssertionError("a native kernel was called")

    for name in NUMPY_NATIVE:
        monkeypatch.setattr(native, name, refuse)
    for case in CASES:
        with np.errstate(all="ignore"):
            case.run(REFERENCE, cast(case.arguments, "float32"))


def layer_norm_value(x: Any, weight: Any, bias: Any, axes: Any, epsilon: float) -> Any:
    value = norm_parts(0.0, x, axes, epsilon)[0]
    return (value if weight is None else value * weight) + (0.0 if bias is None else bias)


def layer_norm_slopes(g: Any, x: Any, weight: Any, axes: Any, epsilon: float, needs: Any, keep: bool) -> Sequence[Any]:
    leading = tuple(range(x.ndim - len(axes)))
    gx, h = np.zeros(x.shape), 1e-5
    for i in np.ndindex(*(x.shape if x.size < 100 else (0,))):  # central differences
        step = np.zeros(x.shape)
        step[i] = h
        up, down = (layer_norm_value(x + sign * step, weight, None, axes, epsilon) for sign in (1, -1))
        gx[i] = (g * (up - down)).sum() / (2 * h)
    found = (gx if x.size < 100 else None, (g * norm_parts(0.0, x, axes, epsilon)[0]).sum(axis=leading),
             g.sum(axis=leading))  # fmt: skip
    return [part if need else None for part, need in zip(found, needs, strict=True)]


def moved(running: Any, mean: Any, variance: Any, momentum: float | None) -> Sequence[Any]:
    means, variances, count = running
    count = None if count is None else count + 1
    rate = momentum if momentum is not None else 1 / count
    return [means + rate * (mean - means), variances + rate * (variance - variances), count]


def scattered(values: Any, key: Any, shape: tuple[int, ...], into: Any = None) -> Sequence[Any]:
    out = np.zeros(shape) if into is None else into.copy()
    np.add.at(out, key, values)
    return [out]


def rmsprop_values(
    p: Any, g: Any, square: Any, mean: Any, velocity: Any, options: RMSpropOptions, scalars: RMSpropScalars
) -> Sequence[Any]:  # fmt: skip
    alpha, epsilon, decay, momentum = options
    g = g + decay * p
    square = alpha * square + (1 - alpha) * g**2
    mean = None if mean is None else alpha * mean + (1 - alpha) * g
    update = g / (np.sqrt(square if mean is None else np.maximum(square - mean**2, 0)) + epsilon)
    velocity = None if velocity is None else momentum * velocity + update
    return [p - scalars.lr * (update if velocity is None else velocity), square, mean, velocity]


def new_scale(scale: Any, growth: Any, found: Any, growth_factor: float, backoff_factor: float, interval: int) -> Any:
    if found:
        return [scale * backoff_factor, 0]
    return [scale * growth_factor, 0] if growth + 1 == interval else [scale, growth + 1]


def put_values(x: Any, key: Any, values: Any) -> Sequence[Any]:
    out = x.copy()
    out[key] = values
    return [out]


FORMULAS: dict[str, Callable[..., Sequence[Any]]] = {
    "erf": lambda x: [np.vectorize(math.erf, otypes=["f8"])(x)],
    "log_softmax": lambda x, axis: [softmax_parts(x, axis)[0] - softmax_parts(x, axis)[1]],
    "logsumexp": lambda x, axis, keepdims: [np.log(np.exp(x).sum(axis=axis, keepdims=keepdims))],
    "layer_norm": lambda *arguments: [layer_norm_value(*arguments)],
    "layer_norm_backward": layer_norm_slopes,
    "normalize_columns": lambda x, mean, variance, weight, bias: [
        (x - mean) / np.sqrt(variance + 1e-5) * (1.0 if weight is None else weight) + (0.0 if bias is None else bias)
    ],
    "move_statistics": lambda *arguments: [new for new in moved(*arguments) if new is not None],
    "squared_error_backward": lambda g, x, target, reduction, needs, keep: [
        sign * 2 * g * (x - target) / (x.size if reduction == "mean" else 1) if need else None
        for sign, need in zip((1, -1), needs, strict=True)
    ],
    "take_rows": take_rows_values,
    "one_hot": lambda labels, classes, dtype: [np.eye(classes, dtype=dtype)[labels]],
    "put": put_values,
    "scatter_add": scattered,
    "scatter_add_along_axis": lambda values, i, shape, axis: scattered(values, along(i, axis), shape),
    "rmsprop_step": rmsprop_values,
    "unscale": lambda g, scale, found: [g / scale, int(not np.isfinite(g).all())],
    "update_scale": new_scale,
    "count_step": lambda count, skip: [count + (skip == 0)],
}  # fmt: skip
"""In plain NumPy, kernels that NumPy's backend leaves composed, and those whose indices a narrow dtype may spoil."""


def test_what_numpy_leaves_composed_has_a_formula() -> None:
    assert set(FORMULAS) >= set(KERNELS) - NUMPY_NATIVE


@pytest.mark.parametrize("kernel", FORMULAS)
def test_a_composed_default_is_the_formula(kernel: str) -> None:
    for case in [case for case in CASES if case.subject == kernel and not case.special]:
        with np.errstate(all="ignore"):
            expected = FORMULAS[kernel](*cast(case.arguments, "float64"))
        found = case.run(REFERENCE, cast(case.arguments, "float64"))
        for i, (x, y) in enumerate(zip(found, expected, strict=True)):
            if y is not None:
                np.testing.assert_allclose(x, y, rtol=1e-9, atol=2e-7 if "norm_backward" in kernel else 1e-12,
                                           err_msg=f"{case}, result {i}")  # fmt: skip


# ---------------------------------------------------------------------- native or composed


@NATIVE
def test_kernels_tells_native_from_composed(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADFLOW_FUSED", raising=False)
    cls: Any = type(gf.get_backend(device))
    found = cls().kernels()
    assert list(found) == KERNELS
    assert set(found.values()) - {"composed"}
    for name, kind in found.items():
        assert (kind == "composed") == (getattr(cls, name) is getattr(Backend, name)), name


@pytest.mark.parametrize(
    ("cls", "native"), [(NumpyBackend, NUMPY_NATIVE), (FastNumpyBackend, NUMPY_NATIVE | {"log_softmax"})]
)
def test_the_native_kernels_of_numpy(cls: Any, native: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("1", ""):
        monkeypatch.setenv("GRADFLOW_FUSED", value)
        assert {name for name, kind in cls().kernels().items() if kind != "composed"} == native
    monkeypatch.delenv("GRADFLOW_FUSED")
    assert {name for name, kind in cls().kernels().items() if kind != "composed"} == native
    monkeypatch.setenv("GRADFLOW_FUSED", "0")
    assert cls().kernels() == dict.fromkeys(KERNELS, "composed")


@pytest.mark.parametrize("how", ["method", "staticmethod"])
def test_a_kernel_of_a_third_party_counts_as_native(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADFLOW_FUSED", raising=False)

    def softmax(*arguments: Any) -> Any:
        return np.full(arguments[-2].shape, 7.0)

    method: Any = softmax if how == "method" else staticmethod(softmax)
    cls: Any = type("Third", (NumpyBackend,), {"name": "third", "softmax": method, "linear": Backend.linear})
    backend = cls()
    found = backend.kernels()
    assert found["softmax"] == "native"
    assert {name for name, kind in found.items() if kind != "composed"} == NUMPY_NATIVE - {"linear"}
    x = np.zeros((1, 2))
    assert backend.softmax(x, 1).tolist() == [[7.0, 7.0]]
    monkeypatch.setenv("GRADFLOW_FUSED", "0")
    assert cls().kernels() == dict.fromkeys(KERNELS, "composed")
    assert cls().softmax(x, 1).tolist() == [[0.5, 0.5]]


TRAINING = """
import json, sys
import gradflow as gf
from gradflow.testing.conformance.training_run import train

device, dtype = sys.argv[1:]
losses, _ = train(device, dtype, lambda parameters: gf.optim.Adam(parameters, lr=0.01), steps=30)
print(json.dumps([gf.get_backend(device).kernels(), losses]))
"""


@NATIVE
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 1e-4)])
def test_a_run_without_native_kernels_has_the_losses_of_one_with_them(device: str, dtype: str, rtol: float) -> None:
    found = {}
    for fused in ("0", "1"):
        environment = {**os.environ, "GRADFLOW_FUSED": fused, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", TRAINING, device, dtype]
        out = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        found[fused] = json.loads(out.stdout)
    kernels, losses = found["0"]
    assert kernels == dict.fromkeys(KERNELS, "composed")
    assert set(found["1"][0].values()) - {"composed"}
    assert losses[-1] < 0.9 * losses[0]
    np.testing.assert_allclose(losses, found["1"][1], rtol=rtol, atol=0)
