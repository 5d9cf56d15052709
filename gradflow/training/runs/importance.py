"""How much each column of a table matters to a model, and how predictions depend on it, on rows it has not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.tables import Column, Columns, Table
from gradflow.tables.date_parts import DAYS, parts_of_dates
from gradflow.training.report import Dependence, Importance
from gradflow.training.runs.predictor import Predictor

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

SHUFFLES = 5
"""How often each column is shuffled, at most: less often, in fewer rows, in large models of many columns."""
MOST_ROWS, LEAST_ROWS = 2000, 100
"""How many rows are used, evenly spaced, at most and at least."""
POINTS, LEVELS, DATES = 21, 12, 84
"""For how many values of numbers, and for how many levels at most, the mean prediction is computed.

If there are more dates than values, each value stands for so many around it, since a few would hit weekdays and hours
by chance.
"""

_SEED = 0
_PRODUCTS = 5e10  # multiplications that may take place in all, some seconds of one core
_TOO_MANY = 1e12


def amount(predictor: Predictor, rows: int) -> tuple[Array, int]:
    """Return which of so many rows are used, and how often each column is shuffled: 0 times if that took minutes."""
    weights = sum(p.size for member in predictor.members for p in member.parameters()) * len(predictor.features)
    shuffled = int(_PRODUCTS / weights)  # rows, in all shuffles of a column
    times = max(1, min(SHUFFLES, shuffled // (4 * LEAST_ROWS)))
    used = min(rows, max(LEAST_ROWS, min(MOST_ROWS, shuffled // times)))
    return np.linspace(0, rows - 1, used).astype(np.int64), times if weights * used <= _TOO_MANY else 0


def importance(predictor: Predictor, table: Table, targets: Array, times: int = SHUFFLES) -> list[Importance]:
    """Return the permutation importance of each column of a table, the largest first.

    targets: codes of classes (rows,), or values (rows, 1). times: how often each column is shuffled, at least once; an
    indicator of its missing values is shuffled with it.

    Breiman 2001, "Random Forests", section 10.
    """
    columns = _columns(predictor)
    encoded = columns.encode(table)
    before = _loss(predictor.averages(encoded), predictor, targets)
    generator = np.random.Generator(np.random.PCG64(_SEED))
    found = []
    for name, places in columns.places.items():
        losses = []
        for _ in range(times):
            shuffled = encoded.copy()
            shuffled[:, places] = encoded[generator.permutation(len(encoded))][:, places]
            losses.append(_loss(predictor.averages(shuffled), predictor, targets) - before)
        found.append(Importance(name, np.array(losses)))
    return sorted(found, key=lambda each: -float(each.losses.mean()))


def dependence(predictor: Predictor, table: Table, name: str) -> Dependence | None:
    """Return the mean prediction by the values of a column, its partial dependence; None for a column without values.

    Friedman 2001, "Greedy Function Approximation: A Gradient Boosting Machine", section 8.2.
    """
    columns = _columns(predictor)
    tried = _tried(table[name])
    if tried is None:
        return None
    many = DATES if tried.kind == "date" and len(tried) == POINTS else 1
    every = _spread(tried, many) if many > 1 else tried
    first = table.take(np.zeros(len(every), np.int64))
    each = columns.encode(Table([every if c.name == name else c for c in first.columns], table.source))
    encoded, places = columns.encode(table), columns.places[name]
    turns = np.arange(len(encoded)) % many
    means = []
    for start in range(0, len(each), many):
        encoded[:, places] = each[start + turns][:, places]
        outputs = predictor.averages(encoded)
        means.append((outputs if predictor.targets is None else predictor.targets.undo(outputs)).mean(axis=0))
    if tried.kind == "text":
        return Dependence(name, [tried.levels[code] for code in tried.values], np.array(means))
    dates = tried.kind == "date"
    return Dependence(name, parts_of_dates(tried.values)[DAYS] if dates else tried.values, np.array(means), dates)


def _columns(predictor: Predictor) -> Columns:
    assert isinstance(predictor.inputs, Columns)
    return predictor.inputs


def _tried(column: Column) -> Column | None:
    """Return the values that a column is tried with, increasing, or its most frequent levels; None if it has none."""
    there = column.values[~column.missing]
    if not len(there):
        return None
    if column.kind == "text":
        counts = np.bincount(there, minlength=len(column.levels))
        levels = [i for i in np.argsort(-counts, kind="stable")[:LEVELS].tolist() if counts[i]]
        return Column(column.name, "text", np.array(levels, np.int32), column.levels)
    numbers = there.astype(np.int64) if column.kind == "date" else there
    distinct = np.unique(numbers)
    if len(distinct) > POINTS:
        low, high = np.quantile(numbers, [0.01, 0.99])
        low, high = (low, high) if low < high else (distinct[0], distinct[-1])
        distinct = np.linspace(low, high, POINTS)
    values = distinct.astype(np.int64).astype("datetime64[us]") if column.kind == "date" else distinct
    return Column(column.name, column.kind, values.astype(column.values.dtype), layout=column.layout)


def _spread(dates: Column, many: int) -> Column:
    """Return dates at equal distances, each replaced by many that are spread over the distance to the next."""
    generator = np.random.Generator(np.random.PCG64(_SEED))
    times = dates.values.astype(np.int64)
    shares = (np.arange(many) + generator.random((len(times), many))) / many - 0.5
    spread = times[:, None] + (shares * (times[1] - times[0])).astype(np.int64)
    return Column(dates.name, dates.kind, spread.ravel().astype(dates.values.dtype), layout=dates.layout)


def _loss(outputs: Floats, predictor: Predictor, targets: Array) -> float:
    """Return the log loss, or the root of the mean squared error, of the averages over the members."""
    if predictor.targets is not None:
        return float(np.sqrt(np.mean(np.square(predictor.targets.undo(outputs) - targets))))
    likely = outputs[np.arange(len(targets)), targets]
    return float(-np.log(np.maximum(likely, np.finfo(np.float64).eps)).mean())
