"""How each column of a table is treated, learned from its training rows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.data.inputs import DataError
from gradflow.tables.bins import column_edges
from gradflow.tables.options import option
from gradflow.tables.scales import Scales, magnitude
from gradflow.tables.table import Column
from gradflow.tables.treatments import Category, LeftOut, Numbers, Part, Treatment, as_texts, numbers_of, shown_number

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

MOST_BINS = 64
"""The bins of a column of numbers, at most."""
IDENTIFIER_ROWS = 50
"""From so many rows on, texts of which nearly all differ are refused, and numbers that number the rows left out."""
_NEARLY_ALL = 0.9
_SMALLEST = 5e-324  # deviations are above 0
_RARE = 5
_RARE_SHARE = 0.01
_SMALLEST_CODE, _FEWEST_CODES, _MOST_CODES, _FAR_APART, _ROUND = 1000, 3, 20, 50, 10


def learn_numbers(column: Column, source: str, targets: Array | None, weights: Floats | None, dtype: str) -> Treatment:
    """Return the treatment of numbers or dates.

    source: for messages. targets: those of `column_edges`, for bins; None for no bins.
    weights: of the rows, above 0; None if they are equal. dtype: of what the bins are for, see `Columns.learn`.

    Raises DataError for numbers whose differences are infinite.
    """
    there = ~column.missing
    missing = int((~there).sum())
    if missing == len(column):
        return LeftOut(column.name, column.reads_as, "it is empty")
    if missing:
        weights = None if weights is None else weights[there]
        targets = None if targets is None else targets[there]
    learned = []
    for name, values in numbers_of(column.kind, column.values[there] if missing else column.values).items():
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(high - low):
            raise DataError(
                f"{source}: the numbers in column {column.name!r} go from {low:g} to {high:g}, too far for float64: "
                "divide them first"
            )
        if low < high:
            part = Part(name, *_scale(values, weights), low=low, high=high)
            learned.append(part if targets is None else _with_bins(part, values, targets, weights, dtype))
    if not learned and not missing:
        return LeftOut(column.name, column.reads_as, "it is the same in all rows")
    return Numbers(column.name, column.reads_as, tuple(learned), missing)


def learn_category(column: Column, source: str, weights: Floats | None) -> Treatment:
    """Return the treatment of categories.

    source: for messages. weights: of the rows, above 0; None if they are equal.

    Levels with fewer than 5 rows, in small tables with fewer than 1% of the rows, but always those with one, are rare.
    Weights count as rows if they are 1 on average. Raises DataError for at least 50 texts that nearly all differ.
    """
    texts = as_texts(column)
    there = texts.values >= 0
    present, missing = int(there.sum()), int((~there).sum())
    codes = texts.values[there]
    used = np.flatnonzero(np.bincount(codes, minlength=len(texts.levels)))
    if len(used) < 2 and not (present and missing):
        return LeftOut(column.name, column.reads_as, "it is the same in all rows" if present else "it is empty")
    if len(used) > _NEARLY_ALL * present:
        if present >= IDENTIFIER_ROWS:
            count = f"all {present:,}" if len(used) == present else f"{len(used):,} of the {present:,}"
            raise DataError(
                f"{source}: in column {column.name!r}, {count} texts of the training rows differ: it seems to identify "
                f"the rows, and tells nothing about others: leave it out{option('ignore', column.name)}"
            )
        return LeftOut(column.name, column.reads_as, "nearly all of its texts differ")
    shares = None if weights is None else weights[there] / weights.mean()
    counts = np.bincount(codes, shares, len(texts.levels))[used]
    kept = counts >= min(_RARE, max(2, _RARE_SHARE * len(column)))
    rare = not kept.all()
    levels: list[str | None] = [texts.levels[code] for code in used[kept]]
    if not rare:
        levels.insert(0, levels.pop(int(counts.argmax())))
    levels += [None] if missing else []
    if len(levels) + rare < 2:
        return LeftOut(column.name, column.reads_as, "all of its texts are rare")
    return Category(column.name, column.reads_as, tuple(levels), rare, missing)


def numbers_the_rows(column: Column) -> bool:
    """Whether a column holds the numbers of rows, in any order, perhaps without some rows.

    These are at least 50 whole numbers from 0 on that all differ, and are two fifths of those up to the greatest.
    """
    values, n = column.values, len(column)
    if n < IDENTIFIER_ROWS or not column.whole:
        return False
    within = values.min() >= 0 and values.max() <= 2.5 * n  # False if there are gaps
    return bool(within and len(np.unique(values)) == n)


def may_be_names(column: Column) -> str:
    """Return a note on numbers that may be names, such as postal codes; "" for others.

    These are at least 50 whole numbers from 1000 on, of 3 to 20 values that are far apart, on average 50 or more; and
    not round, as prices and salaries are: no number of 10 or more divides them all.
    """
    values = column.values[~column.missing]
    if len(values) < IDENTIFIER_ROWS or values.min() < _SMALLEST_CODE or not column.whole:
        return ""
    if len(np.unique(values[:1000])) > _MOST_CODES:  # before all of many rows are sorted
        return ""
    codes = np.unique(values)
    low, high = codes[0], codes[-1]
    few_far_apart = _FEWEST_CODES <= len(codes) <= _MOST_CODES and high - low >= _FAR_APART * len(codes)
    if not few_far_apart or math.gcd(*map(int, codes)) >= _ROUND:
        return ""
    return (
        f"{column.name} has {len(codes)} different whole numbers, from {shown_number(low)} to {shown_number(high)}, in "
        f"{len(values):,} rows: if they are names, take them as text{option('categorical', column.name)}"
    )


def _scale(values: Floats, weights: Floats | None) -> tuple[float, float, float]:
    """Return the median, the mean and the deviation of numbers without gaps, which are not all equal."""
    unit = magnitude(values)
    values = values / unit
    mean = np.average(values, weights=weights)
    deviation = np.sqrt(np.average(np.square(values - mean), weights=weights))
    return _median(values, weights) * unit, float(mean * unit), max(float(deviation * unit), _SMALLEST)


def _with_bins(part: Part, values: Floats, targets: Array, weights: Floats | None, dtype: str) -> Part:
    """Return a part with the bins that are learned of its values."""
    scaled = Scales([part], dtype).apply(values[None])[0]
    edges = column_edges(scaled, targets, MOST_BINS, max(2, len(values) // 1000), weights)
    return replace(part, edges=tuple(edges.tolist()))


def _median(values: Floats, weights: Floats | None) -> float:
    """Return the median; with whole weights, that of values that are repeated so many times."""
    if weights is None:
        return float(np.median(values))
    order = np.argsort(values, kind="stable")
    passed = np.cumsum(weights[order])
    half = passed[-1] / 2
    below, above = (order[np.searchsorted(passed, half, side)] for side in ("left", "right"))
    return float(values[below] / 2 + values[above] / 2)
