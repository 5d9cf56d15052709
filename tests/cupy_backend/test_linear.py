"""Linear layers and products of the CUDA backend, through the stand-in for cuBLASLt. EMULATED: no GPU."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cublaslt_stand_in import stand_in
from emulated_device import EmulatedBackend, needs_compiler, numbers
from gradflow_cupy import cublaslt, cublaslt_library, linear

import gradflow as gf
from gradflow.backend import ACTIVATIONS

pytestmark = needs_compiler

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The products, by their epilogues, and the kernels of layers, in the order in which they are queued."""
    seen: list[str] = []
    names = {number: name for name, number in vars(cublaslt_library).items() if name.startswith("CUBLASLT_EPILOGUE_")}
    call, launch = cublaslt.call, linear.launch

    def counted(lt: Any, plan: Any, *arguments: Any) -> int:
        if len(arguments) > 7:  # a trial with NaN
            return call(lt, plan, *arguments)
        seen.append(names[plan.kind.epilogue].removeprefix("CUBLASLT_EPILOGUE_"))
        return call(lt, plan, *arguments)

    def launched(name: str, *arguments: Any) -> None:
        seen.append(name)
        launch(name, *arguments)

    monkeypatch.setattr(cublaslt, "call", counted)
    monkeypatch.setattr("gradflow_cupy.linear.launch", launched)
    monkeypatch.setattr("gradflow_cupy.network.launch", launched)
    return seen


def rounded(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    """Random numbers, rounded to a dtype, as float64."""
    return numbers(shape, seed=seed).astype(TYPES[dtype]).astype(np.float64)


def step(backend: Any, move: Callable[[Any], Any], dtype: str, rows: int, sizes: Any, activation: str) -> list[Any]:
    """What two layers give and all of their gradients, in the order in which a step computes them."""
    x = move(rounded((rows, sizes[0]), dtype, 0))
    weights = [move(rounded((m, n), dtype, m + n) / 4) for n, m in itertools.pairwise(sizes)]
    biases = [move(rounded((m,), dtype, m)) for m in sizes[1:]]
    into = [[None, *(move(np.full(p.shape, np.nan)) for p in layer)] for layer in zip(weights, biases, strict=True)]
    hidden, kept = backend.linear(x, weights[0], biases[0], activation, 0.0)
    out, _ = backend.linear(hidden, weights[1], biases[1], None, 0.0)
    g = move(rounded((rows, sizes[2]), dtype, 7))
    needs = True, True, True
    last = backend.linear_backward(g, out, hidden, weights[1], biases[1], None, 0.0, None, needs, into[1])
    first = backend.linear_backward(
        last[0], hidden, x, weights[0], biases[0], activation, 0.0, kept, needs, into[0]
    )  # fmt: skip
    for found, buffers in ((last, into[1]), (first, into[0])):
        assert (found[1] is buffers[1], found[2] is buffers[2]) == (True, True), "gradients lie in their buffers"
    return [hidden, out, *last, *first]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
@pytest.mark.parametrize(("rows", "sizes"), [(5, (7, 16, 10)), (1, (3, 8, 1)), (300, (4, 1, 10))], ids=str)
def test_a_step_of_two_layers(
    backend: Any, reference: Any, launches: list[str], dtype: str, activation: str, rows: int, sizes: Any
) -> None:
    """Equals NumPy's step in float64; each product is one launch, with bias and activation where that is possible."""
    found = step(backend, lambda v: backend.from_host(v.astype(TYPES[dtype])), dtype, rows, sizes, activation)
    half = dtype != "float32"
    gelu = half and sizes[1] % 8 == 0
    ends = {"relu": ["RELU_BIAS"], "gelu": ["GELU_AUX_BIAS"] if gelu else ["BIAS", "activate"]}
    backward = ["bias_backward", "DEFAULT", "DEFAULT"]
    assert launches == [*ends.get(activation, ["BIAS", "activate"]), "BIAS", *backward, *backward]
    expected = step(reference, lambda v: v, dtype, rows, sizes, activation)
    unit = float(ml_dtypes.finfo(TYPES[dtype]).eps)
    for i, (a, e) in enumerate(zip(found, expected, strict=True)):
        assert a.dtype == TYPES[dtype]
        bound = 8 * np.sqrt(rows) * unit * max(np.abs(e).max(), 1.0)
        assert np.abs(backend.to_host(a).astype(np.float64) - e).max() <= bound, i


@pytest.mark.slow
def test_other_kinds_of_layers(backend: Any, reference: Any, launches: list[str]) -> None:
    """Without a bias, of vectors and stacks of them, of strided and empty inputs: what the composed default gives."""
    for shape, name, has_bias in itertools.product(
        [(4,), (5, 4), (2, 3, 4), (0, 4), (5, 0)], [None, *ACTIVATIONS], [True, False]
    ):
        x, w, b = numbers(shape), numbers((3, shape[-1]), seed=1), numbers((3,), seed=2) if has_bias else None
        g = numbers((*shape[:-1], 3), seed=3)
        given = [None if v is None else backend.from_host(v) for v in (x, w, b, g)]
        out, kept = backend.linear(*given[:3], name, 0.1)
        expected, kept_too = reference.linear(x, w, b, name, 0.1)
        assert np.allclose(backend.to_host(out), expected, rtol=1e-5, atol=1e-5)
        needs, into = (True, True, has_bias), (None, None, None)
        for residual, its in ((kept, kept_too), (None, None)):
            found = backend.linear_backward(given[3], out, *given[:3], name, 0.1, residual, needs, into)
            wanted = reference.linear_backward(g, expected, x, w, b, name, 0.1, its, needs, into)
            for a, e in zip(found, wanted, strict=True):
                assert (a is None) == (e is None)
                assert a is None or np.allclose(backend.to_host(a), e, rtol=1e-5, atol=1e-5), (shape, name)


def test_buffers_of_any_layout(backend: Any, reference: Any) -> None:
    """A gradient is written to its buffer also if that is strided, or of float32 for operands in half floats."""
    x, w, b, g = numbers((5, 4)), numbers((3, 4), seed=1), numbers((3,), seed=2), numbers((5, 3), seed=3)
    wanted = reference.linear_backward(g, g, x, w, b, "relu", 0.0, None, (True,) * 3, (None,) * 3)
    for dtype, tolerance in (("float32", 1e-5), ("float16", 0.05)):
        half = [backend.from_host(v.astype(dtype)) for v in (g, x, w, b)]
        single = backend.dtypes["float32"]
        wide = (
            backend.zeros((5, 8), dtype=single),
            backend.zeros((3, 8), dtype=single),
            backend.zeros((6,), dtype=single),
        )
        into = wide[0][:, ::2], wide[1][:, 4:], wide[2][::2]
        found = backend.linear_backward(half[0], half[0], *half[1:], "relu", 0.0, None, (True,) * 3, into)
        for a, buffer, e in zip(found, into, wanted, strict=True):
            assert a is buffer
            assert np.allclose(backend.to_host(a), e, atol=tolerance)
        assert not backend.to_host(wide[0])[:, 1::2].any()
        assert not backend.to_host(wide[1])[:, :4].any()


def test_gemm(backend: Any, launches: list[str]) -> None:
    """Adds in the launch of the product; half floats are added to float32 without being rounded."""
    a, b, c = numbers((3, 4)), numbers((4, 5), seed=1), numbers((3, 5), seed=2)
    for accumulate, dtype in itertools.product((False, True), TYPES):
        x, y = (backend.from_host(v.astype(TYPES[dtype])) for v in (a, b))
        out = backend.from_host(c)
        assert backend.gemm(x, y, out, accumulate) is out
        expected = a.astype(TYPES[dtype]).astype(float) @ b.astype(TYPES[dtype]).astype(float) + c * accumulate
        assert np.allclose(backend.to_host(out), expected, atol=1e-5)
    assert launches == ["DEFAULT"] * 6
    empty = backend.from_host(c)
    backend.gemm(backend.zeros((3, 0), dtype=np.float32), backend.zeros((0, 5), dtype=np.float32), empty, True)
    assert np.array_equal(backend.to_host(empty), c)
    backend.gemm(backend.zeros((3, 0), dtype=np.float32), backend.zeros((0, 5), dtype=np.float32), empty)
    assert not backend.to_host(empty).any()


@pytest.mark.parametrize("dtype", ["float64", *TYPES])
@pytest.mark.parametrize("refused", ["epilogues", "everything", "the library"])
def test_without_an_algorithm(
    cupy: Any,
    monkeypatch: pytest.MonkeyPatch,
    reference: Any,
    caplog: pytest.LogCaptureFixture,
    refused: str,
    dtype: str,
) -> None:
    """CuPy's product and kernels give the same, whatever cuBLASLt refuses."""
    if refused == "the library":
        monkeypatch.setattr(cublaslt, "find", lambda: "/nowhere/libcublasLt.so.13")
    backend: Any = EmulatedBackend(0)
    real = np.float64 if dtype == "float64" else TYPES[dtype]
    x, w, b, g = (numbers(s, seed=i).astype(real) for i, s in enumerate([(1, 4), (8, 4), (8,), (1, 8)]))
    with stand_in(refuses_vectors=refused == "epilogues", status=15 * (refused == "everything")):
        for name in (None, "relu", "gelu", "tanh"):
            given = [backend.from_host(v) for v in (x, w, b)]
            out, kept = backend.linear(*given, name, 0.0)
            needs, into = (True,) * 3, (None,) * 3
            found = backend.linear_backward(backend.from_host(g), out, *given, name, 0.0, kept, needs, into)
            wide = [v.astype(np.float64) for v in (x, w, b)]
            expected, its = reference.linear(*wide, name, 0.0)
            wanted = reference.linear_backward(g.astype(np.float64), expected, *wide, name, 0.0, its, needs, into)
            for a, e in zip((out, *found), (expected, *wanted), strict=True):
                unit = float(ml_dtypes.finfo(real).eps)
                assert np.allclose(backend.to_host(a).astype(float), e, atol=16 * unit, rtol=16 * unit)
        total = backend.gemm(backend.from_host(x), backend.from_host(w.T.copy()), backend.from_host(g), True)
        expected = x.astype(float) @ w.T.astype(float) + g.astype(float)
        assert np.allclose(backend.to_host(total).astype(float), expected, atol=16 * float(ml_dtypes.finfo(real).eps))
    warned = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == (refused == "the library")
    assert all("products are computed by CuPy" in text and "cannot be loaded" in text for text in warned)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float32_results_of_half_floats_without_an_algorithm(backend: Any, dtype: str) -> None:
    """They are not rounded to half floats on the way, as they are not by cuBLASLt."""
    x, weight, g = (rounded(shape, dtype, i) for i, shape in enumerate(((5, 7), (3, 7), (5, 3))))
    arrays = [backend.astype(backend.from_host(values), backend.dtypes[dtype]) for values in (x, weight, g)]
    with stand_in(status=15):
        out = backend.empty((5, 3), dtype=backend.single)
        backend.gemm(arrays[0], backend.matrix_transpose(arrays[1]), out)
        buffers = None, backend.empty((3, 7), dtype=backend.single), None
        gw = backend.linear_backward(
            arrays[2], None, *arrays[:2], None, None, 0.0, None, (False, True, False), buffers
        )[1]  # fmt: skip
    for found, expected in ((out, x @ weight.T), (gw, g.T @ x)):
        assert np.allclose(backend.to_host(found), expected, rtol=1e-6, atol=1e-6)


def test_devices_say_what_computes_products(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = EmulatedBackend(0)
    assert {name for name, how in backend.kernels().items() if how == "cublaslt"} == set(linear.PRODUCTS)
    assert backend.describe().endswith(", cuBLASLt 13.1.2")
    monkeypatch.setattr(cublaslt, "find", lambda: "/nowhere/libcublasLt.so.13")
    without = EmulatedBackend(0)
    assert {without.kernels()[name] for name in linear.PRODUCTS} == {"native"}
    assert ", no cuBLASLt: cuBLASLt cannot be loaded: /nowhere/libcublasLt.so.13" in without.describe()
    monkeypatch.setenv("GRADFLOW_FUSED", "0")
    plain = EmulatedBackend(0)
    assert {plain.kernels()[name] for name in linear.PRODUCTS} == {"composed"}
    assert plain.describe().endswith(", no cuBLASLt: GRADFLOW_FUSED=0")


# ------------------------------------------------------------------ NaN


@pytest.mark.parametrize("zero", [False, True], ids=["NaN stays", "NaN becomes 0"])
def test_relu_of_nan(backend: Any, launches: list[str], zero: bool) -> None:
    """NaN stays NaN, also where an algorithm of cuBLASLt makes it 0: ReLU is a launch of its own then."""
    x, w, b = (backend.from_host(numbers(s, seed=i)) for i, s in enumerate([(5, 4), (3, 4), (3,)]))
    backend.setitem(b, 1, float("nan"))
    with stand_in(relu_of_nan_is_zero=zero):
        out, _ = backend.linear(x, w, b, "relu", 0.0)
        assert np.isnan(backend.to_host(out)[:, 1]).all()
        assert np.isfinite(backend.to_host(out)[:, [0, 2]]).all()
    assert launches == (["DEFAULT", "bias_activation"] if zero else ["RELU_BIAS"])


@pytest.mark.parametrize("where", ["input", "0.weight", "0.bias"])
def test_a_nan_before_relu_reaches_the_loss(backend: Any, where: str) -> None:
    with gf.use_device("emulated"), stand_in(relu_of_nan_is_zero=1):
        model = gf.nn.MLP([4, 8, 3], generator=gf.Generator(0))
        x, y = gf.random.normal((6, 4)), gf.tensor(np.arange(6) % 3)
        assert np.isfinite(gf.cross_entropy(model(x), y).item())
        given = x if where == "input" else dict(model.named_parameters())[where]
        backend.setitem(given.array, (0,) * given.ndim, float("nan"))
        assert np.isnan(gf.cross_entropy(model(x), y).item())


def test_a_graph_multiplies_with_the_present_precision(backend: Any) -> None:
    """TF32 keeps 10 bits, so 1 + 2^-12 becomes 1: in a plain step, and in graphs of either precision."""
    product = gf.capture(lambda x, y: x @ y)
    x = gf.tensor(np.full((1, 1), 1 + 2.0**-12, np.float32), device="emulated")
    one = gf.ones((1, 1), device="emulated")
    try:
        for precision, expected in (("highest", 1 + 2.0**-12), ("tf32", 1.0), ("highest", 1 + 2.0**-12)):
            gf.set_matmul_precision(precision)
            assert (x @ one).item() == expected
            assert [product(x, one).item() for _ in range(5)] == [expected] * 5
            assert product.status == "replaying"
    finally:
        gf.set_matmul_precision("highest")


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize("shape", [(5, 3, 0), (0, 3, 4), (5, 0, 4), (0, 0, 4), (0, 3, 0)])
def test_an_empty_layer(cupy: Any, shape: tuple[int, int, int], activation: str | None) -> None:
    rows, n, features = shape
    arrays = [numbers((rows, n)), numbers((features, n)), numbers((features,))]
    found = []
    for device in ("cpu", "emulated"):
        tensors = [gf.tensor(a, device=device, requires_grad=True) for a in arrays]
        y = gf.linear(*tensors, activation=activation)
        y.sum().backward()
        found.append([y.detach().numpy(), *(t.grad.numpy() for t in tensors)])
    for x, expected in zip(*found, strict=True):
        assert x.shape == expected.shape
        assert np.allclose(x, expected, atol=1e-6)
