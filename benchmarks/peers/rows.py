"""The rows of the tables."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """A row: its title, the class that trains, the package it needs, and the environment of its process."""

    title: str
    where: str
    package: str | None = None
    extra: str = "peers"
    environment: Mapping[str, str] = field(default_factory=dict)

    def why_not(self) -> str | None:
        """Return why the row cannot be measured here; None if its package is installed."""
        if self.package is None or importlib.util.find_spec(self.package):
            return None
        return f"{self.package} is not installed; it is in the extra '{self.extra}'"


_HERE = "benchmarks.peers"

REFERENCE = "gradflow"
ROWS = {
    REFERENCE: Row("gradflow", f"{_HERE}.ours:Gradflow"),
    "gradflow-fast": Row(
        "gradflow fast", f"{_HERE}.ours:Gradflow", "numba", extra="fast", environment={"GRADFLOW_FAST": "1"}
    ),
    "captured": Row("gradflow, captured", f"{_HERE}.ours:Captured"),
    "captured-fast": Row(
        "gradflow fast, captured", f"{_HERE}.ours:Captured", "numba", extra="fast", environment={"GRADFLOW_FAST": "1"}
    ),
    "torch": Row("PyTorch eager", f"{_HERE}.pytorch:Eager", "torch"),
    "torch-fused": Row("PyTorch eager, fused optimizer", f"{_HERE}.pytorch:Fused", "torch"),
    "torch-compile": Row("torch.compile, fused optimizer", f"{_HERE}.pytorch:Compiled", "torch"),
    "jax": Row("JAX jit", f"{_HERE}.jax_jit:Jit", "jax"),
    "autograd": Row("HIPS autograd", f"{_HERE}.hips:HipsAutograd", "autograd"),
    "numpy": Row("NumPy by hand", f"{_HERE}.numpy_plain:PlainNumpy"),
    "numpy-out": Row("NumPy by hand, out= buffers", f"{_HERE}.numpy_buffers:BufferedNumpy"),
    "gemms": Row("GEMMs alone, NumPy's BLAS", f"{_HERE}.gemms:NumpyGemms"),
    "gemms-mkl": Row("GEMMs alone, MKL", f"{_HERE}.gemms:MklGemms"),
}
"""The rows by name. gradflow is always measured, since the losses of the others are compared with its losses."""

RATIOS = {
    "best PyTorch": ("torch", "torch-fused", "torch-compile"),
    "JAX": ("jax",),
}
"""The peers that gradflow's rows are divided by; of several rows, the one with the lowest median."""
