"""The sweeps: perceptrons that differ in one number."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.workloads import LARGE, MEDIUM, SMALL, Workload

BATCHES = [4**n for n in range(9)]
WIDTHS = [16, 64, 256, 1024, 4096, 8192]
DEPTHS = [1, 2, 5, 10, 20, 50, 100, 200]
ROWS = ("gradflow", "gradflow-fast", "captured-fast", "torch-fused")
OPTIMIZER = "Adam"
TOGETHER = 2 * 1024**3
"""Up to this many bytes the rows take turns; larger workloads are measured one row after another."""
MEMORY = "memory"
"""Not a sweep: memory is measured for the largest workload of each sweep and for `USUAL`."""
USUAL = (SMALL, MEDIUM, LARGE)


@dataclass(frozen=True)
class Sweep:
    """A sweep over one number: its name, its label, and the workloads by its values."""

    name: str
    label: str
    workloads: dict[int, Workload]


def sweep(name: str, label: str, points: dict[int, tuple[tuple[int, ...], int]]) -> Sweep:
    """Return the sweep of these layers and batch sizes, with several batches if they are small."""
    return Sweep(
        name,
        label,
        {
            value: Workload(f"{name} {value:,}", name, layers, batch, batches=max(1, min(8, 16_384 // batch)))
            for value, (layers, batch) in points.items()
        },
    )


SWEEPS = {
    each.name: each
    for each in (
        sweep("batch", "batch [samples] of 784-128-10", {n: ((784, 128, 10), n) for n in BATCHES}),
        sweep("width", "width W [units] of 64-W-W-10, batch 128", {n: ((64, n, n, 10), 128) for n in WIDTHS}),
        sweep("depth", "depth [layers] of 64 units, batch 128", {n: ((64,) * n + (10,), 128) for n in DEPTHS}),
    )
}


def needed(workload: Workload) -> int:
    """Return an upper estimate of the bytes that a row takes, data included."""
    inputs, *widths = workload.layers
    per_sample = 2 * inputs * workload.batches + 4 * sum(widths)  # twice the data, while they are created
    return 4 * (6 * workload.parameters + workload.batch * per_sample)
