"""The NumPy backend: gradflow on the CPU."""

import importlib.util

from gradflow.environment import switch
from gradflow_numpy.backend import NumpyBackend
from gradflow_numpy.fast import FastNumpyBackend
from gradflow_numpy.native.kernels import is_supported


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its import is blocked
        return False


_wanted = switch("GRADFLOW_FAST")
_fast = (_is_installed("llvmlite") and is_supported()) if _wanted is None else _wanted
CpuBackend: type[NumpyBackend] = FastNumpyBackend if _fast else NumpyBackend
"""The backend of the device `cpu`: the fast one if llvmlite is installed and makes code for this processor, unless
GRADFLOW_FAST=0."""

__all__ = ["CpuBackend", "FastNumpyBackend", "NumpyBackend"]
