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
    """A multilayer perceptron for regression, with the interface of scikit-learn.

    The parameters are those of `sklearn.neural_network.MLPRegressor` where they have the same name; docs/sklearn.md
    lists the differences. Neither inputs nor targets need preprocessing: numbers are scaled, gaps are filled and told
    by an indicator, and texts in a frame are categories. The loss is the mean squared error of the scaled targets.

    hidden_layer_sizes: the widths of the hidden layers, or one width; () for none (default (100,)).
    activation: "relu" (default), "tanh", "logistic", "identity", or another activation of `nn.MLP`.
    learning_rate_init: the learning rate, which is constant (default 0.001).
    batch_size: samples per batch (default "auto": 200, or all if there are fewer).
    max_iter: the largest number of epochs (default 200).
    shuffle: whether each epoch has a new order (default True).
    random_state: a seed, an integer of at least 0; or a `RandomState`, from which one is drawn (default None: a new
        seed each time). Global generators are neither read nor changed.
    tol, n_iter_no_change: training ends when the loss has not fallen by `tol` for more than so many epochs (default
        1e-4 and 10): the loss of the validation if there is one, else that of the training. The weights of the epoch
        in which it is lowest are kept.
    early_stopping: whether to validate (default "auto": from 1,000 samples on). What is validated and kept are then
        averages of the weights over the last few hundred steps.
    validation_fraction: the share of the samples that is held out for it, in (0, 1) (default 0.1).
    warm_start: whether `fit` goes on with the weights of the last call (default False).
    verbose: whether to print the figures of each epoch (default False).
    dropout: the probability of dropping a hidden unit, at least 0 and below 1 (default 0).
    weight_decay: that of `optim.AdamW` (default 0.01).
    encoding: how numbers enter the network, "standard" or "piecewise"; "auto" (default) chooses by the number of
        samples; see `gradflow.tables.Columns`.
    dtype: "float32" (default) or "float64", of the parameters.
    device: such as "cuda:0" (default "auto": a GPU that can be used, else the CPU).

    After `fit`, `n_iter_` is the number of epochs, `loss_` the last training loss, `loss_curve_` all of them,
    `validation_scores_` the R² of the validation after each epoch, `columns_` how the columns are treated, and `model_`
    the trained module. A pickle holds the weights as `gradflow.save` writes them, and opens on a machine without the
    device of the training, too.

    >>> import numpy as np
    >>> from gradflow.sklearn import MLPRegressor
    >>> X = np.linspace(-3, 3, 200)[:, None]
    >>> regressor = MLPRegressor(learning_rate_init=0.02, random_state=0).fit(X, np.sin(X[:, 0]))
    >>> regressor.score(X, np.sin(X[:, 0])) > 0.99
    True
    """

    _loss = staticmethod(gf.mse_loss)
    _metric = "r2"

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch on X and y, a part of the data; returns the estimator.

        The first call learns from its part how columns are treated and the scale of y, and the state of the optimizer
        stays from call to call. Raises like `fit`.
        """
        return self._fit_part(X, y, sample_weight)

    def predict(self, X: Any) -> Array:
        """Return the predictions, float64 (samples,), or (samples, outputs) if y was so in training."""
        values: Array = self._outputs(X) * self._deviation + self._mean  # float64: float32 may not tell them apart
        return values if self._outputs_have_an_axis else values[:, 0]

    def _checked_targets(self, y: Any) -> Array:
        values: Array = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        return column_or_1d(values, warn=True) if values.ndim == 2 and values.shape[1] == 1 else values

    def _learn_targets(self, y: Array, weights: Array | None) -> int:
        self._outputs_have_an_axis = y.ndim == 2
        values = y.reshape(len(y), -1)
        with np.errstate(over="ignore"):
            self._mean = np.average(values, axis=0, weights=weights)
            self._deviation = np.sqrt(np.average(np.square(values - self._mean), axis=0, weights=weights))
        if not np.isfinite(self._deviation).all():
            raise ValueError("y has values that are too large for their deviation: divide them first")
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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
