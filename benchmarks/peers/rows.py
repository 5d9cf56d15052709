"""The rows of the tables."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """A row: its title, the class that trains, the package it needs, and the environment of its process.

    checkout: the folder whose gradflow is measured, if it is not this one.
    """

    title: str
    where: str
    package: str | None = None
    extra: str = "peers"
    environment: Mapping[str, str] = field(default_factory=dict)
    checkout: Path | None = None

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
        "gradflow fast", f"{_HERE}.ours:Gradflow", "llvmlite", extra="fast", environment={"GRADFLOW_FAST": "1"}
    ),
    "captured": Row("gradflow, captured", f"{_HERE}.ours:Captured"),
    "captured-fast": Row(
        "gradflow fast, captured",
        f"{_HERE}.ours:Captured",
        "llvmlite",
        extra="fast",
        environment={"GRADFLOW_FAST": "1"},
    ),
    "torch": Row("PyTorch eager", f"{_HERE}.pytorch:Eager", "torch"),
    "torch-fused": Row("PyTorch eager, fused optimizer", f"{_HERE}.pytorch:Fused", "torch"),
    "torch-compile": Row("torch.compile, fused optimizer", f"{_HERE}.pytorch:Compiled", "torch"),
    "jax": Row("JAX jit", f"{_HERE}.jax_jit:Jit", "jax"),
    "autograd": Row("HIPS autograd", f"{_HERE}.hips:HipsAutograd", "autograd"),
    "numpy": Row("NumPy by hand", f"{_HERE}.numpy_plain:PlainNumpy"),
    "numpy-out": Row("NumPy by hand, out= buffers", f"{_HERE}.numpy_buffers:BufferedNumpy"),
    "gemms": Row("GEMMs alone, NumPy's BLAS", f"{_HERE}.gemms:NumpyGemms"),
}
"""The rows by name. gradflow is always measured, since the losses of the others are compared with its losses."""

RATIOS = {
    "best PyTorch": ("torch", "torch-fused", "torch-compile"),
    "JAX": ("jax",),
    "GEMMs alone": ("gemms",),
}
"""The peers that gradflow's rows are divided by; of several rows, the one with the lowest median."""

_BEFORE = ("gradflow-fast", "captured-fast")


def before_name(name: str) -> str:
    """The name of the row that measures another commit's gradflow as the row of this name measures this one's."""
    return f"{name}-before"


BEFORE = tuple(before_name(name) for name in _BEFORE)


def chosen(names: Iterable[str], checkout: Path | None = None) -> dict[str, Row]:
    """Return gradflow's row and those of these names, the rows `BEFORE` only if there is a checkout for them."""
    rows = dict(ROWS)
    for name in _BEFORE if checkout else ():
        title = f"{ROWS[name].title}, before"
        rows[before_name(name)] = replace(ROWS[name], title=title, package=None, checkout=checkout.resolve())
    wanted = (REFERENCE, *names)
    return {name: row for name, row in rows.items() if name in wanted}
