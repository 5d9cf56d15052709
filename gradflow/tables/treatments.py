"""What becomes of the columns of a table: numbers on one scale, indicators of missing values, codes of categories."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.tables.date_parts import DAYS, PARTS, day_text, parts_of_dates
from gradflow.tables.entries import entries, entry
from gradflow.tables.table import KINDS, Column
from gradflow.tables.typed import TypedColumn

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


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

    def numbers(self, column: Column) -> list[Floats]:
        """Return the numbers (rows,) of each part, not scaled; NaN where they are missing."""
        if not self.parts:
            return []
        values = numbers_of(column.kind, column.values)
        return [values[part.name] for part in self.parts]

    def told(self, outside: int, missing: int) -> Counter[str]:
        """Return in how many rows this column is otherwise than in training, for each way.

        outside, missing: in how many rows its first part is outside of its range, or missing.
        """
        found: Counter[str] = Counter()
        if outside:
            found[f"{self.name} is outside of the training range, {self._range}"] = outside
        if missing and not self.missing:
            median = self._shown(self.parts[0].median)
            found[f"{self.name} is missing, which it never was in training, and counts as {median}"] = missing
        return found

    def described(self, most_one_hot: int) -> tuple[str, str]:
        """Return how the column is treated, and its values. most_one_hot: see `InputSettings`."""
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

    @cached_property
    def _code(self) -> dict[str | None, int]:
        """The code of each level."""
        return {level: code for code, level in enumerate(self.levels, self.rare)}

    def codes(self, column: Column) -> Array:
        """Return the codes, whole numbers (rows,)."""
        codes = self._codes(column)
        return np.maximum(codes, 0, out=codes)

    def _codes(self, column: Column) -> npt.NDArray[np.int64]:
        """Return the codes, -1 for levels that have none, -2 for missing values that have none."""
        texts = as_texts(column)
        codes = np.empty(len(texts.levels) + 1, np.int64)
        for level in np.flatnonzero(np.bincount(texts.values + 1)) - 1:  # a part of a table may have few of its levels
            codes[level] = self._code.get(texts.levels[level], -1) if level >= 0 else self._code.get(None, -2)
        return codes[texts.values]

    def told(self, column: Column) -> Counter[str]:
        """Return in how many rows this column is otherwise than in training, for each way."""
        codes, what = self._codes(column), "a rare level" if self.rare else repr(self.levels[0])
        return +Counter(
            {
                f"{self.name} has a level that was rare or absent in training": int((codes == -1).sum()),
                f"{self.name} is missing, which it never was in training, and counts as {what}": int(
                    (codes == -2).sum()
                ),
            }
        )

    def described(self, most_one_hot: int) -> tuple[str, str]:
        """Return how the column is treated, and its values. most_one_hot: see `InputSettings`."""
        levels = sorted(level for level in self.levels if level is not None)
        levels += ["rare ones"] * self.rare + ["missing"] * (None in self.levels)
        shown = ", ".join(levels[:10]) + ", ..." * (len(levels) > 10)
        return "one-hot" if self.count <= most_one_hot else "embedding", f"{len(levels)} levels: {shown}"

    def to_dict(self) -> dict[str, Any]:
        """Return this as plain texts, numbers and lists."""
        plain = {"name": self.name, "kind": self.kind, "levels": list(self.levels), "rare": self.rare}
        return {"treatment": "category", **plain, "missing": self.missing}

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

    def described(self, most_one_hot: int) -> tuple[str, str]:
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


def numbers_of(kind: str, values: Array) -> dict[str, Floats]:
    """Return the numbers of a column of numbers or dates, by the names of their parts; NaN where they are missing."""
    return parts_of_dates(values) if kind == "date" else {"": values}


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
