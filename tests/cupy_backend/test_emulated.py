"""The whole CuPy backend on an emulated CuPy (`emulated_cupy.py`): never a GPU run.

Its array functions and kernels against NumPy's backend, every operation with both derivatives, and a short training
run. It proves the Python of the backend (names, shapes, arguments, fallbacks, devices) and the formulas of the kernels.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import emulated_cupy
import numpy as np
import pytest
from cases import CASES
from gradflow_cupy import CupyBackend
from gradflow_numpy import NumpyBackend
from host_kernels import COMPILER, NO_COMPILER
from test_operations import differentiate

import gradflow as gf
from gradflow import device as device_module
from gradflow.backend import ACTIVATIONS, ARRAY_FUNCTIONS, KERNELS, Backend, Device, Diagnosis

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

REALS = [pytest.param(np.float32, id="float32"), pytest.param(np.float64, id="float64")]


class EmulatedBackend(CupyBackend):
    """The CuPy backend under a name of its own, so that nothing takes it for a GPU."""

    name = "emulated"

    @classmethod
    def diagnose(cls) -> Diagnosis:
        return Diagnosis(True, "EMULATED on the CPU: no GPU")

    @classmethod
    def device_count(cls) -> int:
        return emulated_cupy.State.devices


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The emulated CuPy, and the device `emulated` on it, until the end of the test."""
    emulated_cupy.install(monkeypatch)
    monkeypatch.setitem(device_module._registered, "emulated", lambda: EmulatedBackend)
    yield sys.modules["cupy"]
    for device in [d for d in device_module._backends if d.type == "emulated"]:
        del device_module._backends[device]


@pytest.fixture
def backend(cupy: Any) -> Backend:
    return gf.get_backend("emulated")


@pytest.fixture
def reference() -> NumpyBackend:
    return NumpyBackend()


def numbers(shape: tuple[int, ...], real: Any = np.float32, seed: int = 0) -> Any:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), real)


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


# ------------------------------------------------------------------ array functions

X, Y = numbers((3, 4)), numbers((3, 4), seed=1)
I, J = np.arange(-6, 6).reshape(3, 4), np.arange(12).reshape(3, 4) % 5
U = np.array([1, 2**63, 2**64 - 1], np.uint64)

CALLS: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "asarray": [((X,), {"copy": True}), ((X.T,), {"copy": True}), ((X,), {"dtype": np.float64})],
    "empty": [], "zeros": [((3, 4),)], "ones": [((3,),)],
    "full": [((), 2**64 - 1, {"dtype": np.uint64}), ((2,), 0.5, {"dtype": np.float32})],
    "arange": [(5, {"dtype": np.int64}), (1, 8, 2, {"dtype": np.float32})],
    "zeros_like": [(X,)], "ones_like": [(I,)],
    "astype": [(X, np.float64), (I, np.float32, {"copy": False}), (X > 0, np.float32)],
    "clip": [(X, -0.5, 0.5), (X, None, 0.5), (X, {"min": 0.0})],
    "pow": [(np.abs(X), 2.0), (2.0, X), (np.abs(X), Y)],
    "where": [(X > 0, X, 0.0), (X > 0, 1.0, Y), (X > 0, X, Y)],
    "sum": [(X,), (X, {"axis": 0}), (X, {"axis": (0, 1), "keepdims": True}), (I.astype(np.int32),), (X[0, 0:1],), (X > 0,)],
    "var": [(X, {"axis": (0,), "correction": 1.0}), (X, {"axis": None, "keepdims": True})],
    "std": [(X, {"axis": (1,), "correction": 0.5, "keepdims": True})],
    "any": [(X > 0, {"axis": None, "keepdims": False}), (I, {"axis": (0, 1)})],
    "all": [(X > 0, {"axis": 0, "keepdims": True})],
    "argmax": [(X, {"axis": None, "keepdims": False}), (X, {"axis": 1, "keepdims": True})],
    "argmin": [(X, {"axis": 0, "keepdims": False})],
    "cumulative_sum": [(X, {"axis": 1}), (I, {"axis": 0})],
    "argsort": [(J, {"axis": 1}), (J, {"axis": 0, "descending": True, "stable": True}), (U, {"axis": -1, "stable": True})],
    "reshape": [(X, (4, 3)), (X, (-1,)), (X, {"shape": (2, 6)})],
    "broadcast_to": [(X[0], (2, 4)), (X[0], {"shape": (2, 4)})], "permute_dims": [(X, (1, 0)), (X, {"axes": (1, 0)})], "matrix_transpose": [(X,)],
    "squeeze": [(X[:, :1], {"axis": (1,)}), (X[:, :1], {"axis": 1})],
    "expand_dims": [(X, {"axis": -1})], "concat": [([X, Y], {"axis": -1})], "stack": [([X, Y], {"axis": -1})],
    "flip": [(X, {"axis": (0, 1)}), (X, {"axis": 0})],
    "take_along_axis": [(X, J[:, :2] % 4, {"axis": 1})],
    "matmul": [(X, Y.T), (X[None], Y.T), (np.ones((0, 3), np.float32), X), (X[:, :0], Y[:0])],
    "log": [(np.abs(X),)], "log1p": [(np.abs(X),)], "sqrt": [(np.abs(X),)],
    "logical_and": [(X > 0, Y > 0)], "logical_or": [(X > 0, Y > 0)], "logical_not": [(X > 0,)],
    "bitwise_and": [(U, U[:1])], "bitwise_xor": [(U, U[:1])],
    "bitwise_left_shift": [(U, U[:1])], "bitwise_right_shift": [(U, U[:1])],
}  # fmt: skip
for _name in ("max", "min", "mean", "prod"):
    CALLS[_name] = [
        (X,),
        (X, {"axis": 0}),
        (X, {"axis": (0, 1), "keepdims": True}),
        (X[0, 0].reshape(()), {"axis": ()}),
    ]
for _name in ("add", "subtract", "multiply", "divide", "maximum", "minimum", "equal", "not_equal", "less", "less_equal",
              "greater", "greater_equal"):  # fmt: skip
    CALLS[_name] = [(X, Y), (X, 0.5), (0.5, X), (X, Y[0])]
for _name in ARRAY_FUNCTIONS:
    CALLS.setdefault(_name, [(X,)])


@pytest.mark.parametrize("name", ARRAY_FUNCTIONS)
def test_array_function(backend: Any, reference: Any, name: str) -> None:
    for call in CALLS[name]:
        options = call[-1] if isinstance(call[-1], dict) else {}
        arguments = [a for a in call if a is not options]
        if name == "asarray":
            arguments, options = list(call[0]), call[1]

        def move(a: Any) -> Any:
            return (
                [move(b) for b in a]
                if isinstance(a, list)
                else backend.from_host(a)
                if isinstance(a, np.ndarray)
                else a
            )

        expected = np.asarray(getattr(reference, name)(*arguments, **options))
        actual = getattr(backend, name)(*[move(a) for a in arguments], **options)
        assert isinstance(actual, emulated_cupy.ndarray)
        agree(backend, actual, expected, 4)


def test_copies_are_in_c_order(backend: Any) -> None:
    x = backend.from_host(numbers((3, 4)))
    for source in (x.T, backend.broadcast_to(x[:1], (3, 4)), x[:, ::2]):
        assert backend.asarray(source, copy=True).flags.c_contiguous


def test_bfloat16_is_there_with_ml_dtypes(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.supports("float16")
    assert not backend.supports("complex64")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert not CupyBackend(0).supports("bfloat16")


# ------------------------------------------------------------------ kernels


def test_which_kernels_are_native(backend: Any) -> None:
    composed = {name for name, how in backend.kernels().items() if how == "composed"}
    assert composed == {"logsumexp", "scatter_add_along_axis"}


def test_kernels_can_be_turned_off(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADFLOW_FUSED", "0")
    plain = EmulatedBackend(0)
    assert set(plain.kernels().values()) == {"composed"}
    out = plain.random_bits(2**127 + 1, 2**64 - 2, 9)
    assert np.array_equal(plain.to_host(out), np.random.Philox(key=2**127 + 1, counter=2**64 - 2).random_raw(9))


def both(backend: Any, reference: Any, name: str, *arguments: Any, ulp: float = 64, **options: Any) -> tuple[Any, Any]:
    """The results of a kernel on the emulated device and, composed, on NumPy; they must agree."""

    def move(a: Any) -> Any:
        if isinstance(a, (tuple, list)):
            return type(a)(move(b) for b in a)
        return backend.from_host(a) if isinstance(a, np.ndarray) else a

    moved, copies = [move(a) for a in arguments], [np.array(a) if isinstance(a, np.ndarray) else a for a in arguments]
    actual = getattr(backend, name)(*moved, **options)
    with np.errstate(all="ignore"):
        expected = getattr(Backend, name)(reference, *copies, **options)
    compared = (actual, expected)
    if name in ("softmax_cross_entropy", "squared_error", "layer_norm", "linear"):
        compared = (actual[0], np.asarray(expected[0]))  # residuals are each backend's own
    if name in ("dropout", "random_bits", "one_hot", "dropout_backward"):
        ulp = 0
    agree(backend, *compared, ulp)
    for array, copy in zip(moved, copies, strict=True):  # what is changed in place too
        if isinstance(copy, np.ndarray):
            agree(backend, array, copy, ulp)
    return actual, expected


LAYOUTS = {
    "2-d": lambda s: numbers((5, 7), s), "3-d": lambda s: numbers((2, 3, 7), s), "1-d": lambda s: numbers((7,), s),
    "no rows": lambda s: numbers((0, 7), s), "transposed": lambda s: numbers((7, 5), s).T,
    "many rows": lambda s: numbers((600, 7), s),
}  # fmt: skip


@pytest.mark.parametrize("real", [*REALS, pytest.param(np.float16, id="float16")])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(backend: Any, reference: Any, name: str, real: Any) -> None:
    for x in (numbers((5, 7), real), numbers((0, 7), real), numbers((), real), numbers((7, 5), real).T):
        both(backend, reference, "activate", x, name, 0.3)
        both(backend, reference, "activate_backward", np.ones_like(x), x, name, 0.3)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("buffers", [True, False])
def test_linear(
    backend: Any, reference: Any, layout: str, real: Any, activation: str | None, with_bias: bool, buffers: bool
) -> None:
    x, weight, bias = LAYOUTS[layout](real), numbers((3, 7), real, 1), numbers((3,), real, 2) if with_bias else None
    move = backend.from_host
    out, residual = both(backend, reference, "linear", x, weight, bias, activation, 0.0)[0]
    g = numbers((*x.shape[:-1], 3), real, 3)
    flat = backend.zeros((24,), dtype=weight.dtype)
    into = [None, backend.reshape(flat[:21], (3, 7)), flat[21:]] if buffers else [None] * 3
    needs = [True, True, with_bias]
    moved = [move(g), out, move(x), move(weight), None if bias is None else move(bias)]
    actual = backend.linear_backward(*moved, activation, 0.0, residual, needs, into)
    value, kept = Backend.linear(reference, x, weight, bias, activation, 0.0)
    expected = Backend.linear_backward(reference, g, value, x, weight, bias, activation, 0.0, kept, needs, [None] * 3)
    agree(backend, list(actual), [None if e is None else np.asarray(e) for e in expected], 128)
    agree(backend, moved[0], g, 0)
    if buffers:
        assert actual[1] is into[1]
        assert actual[2] is (into[2] if with_bias else None)
    again = backend.linear_backward(*moved, activation, 0.0, None, needs, [None] * 3)
    agree(backend, list(again), [None if e is None else np.asarray(e) for e in expected], 128)


@pytest.mark.parametrize("real", REALS)
def test_gemm(backend: Any, reference: Any, real: Any) -> None:
    for a, b in ((numbers((3, 5), real), numbers((5, 4), real)), (numbers((5, 3), real).T, numbers((4, 5), real).T),
                 (numbers((3, 0), real), numbers((0, 4), real))):  # fmt: skip
        for accumulate in (False, True):
            both(backend, reference, "gemm", a, b, numbers((3, 4), real, 9), accumulate)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(backend: Any, reference: Any, real: Any, name: str) -> None:
    for x in (numbers((5, 7), real), numbers((2, 3, 7), real), numbers((7,), real), numbers((7, 5), real).T,
              numbers((0, 7), real)):  # fmt: skip
        for axis in range(-1, x.ndim):
            if x.shape[axis]:
                both(backend, reference, name, x, axis)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["labels", "labels int8", "dense"])
def test_cross_entropy(backend: Any, reference: Any, real: Any, reduction: str, kind: str) -> None:
    logits = numbers((6, 9), real)
    target = np.abs(numbers((6, 9), real, 1)) if kind == "dense" else np.arange(6, dtype="int8" if "8" in kind else "q")
    actual, _ = both(backend, reference, "softmax_cross_entropy", logits, target, reduction)
    g = np.broadcast_to(numbers((), real, 2), (6,)) if reduction == "none" else numbers((), real, 2)
    move = backend.from_host
    for needs in ([True, False], [True, True], [False, True]):
        if needs[1] and kind != "dense":
            continue
        expected = Backend.softmax_cross_entropy_backward(reference, g, logits, target, reduction, None, needs)
        for residual in (actual[1], None):
            found = backend.softmax_cross_entropy_backward(
                move(g), move(logits), move(target), reduction, residual, needs
            )
            agree(backend, found, expected, 64)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_squared_error(backend: Any, reference: Any, real: Any, reduction: str) -> None:
    for x, y in (
        (numbers((6, 9), real), numbers((6, 9), real, 1)),
        (numbers((9, 6), real).T, numbers((6, 9), real, 1)),
    ):
        actual, (_, kept) = both(backend, reference, "squared_error", x, y, reduction)
        g = numbers((6, 9) if reduction == "none" else (), real, 2)
        for needs in ([True, True], [True, False]):
            expected = Backend.squared_error_backward(reference, g, x, y, reduction, kept, needs)
            arguments = backend.from_host(g), backend.from_host(x), backend.from_host(y), reduction
            for residual in (actual[1], None):
                agree(backend, backend.squared_error_backward(*arguments, residual, needs), expected)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(backend: Any, reference: Any, real: Any, affine: bool) -> None:
    for x, axes in ((numbers((5, 7), real), (1,)), (numbers((4, 2, 6), real), (1, 2)), (numbers((600, 3), real), (1,)),
                    (numbers((7, 5), real).T, (1,)), (numbers((6,), real), (0,))):  # fmt: skip
        shape = tuple(x.shape[a] for a in axes)
        weight, bias = (numbers(shape, real, 1), numbers(shape, real, 2)) if affine else (None, None)
        actual, (_, kept) = both(backend, reference, "layer_norm", x, weight, bias, axes, 1e-5)
        g, needs = numbers(x.shape, real, 3), [True, affine, affine]
        expected = Backend.layer_norm_backward(reference, g, x, weight, axes, 1e-5, kept, needs)
        scale = None if weight is None else backend.from_host(weight)
        for residual in (actual[1], None):
            found = backend.layer_norm_backward(
                backend.from_host(g), backend.from_host(x), scale, axes, 1e-5, residual, needs
            )
            agree(backend, found, expected, 256)


@pytest.mark.parametrize("real", [*REALS, pytest.param(np.float16, id="float16")])
def test_dropout(backend: Any, reference: Any, real: Any) -> None:
    for x in (numbers((41, 101), real), numbers((101, 41), real).T, numbers((0, 3), real), numbers((), real)):
        actual, _ = both(backend, reference, "dropout", x, 0.3, 2**90 + 7, 2**128 - 2)
        mask = backend.to_host(actual[1])
        both(backend, reference, "dropout_backward", x, mask, 0.3)


def test_random_numbers_are_those_of_the_cpu(backend: Any) -> None:
    for make in (gf.random.uniform, gf.random.normal):
        gf.manual_seed(7)
        expected = make((1000,)).numpy()
        gf.manual_seed(7)
        assert np.array_equal(make((1000,), device="emulated").numpy(), expected)
    gf.manual_seed(7)
    expected = gf.random.permutation(1000).numpy()
    gf.manual_seed(7)
    assert np.array_equal(gf.random.permutation(1000, device="emulated").numpy(), expected)


def test_one_hot(backend: Any, reference: Any) -> None:
    for labels in (
        np.array([[0, 2], [1, 1]]),
        np.array([1, 0], np.int32),
        np.zeros((0,), np.int64),
        np.array(2, np.uint8),
    ):
        for dtype in (np.float32, np.float64, np.float16, np.int64):
            both(backend, reference, "one_hot", labels, 3, np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "int64"])
def test_scatter_add(backend: Any, reference: Any, dtype: str) -> None:
    rows, columns = np.array([2, 0, 2]), np.array([1, 1, 1])
    mask = np.array([[True, False], [False, True], [True, True], [False, False]])
    for key in (rows, (slice(None), columns), (rows, columns), mask, 1, (slice(1, 3), 0), np.array([[0, 1], [1, 1]])):
        shape = np.zeros((4, 2))[key].shape
        values = np.arange(1, 1 + math.prod(shape)).reshape(shape).astype(dtype)
        both(backend, reference, "scatter_add", values, key, (4, 2))


@pytest.mark.parametrize("real", [*REALS, pytest.param(np.float16, id="float16")])
def test_optimizer_steps(backend: Any, reference: Any, real: Any) -> None:
    def state(*signs: int) -> list[Any]:
        return [
            np.abs(numbers((1001,), real, i)) * 0.1 if s else numbers((1001,), real, i) for i, s in enumerate(signs)
        ]

    ulp = 8.0 if real is np.float16 else 64.0
    for momentum, dampening, nesterov, decay, first in ((0.0, 0.0, False, 0.0, True), (0.9, 0.1, False, 0.01, False),
                                                        (0.9, 0.0, True, 0.01, False), (0.9, 0.1, False, 0.0, True)):  # fmt: skip
        p, g, v = state(0, 0, 0)
        both(backend, reference, "sgd_step", p, g, v if momentum else None, 0.1, momentum, dampening, nesterov, decay,
             first, ulp=ulp)  # fmt: skip
    for decay, decoupled in ((0.0, False), (0.1, False), (0.1, True)):
        for step in (1, 100):
            both(
                backend,
                reference,
                "adam_step",
                *state(0, 0, 0, 1),
                step,
                0.1,
                0.9,
                0.999,
                1e-3,
                decay,
                decoupled,
                ulp=ulp,
            )
    for centred in (False, True):
        for momentum in (0.0, 0.9):
            p, g, s, m, v = state(0, 0, 1, 1, 0)
            m *= 0.1
            s += 1
            both(backend, reference, "rmsprop_step", p, g, s, m if centred else None, v if momentum else None, 0.1, 0.9,
                 1e-3, 0.01, momentum, ulp=ulp)  # fmt: skip


@pytest.mark.parametrize("real", [*REALS, pytest.param(np.float16, id="float16")])
def test_clip_global_norm(backend: Any, reference: Any, real: Any) -> None:
    for max_norm in (0.5, 1e4):
        host = [numbers((100,), real), numbers((3, 5), real, 1), numbers((0,), real)]
        arrays = [backend.from_host(x) for x in host]
        before = emulated_cupy.State.transfers, emulated_cupy.State.synchronizations
        norm = backend.clip_global_norm(arrays, max_norm)
        assert (emulated_cupy.State.transfers, emulated_cupy.State.synchronizations) == before
        agree(backend, norm, np.asarray(Backend.clip_global_norm(reference, host, max_norm)), 64)
        agree(backend, arrays, host, 64)


# ------------------------------------------------------------------ services


def test_services(backend: Any) -> None:
    assert "EMULATED" in backend.describe()
    assert backend.memory_stats() == (1000, None, 4096)  # nothing counted yet
    backend.empty((1000,), dtype=backend.dtypes["float32"])
    assert backend.memory_stats() == (1000, 5000, 4096)
    with backend.stream() as stream:
        assert stream.waited_for
    first, last = backend.event(), backend.event()
    with pytest.raises(RuntimeError, match="recorded"):
        last.seconds_since(first)
    first.record()
    last.record()
    assert last.seconds_since(first) >= 0
    source = numbers((3, 4))
    array = backend.from_host(source)
    source[:] = 0
    assert backend.to_host(array).any()
    backend.synchronize()


@pytest.mark.parametrize("name", [*ARRAY_FUNCTIONS, *KERNELS])
def test_everything_runs_on_its_own_device(cupy: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With two devices, each function is wrapped, and its arrays are made on the backend's device."""
    monkeypatch.setattr(emulated_cupy.State, "devices", 2)
    second = EmulatedBackend(1)
    assert second.kernels() == {
        k: ("composed" if k in ("logsumexp", "scatter_add_along_axis") else "native") for k in KERNELS
    }
    array = second.ones((2, 2), dtype=np.float32)
    assert array._device == 1
    assert emulated_cupy.State.device == 0
    function = getattr(second, name)
    assert "on_device" in getattr(function, "__func__", function).__code__.co_name
    if name == "multiply":
        assert function(array, array)._device == 1
        with pytest.raises(AssertionError, match="device"):
            cupy.multiply(array, array)
        assert second.linear(array, array, None, "gelu", 0.0)[0]._device == 1


# ------------------------------------------------------------------ operations and training


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_operation(backend: Any, case: Any, dtype: str) -> None:
    """Value, first and second derivative of every case: as on the CPU."""
    with np.errstate(all="ignore"):
        expected = differentiate(case, "cpu", dtype)
    gf.manual_seed(0)
    found = differentiate(case, "emulated", dtype)
    for kind in ("values", "first", "second"):
        for a, e in zip(getattr(found, kind), getattr(expected, kind), strict=True):
            assert np.shape(a) == np.shape(e)
            assert np.asarray(a).dtype == np.asarray(e).dtype
            eps = np.finfo(dtype).eps
            assert np.allclose(a, e, rtol=512 * eps, atol=512 * eps * np.abs(e).max(initial=1), equal_nan=True), kind


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_training(backend: Any, optimizer: str) -> None:
    """Ten steps of a network with dropout and normalisation: the CPU's losses, and nothing goes through the host."""

    def train(device: str) -> tuple[list[Any], list[int]]:
        gf.manual_seed(3)
        with gf.use_device(device):
            model = gf.nn.Sequential(
                gf.nn.Linear(20, 32, activation="gelu"), gf.nn.LayerNorm(32), gf.nn.Dropout(0.2),
                gf.nn.Linear(32, 16, activation="relu"), gf.nn.Linear(16, 4),
            )  # fmt: skip
            step = getattr(gf.optim, optimizer)(model.parameters(), lr=0.001 if optimizer == "RMSprop" else 0.01)
            x, y = gf.random.normal((64, 20)), gf.tensor(np.arange(64) % 4)
            losses, transfers = [], []
            for _ in range(10):
                before = emulated_cupy.State.transfers + emulated_cupy.State.synchronizations
                loss = gf.cross_entropy(model(x), y)
                step.zero_grad()
                loss.backward()
                gf.optim.clip_grad_norm_(model.parameters(), 1.0)
                step.step()
                transfers.append(emulated_cupy.State.transfers + emulated_cupy.State.synchronizations - before)
                losses.append(loss.detach())
            return [loss.item() for loss in losses], transfers

    expected, _ = train("cpu")
    found, transfers = train("emulated")
    assert transfers == [0] * 10
    assert found == pytest.approx(expected, rel=1e-4)
    assert found[-1] < found[0]
    assert gf.get_backend("emulated").device == Device("emulated", 0)


def test_the_stand_in_keeps_to_itself() -> None:
    for name in ("cupy", "cupyx"):
        module = sys.modules.get(name)
        assert module is None or "EMULATED" not in getattr(module, "__version__", "")
    assert "emulated" not in {d.type for d in device_module._backends}
