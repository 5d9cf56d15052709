"""What stands between the data of a run and its network: the scale of arrays, or what was learned of a table's columns.

Both have the same methods, so nothing else has to ask which of the two it is.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import gradflow as gf
from gradflow.data import Standardizer
from gradflow.data.inputs import DataError, checked_inputs, listed
from gradflow.tables import Columns, Table, read_chunks
from gradflow.tables.inputs import ColumnInputs
from gradflow.tables.task import rows_with_target
from gradflow.training.runs.plausible import doubt

Array = npt.NDArray[Any]


class Inputs(Protocol):
    """What stands between data and network."""

    version: int
    """The version of the format of model files that has it first."""
    prefix: str
    """What the names of the perceptron's parameters begin with."""
    prelude: str
    """What stands before the perceptron, in words."""

    @property
    def columns(self) -> int:
        """The columns of what `encode` returns."""

    @property
    def width(self) -> int:
        """The width of the first layer of the perceptron."""

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features in the data, () if they have none."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of what was learned, each one sentence."""

    def describe(self) -> list[str]:
        """Return how the inputs are understood, in lines; none for arrays."""

    def parts(self, x: Any) -> Iterator[Any]:
        """Yield inputs as users give them, checked, in parts that fit in memory. Raises DataError."""

    def known(self, x: Any) -> Iterator[tuple[Any, Array]]:
        """Yield like `parts`, with their targets, those inputs whose targets come with them. Raises DataError."""

    def told(self, part: Any) -> Counter[str]:
        """Return what is in a part that was not in training, and in how many samples."""

    def encode(self, part: Any, rows: slice) -> Array:
        """Return some of the inputs in a part as the network takes them."""

    def model(self, sizes: Sequence[int], activation: str, dropout: float, **how: Any) -> gf.nn.Module:
        """Return a new network. sizes: of its perceptron, from `width` on. how: dtype, device and generator."""

    def perceptron(self, model: gf.nn.Module) -> gf.nn.MLP:
        """Return the perceptron in a network. Raises TypeError if this is no network of these inputs."""

    def shapes(self, sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter of a network by its name."""

    def state(self) -> dict[str, Any]:
        """Return all of it as plain numbers, texts and lists, for a model file."""


def inputs_of(
    learned: Standardizer | Columns, features: Sequence[str] = (), image_shape: Sequence[int] | None = None
) -> Inputs:
    """Return the `Inputs` of what was learned from training samples.

    features, image_shape: of arrays; see `Dataset`. Raises ValueError if they do not fit.
    """
    return ArrayInputs(learned, features, image_shape) if isinstance(learned, Standardizer) else TableInputs(learned)


def learned_from(state: Mapping[str, Any]) -> Standardizer | Columns:
    """Return what was learned, of the `state` of its `Inputs`. Raises ValueError for anything else."""
    return Columns.from_dict(state) if state.get("kind") == "columns" else Standardizer.from_state(state)


class ArrayInputs:
    """Arrays on the scale of the training samples, which a perceptron takes as they are.

    scale: with one mean and deviation for each feature. features: their names, or (). image_shape: that of images.
    """

    version, prefix, prelude = 1, "", ""
    notes = ()

    def __init__(
        self, scale: Standardizer, features: Sequence[str] = (), image_shape: Sequence[int] | None = None
    ) -> None:
        self.scale, self.features = scale, tuple(features)
        self.image_shape = None if image_shape is None else tuple(image_shape)
        self.width = self.columns = len(scale.mean)
        if len(self.features or scale.mean) != self.width:
            raise ValueError(
                f"a model with {self.width} inputs has {self.width} names of features; got {len(features)}"
            )
        image = self.image_shape or (self.width, 1)
        if len(image) not in (2, 3) or min(image) < 1 or math.prod(image) != self.width:
            raise ValueError(f"images of shape {image_shape} do not fit {self.width} inputs")

    def describe(self) -> list[str]:
        """Return no lines."""
        return []

    def parts(self, x: Any) -> Iterator[Array]:
        """Yield all inputs at once, as finite numbers (n, features). Warns of inputs on another scale."""
        try:
            shape = np.shape(x)
        except ValueError:  # of lists of unequal lengths, as `checked_inputs` says
            shape = ()
        if shape == self.image_shape or (shape == (self.width,) and self.width > 1):
            raise DataError(f"x is one sample of shape {shape}; predict takes several: add an axis, as in x[None]")
        rows = checked_inputs(x, "x", self.features, self.width)
        if why := doubt(rows, self.scale):
            warnings.warn(why, stacklevel=4)  # at the line that calls predict
        yield rows

    def known(self, x: Any) -> Iterator[tuple[Array, Array]]:
        """Raise TypeError: an array does not hold its targets."""
        raise TypeError("arrays of inputs come without their labels or values: give these as y")

    def told(self, part: Array) -> Counter[str]:
        """Return nothing: `parts` warns."""
        return Counter()

    def encode(self, part: Array, rows: slice) -> npt.NDArray[np.float32]:
        """Return some rows on the scale."""
        return self.scale.apply(part[rows])

    def model(self, sizes: Sequence[int], activation: str, dropout: float, **how: Any) -> gf.nn.Module:
        """Return a new perceptron."""
        return gf.nn.MLP(sizes, activation, dropout, **how)

    def perceptron(self, model: gf.nn.Module) -> gf.nn.MLP:
        """Return the model itself."""
        if type(model) is not gf.nn.MLP:
            raise TypeError(f"a Predictor takes models of the class nn.MLP; got {type(model).__name__}")
        return model

    def shapes(self, sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters of a perceptron."""
        return _of_perceptron(sizes)

    def state(self) -> dict[str, Any]:
        """Return the scale as plain numbers and lists."""
        return self.scale.state()


class TableInputs:
    """Columns of tables, which a `ColumnInputs` before the perceptron takes. learned: what was learned of them."""

    version, prefix = 2, "1."

    def __init__(self, learned: Columns) -> None:
        self.learned = learned
        self.features = tuple(learned.kinds)
        self.notes = learned.notes[1:]  # the first is the task
        self.prelude = f"{len(self.features)} column{'s' * (len(self.features) > 1)}, "

    @property
    def columns(self) -> int:
        """The raw columns."""
        return self.learned.width

    @property
    def width(self) -> int:
        """The features that become of the raw columns."""
        return self.learned.out_features

    def describe(self) -> list[str]:
        """Return the task and how it is changed, and the columns by their kinds."""
        groups: dict[str, list[str]] = {}
        for column in self.learned.describe():
            left_out = column["treatment"] == "left out"
            groups.setdefault("left out" if left_out else f"{column['kind']}s", []).append(column["column"])
        columns = "; ".join(f"{kind}: {listed(names)}" for kind, names in groups.items())
        return [f"task: {self.learned.notes[0]}", f"columns: {columns}"]

    def parts(self, x: Any) -> Iterator[Table]:
        """Yield the rows of a table, of a file in parts."""
        yield from [x] if isinstance(x, Table) else read_chunks(x, self.learned.kinds)

    def known(self, x: Any) -> Iterator[tuple[Table, Array]]:
        """Yield the rows of a table, of a file in parts, that have a target, and the targets."""
        kinds = self.learned.kinds | self.learned.target_kind
        for part in rows_with_target([x] if isinstance(x, Table) else read_chunks(x, kinds), self.learned.target):
            yield part, self.learned.targets(part)

    def told(self, part: Table) -> Counter[str]:
        """Return what `Columns.told` does."""
        return self.learned.told(part)

    def encode(self, part: Table, rows: slice) -> Array:
        """Return some rows as raw columns."""
        return self.learned.encode(part.take(rows))

    def model(self, sizes: Sequence[int], activation: str, dropout: float, **how: Any) -> gf.nn.Module:
        """Return a new `ColumnInputs`, followed by a perceptron."""
        return gf.nn.Sequential(self.learned.module(**how), gf.nn.MLP(sizes, activation, dropout, **how))

    def perceptron(self, model: gf.nn.Module) -> gf.nn.MLP:
        """Return the perceptron after the `ColumnInputs`."""
        kinds = [type(m) for m in model.children()]
        if type(model) is not gf.nn.Sequential or kinds != [ColumnInputs, gf.nn.MLP]:
            raise TypeError(f"a Predictor of tables takes a ColumnInputs and an nn.MLP; got {type(model).__name__}")
        found: gf.nn.MLP = model[1]
        return found

    def shapes(self, sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parameters of both modules."""
        first = self.learned.module_shapes()
        return {f"0.{name}": shape for name, shape in first.items()} | _of_perceptron(sizes, self.prefix)

    def state(self) -> dict[str, Any]:
        """Return what was learned of the columns."""
        return self.learned.to_dict()


def _of_perceptron(sizes: Sequence[int], prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters of a perceptron."""
    found: dict[str, tuple[int, ...]] = {}
    for i, (n, m) in enumerate(pairwise(sizes)):
        found |= {f"{prefix}{i}.weight": (m, n), f"{prefix}{i}.bias": (m,)}
    return found
