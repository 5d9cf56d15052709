"""Extreme numbers give no overflow, no NaN and no warning (pytest turns warnings into errors)."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

import gradflow as gf

DTYPES = ["float32", "float64"]
FAR = [1e4, -1e4, 0.0, 9e3, -1e4, 1e4]


def logits(dtype: str, device: str) -> gf.Tensor:
    rows = [FAR, FAR[::-1], [1e4] * 6, [-1e4] * 6, [0.0, 1e-4, -1e-4, 1e4, -1e4, 88.0]]
    return gf.tensor(np.array(rows, dtype), device=device, requires_grad=True)


def assert_finite(what: str, t: gf.Tensor) -> None:
    values = t.detach().numpy()
    assert np.isfinite(values).all(), f"{what}: {values}"


def check_finite(what: str, function: Any, *inputs: gf.Tensor) -> None:
    out = function(*inputs)
    assert_finite(f"{what}, value", out)
    out.sum().backward()
    for i, x in enumerate(inputs):
        if x.requires_grad:
            assert_finite(f"{what}, gradient of input {i}", x.grad)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "sigmoid", "softplus", "tanh", "silu", "gelu",
                                  "elu", "relu", "leaky_relu", "selu", "mish", "softsign", "glu"])  # fmt: skip
def test_functions_of_logits_of_ten_thousand_are_finite(name: str, dtype: str, device: str) -> None:
    function = getattr(gf, name)
    check_finite(name, (lambda x: function(x, axis=1)) if name == "logsumexp" else function, logits(dtype, device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_of_logits_of_ten_thousand_is_finite(
    dtype: str, reduction: str, smoothing: float, weighted: bool, device: str
) -> None:
    weight = gf.ones(6, dtype=dtype) * 2 if weighted else None
    labels = gf.tensor(np.array([1, 0, 3, 5, 2]), device=device)
    dense = gf.tensor(np.full((5, 6), 1 / 6, dtype), device=device, requires_grad=True)
    for target in (labels, dense):
        check_finite(
            f"cross_entropy {target.dtype}",
            lambda x, t: gf.cross_entropy(x, t, weight, reduction=reduction, label_smoothing=smoothing),
            logits(dtype, device),
            target,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positive", [None, 3.0])
def test_binary_cross_entropy_of_logits_of_ten_thousand_is_finite(
    dtype: str, positive: float | None, device: str
) -> None:
    target = gf.tensor(np.tile(np.array([0.0, 1.0, 0.5, 1.0, 0.0, 1.0], dtype), (5, 1)), device=device)
    pos_weight = None if positive is None else gf.full((6,), positive, dtype=dtype)
    check_finite(
        "bce", lambda x: gf.binary_cross_entropy_with_logits(x, target, pos_weight=pos_weight), logits(dtype, device)
    )


def test_cross_entropy_of_far_logits_is_their_distance() -> None:
    x = gf.tensor([[1e4, -1e4]], requires_grad=True)
    loss = gf.cross_entropy(x, gf.tensor(np.array([1])))
    assert loss.item() == 2e4
    loss.backward()
    assert x.grad.tolist() == [[1.0, -1.0]]


def test_binary_cross_entropy_keeps_its_small_values() -> None:
    """log(1 + exp(-30)) is 9.4e-14: a formula that subtracts 30 from log(1 + exp(30)) loses it."""
    x = gf.tensor(np.array([30.0, -30.0]))
    loss = gf.binary_cross_entropy_with_logits(x, gf.tensor(np.array([1.0, 0.0])), reduction="none")
    np.testing.assert_allclose(loss.numpy(), math.log1p(math.exp(-30)), rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_sigmoid_and_softplus_at_the_largest_numbers(dtype: str) -> None:
    top = float(np.finfo(dtype).max)
    x = gf.tensor(np.array([top, -top, math.inf, -math.inf], dtype), requires_grad=True)
    s = gf.sigmoid(x)
    assert s.detach().tolist() == [1.0, 0.0, 1.0, 0.0]
    s.sum().backward()
    assert x.grad.tolist() == [0.0] * 4
    x.zero_grad()
    p = gf.softplus(x)
    assert p.detach().tolist() == [top, 0.0, math.inf, 0.0]
    p[:2].sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_sigmoid_keeps_its_small_values() -> None:
    x = np.array([-700.0, -40.0, -1e-3, 0.0, 40.0])
    np.testing.assert_allclose(gf.sigmoid(gf.tensor(x)).numpy(), 1 / (1 + np.exp(-x)), rtol=4e-16)


def test_softmax_and_log_softmax_with_masked_classes() -> None:
    """A logit of -inf excludes a class: its probability and its gradient are 0."""
    x = gf.tensor([[1.0, -math.inf, 1.0]], requires_grad=True)
    assert gf.softmax(x).detach().tolist() == [[0.5, 0.0, 0.5]]
    loss = gf.cross_entropy(x, gf.tensor(np.array([0])))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), [[-0.5, 0.0, 0.5]], rtol=1e-6)


def test_logsumexp_of_nothing_but_minus_infinity_is_minus_infinity() -> None:
    x = gf.tensor([[-math.inf, -math.inf], [0.0, -math.inf]], requires_grad=True)
    out = gf.logsumexp(x, axis=1)
    assert out.detach().tolist() == [-math.inf, 0.0]
    out.sum().backward()
    assert x.grad.tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_log1p_and_expm1_keep_small_numbers() -> None:
    x = gf.tensor(np.array([1e-18]))
    assert gf.log1p(x).item() == 1e-18
    assert gf.expm1(x).item() == 1e-18


def test_variance_of_a_large_offset() -> None:
    x = gf.tensor(np.array([1e8, 1e8 + 1, 1e8 + 2]))
    assert gf.var(x).item() == pytest.approx(2 / 3, rel=1e-12)


def test_standard_deviation_of_a_constant_has_gradient_zero() -> None:
    """As in PyTorch: at 0 deviation, the subgradient 0."""
    x = gf.tensor([3.0, 3.0, 3.0], requires_grad=True)
    gf.std(x).backward()
    assert x.grad.tolist() == [0.0, 0.0, 0.0]


def test_powers_of_zero() -> None:
    x = gf.tensor([0.0, 0.0, 2.0], requires_grad=True)
    b = gf.tensor([0.0, 3.0, 3.0], requires_grad=True)
    (x**b).sum().backward()
    assert x.grad.tolist() == [0.0, 0.0, 12.0]
    np.testing.assert_allclose(b.grad.numpy(), [0.0, 0.0, 8 * math.log(2)], rtol=1e-6)
    x.zero_grad()
    (x**0 + x**1 + x**2).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 5.0]
    c = gf.tensor([1.0, 2.0], requires_grad=True)
    (0.0**c).sum().backward()
    assert c.grad.tolist() == [0.0, 0.0]


def test_negative_powers_of_zero_go_down_without_end() -> None:
    """0^b is infinite for b < 0 and 0 for b > 0: as in PyTorch, its derivative is minus infinity, not NaN."""
    for zero in (0.0, gf.tensor([0.0, 0.0, 0.0]), gf.tensor([0.0, 0.0, 0.0], requires_grad=True)):
        b = gf.tensor([-1.0, 0.0, 2.0], requires_grad=True)
        with np.errstate(all="ignore"):
            (zero**b).sum().backward()
        assert b.grad.tolist() == [-math.inf, 0.0, 0.0]


def test_clip_passes_no_gradient_to_nan() -> None:
    for limits in ((0.0, 1.0), (0.0, None), (None, 1.0)):
        x = gf.tensor([math.nan, 0.5], requires_grad=True)
        gf.clip(x, *limits).sum().backward()
        assert x.grad.tolist() == [0.0, 1.0]


def test_logsumexp_of_infinity_gives_the_finite_no_gradient() -> None:
    x = gf.tensor([math.inf, 0.0], requires_grad=True)
    out = gf.logsumexp(x)
    assert out.item() == math.inf
    with np.errstate(invalid="ignore"):
        out.backward()
    assert math.isnan(x.grad[0].item()), "infinity less infinity, as in PyTorch"
    assert x.grad[1].item() == 0.0


def test_gradients_at_kinks_are_what_the_conventions_say() -> None:
    def gradient(function: Any, at: float) -> float:
        x = gf.tensor(at, requires_grad=True)
        function(x).backward()
        return float(x.grad)

    assert gradient(gf.relu, 0.0) == 0.0
    assert gradient(gf.abs, 0.0) == 0.0
    assert gradient(gf.sign, 0.5) == 0.0
    assert gradient(lambda x: gf.clip(x, -1, 1), 1.0) == 1.0
    assert gradient(lambda x: gf.clip(x, -1, 1), -1.0) == 1.0
    assert gradient(lambda x: gf.maximum(x, 0.0), 0.0) == 0.5
    assert gradient(lambda x: gf.minimum(x, 0.0), 0.0) == 0.5


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "silu", "gelu", "softplus", "tanh", "sigmoid", "selu",
                                  "mish", "softsign", "hardtanh"])  # fmt: skip
def test_nan_stays_nan(name: str) -> None:
    assert math.isnan(getattr(gf, name)(gf.tensor(math.nan)).item())


def test_maximum_and_minimum_of_nan_are_nan() -> None:
    x = gf.tensor([math.nan, 1.0])
    assert math.isnan(gf.maximum(x, 0.0)[0].item())
    assert math.isnan(gf.minimum(x, x[::-1])[1].item())
    assert math.isnan(gf.max(x).item())
    assert math.isnan(gf.clip(x, 0, 1)[0].item())


@pytest.mark.parametrize(("dtype", "far"), [("float16", 30.0), ("float32", 1e12), ("float64", 1e100)])
def test_gelu_far_out_is_the_identity_or_zero(dtype: str, far: float) -> None:
    x = gf.tensor(np.array([far, -far], dtype), requires_grad=True)
    y = gf.gelu(x)
    assert y.detach().tolist() == [float(x[0].detach()), 0.0]
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]


# ---------------------------------------------------------------------- infinities and NaN

NAN = math.nan


def gradients(function: Any, *inputs: list[float]) -> list[list[float]]:
    """Return the gradients of the inputs for gradients of 3 of all results."""
    tensors = [gf.tensor(x).requires_grad_() for x in inputs]
    out = function(*tensors)
    out.backward(gf.full(out.shape, 3.0))
    return [t.grad.tolist() for t in tensors]


BROKEN = [NAN, 2.0, -1.0]
AT_NAN: dict[str, tuple[Any, list[list[float]], list[list[float]]]] = {
    "relu": (gf.relu, [BROKEN], [[3.0, 3.0, 0.0]]),
    "leaky_relu": (lambda x: gf.leaky_relu(x, 0.5), [BROKEN], [[1.5, 3.0, 1.5]]),
    "elu": (lambda x: gf.elu(x, 2.0), [BROKEN], [[3.0, 3.0, 6 * math.exp(-1)]]),
    "selu": (gf.selu, [BROKEN], [[3 * 1.0507009873554805] * 2 + [3 * 1.7580993408473766 * math.exp(-1)]]),
    "hardtanh": (gf.hardtanh, [[NAN, 0.5, -1.0]], [[3.0, 3.0, 0.0]]),
    "prelu": (gf.prelu, [BROKEN, [0.5]], [[1.5, 3.0, 1.5], [NAN]]),
    "clip": (lambda x: gf.clip(x, -1.0, 1.0), [BROKEN], [[0.0, 0.0, 3.0]]),
    "maximum": (gf.maximum, [[NAN, 2.0, NAN, 1.0], [1.0, NAN, NAN, 2.0]], [[3.0, 3.0, 3.0, 0.0], [3.0] * 4]),
    "minimum": (gf.minimum, [[NAN, 2.0, NAN, 1.0], [1.0, NAN, NAN, 2.0]], [[3.0] * 4, [3.0, 3.0, 3.0, 0.0]]),
    "max": (lambda x: gf.max(x, axis=0), [BROKEN], [[NAN] * 3]),
    "min": (lambda x: gf.min(x, axis=0), [BROKEN], [[NAN] * 3]),
}
"""Functions that select, inputs, and their gradients in PyTorch 2.13 (for max and min, those of `amax` and `amin`)."""


@pytest.mark.parametrize("name", AT_NAN)
def test_a_gradient_at_nan_is_that_of_pytorch(name: str, device: str) -> None:
    function, inputs, expected = AT_NAN[name]
    for found, wanted in zip(gradients(function, *inputs), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("name", AT_NAN)
def test_pytorch_gives_these_gradients_at_nan(name: str) -> None:
    torch = pytest.importorskip("torch")
    function = {
        "relu": torch.relu, "leaky_relu": lambda x: torch.nn.functional.leaky_relu(x, 0.5),
        "elu": lambda x: torch.nn.functional.elu(x, 2.0), "clip": lambda x: torch.clip(x, -1.0, 1.0),
        "selu": torch.selu, "hardtanh": torch.nn.functional.hardtanh, "prelu": torch.prelu,
        "maximum": torch.maximum, "minimum": torch.minimum, "max": torch.amax, "min": torch.amin,
    }[name]  # fmt: skip
    _, inputs, expected = AT_NAN[name]
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    out = function(*tensors)
    out.backward(torch.full_like(out, 3.0))
    for x, wanted in zip(tensors, expected, strict=True):
        np.testing.assert_allclose(x.grad.numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_network_with_relu_that_has_become_nan_shows_it(layers: int, device: str) -> None:
    """Also if one operation computes all layers; without gradients, its units would look dead."""
    model = gf.nn.MLP([3, *[4] * layers, 2], activation="relu")
    first, second = list(model.parameters())[:2]
    with gf.no_grad():
        second.copy_(gf.full(second.shape, NAN))
    model(gf.ones((5, 3))).sum().backward()
    assert first.grad is not None
    assert np.isfinite(first.grad.numpy()).all()
    assert (first.grad.numpy() != 0).all()


@pytest.mark.parametrize("exponent", ["number", "tensor"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_gradient_of_x_to_the_power_0_is_0(exponent: str, dtype: str, device: str) -> None:
    if not gf.get_backend(device).supports(dtype):
        pytest.skip(f"{device} has no {dtype}")
    tiny = float(np.finfo(dtype).smallest_subnormal)
    x = gf.tensor(np.array([tiny, -tiny, 0.0, -0.0, 2.0, math.inf, -math.inf, NAN], dtype)).requires_grad_()
    y = x ** (0.0 if exponent == "number" else gf.zeros(x.shape, dtype=dtype))
    assert y.detach().tolist() == [1.0] * 8
    y.sum().backward()
    assert x.grad.tolist() == [0.0] * 8


def test_the_mixed_derivative_of_x_to_the_power_0_is_1_over_x(device: str) -> None:
    def slope(b: gf.Tensor) -> gf.Tensor:
        return gf.grad(lambda x: (x**b).sum())(gf.tensor([2.0, 4.0, 1e-30]))

    found = gf.jacobian(slope)(gf.zeros(3)).detach().numpy()
    np.testing.assert_allclose(found, np.diag([0.5, 0.25, 1e30]), rtol=1e-6)


@pytest.mark.parametrize("delta", [0.5, 3.0])
def test_the_gradient_of_huber_loss_at_an_infinite_error_is_plus_or_minus_delta(delta: float, device: str) -> None:
    x, target = gf.tensor([math.inf, -math.inf, 1.0, 0.25]), gf.tensor([0.0, 0.0, math.inf, 0.0])
    loss = gf.huber_loss(x, target, reduction="none", delta=delta)
    assert loss.tolist() == [math.inf, math.inf, math.inf, 0.03125]

    def f(x: gf.Tensor) -> gf.Tensor:
        return gf.huber_loss(x, target, reduction="sum", delta=delta)

    assert gf.grad(f)(x).tolist() == [delta, -delta, -delta, 0.25]
    assert gf.hessian(f)(x).tolist() == np.diag([0.0, 0.0, 0.0, 1.0]).tolist()
    _, slope = gf.jvp(f, (x,), (gf.tensor([1.0, 1.0, 0.0, 4.0]),))
    assert slope.item() == 1.0


@pytest.mark.parametrize("delta", [0.0, -1.0, math.inf, NAN])
def test_huber_loss_needs_a_finite_delta_above_0(delta: float) -> None:
    with pytest.raises(ValueError, match="finite delta > 0"):
        gf.huber_loss(gf.ones(2), gf.zeros(2), delta=delta)


def test_all_derivatives_of_std_at_constants_are_0(device: str) -> None:
    def f(x: gf.Tensor) -> gf.Tensor:
        return gf.std(x, axis=0).sum()

    x = gf.tensor([[2.0, 1.0], [2.0, 5.0], [2.0, 3.0]])
    assert gf.grad(f)(x).numpy()[:, 0].tolist() == [0.0] * 3
    found = gf.hessian(f)(x).numpy()
    assert (found[:, 0] == 0).all()
    assert (found[:, 1, :, 1] != 0).any()


# ---------------------------------------------------------------------- half floats and Python numbers

ARITHMETIC = {
    "add": (gf.add, np.add), "subtract": (gf.subtract, np.subtract), "multiply": (gf.multiply, np.multiply),
    "divide": (gf.divide, np.divide), "power": (gf.power, np.power), "maximum": (gf.maximum, np.maximum),
    "minimum": (gf.minimum, np.minimum),
}  # fmt: skip
NUMBERS = [70000, -70000.0, 1e-8, 0.1, 65536.0, 3, 2.0, -0.0]


@pytest.mark.filterwarnings("ignore:(overflow|divide by zero|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
@pytest.mark.parametrize("number_first", [False, True], ids=["second", "first"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ARITHMETIC)
def test_half_floats_and_a_number_are_computed_in_float32(
    name: str, dtype: str, number_first: bool, recorded: bool, device: str
) -> None:
    if not gf.get_backend(device).supports(dtype):
        pytest.skip(f"{device} has no {dtype}")
    ours, theirs = ARITHMETIC[name]
    x = gf.tensor([1.0, 6e-5, 300.0, -2.0, 60000.0], dtype=dtype, requires_grad=recorded)
    wide = x.detach().astype("float32").numpy()
    for number in NUMBERS:
        y = ours(number, x) if number_first else ours(x, number)
        expected = theirs(np.float32(number), wide) if number_first else theirs(wide, np.float32(number))
        assert y.dtype == dtype
        got = y.detach().astype("float32").numpy()
        np.testing.assert_array_equal(got, gf.tensor(expected).astype(dtype).astype("float32").numpy())
        assert y.requires_grad == recorded


def test_half_floats_are_scaled_by_numbers_that_they_cannot_hold(device: str) -> None:
    if not gf.get_backend(device).supports("float16"):
        pytest.skip(f"{device} has no float16")
    x = gf.ones(1, dtype="float16", requires_grad=True)
    assert (x / 70000 * 70000).item() == pytest.approx(1.0, rel=1e-2)
    (x / 70000).sum().backward()
    assert x.grad.item() == pytest.approx(1 / 70000, rel=1e-2)
    y = x.detach()
    y /= 70000
    assert y.item() == pytest.approx(1 / 70000, rel=1e-2)


@pytest.mark.parametrize("name", ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"])
def test_half_floats_are_compared_with_numbers_beyond_their_range(name: str, device: str) -> None:
    if not gf.get_backend(device).supports("float16"):
        pytest.skip(f"{device} has no float16")
    x = gf.tensor([1.0, math.inf, -math.inf, math.nan], dtype="float16")
    for number in (70000.0, -1e9, math.inf, 1.0):
        expected = getattr(np, name)(np.array([1.0, math.inf, -math.inf, math.nan]), number)
        assert getattr(gf, name)(x, number).tolist() == expected.tolist()
        assert getattr(gf, name)(number, x).tolist() == getattr(np, name)(number, x.astype("float32").numpy()).tolist()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "int64"])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_limit_beyond_the_dtype_clips_nothing_and_does_not_warn(dtype: str, shape: tuple[int, ...]) -> None:
    x = gf.full(shape, 3, dtype=dtype, device="cpu")
    for limit in (70000.0, 1e39, 1e300) if x.dtype.is_floating else (100,):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert (gf.clip(x, max=limit) == 3).all()
            assert (gf.clip(x, min=0 if dtype == "uint8" else -limit) == 3).all()
            assert (gf.clip(x, min=-limit if x.dtype.is_floating else 0, max=2) == 2).all()
