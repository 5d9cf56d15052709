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
from gradflow_cupy.kernels import REAL_TYPES, SORTED_ROWS, per_cell, per_element, per_row, per_tile
from gradflow_cupy.network import CODES
from gradflow_numpy import NumpyBackend
from host_kernels import COMPILER, NO_COMPILER, host_kernel

from gradflow.backend import ACTIVATIONS, Backend, dropout_threshold

pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)]

REALS = [pytest.param(np.float32, id="float32"), pytest.param(np.float64, id="float64")]
SHAPES = [(1, 1), (3, 10), (5, 32), (4, 33), (2, 700), (300, 3), (1027, 10)]


@pytest.fixture(scope="module")
def composed() -> NumpyBackend:
    """NumPy with only the composed defaults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADFLOW_FUSED", "0")
        return NumpyBackend()


def launch(name: str, real: Any, grid: tuple[int, ...], block: tuple[int, ...], *arguments: Any) -> None:
    expression = name if real is None else f"{name}<{REAL_TYPES[np.dtype(real).char]}>"
    host_kernel(expression)(grid, block, tuple(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))


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
        per_element(rows * columns), per_row(rows, columns), per_cell(rows, columns), per_tile(rows, columns),
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
    launch("random_bits", None, *per_element((n + 3) // 4), out, n, *words)
    assert np.array_equal(out[:n], np.random.Philox(key=key, counter=counter).random_raw(n).reshape(-1))
    assert out[n] == 0  # nothing is written beyond the end


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("n", [1, 7, 8, 2048, 2049, 5003])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_dropout(composed: Any, real: Any, n: int, p: float) -> None:
    x, key, counter = numbers((n,), real), 2**100 + 3, 2**64 - 3
    out, mask = np.zeros_like(x), np.zeros(n, np.bool_)
    first = counter + 1
    words = [first >> s & (2**64 - 1) for s in (0, 64, 128, 192)] + [key & (2**64 - 1), key >> 64]
    # few blocks, so that a block goes through several tiles
    launch("dropout", real, (2,), (256,), x, out, mask, n, dropout_threshold(p), 1 / (1 - p), *words)
    expected, expected_mask = composed.dropout(x, p, key, counter)
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
    assert_ulp(out[finite], expected[finite], 8, np.abs(x[finite]) if name == "gelu" else 0.0)
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
@pytest.mark.parametrize("shape", [*SHAPES, (1000, 40)])
@pytest.mark.parametrize("name", [None, "silu"])
def test_bias_backward(composed: Any, real: Any, shape: Any, name: str | None) -> None:
    rows, columns = shape
    g, saved = numbers(shape, real), numbers(shape, real, 1)
    grid, block, chunk = per_tile(rows, columns)
    dz, sums = np.zeros_like(g), np.zeros((grid[1], columns), real)
    code = 0 if name is None else CODES[name]
    launch("bias_backward", real, grid, block, g, saved, dz, sums, rows, columns, chunk, code, 0.0)
    expected = g if name is None else composed.activate_backward(g, saved, name, 0.0)
    if name is not None:
        assert_ulp(dz, expected, 16, 1.0)
    total = np.abs(expected.astype(np.float64)).sum(axis=0).max()
    assert_ulp(sums.sum(axis=0), expected.sum(axis=0), 8, total)


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
    losses, stats, out = np.zeros(rows, real), np.zeros((rows, 2), real), np.zeros(shape, real)
    launch("cross_entropy", real, *per_row(rows, columns), x, int_target, weights, losses, stats, rows, columns)
    size = float(np.abs(x).max() * (target.sum(axis=1).max() if dense else 1.0))
    assert_ulp(losses, composed.softmax_cross_entropy(x, target, "none")[0], 16, size)
    g = numbers((rows,) if reduction == "none" else (), real, 3)
    divisor = float(rows) if reduction == "mean" else 1.0
    launch(
        "cross_entropy_backward", real, *per_row(rows, columns), g, int(reduction == "none"), divisor, x, int_target,
        weights, stats, out, rows, columns,
    )  # fmt: skip
    expected = composed.softmax_cross_entropy_backward(g, x, target, reduction, None, [True, False])[0]
    assert_ulp(out, expected, 16, float(np.abs(g).max()) / divisor * (size if dense else 1.0))


def test_a_label_that_is_no_class_makes_a_loss_of_nan() -> None:
    x, labels = numbers((3, 4), np.float32), np.array([4, -1, 3])
    losses, stats = np.zeros(3, np.float32), np.zeros((3, 2), np.float32)
    launch("cross_entropy", np.float32, *per_row(3, 4), x, labels, None, losses, stats, 3, 4)
    assert np.isnan(losses).tolist() == [True, True, False]


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("shape", [(3, 10), (5, 32), (2, 700), (300, 3), (600, 40)])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(composed: Any, real: Any, shape: Any, affine: bool) -> None:
    rows, columns = shape
    x, g = numbers(shape, real), numbers(shape, real, 1)
    weight, bias = (numbers((columns,), real, 2), numbers((columns,), real, 3)) if affine else (None, None)
    out, stats, gx = np.zeros(shape, real), np.zeros((rows, 2), real), np.zeros(shape, real)
    launch("layer_norm", real, *per_row(*shape), x, weight, bias, out, stats, rows, columns, 1e-5)
    expected, residual = composed.layer_norm(x, weight, bias, (1,), 1e-5)
    assert_ulp(out, expected, 16, float(np.abs(expected).max()))
    launch("layer_norm_backward", real, *per_row(*shape), g, x, weight, stats, gx, rows, columns)
    grid, block, chunk = per_tile(rows, columns)
    sums = np.zeros((2, grid[1], columns), real)
    launch("layer_norm_columns", real, grid, block, g, x, stats, sums, rows, columns, chunk)
    needs = [True, True, True]
    for actual, value in zip(
        (gx, sums[0].sum(axis=0), sums[1].sum(axis=0)),
        composed.layer_norm_backward(g, x, weight, (1,), 1e-5, residual, needs),
        strict=True,
    ):
        assert_ulp(actual, value, 64, float(np.abs(value).max()) + np.sqrt(rows))


# ------------------------------------------------------------------ other losses


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("n", [1, 255, 1000, 70_000])
def test_squared_error(composed: Any, real: Any, n: int) -> None:
    x, target, difference = numbers((n,), real), numbers((n,), real, 1), np.zeros(n, real)
    grid, block = per_element(n, 16)
    partial, out = np.zeros(grid, real), np.zeros((), real)
    launch("squared_error", real, grid, block, x, target, difference, partial, n)
    launch("sum_all", real, (1,), (256,), partial, out, grid[0], float(n))
    assert np.array_equal(difference, x - target)
    expected, residual = composed.squared_error(x, target, "mean")
    assert_ulp(out, np.asarray(expected), 32)
    g, gx, gt = numbers((), real), np.zeros(n, real), np.zeros(n, real)
    launch("squared_error_backward", real, *per_element(n), g, 0, 2.0 / n, residual, gx, gt, n)
    for actual, value in zip(
        (gx, gt), composed.squared_error_backward(g, x, target, "mean", residual, [True, True]), strict=True
    ):
        assert_ulp(actual, value, 2)


@pytest.mark.parametrize("real", REALS)
@pytest.mark.parametrize("parts", [1, 3, 64])
@pytest.mark.parametrize(("many", "columns"), [(1, 1), (1, 2), (3, 1), (5, 7), (1, 300)])
def test_sum_rows(many: int, columns: int, parts: int, real: Any) -> None:
    rows = 20_000 // columns
    x, out = np.full((many, rows, columns), 0.7, real), np.full((many, parts, columns), np.nan, real)
    launch("sum_rows", real, *per_element(out.size), x, out, many, rows, columns, parts)
    expected = [x[:, k::parts].astype("longdouble").sum(1) for k in range(parts)]
    assert_ulp(out, np.stack(expected, 1).astype(real), 1)


@pytest.mark.parametrize("real", REALS)
def test_sums_of_what_is_not_finite(real: Any) -> None:
    x, out = np.ones((100, 4), real), np.zeros((1, 4), real)
    x[3, 1:] = np.inf, -np.inf, np.nan
    launch("sum_rows", real, *per_element(4), x, out, 1, 100, 4, 1)
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
    x, zeros, difference, partial = np.full(n, 0.7, real), np.zeros(n, real), np.zeros(n, real), np.zeros(1, real)
    value, one = float(x[0]), np.ones(1)
    launch("squared_error", real, (1,), (1,), x, zeros, difference, partial, n)
    assert_ulp(partial, (n * value**2 * one).astype(real), 4)
    launch("square_sums", real, (1,), (1,), x, partial, n)
    assert_ulp(partial, (n * value**2 * one).astype(real), 4)
    launch("sum_all", real, (1,), (1,), x, partial, n, 1.0)
    assert_ulp(partial, (n * value * one).astype(real), 2)
    out, stats = np.zeros(n, real), np.zeros((1, 2), real)
    x[0] = 0.8  # the others are smaller, so that their exponentials are not integers
    launch("softmax", real, (1,), (1,), x, out, 1, n)
    expected = np.exp(x.astype("float64") - 0.8)
    assert_ulp(out, (expected / expected.sum()).astype(real), 4)
    x[0] = 0.7
    launch("layer_norm", real, (1,), (1,), x, None, None, out, stats, 1, n, 1.0)
    assert_ulp(stats[0, :1], (value * one).astype(real), 2)
    launch("bias_backward", real, (1, 1), (32,), x, None, None, partial, n, 1, n, 0, 0.0)
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


@pytest.mark.parametrize("real", REALS)
def test_clip(composed: Any, real: Any) -> None:
    x, result = numbers((3000,), real), np.zeros(2, real)
    for max_norm in (1.0, 1e9):
        actual, expected = x.copy(), x.copy()
        grid, block = per_element(x.size, 8)
        partial = np.zeros(grid, real)
        launch("square_sums", real, grid, block, actual, partial, x.size)
        launch("clip_factor", real, (1,), (256,), partial, result, grid[0], max_norm)
        launch("scale_by", real, *per_element(x.size), actual, result[1:], x.size)
        norm = composed.clip_global_norm([expected], max_norm)
        assert_ulp(result[0], np.asarray(norm), 16)
        assert_ulp(actual, expected, 16)


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
