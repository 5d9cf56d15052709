"""The NumPy backend: gradflow on the CPU."""

from gradflow_numpy.backend import NumpyBackend

__all__ = ["NumpyBackend"]
