"""The classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import assert_all_finite
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

import gradflow as gf
from gradflow.sklearn.absent import naming_absent
from gradflow.sklearn.estimator import Array, Perceptron


class MLPClassifier(ClassifierMixin, Perceptron):  # type: ignore[misc]
    """A multilayer perceptron that classifies, with the interface of scikit-learn.

    The parameters are those of `sklearn.neural_network.MLPClassifier` where they have the same name; docs/sklearn.md
    lists the differences. Inputs need no preprocessing: numbers are scaled, gaps are filled and told by an indicator,
    and texts in a frame are categories.

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
    validation_fraction: the share of the samples that is held out for it, in (0, 1) (default 0.1), of each class.
    warm_start: whether `fit` goes on with the weights of the last call (default False).
    verbose: whether to print the figures of each epoch (default False).
    dropout: the probability of dropping a hidden unit, at least 0 and below 1 (default 0).
    weight_decay: that of `optim.AdamW` (default 0.01).
    class_weight: "balanced", or a dict of numbers by label (others: 1); they multiply the weights of the samples
        (default None: all 1).
    encoding: how numbers enter the network, "standard" or "piecewise"; "auto" (default) chooses by the number of
        samples; see `gradflow.tables.Columns`.
    dtype: "float32" (default) or "float64", of the parameters and the probabilities.
    device: such as "cuda:0" (default "auto": a GPU that can be used, else the CPU).

    After `fit`, `classes_` are the labels, `n_iter_` is the number of epochs, `loss_` the last training loss,
    `loss_curve_` all of them, `validation_scores_` the accuracy of the validation after each epoch, `columns_` how the
    columns are treated, and `model_` the trained module. A pickle holds the weights as `gradflow.save` writes them, and
    opens on a machine without the device of the training, too.

    >>> from sklearn.datasets import load_iris
    >>> from gradflow.sklearn import MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = MLPClassifier(learning_rate_init=0.02, random_state=0).fit(X, y)
    >>> classifier.predict(X[[0, 75, 149]]), classifier.predict_proba(X[:1]).shape
    (array([0, 1, 2]), (1, 3))
    """

    _loss = staticmethod(gf.cross_entropy)
    _metric = "accuracy"

    @naming_absent
    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        learning_rate_init: float = 0.001,
        batch_size: int | str = "auto",
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        early_stopping: bool | str = "auto",
        validation_fraction: float = 0.1,
        warm_start: bool = False,
        verbose: bool = False,
        dropout: float = 0.0,
        weight_decay: float = 0.01,
        class_weight: str | Mapping[Any, float] | None = None,
        encoding: str = "auto",
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            activation,
            learning_rate_init=learning_rate_init,
            batch_size=batch_size,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            n_iter_no_change=n_iter_no_change,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            warm_start=warm_start,
            verbose=verbose,
            dropout=dropout,
            weight_decay=weight_decay,
            encoding=encoding,
            dtype=dtype,
            device=device,
        )
        self.class_weight = class_weight

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch on X and y, a part of the data; returns the estimator.

        X, y, sample_weight: as for `fit`.
        classes: all labels that y has in any call; the first call needs them, later ones may leave them out.

        The first call learns from its part how columns are treated, and the state of the optimizer stays from call to
        call. Raises like `fit`.
        """
        known = self.__sklearn_is_fitted__()
        if self.class_weight == "balanced":
            raise ValueError("class_weight='balanced' needs all data: give partial_fit a dict of weights by class")
        if classes is None and not known:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        if classes is not None:
            classes = np.unique(classes)
            if known and not np.array_equal(classes, self.classes_):
                raise ValueError(f"classes={classes} is not the same as on the last call: {self.classes_}")
        return self._fit_part(X, y, sample_weight, None if known else classes)

    def predict(self, X: Any) -> Array:
        """Return the most probable label for each row of X, (samples,)."""
        most: Array = self._outputs(X).argmax(axis=1)
        labels: Array = self.classes_[most]
        return labels

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of the classes, in the order of `classes_`: (samples, classes)."""
        outputs = self._outputs(X)
        odds = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
        shares: Array = (odds / odds.sum(axis=1, keepdims=True)).astype(outputs.dtype)
        return shares

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithms of `predict_proba`, (samples, classes); -inf for probabilities of 0."""
        with np.errstate(divide="ignore"):
            logarithms: Array = np.log(self.predict_proba(X))
        return logarithms

    def _checked_targets(self, y: Any) -> Array:
        labels: Array = column_or_1d(y, warn=True)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        return labels

    def _learn_targets(self, y: Array, weights: Array | None) -> int:
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(
                f"at least two classes are needed; all samples are of the class {self.classes_.tolist()[0]!r}"
            )
        return len(self.classes_)

    def _groups(self, y: Array) -> Array:
        return y

    def _targets(self, y: Array) -> Array:
        codes = np.minimum(np.searchsorted(self.classes_, y), len(self.classes_) - 1)
        unknown = np.unique(y[self.classes_[codes] != y])
        if len(unknown):
            raise ValueError(f"y has labels that are no classes: {unknown}; the classes are {self.classes_}")
        return codes.astype(np.int64)

    def _bin_targets(self, targets: Array) -> Array:
        return np.eye(len(self.classes_), dtype=np.uint8)[targets] if len(self.classes_) > 2 else targets

    def _all_weights(self, targets: Array, weights: Array | None) -> Array | None:
        if self.class_weight is None:
            return weights
        if self.class_weight == "balanced":
            totals = np.bincount(targets, weights, len(self.classes_))
            factors = totals.sum() / (len(totals) * np.maximum(totals, np.finfo(float).tiny))
        else:
            factors = compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_)
            if not (np.isfinite(factors).all() and (factors >= 0).all()):
                raise ValueError(f"class_weight must hold finite numbers of at least 0; got {self.class_weight}")
        found: Array = factors[targets] * (1.0 if weights is None else weights)
        return found
