"""Inputs as they come from users, checked and brought to one form before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradflow.data.checks import first_non_finite
from gradflow.ops.host import array_from_host
from gradflow.text import printable

Array = npt.NDArray[Any]


class DataError(ValueError):
    """Data that cannot be used; the message says, on one line, where it comes from, what is wrong and what to do.

    >>> from gradflow.data import DataError, Dataset
    >>> try:
    ...     Dataset.from_arrays([[1.0], [float("nan")]], ["a", "b"])
    ... except DataError as error:
    ...     print(error)
    arrays: the input in row 1, column 0, both counted from 0, is nan: leave out such rows, or fill the gaps
    """

    def __init__(self, message: str) -> None:
        told = printable(message)
        super().__init__(told if len(told) <= 800 else f"{told[:800]} ...")


def listed(names: Sequence[Any], most: int = 10) -> str:
    """Return names separated by commas; of more than `most`, the first ones and how many there are."""
    shown = ", ".join(str(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def checked_inputs(values: Any, source: str, features: Sequence[str] = (), width: int | None = None) -> Array:
    """Return inputs as an array of real numbers (samples, features), of the dtype they have; images are flattened.

    values: (samples,) for one feature, (samples, features), or (samples, height, width[, channels]).
    source: what to call them in messages, such as the name of a file.
    features: the names of the features, or ().
    width: the number of features that is expected (default: any).

    Raises DataError for anything else, no samples, another width, and numbers that are not finite.
    """
    array = as_rows(values, source)
    if width is not None and array.shape[1] != width:
        missing = (
            f"; the first that is missing is {features[array.shape[1]]!r}" if array.shape[1] < len(features) else ""
        )
        raise DataError(f"{source}: {width} features are expected; got {array.shape[1]}{missing}")
    check_finite(array, f"{source}: the input", features)
    return array


def as_rows(values: Any, source: str) -> Array:
    """Return inputs as an array of real numbers (samples, features), not yet checked further.

    Raises DataError for anything but numbers, and for none.
    """
    try:
        array: Array = array_from_host(as_array(values, f"{source}: the inputs"))
    except TypeError as error:
        raise DataError(f"{source}: the inputs are no numbers: {cause(error)}") from None
    if not array.ndim or not array.size:
        raise DataError(f"{source}: inputs are an array (samples, features); got one of shape {array.shape}")
    return array.reshape(len(array), -1)


def as_array(values: Any, what: str) -> Any:
    """Return an array as it is, and nested lists as an array. Raises DataError for lists of unequal lengths."""
    try:
        return values if hasattr(values, "__array__") else np.asarray(values)
    except ValueError:
        raise DataError(f"{what} are nested lists of unequal lengths") from None


def cause(error: TypeError) -> str:
    """Return what is wrong with an array, of the error that `array_from_host` raised."""
    return str(error).removeprefix("a tensor is made of numbers; ")


def check_finite(values: Array, what: str, names: Sequence[str] = ()) -> None:
    """Raise DataError, with the row and the column, for the first number in (samples, columns) that is not finite."""
    if values.dtype.kind in "biu":
        return
    found = first_non_finite(values)
    if found is not None:
        (row, column), value = found
        named = f" ({names[column]!r})" if names else ""
        raise DataError(
            f"{what} in row {row}, column {column}{named}, both counted from 0, is {value}: "
            "leave out such rows, or fill the gaps"
        )


def check_names(names: Sequence[str], expected: Sequence[str], source: str, what: str = "feature") -> None:
    """Raise DataError for the first name that is not the one expected at its place; () fits any names."""
    for own, theirs in zip(names, expected, strict=False):
        if own != theirs:
            raise DataError(f"{source}: the {what} {own!r} stands where {theirs!r} is expected")


def image_shape_of(shape: Sequence[int]) -> tuple[int, ...] | None:
    """Return (height, width) or (height, width, channels) of an array of images with this shape, None for others."""
    pictures = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3, 4))
    return tuple(shape[1:]) if pictures else None
