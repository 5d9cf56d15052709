"""The dtype of every result and gradient, and the rules of promotion."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case
from test_operations import as_list, leaves, weighted

import gradflow as gf
from gradflow.dtypes import DTYPES, as_dtype, promote

every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@every_case
def test_results_and_gradients_keep_the_dtype_of_the_inputs(case: Case, dtype: str, device: str) -> None:
    if dtype == "float16" and not case.half:
        pytest.skip("not for float16")
    if not gf.get_backend(device).supports(dtype):
        pytest.skip(f"{device} has no {dtype}")
    inputs = leaves(case, device, dtype)
    outs = as_list(case.call(*inputs))
    expected = case.dtype or dtype
    assert [str(o.dtype) for o in outs] == [expected] * len(outs)
    weighted(outs, [gf.ones_like(o) for o in outs]).backward()
    for i, x in enumerate(inputs):
        if i in case.differentiable():
            assert x.grad is None or str(x.grad.dtype) == dtype, f"the gradient of input {i} is {x.grad.dtype}"
            x.zero_grad()
    outs = as_list(case.call(*inputs))
    weighted(outs, [gf.ones_like(o) for o in outs]).backward(create_graph=True)
    gradients = [x.grad for x in inputs if x.grad is not None]
    assert [str(g.dtype) for g in gradients] == [dtype] * len(gradients), "gradients of a recorded backward"
    for x in inputs:
        x.zero_grad()
    known = [g for g in gradients if g.requires_grad]
    if known:
        weighted(known, [gf.ones_like(g) for g in known]).backward()
        second = [str(x.grad.dtype) for x in inputs if x.grad is not None]
        assert second == [dtype] * len(second), "second derivatives"


@pytest.mark.parametrize("name", ["float32", "float64", "float16"])
@pytest.mark.parametrize("operator", ["+", "-", "*", "/", "**"])
@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
def test_python_numbers_are_weak(name: str, operator: str, shape: tuple[int, ...]) -> None:
    x = gf.ones(shape, dtype=name)
    for number in (2, 2.5, True, np.float64(2.5), np.float32(2.5), np.int64(2)):
        for expression in (f"x {operator} n", f"n {operator} x"):
            out = eval(expression, {"x": x, "n": number})
            assert out.dtype == name, f"{type(number).__name__}: {expression} is {out.dtype}"


def test_promotion_of_two_tensors() -> None:
    def of(a: str, b: str) -> str:
        return str((gf.ones(2, dtype=a) + gf.ones(2, dtype=b)).dtype)

    assert of("float32", "float64") == "float64"
    assert of("float16", "float32") == "float32"
    assert of("int64", "float32") == "float32"
    assert of("int64", "float16") == "float16"
    assert of("bool", "int32") == "int32"
    assert of("uint8", "int8") == "int16"
    assert of("uint8", "int64") == "int64"
    with pytest.raises(TypeError, match="uint64"):
        of("uint64", "int64")


def test_promotion_is_symmetric_and_associates_within_a_kind() -> None:
    for a in DTYPES.values():
        assert promote(a, a) is a
        for b in DTYPES.values():
            if {a.name, b.name} & {"uint64"} and "int" in {a.kind, b.kind}:
                continue
            assert promote(a, b) is promote(b, a), f"{a} with {b}"


def test_mixed_dtypes_give_each_input_a_gradient_of_its_own_dtype() -> None:
    a = gf.tensor(np.ones((2, 3), "float16"), requires_grad=True)
    b = gf.tensor(np.ones(3, "float32"), requires_grad=True)
    c = gf.tensor(np.ones((2, 1), "float64"), requires_grad=True)
    out = a * b + c
    assert out.dtype == gf.float64
    out.sum().backward()
    assert [str(t.grad.dtype) for t in (a, b, c)] == ["float16", "float32", "float64"]


def test_gradient_of_a_cast_comes_back_in_the_dtype_of_the_input() -> None:
    x = gf.tensor([1.5, 2.5], requires_grad=True)
    y = x.astype("float64")
    assert y.dtype == gf.float64
    (y * y).sum().backward()
    assert x.grad.dtype == gf.float32
    assert x.grad.tolist() == [3.0, 5.0]


def test_broadcasting_a_half_float_sums_its_gradient_in_float32() -> None:
    """4096 ones: a running sum in float16 stops at 2048, where 1 is half a unit in the last place."""
    x = gf.tensor(np.ones((1, 1), "float16"), requires_grad=True)
    (x * gf.ones((4096, 1), dtype="float16")).backward(gf.ones((4096, 1), dtype="float16"))
    assert x.grad.dtype == gf.float16
    assert x.grad.item() == 4096.0


def test_integers_become_float32_in_floating_operations() -> None:
    i = gf.arange(4) + 1
    assert i.dtype == gf.int64
    for out in (i / 2, i / i, gf.exp(i), gf.mean(i), gf.sqrt(i), gf.sigmoid(i), i * 0.5, gf.softmax(i), gf.var(i)):
        assert out.dtype == gf.float32
    for out in (i + 1, i * i, -i, abs(i), i**2, gf.sum(i), gf.maximum(i, 2), gf.clip(i, 1, 2), gf.square(i)):
        assert out.dtype == gf.int64
    assert gf.sum(gf.tensor(np.ones(3, "int8"))).dtype == gf.int64
    assert gf.sum(gf.tensor([True, True])).item() == 2


@pytest.mark.parametrize("name", [n for n, d in DTYPES.items() if not d.is_floating])
def test_integers_and_bools_refuse_a_gradient(name: str) -> None:
    with pytest.raises(TypeError, match=f"only floating-point tensors can require grad; this one is {name}"):
        gf.zeros(2, dtype=name, requires_grad=True)
    t = gf.zeros(2, dtype=name)
    with pytest.raises(TypeError, match="can require grad"):
        t.requires_grad = True
    assert not t.requires_grad


OF_BOOLS: dict[str, str] = {
    "square": "int64", "sum": "int64", "prod": "int64", "cumulative_sum": "int64", "mean": "float32", "var": "float32",
    "std": "float32", "exp": "float32", "sqrt": "float32", "relu": "float32", "logical_not": "bool", "floor": "bool",
    "any": "bool", "all": "bool", "argmax": "int64",
}  # fmt: skip


@pytest.mark.parametrize("name", OF_BOOLS)
def test_functions_of_bools_count_them(name: str) -> None:
    p = gf.tensor([True, False, True])
    found = getattr(gf, name)(p)
    assert found.dtype == OF_BOOLS[name]
    if name != "logical_not":
        assert found.tolist() == getattr(gf, name)(p.astype("int64")).tolist()


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 2.0, 3.0, True], ids=repr)
def test_powers_of_integers_and_bools_are_promoted_first(exponent: Any) -> None:
    for dtype in ("bool", "int8", "int64"):
        x = gf.tensor([0, 1] if dtype == "bool" else [1, 100], dtype)
        wide = "float32" if isinstance(exponent, float) else "int64" if dtype == "bool" else dtype
        found = x**exponent
        assert found.dtype == wide
        assert found.tolist() == (x.astype(wide).numpy() ** int(exponent)).tolist()
    assert (gf.tensor([100], "int8") ** 2.0).tolist() == [10000.0]


def test_powers_of_two_bools_are_int64() -> None:
    p, q = gf.tensor([True, False, True, False]), gf.tensor([True, True, False, False])
    for found in (p**q, gf.power(p, q.astype("int64")), gf.power(p.astype("int64"), q)):
        assert (found.dtype, found.tolist()) == (gf.int64, [1, 0, 1, 1])
    for found in (True**q, 1**q, p**True, p**1):
        assert found.dtype == gf.int64


@pytest.mark.parametrize("name", ["negative", "sign", "subtract"])
def test_what_bools_have_not_is_refused(name: str) -> None:
    p = gf.tensor([True])
    with pytest.raises(TypeError, match=f"{name} does not take bools"):
        getattr(gf, name)(*([p] * (2 if name == "subtract" else 1)))


def test_casting_to_integers_ends_the_graph() -> None:
    x = gf.tensor([1.5, 2.5], requires_grad=True)
    assert not x.astype("int64").requires_grad
    assert x.astype("int64").tolist() == [1, 2]


@pytest.mark.parametrize("given", ["float32", gf.float32, np.float32, np.dtype("float32"), float])
def test_a_dtype_has_many_names(given: Any) -> None:
    assert as_dtype(given) is gf.float32
    assert gf.zeros(1, dtype=given).dtype == gf.float32


@pytest.mark.parametrize("given", ["complex64", np.complex128, "float8", object, None, 3])
def test_what_is_no_dtype_is_refused_with_the_list(given: Any) -> None:
    with pytest.raises(TypeError, match="float32"):
        as_dtype(given)
    assert gf.float32 != given


def test_dtypes_compare_hash_and_survive_pickling() -> None:
    import copy
    import pickle

    assert gf.float32 == "float32" == gf.float32
    assert gf.float32 != gf.float64
    assert gf.float32 == np.dtype("float32")
    assert hash(gf.float32) == hash(as_dtype("float32"))
    assert pickle.loads(pickle.dumps(gf.float32)) is gf.float32
    assert copy.deepcopy(gf.int8) is gf.int8
    assert {gf.float32: 1}[as_dtype(np.float32)] == 1


def test_a_dtype_that_the_device_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 on the CPU without ml_dtypes, with the extra that has it."""
    cpu = type(gf.get_backend("cpu"))()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    for make in (
        lambda: cpu.native_dtype("bfloat16"), lambda: gf.Tensor(cpu.ones(2), cpu).astype(gf.bfloat16),
    ):  # fmt: skip
        with pytest.raises(
            TypeError, match='device cpu does not support bfloat16 without ml_dtypes from the extra "half"'
        ):
            make()


# ---------------------------------------------------------------------- half precision


def half(values: Any) -> gf.Tensor:
    return gf.tensor(np.array(values, np.float16))


def needs_float16(device: str) -> None:
    if not gf.get_backend(device).supports("float16"):
        pytest.skip(f"{device} has no float16")


def test_half_precision_is_summed_and_squared_in_single(device: str) -> None:
    """Each of these leaves float16 on the way to a result that float16 can hold."""
    needs_float16(device)
    assert gf.ones((4096, 2), dtype="float16").sum(axis=0).tolist() == [4096.0, 4096.0]
    assert gf.mse_loss(half([30.0] * 100), half([0.0] * 100)).item() == 900.0
    assert gf.std(half([300.0, -300.0, 600.0, 0.0])).item() == pytest.approx(335.5, rel=1e-3)
    expected = [0.4472, -1.3416, 1.3416, -0.4472]
    assert gf.layer_norm(half([[300.0, -300.0, 600.0, 0.0]]), (4,))[0].tolist() == pytest.approx(expected, rel=1e-3)
    x = half([300.0, -300.0]).requires_grad_()
    gf.gelu(x).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]
    x.grad = half([300.0, 400.0])
    assert gf.optim.clip_grad_norm_([x], 1000.0).item() == 500.0
    assert x.grad.tolist() == [300.0, 400.0]


MANY = 70_000  # more than the largest float16
WEIGHT = np.array([0.5, 2.0, 1.0, 4.0, 3.0])


def _rows(loss: str, **options: Any) -> Any:
    """A loss of rows of 5 classes by labels."""

    def call(x: gf.Tensor) -> gf.Tensor:
        labels = gf.tensor(np.arange(x.size // 5) % 5)
        given = {k: gf.tensor(v.astype(str(x.dtype))) if k == "weight" else v for k, v in options.items()}
        return getattr(gf, loss)(x.reshape(-1, 5), labels, **given)

    return call


def _pairs(loss: str, **options: Any) -> Any:
    """A loss of the elements and their reverse order."""
    return lambda x: getattr(gf, loss)(x, gf.flip(x.detach()), **options)


def _first(function: Any) -> Any:
    """The function, with a gradient for its first element only."""
    return lambda x: function(x).reshape(-1)[0]


OF_MANY: dict[str, Any] = {
    "mean": gf.mean,
    "mean of an axis": lambda x: gf.mean(x.reshape(-1, 2), axis=0)[0],
    "var": gf.var,
    "std": lambda x: gf.std(x, correction=1.0),
    "max": lambda x: gf.max(gf.clip(x, max=-3.0)),
    "min": lambda x: gf.min(gf.clip(x, min=3.0)),
    "sum of a broadcast": lambda x: (x[:1] * gf.ones((MANY,), dtype=x.dtype)).mean(),
    "take": lambda x: gf.take(x, gf.tensor(np.zeros(5000, np.int64))).mean(),
    "take_along_axis": lambda x: gf.take_along_axis(x, gf.tensor(np.zeros(5000, np.int64)), axis=0).mean(),
    "softmax": _first(gf.softmax),
    "log_softmax": _first(gf.log_softmax),
    "logsumexp": gf.logsumexp,
    "l1_loss": _pairs("l1_loss"),
    "mse_loss": _pairs("mse_loss"),
    "huber_loss": _pairs("huber_loss", delta=0.5),
    "huber_loss, large delta": _pairs("huber_loss", delta=1e5),
    "binary_cross_entropy": lambda x: gf.binary_cross_entropy_with_logits(x, (gf.flip(x) > 0).astype(x.dtype)),
    "smooth_l1_loss": _pairs("smooth_l1_loss", beta=0.5),
    "binary_cross_entropy of probabilities": lambda x: gf.binary_cross_entropy(
        x * 0.0625 + 0.5, (gf.flip(x.detach()) > 0).astype(x.dtype)
    ),
    "kl_div": lambda x: gf.kl_div(x, gf.abs(gf.flip(x.detach()))),
    "gaussian_nll_loss": lambda x: gf.gaussian_nll_loss(
        x, gf.zeros_like(x), gf.clip(gf.abs(gf.flip(x.detach())), min=0.25)
    ),
    "nll_loss": _rows("nll_loss"),
    "nll_loss, weighted": _rows("nll_loss", weight=WEIGHT),
    "cross_entropy": _rows("cross_entropy"),
    "cross_entropy, a label ignored": _rows("cross_entropy", ignore_index=2),
    "cross_entropy, weighted": _rows("cross_entropy", weight=WEIGHT),
    "cross_entropy, smoothed": _rows("cross_entropy", label_smoothing=0.1),
    "cross_entropy, both": _rows("cross_entropy", weight=WEIGHT, label_smoothing=0.1),
}
"""Functions of 70,000 numbers that end in one, whose counts, sums or factors are beyond float16 on the way."""


@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
@pytest.mark.parametrize("name", OF_MANY)
def test_functions_of_many_half_floats_and_their_gradients_are_right(name: str, recorded: bool, device: str) -> None:
    """To two units in the last place of float16, against float64: a gradient is rounded once for each operation.

    The exception is log_softmax: its rule takes the exponential of the result, about -12, which was rounded.
    """
    needs_float16(device)
    scatters = name.startswith(("take", "nll")) and gf.get_backend(device).kernels()["scatter_add"] == "composed"
    if scatters:
        pytest.skip("the composed scatter_add makes a matrix, of 70,000 rows")
    values = np.random.default_rng(0).normal(size=MANY).astype(np.float16)
    found = []
    for dtype in ("float16", "float64"):
        x = gf.tensor(values.astype(dtype)).requires_grad_()
        y = OF_MANY[name](x)
        assert y.dtype == dtype
        y.backward(gf.full(y.shape, 512.0, dtype=dtype), create_graph=recorded)  # out of the subnormal numbers
        assert x.grad.dtype == dtype
        found.append([t.detach().numpy().astype("float64") for t in (y, x.grad)])
    for half_value, exact in zip(*found, strict=True):
        np.testing.assert_allclose(
            half_value, exact, rtol=(24 if name == "log_softmax" else 4) * 2.0**-11, atol=2.0**-22
        )


@pytest.mark.parametrize("make", [gf.optim.SGD, gf.optim.Adam, gf.optim.AdamW, gf.optim.RMSprop])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_optimizer_of_half_floats_applies_small_numbers_in_float32(make: Any, dtype: str, device: str) -> None:
    """An epsilon of 1e-8 is 0 in float16, so that a zero gradient was NaN and a small one infinite."""
    if not gf.get_backend(device).supports(dtype):
        pytest.skip(f"{device} has no {dtype}")
    values, gradient = [1.0, 1.0, -1.0, 0.0], [0.0, 1e-4, -1e-5, 3e-6]
    found = []
    for wanted in (dtype, "float64"):
        p = gf.tensor(values, dtype=wanted).requires_grad_()
        optimizer = make([p], lr=0.01)
        for _ in range(2):
            p.grad = gf.tensor(gradient, dtype=dtype).astype(wanted)
            optimizer.step()
        found.append(np.array(p.detach().astype("float64").tolist()))
    assert np.isfinite(found[0]).all()
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=2.0 ** (-10 if dtype == "float16" else -7))
