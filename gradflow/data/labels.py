"""Targets as they come from users: class labels are encoded as 0, 1, ..., and floats are left for regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.data.inputs import Array, DataError, cause, check_finite, listed
from gradflow.ops.host import array_from_host

Label = int | str | bool
Codes = npt.NDArray[np.int64]

_FEW = 20
"""As many distinct labels are classes in any case, even where each occurs once."""


def checked_targets(values: Any, source: str) -> Array:
    """Return targets as floats (samples, columns) for regression, or as integers, bools or text (samples,).

    values: (samples,) or (samples, 1) integers, bools or text for classes; (samples, classes) one-hot rows of any
    dtype, which become integers; floats (samples,) or (samples, columns) for regression.
    source: what to call them in messages.

    Raises DataError for anything else, and for numbers that are not finite.
    """
    array = np.asarray(values)
    if array.dtype.kind == "O" and all(isinstance(x, str) for x in array.flat):  # a column of words in pandas
        array = array.astype(str)
    if array.dtype.kind in "TS":
        try:
            array = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array.astype(str)
        except UnicodeDecodeError as error:
            raise DataError(f"{source}: the labels are bytes that are not UTF-8: {error}") from None
    if array.dtype.kind != "U":
        try:
            array = np.asarray(array_from_host(values if hasattr(values, "__array__") else array))
        except TypeError as error:
            raise DataError(f"{source}: the targets cannot be used: {cause(error)}") from None
    if array.ndim not in (1, 2) or not array.size:
        raise DataError(f"{source}: targets are an array (samples,) or (samples, columns); got shape {array.shape}")
    columns: Array = array.reshape(len(array), -1)
    if columns.shape[1] > 1 and array.dtype.kind != "U" and _one_hot(columns):
        return np.asarray(np.argmax(columns, axis=1))
    if array.dtype.kind not in "biuU":
        check_finite(columns, f"{source}: the target")
        return columns
    if columns.shape[1] > 1:
        raise DataError(
            f"{source}: {array.dtype} targets of shape {array.shape} are neither labels (samples,) nor one-hot rows; "
            "for regression on several columns, save them as floats"
        )
    return columns[:, 0]


def _one_hot(rows: Array) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(((rows == 0) | (rows == 1)).all() and (rows.sum(axis=1) == 1).all())


def encode(values: Array, source: str, names: Sequence[str] = ()) -> tuple[Codes, tuple[Label, ...], tuple[str, ...]]:
    """Return the codes of labels, the label of each class, and the name of each class.

    values: labels, as `checked_targets` returns them.
    names: of the classes, in the order of the sorted labels, or where labels count from 0 or are names themselves, of
    the classes 0, 1, ... (default: the labels as text).

    Raises DataError for names that do not fit, and for labels that are hardly classes, because more than half of the
    samples, and more than 20, have one of their own.
    """
    distinct, codes = np.unique(values, return_inverse=True)
    labels: list[Label] = distinct.tolist()
    if len(labels) > max(_FEW, len(values) / 2):
        if values.dtype.kind == "U":
            raise DataError(f"{source}: {len(labels)} different texts in {len(values)} samples are no classes")
        raise DataError(
            f"{source}: {len(labels)} different integers in {len(values)} samples are hardly classes: for regression, "
            "save the targets as floats, as in y.astype('float32')"
        )
    texts = [str(label) for label in labels]
    known: Sequence[Label]
    if not names or len(set(names)) < len(names):
        if names:
            raise DataError(f"{source}: the names of the classes are not all different: {listed(names)}")
        return codes.astype(np.int64), tuple(labels), tuple(texts)
    if set(texts) <= set(names):
        place = {name: i for i, name in enumerate(names)}
        known = list(names) if values.dtype.kind == "U" else _values(names, labels, place)
        where = [place[text] for text in texts]
    elif values.dtype.kind != "U" and int(labels[0]) >= 0 and int(labels[-1]) < len(names):
        known, where = list(range(len(names))), [int(label) for label in labels]
    elif len(names) == len(labels):
        known, where = labels, list(range(len(labels)))
    else:
        raise DataError(
            f"{source}: {len(names)} names of classes do not fit the {len(labels)} labels {listed(labels)}; give one "
            "name for each label"
        )
    return np.array(where, np.int64)[codes], tuple(known), tuple(names)


def _values(names: Sequence[str], labels: Sequence[Label], place: dict[str, int]) -> list[Label]:
    """Return the labels in the order of their names; a class that does not occur has its name as its label."""
    known: list[Label] = list(names)
    for label in labels:
        known[place[str(label)]] = label
    return known


def codes_among(
    labels: Sequence[Label], names: Sequence[str], known: Sequence[Label], classes: Sequence[str], source: str
) -> Codes:
    """Return the code of each label among the classes of other data, found by its name, or else by its value.

    labels, names: of the classes here. known, classes: the labels and names of the classes there.

    Raises DataError, which names the first unknown class.
    """
    if set(names) <= set(classes):
        place: dict[Any, int] = {name: i for i, name in enumerate(classes)}
        return np.array([place[name] for name in names], np.int64)
    place = {label: i for i, label in enumerate(known)}
    plain = [str(label) for label in labels] == list(names)
    unknown = [label for label in labels if label not in place] if plain else [n for n in names if n not in classes]
    if unknown:
        raise DataError(
            f"{source} has the class {unknown[0]!r}, which the training data has not: its classes are {listed(classes)}"
        )
    return np.array([place[label] for label in labels], np.int64)


def encode_as(values: Any, labels: Sequence[Label], classes: Sequence[str], source: str) -> Codes:
    """Return the codes of labels, in any form that `checked_targets` takes, among the classes of the training data.

    labels, classes: of the training data, as in `Dataset`. Raises DataError, which names the first unknown class.
    """
    found = checked_targets(values, source)
    if found.dtype.kind not in "biuU":
        raise DataError(f"{source}: labels are expected, since the model tells classes apart; got {found.dtype}")
    distinct, codes = np.unique(found, return_inverse=True)
    here = distinct.tolist()
    return codes_among(here, [str(label) for label in here], labels, classes, source)[codes]
