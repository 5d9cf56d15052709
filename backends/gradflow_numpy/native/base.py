"""What the backend's parts with native kernels share."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.backend import Array
from gradflow_numpy.backend import NumpyBackend

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def fits(x: Any, dtype: Any = None) -> bool:
    """Whether kernels take x: a contiguous array of float32 or float64, or only of the given one of them."""
    if x.__class__ is not np.ndarray or not x.flags.carray:
        return False
    return x.dtype in _DTYPES if dtype is None else bool(x.dtype == dtype)


def fit(arrays: Sequence[Any]) -> bool:
    """Whether kernels take these arrays together: whether each that is not None `fits` the dtype of the first."""
    dtype = arrays[0].dtype
    for x in arrays:
        if x is not None and not (x.__class__ is np.ndarray and x.flags.carray and x.dtype == dtype):
            return False
    return dtype in _DTYPES


def as_array(x: Any) -> Any:
    """An array of a scalar of NumPy: what NumPy makes of 0-d arrays, where a captured step has arrays."""
    return np.asarray(x) if isinstance(x, np.generic) else x


def items_of(x: Array) -> tuple[int, int]:
    """The length of the first axis, and the number of elements in each of its items; (1, 1) for a 0-d array."""
    if not x.ndim:
        return 1, 1
    n = x.shape[0]
    return n, x.size // n if n else 0


class NativeKernels(NumpyBackend):
    """The base of the parts: a backend that knows itself without them."""

    @functools.cached_property
    def numpy(self) -> NumpyBackend:
        """This backend with NumPy's kernels alone.

        A kernel that does not fit its arguments calls the kernel of this one. `super()` would not do: what that calls
        may be native again, and a call must be native as a whole or not at all, so that captured steps can tell.
        """
        return _Numpy(self)


class _Numpy(NumpyBackend):
    """NumPy's kernels, with the state of another backend."""

    def __init__(self, owner: NumpyBackend) -> None:
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._owner, name)

    @property
    def nonfinite(self) -> Any:
        return self._owner.nonfinite
