"""What the classifier and the regressor have in common: parameters, training, outputs and pickles."""

from __future__ import annotations

import contextlib
import math
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Real
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, check_is_fitted

import gradflow as gf
from gradflow.backend import ACTIVATIONS
from gradflow.data import Batches
from gradflow.sklearn import network
from gradflow.sklearn.absent import absence, naming_absent
from gradflow.sklearn.inputs import hold_out, learn_columns, read_inputs
from gradflow.sklearn.network import Network, device_of
from gradflow.tables import Columns, Table
from gradflow.tables.choices import ENCODINGS
from gradflow.training import Trainer
from gradflow.training.epoch import Epoch
from gradflow.training.threads import thread_limit

Array = npt.NDArray[Any]

EARLY_STOPPING_ROWS = 1000
"""From so many rows on, training is stopped early by default. A tenth of fewer rows tells little."""

_AVERAGE = 0.995
"""The decay of the averaged weights, which are validated. Measured on California housing: RMSE 0.460 -> 0.452."""
_BATCH = 200
_SPLIT_STREAM = 1 << 64  # added to the seed
_VALIDATION_BATCH = 4096


class Perceptron(BaseEstimator):  # type: ignore[misc]
    """A multilayer perceptron as an estimator; see `MLPClassifier` and `MLPRegressor`."""

    _loss: Callable[..., gf.Tensor]
    _metric: str

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
        encoding: str = "auto",
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.learning_rate_init = learning_rate_init
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.warm_start = warm_start
        self.verbose = verbose
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.encoding = encoding
        self.dtype = dtype
        self.device = device

    def set_params(self, **params: Any) -> Self:
        """Set parameters of the estimator, and return it. Raises ValueError for a name that is none."""
        message = absence(self, params)
        if message:
            raise ValueError(message)
        super().set_params(**params)
        return self

    # ------------------------------------------------------------------ of the kind of target

    def _checked_targets(self, y: Any) -> Array:
        """y as an array, checked."""
        raise NotImplementedError

    def _learn_targets(self, y: Array, weights: Array | None) -> int:
        """Learn classes or a scale of the training rows; returns the number of outputs."""
        raise NotImplementedError

    def _groups(self, y: Array) -> Array:
        """(rows,): of each of these groups, a share is held out."""
        raise NotImplementedError

    def _targets(self, y: Array) -> Array:
        """The targets of the loss: codes, or values on the scale."""
        raise NotImplementedError

    def _bin_targets(self, targets: Array) -> Array:
        """The targets of bins, of those of the loss."""
        raise NotImplementedError

    def _all_weights(self, targets: Array, weights: Array | None) -> Array | None:
        """The weights of the rows times those of their classes."""
        return weights

    # ------------------------------------------------------------------ training

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on X and y; returns the estimator.

        X: an array of numbers (samples, features), NaN where they are missing, or a frame of pandas or polars.
        y: (samples,), and for a regression also (samples, outputs).
        sample_weight: (samples,), at least 0 (default: equal weights).

        With `warm_start`, training goes on with the weights, the columns and the classes of the last call. Raises
        ValueError, which names the argument or the parameter, TypeError for data of a wrong type, and
        NonFiniteLossError for a training that diverges.
        """
        warm = self.warm_start and self.__sklearn_is_fitted__()
        table, y, weights = self._checked_rows(X, y, sample_weight, warm)
        generator = self._network.generator if warm else self._new_generator()
        stay, held = np.arange(len(table)), None
        early = len(table) >= EARLY_STOPPING_ROWS if self.early_stopping == "auto" else self.early_stopping
        if early:
            own = gf.Generator(generator.key + _SPLIT_STREAM)  # with warm_start, the same rows in each call
            stay, held = hold_out(self._groups(y), self.validation_fraction, own)
        if not warm:
            self._begin(table.take(stay), y[stay], None if weights is None else weights[stay], generator)
        optimizer = self._network.new_optimizer(self.learning_rate_init, self.weight_decay)
        trainer = self._trainer(table, y, weights, stay, held, optimizer)
        best, waited = math.inf, 0
        with self._computing(trainer):
            for epoch in trainer.epochs(self.max_iter):
                loss = epoch.train_loss if epoch.validation_loss is None else epoch.validation_loss
                self._tell(epoch)
                waited = 0 if loss < best - self.tol else waited + 1
                best = min(best, loss)
                if waited > self.n_iter_no_change:
                    break
        if waited <= self.n_iter_no_change:
            warnings.warn(
                f"after max_iter={self.max_iter} epochs, the loss still falls: raise max_iter or learning_rate_init",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def _fit_part(self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Self:
        """Train for one epoch on X and y, see `partial_fit`."""
        known = self.__sklearn_is_fitted__()
        table, y, weights = self._checked_rows(X, y, sample_weight, known)
        if not known:
            self._begin(table, y, weights, self._new_generator(), classes)
        own = self._network
        own.optimizer = own.optimizer or own.new_optimizer(self.learning_rate_init, self.weight_decay)
        trainer = self._trainer(table, y, weights, np.arange(len(table)), None, own.optimizer)
        with self._computing(trainer):
            for epoch in trainer.epochs(1):
                self._tell(epoch)
        return self

    def _checked_rows(self, X: Any, y: Any, sample_weight: Any, known: bool) -> tuple[Table, Array, Array | None]:
        """X as a table, y and the weights; without the rows of weight 0."""
        self._check_parameters()
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        if known:
            self._check_architecture()
        else:
            self.__dict__.pop("_network", None)  # an error below leaves no estimator of two trainings
        table = read_inputs(self, X, 1 if known else 2, self._network if known else None)
        y = self._checked_targets(y)
        check_consistent_length(X, y)
        if sample_weight is None:
            return table, y, None
        weights = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
        used = weights > 0
        return table.take(used), y[used], weights[used]

    def _new_generator(self) -> gf.Generator:
        """A generator with the seed of `random_state`; with None, of a seed that nothing else draws."""
        state = self.random_state
        if state is None:
            return gf.Generator(secrets.randbits(64))
        if _is_integer(state) and state >= 0:
            return gf.Generator(int(state))
        return gf.Generator(int(check_random_state(state).randint(2**31 - 1)))

    def _begin(
        self, table: Table, y: Array, weights: Array | None, generator: gf.Generator, classes: Any = None
    ) -> None:
        """Learn columns and targets from the training rows, and make the network."""
        if classes is not None:
            self.classes_ = classes
        outputs = len(classes) if classes is not None else self._learn_targets(y, weights)
        columns = learn_columns(table, self._bin_targets(self._targets(y)), weights, self.encoding, self.dtype)
        self._network = Network(columns, device_of(self.device), generator, **self._architecture(outputs))
        self.n_iter_: int = 0
        self.loss_curve_: list[float] = []
        self.validation_scores_: list[float] = []

    def _architecture(self, outputs: int) -> dict[str, Any]:
        """Those arguments of `Network` that it keeps."""
        sizes = self.hidden_layer_sizes
        hidden = sizes if isinstance(sizes, Iterable) else [sizes]
        widths = [int(width) for width in (*hidden, outputs)]
        return {
            "widths": widths, "activation": self.activation, "dropout": float(self.dropout), "dtype": self.dtype,
        }  # fmt: skip

    def _check_architecture(self) -> None:
        """Raise ValueError if the parameters call for another network than the one that is there."""
        there: dict[str, Any] = self._network.architecture
        for name, value in self._architecture(there["widths"][-1]).items():
            if value != there[name]:
                own = "hidden_layer_sizes" if name == "widths" else name
                raise ValueError(
                    f"{own} has changed, and the network is to be trained on: set it back, or make a new one"
                )

    def _trainer(
        self,
        table: Table,
        y: Array,
        weights: Array | None,
        stay: Array,
        held: Array | None,
        optimizer: gf.optim.AdamW,
    ) -> Trainer:
        """A trainer on some rows, which validates on others, if there are any."""
        own = self._network
        x, targets = own.columns.encode(table), self._targets(y)
        targets = targets if targets.dtype.kind == "i" else targets.astype(own.dtype)
        weights = self._all_weights(targets, weights)

        def batches(rows: Array, size: int, shuffle: bool) -> Batches:
            chosen = None if weights is None else weights[rows]
            return Batches(x[rows], targets[rows], size, own.generator, shuffle, device=own.device, weights=chosen)

        size = min(_BATCH, len(stay)) if self.batch_size == "auto" else int(self.batch_size)
        train = batches(stay, size, self.shuffle)
        if held is None:
            return Trainer(own.model, self._loss, optimizer, train, capture=True)
        validation = batches(held, _VALIDATION_BATCH, False)
        metrics = [self._metric]
        return Trainer(
            own.model, self._loss, optimizer, train, validation, metrics=metrics, average=_AVERAGE, capture=True
        )

    @contextlib.contextmanager
    def _computing(self, trainer: Trainer) -> Iterator[None]:
        """Train inside a `with`, on one thread if the network is small.

        At its end, also by Ctrl-C, the best weights are kept. After an error, which may mean that weights are not
        finite, there is no network.
        """
        own = self._network
        try:
            with thread_limit(own.device.type, own.sizes, trainer.train.batch_size), np.errstate(all="ignore"):
                yield
        except Exception:
            del self._network
            raise
        finally:
            if trainer.best is not None:
                trainer.restore_best()
            own.model.eval()

    def _tell(self, epoch: Epoch) -> None:
        """Count an epoch."""
        scores = epoch.validation_metrics.values()
        self.n_iter_ += 1
        self.loss_ = epoch.train_loss
        self.loss_curve_.append(epoch.train_loss)
        self.validation_scores_ += scores
        if self.verbose:
            score = "".join(f", validation score = {value:.6f}" for value in scores)
            print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}{score}")

    def _check_parameters(self) -> None:
        """Raise ValueError for the first parameter that is invalid, except those that the network checks."""
        names = (*ACTIVATIONS, *network.ACTIVATIONS)

        def check(name: str, holds: bool, needed: str) -> None:
            if not holds:
                raise ValueError(f"{name} must be {needed}; got {getattr(self, name)!r}")

        def is_count(value: Any) -> bool:
            return _is_integer(value) and value >= 1

        def is_number(value: Any) -> bool:
            return isinstance(value, Real) and not isinstance(value, bool)

        sizes = self.hidden_layer_sizes
        are_widths = all(map(is_count, sizes if isinstance(sizes, Iterable) else [sizes]))
        check("hidden_layer_sizes", are_widths, "the widths of the hidden layers, integers of at least 1")
        check("activation", self.activation in names, f"one of {', '.join(names)}")
        check("batch_size", self.batch_size == "auto" or is_count(self.batch_size), "'auto' or at least 1")
        check("max_iter", is_count(self.max_iter), "an integer of at least 1")
        waits = is_count(self.n_iter_no_change) or self.n_iter_no_change == math.inf
        check("n_iter_no_change", waits, "an integer of at least 1, or infinite")
        for name in ("shuffle", "warm_start"):
            check(name, getattr(self, name) in (True, False), "True or False")
        check("tol", is_number(self.tol) and self.tol >= 0, "a number of at least 0")
        check("early_stopping", self.early_stopping in (True, False, "auto"), "True, False or 'auto'")
        share = self.validation_fraction
        check("validation_fraction", is_number(share) and 0 < share < 1, "above 0 and below 1")
        check("encoding", self.encoding in ENCODINGS, f"one of {', '.join(ENCODINGS)}")
        check("dtype", self.dtype in ("float32", "float64"), "'float32' or 'float64'")

    # ------------------------------------------------------------------ use

    @property
    def columns_(self) -> Columns:
        """How the columns of X are treated; `columns_.describe()` tells it."""
        check_is_fitted(self)
        return self._network.columns

    @property
    def model_(self) -> gf.nn.Sequential:
        """The trained module: its first part encodes the columns, the second is an `nn.MLP`."""
        check_is_fitted(self)
        return self._network.model

    def _outputs(self, X: Any) -> Array:
        """The outputs of the network for X. Raises NotFittedError before `fit`."""
        check_is_fitted(self)
        own = self._network
        return own.outputs(own.columns.encode(read_inputs(self, X, known=own)))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_network")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "_network" in state:
            state["_network"] = self._network.to_bytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_network" in state:
            self._network = Network.from_bytes(state["_network"], state["device"])


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
