"""What `Batches` checks: its data on the host, sample weights, numbers that are not finite, and a hash of the data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

import gradflow as gf
from gradflow.ops.host import array_from_host, array_from_numbers

_CHUNK = 1 << 22
"""The bytes of data on the host, and 16 times those of data on the device, that are read at once."""


def host_array(name: str, data: Any) -> Any:
    """Samples as a tensor if they are one, else as an array on the host, without a copy where possible.

    Raises TypeError for data that is not an array of numbers, and ValueError for a single number.
    """
    if data is None:
        raise TypeError(f"Batches needs {name}; got None")
    made: Any
    if isinstance(data, gf.Tensor):
        made = data.detach()
    elif isinstance(data, np.ndarray) and data.ndim and not data.dtype.isnative:
        array_from_host(data[:0])  # raises; the data itself, perhaps larger than memory, is not converted
        made = data.__array__()
    elif hasattr(data, "__array__"):
        made = array_from_host(data)
    elif isinstance(data, (list, tuple, range)):
        if any(isinstance(x, gf.Tensor) or getattr(x, "ndim", 0) > 1 or _holds_arrays(x) for x in data):
            raise TypeError(f"{name} of Batches are one array with all samples; got a list of arrays: concatenate them")
        made = array_from_numbers(data, None)
    else:
        raise TypeError(f"{name} of Batches are an array, a list of numbers or a tensor; got {type(data).__name__}")
    if not made.ndim:
        raise ValueError(f"{name} of Batches have the samples along their first axis; got a single number")
    return made


def _holds_arrays(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and any(getattr(part, "ndim", 0) > 0 for part in x)


def weights_of(weights: Any, inputs: Any) -> Any:
    """Sample weights for these inputs, as an array on the host: float64 for float64 inputs, else float32.

    Raises ValueError for another shape, negative or non-finite weights, or zeros only.
    """
    given = host_array("weights", weights)
    values = given.numpy() if isinstance(given, gf.Tensor) else given
    if values.shape != (len(inputs),):
        raise ValueError(f"weights need the shape ({len(inputs)},), one for each sample; got {tuple(values.shape)}")
    values = values.astype("float64" if inputs.dtype.name == "float64" else "float32")
    wrong = ~((values >= 0) & np.isfinite(values))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"weights must be finite and at least 0; that of row {row} is {values[row]}")
    if not values.any():
        raise ValueError("all weights are 0: there is nothing to train on")
    return values


def first_non_finite(data: dict[str, Any]) -> None:
    """Raise ValueError for the first number that is not finite, with its array, row and column."""
    where: dict[str, int] = {}
    on_device: dict[str, gf.Tensor] = {}
    for name, x in data.items():
        if isinstance(x, gf.Tensor):
            if x.dtype.is_floating and x.size:
                wrong = gf.logical_not(gf.isfinite(gf.reshape(x.detach(), (-1,))))
                on_device[name] = gf.where(gf.any(wrong), gf.argmax(gf.astype(wrong, "uint8")), -1)
        elif x.dtype.kind not in "iub":
            where[name] = _first_on_host(x)
    if on_device:
        read = gf.stack([gf.astype(x, "int64") for x in on_device.values()]).tolist()
        where |= zip(on_device, read, strict=True)
    for name, x in data.items():
        if where.get(name, -1) >= 0:
            place = tuple(map(int, np.unravel_index(where[name], tuple(x.shape))))
            value = x[place].item() if isinstance(x, gf.Tensor) else x[place]
            column = f", column {', '.join(map(str, place[1:]))}," if len(place) > 1 else ""
            raise ValueError(
                f"row {place[0]}{column} of the {name} is {value}: replace numbers that are not finite, or leave out "
                "their rows, before training"
            )


def _first_on_host(x: Any) -> int:
    done = 0
    for part in _chunks(x):
        wrong = ~np.isfinite(part)
        if wrong.any():
            return done + int(wrong.argmax())
        done += part.size
    return -1


def fingerprint(data: dict[str, Any]) -> str:
    """A hash of names, dtypes, shapes and values, in hexadecimal; the same for arrays on the host and tensors."""
    digest = hashlib.sha256()
    for name, x in data.items():
        digest.update(f"{name} {x.dtype.name} {tuple(x.shape)}\n".encode())
        for part in _chunks(x):
            little = part if part.dtype.str[0] != ">" else part.astype(part.dtype.newbyteorder("<"))
            digest.update(little.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _chunks(x: Any) -> Iterator[Any]:
    """The rows of an array or a tensor, as C-contiguous arrays on the host of a limited size."""
    size = _CHUNK * (16 if isinstance(x, gf.Tensor) else 1)
    rows = max(1, size * len(x) // max(1, x.size * x.dtype.itemsize))
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        yield part.numpy() if isinstance(part, gf.Tensor) else np.ascontiguousarray(part)
