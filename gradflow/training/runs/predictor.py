"""`Predictor`: trained models with everything that a prediction needs, in memory and in a model file.

That is the weights, the architecture, the scales of the inputs and targets, and the classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

import gradflow as gf
from gradflow.backend.registry import DeviceLike
from gradflow.data.inputs import DataError, as_array
from gradflow.data.labels import Label, checked_targets, encode_as
from gradflow.data.scaling import Standardizer
from gradflow.data.splits import Split
from gradflow.tables import Columns
from gradflow.text import printable
from gradflow.training.metrics import figures_of
from gradflow.training.runs.inputs import inputs_of
from gradflow.training.runs.model_file import FORMAT, arguments, build_model, some

CLASS_FIGURES = ("accuracy", "balanced_accuracy", "f1", "auroc", "log_loss", "calibration_error")
VALUE_FIGURES = ("r2", "rmse", "mae")
"""The figures of `Predictor.evaluate`, for classes and for values; see `gradflow.training.metrics`."""

MODEL_FILE = "model.safetensors"
"""The name of the model file in the folder of a run."""

_BATCH_VALUES = 1 << 22  # the values of all layers for one batch of inputs: some 16 MB

_KINDS = (gf.nn.MLP, gf.nn.Linear, gf.nn.Dropout)

Array = npt.NDArray[Any]


class Predictor:
    """Predicts from inputs as they are in the data: labels as they are there, or values in their units.

    members: trained MLPs of one architecture, which are copied. Several are an ensemble: their probabilities are
        averaged, or their values in a regression. Those of tables are an `nn.Sequential` of what `Columns.module`
        makes and an MLP.
    inputs: the scale of the inputs, with one mean and deviation for each feature; or the `Columns` of a table.
    targets: the scale of the targets, with one mean and deviation for each output; None (default) for classification.
    classes: the name of each class, in the order of the outputs (default, none: a regression).
    labels: the label of each class as it is in the data: a string, an integer or a bool (default, `classes`).
    features, columns: the names of the features, and of the outputs of a regression (default, none).
    image_shape: the (height, width) or (height, width, channels) of inputs that are images (default None).
    score: what the models reached, as numbers or strings by name (default, nothing).
    device: where predictions are computed (default, that of the members).

    The attributes have the names of the arguments; `sizes`, `activation` and `dropout` are those of the members. Raises
    ValueError for arguments that do not fit each other, TypeError for models of another class.

    >>> from gradflow.data.scaling import Standardizer
    >>> scale = Standardizer(np.array([5.0, 3.0]), np.array([2.0, 1.0]), limit=3.0)
    >>> predictor = Predictor([gf.nn.MLP([2, 8, 3])], scale, classes=["setosa", "versicolor", "virginica"])
    >>> predictor
    Predictor(2-8-3, relu, 3 classes, on cpu)
    >>> predictor.predict([[5.1, 3.5], [6.2, 2.9]]).shape, predictor.predict_proba([[5.1, 3.5]]).shape
    ((2,), (1, 3))
    """

    def __init__(
        self,
        members: Sequence[gf.nn.Module],
        inputs: Standardizer | Columns,
        targets: Standardizer | None = None,
        *,
        classes: Sequence[Label] = (),
        labels: Sequence[Label] = (),
        features: Sequence[str] = (),
        columns: Sequence[str] = (),
        image_shape: Sequence[int] | None = None,
        score: Mapping[str, Any] | None = None,
        device: DeviceLike | None = None,
    ) -> None:
        self._inputs = inputs_of(inputs, features, image_shape)
        kinds = {_architecture(self._inputs.perceptron(member)) for member in members}
        if len(kinds) != 1:
            raise ValueError(f"the members must be models of one architecture; got {len(kinds)} architectures")
        (architecture,) = kinds
        self.sizes, self.activation, self.dropout = architecture
        width, outputs = self.sizes[0], self.sizes[-1]
        self.inputs, self.targets = inputs, targets
        self.classes = tuple(map(str, classes))
        self.labels = tuple(map(_plain, labels or classes))
        self.features, self.columns = self._inputs.features, tuple(columns)
        self.image_shape = None if image_shape is None else tuple(image_shape)
        self.score = dict(score or {})
        if (targets is None) == (not self.classes):
            raise ValueError("a model has either classes or a scale of its targets")
        for what, count, expected in (
            ("classes", len(self.classes), 0 if targets else outputs),
            ("labels", len(self.labels), len(self.classes)),
            ("different labels", len(set(self.labels)), len(self.classes)),
            ("different classes", len(set(self.classes)), len(self.classes)),
            ("means of inputs", self._inputs.width, width),
            ("means of targets", len(targets.mean) if targets else outputs, outputs),
            ("names of target columns", len(self.columns) or outputs, outputs),
        ):
            if count != expected:
                raise ValueError(
                    f"a model with {width} inputs and {outputs} outputs has {expected} {what}; got {count}"
                )
        if isinstance(inputs, Columns) and self.labels != tuple(inputs.labels):
            raise ValueError("the labels of the model are not those of its columns")
        self.device = next(members[0].parameters()).device if device is None else gf.get_backend(device).device
        self.members = [build_model(self._inputs, *architecture, m.state_dict(), self.device) for m in members]

    @classmethod
    def from_split(cls, members: Sequence[gf.nn.Module], split: Split) -> Self:
        """Return the Predictor of models that were trained on a split: with its scales, and the names in its data.

        Raises ValueError for models that do not fit the split.
        """
        data = split.train.dataset
        names = {name: getattr(data, name) for name in ("classes", "labels", "features", "columns", "image_shape")}
        return cls(members, split.input_scale, split.target_scale, **names)

    def __repr__(self) -> str:
        return f"Predictor({self.describe()})"

    def describe(self) -> str:
        """Return what predicts in a few words."""
        kind = f"{len(self.classes)} classes" if self.classes else "regression"
        many = f"{len(self.members)} models, each " if len(self.members) > 1 else ""
        sizes = "-".join(map(str, self.sizes))
        return f"{many}{self._inputs.prelude}{sizes}, {self.activation}, {kind}, on {self.device}"

    @property
    def width(self) -> int:
        """The columns of the arrays that the members take, (n, width): the features, or the raw columns of a table."""
        return self._inputs.columns

    # ------------------------------------------------------------------ predictions

    def predict(self, x: Any) -> Array:
        """Return the predicted label of each input, or its values for a regression, as a NumPy array.

        x: inputs as they are in the data, not scaled: an array or nested lists of real numbers of any dtype, of shape
            (n, features), or (n, height, width) or (n, height, width, channels) for images. For a model of a table:
            what `read_table` takes, such as the path of a file or a frame, or a `Table`; its columns may be in any
            order, and there may be more.

        Labels are those of the data, (n,). Values are (n,), or (n, outputs) if there are several, in the units of the
        data; float32, or float64 where neighbors in float32 are more than a thousandth of a deviation apart. Batches
        pass through the models one by one, so the memory needed is bounded. Raises DataError, a ValueError, which names
        the place, for inputs of another width, not finite, or not numbers. Warns of 10 or more inputs that are probably
        on another scale than those of the training.
        """
        if self.classes:
            labels = np.array(self.labels, None if len(set(map(type, self.labels))) == 1 else object)
            found: Array = labels[self._averages(x).argmax(axis=1)]
            return found
        assert self.targets is not None
        values = self.targets.undo(self._averages(x))
        with np.errstate(over="ignore"):  # infinite, if float32 does not hold the mean at all
            apart = np.spacing(np.abs(self.targets.mean).astype(np.float32))
        values = values.astype(np.float32 if (apart < 1e-3 * self.targets.deviation).all() else np.float64)
        return values[:, 0] if values.shape[1] == 1 else values

    def predict_proba(self, x: Any) -> Array:
        """Return the probability of each class for each input, float32 (n, classes), as `predict` takes them.

        Raises TypeError for a regression, and as `predict`.
        """
        if not self.classes:
            raise TypeError("this model predicts values, not classes, so there are no probabilities: call predict")
        return self._averages(x).astype(np.float32)

    def told(self, part: Any) -> Counter[str]:
        """Return what is in rows that was not in those of the training, and in how many, as `Columns.told` does.

        part: a `Table` that the model takes. For arrays, of which `predict` warns, this returns nothing.
        """
        return self._inputs.told(part)

    def _averages(self, x: Any) -> Array:
        """Return the average over the members of their probabilities or standardized values, float64 (n, outputs)."""
        found = []
        for part in self._inputs.parts(x):  # in this frame: a warning of it names the line that calls predict
            found.append(self._averages_of(part))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _averages_of(self, samples: Any) -> Array:
        """Return the averages for one of the parts of `Inputs.parts`."""
        results = np.empty((len(samples), self.sizes[-1]), np.float64)
        count = max(1, _BATCH_VALUES // sum(self.sizes))
        for start in range(0, len(samples), count):
            rows = slice(start, start + count)
            results[rows] = self.averages(self._inputs.encode(samples, rows))
        return results

    def averages(self, encoded: Array) -> Array:
        """Return the averages of the members' probabilities, or of their standardized values, float64 (n, outputs).

        encoded: (n, width), as the members take them, in one batch.
        """
        dtype = next(self.members[0].parameters()).dtype
        with gf.no_grad(), np.errstate(all="ignore"):  # a GPU does not warn either
            inputs = gf.tensor(encoded, dtype=dtype, device=self.device)
            outputs = gf.stack([member(inputs) for member in self.members])
            each = (gf.softmax(outputs, axis=-1) if self.classes else outputs).numpy()  # one read
        found: Array = each.sum(axis=0, dtype=np.float64) / len(self.members)
        return found

    def evaluate(self, x: Any, y: Any = None) -> dict[str, float]:
        """Return the figures of the predictions for inputs whose labels or values are known, by name.

        x: as for `predict`.
        y: the labels as they are in the data, or the names of the classes, (n,); one-hot rows; or values, floats or
            integers (n,) or (n, outputs), in their units. None (default) for a table that holds them: rows without one
            are left out, and a file goes through in parts, so the memory needed is that of the outputs.

        Raises DataError, which names it, for an unknown label, and for what does not fit the model.
        """
        return self.figures(*self.with_targets(x, y))

    def with_targets(self, x: Any, y: Any = None) -> tuple[Array, Array]:
        """Return what a figure compares: the outputs for the inputs x, and their targets y, as `evaluate` takes them.

        For classes, probabilities (n, classes) and the codes of the labels, int64 (n,); for a regression, the predicted
        and the known values, (n, outputs). Raises as `evaluate`.
        """
        if y is None:
            known = [(self._outputs(part), targets) for part, targets in self._inputs.known(x)]
            outputs, targets = (np.concatenate(each) for each in zip(*known, strict=True))
            return outputs, targets
        if self.classes:
            targets = encode_as(y, self.labels, self.classes, "y")
        else:
            values = np.asanyarray(as_array(y, "y: the targets"))
            targets = checked_targets(values.astype(np.float64) if values.dtype.kind in "iu" else y, "y")
            if targets.dtype.kind != "f" or targets.shape[1] != self.sizes[-1]:
                columns = f"{self.sizes[-1]} column{'s' * (self.sizes[-1] > 1)}"
                raise DataError(f"y must be numbers in {columns}; got {targets.dtype} of shape {targets.shape}")
        outputs = self._outputs(x)
        if len(outputs) != len(targets):
            raise DataError(f"each input needs one target; got {len(outputs)} inputs and {len(targets)} targets")
        return outputs, targets

    def _outputs(self, x: Any) -> Array:
        """Return probabilities, or values (n, outputs), float32."""
        return self.predict_proba(x) if self.classes else self.predict(x).reshape(-1, self.sizes[-1])

    def figures(self, outputs: Any, targets: Any) -> dict[str, float]:
        """Return the figures of `evaluate` of what `with_targets` returns."""
        kind = "classes" if self.classes else "values"
        return figures_of(CLASS_FIGURES if self.classes else VALUE_FIGURES, kind, outputs, targets)

    # ------------------------------------------------------------------ the content of a model file

    def tree(self) -> dict[str, Any]:
        """Return the content of a model file, for `gradflow.save`."""
        return {
            "format": FORMAT,
            "version": self._inputs.version,
            "gradflow": gf.__version__,
            "architecture": {"sizes": list(self.sizes), "activation": self.activation, "dropout": self.dropout},
            "members": [{name: p.detach() for name, p in m.named_parameters()} for m in self.members],
            "inputs": self._inputs.state(),
            "targets": None if self.targets is None else self.targets.state(),
            "classes": list(self.classes),
            "labels": list(self.labels),
            "features": list(self.features),
            "columns": list(self.columns),
            "image_shape": None if self.image_shape is None else list(self.image_shape),
            "score": dict(self.score),
        }

    @classmethod
    def from_tree(cls, tree: Any, name: str = "the model", device: DeviceLike | None = None) -> Self:
        """Return the Predictor with this content of a model file, as `gradflow.load` returns it.

        name: what error messages call the file.
        device: where predictions are computed (default, the current device).

        Raises InvalidFileError if the content is not that of a model, or of a newer format.
        """
        try:
            return cls(**arguments(tree), device=gf.get_backend(device).device)
        except ValueError as error:
            raise gf.InvalidFileError(f"{name}: {printable(str(error))[:300]}") from None


def load_run(path: str | Path, device: DeviceLike | None = None) -> Predictor:
    """Return the Predictor of a run, ready to predict: `load_run("runs/digits-1").predict(x)`.

    path: the folder of a run, or its model file.
    device: where predictions are computed (default, the current device), whatever device the run was made on.

    Raises FileNotFoundError if there is no model, and says what to do; InvalidFileError for a file that is not a model
    file, is damaged or was written by a newer gradflow.

    >>> import tempfile
    >>> import gradflow as gf
    >>> from gradflow.data import Dataset
    >>> from gradflow.training import Predictor, load_run
    >>> split = Dataset.from_arrays([[float(i)] for i in range(10)], ["low"] * 5 + ["high"] * 5).split(seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     gf.save(f"{folder}/model.safetensors", Predictor.from_split([gf.nn.MLP([1, 8, 2])], split).tree())
    ...     load_run(f"{folder}/model.safetensors")
    Predictor(1-8-2, relu, 2 classes, on cpu)
    """
    path = Path(path)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(_why_no_model(path))
    return Predictor.from_tree(gf.load(file, "cpu"), str(file), device)


def _why_no_model(path: Path) -> str:
    if not path.is_dir():
        return f"{path} does not exist; it must be the folder of a run, or its {MODEL_FILE}"
    if (path / "weights.safetensors").exists():
        return (
            f"{path} was written by an earlier gradflow, which did not save the scale of the inputs; "
            f"run it again: gradflow train --config {path / 'config.toml'}"
        )
    if (path / "config.toml").exists():
        return (
            f"{path} has no {MODEL_FILE}: the run has not ended yet; if it was stopped: gradflow train --resume {path}"
        )
    return f"{path} is not the folder of a run: it has neither {MODEL_FILE} nor config.toml"


# ---------------------------------------------------------------------- parts of a Predictor


def _architecture(model: gf.nn.MLP) -> tuple[tuple[int, ...], str, float]:
    """Return the sizes, the activation and the dropout of an MLP. Raises TypeError or ValueError for another module."""
    layers = [layer for layer in model.children() if type(layer) is gf.nn.Linear]
    activations = [*[model.activation] * (len(model.sizes) - 2), None]
    others = [m for m in model.modules() if type(m) not in _KINDS or m._hooked or "forward" in vars(m)]
    if [layer.activation for layer in layers] != activations or others:
        raise ValueError("a Predictor takes an MLP as it was made; this one has other layers or activations, or hooks")
    return model.sizes, model.activation, float(model.dropout0.p) if hasattr(model, "dropout0") else 0.0


def _plain(label: Any) -> Label:
    """Return a label as Python's own string, integer or bool."""
    for kind, plain in ((str, str), ((bool, np.bool_), bool), (Integral, int)):
        if isinstance(label, kind):
            return plain(label)
    raise ValueError(f"a label is a string, an integer or a bool; got {some([label])}")
