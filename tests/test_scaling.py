"""The scale of features and targets: in float64, in bounded memory, and the same after it was saved."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

from gradflow.data import Standardizer, scaling


def test_mean_and_deviation_are_those_of_the_chosen_rows() -> None:
    values = np.random.default_rng(0).normal(3, 2, (1000, 5)).astype(np.float32)
    chosen = np.arange(0, 1000, 3)
    scale = Standardizer.fit(values, chosen)
    np.testing.assert_allclose(scale.mean, values[chosen].astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(scale.deviation, values[chosen].astype(np.float64).std(0), rtol=1e-13)
    expected = (values[chosen].astype(np.float64) - scale.mean) / scale.deviation
    np.testing.assert_array_equal(scale.apply(values, chosen), expected.astype(np.float32))
    np.testing.assert_array_equal(scale.apply(values)[chosen], scale.apply(values, chosen))
    np.testing.assert_allclose(scale.undo(scale.apply(values)), values, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_the_scale_is_the_same_however_many_rows_are_read_at_once(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(3, 2, (53, 5))
    whole = Standardizer.fit(values)
    monkeypatch.setattr(scaling, "_CHUNK", chunk)
    parts = Standardizer.fit(values)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(parts.deviation, whole.deviation, rtol=1e-14)
    np.testing.assert_array_equal(whole.apply(values), Standardizer(whole.mean, whole.deviation).apply(values))


def test_float32_values_far_from_zero_have_the_mean_of_float64() -> None:
    values = np.random.default_rng(0).normal(1000, 1, (300_000, 1)).astype(np.float32)
    scale = Standardizer.fit(values)
    exact = values.astype(np.float64)
    assert scale.mean[0] == pytest.approx(exact.mean(), rel=1e-13)
    assert scale.deviation[0] == pytest.approx(exact.std(), rel=1e-12)


def test_times_in_seconds_keep_their_distinct_values() -> None:
    times = 1.7e9 + np.arange(1000.0)[:, None]
    assert len(np.unique(times.astype(np.float32))) < 20
    assert len(np.unique(Standardizer.fit(times).apply(times))) == 1000


def test_values_are_clipped_to_the_limit_and_constant_columns_only_shifted() -> None:
    values = np.array([[0.1, 0.0], [0.1, 1.0], [0.1, 2.0]])
    scale = Standardizer.fit(values, limit=3.0)
    assert scale.mean[0] == 0.1
    assert scale.deviation[0] == 1.0
    scaled = scale.apply(np.array([[0.1, 1.0], [2.1, 100.0], [9.0, -100.0]]))
    assert scaled.tolist() == [[0.0, 0.0], [2.0, 3.0], [3.0, -3.0]]


@pytest.mark.parametrize("samples", [2, 37, 1000])
def test_constant_columns_are_found_whatever_their_value(samples: int) -> None:
    constants = np.random.default_rng(0).normal(size=200) * 10.0 ** np.arange(-100, 100)
    scale = Standardizer.fit(np.tile(constants, (samples, 1)))
    assert (scale.mean == constants).all()
    assert (scale.deviation == 1).all()


def test_what_scaling_takes_beyond_its_result_is_bounded() -> None:
    values = np.zeros((10_000, 784), np.uint8)
    values[::2] = 9
    tracemalloc.start()
    Standardizer.fit(values)
    fitting = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    scaled = Standardizer(np.zeros(784), np.ones(784)).apply(values)
    applying = tracemalloc.get_traced_memory()[1] - scaled.nbytes
    tracemalloc.stop()
    assert max(fitting, applying) < 40e6  # all as float64 is 63 MB


def test_a_state_of_plain_numbers_gives_the_same_scale() -> None:
    scale = Standardizer.fit(np.random.default_rng(0).normal(size=(9, 3)), limit=3.0)
    for original in (scale, Standardizer(scale.mean, scale.deviation)):
        state = original.state()
        again = Standardizer.from_state(json.loads(json.dumps(state)))
        assert again.mean.tolist() == original.mean.tolist()
        assert again.deviation.tolist() == original.deviation.tolist()
        assert again.limit == original.limit


GOOD = {"kind": "standardizer", "limit": 3.0, "mean": [0.0, 1.0], "deviation": [1.0, 2.0]}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "categories"}, {"limit": "x"}, {"limit": -1}, {"limit": float("nan")}, {"mean": [0.0]}, {"mean": None},
        {"mean": [[0.0, 1.0]]}, {"mean": [0.0, float("inf")]}, {"deviation": [1.0, 0.0]}, {"deviation": ["a", "b"]},
        {"deviation": [1.0, float("nan")]},
    ],
)  # fmt: skip
def test_other_states_are_refused(change: dict[str, Any]) -> None:
    assert Standardizer.from_state(GOOD).limit == 3
    with pytest.raises(ValueError, match="Standardizer"):
        Standardizer.from_state({**GOOD, **change})
    for name in GOOD:
        with pytest.raises(ValueError, match="not the state of a Standardizer"):
            Standardizer.from_state({k: v for k, v in GOOD.items() if k != name})


def test_other_widths_and_no_samples_are_refused() -> None:
    scale = Standardizer.from_state(GOOD)
    with pytest.raises(ValueError, match=r"this scale is of 2 columns; got values of shape \(4, 3\)"):
        scale.apply(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="at least one sample"):
        Standardizer.fit(np.zeros((0, 3)))
