"""From what scikit-learn calls X, an array or a frame, to a table, and what is learned of its columns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import validate_data

import gradflow as gf
from gradflow.data.inputs import DataError, listed
from gradflow.sklearn.network import Network
from gradflow.tables import Column, Columns, Table, read_table
from gradflow.tables.columns import takes_bins, weighing
from gradflow.tables.learning import learn_category, learn_numbers
from gradflow.tables.options import options_as
from gradflow.tables.task import Target

Array = npt.NDArray[Any]

_NO_TARGET = Target("y", "number", (), "")
"""In place of the target, since it is no column here."""


@options_as("none")
def read_inputs(estimator: Any, X: Any, least: int = 1, known: Network | None = None) -> Table:
    """Return X as a table.

    estimator: whose `n_features_in_` and `feature_names_in_` are set, or, with `known`, are checked.
    X: an array of numbers (rows, features), NaN where they are missing; or a frame of pandas or polars.
    least: the least number of rows.
    known: the network whose columns those of X are, by position (default: X is what a new one is made for).

    Raises ValueError or TypeError like scikit-learn's `check_array`, DataError for a frame that `read_table` refuses.
    """
    kinds = {} if known is None else known.columns.kinds
    if hasattr(X, "columns") and hasattr(X, "dtypes"):
        validate_data(estimator, X, reset=known is None, skip_check_array=True)
        if len(X) < least:
            raise ValueError(f"Found a frame with {len(X)} sample(s) while a minimum of {least} is required.")
        own = [str(name).strip() for name in X.columns]
        names = dict(zip(own, own if known is None else known.names, strict=True))
        wanted = None if known is None else {name: kinds[names[name]] for name in own if names[name] in kinds}
        table = read_table(X, kinds=wanted)
        return Table([replace(column, name=names[column.name]) for column in table.columns], "X", table.notes)
    array = validate_data(
        estimator, X, reset=known is None, dtype=np.float64, order="F", ensure_all_finite="allow-nan",
        ensure_min_samples=least,
    )  # fmt: skip
    others = [name for name, kind in kinds.items() if kind != "number"]
    if others:
        raise ValueError(f"X is an array of numbers, but columns of texts or dates are needed: {listed(others)}")
    labels = [f"x{i}" for i in range(array.shape[1])] if known is None else known.names
    return Table([Column(name, "number", array[:, i]) for i, name in enumerate(labels)], "X")


@options_as("none")
def learn_columns(table: Table, targets: Array, weights: Array | None, encoding: str, dtype: str) -> Columns:
    """Return how the columns of X are treated: as `Columns.learn` does, but whole numbers that number the rows stay.

    targets: (rows,) or (rows, outputs), as `column_edges` takes them.
    weights: (rows,), above 0; None if they are equal.
    encoding, dtype: as for `Columns.learn`.

    Raises DataError for a column that cannot be used, and if none is left.
    """
    if weights is not None:
        used, weights = weighing(weights)
        table, targets = table.take(used), targets[used]
    numbers = sum(column.kind != "text" for column in table.columns)
    known = targets if takes_bins(encoding, len(table), numbers) else None
    treatments = [
        learn_category(column, table.source, weights)
        if column.kind == "text"
        else learn_numbers(column, table.source, known, weights, dtype)
        for column in table.columns
    ]
    columns = Columns(_NO_TARGET, treatments, dtype=dtype)
    if not columns.width:
        raise DataError(f"X: there are no columns to learn from: {listed([each.note for each in treatments])}")
    return columns


def hold_out(groups: Array, share: float, generator: gf.Generator) -> tuple[Array, Array]:
    """Return the indices of the rows that stay, and of those held out: a share of each group, rounded down.

    groups: (rows,). generator: draws which.

    Raises ValueError if no row is held out.

    >>> import numpy as np
    >>> import gradflow as gf
    >>> from gradflow.sklearn.inputs import hold_out
    >>> stay, held = hold_out(np.array(["a"] * 10 + ["b"] * 5), 0.2, gf.Generator(0))
    >>> len(stay), held.tolist()
    (12, [0, 2, 11])
    """
    order = gf.random.permutation(len(groups), device="cpu", generator=generator).numpy()
    parts = [order[groups[order] == group] for group in np.unique(groups)]
    held = np.concatenate([part[: int(share * len(part))] for part in parts])
    if not len(held):
        raise ValueError(f"validation_fraction={share} of {len(groups)} samples leaves none: set early_stopping=False")
    return np.setdiff1d(order, held), np.sort(held)
