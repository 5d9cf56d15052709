"""Native losses and softmax against float64, against NumPy's kernels, and in parts."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from emitting import TARGETS
from gradflow_numpy import NumpyBackend
from gradflow_numpy.native import losses
from gradflow_numpy.native.kernels import Launch
from gradflow_numpy.native.losses import LossKernels
from gradflow_numpy.native.rows import NARROW
from gradflow_numpy.native.squares import SquaredErrorKernels
from kernel_parts import again, assert_every_launch_gives_the_same_bits, launches_of


class Native(LossKernels, SquaredErrorKernels):
    pass


NATIVE, PLAIN = Native(), NumpyBackend()
SHAPES = [(1, 1), (5, 3), (64, 10), (7, 16), (9, NARROW), (6, NARROW + 1), (3, 130), (2, 3000), (2500, 2)]
REDUCTIONS = ["mean", "sum", "none"]
OPTIONS: dict[str, Any] = {"labels": {}, "ignored": {"ignore_index": 0}, "smoothed": {"smoothing": 0.2}, "weights": {}}
WIDE = np.longdouble

dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
targets = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
reductions = pytest.mark.parametrize("reduction", REDUCTIONS)
kinds = pytest.mark.parametrize("kind", OPTIONS)


def example(shape: tuple[int, int], dtype: str, kind: str, seed: int = 0) -> tuple[Any, Any, dict[str, Any]]:
    """Logits, a target, and the options of the loss."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape) * 4).astype(dtype)
    target = rng.random(shape).astype(dtype) if kind == "weights" else rng.integers(0, shape[1], shape[0])
    return x, target, OPTIONS[kind]


def upstream(reduction: str, shape: tuple[int, ...], dtype: str) -> Any:
    rng = np.random.default_rng(1)
    return np.asarray(rng.standard_normal(shape if reduction == "none" else ()), dtype)


def reference(x: Any, target: Any, reduction: str, g: Any, **options: Any) -> tuple[Any, Any, Any]:
    """The loss, the gradient and the losses in long double, by their definitions."""
    x, n, classes = x.astype(WIDE), *x.shape
    shifted = x - x.max(1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    kept = np.ones(n, bool)
    if target.ndim == 1:
        smoothing = WIDE(options.get("smoothing", 0.0))
        if "ignore_index" in options:
            kept = target != options["ignore_index"]
        target = (1 - smoothing) * np.eye(classes, dtype=WIDE)[target] + smoothing / classes
    target = target.astype(WIDE) * kept[:, None]
    losses = -(target * logp).sum(1)
    gradient = np.exp(logp) * target.sum(1, keepdims=True) - target
    count = max(int(kept.sum()), 1)
    if reduction == "none":
        return losses, gradient * g.astype(WIDE)[:, None], losses
    scale = WIDE(1) / count if reduction == "mean" else WIDE(1)
    loss = losses.sum() * scale if kept.any() or reduction == "sum" else WIDE("nan")
    return loss, gradient * (g.astype(WIDE) * scale), losses


@shapes
@dtypes
@kinds
@reductions
def test_a_cross_entropy_and_its_gradient_are_right(
    shape: tuple[int, int], dtype: str, kind: str, reduction: str
) -> None:
    """Within the rounding errors of x - max(x), of its exponential (of that size, relative), and of the sums."""
    x, target, options = example(shape, dtype, kind)
    g = upstream(reduction, shape[:1], dtype)
    (loss, p), launched = launches_of(lambda: NATIVE.softmax_cross_entropy(x, target, reduction, **options))
    (gradient, none), back = launches_of(
        lambda: NATIVE.softmax_cross_entropy_backward(g, x, target, reduction, p, (True, False), **options)
    )
    expected, slope, rows = reference(x, target, reduction, g, **options)
    eps = np.finfo(dtype).eps
    weight = target.sum(1).max() if target.ndim == 2 else 1.0
    error = eps * (6 + np.ptp(x, axis=1).max() + shape[1] / 16) * weight
    total = np.abs(rows).sum() if reduction == "sum" else np.abs(rows).max()
    many = shape[0] if reduction == "sum" else 1
    assert launched
    assert back
    assert none is None
    assert loss.dtype == p.dtype == gradient.dtype == x.dtype
    assert loss.shape == expected.shape
    assert np.all(np.abs(loss - expected) <= many * error + 2 * eps * total) or np.isnan(expected)
    assert np.isnan(loss).all() == np.isnan(expected).all()
    size = np.abs(g).max() / (max(np.sum(target != options.get("ignore_index")), 1) if reduction == "mean" else 1)
    if target.ndim == 2 and reduction == "mean":
        size = np.abs(g) / shape[0]
    assert np.abs(gradient - slope).max() <= error * size


@shapes
@dtypes
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_a_softmax_of_the_last_axis_is_right(shape: tuple[int, int], dtype: str, name: str) -> None:
    x, eps = example(shape, dtype, "labels")[0], np.finfo(dtype).eps
    wide = x.astype(WIDE) - x.max(1, keepdims=True)
    expected = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    out, launched = launches_of(lambda: getattr(NATIVE, name)(x, -1))
    error = eps * (6 + np.ptp(x, axis=1).max() + shape[1] / 16)
    assert launched
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert np.abs(out - (np.exp(expected) if name == "softmax" else expected)).max() <= error
    folded = x.reshape(1, *shape, 1).swapaxes(1, 3).swapaxes(1, 2)  # (1, columns, 1, rows), not contiguous
    np.testing.assert_allclose(getattr(NATIVE, name)(folded, 1), getattr(PLAIN, name)(folded, 1), rtol=0, atol=0)


@pytest.mark.slow
@targets
@dtypes
@kinds
@pytest.mark.parametrize("shape", [(64, 10), (21, 3), (5, 37), (3, 130)], ids=str)
def test_targets_and_parts_give_the_same_bits(target: Any, dtype: str, kind: str, shape: tuple[int, int]) -> None:
    x, labels, options = example(shape, dtype, kind)
    parts = np.random.default_rng(2)
    for reduction in REDUCTIONS:
        g, p = upstream(reduction, shape[:1], dtype), NATIVE.softmax(x, -1)
        arguments = g, x, labels, reduction, p, (True, False)
        loss = partial(NATIVE.softmax_cross_entropy, x, labels, reduction, **options)
        gradient = partial(NATIVE.softmax_cross_entropy_backward, *arguments, **options)
        assert_every_launch_gives_the_same_bits(loss, target, parts)
        assert_every_launch_gives_the_same_bits(gradient, target, parts)
    assert_every_launch_gives_the_same_bits(lambda: NATIVE.softmax(x, -1), target, parts)
    assert_every_launch_gives_the_same_bits(lambda: NATIVE.log_softmax(x, -1), target, parts)


@dtypes
@kinds
@pytest.mark.parametrize("columns", [4, NARROW + 8])
def test_special_values_are_those_of_numpys_kernels(dtype: str, kind: str, columns: int) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    values = [np.nan, np.inf, -np.inf, tiny, -tiny, 0.0, 1e30, -1e30, np.finfo(dtype).max]
    rng = np.random.default_rng(3)
    rows = [rng.choice(values, columns) for _ in range(40)]
    rows += [np.full(columns, v) for v in values]
    rows += [np.where(np.arange(columns) == k, v, 1.0) for v in values for k in (0, 1, columns - 1)]
    x = np.array(rows).astype(dtype)
    target, options = example(x.shape, dtype, kind)[1:]
    g = upstream("none", x.shape[:1], dtype)
    with np.errstate(all="ignore"):
        plain, q = PLAIN.softmax_cross_entropy(x, target, "none", **options)
        loss, p = NATIVE.softmax_cross_entropy(x, target, "none", **options)
        arguments = x, target, "none"
        expected = PLAIN.softmax_cross_entropy_backward(g, *arguments, q, (True, False), **options)[0]
        found = NATIVE.softmax_cross_entropy_backward(g, *arguments, p, (True, False), **options)[0]
    if "ignore_index" in options:  # whose gradients are 0 even there
        expected[target == options["ignore_index"]] = 0
    tolerance = 20 * np.finfo(dtype).eps
    np.testing.assert_allclose(p, q, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(loss, plain, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@dtypes
@pytest.mark.parametrize("n", [3, 5000])  # beyond 4096 labels, they are counted once
def test_ignored_labels_have_no_loss_and_the_mean_is_that_of_the_others(dtype: str, n: int) -> None:
    x, labels, _ = example((n, 4), dtype, "labels")
    labels[:3] = 7
    g = np.ones((), dtype)
    for reduction in ("mean", "sum"):
        loss, p = NATIVE.softmax_cross_entropy(x, labels, reduction, True, 7)
        gradient = NATIVE.softmax_cross_entropy_backward(g, x, labels, reduction, p, (True, False), 7)[0]
        assert gradient is not None
        assert not gradient[:3].any()
        if n == 3:
            assert np.isnan(loss) if reduction == "mean" else loss == 0
            continue
        rest, q = NATIVE.softmax_cross_entropy(x[3:], labels[3:], reduction)
        np.testing.assert_allclose(loss, rest, rtol=4 * np.finfo(dtype).eps)
        others = NATIVE.softmax_cross_entropy_backward(g, x[3:], labels[3:], reduction, q, (True, False))[0]
        np.testing.assert_array_equal(gradient[3:], others)


@pytest.mark.parametrize("classes", [3, NARROW + 3])
def test_labels_out_of_range_touch_no_memory_of_others_and_are_counted(classes: int) -> None:
    labels = np.array([0, -1, classes, 2**40, 2**32, -(2**63), 2**63 - 1, -100, 1])
    x = np.zeros((labels.size, classes), np.float32)
    loss, p = NATIVE.softmax_cross_entropy(x, labels, "none", True, -100)
    assert np.isnan(loss).tolist() == [False] + [True] * 6 + [False] * 2
    g = np.ones(labels.size, np.float32)
    gradient = NATIVE.softmax_cross_entropy_backward(g, x, labels, "none", p, (True, False), -100)[0]
    np.testing.assert_array_equal(gradient[1:7], p[1:7])
    wrong = np.array([2])
    for n, count in ((9, 8), (1, 8), (0, 8), (3, 10)):
        kernel_arguments = labels, wrong, n, classes, -100
        again(Launch(losses.check_labels, np.dtype(np.float32), 1, 1.0, kernel_arguments))
        assert wrong[0] == count


@dtypes
def test_what_is_not_native_is_numpys_as_a_whole(dtype: str) -> None:
    """A call launches all of its work or nothing, so that a captured step can tell."""
    x, labels, _ = example((6, 4), dtype, "labels")
    weights, g = example((6, 4), dtype, "weights")[1], np.ones((), dtype)
    p = NATIVE.softmax(x, -1)
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("softmax_cross_entropy", (np.asfortranarray(x), labels, "mean")),
        ("softmax_cross_entropy", (x.astype(np.float16), labels, "mean")),
        ("softmax_cross_entropy", (x, labels.astype(np.int32), "mean")),
        ("softmax_cross_entropy", (x, labels.repeat(2)[::2], "mean")),
        ("softmax_cross_entropy", (x, weights.T.copy().T, "mean")),
        ("softmax_cross_entropy_backward", (g, x, labels, "mean", None, (True, False))),
        ("softmax_cross_entropy_backward", (g, x, weights, "mean", p, (True, True))),
        ("softmax_cross_entropy_backward", (g.astype(np.float16), x, labels, "mean", p, (True, False))),
        ("softmax", (x, 0)),
        ("log_softmax", (np.asfortranarray(x), 1)),
        ("softmax", (x.astype(np.float16), 1)),
        ("squared_error", (x, np.asfortranarray(weights), "mean")),
        ("squared_error_backward", (g, x, weights, "mean", None, (True, True))),
    ]
    for name, arguments in calls:
        found, launched = launches_of(partial(getattr(NATIVE, name), *arguments))
        expected = getattr(PLAIN, name)(*arguments)
        assert not launched, name
        for a, b in zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]:
            assert (a is None and b is None) or a.tobytes() == b.tobytes(), name


@dtypes
def test_launching_again_takes_the_present_numbers(dtype: str) -> None:
    """As a captured step does: nothing that changes from step to step is read before."""
    x, labels, _ = example((12, 5), dtype, "labels")
    g = np.ones((), dtype)
    (_, p), first = launches_of(lambda: NATIVE.softmax_cross_entropy(x, labels, "mean", True, 2))
    (gradient, _), second = launches_of(
        lambda: NATIVE.softmax_cross_entropy_backward(g, x, labels, "mean", p, (True, False), 2)
    )
    (_, difference), third = launches_of(lambda: NATIVE.squared_error(x, p, "mean"))
    (slope, _), fourth = launches_of(lambda: NATIVE.squared_error_backward(g, x, p, "mean", difference, (True, False)))
    new_x, new_labels, _ = example((12, 5), dtype, "labels", seed=9)
    x[...], labels[...], g[...] = new_x, new_labels, 0.3
    for launched in (*first, *second, *third, *fourth):
        again(launched)
    loss, q = NATIVE.softmax_cross_entropy(x, labels, "mean", True, 2)
    fresh = NATIVE.softmax_cross_entropy_backward(g, x, labels, "mean", q, (True, False), 2)[0]
    assert first[-1].arguments[2].tobytes() == loss.tobytes()
    assert gradient.tobytes() == fresh.tobytes()
    error, residual = NATIVE.squared_error(x, q, "mean")
    assert third[-1].arguments[1].tobytes() == error.tobytes()
    fresh = NATIVE.squared_error_backward(g, x, q, "mean", residual, (True, False))[0]
    assert slope.tobytes() == fresh.tobytes()


# ---------------------------------------------------------------------- squared errors


@dtypes
@reductions
@pytest.mark.parametrize("shape", [(), (1,), (32, 1), (7, 3), (5, 2, 9), (40, 100), (3000,), (0, 4), (4, 0)], ids=str)
def test_a_squared_error_and_its_gradients_are_right(shape: tuple[int, ...], dtype: str, reduction: str) -> None:
    rng = np.random.default_rng(4)
    x, target = (np.asarray(rng.standard_normal(shape)).astype(dtype) for _ in range(2))
    g, eps = upstream(reduction, shape, dtype), np.finfo(dtype).eps
    difference = (x - target).astype(WIDE)
    squares = difference * difference
    n = x.size if reduction == "mean" else 1
    (loss, residual), launched = launches_of(lambda: NATIVE.squared_error(x, target, reduction))
    gx, gt = NATIVE.squared_error_backward(g, x, target, reduction, residual, (True, True))
    assert launched
    assert loss.dtype == gx.dtype == x.dtype
    assert gx.shape == shape
    np.testing.assert_array_equal(residual, x - target)
    if reduction == "mean" and not n:
        assert np.isnan(loss)
    else:
        expected = squares if reduction == "none" else squares.sum() / n
        np.testing.assert_allclose(loss.astype(WIDE), expected, rtol=4 * eps)
        np.testing.assert_allclose(gx.astype(WIDE), 2 * difference * (g.astype(WIDE) / n), rtol=4 * eps)
    np.testing.assert_array_equal(gt, -gx)
    only = NATIVE.squared_error_backward(g, x, target, reduction, residual, (False, True))
    assert only[0] is None
    assert only[1].tobytes() == gt.tobytes()


@targets
@dtypes
def test_squared_errors_in_parts_give_the_same_bits(target: Any, dtype: str) -> None:
    rng, parts = np.random.default_rng(5), np.random.default_rng(6)
    for shape in ((9, 3), (33,), (4, 300)):
        x, y = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
        for reduction in REDUCTIONS:
            g, residual = upstream(reduction, shape, dtype), x - y
            loss = partial(NATIVE.squared_error, x, y, reduction)
            gradient = partial(NATIVE.squared_error_backward, g, x, y, reduction, residual, (True, True))
            assert_every_launch_gives_the_same_bits(loss, target, parts)
            assert_every_launch_gives_the_same_bits(gradient, target, parts)


@dtypes
@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
def test_special_values_of_squared_errors_are_those_of_numpys_kernels(dtype: str) -> None:
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, 1e-45, np.finfo(dtype).max]).astype(dtype)
    x, y = np.repeat(values, 8), np.tile(values, 8)
    for reduction in REDUCTIONS:
        (loss, r), (expected, s) = (F.squared_error(x, y, reduction) for F in (NATIVE, PLAIN))
        np.testing.assert_array_equal(loss, expected)
        for value in values:
            g = np.full(64 if reduction == "none" else (), value)
            found, like = (
                F.squared_error_backward(g, x, y, reduction, d, (True, False))[0] for F, d in ((NATIVE, r), (PLAIN, s))
            )
            np.testing.assert_array_equal(found, like)


@dtypes
def test_rounding_errors_of_long_sums_do_not_add_up(dtype: str) -> None:
    x = np.full(3_000_001, 0.1, dtype)
    eps = np.finfo(dtype).eps
    loss = NATIVE.squared_error(x, np.zeros_like(x), "sum")[0]
    np.testing.assert_allclose(float(loss), float(x[0]) ** 2 * x.size, rtol=100 * np.finfo(float).eps + eps)
    labels, logits = np.zeros(1_000_001, np.int64), np.zeros((1_000_001, 2), dtype)
    loss = NATIVE.softmax_cross_entropy(logits, labels, "mean")[0]
    np.testing.assert_allclose(float(loss), np.log(2), rtol=100 * np.finfo(float).eps + 2 * eps)
