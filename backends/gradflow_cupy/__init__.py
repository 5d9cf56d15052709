"""The CuPy backend: gradflow on NVIDIA GPUs. Importing it needs no CuPy; creating a `CupyBackend` does."""

from gradflow_cupy.backend import CupyBackend

__all__ = ["CupyBackend"]
