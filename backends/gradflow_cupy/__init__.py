"""The CuPy backend: gradflow on NVIDIA GPUs. Importing it needs no CuPy; making a `CupyBackend` does."""

from gradflow_cupy.backend import CupyBackend

__all__ = ["CupyBackend"]
