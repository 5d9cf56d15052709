"""What stands before a network in ONNX: the scale of arrays, or the treatment of the columns of a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradflow.data.scaling import Standardizer
from gradflow.onnx.functions import ArrayFunctions
from gradflow.onnx.graph import Graph, Operand
from gradflow.tables import Columns
from gradflow.tables.date_parts import DAYS
from gradflow.tables.treatments import Category, Numbers, Part

_DAY = 86_400_000_000  # microseconds
_NAT = np.iinfo(np.int64).min

INPUT_TYPES = {"number": np.float64, "date": np.int64, "text": np.object_}
"""The dtype of the input of each kind of column; dates are microseconds since 1970."""


def add_scale(graph: Graph, scale: Standardizer, x: str) -> str:
    """Add the scale of arrays, and return the name of its result. x: the name of the float64 inputs (batch, features).

    They are centered in float64.
    """
    y = graph.add("Div", graph.add("Sub", x, scale.mean), scale.deviation)
    if scale.limit < np.inf:
        y = ArrayFunctions(graph).clip(y, np.float64(-scale.limit), np.float64(scale.limit))
    return graph.cast(y)


def add_columns(graph: Graph, columns: Columns) -> str:
    """Add an input for each column of a table that is used, and return the name of the raw columns of the network.

    Numbers are float64, NaN where they are missing; texts are strings, "" where they are missing; dates are int64
    microseconds since 1970, the least int64 where they are missing. All have the shape (batch, 1).
    """
    numbers: list[str] = []
    indicators: list[str] = []
    codes: list[str] = []
    parts: list[Part] = []
    kinds = [treatment.kind.partition(" ")[0] for treatment in columns.used]
    for treatment, kind in zip(columns.used, kinds, strict=True):
        graph.input(treatment.name, INPUT_TYPES[kind], ["batch", 1])
    for treatment, kind in zip(columns.used, kinds, strict=True):
        x = treatment.name
        if isinstance(treatment, Category):
            codes.append(_codes(graph, treatment, kind, x))
            continue
        missing = _missing(graph, kind, x)
        parts += treatment.parts
        numbers += _numbers(graph, treatment, kind, x, missing)
        if treatment.missing:
            indicators.append(graph.cast(missing))
    scaled = [_scaled(graph, parts, graph.add("Concat", *numbers, axis=1), columns.dtype)] if parts else []
    return graph.add("Concat", *scaled, *indicators, *codes, axis=1)


def _scaled(graph: Graph, parts: list[Part], x: str, dtype: str) -> str:
    """Numbers on their scale, as `Scales.apply` makes them. x: (batch, parts), NaN where they are missing."""

    def each(name: str) -> Any:
        return np.array([getattr(part, name) for part in parts])

    clip = ArrayFunctions(graph).clip
    y = graph.add("Where", graph.add("IsNaN", x), each("median"), x)
    if any(part.edges for part in parts):
        y = clip(y, each("low"), each("high"))
    y = graph.add("Div", graph.add("Sub", y, each("mean")), each("deviation"))
    limit = np.float64(np.finfo(dtype).max)
    return graph.cast(graph.cast(clip(y, -limit, limit), dtype))


def _missing(graph: Graph, kind: str, x: str) -> str:
    return graph.add("Equal", x, np.int64(_NAT)) if kind == "date" else graph.add("IsNaN", x)


def _codes(graph: Graph, category: Category, kind: str, x: str) -> str:
    """The codes of a category (batch, 1), in the dtype of the graph; 0 for what is not among its levels."""
    codes = {level: float(code) for code, level in enumerate(category.levels, category.rare)}
    missing = codes.pop(None, 0.0)
    if kind == "text":
        names = ["", *map(str, codes)]
        encoded = graph.add(
            "LabelEncoder", x, domain="ai.onnx.ml", keys_strings=names, values_floats=[missing, *codes.values()],
            default_float=0.0,
        )  # fmt: skip
        return graph.cast(encoded)
    if kind == "date":
        keys = np.array(list(codes), "datetime64[us]").view(np.int64)
    else:
        keys = np.array(list(codes), np.float64)
    found = graph.cast(graph.add("Equal", x, keys))
    encoded = graph.add("MatMul", found, np.array(list(codes.values()), graph.dtype)[:, None])
    return graph.add("Where", _missing(graph, kind, x), missing, encoded)


def _numbers(graph: Graph, treatment: Numbers, kind: str, x: str, missing: str) -> list[str]:
    """The parts of a column, float64 (batch, 1) each, NaN where they are missing."""
    if kind == "number":
        return [x] if treatment.parts else []
    made = _Dates(graph, graph.add("Where", missing, np.int64(0), x))
    return [graph.add("Where", missing, np.float64(np.nan), made.part(part.name)) for part in treatment.parts]


class _Dates:
    """The parts of dates, as `parts_of_dates` has them. x: the name of microseconds since 1970, int64.

    Year and month are those of Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    """

    def __init__(self, graph: Graph, x: str) -> None:
        self._graph, self._x = graph, x

    def part(self, name: str) -> str:
        """Return the name of a part, float64."""
        if name == DAYS:
            return self._add("Div", self._double(self._x), np.float64(_DAY))
        cycle = name.partition(" ")[0]
        day = self._floor(self._x, _DAY)
        if cycle == "hour":
            turn = self._add("Div", self._double(self._modulo(self._x, _DAY)), np.float64(_DAY))
        elif cycle == "weekday":
            turn = self._add("Div", self._double(self._modulo(self._add("Add", day, 3), 7)), np.float64(7))
        else:
            year, month = self._civil(day)
            if cycle == "year":
                return self._double(year)
            turn = self._add("Div", self._double(self._add("Sub", month, 1)), np.float64(12))
        angle = self._add("Mul", turn, np.float64(2 * np.pi))
        if name.endswith("(cosine)"):
            angle = self._add("Add", angle, np.float64(np.pi / 2))
        return self._add("Sin", angle)

    def _civil(self, day: str) -> tuple[str, str]:
        """The year and the month, 1 to 12, of days since 1970."""
        shifted = self._add("Add", day, 719_468)  # days since March 1 of the year 0
        era, of_era = self._floor(shifted, 146_097), self._modulo(shifted, 146_097)
        leaps = [self._add("Div", of_era, length) for length in (1_460, 36_524, 146_096)]
        days = self._add("Sub", self._add("Add", self._add("Sub", of_era, leaps[0]), leaps[1]), leaps[2])
        year_of_era = self._add("Div", days, 365)
        before = self._add("Sub", self._add("Div", year_of_era, 4), self._add("Div", year_of_era, 100))
        of_year = self._add("Sub", of_era, self._add("Add", self._add("Mul", year_of_era, 365), before))
        months = self._add("Div", self._add("Add", self._add("Mul", of_year, 5), 2), 153)  # since March
        next_year = self._graph.cast(self._add("Greater", months, 9), np.int64)  # January and February
        month = self._add("Sub", self._add("Add", months, 3), self._add("Mul", next_year, 12))
        year = self._add("Add", self._add("Mul", era, 400), year_of_era)
        return self._add("Add", year, next_year), month

    def _add(self, operator: str, *operands: Operand) -> str:
        """An operation on int64 values; Python's numbers are int64, too."""
        return self._graph.add(operator, *(np.int64(x) if type(x) is int else x for x in operands))

    def _modulo(self, x: str, length: int) -> str:
        """What remains of a division that rounds down."""
        return self._add("Mod", x, length)

    def _floor(self, x: str, length: int) -> str:
        return self._add("Div", self._add("Sub", x, self._modulo(x, length)), length)

    def _double(self, x: str) -> str:
        return self._graph.cast(x, np.float64)
