"""The NumPy backend: gradflow on the CPU."""

import importlib.util
import os

from gradflow_numpy.backend import NumpyBackend
from gradflow_numpy.fast import FastNumpyBackend

_wanted = os.environ.get("GRADFLOW_FAST", "")
_found = importlib.util.find_spec("numba") is not None

CpuBackend: type[NumpyBackend] = FastNumpyBackend if _wanted == "1" or (_found and _wanted != "0") else NumpyBackend
"""The backend of the device `cpu`: the fast one where numba is installed, unless GRADFLOW_FAST=0."""

__all__ = ["CpuBackend", "FastNumpyBackend", "NumpyBackend"]
