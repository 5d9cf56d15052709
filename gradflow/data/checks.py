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

_WHOLE = ("i", "u", "b", "int", "uint", "bool")
"""The kinds of dtypes, of NumPy and of gradflow, whose numbers are finite."""


class SetOnce:
    """A base class of objects whose public attributes are set once, as what uses such an object relies on them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self) and not name.startswith("_"):
            raise AttributeError(f"{name} of a {type(self).__name__} cannot change: make a new one")
        super().__setattr__(name, value)


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


def check_finite(data: dict[str, Any]) -> None:
    """Raise ValueError for the first number that is not finite, with its array, row and column.

    Data on a device costs one read; data on the host, also in tensors on the CPU, is read in chunks.
    """
    data = {name: _on_host(x) for name, x in data.items()}
    there = [gf.all(gf.isfinite(x)) for x in data.values() if isinstance(x, gf.Tensor)]
    all_finite_there = not there or gf.all(gf.stack(there)).item()
    for name, x in data.items():
        if (isinstance(x, gf.Tensor) and all_finite_there) or str(x.dtype.kind) in _WHOLE:
            continue
        found = first_non_finite(x)
        if found is not None:
            (row, *others), value = found
            column = f", column {', '.join(map(str, others))}," if others else ""
            raise ValueError(
                f"row {row}{column} of the {name} is {value}: replace numbers that are not finite, or leave out their "
                "rows, before training"
            )


def first_non_finite(x: Any) -> tuple[tuple[int, ...], Any] | None:
    """The index and the value of the first number in an array or a tensor that is not finite, or None."""
    done = 0
    for part in _chunks(x):
        wrong = ~np.isfinite(part)
        if wrong.any():
            first = int(wrong.argmax())
            return tuple(map(int, np.unravel_index(done + first, tuple(x.shape)))), part.reshape(-1)[first]
        done += part.size
    return None


def _on_host(x: Any) -> Any:
    """A tensor on the CPU as an array, without a copy; anything else as it is."""
    return x.backend.host_values(x.array) if isinstance(x, gf.Tensor) and x.device.type == "cpu" else x


def fingerprint(data: dict[str, Any]) -> str:
    """A hash of names, dtypes, shapes and values, in hexadecimal; the same for arrays on the host and tensors."""
    digest = hashlib.sha256()
    for name, x in data.items():
        x = _on_host(x)
        digest.update(f"{name} {x.dtype.name} {tuple(x.shape)}\n".encode())
        hash_values(digest, x)
    return digest.hexdigest()


def hash_values(digest: Any, x: Any) -> None:
    """Add the values of an array or a tensor to a hash of `hashlib`, row by row, in little-endian byte order."""
    for part in _chunks(x):
        little = part.astype(part.dtype.newbyteorder("<"), copy=False)
        digest.update(little.reshape(-1).view(np.uint8))


def _chunks(x: Any) -> Iterator[Any]:
    """The rows of an array or a tensor, as C-contiguous arrays on the host of a limited size."""
    size = _CHUNK * (16 if isinstance(x, gf.Tensor) else 1)
    rows = max(1, size * len(x) // max(1, x.size * x.dtype.itemsize))
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        yield part.numpy() if isinstance(part, gf.Tensor) else np.ascontiguousarray(part)
