"""The regressor."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import check_array
from sklearn.utils.validation import column_or_1d

import gradflow as gf
from gradflow.sklearn.estimator import Array, Perceptron


class MLPRegressor(RegressorMixin, Perceptron):  # type: ignore[misc]
    """X."""

    _loss = staticmethod(gf.mse_loss)
    _metric = "r2"

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch on X and y, a part of the data; returns the estimator.

        The first call learns from its part how columns are treated and the scale of y, and the state of the optimizer
        stays from call to call. Raises like `fit`.
        """
        return self._fit_part(X, y, sample_weight)

    def predict(self, X: Any) -> Array:
        """Return the predictions, (samples,), or (samples, outputs) if y was so in training."""
        outputs = self._outputs(X)
        values: Array = (outputs * self._deviation + self._mean).astype(outputs.dtype)
        return values if self._outputs_have_an_axis else values[:, 0]

    def _checked_targets(self, y: Any) -> Array:
        values: Array = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        return column_or_1d(values, warn=True) if values.ndim == 2 and values.shape[1] == 1 else values

    def _learn_targets(self, y: Array, weights: Array | None) -> int:
        self._outputs_have_an_axis = y.ndim == 2
        values = y.reshape(len(y), -1)
        self._mean = np.average(values, axis=0, weights=weights)
        self._deviation = np.sqrt(np.average(np.square(values - self._mean), axis=0, weights=weights))
        constant = self._deviation <= np.finfo(np.float64).eps * np.abs(self._mean)
        self._deviation[constant] = 1.0
        return values.shape[1]

    def _groups(self, y: Array) -> Array:
        return np.zeros(len(y), np.int64)

    def _targets(self, y: Array) -> Array:
        values = y.reshape(len(y), -1)
        if values.shape[1] != len(self._mean):
            raise ValueError(f"y has {values.shape[1]} outputs; in training it had {len(self._mean)}")
        scaled: Array = (values - self._mean) / self._deviation
        return scaled

    def _bin_targets(self, targets: Array) -> Array:
        return targets
