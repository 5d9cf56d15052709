"""Numbers far out: no overflow, no NaN, no warning (pytest turns each warning into an error)."""

from __future__ import annotations

import math
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
                                  "elu", "relu", "leaky_relu"])  # fmt: skip
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
    """-inf is how a class is ruled out: its share and its gradient are 0."""
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
    """As in PyTorch: of the subgradients at 0 deviation, the one that moves nothing."""
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
    """0^b is infinite for b < 0 and 0 above: as in PyTorch, its derivative is minus infinity, not NaN."""
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


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "silu", "gelu", "softplus", "tanh", "sigmoid"])
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
