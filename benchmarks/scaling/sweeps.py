"""The sweeps: perceptrons that differ in one number."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.workloads import LARGE, MEDIUM, SMALL, Workload

BATCHES = [4**n for n in range(9)]
WIDTHS = [16, 64, 256, 1024, 4096, 8192]
DEPTHS = [1, 2, 5, 10, 20, 50, 100, 200]
ROWS = ("gradflow", "gradflow-fast", "torch-fused")
OPTIMIZER = "Adam"
TOGETHER = 2 * 1024**3
"""The bytes up to which the rows wait in memory for each other's turns; beyond, one row is measured after another."""
MEMORY = "memory"
"""Not a sweep itself: what is asked for memory are the largest workloads of the sweeps, and `USUAL`."""
USUAL = (SMALL, MEDIUM, LARGE)


@dataclass(frozen=True)
class Sweep:
    """A number, what it counts, and the workloads by its values."""

    name: str
    label: str
    workloads: dict[int, Workload]


def sweep(name: str, label: str, points: dict[int, tuple[tuple[int, ...], int]]) -> Sweep:
    """The sweep of these layers and batch sizes, with several batches as long as they are small."""
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
    """About the bytes that a row takes, data included: rather too many than too few."""
    inputs, *widths = workload.layers
    per_sample = 2 * inputs * workload.batches + 4 * sum(widths)  # the data twice, while they are made
    return 4 * (6 * workload.parameters + workload.batch * per_sample)
