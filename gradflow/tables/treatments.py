"""What becomes of the columns of a table: numbers on one scale, indicators of missing values, codes of categories."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.tables.date_parts import DAYS, PARTS, day_text, parts_of_dates
from gradflow.tables.entries import entries, entry
from gradflow.tables.inputs import MOST_ONE_HOT
from gradflow.tables.table import KINDS, Column
from gradflow.tables.typed import TypedColumn

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Raw = npt.NDArray[np.float32]

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Part:
    """A column of numbers, or one of the numbers that dates are taken apart into, on its scale.

    name: "" for a column of numbers, else one of `PARTS`.
    median: what missing values count as. mean, deviation: the scale. low, high: the range in training.
    edges: of the bins, on the scale; () without bins.
    """

    name: str
    median: float
    mean: float
    deviation: float
    low: float
    high: float
    edges: tuple[float, ...] = ()

    def scaled(self, values: Floats) -> Raw:
        """Return numbers (rows,), NaN where they are missing, on the scale.

        They are centered in float64. With bins, numbers beyond the range count as its ends.
        """
        values = np.where(np.isnan(values), self.median, values)
        if self.edges:
            values = np.clip(values, self.low, self.high)
        with np.errstate(over="ignore"):
            scaled = (values - self.mean) / self.deviation
        return np.clip(scaled, -_LARGEST, _LARGEST).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Return this as plain texts, numbers and lists."""
        return {**vars(self), "edges": list(self.edges)}

    @classmethod
    def from_dict(cls, tree: Any) -> Part:
        """Return the part of `to_dict`. Raises ValueError for anything else."""
        name, edges = entry(tree, "name", str), entries(tree, "edges", float)
        numbers = {key: entry(tree, key, float) for key in ("median", "mean", "deviation", "low", "high")}
        if name not in ("", *PARTS):
            raise ValueError(f"dates have no part {name!r}")
        if not (numbers["deviation"] > 0 and numbers["low"] <= numbers["high"]):
            raise ValueError("deviations are above 0, and ranges do not decrease")
        with np.errstate(over="ignore"):
            single = np.array(edges, np.float32)
        if edges and (len(edges) < 2 or not np.isfinite(single).all() or not (single[1:] > single[:-1]).all()):
            raise ValueError("the edges of bins are at least two, and increase as float32")
        return cls(name=name, edges=edges, **numbers)


@dataclass(frozen=True)
class Numbers:
    """A column of numbers, or of dates that are taken apart; where training had gaps, an indicator tells them.

    name: of the column. kind: as `Column.reads_as` tells.
    parts: the numbers that it becomes; () if all were equal, and only the indicator tells something.
    missing: how many rows had none in training.
    """

    name: str
    kind: str
    parts: tuple[Part, ...]
    missing: int

    @property
    def widths(self) -> tuple[int, int, int]:
        """How many numbers, indicators and codes the column becomes."""
        return len(self.parts), int(self.missing > 0), 0

    @property
    def note(self) -> str:
        """What the user should know, one sentence or ""."""
        parts = list(dict.fromkeys(part.name.partition(" (")[0] for part in self.parts))
        return f"{self.name} is taken apart: {', '.join(parts)}" if self.kind.startswith("date") else ""

    def encode(self, column: Column) -> Raw:
        """Return the numbers (rows, parts), and the indicator, if there is one, in another column."""
        values = numbers_of(column)
        made = [part.scaled(values[part.name]) for part in self.parts]
        made += [column.missing.astype(np.float32)] if self.missing else []
        return np.stack(made, axis=1)

    def told(self, column: Column) -> Counter[str]:
        """Return in how many rows this column is otherwise than in training, for each way."""
        found: Counter[str] = Counter()
        if self.parts:
            first = self.parts[0]
            values = numbers_of(column)[first.name]
            outside = int(((values < first.low) | (values > first.high)).sum())
            found[f"{self.name} is outside of the training range, {self._range}"] = outside
            if not self.missing:
                median = self._shown(first.median)
                found[f"{self.name} is missing, which it never was in training, and counts as {median}"] = int(
                    column.missing.sum()
                )
        return +found

    def described(self) -> tuple[str, str]:
        """Return how the column is treated, and its values."""
        bins = sorted({len(part.edges) - 1 for part in self.parts if part.edges})
        treatment = "standardized" if self.parts else "indicator of missing values"
        if bins:
            treatment = f"{bins[0]} to {bins[-1]} bins" if len(bins) > 1 else f"{bins[0]} bin{'s' * (bins[0] > 1)}"
        return treatment + ", indicator of missing values" * bool(self.parts and self.missing), self._range

    @property
    def _range(self) -> str:
        return f"{self._shown(self.parts[0].low)} to {self._shown(self.parts[0].high)}" if self.parts else "one value"

    def _shown(self, value: float) -> str:
        return day_text(value) if self.parts[0].name == DAYS else shown_number(value)

    def to_dict(self) -> dict[str, Any]:
        """Return this as plain texts, numbers and lists."""
        return {"treatment": "numbers", **vars(self), "parts": [part.to_dict() for part in self.parts]}

    @classmethod
    def from_dict(cls, tree: Any) -> Numbers:
        """Return the treatment of `to_dict`. Raises ValueError for anything else."""
        name, kind, missing = entry(tree, "name", str), _kind(tree), entry(tree, "missing", int)
        parts = tuple(map(Part.from_dict, entries(tree, "parts", dict)))
        names = [part.name for part in parts]
        if kind.startswith("date"):
            fit = (not names or names[0] == DAYS) and "" not in names and len(set(names)) == len(names)
        else:
            fit = kind == "number" and names in ([], [""])
        if not fit or missing < 0 or not (parts or missing):
            raise ValueError(f"the numbers of a column of the kind {kind!r} do not fit it")
        return cls(name, kind, parts, missing)


@dataclass(frozen=True)
class Category:
    """A column of categories as codes.

    name: of the column. kind: as `Column.reads_as` tells.
    levels: in the order of their codes; None is the level of missing values, if training had any.
    rare: whether code 0 is that of rare levels, and the codes of `levels` begin at 1. What `levels` do not have gets
        the code 0: that of the rare levels, or, if training had none, that of the most frequent level.
    missing: how many rows had none in training.
    """

    name: str
    kind: str
    levels: tuple[str | None, ...]
    rare: bool
    missing: int

    widths = (0, 0, 1)
    note = ""

    @property
    def count(self) -> int:
        """The number of codes."""
        return len(self.levels) + self.rare

    def encode(self, column: Column) -> Raw:
        """Return the codes (rows, 1)."""
        texts = as_texts(column)
        place = {level: code for code, level in enumerate(self.levels, self.rare)}
        codes = np.array([place.get(level, 0) for level in (*texts.levels, None)], np.float32)
        return codes[texts.values][:, None]

    def told(self, column: Column) -> Counter[str]:
        """Return in how many rows this column is otherwise than in training, for each way."""
        texts, known = as_texts(column), set(self.levels)
        unknown = np.array([level not in known for level in texts.levels] + [False])
        found = Counter(
            {f"{self.name} has a level that was rare or absent in training": int(unknown[texts.values].sum())}
        )
        if None not in known:
            what = "a rare level" if self.rare else repr(self.levels[0])
            count = int((texts.values < 0).sum())
            found[f"{self.name} is missing, which it never was in training, and counts as {what}"] = count
        return +found

    def described(self) -> tuple[str, str]:
        """Return how the column is treated, and its values."""
        levels = sorted(level for level in self.levels if level is not None)
        levels += ["rare ones"] * self.rare + ["missing"] * (None in self.levels)
        shown = ", ".join(levels[:10]) + ", ..." * (len(levels) > 10)
        return "one-hot" if self.count <= MOST_ONE_HOT else "embedding", f"{len(levels)} levels: {shown}"

    def to_dict(self) -> dict[str, Any]:
        """Return this as plain texts, numbers and lists."""
        return {"treatment": "category", **vars(self), "levels": list(self.levels)}

    @classmethod
    def from_dict(cls, tree: Any) -> Category:
        """Return the treatment of `to_dict`. Raises ValueError for anything else."""
        levels = entry(tree, "levels", list)
        if any(level is not None and type(level) is not str for level in levels) or len(set(levels)) < len(levels):
            raise ValueError("the levels of a category are texts that differ")
        name, kind, rare = entry(tree, "name", str), _kind(tree), entry(tree, "rare", bool)
        made = cls(name, kind, tuple(levels), rare, entry(tree, "missing", int))
        if made.count < 2 or made.missing < 0:
            raise ValueError("a category has at least two levels, and no fewer than 0 missing values")
        return made


@dataclass(frozen=True)
class LeftOut:
    """A column that is not used. reason: why, as the end of a sentence."""

    name: str
    kind: str
    reason: str

    widths = (0, 0, 0)

    @property
    def note(self) -> str:
        """What the user should know, one sentence."""
        return f"{self.name} is left out: {self.reason}"

    def described(self) -> tuple[str, str]:
        """Return how the column is treated, and its values."""
        return "left out", self.reason

    def to_dict(self) -> dict[str, Any]:
        """Return this as plain texts."""
        return {"treatment": "left out", **vars(self)}

    @classmethod
    def from_dict(cls, tree: Any) -> LeftOut:
        """Return the treatment of `to_dict`. Raises ValueError for anything else."""
        return cls(entry(tree, "name", str), _kind(tree), entry(tree, "reason", str))


Treatment = Numbers | Category | LeftOut
_TREATMENTS: dict[str, type[Treatment]] = {"numbers": Numbers, "category": Category, "left out": LeftOut}


def treatment_from_dict(tree: Any) -> Treatment:
    """Return the treatment of `to_dict` of one of the classes. Raises ValueError for anything else."""
    treatment = entry(tree, "treatment", str)
    if treatment not in _TREATMENTS:
        raise ValueError(f"there is no treatment {treatment!r} of columns")
    return _TREATMENTS[treatment].from_dict(tree)


def _kind(tree: Any) -> str:
    """Return the kind of a column. Raises ValueError for an unknown one."""
    kind: str = entry(tree, "kind", str)
    if kind.partition(" ")[0] not in KINDS:
        raise ValueError(f"there is no kind {kind!r} of columns")
    return kind


def numbers_of(column: Column) -> dict[str, Floats]:
    """Return the numbers of a column, by the names of their parts; NaN where they are missing."""
    return parts_of_dates(column.values) if column.kind == "date" else {"": column.values}


def as_texts(column: Column) -> Column:
    """Return a column as texts, whole numbers without a fraction."""
    if column.kind == "text":
        return column
    typed = TypedColumn(column.name, "text", "", 0, [])
    if column.kind == "date":
        return typed.dates(column.values.astype("datetime64[us]").view(np.int64))
    return typed.numbers(column.values, column.missing)


def shown_number(value: float) -> str:
    """Return a number for a message: whole ones with all digits, others with six."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.6g}"
