"""The rows and the workloads."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.peers.rows import REFERENCE, Row
from benchmarks.workloads import MEDIUM, TINY, Workload

CAPTURED, STEPS = "captured", "steps"
RATIOS = {
    "PyTorch eager": ("torch",),
    "torch.compile": ("torch-compile", "torch-tuned"),
    "PyTorch, graph by hand": ("torch-graph", "torch-compiled-graph"),
    "JAX jit": ("jax",),
    "JAX scan": ("jax-scan",),
}
"""The peers of gradflow, of several rows the fastest."""
SLOW = ("torch-tuned", "b32", "a-tf32", "c-tf32", "b32-tf32", "b-autocast")
"""The row and the workloads measured only if asked for, since there would not be enough time."""

AIMS: dict[str, dict[str, float]] = {
    "t": {"PyTorch eager": 15, "torch.compile": 5, "PyTorch, graph by hand": 2, "JAX jit": 4},
    "a": {"PyTorch eager": 7, "torch.compile": 4, "PyTorch, graph by hand": 1.3, "JAX jit": 2},
    "b": {"PyTorch eager": 1.08, "torch.compile": 1.02, "PyTorch, graph by hand": 1.0, "JAX jit": 1.02},
    "c": {"PyTorch eager": 3.5, "torch.compile": 1.5, "PyTorch, graph by hand": 1.1, "JAX jit": 1.3},
}
"""By workload and peer: the ratio of its time to gradflow's that is aimed at."""

WORKLOADS = {
    "t": replace(TINY, letter="t", optimizer="Adam"),
    "a": replace(MEDIUM, letter="a"),
    "c": Workload("c", "narrow", (64, 64, 64, 10), 65536, optimizer="Adam", batches=8),
    "b": Workload("b", "large", (4096, 4096, 4096, 1000), 8192, optimizer="Adam", batches=2, dtype="bfloat16"),
    "b32": Workload("b32", "large", (4096, 4096, 4096, 1000), 8192, optimizer="Adam", batches=2),
}
WORKLOADS |= {
    letter: replace(WORKLOADS[like], letter=letter, precision=precision)
    for letter, like, precision in (
        ("a-tf32", "a", "tf32"),
        ("c-tf32", "c", "tf32"),
        ("b32-tf32", "b32", "tf32"),
        ("b-autocast", "b32", "autocast"),
    )
}
"""The workloads by letter. In bfloat16, weights, gradients and moments are bfloat16 too, in every row."""
_SMALL = {"t": (8, 4), "a": (8, 32), "b": (8, 16), "b32": (8, 16), "c": (16, 16)}
"""For a dry run: the batch size and the greatest width."""


def tiny(workload: Workload) -> Workload:
    """The workload of a dry run: the same layers, loss and dtype, in a tiny size."""
    batch, width = _SMALL[workload.letter.partition("-")[0]]
    return replace(workload, layers=tuple(min(n, width) for n in workload.layers), batch=batch, batches=4)


def rows(device: str) -> dict[str, Row]:
    """The rows by name, in processes that compute on this device."""
    here = "benchmarks.gpu"
    environment = {
        "GRADFLOW_BENCHMARK_DEVICE": device,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_TRACEBACK_FILTERING": "off",
    }
    if device != "cuda":
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    found = {
        REFERENCE: ("gradflow", "ours:Plain", None),
        CAPTURED: ("gradflow, captured", "ours:Captured", None),
        STEPS: ("gradflow, K steps a graph", "ours:Steps", None),
        "torch": ("PyTorch eager, fused Adam", "pytorch:Eager", "torch"),
        "torch-compile": ("torch.compile, reduce-overhead", "pytorch:Compiled", "torch"),
        "torch-tuned": ("torch.compile, max-autotune", "pytorch:Tuned", "torch"),
        "torch-graph": ("PyTorch, step in a graph by hand", "pytorch:Graph", "torch"),
        "torch-compiled-graph": ("the same with torch.compile", "pytorch:CompiledGraph", "torch"),
        "jax": ("JAX jit", "jax_jit:Jit", "jax"),
        "jax-scan": ("JAX jit, scan over steps", "jax_jit:Scan", "jax"),
    }
    return {
        name: Row(title, f"{here}.{where}", package, environment=environment)
        for name, (title, where, package) in found.items()
    }
