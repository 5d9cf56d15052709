"""Targets as they come from users: class labels are encoded as 0, 1, ..., and floats are left for regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.data.inputs import Array, DataError, as_array, cause, check_finite, listed
from gradflow.ops.host import array_from_host

Label = int | str | bool
Codes = npt.NDArray[np.int64]

FEW_LABELS = 20
"""As many distinct labels are classes in any case, even where each occurs once."""


def checked_targets(values: Any, source: str) -> Array:
    """Return targets as floats (samples, columns) for regression, or as integers, bools or text (samples,).

    values: (samples,) or (samples, 1) integers, bools or text for classes; (samples, classes) one-hot rows of any
    dtype, which become integers; floats (samples,) or (samples, columns) for regression.
    source: what to call them in messages.

    Raises DataError for anything else, and for numbers that are not finite.
    """
    if np.ma.isMaskedArray(values):
        raise DataError(f"{source}: the targets are a masked array: leave out the samples that have none")
    array = np.asarray(as_array(values, f"{source}: the targets"))
    if array.dtype.kind == "O":
        odd = [x for x in array.flat if not isinstance(x, str)]
        if odd:
            kinds = "save integers, floats, or text for each sample"
            raise DataError(f"{source}: the targets are Python objects, among them {odd[0]!r}: {kinds}")
        array = array.astype(str)  # a column of words in pandas
    if array.dtype.kind in "TS":
        try:
            array = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array.astype(str)
        except UnicodeDecodeError as error:
            raise DataError(f"{source}: the labels are bytes that are not UTF-8: {error}") from None
    if array.dtype.kind != "U":
        try:
            array = np.asarray(array_from_host(array))
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
    names: of the classes: the labels themselves; or those of the labels 0, 1, ...; or one for each label that occurs,
    in the order of the sorted labels (default: the labels as text).

    Raises DataError for names that do not fit, and for labels that are hardly classes, because more than half of the
    samples, and more than 20, have one of their own.
    """
    distinct, codes = np.unique(values, return_inverse=True)
    labels: list[Label] = distinct.tolist()
    if len(labels) > max(FEW_LABELS, len(values) / 2):
        if values.dtype.kind == "U":
            raise DataError(f"{source}: {len(labels)} different texts in {len(values)} samples are no classes")
        raise DataError(
            f"{source}: {len(labels)} different integers in {len(values)} samples are hardly classes: for regression, "
            "save the targets as floats, as in y.astype('float32')"
        )
    if not names:
        return codes.astype(np.int64), tuple(labels), tuple(str(label) for label in labels)
    if len(set(names)) < len(names):
        raise DataError(f"{source}: the names of the classes are not all different: {listed(names)}")
    known: list[Label] = list(names)
    if values.dtype.kind == "b":
        known = [False, True]
    elif values.dtype.kind != "U":
        try:
            known = [int(name) for name in names]
        except ValueError:
            known = list(range(len(names)))
    if len(known) != len(names) or not set(labels) <= set(known):
        if len(labels) != len(names):
            counts = f"{len(names)} names of classes do not fit the {len(labels)} labels {listed(labels)}"
            raise DataError(f"{source}: {counts}: give one name for each label")
        known = labels
    place = {label: i for i, label in enumerate(known)}
    return np.array([place[label] for label in labels], np.int64)[codes], tuple(known), tuple(names)


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
            f"{source}: there is no class {unknown[0]!r} in the training data; its classes are {listed(classes)}"
        )
    return np.array([place[label] for label in labels], np.int64)


def encode_as(values: Any, labels: Sequence[Label], classes: Sequence[str], source: str) -> Codes:
    """Return the codes of labels, in any form that `checked_targets` takes, among the classes of the training data.

    labels, classes: of the training data, as in `Dataset`. The columns of one-hot rows are in their order.

    Raises DataError, which names the first unknown class.
    """
    found = checked_targets(values, source)
    if found.dtype.kind not in "biuU":
        raise DataError(f"{source}: labels of classes are expected: integers or text; got {found.dtype}")
    if np.ndim(values) == 2 and np.shape(values)[1] > 1:  # one-hot rows
        if np.shape(values)[1] != len(classes):
            raise DataError(f"{source}: one-hot rows of {len(classes)} columns are expected; got {np.shape(values)[1]}")
        return found
    distinct, codes = np.unique(found, return_inverse=True)
    here = distinct.tolist()
    return codes_among(here, [str(label) for label in here], labels, classes, source)[codes]
