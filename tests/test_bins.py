"""Bins of a column: those of scikit-learn's decision tree of this column alone, or of equal weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow.tables.bins import are_edges, column_edges, quantile_edges, tree_cuts


def column(kind: str) -> tuple[Any, Any, Any, Any]:
    """Values, targets, the same targets as scikit-learn takes them, and weights, some of them 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=3000).astype("float32")
    if kind == "repeated":
        x = np.round(x, 1)
    y = np.sin(3 * x) + 0.3 * rng.normal(size=3000)
    if kind == "classes":
        labels = (y > 0).astype(int) + (y > 0.8)
        return x, np.eye(3)[labels], labels, rng.integers(0, 4, 3000)
    if kind == "far from 0":  # where sums that are not centered lose digits, as scikit-learn's do
        return x, y + 1e6, y, rng.integers(0, 4, 3000)
    return x, y, y, rng.integers(0, 4, 3000)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("most", "smallest"), [(2, 1), (17, 1), (48, 30), (3000, 200)])
@pytest.mark.parametrize("kind", ["regression", "classes", "far from 0", "repeated"])
def test_the_cuts_are_those_of_scikit_learns_tree(kind: str, most: int, smallest: int, weighted: bool) -> None:
    tree = pytest.importorskip("sklearn.tree")
    x, y, given, w = column(kind)
    weights = w.astype("float64") if weighted else None
    model = tree.DecisionTreeClassifier if kind == "classes" else tree.DecisionTreeRegressor
    expected = model(max_leaf_nodes=most, min_samples_leaf=smallest).fit(x[:, None], given, weights).tree_
    cuts = tree_cuts(x, y, most, smallest, weights)
    np.testing.assert_array_equal(cuts, np.sort(expected.threshold[expected.feature == 0]))
    assert 0 < len(cuts) < most


def test_a_weight_counts_like_so_many_rows() -> None:
    x, y, _, w = column("regression")
    cuts = tree_cuts(x, y, 20, 1, w.astype("float64"))
    np.testing.assert_array_equal(cuts, tree_cuts(np.repeat(x, w), np.repeat(y, w), 20))


LIGHT = np.exp(-np.arange(2000) / 7)


@pytest.mark.parametrize(
    "weights",
    [
        np.full(2000, 1e308), np.full(2000, 5e-324), LIGHT, LIGHT[::-1], LIGHT * 1e-180,
        10.0 ** np.random.default_rng(0).uniform(-20, 0, 2000), np.where(np.arange(2000) > 700, 1e-100, 1e100),
    ],
    ids=["huge", "tiny", "falling", "rising", "tiny and falling", "random", "two"],
)  # fmt: skip
def test_light_rows_beside_heavy_ones_are_told_apart(weights: Any) -> None:
    """Warnings are errors: no sum overflows, and none of the light rows is lost in that of the heavy ones."""
    x = np.arange(2000.0)
    np.testing.assert_array_equal(tree_cuts(x, x > 700, 8, 1, weights), [700.5])
    assert column_edges(x, np.ones(2000), 4, 1, weights)[[0, -1]].tolist() == [0, 1999]


@pytest.mark.parametrize("unit", [1.7e308, 1e200, 1e-200, 5e-324])
def test_targets_may_be_of_any_size(unit: float) -> None:
    x = np.arange(2000.0)
    np.testing.assert_array_equal(tree_cuts(x, np.where(x > 700, unit, -unit), 8), [700.5])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_edges_are_of_the_dtype_of_the_column(dtype: str) -> None:
    values = np.repeat(1 + np.array([0, 1, 2, 3]) * 1e-9, 10).astype(dtype)
    values[0] = 0.0
    edges = column_edges(values, np.arange(40) // 10 % 2 * 1.0, 8)
    assert edges.dtype == dtype
    assert len(edges) == {"float32": 3, "float64": 5}[dtype]
    assert are_edges(edges.tolist(), dtype)


def test_all_bins_are_so_wide_that_they_have_a_finite_scale() -> None:
    """Also if rows differ by subnormal numbers."""
    tiny = np.finfo(np.float32).tiny
    x = np.repeat(np.array([-1, 0, tiny / 8, tiny / 4, tiny / 2, 1], np.float32), 10)
    edges = column_edges(x, np.arange(60) // 10 % 2 * 1.0, 8)
    assert are_edges(edges.tolist(), "float32")
    encode = nn.PiecewiseLinear([edges.tolist()])
    assert np.isfinite(encode.scales.numpy()).all()
    assert np.isfinite(encode(gf.tensor(x[:, None])).numpy()).all()
    for wrong in ([0.0], [0.0, 0.0], [0.0, 1e-45], [0.0, 1e39], [1.0, 0.0]):
        assert not are_edges(wrong, "float32")


def test_rows_of_hardly_any_weight_are_within_the_edges() -> None:
    x, weights = np.arange(20000.0) == 7, np.ones(20000)
    weights[7] = 1e-13
    assert column_edges(1.0 * x, np.zeros(20000), 8, 2, weights).tolist() == [0.0, 1.0]


def test_the_edges_enclose_the_column() -> None:
    x, y, _, _ = column("regression")
    edges = column_edges(x, y, 48, 20)
    assert edges.dtype == np.float32
    assert (edges[0], edges[-1], len(edges)) == (x.min(), x.max(), 49)
    np.testing.assert_allclose(edges[1:-1], tree_cuts(x, y, 48, 20), rtol=1e-7)
    weights = (x < 1).astype("float64")
    assert column_edges(x, y, 48, 20, weights)[-1] == x[x < 1].max()


@pytest.mark.parametrize("values", [[5.0, 1.0], [3e38, -3e38], [1.0, np.nextafter(np.float32(1), np.float32(2))]])
def test_a_column_of_two_values_has_bins(values: list[float]) -> None:
    """Also of the largest numbers, whose sum is infinite, and of neighbours, between which there is no number."""
    x = np.repeat(np.array(values, np.float32), 10)
    edges = column_edges(x, np.repeat([0.0, 1.0], 10), 8)
    assert np.isfinite(edges).all()
    assert (np.diff(edges.astype("float64")) > 0).all()
    assert (edges[0], edges[-1]) == (min(values), max(values))


def test_without_a_cut_that_tells_targets_apart_bins_have_equal_weight() -> None:
    x = np.random.default_rng(0).permutation(1000).astype("float32")
    for constant in (np.zeros(1000), np.full(1000, 0.1), np.full(1000, 1e9)):
        np.testing.assert_array_equal(column_edges(x, constant, 4), [0, 249, 499, 749, 999])
    np.testing.assert_array_equal(column_edges(x, np.zeros(1000), 4, smallest=501), [0, 249, 499, 749, 999])
    assert len(column_edges(x, x, 4, smallest=501)) == 5


def test_bins_of_equal_weight() -> None:
    x = np.arange(1000.0)
    np.testing.assert_array_equal(quantile_edges(x, 2, (x >= 500).astype("float64")), [500, 749, 999])
    np.testing.assert_array_equal(quantile_edges(np.array([7.0, 7, 7, 7, 9]), 4), [7, 9])
    counts = np.histogram(x, quantile_edges(x, 10))[0]
    assert counts.min() >= 99
    assert counts.max() <= 101


def test_of_many_rows_evenly_spaced_ones_grow_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, _, _ = column("regression")
    monkeypatch.setattr("gradflow.tables.bins._LARGEST", 1000)
    np.testing.assert_array_equal(tree_cuts(x, y, 10), tree_cuts(x[::3], y[::3], 10))
