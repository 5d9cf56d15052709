"""What stands between a table and a network: how each column is treated, learned from the training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

import gradflow as gf
from gradflow.backend.registry import DeviceLike
from gradflow.data.inputs import DataError, listed
from gradflow.data.labels import Label
from gradflow.tables.bins import are_edges
from gradflow.tables.choices import ENCODINGS
from gradflow.tables.entries import entries, entry
from gradflow.tables.inputs import DEFAULTS, ColumnInputs, InputSettings
from gradflow.tables.learning import learn_category, learn_numbers, may_be_names, numbers_the_rows
from gradflow.tables.options import option
from gradflow.tables.scales import Scales, magnitude
from gradflow.tables.table import Column, Table, no_column
from gradflow.tables.task import Target, check_kind
from gradflow.tables.treatments import Category, LeftOut, Numbers, Treatment, treatment_from_dict

Array = npt.NDArray[Any]

NEGLIGIBLE = 1e-8
"""Rows of a smaller weight, relative to the mean, are as if they had none: sums would lose it to rounding."""

PIECEWISE_ROWS, ROWS_OF_A_COLUMN = 1000, 100
"""From so many training rows on, and so many for each column of numbers, these are encoded by bins, by default.

Bins of few rows follow their noise, and many columns are often parts of one thing, such as the pixels of an image.
"""

_DTYPES = ("float32", "float64")
_EARLIER = InputSettings(width=24, embedding_dim=16, most_one_hot=32, limit=10.0)  # of files that do not tell them
_AT_ONCE = 1 << 18  # the numbers that are scaled at once: few enough for the cache


class Columns:
    """How the columns of a table become the inputs and targets of a network.

    `Columns.learn` and `Columns.from_dict` make it, of a `Target` and the treatments of the other columns.

    task: "classes" or "values". target: the name of the column that is predicted.
    classes: the names of the classes, and labels: they as they are in the data; () for values.
    outputs: the number of classes, or 1.
    kinds: what `read_table` needs to read the inputs in another file. target_kind: the same for the target.
    width: the number of raw columns. places: for each column that is used, its raw columns.
    encoding: of numbers, "piecewise" or "standard".
    settings, dtype: of the first module of the network. out_features: how many features it makes of the raw columns.
    notes: the task, what is left out and why, what dates became, and, of `learn`, which numbers may be names; one
        sentence each.

    >>> from gradflow.tables import Columns, read_table
    >>> table = read_table({
    ...     "height": [30, 25, 70, None, 20, 60], "fur": ["long", "short"] * 3, "weight": [4, 3.5, 20, 4, 3, 15],
    ... })
    >>> columns = Columns.learn(table, "weight")
    >>> columns.kinds, columns.task, columns.width
    ({'height': 'number', 'fur': 'text'}, 'values', 3)
    >>> print(columns.encode(table)[2:4].round(2))  # height, whether it is missing, fur
    [[ 1.44  0.    0.  ]
     [-0.55  1.    1.  ]]
    >>> columns.module().out_features
    4
    """

    def __init__(
        self,
        target: Target,
        treatments: Sequence[Treatment],
        settings: InputSettings = DEFAULTS,
        dtype: str = "float32",
    ) -> None:
        self._target, self._treatments = target, tuple(treatments)
        self.used = [treatment for treatment in treatments if not isinstance(treatment, LeftOut)]
        self.task, self.target, self.classes, self.outputs = target.task, target.name, target.classes, target.outputs
        self.labels: tuple[Label, ...] = target.labels
        self.kinds = {treatment.name: treatment.kind for treatment in self.used}
        self.target_kind = {target.name: target.kind}
        self.notes = (target.note, *(treatment.note for treatment in treatments if treatment.note))
        self.settings, self.dtype = settings, dtype
        self._widths = [sum(treatment.widths[block] for treatment in self.used) for block in range(3)]
        self.width = sum(self._widths)
        starts = [0, *accumulate(self._widths[:2])]
        self.places: dict[str, tuple[int, ...]] = {}
        for treatment in self.used:
            own: list[int] = []
            for block, count in enumerate(treatment.widths):
                own += range(starts[block], starts[block] + count)
                starts[block] += count
            self.places[treatment.name] = tuple(own)
        self._numbers = [treatment for treatment in self.used if isinstance(treatment, Numbers)]
        self._categories = [treatment for treatment in self.used if isinstance(treatment, Category)]
        parts = [part for treatment in self._numbers for part in treatment.parts]
        self._scales, self._edges = Scales(parts, dtype), [part.edges for part in parts]
        self.encoding = "piecewise" if any(self._edges) else "standard"
        of_numbers = settings.width if self.encoding == "piecewise" else 1
        of_levels = [n if n <= settings.most_one_hot else settings.embedding_dim for n in self._levels]
        self.out_features = len(parts) * of_numbers + self._widths[1] + sum(of_levels)

    def __repr__(self) -> str:
        return f"Columns({len(self.used)} columns to predict {self.target!r}, {self.task}, {self.encoding})"

    @classmethod
    def learn(
        cls,
        table: Table,
        target: str,
        task: str | None = None,
        categorical: Iterable[str] = (),
        ignore: Iterable[str] = (),
        encoding: str = "auto",
        rows: Any = None,
        weights: Any = None,
        settings: InputSettings = DEFAULTS,
        dtype: str = "float32",
        numeric: Iterable[str] = (),
    ) -> Columns:
        """Return how the columns of a table are treated.

        table: of which rows are learned from; every row needs a target.
        target: the name of the column that is predicted.
        task: "classes" or "values"; see `Target.learn` for the default.
        categorical: names of columns of numbers or dates that are categories.
        ignore: names of columns that are not used.
        encoding: "piecewise" encodes numbers by bins, those of a decision tree on the column alone, at most 64;
            "standard" clips them to 10 standard deviations; "auto" takes bins from 1,000 rows on, if there are 100
            for each column of numbers.
        rows: the indices of the rows to learn from (default: all).
        weights: one number of at least 0 for each of `rows` (default: equal). Of rows of weight
            0, only the classes are learned.
        settings: the widths of the features that `module` makes, see `gradflow.tables.inputs.InputSettings`.
        dtype: "float32" (default) or "float64", of the network. Numbers that it cannot tell apart are in one bin.
        numeric: names of columns of numbers that are used as such, even if they seem to number the rows; they get no
            note that they may be names.

        Numbers are centered and scaled; missing ones become the median, and an indicator tells of them if training had
        any. Texts become codes: rare levels share one, levels that training did not have get it, too, and missing is a
        level if training had it. Dates become numbers: days since 1970, year, and the places in the year, the week and
        the day as sine and cosine. Columns without values or with the same one in all rows are left out, as are those
        that seem to number the rows and are not `numeric`, if there are others.

        Raises DataError for names that the table does not have, for at least 50 texts in a column that nearly all
        differ, for targets that do not fit, and if no column is left; ValueError for other arguments.
        """
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding must be {', '.join(map(repr, ENCODINGS))}; got {encoding!r}")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be {' or '.join(map(repr, _DTYPES))}; got {dtype!r}")
        categorical, numeric, ignore = set(categorical), set(numeric), set(ignore)
        for name in [target, *categorical, *numeric, *ignore]:
            if name not in table:
                raise no_column(name, table.names, table.source)
        for name in numeric:
            if name in categorical or table[name].kind != "number":
                kind = "categories" if name in categorical else f"{table[name].kind}s"
                raise DataError(f"{table.source}: column {name!r} holds {kind}, so it cannot be numeric")
        table = table if rows is None else table.take(rows)
        if not len(table):
            raise DataError(f"{table.source}: there are no rows to learn from")
        learned = Target.learn(table, target, task)
        if weights is not None:
            used, weights = weighing(_checked_weights(weights, len(table)))
            table = table.take(used)
        others = {target} | ignore | categorical
        numbers = sum(column.kind != "text" and column.name not in others for column in table.columns)
        bins = takes_bins(encoding, len(table), numbers)
        targets = _targets_of_bins(learned, table) if bins else None
        treatments: list[Treatment] = []
        hints = []
        numbering = {column.name for column in table.columns if numbers_the_rows(column)} - categorical - numeric
        if numbering >= set(table.names) - ignore - {target}:
            numbering = set()
        for column in table.columns:
            if column.name == target:
                continue
            if column.name in ignore:
                treatments.append(LeftOut(column.name, column.reads_as, "it is ignored"))
            elif column.name in numbering:
                why = "it seems to number the rows" + option("numeric", column.name, "keeps it")
                treatments.append(LeftOut(column.name, column.reads_as, why))
            elif column.kind == "text" or column.name in categorical:
                treatments.append(learn_category(column, table.source, weights))
            else:
                treatments.append(learn_numbers(column, table.source, targets, weights, dtype))
                if column.kind == "number" and column.name not in numeric and (hint := may_be_names(column)):
                    hints.append(hint)
        made = cls(learned, treatments, settings, dtype)
        made.notes += tuple(hints)
        if not made.width:
            reasons = listed([treatment.note for treatment in treatments if treatment.note])
            raise DataError(f"{table.source}: there are no columns to learn from{': ' * bool(reasons)}{reasons}")
        return made

    def encode(self, table: Table) -> Array:
        """Return the raw columns of a table, (rows, width) of `dtype`, for `module`: finite numbers, indicators, codes.

        Columns may be in any order, and there may be more. Raises DataError for one that is missing, or of another
        kind than in training: `read_table` takes `kinds`.
        """
        columns = self._columns(table)
        raw = np.empty((len(table), self.width), self.dtype)
        numbers, indicators, _ = self._widths
        for places, values in self._values(columns):
            raw[:, places] = self._scales.apply(values, places).T
        with_gaps = [treatment for treatment in self._numbers if treatment.missing]
        for place, treatment in enumerate(with_gaps, numbers):
            raw[:, place] = columns[treatment.name].missing
        for place, category in enumerate(self._categories, numbers + indicators):
            raw[:, place] = category.codes(columns[category.name])
        return raw

    def _columns(self, table: Table) -> dict[str, Column]:
        """Return the columns that are used, checked."""
        columns = {treatment.name: table[treatment.name] for treatment in self.used}
        for treatment in self.used:
            check_kind(columns[treatment.name], treatment.kind, table.source)
        return columns

    def _values(self, columns: Mapping[str, Column]) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
        """Yield the numbers of some columns after others, (numbers, rows), and their places."""
        values: list[npt.NDArray[np.float64]] = []
        start = 0
        for treatment in self._numbers:
            values += treatment.numbers(columns[treatment.name])
            if values and (treatment is self._numbers[-1] or len(values) * len(values[0]) >= _AT_ONCE):
                yield slice(start, start + len(values)), np.concatenate(values).reshape(len(values), -1)
                start += len(values)
                values = []

    def targets(self, table: Table) -> Array:
        """Return the targets of a table: codes of classes, int64 (rows,), or values, float64 (rows, 1).

        Raises DataError for classes that training did not have, and for gaps.
        """
        return self._target.targets(table)

    def decode(self, outputs: Array) -> list[Any]:
        """Return the labels of the largest outputs (rows, classes), or values, of (rows, 1), as they are."""
        return self._target.decode(outputs)

    def told(self, table: Table) -> Counter[str]:
        """Return in how many rows columns are otherwise than in training, for each column and way.

        These are levels that training did not have, or only rarely; missing values in columns that had none; and
        numbers and dates outside of the training range. Parts of a table are added up with `+`.

        >>> from gradflow.tables import Columns, read_table
        >>> columns = Columns.learn(read_table({"a": [1, 2, 4], "b": [1.5, 2, 3]}), "b")
        >>> for what, count in columns.told(read_table({"a": [2, 5, 6, None]})).items():
        ...     print(count, what)
        2 a is outside of the training range, 1 to 4
        1 a is missing, which it never was in training, and counts as 2
        """
        found: Counter[str] = Counter()
        columns = self._columns(table)
        outside, missing = np.zeros((2, self._widths[0]), np.int64)
        for places, values in self._values(columns):
            outside[places] = self._scales.outside(values, places).sum(axis=1)
            missing[places] = np.isnan(values).sum(axis=1)
        for treatment in self.used:
            first = self.places[treatment.name][0]
            if isinstance(treatment, Category):
                found.update(treatment.told(columns[treatment.name]))
            elif treatment.parts and (outside[first] or missing[first]):
                found.update(treatment.told(int(outside[first]), int(missing[first])))
        return found

    def module(
        self, device: DeviceLike | None = None, dtype: Any = None, generator: gf.Generator | None = None
    ) -> ColumnInputs:
        """Return a new first module of a network, from raw columns to features.

        dtype: of its parameters (default, that of the raw columns). device, generator: as for `gradflow.nn.Linear`.
        """
        edges = self._edges if self.encoding == "piecewise" else None
        numbers, indicators, _ = self._widths
        how: Any = (device, dtype or self.dtype, generator)
        return ColumnInputs(numbers, indicators, self._levels, edges, self.settings, *how)

    @property
    def _levels(self) -> list[int]:
        return [category.count for category in self._categories]

    def module_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter of `module` by its name, without making it."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.encoding == "piecewise":
            numbers, bins, width = len(self._edges), max(map(len, self._edges)) - 1, self.settings.width
            shapes |= {"linear.weight": (numbers, bins, width), "linear.bias": (numbers, width)}
        embedded = sum(count for count in self._levels if count > self.settings.most_one_hot)
        return shapes | ({"embed.weight": (embedded, self.settings.embedding_dim)} if embedded else {})

    def describe(self) -> list[dict[str, str]]:
        """Return the columns as they are understood, also those left out, in the order of the table.

        Each is a dict of texts: column, its name; kind; treatment; missing, how many were, "" if unknown; values, such
        as "17 to 90" or "3 levels: blue, green, red".
        """
        told = []
        for treatment in self._treatments:
            how, values = treatment.described(self.settings.most_one_hot)
            missing = "" if isinstance(treatment, LeftOut) else f"{treatment.missing:,}"
            kind = treatment.kind.partition(" ")[0]
            told.append(
                {"column": treatment.name, "kind": kind, "treatment": how, "missing": missing, "values": values}
            )
        return told

    def to_dict(self) -> dict[str, Any]:
        """Return all of this as plain numbers, texts, dicts and lists, as JSON has them, without loss."""
        columns = [treatment.to_dict() for treatment in self._treatments]
        own = {"settings": vars(self.settings).copy(), "dtype": self.dtype}
        return {"kind": "columns", "target": self._target.to_dict(), "columns": columns, **own}

    @classmethod
    def from_dict(cls, tree: Any) -> Columns:
        """Return the columns of `to_dict`. Raises ValueError for anything else."""
        try:
            if entry(tree, "kind", str) != "columns":
                raise ValueError(f"of the kind {tree['kind']!r}")
            treatments = [treatment_from_dict(column) for column in entries(tree, "columns", dict)]
            settings = InputSettings.from_dict(tree["settings"]) if "settings" in tree else _EARLIER
            dtype = entry({"dtype": _DTYPES[0], **tree}, "dtype", str)
            if dtype not in _DTYPES:
                raise ValueError(f"there are no columns of the dtype {dtype!r}")
            made = cls(Target.from_dict(entry(tree, "target", dict)), treatments, settings, dtype)
            names = [made.target, *(treatment.name for treatment in treatments)]
            if len(set(names)) < len(names):
                raise ValueError("two columns have the same name")
            if not made.width:
                raise ValueError("there are no columns to learn from")
            if any(made._edges) and not all(made._edges):
                raise ValueError("either all columns of numbers have bins, or none has")
            if not all(are_edges(edges, dtype) for edges in made._edges if edges):
                raise ValueError(f"the edges of bins are at least two, and increase as {dtype}")
        except ValueError as error:
            raise ValueError(f"these are not the columns of a table: {error}") from None
        return made


def takes_bins(encoding: str, rows: int, columns: int) -> bool:
    """Whether numbers are encoded by bins, with so many training rows, and so many columns of numbers or dates.

    encoding: one of `ENCODINGS`.
    """
    enough = rows >= max(PIECEWISE_ROWS, ROWS_OF_A_COLUMN * columns)
    return encoding == "piecewise" or (encoding == "auto" and enough)


def weighing(weights: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Return which rows have a weight that counts, and the weights of these rows, in a unit that no sum overflows.

    >>> import numpy as np
    >>> from gradflow.tables.columns import weighing
    >>> weighing(np.array([3e300, 1.0, 0.0, 2e300]))[0]
    array([ True, False, False,  True])
    """
    weights = weights / magnitude(weights)
    used = weights > NEGLIGIBLE * weights.mean()
    return used, weights[used]


def sentences(found: Counter[str], rows: int) -> list[str]:
    """Return what `Columns.told` found in so many rows, in sentences.

    >>> from collections import Counter
    >>> from gradflow.tables.columns import sentences
    >>> sentences(Counter({"a is outside of the training range, 1 to 4": 2}), 1000)
    ['a is outside of the training range, 1 to 4: 2 of 1,000 rows']
    """
    return [f"{what}: {count:,} of {rows:,} rows" for what, count in found.items()]


def _checked_weights(weights: Any, rows: int) -> npt.NDArray[np.float64]:
    """Return weights as float64 (rows,). Raises ValueError unless they are finite, at least 0, and not all 0."""
    values = np.asarray(weights, np.float64)
    if values.shape != (rows,) or not (np.isfinite(values).all() and (values >= 0).all() and values.any()):
        raise ValueError(f"weights are {rows} finite numbers of at least 0, not all 0; got shape {values.shape}")
    return values


def _targets_of_bins(target: Target, table: Table) -> Array:
    """Return the targets that bins are learned for: values, or one-hot rows; of two classes, one column is enough."""
    targets = target.targets(table)
    return np.eye(target.outputs, dtype=np.uint8)[targets] if target.outputs > 2 else targets
