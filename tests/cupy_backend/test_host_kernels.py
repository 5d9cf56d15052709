"""The kernels, compiled for the CPU, against the composed defaults on NumPy.

Each kernel is called directly, without the Python that launches it: this finds wrong indices, missing barriers and
wrong formulas without a GPU, but not differences of the GPU's compiler and its functions (exp, tanh).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gradflow_cupy.kernels import (
    ELEMENT_TYPES,
    PARTIAL_BLOCKS,
    SCRATCH_BYTES,
    SORTED_ROWS,
    SUM_BLOCKS,
    per_cell,
    per_columns,
    per_element,
    per_row,
    per_sum,
)
from gradflow_cupy.network import CODES
from gradflow_numpy import NumpyBackend
from host_kernels import COMPILER, NO_COMPILER, host_kernel

from gradflow.backend import (
    ACTIVATIONS,
    AdamOptions,
    AdamScalars,
    Backend,
    RMSpropOptions,
    RMSpropScalars,
    SGDOptions,
    SGDScalars,
    dropout_threshold,
)
from gradflow.testing.conformance.kernel_cases.optimizers import MOMENTS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)]

REALS = [pytest.param(np.float32, id="float32"), pytest.param(np.float64, id="float64")]
SHAPES = [(1, 1), (3, 10), (5, 32), (4, 33), (2, 700), (300, 3), (1027, 10)]


@pytest.fixture(scope="module")
def composed() -> NumpyBackend:
    """NumPy with only the composed defaults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADFLOW_FUSED", "0")
        backend = NumpyBackend()
    assert backend.supports("bfloat16"), "asked for, it is one of the half floats"
    return backend


def launch(name: str, real: Any, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any) -> None:
    expression = name if real is None else f"{name}<{ELEMENT_TYPES[np.dtype(real).char]}>"
    host_kernel(expression)(grid, block, tuple(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))


def scratch_memory() -> Any:
    """The scratch memory, its tickets 0 and its sums NaN."""
    memory = np.full(SCRATCH_BYTES, 0xFF, np.uint8)
    memory[:4096] = 0
    return memory


def numbers(shape: tuple[int, ...], real: Any, seed: int = 0, scale: float = 3.0) -> Any:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * scale, real)


def assert_ulp(actual: Any, expected: Any, ulp: float = 8, scale: Any = 0.0) -> None:
    """Equal to `ulp` units in the last place of the expected value, or of `scale` if that is larger.

    A subnormal number may be zero.
    """
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    size = np.maximum(np.abs(expected.astype(np.float64)), scale)
    error = np.abs(actual.astype(np.float64) - expected)
    error = np.where(error < np.finfo(expected.dtype).smallest_normal, 0.0, error)
    error /= np.spacing(size.astype(expected.dtype)).astype(np.float64)
    assert np.array_equal(np.isnan(actual), np.isnan(expected))
    assert np.nanmax(error, initial=0.0) <= ulp, f"{np.nanmax(error)} ulp"


@pytest.mark.parametrize("columns", [1, 31, 33, 256, 257, 10**5])
@pytest.mark.parametrize("rows", [1, 65535, 65536, 10**7, 2**33])
def test_grids_are_within_the_limits_of_cuda(rows: int, columns: int) -> None:
    """Blocks also suit block sums: their threads are a power of two, at most as many as the shared memory holds."""
    for grid, block, *_ in (
        per_element(rows * columns), per_row(rows, columns), per_cell(rows, columns),
        per_sum(1, rows, columns, 4), per_sum(min(rows, 2**30), columns, 1, 8), per_sum(3, rows, columns, 2),
        per_columns(rows, columns, 2),
    ):  # fmt: skip
        assert 0 < grid[0] < 2**31
        assert all(0 < n < 2**16 for n in grid[1:])
        assert block[0] in [2**i for i in range(9)]
        assert math.prod(block) <= 256


# ------------------------------------------------------------------ randomness: exact


@pytest.mark.parametrize("counter", [0, 7, 2**64 - 2, 2**128 - 3, 2**192 - 1, 2**256 - 1, 2**256 - 40])
@pytest.mark.parametrize("n", [1, 4, 5, 1027])
def test_random_bits(counter: int, n: int) -> None:
    key = (2**127 + 12345) ^ (2**63)
    out = np.zeros(n + 1, np.uint64)
    first, mask = counter + 1, 2**64 - 1
    words = [first >> s & mask for s in (0, 64, 128, 192)] + [key & mask, key >> 64]
    launch("random_bits", None, *per_element((n + 3) // 4), out, n, *words, None)
    assert np.array_equal(out[:n], np.random.Philox(key=key, counter=counter).random_raw(n).reshape(-1))
    assert out[n] == 0  # nothing is written beyond the end
    again = np.zeros_like(out)
    launch("random_bits", None, *per_element((n + 3) // 4), again, n, *[1] * 6, np.array(words, np.uint64))
    assert np.array_equal(again, out)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("n", [1, 7, 8, 2048, 2049, 5003])
@pytest.mark.parametrize(("p", "skip"), [(0.0, 0), (0.1, 0), (0.5, 0), (0.5, 3), (0.999, 7)])
def test_dropout(composed: Any, real: Any, n: int, p: float, skip: int) -> None:
    x, key, counter = numbers((n,), real), 2**100 + 3, 2**64 - 3
    out, mask = np.zeros_like(x), np.zeros(n, np.bool_)
    first = counter + 1
    words = [first >> s & (2**64 - 1) for s in (0, 64, 128, 192)] + [key & (2**64 - 1), key >> 64]
    # few blocks, so that a block goes through several tiles
    launch("dropout", real, (2,), (256,), x, out, mask, n, skip, dropout_threshold(p), 1 / (1 - p), *words, None)
    expected, expected_mask = composed.dropout(x, p, key, counter, skip)
    assert np.array_equal(mask, expected_mask)
    assert np.array_equal(out, expected)
    back = np.zeros_like(x)
    launch("dropout_backward", real, *per_element(n), x, mask, back, n, 1 / (1 - p))
    assert np.array_equal(back, composed.dropout_backward(x, expected_mask, p))


# ------------------------------------------------------------------ batches: exact


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_take_rows(size: int, width: int) -> None:
    """Rows of words of each width; nothing is written between batches, or where there is no array."""
    rng = np.random.default_rng(size)
    rows, words, stride = rng.permutation(200)[: 3 * size], (50, 1, 3), size + 2
    arrays = [rng.integers(0, 256, (200, n * width), np.uint8) for n in words]
    outs = [np.full((3, stride, n * width), 255, np.uint8) for n in words]
    parameters: list[Any] = []
    for x, out, n in zip(arrays, outs, words, strict=True):
        parameters += [x, out, n, width, stride]
    # few blocks, so that a block goes through several rows
    launch("take_rows", None, (2,), (32, 2), rows, rows.size, size, *parameters)
    for x, out in zip(arrays, outs, strict=True):
        assert np.array_equal(out[:, :size], x[rows.reshape(3, size)])
        assert (out[:, size:] == 255).all()
    outs[0].fill(0)
    launch("take_rows", None, (2,), (32, 2), rows, rows.size, size, *parameters[:5], *(None, None, 0, 1, 0) * 2)
    assert np.array_equal(outs[0][:, :size], arrays[0][rows.reshape(3, size)])


# ------------------------------------------------------------------ activations and linear layers


def test_all_activations_have_a_code() -> None:
    assert set(CODES) == set(ACTIVATIONS)
    assert sorted(CODES.values()) == list(range(1, len(CODES) + 1))


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(composed: Any, real: Any, name: str) -> None:
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 80.0, -80.0, 1e-6, -1e-6], real)
    x, g = np.concatenate([special, numbers((999,), real)]), numbers((1008,), real, 1)
    parameter = ACTIVATIONS[name].parameter
    out, back = np.zeros_like(x), np.zeros_like(x)
    with np.errstate(all="ignore"):
        expected = composed.activate(x, name, parameter)
        saved = x if ACTIVATIONS[name].saves == "x" else expected
        expected_back = composed.activate_backward(g, saved, name, parameter)
    launch("activate", real, *per_element(x.size), x, out, x.size, CODES[name], parameter)
    launch("activate_backward", real, *per_element(x.size), g, saved, back, x.size, CODES[name], parameter)
    # 1 - t and 1 + t lose digits where they nearly cancel: the scale is that of the terms
    finite = np.isfinite(expected)
    assert np.array_equal(finite, np.isfinite(out))
    assert_ulp(out[finite], expected[finite], 8, np.abs(x[finite]) if "gelu" in name else 0.0)
    finite = np.isfinite(expected_back)
    assert np.array_equal(finite, np.isfinite(back))
    terms = np.abs(g) * (1 + np.abs(x) ** 3 / 8) if name == "gelu" else np.abs(g)
    assert_ulp(back[finite], expected_back[finite], 16, terms[finite])
    if name in ("relu", "leaky_relu"):
        assert np.array_equal(out, expected, equal_nan=True)
        assert np.array_equal(back, expected_back, equal_nan=True)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [None, "relu", "gelu", "tanh"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_end_of_a_linear_layer(composed: Any, real: Any, shape: Any, name: str | None, with_bias: bool) -> None:
    rows, columns = shape
    product, bias = numbers(shape, real), numbers((columns,), real, 1) if with_bias else None
    z = product.copy()
    keeps = name is not None and ACTIVATIONS[name].saves == "x"
    out = np.zeros_like(z) if keeps else z
    code = 0 if name is None else CODES[name]
    launch("bias_activation", real, *per_cell(rows, columns), z, bias, out, rows, columns, code, 0.0)
    expected = product if bias is None else product + bias
    if keeps:
        assert np.array_equal(z, expected)
    values = expected if name is None else composed.activate(expected, name, 0.0)
    assert_ulp(out, values, 8, np.abs(expected) if name == "gelu" else 0.0)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("shape", [*SHAPES, (1000, 40), (20_000, 3)])
@pytest.mark.parametrize("name", [None, "silu"])
def test_bias_backward(composed: Any, real: Any, shape: Any, name: str | None) -> None:
    rows, columns = shape
    g, saved = numbers(shape, real), numbers(shape, real, 1)
    grid, block, chunk = per_sum(1, rows, columns, g.itemsize)
    dz, sums, scratch = np.zeros_like(g), np.zeros(columns, real), scratch_memory()
    code = 0 if name is None else CODES[name]
    launch("bias_backward", real, grid, block, g, saved, dz, sums, None, scratch, rows, columns, chunk, code, 0.0)
    assert not scratch[:4096].any()
    expected = g if name is None else composed.activate_backward(g, saved, name, 0.0)
    if name is not None:
        assert_ulp(dz, expected, 16, 1.0)
    total = np.abs(expected.astype(np.float64)).sum(axis=0).max()
    assert_ulp(sums, expected.astype(np.float64).sum(axis=0).astype(real), 8, total)


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16])
def test_bias_backward_of_half_floats_to_float32(half: Any) -> None:
    """The sums are not rounded to half floats."""
    rows, columns = 300, 10
    g, sums = numbers((rows, columns), half), np.zeros(columns, np.float32)
    grid, block, chunk = per_sum(1, rows, columns, g.itemsize)
    launch(
        "bias_backward", half, grid, block, g, None, None, None, sums, scratch_memory(), rows, columns, chunk, 0, 0.0
    )
    exact = g.astype(np.float64).sum(axis=0)
    assert_ulp(sums, exact.astype(np.float32), 8, np.abs(g.astype(np.float64)).sum(axis=0).max())
    assert (sums != exact.astype(half).astype(np.float32)).any()


# ------------------------------------------------------------------ rows: softmax, cross-entropy, layer norm


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(composed: Any, real: Any, shape: Any, name: str) -> None:
    x, out = numbers(shape, real, scale=20.0), np.zeros(shape, real)
    launch(name, real, *per_row(*shape), x, out, *shape)
    assert_ulp(out, getattr(composed, name)(x, -1), 16, 0.0 if name == "softmax" else 1.0)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_cross_entropy(composed: Any, real: Any, shape: Any, dense: bool, reduction: str) -> None:
    rows, columns = shape
    x = numbers(shape, real, scale=10.0)
    labels = np.random.default_rng(1).integers(0, columns, rows)
    target = np.abs(numbers(shape, real, 2)) if dense else labels
    int_target, weights = (None, target) if dense else (target, None)
    each, scratch, flag = int(reduction == "none"), scratch_memory(), np.zeros(1, np.int32)
    losses, out = np.full(rows if each else (), np.nan, real), np.full(shape, np.nan, real)
    grid, block = per_row(rows, columns, PARTIAL_BLOCKS)
    divisor = float(rows) if reduction == "mean" else 1.0

    def run(g: Any, losses: Any, out: Any) -> None:
        arrays = x, int_target, weights, g, each, divisor, -100, 0.0, losses, out, scratch, flag
        launch("cross_entropy", real, grid, block, *arrays, rows, columns)

    run(None, losses, None if each else out)
    assert not flag.any()
    assert not scratch[:4096].any()
    size = float(np.abs(x).max() * (target.sum(axis=1).max() if dense else 1.0))
    assert_ulp(losses, np.asarray(composed.softmax_cross_entropy(x, target, reduction)[0]), 16, size)
    g = numbers((rows,) if each else (), real, 3)
    for given in (g,) if each else (None, g):
        factor = np.ones((), real) if given is None else given
        if given is not None:
            run(given, None, out)
        expected = composed.softmax_cross_entropy_backward(factor, x, target, reduction, None, [True, False])[0]
        assert_ulp(out, expected, 16, float(np.abs(factor).max()) / divisor * (size if dense else 1.0))


@pytest.mark.parametrize("each", [True, False])
def test_a_loss_that_is_not_finite_raises_the_flag(each: bool) -> None:
    """A label that is no class makes a loss of NaN."""
    x, flag = numbers((3, 4), np.float32), np.zeros(1, np.int32)
    for labels, expected in (([3, 0, 1], 0), ([4, -1, 3], 1)):
        losses = np.zeros(3 if each else (), np.float32)
        launch(
            "cross_entropy", np.float32, *per_row(3, 4), x, np.array(labels), None, None, int(each), 1.0, -100, 0.0,
            losses, None, scratch_memory(), flag, 3, 4,
        )  # fmt: skip
        assert flag[0] == expected
        assert np.isnan(losses).tolist() == ([label not in range(4) for label in labels] if each else bool(expected))
    for value, expected in ((1e30, 1), (1e3, 0)):
        y, loss, flag[0] = np.full(4, value, np.float32), np.zeros(4 if each else (), np.float32), 0
        zeros, scratch = np.zeros_like(y), scratch_memory()
        arrays = y, zeros, None, int(each), 1.0, 1.0, loss, None, None, scratch, flag
        launch("squared_error", np.float32, (1,), (4,), *arrays, 4)
        assert flag[0] == expected


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("shape", [(3, 10), (5, 32), (2, 700), (300, 3), (600, 40)])
@pytest.mark.parametrize(("affine", "centred"), [(True, True), (False, True), (True, False)])
def test_layer_norm(composed: Any, real: Any, shape: Any, affine: bool, centred: bool) -> None:
    rows, columns = shape
    x, g = numbers(shape, real), numbers(shape, real, 1)
    weight, bias = (numbers((columns,), real, 2), numbers((columns,), real, 3)) if affine else (None, None)
    out, stats, gx = np.zeros(shape, real), np.zeros((rows, 2), real), np.zeros(shape, real)
    launch("layer_norm", real, *per_row(*shape), x, weight, bias, out, stats, rows, columns, 1e-5, int(centred))
    expected, residual = composed.layer_norm(x, weight, bias, (1,), 1e-5, centred)
    assert_ulp(out, expected, 16, float(np.abs(expected).max()))
    launch("layer_norm_backward", real, *per_row(*shape), g, x, weight, stats, gx, rows, columns, int(centred))
    grid, block, chunk = per_sum(1, rows, columns, x.itemsize)
    gw, gb = np.zeros(columns, real), np.zeros(columns, real)
    launch("layer_norm_columns", real, grid, block, g, x, stats, gw, gb, scratch_memory(), rows, columns, chunk)
    needs = [True, True, True]
    for actual, value in zip(
        (gx, gw, gb),
        composed.layer_norm_backward(g, x, weight, (1,), 1e-5, residual, needs, centred=centred),
        strict=True,
    ):
        assert_ulp(actual, value, 64, float(np.abs(value).max()) + np.sqrt(rows))


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("shape", [(2, 1), (20, 330), (300, 3), (700, 9)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm(composed: Any, real: Any, shape: Any, affine: bool) -> None:
    """Affine with a momentum, and else with the mean of all batches so far."""
    rows, columns = shape
    x, g, momentum = numbers(shape, real), numbers(shape, real, 1), 0.1 if affine else None
    weight, bias = (numbers((columns,), real, 2), numbers((columns,), real, 3)) if affine else (None, None)
    running = [numbers((columns,), real, 4), numbers((columns,), real, 5), np.array(3)]
    moved, scratch, grid = [each.copy() for each in running], scratch_memory(), per_columns(rows, columns, x.itemsize)
    out, stats, gx, gw, gb = (np.zeros(s, real) for s in (shape, (columns, 2), shape, columns, columns))
    launch(
        "batch_norm", real, *grid, x, weight, bias, out, stats, *moved, scratch, rows, columns, 1e-5,
        -1.0 if momentum is None else momentum,
    )  # fmt: skip
    expected, residual = composed.batch_norm(x, weight, bias, 1e-5, tuple(running), momentum)
    assert_ulp(out, expected, 16, float(np.abs(expected).max()))
    for actual, value in zip(moved[:2], running[:2], strict=True):
        assert_ulp(actual, value, 16, float(np.abs(value).max()))
    assert moved[2] == running[2] == 4
    assert not scratch[:4096].any()
    given = *running[:2], weight, bias
    launch("normalize_columns", real, *per_cell(rows, columns), x, *given, out, rows, columns, 9.0)
    assert_ulp(out, composed.normalize_columns(x, *given, 9.0), 16, float(np.abs(x).max()))
    launch("batch_norm_backward", real, *grid, g, x, weight, stats, gx, gw, gb, rows, columns)
    found = composed.batch_norm_backward(g, x, weight, 1e-5, residual, [True] * 3)
    for actual, value in zip((gx, gw, gb), found, strict=True):
        assert_ulp(actual, value, 64, float(np.abs(value).max()) + np.sqrt(rows))


# ------------------------------------------------------------------ other losses


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("n", [1, 255, 1000, 70_000])
def test_squared_error(composed: Any, real: Any, n: int) -> None:
    x, target, out, scratch = numbers((n,), real), numbers((n,), real, 1), np.zeros((), real), scratch_memory()
    for g in (None, numbers((), real, 2)):
        gx, gt = np.zeros(n, real), np.zeros(n, real)
        arrays = x, target, g, 0, 2.0 / n, float(n), out, gx, gt, scratch, None
        launch("squared_error", real, *per_element(n, 16), *arrays, n)
        expected, residual = composed.squared_error(x, target, "mean")
        assert_ulp(out, np.asarray(expected), 32)
        given = np.ones((), real) if g is None else g
        gradients = composed.squared_error_backward(given, x, target, "mean", residual, [True, True])
        for actual, value in zip((gx, gt), gradients, strict=True):
            assert_ulp(actual, value, 2)
    assert not scratch[:4096].any()


SUMMED = [
    (1, 20_000, 1),
    (1, 10_000, 2),
    (3, 7000, 1),
    (5, 600, 7),
    (1, 70, 300),
    (700, 40, 1),
    (900, 300, 1),
    (1, 1, 5),
]


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize(("many", "rows", "columns"), SUMMED)
def test_sum_rows(many: int, rows: int, columns: int, real: Any) -> None:
    """One launch sums everything, to the last place, and to the same bits in whatever order the blocks run."""
    x, scratch = numbers((many, rows, columns), real) + 0.7, scratch_memory()
    x = x.astype(real)
    grid, block, chunk = per_sum(many, rows, columns, x.itemsize)
    found = set()
    for _ in range(3):
        out = np.full((many, columns), np.nan, real)
        launch("sum_rows", real, grid, block, x, out, scratch, many, rows, columns, chunk)
        found.add(out.tobytes())
        assert not scratch[:4096].any()
    assert len(found) == 1
    assert_ulp(out, x.astype("longdouble").sum(1).astype(real), 4, np.abs(x).sum(1).max() / 4)


def test_sums_use_enough_blocks() -> None:
    """At least twice the 132 multiprocessors of an H100, wherever each thread then loads four rows at once."""
    for many, rows, columns, itemsize in (
        (1, 8192, 4096, 2), (1, 8192, 1000, 4), (1, 65536, 64, 4), (1, 65536, 10, 4), (1, 2**20, 1, 4),
        (65536, 1000, 1, 4), (1, 4096, 512, 8),
    ):  # fmt: skip
        (across, down), block, chunk = per_sum(many, rows, columns, itemsize)
        assert across * down >= 264
        assert chunk >= 4 * block[1] or down == 1
        assert down == 1 or across * down <= 2 * SUM_BLOCKS
        assert down == 1 or across < SUM_BLOCKS  # there are more tickets
    assert per_sum(1, 128, 512, 4)[0] == (64, 1)  # four loads by each thread at once, and no second level
    assert per_sum(1, 65536, 1, 4)[0] == (1, 64)


@pytest.mark.parametrize("real", REALS)
def test_sums_of_what_is_not_finite(real: Any) -> None:
    x, out = np.ones((100, 4), real), np.zeros((1, 4), real)
    x[3, 1:] = np.inf, -np.inf, np.nan
    launch("sum_rows", real, (1, 3), (4, 8), x, out, scratch_memory(), 1, 100, 4, 34)
    assert np.array_equal(out, [[100, np.inf, -np.inf, np.nan]], equal_nan=True)


def scattered(values: Any, targets: Any, out: Any, length: int, blocks: int | None = None) -> int:
    """Add rows of values to the rows `targets` of out with the kernel, and return the number of launches."""
    order = np.argsort(targets, kind="stable")
    targets, n, columns = targets[order], *values.shape
    for launches in itertools.count(1):
        threads = (n + length - 1) // length
        sums = np.full((2 * threads, columns), np.nan, values.dtype) if threads > 1 else None
        ends = np.full(2 * threads, -1) if threads > 1 else None
        grid, block = per_element(threads * columns)
        launch(
            "scatter_rows", values.dtype, grid if blocks is None else (blocks,), block,
            values, order, targets, out, sums, ends, n, columns, length,
        )  # fmt: skip
        if sums is None or ends is None:
            return launches
        values, order, targets, n = sums, None, ends, 2 * threads
    raise AssertionError


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("columns", [1, 5, 70])
@pytest.mark.parametrize("length", [4, 8, 32])
@pytest.mark.parametrize(("n", "rows"), [(1, 1), (1, 9), (32, 4), (33, 4), (40, 1000), (90, 2), (97, 1), (600, 3)])
def test_scatter_rows(n: int, rows: int, length: int, columns: int, real: Any) -> None:
    """Runs of every length, rows without any, and the same bits in whatever order blocks and threads run."""
    rng = np.random.default_rng(n)
    targets = np.minimum(rng.geometric(0.3, n) - 1, rows - 1)
    values, start = numbers((n, columns), real), numbers((rows, columns), real, 1)
    expected = start.astype("longdouble")
    np.add.at(expected, targets, values.astype("longdouble"))
    terms = np.abs(start)
    np.add.at(terms, targets, np.abs(values))
    results = []
    for blocks in (None, 5, 1):
        out = start.copy()
        scattered(values, targets, out, length, blocks)
        results.append(out.tobytes())
    assert len(set(results)) == 1
    assert_ulp(out, expected.astype(real), 2, terms)
    untouched = np.bincount(targets, minlength=rows) == 0
    assert np.array_equal(out[untouched], start[untouched])


@pytest.mark.parametrize("spread", [1, 3, 100_000])
def test_a_thread_adds_few_rows_however_often_an_index_repeats(spread: int) -> None:
    """Of 200,000 rows, a thread adds SORTED_ROWS in each of few launches, whether they have one destination or many."""
    n = 200_000
    values, out = np.full((n, 1), 0.7, "float32"), np.zeros((spread, 1), "float32")
    targets = np.random.default_rng(0).integers(0, spread, n)
    assert scattered(values, targets, out, SORTED_ROWS) == 5
    counts = np.bincount(targets, minlength=spread)[:, None]
    assert_ulp(out, (counts * np.float64(values[0, 0])).astype("float32"), 2)


@pytest.mark.parametrize("real", REALS)
def test_the_sums_of_a_thread_do_not_drift(real: Any) -> None:
    """In each kernel with sums, a thread adds 20,000 equal numbers."""
    n = 20_000
    x, zeros, partial, scratch = np.full(n, 0.7, real), np.zeros(n, real), np.zeros(1, real), scratch_memory()
    value, one = float(x[0]), np.ones(1)
    arrays = x, zeros, None, 0, 2.0, 1.0, partial, None, None, scratch, None
    launch("squared_error", real, (1,), (1,), *arrays, n)
    assert_ulp(partial, (n * value**2 * one).astype(real), 4)
    launch("square_sums", real, (1,), (1,), x, partial, None, None, scratch, n, 0, 1.0)
    assert_ulp(partial, (n * value**2 * one).astype(real), 4)
    launch("sum_rows", real, (1, 1), (1, 1), x, partial, scratch, 1, n, 1, n)
    assert_ulp(partial, (n * value * one).astype(real), 2)
    out, stats = np.zeros(n, real), np.zeros((1, 2), real)
    x[0] = 0.8  # the others are smaller, so that their exponentials are not integers
    launch("softmax", real, (1,), (1,), x, out, 1, n)
    expected = np.exp(x.astype("float64") - 0.8)
    assert_ulp(out, (expected / expected.sum()).astype(real), 4)
    x[0] = 0.7
    launch("layer_norm", real, (1,), (1,), x, None, None, out, stats, 1, n, 1.0, 1)
    assert_ulp(stats[0, :1], (value * one).astype(real), 2)
    launch("bias_backward", real, (1, 1), (1, 1), x, None, None, partial, None, scratch, n, 1, n, 0, 0.0)
    assert_ulp(partial, (n * value * one).astype(real), 2)
    partial[:] = 0
    scattered(x[:, None], np.zeros(n, np.int64), partial[:, None], n)
    assert_ulp(partial, (n * value * one).astype(real), 2)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("classes", [1, 10, 300])
def test_one_hot(composed: Any, real: Any, classes: int) -> None:
    labels = np.random.default_rng(0).integers(0, classes, 77)
    out = np.full((77, classes), np.nan, real)
    launch("one_hot", real, *per_cell(77, classes), labels, out, 77, classes)
    assert np.array_equal(out, Backend.one_hot(composed, labels, classes, real))


# ------------------------------------------------------------------ optimizers


FLOATS = [*REALS, pytest.param(np.float16, id="float16"), pytest.param(ml_dtypes.bfloat16, id="bfloat16")]


def wide_dtype(real: Any) -> Any:
    return real if np.dtype(real).itemsize > 2 else np.float32


def per_pack(x: Any) -> Any:
    return per_element((x.nbytes + 15) // 16)


def at_offset(x: Any, offset: int) -> Any:
    """A copy whose memory starts so many elements after a multiple of 16 bytes, with NaN before and after it."""
    memory = np.full(x.size + offset + 64, np.nan, x.dtype)
    start = -memory.ctypes.data % 16 // x.itemsize + offset
    memory[start : start + x.size] = x
    return memory[start : start + x.size]


@pytest.mark.parametrize("real", FLOATS)
@pytest.mark.parametrize("n", [1, 8, 1003])
@pytest.mark.parametrize("offset", [0, 1])
def test_optimizer_steps(composed: Any, real: Any, n: int, offset: int) -> None:
    """The bits of the composed default, which computes half floats in float32; nothing beyond the arrays is written."""
    p, g, v, m = (numbers((n,), real, seed, 1.0) for seed in range(4))
    s, m = (1 + np.square(numbers((n,), wide_dtype(real), 5, 1.0))).astype(real), (m * real(0.1)).astype(real)
    sgd, adam, rmsprop = (
        SGDOptions(0.9, 0.1, 0.01, False),
        AdamOptions(0.9, 0.999, 1e-8, 0.01),
        RMSpropOptions(0.9, 1e-8, 0.01, 0.5),
    )
    scalars = AdamScalars.at(3, 1.0, 0.9, 0.999, 0.1)
    steps: list[Any] = [
        ("sgd_step", [p, g, None], SGDOptions(0.0, 0.0, 0.0, False), SGDScalars(0.1, False),
         (0.0, 1.0, 0.0, 0, 0.1, 0.0)),
        ("sgd_step", [p, g, v], sgd, SGDScalars(0.1, False), (0.9, 0.9, 0.01, 0, 0.1, 0.0)),
        ("sgd_step", [p, g, v], SGDOptions(0.9, 0.0, 0.01, True), SGDScalars(0.1, True), (0.9, 1.0, 0.01, 1, 0.1, 1.0)),
        ("adam_step", [p, g, m, s], adam, scalars,
         (0.9, 1 - 0.9, 0.999, 1 - 0.999, 1e-8, 0.01, scalars.lr / scalars.bias_correction1,
          1 / scalars.bias_correction2_root, scalars.decay_factor)),
        ("rmsprop_step", [p, g, s, None, None], rmsprop, RMSpropScalars(0.1), (0.9, 1 - 0.9, 1e-8, 0.01, 0.5, 0.1)),
        ("rmsprop_step", [p, g, s, m, v], rmsprop, RMSpropScalars(0.1), (0.9, 1 - 0.9, 1e-8, 0.01, 0.5, 0.1)),
    ]  # fmt: skip
    state = {"mean": m, "square": s, "largest": s[::-1].copy()}
    steps += [
        ("moment_step", [p, g, *[x if each in names.split() else None for each, x in state.items()]], *numbers_,
         (numbers_[0][0], 1 - numbers_[0][0], *numbers_[0][1:], *numbers_[1]))
        for names, *numbers_ in MOMENTS.values()
    ]  # fmt: skip
    for name, arrays, options, numbers_, arguments in steps:
        expected = [None if x is None else x.copy() for x in arrays]
        getattr(composed, name)(*expected, options, numbers_)
        for skip in (0, 1):
            found = [None if x is None else at_offset(x, offset) for x in arrays]
            flag = np.zeros((), np.int32)
            launch(name, real, *per_pack(p), *found, n, *arguments, None, None, 0, np.asarray(skip, np.int32), flag)
            for x, y, before in zip(found, expected, arrays, strict=True):
                if x is not None:
                    assert x.tobytes() == (before if skip else y).tobytes()
                    memory = x.base
                    assert np.isnan(memory.astype(float)).sum() == memory.size - n
            assert flag == 0


@pytest.mark.parametrize("real", FLOATS[2:])
def test_a_parameter_that_rounds_to_infinity_raises_the_flag(real: Any) -> None:
    largest = np.finfo(real).max if real is np.float16 else ml_dtypes.finfo(real).max
    p, g, flag = np.full(9, largest, real), np.zeros(9, real), np.zeros((), np.int32)
    g[8] = -largest
    for gradient, raised in ((np.zeros(9, real), 0), (g, 1)):
        launch(
            "sgd_step", real, *per_pack(p), p, gradient, None, 9, 0.0, 1.0, 0.0, 0, 0.5, 0.0, None, None, 0, None, flag
        )
        assert flag == raised
    assert np.isinf(p[8])


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_the_half_copy_of_a_step(real: Any, half: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, half, half))
    for n, offset in ((1003, 0), (1003, 1), (3, 0)):
        p, g = at_offset(numbers((n,), real), offset), np.zeros(n, real)
        copied = at_offset(np.zeros(n, dtype), offset)
        is_bfloat16 = int(half == "bfloat16")
        launch(
            "sgd_step",
            real,
            *per_pack(p),
            p,
            g,
            None,
            n,
            0.0,
            1.0,
            0.0,
            0,
            0.0,
            0.0,
            None,
            copied,
            is_bfloat16,
            None,
            None,
        )
        assert np.array_equal(copied, p.astype(np.float32).astype(dtype))
        assert np.isnan(copied.base.astype(float)).sum() == copied.base.size - n


@pytest.mark.parametrize("real", FLOATS)
def test_unscale(composed: Any, real: Any) -> None:
    """The bits of the composed default; `found` is set by a gradient that is not finite, not by one that overflows."""
    scale = np.asarray(2.0**-10, np.float32)
    for x, bad in ((numbers((1003,), real), False), (np.asarray([1.0, np.inf] + [0.0] * 30, real), True)):
        found, expected = at_offset(x, 1), x.copy()
        flags = np.zeros((), np.int32), np.zeros((), np.int32)
        with np.errstate(all="ignore"):
            Backend.unscale(composed, expected, scale, flags[1])
        launch("unscale", real, *per_pack(x), found, scale, flags[0], x.size)
        assert found.tobytes() == expected.tobytes()
        assert flags[0] == flags[1] == bad


@pytest.mark.parametrize(("scale", "growth", "found"), [*itertools.product((1024.0, 3e38), (0, 3, 4), (0, 1))])
def test_update_scale(composed: Any, scale: float, growth: int, found: int) -> None:
    arrays = [np.asarray(scale, np.float32), np.asarray(growth, np.int32), np.asarray(found, np.int32)]
    expected = [x.copy() for x in arrays]
    with np.errstate(over="ignore"):
        Backend.update_scale(composed, *expected, 1.7, 0.9, 5)
    launch("update_scale", None, (1,), (1,), *arrays, 1.7, 0.9, 5)
    assert arrays == expected


@pytest.mark.parametrize("skip", [0, 1])
def test_count_step(skip: int) -> None:
    count = np.asarray([2**40], np.int64)
    launch("count_step", None, (1,), (1,), count, np.asarray(skip, np.int32))
    assert count == 2**40 + 1 - skip


@pytest.mark.parametrize("real", FLOATS)
def test_clip(composed: Any, real: Any) -> None:
    wide, ulp = wide_dtype(real), 16 if np.dtype(real).itemsize > 2 else 1
    x, norm, scratch = numbers((3000,), real), np.zeros((), real), scratch_memory()
    for max_norm in (1.0, 1e9):
        actual, expected = x.copy(), x.copy()
        sums, factor = np.full(5, np.nan, wide), np.zeros(1, wide)
        launch("square_sums", real, (3,), (256,), actual[:1000], sums, None, factor, scratch, 1000, 0, max_norm)
        launch("square_sums", real, (2,), (256,), actual[1000:], sums, norm, factor, scratch, 2000, 3, max_norm)
        launch("scale_by", real, *per_pack(x), actual, factor, None, scratch, x.size, 0)
        expected_norm = np.asarray(composed.clip_global_norm([expected], max_norm))
        for found, value in ((norm, expected_norm), (actual, expected)):
            room = ulp * float(ml_dtypes.finfo(real).eps) * np.abs(value.astype(wide))
            assert (np.abs(found.astype(wide) - value.astype(wide)) <= room).all()
        assert not scratch[:4096].any()


@pytest.mark.parametrize("real", FLOATS)
@pytest.mark.parametrize("blocks", [1, 4])
def test_padding_stays_zero_under_a_norm_of_nan(real: Any, blocks: int) -> None:
    x, padding, scratch = numbers((5000,), real), np.arange(100, 4900, 7), scratch_memory()
    x[padding] = 0
    for factor, zeros in ((0.5, padding), (np.nan, padding), (np.nan, None)):
        found, factors = x.copy(), np.asarray([factor], wide_dtype(real))
        launch("scale_by", real, (blocks,), (256,), found, factors, zeros, scratch, x.size, padding.size)
        expected = np.full_like(x, np.nan) if np.isnan(factor) else (x.astype(factors.dtype) * factors).astype(real)
        expected[padding] = 0 if zeros is not None else np.nan
        assert np.array_equal(found.astype(float), expected.astype(float), equal_nan=True)
        assert not scratch[:4096].any()


def planted(monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> Any:
    """A kernel of float with this body, and the parameters T* x and double y."""
    import host_kernels
    from gradflow_cupy import kernels

    text = kernels.source_text("losses.cu") + f"template <typename T> __global__ void {name}(T* x, double y) {{{body}}}"
    for module in (kernels, host_kernels):
        monkeypatch.setattr(module, "source_text", lambda source: text)
    monkeypatch.setitem(kernels.SOURCES, f"{name}.cu", (name,))
    return host_kernels.host_kernel(f"{name}<float>")


def test_threads_that_miss_a_barrier_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = planted(monkeypatch, "diverging", "if (threadIdx.x < 5) __syncthreads(); x[0] = 1;")
    with pytest.raises(AssertionError, match="barriers"):
        kernel((1,), (32,), (np.zeros(1, np.float32).ctypes.data, 0.0))


RACES = {
    "no_barrier": ((1,), "__shared__ T part[32]; part[threadIdx.x] = T(threadIdx.x + 1); "
                         "x[threadIdx.x] = part[(threadIdx.x + 31) % 32]; __syncthreads(); part[threadIdx.x] = T(0);"),
    "blocks_in_order": ((32,), "if (threadIdx.x == 0) x[blockIdx.x] = blockIdx.x ? x[blockIdx.x - 1] + 1 : T(1);"),
    "one_thread_in_one_go": ((1,), "__shared__ T count; count = T(0); __syncthreads(); for (int i = 0; i < 30; i++) "
                                   "{ T before = count; int lane = threadIdx.x; count = before + T(1 + 0 * lane); } "
                                   "__syncthreads(); x[threadIdx.x] = count;"),
}  # fmt: skip


@pytest.mark.parametrize("name", RACES)
def test_races_show(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Work that a GPU may do in any order is done in several orders."""
    grid, body = RACES[name]
    kernel = planted(monkeypatch, name, body)
    results = set()
    for _ in range(10):
        x = np.zeros(32, np.float32)
        kernel(grid, (32,), (x.ctypes.data, 0.0))
        results.add(x.tobytes())
    assert len(results) > 1


@pytest.mark.parametrize(("half", "type_"), [("float16", "__half"), ("bfloat16", "__nv_bfloat16")])
def test_half_floats_are_rounded_as_numpy_rounds(monkeypatch: pytest.MonkeyPatch, half: str, type_: str) -> None:
    """Every half float, and numbers between two: one halfway goes to the even one."""
    kernel = planted(monkeypatch, f"to_{half}", f"FOR_EACH_ELEMENT(i, (index_t)y) x[i] = (float){type_}(x[i]);")
    dtype = np.dtype(getattr(ml_dtypes, half, half))
    values = np.arange(2**16, dtype=np.uint16).view(dtype).astype(np.float32)
    values = np.sort(values[np.isfinite(values) & ((values == 0) | (np.abs(values) >= np.finfo(np.float32).tiny))])
    between = [values[:-1] + (values[1:] - values[:-1]) * np.float32(share) for share in (0.25, 0.5, 0.75)]
    x = np.concatenate([values, *between, np.asarray([np.inf, -np.inf, 65519.0, 65520.0, np.nan], np.float32)])
    x = x[(x == 0) | ~(np.abs(x) < np.finfo(np.float32).tiny)]  # others are flushed
    with np.errstate(over="ignore"):
        expected = x.astype(dtype).astype(np.float32)
    kernel(*per_element(x.size), (x.ctypes.data, float(x.size)))
    assert np.array_equal(x, expected, equal_nan=True)


def test_a_number_has_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory after a value is not zero, so a kernel that reads beyond it gets another number."""
    kernel = planted(monkeypatch, "reading", "x[0] = T(y);")
    x = np.zeros(1, np.float32)
    for number, same in ((0.5, True), (np.float64(0.5), True), (np.float32(0.5), False), (np.float16(0.5), False)):
        kernel((1,), (1,), (x.ctypes.data, number))
        assert (x[0] == 0.5) == same, number
